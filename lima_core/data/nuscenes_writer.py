"""Any source of frames, written to disk in the nuScenes layout: every frame a keyframe, tokens by content.

Layout: spec/datasets.md sections 1.2 and 2. What the layout has no room for is left out: per-point times, and
velocities, which readers take from the track of an instance; tracks are linked here by predicted positions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lima_core.data.attributes import ATTRIBUTES, NO_ATTRIBUTE
from lima_core.data.classes import Taxonomy, load_taxonomy
from lima_core.data.frame import Boxes, CameraView, Frame, FrameSource
from lima_core.data.rig import Rig
from lima_core.files import write_whole
from lima_core.geometry import se3
from lima_core.geometry.boxes import box_table, points_in_boxes

LIDAR = "LIDAR_TOP"
LINK_M = 1.0  # a box within this of where a track should be continues it
CATEGORIES = (  # by lidarseg index, as in category.json of nuScenes-lidarseg
    "noise",
    "animal",
    "human.pedestrian.adult",
    "human.pedestrian.child",
    "human.pedestrian.construction_worker",
    "human.pedestrian.personal_mobility",
    "human.pedestrian.police_officer",
    "human.pedestrian.stroller",
    "human.pedestrian.wheelchair",
    "movable_object.barrier",
    "movable_object.debris",
    "movable_object.pushable_pullable",
    "movable_object.trafficcone",
    "static_object.bicycle_rack",
    "vehicle.bicycle",
    "vehicle.bus.bendy",
    "vehicle.bus.rigid",
    "vehicle.car",
    "vehicle.construction",
    "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
    "vehicle.motorcycle",
    "vehicle.trailer",
    "vehicle.truck",
    "flat.driveable_surface",
    "flat.other",
    "flat.sidewalk",
    "flat.terrain",
    "static.manmade",
    "static.other",
    "static.vegetation",
    "vehicle.ego",
)
VISIBILITY = ("v0-40", "v40-60", "v60-80", "v80-100")
TABLES = (
    "scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor", "log", "category", "attribute",
    "visibility", "instance", "sample_annotation", "lidarseg", "map",
)  # fmt: skip

Row = dict[str, Any]


def write_nuscenes(source: FrameSource, root: str | Path, version: str = "v1.0-mini", camera_quality: int = 90) -> Path:
    """Writes all frames of `source` below `root` and returns it; pictures are JPEGs of `camera_quality`.

    Labels and boxes are in the nuScenes taxonomy. Raises ValueError on an empty source, on stamps that are no whole
    microseconds, and on a frame with cameras that the rig lacks.
    """
    if len(source) == 0:
        raise ValueError("write_nuscenes: the source has no frames")
    writer = _Writer(Path(root), version, source.rig, camera_quality)
    for index in range(len(source)):
        writer.add(source[index])
    return writer.finish()


def raw_from_train(taxonomy: Taxonomy) -> np.ndarray:
    """(256,) uint8: one representative raw lidarseg id per train id; ignored points become 0, noise."""
    table = np.zeros(256, np.uint8)
    for train in range(len(taxonomy.names)):
        table[train] = np.flatnonzero(taxonomy.train_from_raw == train)[0]
    table[taxonomy.index("bus")] = CATEGORIES.index("vehicle.bus.rigid")  # the first is the rare bendy bus
    return table


class _Writer:
    """Tables under construction; sensor files are written as frames come."""

    def __init__(self, root: Path, version: str, rig: Rig, quality: int) -> None:
        self.root, self.version, self.rig, self.quality = root, version, rig, quality
        self.taxonomy = load_taxonomy("nuscenes")
        self.raw_from_train = raw_from_train(self.taxonomy)
        self.tables: dict[str, dict[str, Row]] = {name: {} for name in TABLES}
        self.last: dict[str, Row] = {}  # newest sample and newest sample_data per channel, of the current scene
        self.tracks: list[tuple[Row, np.ndarray, int]] = []  # newest annotation, world velocity, stamp
        for index, name in enumerate(CATEGORIES):
            self.put("category", name, name=name, description="", index=index)
        for number, level in enumerate(VISIBILITY, 1):
            self.tables["visibility"][str(number)] = {"token": str(number), "level": level, "description": ""}

    def put(self, table: str, identity: str, **values: Any) -> Row:
        """The row of `identity`, its token the md5 of table and identity; an existing row is kept."""
        token = hashlib.md5(f"{table}/{identity}".encode()).hexdigest()
        return self.tables[table].setdefault(token, {"token": token, **values})

    def add(self, frame: Frame) -> None:
        """Writes the files of one frame and adds its rows."""
        sample = self._sample(frame)
        lidar = self._lidar(frame, sample)
        if frame.labels is not None:
            filename = f"lidarseg/{self.version}/{lidar['token']}_lidarseg.bin"
            write_whole(self.root / filename, self.raw_from_train[frame.labels].tobytes())
            row = {"token": lidar["token"], "sample_data_token": lidar["token"], "filename": filename}
            self.tables["lidarseg"][lidar["token"]] = row
        for view in frame.cameras:
            self._camera(frame, view, sample)
        if frame.boxes is not None:
            self._annotate(frame, frame.boxes, sample)

    def finish(self) -> Path:
        """Writes the map and the tables; returns the root."""
        logs = [row["token"] for row in self.tables["log"].values()]
        self.put("map", "blank", log_tokens=logs, category="semantic_prior", filename="maps/blank.png")
        write_whole(self.root / "maps/blank.png", cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes())
        if not self.tables["lidarseg"]:
            del self.tables["lidarseg"]  # with the table, the devkit asks for its folder
        for name, rows in self.tables.items():
            write_whole(self.root / self.version / f"{name}.json", json.dumps(list(rows.values()), indent=0))
        return self.root

    def _sample(self, frame: Frame) -> Row:
        """The sample row of a frame, chained in its scene; a new sequence opens a new scene and log."""
        name = frame.sequence
        log = self.put("log", name, logfile=name, vehicle=self.rig.name, date_captured="", location="")
        scene = self.put(
            "scene", name, log_token=log["token"], nbr_samples=0, first_sample_token="", last_sample_token="",
            name=name, description="",
        )  # fmt: skip
        if not scene["nbr_samples"]:
            self.last, self.tracks = {}, []
        stamp = _microseconds(frame.stamp_ns)
        sample = self.put("sample", f"{name}/{stamp}", timestamp=stamp, scene_token=scene["token"], prev="", next="")
        self._chain("sample", sample)
        scene["first_sample_token"] = scene["first_sample_token"] or sample["token"]
        scene["nbr_samples"], scene["last_sample_token"] = scene["nbr_samples"] + 1, sample["token"]
        return sample

    def _chain(self, key: str, row: Row) -> None:
        if key in self.last:
            row["prev"], self.last[key]["next"] = self.last[key]["token"], row["token"]
        self.last[key] = row

    def _lidar(self, frame: Frame, sample: Row) -> Row:
        """Writes the sweep as float32 x, y, z, intensity 0-255, ring (-1 where the source has none)."""
        ring = frame.extra.get("ring", np.full(len(frame.points), -1))
        cloud = np.column_stack([frame.points[:, :3], frame.points[:, 3] * np.float32(255), ring]).astype("<f4")
        world_from_base = frame.world_from_lidar @ se3.inverse(self.rig.base_from_lidar)
        where = self._place(
            LIDAR, "lidar", self.rig.base_from_lidar, [], world_from_base, frame.sequence, frame.stamp_ns
        )
        return self._sample_data(LIDAR, sample, where, cloud.tobytes(), "pcd", (0, 0))

    def _camera(self, frame: Frame, view: CameraView, sample: Row) -> None:
        mount = self.rig.camera(view.name).base_from_camera
        world_from_camera = frame.world_from_lidar @ se3.inverse(view.camera_from_lidar)
        world_from_base = world_from_camera @ se3.inverse(mount)
        where = self._place(view.name, "camera", mount, view.K.tolist(), world_from_base, frame.sequence, view.stamp_ns)
        self._sample_data(view.name, sample, where, view.image.jpeg(self.quality), "jpg", view.size)

    def _place(
        self, channel: str, modality: str, mount: np.ndarray, K: list, world_from_base: np.ndarray, scene: str, ns: int
    ) -> Row:
        """Rows of sensor, calibration and ego pose; returns what sample_data says of them."""
        sensor = self.put("sensor", channel, channel=channel, modality=modality)
        pose = _pose(mount)
        calibrated = self.put(
            "calibrated_sensor", f"{channel}/{pose}/{K}", sensor_token=sensor["token"], **pose, camera_intrinsic=K
        )
        stamp = _microseconds(ns)
        ego = self.put("ego_pose", f"{scene}/{channel}/{stamp}", timestamp=stamp, **_pose(world_from_base))
        return {
            "ego_pose_token": ego["token"],
            "calibrated_sensor_token": calibrated["token"],
            "timestamp": stamp,
            "scene": scene,
        }

    def _sample_data(
        self, channel: str, sample: Row, where: Row, content: bytes, kind: str, size: tuple[int, int]
    ) -> Row:
        """Writes one sensor file and its row."""
        stem = f"{where.pop('scene')}__{channel}__{where['timestamp']}"
        filename = f"samples/{channel}/{stem}.{'pcd.bin' if kind == 'pcd' else kind}"
        write_whole(self.root / filename, content)
        row = self.put(
            "sample_data", filename, sample_token=sample["token"], **where, fileformat=kind, is_key_frame=True,
            height=size[1], width=size[0], filename=filename, prev="", next="",
        )  # fmt: skip
        self._chain(channel, row)
        return row

    def _annotate(self, frame: Frame, boxes: Boxes, sample: Row) -> None:
        """Annotations in the world frame, each continuing the track that leads to it."""
        counts = boxes.points
        if counts is None:
            counts = [len(rows) for rows in points_in_boxes(frame.points, box_table(boxes))]
        attributes = self._attributes(boxes)
        tracks = []
        for i, (track, row) in enumerate(zip(self._link(frame, boxes), self._annotations(frame, boxes), strict=True)):
            name = self.taxonomy.detection_names[boxes.class_id[i]]
            raw = self.raw_from_train[self.taxonomy.index(name)]
            category = self.put("category", CATEGORIES[raw])["token"]
            identity = f"{sample['token']}/{i}"
            if track is None:
                start = {"nbr_annotations": 0, "first_annotation_token": "", "last_annotation_token": ""}
                instance = self.put("instance", identity, category_token=category, **start)
            else:
                instance = self.tables["instance"][track["instance_token"]]
            annotation = self.put(
                "sample_annotation", identity, sample_token=sample["token"], instance_token=instance["token"],
                visibility_token="4", attribute_tokens=attributes[i], **row,
                prev="" if track is None else track["token"], next="", num_lidar_pts=int(counts[i]), num_radar_pts=0,
            )  # fmt: skip
            if track is not None:
                track["next"] = annotation["token"]
            instance["nbr_annotations"] += 1
            instance["first_annotation_token"] = instance["first_annotation_token"] or annotation["token"]
            instance["last_annotation_token"] = annotation["token"]
            velocity = frame.world_from_lidar[:3, :2] @ np.nan_to_num(boxes.velocity[i])
            tracks.append((annotation, velocity, frame.stamp_ns))
        self.tracks = tracks

    def _attributes(self, boxes: Boxes) -> list[list[str]]:
        """Per box the tokens of its attributes, one or none; the table has rows only where a source tells them."""
        if boxes.attribute is None:
            return [[]] * len(boxes)
        tokens = [[self.put("attribute", name, name=name, description="")["token"]] for name in ATTRIBUTES]
        return [[] if number == NO_ATTRIBUTE else tokens[number] for number in boxes.attribute]

    def _annotations(self, frame: Frame, boxes: Boxes) -> Iterator[Row]:
        """Per box: translation, rotation and w-l-h size in the world frame."""
        for center, size, yaw in zip(boxes.center, boxes.size, boxes.yaw, strict=True):
            turn = np.array([np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])
            yield {**_pose(frame.world_from_lidar @ se3.transform(turn, center)), "size": size[[1, 0, 2]].tolist()}

    def _link(self, frame: Frame, boxes: Boxes) -> list[Row | None]:
        """Per box the annotation of the last frame that it continues: same class, nearest to the prediction."""
        centers = se3.apply(frame.world_from_lidar, boxes.center)
        free = list(self.tracks)
        linked: list[Row | None] = []
        for center, class_id in zip(centers, boxes.class_id, strict=True):
            raw = self.raw_from_train[self.taxonomy.index(self.taxonomy.detection_names[class_id])]
            category = self.put("category", CATEGORIES[raw])["token"]
            best, gap = None, LINK_M
            for track in free:
                row, velocity, stamp = track
                ahead = np.array(row["translation"]) + velocity * (frame.stamp_ns - stamp) * 1e-9
                distance = float(np.linalg.norm(center - ahead))
                same = self.tables["instance"][row["instance_token"]]["category_token"] == category
                if same and distance < gap:
                    best, gap = track, distance
            if best is not None:
                free = [track for track in free if track is not best]
            linked.append(None if best is None else best[0])
        return linked


def _pose(matrix: np.ndarray) -> Row:
    """(4, 4) -> nuScenes' translation and w-x-y-z rotation."""
    return {
        "translation": matrix[:3, 3].tolist(),
        "rotation": se3.quaternion_from_rotation(matrix[:3, :3]).tolist(),
    }


def _microseconds(stamp_ns: int) -> int:
    """nuScenes time. Raises ValueError when that would lose nanoseconds."""
    if stamp_ns % 1000:
        raise ValueError(f"write_nuscenes: stamp {stamp_ns} ns is no whole number of microseconds, as nuScenes needs")
    return stamp_ns // 1000
