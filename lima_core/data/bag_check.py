"""What is missing, wrong or late in a rosbag2, by its stamps and headers: topics, cameras and clocks.

`bag_motion` adds mounts and poses, `lima_core.doctor` what the points say. A fix names the parameter, or the key of
the rig, that mends it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lima_core.data.bag import CLOUD, COMPRESSED, INFO, RAW
from lima_core.data.bag_log import Recording, TopicLog
from lima_core.data.frame import ImageError
from lima_core.data.rig import Rig, is_rectified
from lima_core.data.ros_image import camera_from_info, image_from_message

TOLERANCE_MS = 45.0  # sync.tolerance_ms of config/perception.yaml
APART_S = 1.0  # of one clock, messages arrive within a few tenths of a second
FEW = 0.9  # of the sweeps: below that an image, or a pose, is missing too often
GAP = 2.5  # periods without a message: more than jitter

Level = Literal["ok", "look", "bad"]


@dataclass(frozen=True)
class Check:
    """One line of the checklist: `what` was examined, how it is, what was seen, and the fix, "" where all is well."""

    what: str
    level: Level
    text: str
    fix: str = ""


@dataclass(frozen=True)
class CameraTopics:
    """Where one camera is recorded; `info` "" = nowhere, `offset_ms` None = no rig says it."""

    name: str
    image: str
    info: str
    offset_ms: float | None


def topic_checks(bag: Recording) -> Iterator[Check]:
    """What is recorded: type and rate of each topic, and those that are empty or cut off."""
    if bag.broken:
        yield Check("bag", "bad", f"cannot be read to its end: {bag.broken}", "copy it again, or record it anew")
    for topic, log in sorted(bag.logs.items()):
        short, seen, told = log.kind.rsplit("/", 1)[-1], len(log.bag_ns), bag.counts[topic]
        if not seen:
            fix = "record it with the QoS of its publisher (ros2 bag record --qos-profile-overrides-path)"
            yield Check(topic, "look", f"{short}, announced, but without a message", fix)
        elif log.problem:
            fix = "let its publisher fill the message; was it recorded with another definition of the type?"
            yield Check(topic, "bad", f"{short}, cannot be decoded: {log.problem}", fix)
        elif seen < told and not bag.broken:
            fix = "the bag was cut off: run `ros2 bag reindex` on it, or record it anew"
            yield Check(topic, "bad", f"{short}, {seen} messages of the {told} in metadata.yaml", fix)
        else:
            span = (log.bag_ns[-1] - log.bag_ns[0]) / 1e9
            yield Check(topic, "ok", f"{short}, {seen} messages" + (f", {(seen - 1) / span:.1f} Hz" if span else ""))


def lidar_topic(bag: Recording, rig: Rig | None) -> tuple[str | None, Check]:
    """The topic to examine, None = there is none to choose, and what is to say about it."""
    clouds = bag.of_type(CLOUD)
    there = ", ".join(clouds) or "none"
    if rig and rig.lidar_topic in clouds:
        return rig.lidar_topic, Check("lidar", "ok", f"on {rig.lidar_topic}, as the rig says")
    if not clouds:
        fix = "record a sensor_msgs/PointCloud2; from packets of a driver, run the driver and record its cloud"
        return None, Check("lidar", "bad", "no PointCloud2 message in the bag", fix)
    only = clouds[0] if len(clouds) == 1 else None
    if rig:
        fix = f"set lidar.topic in the rig to {only or 'one of these'}"
        return only, Check("lidar", "bad", f"no PointCloud2 on {rig.lidar_topic}; there are: {there}", fix)
    if only:
        return only, Check("lidar", "ok", f"on {only}, the only PointCloud2")
    fix = "give a rig file (--rig) whose lidar.topic names the right one"
    return None, Check("lidar", "bad", f"which PointCloud2 is the LiDAR? There are: {there}", fix)


def cameras_of(bag: Recording, rig: Rig | None) -> list[CameraTopics]:
    """Cameras of the rig, or those that the topics suggest: pictures, with a camera_info in the namespace or above."""
    if rig:
        return [CameraTopics(m.name, m.image_topic, m.info_topic, m.offset_ms) for m in rig.cameras]
    found = {}
    for image in bag.of_type(RAW, COMPRESSED):  # of a picture in both forms the last, compressed, is taken
        spaces = [str(parent).rstrip("/") for parent in list(Path(image).parents)[:2]]
        infos = [f"{space}/camera_info" for space in spaces if f"{space}/camera_info" in bag.of_type(INFO)]
        name = str(Path(infos[0]).parent) if infos else image
        found[name] = CameraTopics(name.strip("/"), image, infos[0] if infos else "", None)
    return list(found.values())


def camera_checks(bag: Recording, camera: CameraTopics, lidar: str) -> Iterator[Check]:
    """Is the camera there, can its pictures and its CameraInfo be read, and does it keep time with the LiDAR?"""
    what = f"camera {camera.name}"
    pictures, infos = bag.of_type(COMPRESSED, RAW), bag.of_type(INFO)
    if camera.image not in pictures:
        there = ", ".join(pictures) or "none"
        fix = f"set cameras.{camera.name}.image_topic in the rig to one of these, or take the camera out of it"
        yield Check(what, "bad", f"no pictures on {camera.image}; there are: {there}", fix)
        return
    if camera.info not in infos:
        where = camera.info or f"{Path(camera.image).parent}/camera_info"
        fix = f"record {where}; where it has another name, give it as info_topic of the camera in a rig file (--rig)"
        yield Check(what, "bad", f"no CameraInfo on {where}; there are: {', '.join(infos) or 'none'}", fix)
    yield from _picture_checks(bag, camera, what)
    yield from stamp_checks(bag, camera.image)
    yield from offset_checks(bag, camera, lidar)


def _picture_checks(bag: Recording, camera: CameraTopics, what: str) -> Iterator[Check]:
    size = shape = None
    if not (bag.logs[camera.image].samples and (bag.logs.get(camera.info) is None or bag.logs[camera.info].samples)):
        return  # undecodable, which the checks of the topics say
    try:
        shape = image_from_message(bag.logs[camera.image].samples[0], camera.image).rgb.shape[1::-1]
    except ImageError as error:
        yield Check(what, "bad", str(error), "send an encoding that ROS names, or a JPEG or PNG")
    if camera.info in bag.of_type(INFO):
        try:
            size = camera_from_info(bag.logs[camera.info].samples[0], is_rectified(camera.image))[2]
        except ValueError as error:
            yield Check(what, "bad", f"{camera.info}: {error}", "calibrate the camera and let its driver publish that")
    if size and shape and size != shape:
        fix = "calibrate at the size that is sent, or send the size of the calibration"
        yield Check(what, "bad", f"pictures are {shape[0]} x {shape[1]}, CameraInfo says {size[0]} x {size[1]}", fix)
    elif size and shape:
        yield Check(what, "ok", f"{shape[0]} x {shape[1]} pictures and a valid CameraInfo")


def stamp_checks(bag: Recording, topic: str) -> Iterator[Check]:
    """Header stamps that are 0, go backwards, come twice, leave gaps, or are of another clock than the bag."""
    log, what = bag.logs[topic], f"stamps {topic}"
    stamps = np.array(log.stamps_ns, np.int64)
    steps = np.diff(stamps)
    if not stamps.any():
        yield Check(what, "bad", "every header stamp is 0", "let the driver fill header.stamp with the time of capture")
        return
    found = [*_disorder(what, steps), *_lateness(what, log, steps)]
    yield from found or [
        Check(what, "ok", f"in order, without gaps, {1e3 * log.age_s:.1f} ms before bag time (median)")
    ]


def _disorder(what: str, steps: np.ndarray) -> Iterator[Check]:
    back, same = steps[steps < 0], int((steps == 0).sum())
    if len(back):
        worst, at = -back.min() / 1e9, int(np.flatnonzero(steps < 0)[0]) + 1
        loop = "a loop or a restart: cut the bag there; lima forgets the past at each"
        order = "use one clock that is not stepped (PTP), and one publisher for the topic"
        text = f"backwards {len(back)} times, by up to {worst:.3f} s, first at message {at}"
        yield Check(what, "bad", text, loop if worst > APART_S else order)
    if same:
        fix = "one of each is used: see whether two drivers publish on the topic, or the bag holds a replay"
        yield Check(what, "bad", f"{same} messages repeat the stamp before them", fix)


def _lateness(what: str, log: TopicLog, steps: np.ndarray) -> Iterator[Check]:
    gaps = steps[steps > GAP * log.period_ns]
    if len(gaps):
        text = f"{len(gaps)} gaps, the longest {gaps.max() / 1e9:.2f} s at {1e9 / log.period_ns:.1f} Hz"
        fix = "messages were lost: record on a faster disk with --max-cache-size, and use config/fastdds.xml"
        yield Check(what, "look", text, fix)
    if abs(log.age_s) > APART_S:
        side = "behind" if log.age_s > 0 else "ahead of"
        fix = "synchronise the sensor's clock (PTP), or let its driver stamp with the time of the host"
        yield Check(what, "look", f"header stamps are {abs(log.age_s):.2f} s {side} bag time", fix)


def offset_checks(bag: Recording, camera: CameraTopics, lidar: str) -> Iterator[Check]:
    """Measured time offset of a camera against the rig's, and the share of sweeps that get a picture."""
    what, log, sweeps = f"offset {camera.name}", bag.logs[camera.image], bag.logs[lidar]
    apart_s = sweeps.age_s - log.age_s
    if abs(apart_s) > APART_S:
        text = f"its clock is {abs(apart_s):.2f} s {'ahead of' if apart_s > 0 else 'behind'} the LiDAR's"
        yield Check(what, "bad", text, "synchronise the two (PTP): offset_ms is for milliseconds")
        return
    told = camera.offset_ms or 0.0
    away = told + _nearest_ms(log.stamps_ns, np.unique(sweeps.stamps_ns) + round(told * 1e6))
    found = float(np.median(away))
    key = f"cameras.{camera.name}.offset_ms"
    if camera.offset_ms is None:
        share = float(np.mean(np.abs(away - found) <= TOLERANCE_MS))
        yield _share_check(what, share, f"{found:+.1f} ms from the sweep (median)", log)
        return
    share = float(np.mean(np.abs(away - told) <= TOLERANCE_MS))
    # a camera that runs free has no offset: its images lie anywhere in its period
    free = np.subtract(*np.percentile(away, [84, 16])) > log.period_ns / 1e6 / 4
    if abs(found - told) > TOLERANCE_MS / 3 and not free:
        text = f"measured {found:+.1f} ms (median), the rig says {told:+.1f}; {share:.0%} of the sweeps get a picture"
        yield Check(what, "bad" if share < 0.5 else "look", text, f"set {key}: {found:.1f} in the rig")
    else:
        yield _share_check(what, share, f"{found:+.1f} ms (median), the rig says {told:+.1f}", log)


def _share_check(what: str, share: float, text: str, log: TopicLog) -> Check:
    text += f"; {share:.0%} of the sweeps get a picture within {TOLERANCE_MS:g} ms"
    if share >= FEW:
        return Check(what, "ok", text)
    half_ms = log.period_ns / 2e6
    slow = f"set sync.tolerance_ms: {np.ceil(half_ms):.0f}, half the period of the camera"
    lost = "see its gaps: pictures are missing"
    return Check(what, "look" if share >= 0.5 else "bad", text, slow if half_ms > TOLERANCE_MS else lost)


def _nearest_ms(stamps_ns: list[int], due_ns: np.ndarray) -> np.ndarray:
    """(S,) ms from each due time to the nearest stamp."""
    stamps = np.unique(stamps_ns)
    after = np.searchsorted(stamps, due_ns).clip(1, max(1, len(stamps) - 1))
    both = np.stack([stamps[after - 1], stamps[np.minimum(after, len(stamps) - 1)]]) - due_ns
    return np.take_along_axis(both, np.abs(both).argmin(0)[None], 0)[0] / 1e6
