"""Writes config/finetune/seg_<dataset>_<share>.yaml, one for each column of the paper's Tables 1 and 2, and
det_nuscenes_<head>_<share>.yaml of its Table 3.

python -m lima_core.tools.finetune_configs

The recipe is SuperFlow's (spec/datasets.md 4.1), the same for every cell; DAPS-3D has so few scans that it takes two
at a time. `lp` is the linear probe: all labels, the backbone frozen. Detection follows OpenPCDet's CenterPoint and
multi-head SECOND (3.4 to 3.6).
"""

from __future__ import annotations

from pathlib import Path

from lima_core.files import write_whole
from lima_core.paths import config_dir

CELLS = {
    "nuscenes": ("lp", 1, 5, 10, 25, 100),
    "semantickitti": (1,),
    "waymo": (1,),
    "scribblekitti": (1, 10),
    "rellis3d": (1, 10),
    "semanticposs": (50, 100),
    "semanticstf": (50, 100),
    "synlidar": (1, 10),
    "daps3d": (50, 100),
    "synth4d": (1, 10),
}
TEMPLATE = """\
# {title}. Made by lima_core/tools/finetune_configs.py: change that, not this.
#   python -m lima_core.finetune --config config/finetune/{file} --data.root FOLDER --out runs/{stem}
#     --init runs/lima/checkpoint.safetensors     # leave out for random weights
model: minkunet34
linear_probe: {probe}

data:
  name: {name}
  share: {share} # percent of the training labels

voxels:
  kind: cylinder
  size: [0.1, 1.0, 0.1] # m, degrees, m

augment:
  flip: 0.5
  rotation: 180.0 # degrees
  scale: [0.95, 1.05]
  intensity_gain: 1.0

optim:
  kind: adamw
  peak_lr: 1.0e-3 # backbone and head alike, which is what SuperFlow runs
  weight_decay: 0.01

epochs: 100
batch_size: {batch}
precision: fp16 # on a CPU: --precision=fp32
seed: 0
workers: 4
"""
DETECTORS = {"center": ("CenterPoint", 30), "anchor": ("SECOND, multi-head", 20)}  # name, epochs
DETECTION_SHARES = (5, 10, 20, 100)
DETECTION = """\
# nuScenes detection, {title}, {share} % of the labels.
# Made by lima_core/tools/finetune_configs.py: change that, not this.
#   python -m lima_core.tools.gt_database --data.name nuscenes --data.root FOLDER --data.share {share}
#     --out runs/gt_{share}
#   python -m lima_core.finetune --config config/finetune/{file} --data.root FOLDER
#     --out runs/{stem} --boxes.gt_database runs/gt_{share}/objects.safetensors
#     --init runs/lima_voxelnet/checkpoint.safetensors     # leave out for random weights
task: detection
model: voxelnet

data:
  name: nuscenes
  share: {share} # percent of the keyframes, every n-th

bounds:
  low: [-51.2, -51.2, -5.0] # m
  high: [51.2, 51.2, 3.0]
  size: [0.1, 0.1, 0.2]
  points_per_voxel: 10

detector:
  head: {head}
  bev_width: 128
  head_channels: 64
  norm_momentum: 0.01
  sweeps: 10

boxes:
  balance: true

augment:
  flip: 0.5
  rotation: 22.5 # degrees
  scale: [0.95, 1.05]
  intensity_gain: 1.0

optim:
  kind: adam_onecycle
  peak_lr: 3.0e-3
  weight_decay: 0.01
  clip_norm: 10.0

epochs: {epochs}
batch_size: 32
validate_every: 5
precision: fp16 # on a CPU: --precision=fp32
seed: 0
workers: 4
"""


def configs() -> dict[str, str]:
    """File name -> content."""
    segmentation = {f"seg_{name}_{cell}.yaml": _config(name, cell) for name, cells in CELLS.items() for cell in cells}
    return segmentation | {
        f"det_nuscenes_{head}_{share}.yaml": _detection(head, share) for head in DETECTORS for share in DETECTION_SHARES
    }


def _detection(head: str, share: int) -> str:
    title, epochs = DETECTORS[head]
    stem = f"det_nuscenes_{head}_{share}"
    return DETECTION.format(title=title, head=head, share=share, file=f"{stem}.yaml", stem=stem, epochs=epochs)


def _config(name: str, cell: int | str) -> str:
    probe = cell == "lp"
    stem = f"seg_{name}_{cell}"
    return TEMPLATE.format(
        title=f"{name}, " + ("linear probe" if probe else f"{cell} % of the labels"),
        file=f"{stem}.yaml",
        stem=stem,
        name=name,
        share=100 if probe else cell,
        probe=str(probe).lower(),
        batch=2 if name == "daps3d" else 16,
    )


def main(folder: Path) -> None:
    """Writes them all."""
    for file, content in configs().items():
        write_whole(folder / file, content)
    print(f"wrote {len(configs())} files to {folder}")


if __name__ == "__main__":
    main(config_dir() / "finetune")
