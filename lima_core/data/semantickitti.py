"""SemanticKITTI and KITTI odometry: `sequences/NN/{velodyne,labels,image_2,calib.txt,poses.txt,times.txt}`.

Layout and classes: spec/datasets.md 1.2. Poses are those of the left grey camera (camera 0) in its first frame, so
world_from_lidar = pose Tr. The left colour camera: P2 = K [I | t], camera_from_lidar = [I | t] Tr; its picture and the
scan have one stamp.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np

from lima_core.data.frame import CameraView, DatasetError, Image
from lima_core.data.scans import NO_POSE, Scan, Scans, Split

SPLITS = {
    "train": ("00", "01", "02", "03", "04", "05", "06", "07", "09", "10"),
    "val": ("08",),
    "test": tuple(f"{number:02d}" for number in range(11, 22)),
}
PNG = b"\x89PNG\r\n\x1a\n"


class SemanticKITTI(Scans):
    """Scans with labels where there are any, the left colour camera and poses where the odometry files are there."""

    name = "semantickitti"

    def __init__(self, root: str | Path, split: Split = "train") -> None:
        self._poses: dict[str, np.ndarray | None] = {}
        self._calibrations: dict[str, dict[str, np.ndarray] | None] = {}
        super().__init__(root, split)

    def find(self, split: Split) -> list[Scan]:
        """Every scan of the split's sequences that are on disk."""
        present = self.folders("sequences")
        wanted = present if split == "all" else [name for name in present if name in SPLITS[split]]
        return [scan for name in wanted for scan in self._sequence(name)]

    def labels_folder(self, sequence: str) -> str:
        """Folder of a sequence's labels, beside `velodyne`."""
        return "labels"

    def _sequence(self, name: str) -> list[Scan]:
        """Scans with the stamps of times.txt, or those of 10 Hz where it is absent."""
        folder = f"sequences/{name}"
        scans = self.numbered(name, f"{folder}/velodyne", f"{folder}/{self.labels_folder(name)}")
        times = self._numbers(f"{folder}/times.txt", 1)
        if times is None:
            return scans
        return [replace(s, stamp_ns=round(float(self._line(times, s, "times.txt")) * 1e9)) for s in scans]

    def _line(self, rows: np.ndarray, scan: Scan, name: str) -> np.ndarray:
        """The line of a scan in times.txt or poses.txt, by the number that names its file."""
        file = Path(scan.points)
        if not file.stem.isdecimal():
            raise DatasetError(f"{self.root / file}: its name is no number, as scans of {self.name} have; remove it")
        if int(file.stem) >= len(rows):
            raise DatasetError(
                f"{self.root}/sequences/{scan.sequence}/{name} has {len(rows)} lines, none for {file.name}; "
                "copy it again"
            )
        return rows[int(file.stem)]

    def pose(self, scan: Scan) -> np.ndarray:
        """From poses.txt and the calibration; nan without them."""
        if scan.sequence not in self._poses:
            self._poses[scan.sequence] = self._read_poses(scan.sequence)
        poses, calibration = self._poses[scan.sequence], self._calibration(scan.sequence)
        if poses is None or calibration is None:
            return NO_POSE
        return self._line(poses, scan, "poses.txt") @ calibration["Tr"]

    def cameras(self, scan: Scan) -> tuple[CameraView, ...]:
        """The left colour camera, where its folder is there."""
        folder = f"sequences/{scan.sequence}"
        calibration = self._calibration(scan.sequence)
        if calibration is None or not (self.root / folder / "image_2").is_dir():
            return ()
        path = self.path(f"{folder}/image_2/{Path(scan.points).stem}.png")
        encoded = path.read_bytes()
        if encoded[:8] != PNG or len(encoded) < 24:
            raise DatasetError(f"{path} is no PNG picture; copy it again")
        intrinsics = calibration["P2"][:3, :3]
        camera_from_first = np.eye(4)
        camera_from_first[:3, 3] = np.linalg.solve(intrinsics, calibration["P2"][:3, 3])
        return (
            CameraView(
                name="image_2",
                stamp_ns=scan.stamp_ns,
                image=Image(encoded=encoded, source=str(path)),
                size=struct.unpack(">II", encoded[16:24]),  # of the PNG's header: nothing is decoded yet
                K=intrinsics,
                camera_from_lidar=camera_from_first @ calibration["Tr"],
            ),
        )

    def _read_poses(self, sequence: str) -> np.ndarray | None:
        rows = self._numbers(f"sequences/{sequence}/poses.txt", 12)
        return None if rows is None else _square(rows)

    def _calibration(self, sequence: str) -> dict[str, np.ndarray] | None:
        if sequence not in self._calibrations:
            self._calibrations[sequence] = self._read_calibration(sequence)
        return self._calibrations[sequence]

    def _read_calibration(self, sequence: str) -> dict[str, np.ndarray] | None:
        """(4, 4) matrices by name."""
        path = self.root / f"sequences/{sequence}/calib.txt"
        if not path.is_file():
            return None
        try:
            named = dict(line.split(":", 1) for line in path.read_text().splitlines() if line.strip())
            return {name: _square(np.array([named[name].split()], np.float64))[0] for name in ("P2", "Tr")}
        except (ValueError, KeyError) as error:
            raise DatasetError(f"{path}: P2 and Tr with 12 numbers each are wanted ({error}); copy it again") from error

    def _numbers(self, name: str, columns: int) -> np.ndarray | None:
        """Lines of numbers, or None where there is no such file."""
        if not (self.root / name).is_file():
            return None
        try:
            rows = np.loadtxt(self.path(name), ndmin=2)
        except ValueError as error:
            raise DatasetError(f"{self.root / name}: {error}; copy it again") from error
        if rows.shape[1] != columns:
            raise DatasetError(
                f"{self.root / name}: {rows.shape[1]} numbers a line, {columns} are wanted; copy it again"
            )
        return rows if columns > 1 else rows[:, 0]


def _square(rows: np.ndarray) -> np.ndarray:
    """(N, 12) -> (N, 4, 4)."""
    matrices = np.tile(np.eye(4), (len(rows), 1, 1))
    matrices[:, :3] = rows.reshape(-1, 3, 4)
    return matrices
