"""mCE and mRR against the published row, and against the formulas by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima_core.data.corruptions import KINDS
from lima_core.metrics.robustness import BASELINES, Scores, robustness


def test_the_published_row_of_minkunet_34(vectors):
    vector = vectors["robo3d"]
    model, base = (
        Scores(row["clean"], {kind: [row[kind]] for kind in KINDS})
        for row in (vector["inputs"]["model"], vector["inputs"]["baseline"])
    )
    result, expected = robustness(model, base), vector["expected"]
    assert result.ce == pytest.approx(expected["CE"], abs=1e-6)
    assert result.mce == pytest.approx(expected["mCE"]) and result.mrr == pytest.approx(expected["mRR"])
    assert result.mce == pytest.approx(96.37, abs=0.02) and result.mrr == pytest.approx(75.08, abs=0.02)
    assert base == Scores(BASELINES["nuscenes"].clean, {k: [*v] for k, v in BASELINES["nuscenes"].corrupted.items()})


@pytest.mark.parametrize("name, mrr", [("nuscenes", 74.44), ("semantickitti", 81.9), ("waymo", 91.22)])
def test_a_baseline_has_100_and_its_published_resilience(name, mrr):
    result = robustness(BASELINES[name], BASELINES[name])
    assert set(result.ce.values()) == {100.0} and result.mce == 100
    assert result.mrr == pytest.approx(mrr, abs=0.01)


percent = st.floats(0, 99)


@given(
    clean=st.floats(2, 99),
    model=st.lists(st.lists(percent, min_size=3, max_size=3), min_size=8, max_size=8),
    base=st.lists(st.lists(percent, min_size=3, max_size=3), min_size=8, max_size=8),
)
def test_sums_over_severities(clean, model, base):
    result = robustness(
        Scores(clean, dict(zip(KINDS, model, strict=True))), Scores(50, dict(zip(KINDS, base, strict=True)))
    )
    for kind, of_model, of_base in zip(KINDS, model, base, strict=True):
        assert result.ce[kind] == pytest.approx(100 * sum(100 - m for m in of_model) / sum(100 - b for b in of_base))
        assert result.rr[kind] == pytest.approx(100 * sum(of_model) / 3 / clean)
    assert result.mce == pytest.approx(sum(result.ce.values()) / 8)
    assert result.mrr == pytest.approx(sum(result.rr.values()) / 8)


def test_what_is_no_table_is_refused():
    whole = {kind: (50.0, 40.0, 30.0) for kind in KINDS}
    base = BASELINES["nuscenes"]
    with pytest.raises(ValueError, match="missing or unknown: fog"):
        robustness(Scores(60, {kind: row for kind, row in whole.items() if kind != "fog"}), base)
    with pytest.raises(ValueError, match="missing or unknown: rain"):
        robustness(Scores(60, {**whole, "rain": (1.0,)}), base)
    for wrong in ((), (50.0, float("nan")), (101.0,), (-1.0,)):
        with pytest.raises(ValueError, match=r"snow: .* no mIoU in percent"):
            robustness(Scores(60, {**whole, "snow": wrong}), base)
    with pytest.raises(ValueError, match=r"clean mIoU is 0.758; it is wanted in percent"):
        robustness(Scores(0.758, whole), base)
