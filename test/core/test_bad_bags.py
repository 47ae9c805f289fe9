"""Bags that are broken, cut off or strange: read as far as that makes sense, else named with cause and repair."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

import bags
from lima_core.data.bag import Bag, BagError, BagMessages
from lima_core.data.recording import Recording
from lima_core.data.ros_cloud import pack_cloud
from lima_core.data.synthetic.street import Street
from lima_core.runtime.bag_frames import write_frames
from lima_core.runtime.bag_messages import bag_messages, typestore
from lima_core.runtime.bag_writer import BagWriter
from lima_core.runtime.offline_recording import record_bag
from lima_core.runtime.parameters import resolve
from lima_core.runtime.recorder_parameters import RECORDING

ALL = resolve({"triggers": "all", "disk.min_free_gb": 0.0}, RECORDING)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    street, root = Street(3, frames=4, image_size=(64, 32)), tmp_path_factory.mktemp("whole")
    return {storage: write_frames(street, root / storage, storage) for storage in ("mcap", "sqlite3")}


def half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def without_index(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-600])


def garbage(file: Path) -> None:
    file.write_bytes(b"not a bag at all" * 100)


def half_written(file: Path) -> None:
    """What is left of an sqlite3 bag whose last pages never reached the disk."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    file.write_bytes(content)


def without_table(file: Path) -> None:
    with sqlite3.connect(file) as database:
        database.execute("DROP TABLE messages")


@pytest.mark.parametrize("damage", [half, without_index, garbage, lambda file: file.write_bytes(b""), Path.unlink])
def test_a_broken_mcap_is_named_with_its_repair(whole: dict, tmp_path: Path, damage: Callable) -> None:
    bag = shutil.copytree(whole["mcap"], tmp_path / "bag")
    damage(bag / "mcap.mcap")
    for reader in (BagMessages, Bag):
        with pytest.raises(BagError, match=r"not a readable rosbag2.*mcap recover") as error:
            list(reader(bag))
        assert str(bag) in str(error.value)


@pytest.mark.parametrize("damage", [half, half_written, garbage, without_table])
def test_a_half_written_sqlite_bag_is_named(whole: dict, tmp_path: Path, damage: Callable) -> None:
    bag = shutil.copytree(whole["sqlite3"], tmp_path / "bag")
    damage(bag / "sqlite3.db3")
    for reader in (BagMessages, Bag):
        with pytest.raises(BagError, match="bag is"):
            list(reader(bag))


@pytest.mark.parametrize("text", [None, "a: [1", "a: 1\n", "rosbag2_bagfile_information: 7\n"])
def test_broken_metadata_is_named(whole: dict, tmp_path: Path, text: str | None) -> None:
    bag = shutil.copytree(whole["mcap"], tmp_path / "bag")
    (bag / "metadata.yaml").unlink() if text is None else (bag / "metadata.yaml").write_text(text)
    with pytest.raises(BagError, match="ros2 bag reindex"):
        BagMessages(bag)


def test_frames_before_the_damage_are_kept(whole: dict, tmp_path: Path) -> None:
    """Pages in the middle of the file are lost: what could be read of it is recorded, and the bag is reported."""
    bag = shutil.copytree(whole["sqlite3"], tmp_path / "bag")
    file = bag / "sqlite3.db3"
    content = bytearray(file.read_bytes())
    at = len(content) * 7 // 10 // 4096 * 4096
    content[at : at + 40960] = b"\xff" * 40960
    file.write_bytes(content)
    with pytest.raises(BagError, match=r"is broken after \d+ messages"):
        record_bag(bag, tmp_path / "out", ALL, Street(3, frames=1).rig, warn=lambda text: None)
    frames = Recording(tmp_path / "out")
    assert not list(frames.problems()) and len(frames) >= 1


def xyz(count: int = 20) -> dict[str, np.ndarray]:
    return {axis: np.linspace(2, 9, count, dtype=np.float32) for axis in "xyz"}


def drive(path: Path, stamps_ms: list[int], bag_ms: list[int] | None = None) -> Path:
    """Odometry and a LiDAR with these stamps, recorded at these bag times."""
    with bags.BagWriter(path) as bag:
        for index, stamp in enumerate(stamps_ms):
            at = (bag_ms or stamps_ms)[index]
            bag.odometry("/odom", stamp * 10**6, np.eye(4))
            bag.cloud("/lidar", stamp * 10**6, "base_link", delay_ns=(at - stamp) * 10**6, **xyz())
    return path


def recorded(bag: Path, out: Path) -> list[tuple[str, int]]:
    record_bag(bag, out, ALL, warn=lambda text: None)
    recording = Recording(out)
    return [(name[-4:], recording[i].stamp_ns // 10**6) for i, name in enumerate(recording.sequences)]


def test_messages_out_of_order_are_read_by_their_stamps(tmp_path: Path) -> None:
    bag = drive(tmp_path / "bag", [1000, 1200, 1100, 1300], [1000, 1100, 1200, 1300])
    assert [frame.stamp_ns // 10**6 for frame in Bag(bag)] == [1000, 1100, 1200, 1300]


def test_a_clock_that_goes_back_begins_a_sequence(tmp_path: Path) -> None:
    times = [1000, 1100, 1200, 1300, 1400, 1500]
    with bags.BagWriter(tmp_path / "bag") as bag:
        for at, stamp in zip(times, [50_000, 50_100, 50_200, 20_000, 20_100, 20_200], strict=True):
            header = bags.header(stamp * 10**6, "map")
            message = bag_messages().odometry(np.eye(4), stamp * 10**6)
            fields = {name: getattr(message, name) for name in ("child_frame_id", "pose", "twist")}
            bag.write("/odom", "nav_msgs/msg/Odometry", at * 10**6, header=header, **fields)
            bag.cloud("/lidar", stamp * 10**6, "base_link", delay_ns=(at - stamp) * 10**6, **xyz())
    assert recorded(tmp_path / "bag", tmp_path / "out") == [
        ("0000", 50_000), ("0000", 50_100), ("0000", 50_200), ("0001", 20_000), ("0001", 20_100), ("0001", 20_200)
    ]  # fmt: skip


def test_a_message_that_cannot_be_decoded_is_left_out(tmp_path: Path) -> None:
    messages, kind = bag_messages(), "sensor_msgs/msg/PointCloud2"
    with BagWriter(tmp_path / "bag") as bag:
        for index in range(4):
            stamp = 10**9 + index * 10**8
            bag.write("/odom", messages.odometry(np.eye(4), stamp, "map", "base_link"), stamp)
            cloud = bytes(typestore().serialize_cdr(messages.cloud(pack_cloud(xyz()), stamp, "base_link"), kind))
            bag.write_raw("/lidar", kind, cloud[: len(cloud) // 2] if index == 1 else cloud, stamp)
    told: list[str] = []
    rig = Bag(drive(tmp_path / "other", [1000, 1100])).rig
    counts = record_bag(tmp_path / "bag", tmp_path / "out", ALL, rig, warn=told.append)
    assert counts["recorded"] == 3 and sum(counts.values()) == 4
    assert any("are no sensor_msgs/msg/PointCloud2" in line for line in told)


def test_other_definitions_of_other_topics_do_not_disturb(tmp_path: Path) -> None:
    """A robot's own messages, and a PointCloud2 of another make on a topic that nobody asks for."""
    own = get_typestore(Stores.ROS2_HUMBLE)
    own.register(
        get_types_from_msg("std_msgs/Header header\nfloat32[] ranges\nmy_msgs/Cell[] cells", "my_msgs/msg/Scan")
    )
    own.register(get_types_from_msg("uint8 a\nstring b", "my_msgs/msg/Cell"))
    bag = drive(tmp_path / "bag", [1000, 1100, 1200])
    mixed = tmp_path / "mixed"
    with Writer(mixed, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        source = BagMessages(bag)
        places = {t: writer.add_connection(t, kind, typestore=own) for t, kind in source.types.items()}
        strange = writer.add_connection("/scan", "my_msgs/msg/Scan", typestore=own)
        header = own.types["std_msgs/msg/Header"](own.types["builtin_interfaces/msg/Time"](1, 0), "x")
        cell = own.types["my_msgs/msg/Cell"](1, "b")
        scan = own.types["my_msgs/msg/Scan"](header, np.zeros(3, np.float32), [cell])
        for stamp, topic, raw in source:
            writer.write(places[topic], stamp, raw)
            writer.write(strange, stamp, own.serialize_cdr(scan, "my_msgs/msg/Scan"))
    assert BagMessages(mixed).types["/scan"] == "my_msgs/msg/Scan"
    assert len(Bag(mixed)) == 3
    assert [stamp for _, stamp in recorded(mixed, tmp_path / "out")] == [1000, 1100, 1200]


def test_missing_topics_are_answered_with_those_there_are(whole: dict, tmp_path: Path) -> None:
    bag = drive(tmp_path / "bag", [1000, 1100])
    with pytest.raises(BagError, match=r"no messages on /LIDAR_TOP(.|\n)*/odom: nav_msgs/msg/Odometry"):
        record_bag(bag, tmp_path / "out", ALL, Street(3, frames=1).rig)
    assert not (tmp_path / "out").exists()
