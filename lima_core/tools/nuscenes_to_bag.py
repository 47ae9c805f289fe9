"""nuScenes scenes as rosbag2 folders that `ros2 bag play` and lima's own player take: standard messages, no devkit.

python -m lima_core.tools.nuscenes_to_bag ROOT OUT                        every scene, sweeps between the keyframes too
python -m lima_core.tools.nuscenes_to_bag ROOT OUT --scenes scene-0061 --keyframes-only --storage sqlite3

Topics: /LIDAR_TOP, /CAM_*/image_rect_compressed (the JPEGs as they are) and camera_info, /tf and /odom at the stamp of
every sensor file, /tf_static (latched), and at keyframes /gt/segmentation, /gt/detections and /gt/markers. Stamps and
bag times are those of the tables. CAN bus, maps and radars are not needed and not written. The same tables give the
same bytes. A scene whose bag is complete is passed over: an interrupted call is simply repeated.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lima_core.data.bag import DETECTIONS_TOPIC
from lima_core.data.classes import load_taxonomy
from lima_core.data.frame import CameraView, Image
from lima_core.data.nuscenes import LIDAR, NuScenes, NuScenesError
from lima_core.data.nuscenes_drive import Drive, SensorFile, read_drives
from lima_core.data.ros_cloud import pack_cloud
from lima_core.files import inside
from lima_core.runtime.bag_messages import bag_messages
from lima_core.runtime.bag_writer import BagWriter, Storage, is_complete
from lima_core.runtime.detections import detection_array
from lima_core.runtime.frame_messages import certain, truth_messages

WORLD, BASE, ODOMETRY_TOPIC = "map", "base_link", "/odom"
MESSAGES = bag_messages()

Written = tuple[str, object]


def main(argv: Sequence[str] | None = None) -> int:
    """Writes OUT/<scene> for each scene; 1 with a message where it cannot."""
    parser = argparse.ArgumentParser(
        prog="python -m lima_core.tools.nuscenes_to_bag", description=__doc__.split("\n")[0]
    )
    parser.add_argument("root", type=Path, help="folder with <version>/, samples/ and sweeps/")
    parser.add_argument("out", type=Path, help="folder for the bags")
    parser.add_argument("--version", help="version folder; left out: the only one")
    parser.add_argument("--scenes", nargs="+", help="names; left out: all")
    parser.add_argument("--keyframes-only", action="store_true", help="without the sweeps between keyframes")
    parser.add_argument("--storage", choices=("mcap", "sqlite3"), default="mcap")
    parser.add_argument("--lower", action="store_true", help="topics in lower case, as foxglove's nuscenes2mcap")
    options = parser.parse_args(argv)
    try:
        source = NuScenes(options.root, options.version)
        known = dict.fromkeys(source.sequences)
        unknown = [name for name in options.scenes or () if name not in known]
        if unknown:
            raise NuScenesError(f"{options.root} has no {', '.join(unknown)}; its scenes are {', '.join(known)}")
        scenes = [scene for scene in options.scenes or known if not _stays(options.out / scene)]
        for drive in read_drives(source, scenes, options.keyframes_only):
            convert(source, drive, options.out / drive.name, options.storage, options.lower)
    except (ValueError, OSError) as error:
        print(f"nuscenes_to_bag: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def convert(
    source: NuScenes,
    drive: Drive,
    out: Path,
    storage: Storage = "mcap",
    lower: bool = False,
) -> None:
    """One scene as the rosbag2 folder `out`, whole or not at all. Raises NuScenesError, FileExistsError."""
    keyframes = iter([i for i, name in enumerate(source.sequences) if name == drive.name])  # in order of time

    def named(topic: str) -> str:
        return topic.lower() if lower else topic

    with BagWriter(out, storage) as bag, tqdm(drive.files, desc=drive.name, unit="file") as bar:
        links = [(BASE, channel, pose) for channel, pose in drive.base_from_sensor.items()]
        begin_ns = drive.files[0].stamp_ns
        bag.write("/tf_static", MESSAGES.transforms(begin_ns, *links), begin_ns, latched=True)
        posed_ns = None
        for file in bar:
            if file.stamp_ns != posed_ns:  # sensors that share a stamp share the pose
                posed_ns = file.stamp_ns
                bag.write("/tf", MESSAGES.transforms(posed_ns, (WORLD, BASE, file.world_from_base)), posed_ns)
                pose = MESSAGES.odometry(file.world_from_base, posed_ns, WORLD, BASE)
                bag.write(ODOMETRY_TOPIC, pose, posed_ns)
            for topic, message in _sensed(source, drive, file):
                bag.write(named(topic), message, file.stamp_ns)
            if file.channel == LIDAR and file.is_key:
                for topic, message in _truth(source, next(keyframes), file.stamp_ns):
                    bag.write(topic, message, file.stamp_ns)


def _stays(path: Path) -> bool:
    """Whether a bag is there already, and says so. Raises FileExistsError where it is incomplete."""
    stays = is_complete(path)
    if stays:
        print(f"{path} is complete and stays")
    return stays


def _sensed(source: NuScenes, drive: Drive, file: SensorFile) -> Iterator[Written]:
    """The messages of a sensor file."""
    content = _read(source, file)
    if file.channel == LIDAR:
        if len(content) % 20:
            raise NuScenesError(f"{source.root / file.filename}: {len(content)} bytes are no whole points; truncated?")
        points = np.frombuffer(content, "<f4").reshape(-1, 5)
        columns = {name: points[:, at] for at, name in enumerate(("x", "y", "z", "intensity"))}
        packed = pack_cloud({**columns, "ring": points[:, 4].astype(np.uint16)})
        yield f"/{LIDAR}", MESSAGES.cloud(packed, file.stamp_ns, LIDAR)
        return
    image = Image(encoded=content, source=file.filename)
    view = CameraView(file.channel, file.stamp_ns, image, file.size, drive.K[file.channel], np.eye(4))
    yield f"/{file.channel}/camera_info", MESSAGES.camera_info(view, file.channel)
    yield f"/{file.channel}/image_rect_compressed", MESSAGES.compressed(content, file.stamp_ns, file.channel)


def _read(source: NuScenes, file: SensorFile) -> bytes:
    try:
        return inside(source.root, file.filename).read_bytes()
    except ValueError as error:
        raise NuScenesError(f"{error} (of the tables of {source.version})") from error
    except FileNotFoundError as error:
        fix = "unpack the sensor blobs" if file.is_key else "unpack the sweeps too, or use --keyframes-only"
        raise NuScenesError(f"{source.root / file.filename} is missing; {fix}") from error


def _truth(source: NuScenes, index: int, stamp_ns: int) -> Iterator[Written]:
    """Labels and boxes of a keyframe, the boxes in both forms."""
    frame = source[index]
    if frame.boxes is not None:
        names, header = load_taxonomy("nuscenes").detection_names, MESSAGES.header(stamp_ns, LIDAR)
        yield DETECTIONS_TOPIC, detection_array(certain(frame.boxes), names, header, MESSAGES)
    for out in truth_messages(frame, LIDAR, MESSAGES):
        yield out.topic, out.message


if __name__ == "__main__":
    sys.exit(main())
