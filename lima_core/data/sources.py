"""One word for every source of frames: `street:7`, a nuScenes folder, a rosbag2, a recording or many."""

from __future__ import annotations

from pathlib import Path

from lima_core.data.frame import FrameSource


def open_source(spec: str, frames: int | None = None) -> FrameSource:
    """Opens a source by name or folder.

    `street:<seed>` is the simulated street (`frames` sweeps long, 20 by default); any other word is a folder in
    the nuScenes layout, a rosbag2 or recordings, where `frames` is refused. Raises ValueError naming what was given and
    what would be understood.
    """
    if spec.startswith("street:"):
        seed = spec.removeprefix("street:")
        if not seed.isdecimal():
            raise ValueError(f"{spec!r}: a simulated street is named by its seed, for example street:7")
        from lima_core.data.synthetic.street import Street

        return Street(int(seed), frames=20 if frames is None else frames)
    if frames is not None:
        raise ValueError(f"{spec}: only a simulated street has a length of choice; leave `frames` out")
    folder = Path(spec)
    if not folder.is_dir():
        raise ValueError(f"{spec!r} is neither street:<seed> nor a folder")
    if (folder / "metadata.yaml").is_file():
        from lima_core.data.bag import Bag

        return Bag(folder)
    if any(folder.glob("*/sample_data.json")):
        from lima_core.data.nuscenes import NuScenes

        return NuScenes(folder)
    if (folder / "recording.json").is_file() or (folder / "recordings.jsonl").is_file():
        from lima_core.data.recordings import Recordings

        return Recordings(folder, one_vehicle=True)  # players and the doctor take its rig for every frame
    raise ValueError(
        f"{folder} holds neither a rosbag2 (metadata.yaml) nor nuScenes tables (<version>/sample_data.json), nor "
        "recordings (recording.json, recordings.jsonl)"
    )
