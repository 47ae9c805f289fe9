"""Fills the feature cache before pretraining, so that no epoch runs the teacher. Takes the options of pretrain.

python -m lima_core.tools.cache_teacher --config config/pretrain/lima_vits_nuscenes.yaml --data.root=/data/nuscenes
torchrun --nproc-per-node 8 -m lima_core.tools.cache_teacher --config ...       # the frames are shared out

Interrupted, it goes on where it was: frames that the cache has are read no further than their pictures.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tqdm import tqdm

from lima_core.config import ConfigError, read_config
from lima_core.lima.scenes import TeacherFeatures, load
from lima_core.pretrain import ERRORS, PretrainConfig, log_to_terminal, open_cache, open_drive, start
from lima_core.pretrain import build_teacher as build
from lima_core.training.feature_cache import bytes_per_frame, check_space, frame_digest
from lima_core.training.loop import leave_processes


def main(argv: Sequence[str]) -> None:
    """The command line."""
    log_to_terminal()
    try:
        config = read_config(PretrainConfig, argv, "python -m lima_core.tools.cache_teacher", __doc__.splitlines()[0])
        computed, present = fill(config)
    except ERRORS as error:
        sys.exit(f"error: {error}")
    finally:
        leave_processes()
    print(f"{computed} frames computed, {present} were there")


def fill(config: PretrainConfig) -> tuple[int, int]:
    """Computes the features that the cache lacks; returns how many were computed, and how many were there."""
    if config.teacher.cache is None:
        raise ConfigError("teacher.cache is null: name the folder to fill")
    fabric = start(config.device, config.precision, config.threads, config.seed, config.deterministic)
    with fabric.rank_zero_first():
        drive = open_drive(config.data, config.threads)
    teacher = build(config.teacher).to(fabric.device)
    cache = open_cache(config.teacher, teacher, fabric.global_rank)
    features = TeacherFeatures(teacher, cache, fabric.device)
    mine = range(fabric.global_rank, len(drive), fabric.world_size)
    size = bytes_per_frame(teacher, len(drive.rig.cameras))
    print(check_space(cache.folder, max(0, len(drive) - len(cache)), size), flush=True)
    try:
        for index in tqdm(mine, desc="teacher features", unit="frame", disable=not fabric.is_global_zero):
            frame = drive[index]
            if frame_digest(frame) not in cache:
                features.view(load(frame, teacher.prepare, cache))
    finally:
        cache.flush()
    return features.computed, len(mine) - features.computed


if __name__ == "__main__":
    main(sys.argv[1:])
