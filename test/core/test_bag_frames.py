"""Frames of any source -> a bag -> frames: nothing changes on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lima_core.data.bag import Bag, BagMessages
from lima_core.data.frame import Frame
from lima_core.data.nuscenes import NuScenes
from lima_core.data.synthetic.street import Street
from lima_core.runtime.bag_frames import write_frames


def same(found: Frame, wanted: Frame) -> None:
    """Equal but for what a message cannot hold: counts of returns and attributes of boxes."""
    assert found.stamp_ns == wanted.stamp_ns
    np.testing.assert_allclose(found.points, wanted.points, atol=1e-6)
    assert sorted(found.extra) == sorted(wanted.extra)
    for name, column in wanted.extra.items():
        np.testing.assert_allclose(found.extra[name], column, atol=1e-7)
    np.testing.assert_allclose(found.world_from_lidar, wanted.world_from_lidar, atol=1e-7)
    np.testing.assert_array_equal(found.labels, wanted.labels)
    views = {view.name: view for view in wanted.cameras}
    assert {view.name for view in found.cameras} == set(views)
    for view in found.cameras:
        other = views[view.name]
        assert (view.stamp_ns, view.size, view.distortion) == (other.stamp_ns, other.size, other.distortion)
        np.testing.assert_array_equal(view.K, other.K)
        np.testing.assert_allclose(view.camera_from_lidar, other.camera_from_lidar, atol=1e-7)
        assert view.image.jpeg() == other.image.jpeg()
    np.testing.assert_allclose(found.boxes.center, wanted.boxes.center, atol=1e-9)
    np.testing.assert_allclose(found.boxes.size, wanted.boxes.size, atol=1e-9)
    np.testing.assert_allclose(np.exp(1j * found.boxes.yaw), np.exp(1j * wanted.boxes.yaw), atol=1e-9)
    np.testing.assert_allclose(found.boxes.velocity, wanted.boxes.velocity, atol=1e-9)
    np.testing.assert_array_equal(found.boxes.class_id, wanted.boxes.class_id)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_street_comes_back(tmp_path: Path, storage: str) -> None:
    street = Street(3, frames=2, image_size=(64, 32))
    bag = Bag(write_frames(street, tmp_path / "street", storage))
    assert len(bag) == 2 and bag.rig.lidar_topic == street.rig.lidar_topic
    for index in range(2):
        wanted = street[index]
        assert len(wanted.boxes) > 3
        same(bag[index], wanted)


def test_one_source_gives_one_bag(tmp_path: Path) -> None:
    street = Street(3, frames=2, image_size=(64, 32))
    one, other = (write_frames(street, tmp_path / name / "street") for name in "ab")
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in other.iterdir())
    for path in one.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name


def test_messages_are_in_order_and_static_transforms_latched(tmp_path: Path) -> None:
    messages = BagMessages(write_frames(Street(3, frames=2, image_size=(64, 32)), tmp_path / "street"))
    stamps = [stamp for stamp, _, _ in messages]
    assert stamps == sorted(stamps)
    assert messages.latched == {"/tf_static"} and messages.counts["/tf_static"] == 1
    assert messages.counts["/tf"] == messages.counts["/odom"] == 14


def test_an_interrupted_bag_leaves_nothing(tmp_path: Path) -> None:
    class Broken(Street):
        def __getitem__(self, index: int) -> Frame:
            if index == 1:
                raise RuntimeError("the disk of the robot is gone")
            return super().__getitem__(index)

    with pytest.raises(RuntimeError, match="gone"):
        write_frames(Broken(3, frames=2, image_size=(64, 32)), tmp_path / "street")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        write_frames(Street(3, frames=1, image_size=(64, 32)), tmp_path / "there")


def test_a_real_keyframe_comes_back(shared: Path, tmp_path: Path) -> None:
    source = NuScenes(shared / "data" / "nus_tiny")
    bag = Bag(write_frames(source, tmp_path / "keyframe"), source.rig)
    same(bag[0], source[0])
