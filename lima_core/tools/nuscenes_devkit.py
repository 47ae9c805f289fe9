"""The official evaluator of nuScenes' detection task, to be run in the environment that has it.

devkit/bin/python nuscenes_devkit.py ROOT VERSION RESULTS SPLIT OUTDIR

The last line that it prints is the metrics as JSON. It needs nuscenes-devkit and nothing of lima.
"""

import json
import sys

from nuscenes import NuScenes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval


def main(argv: list[str]) -> None:
    """Evaluates RESULTS on all samples of SPLIT, which must all be in it."""
    if len(argv) != 5:
        sys.exit("usage: nuscenes_devkit.py ROOT VERSION RESULTS SPLIT OUTDIR")
    root, version, results, split, out = argv
    database = NuScenes(version=version, dataroot=root, verbose=False)
    rules = config_factory("detection_cvpr_2019")
    metrics, _ = DetectionEval(database, rules, results, split, out, verbose=False).evaluate()
    print(json.dumps(metrics.serialize()))


if __name__ == "__main__":
    main(sys.argv[1:])
