"""RELLIS-3D: `SSSSS/{os1_cloud_node_kitti_bin,os1_cloud_node_semantickitti_label_id}`, split by `pt_*.lst`.

Layout: spec/datasets.md 1.2. A scan file holds all 64 x 2048 rays; those that met nothing are rows at the origin, left
out here. Intensities are counts / 65535, about 0.01 at most, and passed on as they are.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from lima_core.data.frame import DatasetError
from lima_core.data.scans import PERIOD_NS, Scan, Scans, Split

LISTS = {"train": ("train",), "val": ("val",), "test": ("test",), "all": ("train", "val", "test")}


class Rellis3D(Scans):
    """Scans of the Ouster OS1-64 that the official lists name, sorted by sequence and number."""

    name = "rellis3d"
    no_return_at_origin = True

    def find(self, split: Split) -> list[Scan]:
        """The scans of the lists, sorted, as the shares of labels want them. Raises DatasetError."""
        scans = [scan for part in LISTS[split] for scan in self._listed(f"pt_{part}.lst")]
        return sorted(scans, key=lambda scan: scan.points)

    def _listed(self, name: str) -> list[Scan]:
        lines = enumerate(self.path(name).read_text(errors="replace").splitlines(), 1)
        return [self._scan(line.split(), f"{self.root / name} line {number}") for number, line in lines if line.strip()]

    def _scan(self, words: list[str], where: str) -> Scan:
        """`<scan> <label>`, relative to the root."""
        paths = [PurePosixPath(word) for word in words]
        if len(paths) != 2 or not paths[0].stem.isdecimal() or len(paths[0].parts) < 3:
            raise DatasetError(
                f"{where}: {' '.join(words)[:80]!r} is not `SSSSS/<folder>/NNNNNN.bin SSSSS/<folder>/NNNNNN.label`; "
                "unpack the official lists again"
            )
        if any(path.is_absolute() or ".." in path.parts for path in paths):
            raise DatasetError(f"{where} leads out of {self.root}; paths are relative to it: unpack the lists again")
        index = int(paths[0].stem)
        return Scan(paths[0].parts[0], index, str(paths[0]), str(paths[1]), PERIOD_NS * index)
