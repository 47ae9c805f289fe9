"""The simulated street: determinism, labels against geometry, and the whole chain of transforms."""

from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pytest

from lima_core.data.rig import Rig
from lima_core.data.synthetic.camera import pixel_rays
from lima_core.data.synthetic.lidar import NOISE_M
from lima_core.data.synthetic.street import CAMERAS, Street
from lima_core.geometry import se3
from lima_core.geometry.camera import project

SMALL = (64, 32)


@pytest.fixture(scope="module")
def street():
    return Street(5, frames=4, image_size=SMALL)


@pytest.fixture(scope="module")
def frames(street):
    return [street[i] for i in range(len(street))]


def same(a, b) -> bool:
    """Equality of two frames, bit by bit."""
    return (
        a.stamp_ns == b.stamp_ns
        and np.array_equal(a.points, b.points)
        and np.array_equal(a.labels, b.labels)
        and np.array_equal(a.world_from_lidar, b.world_from_lidar)
        and all(np.array_equal(a.extra[k], b.extra[k]) for k in a.extra)
        and all(np.array_equal(vars(a.boxes)[k], vars(b.boxes)[k]) for k in vars(a.boxes))
        and len(a.cameras) == len(b.cameras)
        and all(np.array_equal(x.image.rgb, y.image.rgb) for x, y in zip(a.cameras, b.cameras, strict=True))
    )


def test_a_fresh_street_in_another_order_is_equal(frames):
    other = Street(5, frames=4, image_size=SMALL)
    assert same(other[3], frames[3])
    assert same(other[0], frames[0])


def test_a_pickled_street_is_equal_and_small(street, frames):
    data = pickle.dumps(street)
    assert len(data) < 20_000  # no scene, no mesh
    assert same(pickle.loads(data)[1], frames[1])


def test_without_cameras_the_sweep_is_the_same(frames):
    blind = Street(5, frames=4, cameras=False)[2]
    assert blind.cameras == ()
    np.testing.assert_array_equal(blind.points, frames[2].points)


def test_a_longer_drive_starts_like_a_shorter_one(frames):
    longer = Street(5, frames=12, cameras=False)[0]
    np.testing.assert_array_equal(longer.world_from_lidar, frames[0].world_from_lidar)
    sets = [{row.tobytes() for row in f.points if np.hypot(*row[:2]) < 60} for f in (longer, frames[0])]
    assert len(sets[0] & sets[1]) > 0.999 * max(map(len, sets))


def test_seeds_differ(frames):
    other = Street(6, frames=4, cameras=False)[0]
    assert other.points.shape != frames[0].points.shape or not np.array_equal(other.points, frames[0].points)
    assert other.sequence == "street-6"
    assert other.stamp_ns != frames[0].stamp_ns


def test_sweep_has_the_size_and_columns_of_the_sensor(frames):
    for frame in frames:
        assert 25_000 <= len(frame.points) <= 36_000
        assert frame.points[:, 3].min() >= 0 and frame.points[:, 3].max() <= 1
        assert set(np.unique(frame.extra["ring"])) <= set(range(32))
        assert frame.extra["time_s"].max() <= 0 and frame.extra["time_s"].min() > -0.0501
        distance = np.linalg.norm(frame.points[:, :3], axis=1)
        elevation = np.rad2deg(np.arcsin(frame.points[:, 2] / distance))
        beam = -30.67 + frame.extra["ring"] * (10.67 + 30.67) / 31
        # Beams leave a moving sensor: nearby points shift by centimetres from the pose at the stamp.
        assert np.abs(elevation - beam)[distance > 10].max() < 1.0
    stamps = np.diff([f.stamp_ns for f in frames])
    assert (stamps == 100_000_000).all()


@pytest.fixture(scope="module")
def crowd():
    return [Street(seed, frames=1, cameras=False)[0] for seed in range(5)]


def test_every_class_occurs(crowd, street):
    seen = np.unique(np.concatenate([frame.labels for frame in crowd]))
    assert [street.taxonomy.names[i] for i in seen] == list(street.taxonomy.names)


def test_ground_labels_lie_on_the_ground(frames, street):
    for frame in frames[:2]:
        world = se3.apply(frame.world_from_lidar, frame.points)
        distance = np.linalg.norm(frame.points[:, :3], axis=1)
        slope = np.abs(frame.points[:, 2]) / distance
        names = street.taxonomy
        road = frame.labels == names.index("driveable_surface")
        # Noise is along the ray: its height is that times the sine of the beam.
        assert (np.abs(world[road, 2]) < 5 * NOISE_M * slope[road] + 0.01).all()
        walk = frame.labels == names.index("sidewalk")
        assert (np.abs(world[walk, 2] - 0.07) < 0.08 + 5 * NOISE_M).all()
        lawn = frame.labels == names.index("terrain")
        assert (world[lawn, 2] > -0.5).all() and (world[lawn, 2] < 2).all()


def test_points_of_things_lie_in_boxes_of_their_class(crowd, street):
    names = street.taxonomy
    for frame in crowd:
        boxes, near = frame.boxes, np.linalg.norm(frame.points[:, :2], axis=1) < 50
        for class_id, name in enumerate(names.detection_names):
            points = frame.points[near & (frame.labels == names.index(name))]
            inside = np.zeros(len(points), bool)
            for i in np.flatnonzero(boxes.class_id == class_id):
                turn = np.array([np.cos(boxes.yaw[i] / 2), 0, 0, np.sin(boxes.yaw[i] / 2)])
                local = se3.apply(se3.inverse(se3.transform(turn, boxes.center[i])), points)
                # Moving things are met up to 50 ms before the stamp, and the body of the vehicle leans.
                motion = np.abs(boxes.velocity[i]).sum() * 0.05
                inside |= (np.abs(local) <= boxes.size[i] / 2 + [0.3 + motion, 0.3, 0.4]).all(axis=1)
            assert inside.all(), name


def test_boxes_count_the_returns_of_their_objects(street, frames):
    """Against the labels: every annotated point of a class is on one of its boxes, or on an object past 60 m."""
    names = street.taxonomy
    for frame in frames:
        boxes, distance = frame.boxes, np.linalg.norm(frame.points[:, :2], axis=1)
        assert boxes.points.dtype == np.int32 and (boxes.points > 0).all()
        for class_id, name in enumerate(names.detection_names):
            labelled = frame.labels == names.index(name)
            counted = boxes.points[boxes.class_id == class_id].sum()
            assert (labelled & (distance < 50)).sum() <= counted <= labelled.sum(), name


def test_box_velocity_is_the_finite_difference_of_centres(frames):
    moving = 0
    for first, second in pairwise(frames):
        seconds = (second.stamp_ns - first.stamp_ns) * 1e-9
        centers = [se3.apply(f.world_from_lidar, f.boxes.center) for f in (first, second)]
        for i, velocity in enumerate(first.boxes.velocity):
            world = first.world_from_lidar[:3, :3] @ [*velocity, 0.0]
            expected = centers[0][i] + world * seconds
            gaps = np.linalg.norm((centers[1] - expected)[:, :2], axis=1)
            gaps[second.boxes.class_id != first.boxes.class_id[i]] = np.inf
            if gaps.min() < 1.0:  # it may have left the field of view
                assert gaps.min() < 0.03
                moving += np.linalg.norm(velocity) > 2
    assert moving > 10


def test_cameras_fire_at_their_offsets_from_where_the_vehicle_is(street, frames):
    for view in frames[1].cameras:
        mount = street.rig.camera(view.name)
        assert view.stamp_ns - frames[1].stamp_ns == round(CAMERAS[view.name][2] * 1e6) == mount.offset_ms * 1e6
        world_from_camera = street.base_pose(view.stamp_ns) @ mount.base_from_camera
        expected = se3.inverse(world_from_camera) @ frames[1].world_from_lidar
        np.testing.assert_allclose(view.camera_from_lidar, expected, atol=1e-12)
        rigid = se3.inverse(mount.base_from_camera) @ street.rig.base_from_lidar
        moved = np.linalg.norm(view.camera_from_lidar[:3, 3] - rigid[:3, 3])
        speed = moved / (abs(mount.offset_ms) * 1e-3)
        assert 4 < speed < 13, view.name


def depth_errors(street, frame, view, camera_from_lidar):
    """|depth of static points - what a ray through their pixel meets| in m, of points that nothing hides."""
    static = [street.taxonomy.index(n) for n in ("driveable_surface", "manmade", "sidewalk", "other_flat")]
    projected = project(frame.points, camera_from_lidar, view.K, view.size)
    rows = np.flatnonzero(projected.visible & np.isin(frame.labels, static) & (projected.depth < 30))
    world_from_camera = street.base_pose(view.stamp_ns) @ street.rig.camera(view.name).base_from_camera
    directions = pixel_rays(world_from_camera, view.K, *projected.uv[rows].T)
    origins = np.broadcast_to(world_from_camera[:3, 3], directions.shape)
    hits = street._caster.cast(origins, directions, street.time_s(view.stamp_ns), 100.0)
    reach = np.linalg.norm(se3.apply(camera_from_lidar, frame.points[rows]), axis=1)
    seen = hits.distance > reach - 1.0
    assert seen.mean() > 0.7, view.name
    return np.abs(hits.distance - reach)[seen]


def test_sweep_projects_onto_what_the_camera_sees(street, frames):
    """LiDAR frame at the sweep's stamp -> world -> vehicle at the camera's stamp -> camera -> pixel -> ray."""
    for view in frames[1].cameras:
        error = depth_errors(street, frames[1], view, view.camera_from_lidar)
        assert len(error) > 500
        assert np.median(error) < NOISE_M, view.name
        assert (error > 5 * NOISE_M).mean() < 0.02, view.name


def test_the_chain_is_wrong_without_ego_motion(street, frames):
    for view in frames[1].cameras[:3]:  # those that fire long before the stamp
        rigid = se3.inverse(street.rig.camera(view.name).base_from_camera) @ street.rig.base_from_lidar
        assert (depth_errors(street, frames[1], view, rigid) > 5 * NOISE_M).mean() > 0.04, view.name


def test_neighbouring_cameras_overlap(frames):
    ring = ["CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT"]
    visible = {view.name: view.project(frames[0].points).visible for view in frames[0].cameras}
    assert set(visible) == set(ring)
    for a, b in zip(ring, ring[1:] + ring[:1], strict=True):
        assert (visible[a] & visible[b]).sum() > 20, (a, b)
    heading = np.arctan2(frames[0].points[:, 1], frames[0].points[:, 0])
    seen = np.any(list(visible.values()), axis=0)
    assert len(np.unique(np.rad2deg(heading[seen]) // 10)) == 36  # all around


def test_pictures_show_a_lit_scene(frames):
    for view in frames[0].cameras:
        picture = view.image.rgb
        assert picture.shape == (SMALL[1], SMALL[0], 3) and picture.dtype == np.uint8
        assert 30 < picture.mean() < 220 and picture.std() > 15


def test_rig_survives_its_file(street, tmp_path):
    street.rig.save(tmp_path / "street.yaml")
    back = Rig.load(tmp_path / "street.yaml")
    assert [m.name for m in back.cameras] == [m.name for m in street.rig.cameras]
    np.testing.assert_allclose(back.base_from_lidar, street.rig.base_from_lidar, atol=1e-9)


def test_window_and_bad_input(street, frames):
    window = street.window(2, 5)
    assert [f.index for f in window] == [0, 1]
    assert same(window[1], frames[1])
    assert street.window(0, 3) == []
    with pytest.raises(IndexError, match="4 frames"):
        street[4]
    with pytest.raises(ValueError, match="seed >= 0"):
        Street(-1)
    with pytest.raises(ValueError, match="frames >= 1"):
        Street(0, frames=0)
