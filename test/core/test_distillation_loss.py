"""Values and gradients of the distillation losses, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lima_core.lima.loss import PAIRS, TEMPERATURE, distance

KINDS = ["l2", "cosine", "infonce"]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("angle_deg", [0.0, 30.0, 90.0, 180.0])
def test_values_depend_on_the_angle_alone(angle_deg):
    """|p - d| of unit vectors is 2 sin(angle / 2), whatever their lengths were."""
    angle = math.radians(angle_deg)
    student, target = torch.tensor([[3.0, 0.0]]), torch.tensor([[math.cos(angle), math.sin(angle)]]) * 0.2
    assert distance(student, target, "l2", rng()).item() == pytest.approx(2 * math.sin(angle / 2), abs=1e-6)
    assert distance(student, target, "cosine", rng()).item() == pytest.approx(1 - math.cos(angle), abs=1e-6)


def test_the_mean_is_over_points_and_not_squared():
    student = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    target = torch.tensor([[5.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert distance(student, target, "l2", rng()).item() == pytest.approx((0 + math.sqrt(2) + 2) / 3)
    assert distance(student, target, "cosine", rng()).item() == pytest.approx((0 + 1 + 2) / 3)


def test_infonce_of_two_orthogonal_points_written_out():
    """Right pairs have cosine 1, wrong ones 0: -log(e^(1/T) / (e^(1/T) + 1))."""
    eye = torch.eye(2, dtype=torch.float64)
    expected = math.log1p(math.exp(-1 / 0.07))
    assert TEMPERATURE == 0.07
    assert distance(3 * eye, eye, "infonce", rng()).item() == pytest.approx(expected, rel=1e-9)
    swapped = distance(eye, eye.flip(0), "infonce", rng()).item()
    assert swapped == pytest.approx(1 / 0.07 + expected, rel=1e-9)


def test_infonce_against_the_sum_over_all_pairs():
    generator = np.random.default_rng(1)
    p, d = generator.normal(size=(5, 3)), generator.normal(size=(5, 3))
    cosine = (p / np.linalg.norm(p, axis=1)[:, None]) @ (d / np.linalg.norm(d, axis=1)[:, None]).T
    expected = np.mean(np.log(np.exp(cosine / 0.07).sum(1)) - np.diag(cosine) / 0.07)
    assert distance(torch.tensor(p), torch.tensor(d), "infonce", rng()).item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(6, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    target = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(lambda s: distance(s, target, kind, rng()), (student,))


@pytest.mark.parametrize("kind", KINDS)
def test_no_points_move_nothing(kind):
    features = torch.randn(3, 4, requires_grad=True)
    loss = distance(features[:0], torch.empty(0, 4), kind, rng())
    loss.backward()
    assert loss.item() == 0 and (features.grad == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_is_right_or_zero_has_a_finite_gradient(kind):
    student = torch.tensor([[1.0, 0.0], [0.0, 0.0]], requires_grad=True)
    distance(student, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), kind, rng()).backward()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_computed_in_full(kind):
    student, target = torch.randn(8, 16), torch.randn(8, 16)
    half = distance(student.bfloat16(), target.bfloat16(), kind, rng())
    full = distance(student.bfloat16().float(), target.bfloat16().float(), kind, rng())
    assert half.dtype == torch.float32 and half.item() == pytest.approx(full.item())


def test_infonce_draws_its_pairs_from_the_generator_given():
    student, target = torch.randn(PAIRS + 500, 3), torch.randn(PAIRS + 500, 3)
    first, again, other = (distance(student, target, "infonce", np.random.default_rng(s)).item() for s in (1, 1, 2))
    assert first == again != other


def test_an_unknown_distance_is_an_error():
    with pytest.raises(ValueError, match=r"'l1'.*l2, cosine or infonce"):
        distance(torch.ones(1, 2), torch.ones(1, 2), "l1", rng())
