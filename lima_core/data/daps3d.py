"""DAPS-3D, its part DAPS-2: `daps-2/data/<sequence>/{clouds,labels}`, or `DAPS-2/...`.

Layout and splits: spec/datasets.md 1.2. The training sequence is part of the validation split, as the papers have it.
"""

from __future__ import annotations

from lima_core.data.scans import Scan, Scans, Split

TRAIN = "38-18_7_72_90"
SPLITS = {"train": (TRAIN,), "val": (TRAIN, "42-48_10_78_90", "44-18_11_15_32"), "test": ()}
FOLDERS = ("daps-2", "DAPS-2")


class DAPS3D(Scans):
    """Scans of the OS0-64. Intensities are counts of about 41; 255, which means 1 here, is our choice."""

    name = "daps3d"
    intensity_scale = 255.0

    def find(self, split: Split) -> list[Scan]:
        """Every scan of the split's sequences that are on disk."""
        folder = next((name for name in FOLDERS if (self.root / name).is_dir()), FOLDERS[0]) + "/data"
        present = self.folders(folder)
        wanted = present if split == "all" else [name for name in present if name in SPLITS[split]]
        return [
            scan
            for name in wanted
            for scan in self.numbered(name, f"{folder}/{name}/clouds", f"{folder}/{name}/labels")
        ]
