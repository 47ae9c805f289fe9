"""Losses of supervised segmentation: cross-entropy and Lovasz-softmax (Berman et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lima_core.data.frame import IGNORE
from lima_core.models.loss import Loss

LOVASZ_WEIGHT = 2.0  # SuperFlow's recipe, spec/datasets.md 4.1


def segmentation_loss(logits: Tensor, labels: Tensor) -> Loss:
    """(M, C) logits, (M,) int64 labels with 255 = ignore -> cross-entropy + 2 x Lovasz-softmax."""
    valid = labels != IGNORE
    logits, labels = logits[valid], labels[valid]
    if not len(labels):
        none = logits.new_zeros(())  # named all the same: processes must agree on what they log
        return Loss(logits.sum(), {"cross_entropy": none, "lovasz": none})  # a batch without a label moves nothing
    cross_entropy = functional.cross_entropy(logits, labels)
    lovasz = lovasz_softmax(logits.softmax(1), labels)
    parts = {"cross_entropy": cross_entropy.detach(), "lovasz": lovasz.detach()}
    return Loss(cross_entropy + LOVASZ_WEIGHT * lovasz, parts)


def lovasz_softmax(probability: Tensor, labels: Tensor) -> Tensor:
    """(M, C) probabilities, (M,) labels -> mean Lovasz loss of the classes that are present."""
    present = labels.unique()
    return lovasz_per_class(probability, labels)[present].mean()


def lovasz_per_class(probability: Tensor, labels: Tensor) -> Tensor:
    """(C,): for each class the Lovasz extension of the Jaccard loss 1 - |truth & p| / |truth | p| at the errors."""
    truth = functional.one_hot(labels, probability.shape[1]).to(probability.dtype)
    errors, order = torch.sort((truth - probability).abs(), dim=0, descending=True)
    truth = truth.gather(0, order)
    total = truth.sum(0)
    jaccard = 1 - (total - truth.cumsum(0)) / (total + (1 - truth).cumsum(0))
    weight = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
    return (errors * weight).sum(0)
