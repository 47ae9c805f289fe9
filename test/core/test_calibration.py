"""Expected calibration error and temperature, against what can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lima_core.metrics.calibration import BINS, TEMPERATURES, Calibration, fit_temperature


def drawn(n: int = 60_000, classes: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn from their softmax: calibrated by construction."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=generator)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


def measured(logits: torch.Tensor, labels: torch.Tensor) -> Calibration:
    calibration = Calibration()
    confidence, index = logits.softmax(1).max(1)
    calibration.update(confidence.numpy(), (index == labels).numpy())
    return calibration


def test_error_of_a_hand_made_stream() -> None:
    calibration = Calibration()
    calibration.update(np.array([0.9, 0.9, 0.9]), np.array([True, True, False]))
    calibration.update(np.array([0.3]), np.array([True]))
    assert calibration.ece() == pytest.approx((abs(3 * 0.9 - 2) + abs(0.3 - 1)) / 4)
    assert np.nonzero(calibration.count)[0].tolist() == [4, 13]
    assert calibration.accuracy()[[4, 13]] == pytest.approx([1, 2 / 3])
    assert calibration.mean_confidence()[[4, 13]] == pytest.approx([0.3, 0.9])
    assert np.isnan(calibration.accuracy()[0])


def test_bins_are_closed_above_as_in_the_paper() -> None:
    calibration = Calibration()
    calibration.update(np.array([0.0, 1 / 15, np.nextafter(1 / 15, 1), 1.0, 1 + 1e-7]), np.ones(5, bool))
    assert (BINS, np.nonzero(calibration.count)[0].tolist()) == (15, [0, 1, 14])
    assert calibration.count[[0, 1, 14]].tolist() == [2, 1, 2]


def test_calibrated_stream_has_no_error_and_a_boastful_one_has() -> None:
    logits, labels = drawn()
    assert measured(logits, labels).ece() < 0.01
    assert measured(3 * logits, labels).ece() > 0.1
    assert measured(3 * logits / fit_temperature(3 * logits, labels), labels).ece() < 0.01


def test_nothing_seen_gives_nan() -> None:
    assert np.isnan(Calibration().ece())


@pytest.mark.parametrize("confidence", [1.1, -0.1, np.nan])
def test_what_is_no_probability_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="they are probabilities"):
        Calibration().update(np.array([confidence]), np.array([True]))
    with pytest.raises(ValueError, match=r"\(1,\) confidences for \(2,\)"):
        Calibration().update(np.array([0.5]), np.array([True, False]))


confidences = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50)


@given(confidences, st.integers(0, 50))
def test_sum_of_parts_is_the_whole_and_the_error_a_share(stream: list[tuple[float, bool]], cut: int) -> None:
    confidence, correct = np.array([c for c, _ in stream]), np.array([r for _, r in stream])
    whole, first, second = Calibration(), Calibration(), Calibration()
    whole.update(confidence, correct)
    first.update(confidence[:cut], correct[:cut])
    second.update(confidence[cut:], correct[cut:])
    total = first + second
    np.testing.assert_array_equal(total.count, whole.count)
    assert total.ece() == pytest.approx(whole.ece(), abs=1e-12)
    assert abs(confidence.mean() - correct.mean()) - 1e-9 <= whole.ece() <= 1


@pytest.mark.parametrize("factor", [1.0, 3.0, 0.25])
def test_temperature_undoes_a_factor_on_calibrated_logits(factor: float) -> None:
    logits, labels = drawn()
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.03)


def test_temperature_of_two_classes_in_closed_form() -> None:
    """Logits (2, 0), right in 3 of 4: sigmoid(2 / T) = 3/4, so T = 2 / log 3."""
    labels = torch.tensor([0, 0, 0, 1])
    assert fit_temperature(torch.tensor([[2.0, 0.0]]).repeat(4, 1), labels) == pytest.approx(2 / np.log(3), rel=1e-6)


def test_ignored_points_take_no_part_in_the_temperature() -> None:
    logits, labels = drawn(2000)
    junk = torch.full((500, 5), torch.nan)
    with_junk = fit_temperature(torch.cat([logits, junk]), torch.cat([labels, torch.full((500,), 255)]))
    assert with_junk == fit_temperature(logits, labels)


def test_temperature_stays_in_its_bounds() -> None:
    logits = torch.tensor([[5.0, 0.0], [0.0, 5.0]])
    assert TEMPERATURES[0] <= fit_temperature(logits, torch.tensor([0, 1])) < 0.2  # never wrong: a loss of 0 below
    assert fit_temperature(logits, torch.tensor([1, 0])) == pytest.approx(TEMPERATURES[1])  # never right


def test_temperature_needs_labels_and_finite_logits() -> None:
    with pytest.raises(ValueError, match="every label is 255"):
        fit_temperature(torch.zeros(2, 3), torch.tensor([255, 255]))
    with pytest.raises(ValueError, match="not finite"):
        fit_temperature(torch.tensor([[torch.inf, 0.0]]), torch.tensor([0]))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 5))
def test_temperature_is_the_best_and_follows_the_scale_of_the_logits(seed: int, factor: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(200, 4, generator=generator).double()
    noise = torch.randint(4, (200,), generator=generator)
    labels = torch.where(torch.rand(200, generator=generator) < 0.5, logits.argmax(1), noise)
    t = fit_temperature(logits, labels)
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor * t, rel=1e-4)
    assert fit_temperature(logits + torch.randn(200, 1, generator=generator), labels) == pytest.approx(t, rel=1e-6)
    best = torch.nn.functional.cross_entropy(logits / t, labels)
    for other in (0.5 * t, 0.99 * t, 1.01 * t, 2 * t):
        assert best <= torch.nn.functional.cross_entropy(logits / other, labels) + 1e-12
