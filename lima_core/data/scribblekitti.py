"""ScribbleKITTI: SemanticKITTI with `sequences/NN/scribbles` to train on, and the full `labels` of 08 to validate on.

Layout: spec/datasets.md 1.2; 8 % of the training points have a label, the rest is ignored.
"""

from __future__ import annotations

from lima_core.data.semantickitti import SPLITS, SemanticKITTI


class ScribbleKITTI(SemanticKITTI):
    """Scans of SemanticKITTI with scribbled training labels."""

    name = "scribblekitti"

    def labels_folder(self, sequence: str) -> str:
        """Scribbles exist for the training sequences only."""
        return "scribbles" if sequence in SPLITS["train"] else "labels"
