"""A bag through the perception node's own pipeline, without DDS or ROS: every sweep; on a CPU the same bytes twice.

python -m lima_core.predict BAG --out OUT                                     the network that ships
python -m lima_core.predict BAG --out OUT --checkpoint runs/seg/checkpoint.safetensors --rig my_rig.yaml \\
    --params-file config/perception.yaml --set filter.classes=car --overlays

OUT is a rosbag2 with what the node publishes, on /perception/output/. `Predictor` (lima_core/predictor.py) is the
network alone, for scripts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from lima_core.data.bag import Bag, BagMessages
from lima_core.data.rig import Rig
from lima_core.paths import STREET_CHECKPOINT
from lima_core.predictor import Perception, Predictor, Segmentation
from lima_core.runtime.health import events_text
from lima_core.runtime.offline import predict_bag
from lima_core.runtime.parameters import PARAMETERS
from lima_core.tools.settings import given_settings

__all__ = ["Perception", "Predictor", "Segmentation", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 1 with a message where it cannot, 130 when interrupted, and then nothing is written."""
    parser = argparse.ArgumentParser(prog="python -m lima_core.predict", description=__doc__.split("\n")[0])
    parser.add_argument("bag", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="rosbag2 folder to write")
    parser.add_argument("--checkpoint", default="", help="network file (default: the shipped one)")
    parser.add_argument("--rig", type=Path, help="rig file (default: parameter rig, else what the bag says)")
    parser.add_argument("--params-file", type=Path, help="parameter file of the node, as config/perception.yaml")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="parameters of the node")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="")
    parser.add_argument("--storage", choices=("mcap", "sqlite3"), default="mcap")
    parser.add_argument("--overlays", action="store_true", help="the segmentation drawn into the pictures too")
    options = parser.parse_args(argv)
    try:
        settings = given_settings(PARAMETERS, options.params_file, options.set)
        file = options.rig or settings["rig"]
        rig = Rig.load(file) if file else Bag(options.bag).rig
        total = BagMessages(options.bag).counts.get(rig.lidar_topic)
        checkpoint = options.checkpoint or settings["checkpoint"] or STREET_CHECKPOINT
        predictor = Predictor(checkpoint, options.device or settings["device"])
        with tqdm(total=total, desc="predicting", unit="sweep") as bar:
            account = predict_bag(
                options.bag, options.out, predictor, settings, rig, options.storage, options.overlays,
                tqdm.write, bar.update,
            )  # fmt: skip
    except (ValueError, OSError, RuntimeError) as error:
        print(f"predict: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for name, events in account.cameras.items():
        print(f"{name}: {events_text(events)}")
    print(f"{account.received} sweeps, {account.published} published, dropped {account.dropped}; wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
