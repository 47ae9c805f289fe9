"""SemanticPOSS: `sequences/NN/{velodyne,labels}`, 00, 01, 03, 04, 05 to train on and 02 to validate on.

Layout: spec/datasets.md 1.2. Intensities are 0 to 255. Half of the labels are those of sequences 00 and 01.
"""

from __future__ import annotations

from lima_core.data.scans import Scan, Scans, Split

SPLITS = {"train": ("00", "01", "03", "04", "05"), "val": ("02",), "test": ()}
HALF = ("00", "01")


class SemanticPOSS(Scans):
    """Scans of the Pandora 40."""

    name = "semanticposs"
    intensity_scale = 255.0

    def find(self, split: Split) -> list[Scan]:
        """Every scan of the split's sequences that are on disk."""
        present = self.folders("sequences")
        wanted = present if split == "all" else [name for name in present if name in SPLITS[split]]
        folders = [(name, f"sequences/{name}") for name in wanted]
        return [scan for n, folder in folders for scan in self.numbered(n, f"{folder}/velodyne", f"{folder}/labels")]

    def labelled_share(self, percent: int) -> list[int]:
        """50 % = sequences 00 and 01 (Seal's rule); the other shares every n-th scan."""
        if percent == 50:
            return [index for index, sequence in enumerate(self.sequences) if sequence in HALF]
        return super().labelled_share(percent)
