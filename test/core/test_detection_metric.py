"""mAP and NDS: the specification's vectors, cases with a known answer, and a plain matcher as the peer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima_core.data.attributes import ATTRIBUTES, attributes_by_speed
from lima_core.data.classes import load_taxonomy
from lima_core.data.frame import Boxes, Detections
from lima_core.metrics.detection import DetectionMetric, DetectionResult, strongest
from lima_core.metrics.detection_matching import DISTANCES_M, ERRORS, angle_difference, errors_of, nearest_free

NAMES = load_taxonomy("nuscenes").detection_names
SHORT = ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")  # the vectors' names of ERRORS
CAR, CONE, BARRIER = (NAMES.index(name) for name in ("car", "traffic_cone", "barrier"))


def boxes(xy: Sequence, class_id: int | np.ndarray = CAR, **columns) -> Boxes:
    """Still cars of 4 x 2 x 1.5 m that look along x, without attributes."""
    center = np.column_stack([np.asarray(xy, float).reshape(-1, 2), np.zeros(len(xy))])
    count = len(center)
    default = {
        "size": np.tile([4.0, 2.0, 1.5], (count, 1)), "yaw": np.zeros(count), "velocity": np.zeros((count, 2)),
        "class_id": np.full(count, class_id).astype(np.uint8), "attribute": np.full(count, 255, np.uint8),
    }  # fmt: skip
    return Boxes(center, **{**default, **columns})


def of_rows(rows: list[dict]) -> Boxes:
    """Boxes of the vectors: xy, w-l-h, yaw, v, attr."""
    columns = {
        "size": np.array([r["wlh"] for r in rows], float)[:, [1, 0, 2]],
        "yaw": np.array([r["yaw"] for r in rows]),
        "velocity": np.array([r["v"] for r in rows], float),
        "attribute": np.array([ATTRIBUTES.index(r["attr"]) for r in rows], np.uint8),
    }
    return boxes([r["xy"] for r in rows], **columns)


def scored(truth: Boxes, found: Boxes, score: Sequence[float]) -> DetectionResult:
    """One frame."""
    metric = DetectionMetric(NAMES)
    metric.update(truth, Detections(found, np.array(score, np.float32)), np.zeros(2))
    return metric.result()


def test_errors_of_one_pair(vectors):
    vector = vectors["nds_primitives"]
    truth, found = (of_rows([vector["inputs"][key]]) for key in ("gt", "pred"))
    found.center[:, 2] = vector["inputs"]["pred"]["z"]  # height does not count
    expected = vector["expected"]
    names = ("center_distance", "scale_iou", "yaw_diff_2pi", "velocity_l2", "attr_acc")
    wanted = [expected[n] if n not in ("scale_iou", "attr_acc") else 1 - expected[n] for n in names]
    np.testing.assert_allclose(errors_of(truth, found, 2 * np.pi)[0], wanted, atol=1e-6)
    assert errors_of(truth, found, np.pi)[0, 2] == pytest.approx(expected["yaw_diff_pi"], abs=1e-6)
    truth.attribute[:] = 255
    assert np.isnan(errors_of(truth, found, np.pi)[0, 4]) and expected["attr_acc_gt_empty"] == "nan"
    for (a, b, period), wanted in zip(
        vector["inputs"]["angle_diff_args"], expected["angle_diff_examples"], strict=True
    ):
        assert angle_difference(a, b, {"2pi": 2 * np.pi, "pi": np.pi}[period]) == pytest.approx(wanted, abs=1e-6)


def test_one_class_by_hand(vectors):
    vector = vectors["ap_and_tp_tiny"]
    metric = DetectionMetric(NAMES)
    for sample, rows in vector["inputs"]["gt"].items():
        found = vector["inputs"]["pred"][sample]
        metric.update(of_rows(rows), Detections(of_rows(found), np.array([r["score"] for r in found])), np.zeros(2))
    result, expected = metric.result(), vector["expected"]
    np.testing.assert_allclose(result.label_aps[CAR], [expected["ap"][str(d)] for d in DISTANCES_M], atol=1e-6)
    np.testing.assert_allclose(result.label_tp[CAR], [expected["tp"][name] for name in SHORT], atol=1e-6)
    wanted = expected["precision_at_recall_0.1_0.2_0.4_0.6_0.8_1.0"]
    np.testing.assert_allclose(result.precision[CAR, 2, [10, 20, 40, 60, 80, 100]], wanted, atol=1e-6)
    assert result.truths[CAR] == 5 and result.detections[CAR] == 7
    assert result.map_at(2.0) == pytest.approx(expected["ap"]["2.0"], abs=1e-6), "of the one class with truth"
    assert result.mean_ap == pytest.approx(np.mean(list(expected["ap"].values())) / 10, abs=1e-6)


def test_nds_of_the_errors_of_ten_classes(vectors):
    inputs, expected = vectors["nds"]["inputs"], vectors["nds"]["expected"]
    aps = np.array([inputs["class_aps_at_0p5_1_2_4"][name] for name in NAMES])
    tp = np.array([[float(inputs["tp_errors"][name][error]) for error in SHORT] for name in NAMES])
    counts = np.ones(10, np.int64)
    result = DetectionResult(NAMES, aps, tp, np.zeros((10, 4, 101)), counts, counts, True)
    assert result.mean_ap == pytest.approx(expected["mean_ap"], abs=1e-6)
    np.testing.assert_allclose(result.tp, [expected["tp_errors"][error] for error in SHORT], atol=1e-6)
    assert result.nds == pytest.approx(expected["nds"], abs=1e-6)


def test_nds_of_round_numbers(vectors):
    inputs = vectors["nds_simple"]["inputs"]
    tp = np.tile([inputs[name] for name in ("mATE", "mASE", "mAOE", "mAVE", "mAAE")], (10, 1))
    counts = np.ones(10, np.int64)
    result = DetectionResult(NAMES, np.full((10, 4), inputs["mAP"]), tp, np.zeros((10, 4, 101)), counts, counts, True)
    assert result.nds == pytest.approx(vectors["nds_simple"]["expected"]["nds"], abs=1e-6)


def test_the_truth_as_detection_is_perfect():
    truth = boxes([(10, 0), (20, 5), (-8, 3)], attribute=np.full(3, ATTRIBUTES.index("vehicle.parked"), np.uint8))
    result = scored(truth, truth, [0.9, 0.5, 0.2])
    np.testing.assert_allclose(result.label_aps[CAR], 1)
    np.testing.assert_allclose(result.label_tp[CAR], 0, atol=1e-12)
    assert result.map_at(0.5) == pytest.approx(1) and result.mean_ap == pytest.approx(0.1)


def test_a_class_without_truth_scores_as_if_missed():
    result = scored(boxes([(10, 0)]), boxes([(5, 5)], CONE), [0.9])
    assert (result.label_aps == 0).all() and np.nanmin(result.label_tp) == 1
    assert result.nds == 0 and result.map_at(2.0) == 0
    assert result.truths.sum() == 1 and result.detections[CONE] == 1
    np.testing.assert_array_equal(np.isnan(result.label_tp[CONE]), [False, False, True, True, True])
    np.testing.assert_array_equal(np.isnan(result.label_tp[BARRIER]), [False, False, False, True, True])
    assert np.isnan(DetectionMetric(NAMES).result().map_at(2.0))


def test_truth_without_points_does_not_count():
    truth = boxes([(10, 0), (20, 0)], points=np.array([3, 0], np.int32))
    assert scored(truth, truth.take(np.array([0])), [0.5]).label_aps[CAR, 0] == pytest.approx(1)
    assert scored(boxes([(10, 0), (20, 0)]), boxes([(10, 0)]), [0.5]).truths[CAR] == 2


def test_ranges_are_of_the_class_and_about_the_vehicle():
    truth = Boxes.joined([boxes([(49.9, 0), (50, 0)]), boxes([(29.9, 0), (30, 0)], CONE)])
    result = scored(truth, truth, [0.5] * 4)
    assert result.truths[CAR] == result.truths[CONE] == result.detections[CAR] == result.detections[CONE] == 1
    metric = DetectionMetric(NAMES)
    metric.update(truth, Detections(truth, np.full(4, 0.5)), np.array([10.0, 0]))
    assert metric.result().truths[CAR] == metric.result().truths[CONE] == 2


def test_of_equal_scores_the_later_goes_first():
    result = scored(boxes([(10, 0)]), boxes([(10, 0.1), (10, 0.3)]), [0.5, 0.5])
    assert result.label_tp[CAR, 0] == pytest.approx(0.3), "the farther one, second in the list, took the truth"


def test_a_barrier_has_no_front():
    turned = np.array([np.pi])
    assert scored(boxes([(9, 0)], BARRIER), boxes([(9, 0)], BARRIER, yaw=turned), [1]).label_tp[BARRIER, 2] < 1e-9
    assert scored(boxes([(9, 0)]), boxes([(9, 0)], yaw=turned), [1]).label_tp[CAR, 2] == pytest.approx(np.pi)


def test_what_truth_does_not_know_is_no_error():
    velocity = np.array([[np.nan, np.nan], [1, 0]])
    parked, moving = (ATTRIBUTES.index(name) for name in ("vehicle.parked", "vehicle.moving"))
    truth = boxes([(10, 0), (20, 0)], velocity=velocity, attribute=np.array([255, moving], np.uint8))
    found = boxes([(10, 0), (20, 0)], velocity=np.ones((2, 2)), attribute=np.full(2, parked, np.uint8))
    errors = scored(truth, found, [0.5, 0.5]).label_tp[CAR]
    assert errors[3] == pytest.approx(1) and errors[4] == 1
    unknown = boxes([(10, 0)], attribute=None)
    assert scored(unknown, found.take(np.array([0])), [0.5]).label_tp[CAR, 4] == 1, "no attribute at all counts as 1"
    assert scored(truth, found, [0.5, 0.5]).attributes and not scored(unknown, found, [0.5, 0.5]).attributes


def test_detections_without_attributes_get_them_by_speed():
    truth = boxes([(10, 0)], attribute=np.array([ATTRIBUTES.index("vehicle.moving")], np.uint8))
    fast = boxes([(10, 0)], velocity=np.array([[3.0, 0]]), attribute=None)
    assert scored(truth, fast, [0.5]).label_tp[CAR, 4] == 0
    assert scored(truth, boxes([(10, 0)], attribute=None), [0.5]).label_tp[CAR, 4] == 1


def test_attributes_by_speed():
    ids, name = np.arange(len(NAMES), dtype=np.uint8), {}
    for fast, speed in ((True, 0.2001), (False, 0.2)):
        every = boxes(np.zeros((10, 2)), class_id=ids, velocity=np.tile([0, speed], (10, 1)))
        rows = attributes_by_speed(every, NAMES)
        name[fast] = {n: None if row == 255 else ATTRIBUTES[row] for n, row in zip(NAMES, rows, strict=True)}
    assert name[True]["car"] == "vehicle.moving" and name[False]["truck"] == "vehicle.parked"
    assert name[True]["bus"] == "vehicle.moving" and name[False]["bus"] == "vehicle.stopped"
    assert name[True]["bicycle"] == "cycle.with_rider" and name[False]["motorcycle"] == "cycle.without_rider"
    assert name[True]["pedestrian"] == "pedestrian.moving" and name[False]["pedestrian"] == "pedestrian.standing"
    assert name[False]["trailer"] == "vehicle.parked" and name[True]["barrier"] is name[False]["traffic_cone"] is None
    unknown = boxes([(0, 0)], velocity=np.full((1, 2), np.nan))
    assert ATTRIBUTES[attributes_by_speed(unknown, NAMES)[0]] == "vehicle.parked"
    with pytest.raises(ValueError, match="'tram' has no attributes"):
        attributes_by_speed(unknown, ("car", "tram"))


def test_the_best_500_count():
    many = boxes(np.zeros((700, 2)))
    kept = strongest(Detections(many, np.linspace(0, 1, 700)))
    assert len(kept) == 500 and kept.score[0] == 1 and (np.diff(kept.score) < 0).all()
    assert scored(boxes([(0, 0)]), many, np.linspace(0, 1, 700)).detections[CAR] == 500


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="'tram' is no class of nuScenes"):
        DetectionMetric(("car", "tram"))
    metric, good = DetectionMetric(("car",)), boxes([(1, 1)])
    with pytest.raises(ValueError, match="truth: class id 5, but there are 1 classes"):
        metric.update(boxes([(1, 1)], BARRIER), Detections(good, np.ones(1)), np.zeros(2))
    with pytest.raises(ValueError, match="detections: 1 boxes need as many finite scores"):
        metric.update(good, Detections(good, np.array([np.nan])), np.zeros(2))
    with pytest.raises(ValueError, match="detections: a centre, size or heading is not finite"):
        metric.update(good, Detections(boxes([(np.nan, 1)]), np.ones(1)), np.zeros(2))


def test_an_empty_frame_changes_nothing():
    metric, none = DetectionMetric(NAMES), Boxes.joined([])
    metric.update(none, Detections(none, np.zeros(0, np.float32)), np.zeros(2))
    truth = boxes([(10, 0)])
    metric.update(truth, Detections(truth, np.ones(1, np.float32)), np.zeros(2))
    metric.update(none, Detections(none, np.zeros(0, np.float32)), np.zeros(2))
    assert metric.result().label_aps[CAR, 0] == pytest.approx(1)


def plain_matches(truth: np.ndarray, found: np.ndarray, score: np.ndarray, reach: float) -> list[int]:
    """The rule of spec 2.5 step 3, one detection at a time."""
    rows, taken = [-1] * len(found), set()
    for row in sorted(range(len(found)), key=lambda i: (score[i], i), reverse=True):
        distances = [(np.hypot(*(found[row] - t)), i) for i, t in enumerate(truth) if i not in taken]
        if distances and min(distances)[0] < reach:
            rows[row] = min(distances)[1]
            taken.add(rows[row])
    return rows


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 6), st.integers(0, 12), st.integers(0, 2**32 - 1))
def test_matching_equals_the_plain_rule(truths, detections, seed):
    rng = np.random.default_rng(seed)
    truth, found = rng.uniform(0, 8, (truths, 2)), rng.uniform(0, 8, (detections, 2))
    score = rng.integers(0, 5, detections) / 4  # many ties
    wanted = np.array([plain_matches(truth, found, score, reach) for reach in DISTANCES_M]).reshape(4, -1)
    np.testing.assert_array_equal(nearest_free(truth, found, score), wanted.T)


def test_the_order_of_errors_is_that_of_the_paper():
    assert ERRORS == ("translation", "scale", "orientation", "velocity", "attribute")
