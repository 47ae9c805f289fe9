"""Figures from the command line: `python -m lima_core.viz similarity --help`."""

from __future__ import annotations

import sys

from lima_core.viz import boxes, errors, similarity

FIGURES = {"similarity": similarity.main, "errors": errors.main, "boxes": boxes.main}


def main(argv: list[str]) -> None:
    """Draws the figure that the first word names; a wrong input ends in one line."""
    if not argv or argv[0] not in FIGURES:
        raise SystemExit(f"usage: python -m lima_core.viz {{{','.join(FIGURES)}}} ...")
    try:
        FIGURES[argv[0]](argv[1:])
    except ValueError as error:
        raise SystemExit(f"{argv[0]}: {error}") from error


if __name__ == "__main__":
    main(sys.argv[1:])
