"""SemanticSTF: `{train,val,test}/{velodyne,labels}`, single scans in snow, fog and rain.

Layout: spec/datasets.md 1.2. Five columns, x, y, z, intensity 0 to 255, ring; labels are int32 without an instance.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lima_core.data.scans import Scan, Scans, Split


class SemanticSTF(Scans):
    """Scans of the HDL-64E S3D. Each is a sequence of its own: neighbours in the list are from different drives."""

    name = "semanticstf"
    columns = 5
    intensity_scale = 255.0
    label_dtype = "<i4"
    label_mask = None

    def find(self, split: Split) -> list[Scan]:
        """Every scan of the split's folder."""
        folders = ("train", "val", "test") if split == "all" else (split,)
        scans = [scan for name in folders for scan in self.numbered(name, f"{name}/velodyne", f"{name}/labels")]
        return [replace(scan, sequence=Path(scan.points).stem, index=0, stamp_ns=0) for scan in scans]
