"""Is a copy of a data set whole? Reads every scan and its labels.

python -m lima_core.data.check semantickitti /data/semantickitti

Exit code 0 when all is well, 1 when something is missing or broken. Where the folder is not there or not that data set,
it says what to download and where to put it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tqdm import tqdm

from lima_core.data.datasets import NAMES, Dataset, open_dataset
from lima_core.data.frame import IGNORE
from lima_core.paths import config_dir

LABELLED = ("train", "val")  # these must be there; a test split may be
SHOWN = 20  # problems of one split that are printed


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what is there and what is wrong; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lima_core.data.check", description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=NAMES, help="name of the data set")
    parser.add_argument("root", type=Path, help="its folder")
    options = parser.parse_args(argv)
    facts = yaml.safe_load((config_dir() / "datasets" / f"{options.name}.yaml").read_text())
    expected: dict[str, int | list[int]] = facts["num_frames"]
    absent, problems = {}, 0
    for split in dict.fromkeys((*LABELLED, "test", *expected)):
        try:
            source = open_dataset(options.name, options.root, split)
        except (ValueError, OSError) as error:
            absent[split] = str(error)
            continue
        problems += _show(split, _problems(split, source, expected.get(split)))
    missing = [split for split in LABELLED if split in absent]
    print(*(f"{split}: {absent[split]}" for split in missing), sep="\n", end="\n" if missing else "")
    if missing == list(LABELLED):
        print(guide(facts, options.root))
    problems += len(missing)
    print(f"{problems} problems in {options.root}" if problems else f"{options.root} is whole")
    return 1 if problems else 0


def guide(facts: dict[str, Any], root: Path) -> str:
    """What to download, from where, and what `root` then looks like."""
    tree = "".join(f"\n  {line}" for line in facts["tree"].splitlines())
    return f"\nDownload {facts['download']},\nfrom {facts['url']},\nso that {root.absolute()} holds{tree}\n"


def _show(split: str, problems: Iterable[str]) -> int:
    """Prints the first problems of a split; returns how many there are."""
    count = 0
    for count, problem in enumerate(problems, 1):
        if count <= SHOWN:
            tqdm.write(f"{split}: {problem}")
    if count > SHOWN:
        print(f"{split}: and {count - SHOWN} more")
    return count


def _problems(split: str, source: Dataset, expected: int | list[int] | None) -> Iterator[str]:
    """What is wrong with a split; every frame is read, but not once more for `all`."""
    allowed = expected if isinstance(expected, list) else [expected]
    if expected is not None and len(source) not in allowed:
        yield f"{len(source)} frames, expected {' or '.join(map(str, allowed))}; unpack what is missing"
    if split != "all":
        yield from _read(split, source)


def _read(split: str, source: Dataset) -> Iterator[str]:
    """Yields a line for each frame that cannot be read or lacks labels it should have; prints the totals."""
    points = with_class = 0
    for index in tqdm(range(len(source)), desc=split, unit="frame"):
        try:
            frame = source[index]
        except (ValueError, OSError) as error:
            yield str(error)
            continue
        points += len(frame.points)
        if frame.labels is not None:
            with_class += np.count_nonzero(frame.labels != IGNORE)
        elif split in LABELLED:
            yield f"{frame.where} has no labels; unpack them too"
    share = f"{100 * with_class / points:.1f} % of them with a class" if with_class else "no labels"
    print(f"{split}: {len(source)} frames, {points} points, {share}")


if __name__ == "__main__":
    sys.exit(main())
