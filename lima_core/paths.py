"""Where lima's own files lie: beside the package in a checkout, under share/lima_ros once installed."""

from __future__ import annotations

from pathlib import Path

STREET_CHECKPOINT = Path(__file__).parent / "assets" / "street.safetensors"


def config_dir() -> Path:
    """Folder of the shipped YAML files, in a checkout, after pip install and in a colcon workspace.

    Raises FileNotFoundError naming the places that were searched.
    """
    package = Path(__file__).resolve().parent
    places = [package.parent / "config", *(p / "share" / "lima_ros" / "config" for p in package.parents)]
    for place in places:
        if (place / "datasets").is_dir():
            return place
    raise FileNotFoundError(
        "lima's config folder was found in none of: "
        + ", ".join(map(str, places[:6]))
        + "; reinstall with `pip install .` or `colcon build`"
    )
