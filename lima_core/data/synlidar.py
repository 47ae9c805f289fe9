"""SynLiDAR: `NN/{velodyne,labels}`, sequences 00 to 12 of a simulated HDL-64E.

Layout: spec/datasets.md 1.2. There is no official validation split: every tenth scan of each sequence, those at
places 9, 19, 29 and so on, is held out. Say so beside results.
"""

from __future__ import annotations

from lima_core.data.scans import Scan, Scans, Split

SEQUENCES = tuple(f"{number:02d}" for number in range(13))


class SynLiDAR(Scans):
    """Simulated scans, intensity 0 to 1."""

    name = "synlidar"

    def find(self, split: Split) -> list[Scan]:
        """Nine scans of ten to train on, the tenth to validate on; no test scans."""
        present = [name for name in self.folders() if name in SEQUENCES]
        scans = [scan for name in present for scan in self.numbered(name, f"{name}/velodyne", f"{name}/labels")]
        return scans if split == "all" else [s for s in scans if split == ("val" if s.index % 10 == 9 else "train")]
