"""How much of a checkpoint's accuracy is left on corrupted sweeps: mCE and mRR of Robo3D (spec/datasets.md 5).

python -m lima_core.tools.robustness --checkpoint FILE --data.name semantickitti --data.root DATA/semantickitti
python -m lima_core.tools.robustness --help

Eight corruptions at three severities, drawn here from seed 1205; the official sets are downloads. mCE is given where
Robo3D publishes a baseline on the data set. Options are those of lima_core.evaluate.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lima_core.checkpoint import CheckpointError
from lima_core.config import ConfigError, plain, read_config
from lima_core.data.corruptions import KINDS, SEED, SEVERITIES, corrupt
from lima_core.data.frame import DatasetError
from lima_core.data.labelled import Sweep
from lima_core.evaluate import EvaluateConfig, open_inputs
from lima_core.files import write_whole
from lima_core.metrics.robustness import BASELINES, Scores, robustness
from lima_core.metrics.segmentation import ConfusionMatrix
from lima_core.predictor import Predictor


def main(argv: Sequence[str]) -> None:
    """The command line."""
    try:
        config = read_config(EvaluateConfig, argv, "python -m lima_core.tools.robustness", __doc__.splitlines()[0])
        run(config)
    except (ConfigError, CheckpointError, DatasetError) as error:
        sys.exit(f"error: {error}")


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Measures, writes <out>/robustness.json and prints the table."""
    predictor, sweeps = open_inputs(config)
    scores = measure(predictor, sweeps)
    record = {"clean": scores.clean, "corrupted": dict(scores.corrupted), **summary(scores, config.data.name)}
    print("\n".join(table(record)))
    path = Path(config.out) / "robustness.json"
    write_whole(path, json.dumps({**record, "seed": SEED, "config": plain(config)}, indent=2) + "\n")
    print(f"wrote {path}")
    return record


def measure(predictor: Predictor, sweeps: Sequence[Sweep]) -> Scores:
    """mIoU in percent, clean and of every corruption and severity; each sweep has its own draw."""
    classes = len(predictor.class_names)
    cases = [None, *((kind, severity) for kind in KINDS for severity in SEVERITIES)]
    matrices = {case: ConfusionMatrix(classes) for case in cases}
    for index, sweep in enumerate(tqdm(sweeps, desc="robustness", unit="sweep", dynamic_ncols=True)):
        for case, matrix in matrices.items():
            points, labels = sweep.points, sweep.labels
            if case is not None:
                rng = np.random.default_rng([SEED, index, KINDS.index(case[0]), case[1]])
                beams = sweep.beams or 64
                points, labels = corrupt(points, labels, *case, rng, sweep.ring, predictor.class_names, beams)
            matrix.update(labels, predictor.segment(points).labels)
    percent = {case: 100 * matrix.miou() for case, matrix in matrices.items()}
    return Scores(percent[None], {kind: [percent[kind, severity] for severity in SEVERITIES] for kind in KINDS})


def summary(scores: Scores, name: str) -> dict[str, Any]:
    """mRR, and mCE where there is a baseline for the data set; percent."""
    found = robustness(scores, BASELINES.get(name, scores))
    record: dict[str, Any] = {"rr": found.rr, "mrr": found.mrr}
    return record | {"ce": found.ce, "mce": found.mce} if name in BASELINES else record


def table(record: dict[str, Any]) -> list[str]:
    """Markdown."""
    lines = [
        f"clean mIoU {record['clean']:.2f} %",
        "",
        "| corruption | mIoU % at 1, 2, 3 | RR % | CE % |",
        "|---|---|---|---|",
    ]
    for kind, values in record["corrupted"].items():
        ce = f"{record['ce'][kind]:.2f}" if "ce" in record else "no baseline"
        lines.append(f"| {kind} | {', '.join(f'{v:.2f}' for v in values)} | {record['rr'][kind]:.2f} | {ce} |")
    mce = f", mCE {record['mce']:.2f} %" if "mce" in record else ""
    return [*lines, "", f"mRR {record['mrr']:.2f} %{mce}"]


if __name__ == "__main__":
    main(sys.argv[1:])
