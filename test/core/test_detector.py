"""The detector: its two heads on one encoder, its batches, its checkpoint and the Predictor that runs it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import networks
from lima_core.checkpoint import CheckpointError, load_network
from lima_core.data.augment import AugmentConfig
from lima_core.data.classes import load_taxonomy
from lima_core.models.detections import to_detections
from lima_core.models.detector import HEADS, Detector, DetectorConfig
from lima_core.models.voxelize_range import RangeConfig
from lima_core.predictor import Predictor
from lima_core.training.boxed_batches import TrainingBoxes, collate_boxed
from lima_core.training.loss import segmentation_loss
from toy_boxes import CAR_LABEL, ToyBoxes

torch.set_num_threads(1)  # tests share the cores, and waiting threads spin
NAMES = load_taxonomy("nuscenes").detection_names
BOUNDS = RangeConfig((-6.4, -6.4, -5.0), (6.4, 6.4, 3.0), (0.2, 0.2, 0.2))
SMALL = DetectorConfig(bev_width=8, head_channels=8, sweeps=2)
STILL = AugmentConfig(flip=0.0, rotation=0.0, scale=(1.0, 1.0), intensity_gain=1.0)


def detector(head: str = "center", classes: int = 0) -> Detector:
    torch.manual_seed(0)
    return Detector("voxelnet_tiny", BOUNDS, replace(SMALL, head=head), NAMES, classes)


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_learns_from_both_tasks(head: str) -> None:
    network, batch = detector(head, 16), collate_boxed(ToyBoxes(2), BOUNDS)
    outputs, logits = network(batch.voxels, 2)
    loss = network.box_head.loss(outputs, batch.boxes)
    (loss.total + segmentation_loss(logits, batch.labels).total).backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    assert logits.shape == (len(batch.voxels), 16)


def test_boxes_alone_have_no_logits() -> None:
    batch = collate_boxed(ToyBoxes(1), BOUNDS)
    assert detector()(batch.voxels, 1)[1] is None


@pytest.mark.parametrize("head", HEADS)
def test_empty_sweeps_and_frames_without_boxes_train(head: str) -> None:
    empty = replace(
        ToyBoxes(1, boxes=False)[0], points=np.zeros((0, 5), np.float32), current=0, labels=np.zeros(0, np.uint8)
    )
    network = detector(head, 16)
    batch = collate_boxed([ToyBoxes(1, boxes=False)[0], empty], BOUNDS)
    outputs, logits = network(batch.voxels, 2)
    loss = network.box_head.loss(outputs, batch.boxes).total + segmentation_loss(logits, batch.labels).total
    loss.backward()
    assert loss.isfinite()
    with torch.no_grad():
        outputs, _ = network.eval()(collate_boxed([empty], BOUNDS).voxels, 1)
        assert to_detections(network.box_head.decode(outputs)[0]).boxes.center.shape[1] == 3


def test_labels_are_those_of_the_current_sweep() -> None:
    sweep = ToyBoxes(1)[0]
    batch = collate_boxed([sweep], BOUNDS)
    own = sweep.points[: sweep.current]
    shifted = (own + np.array([3, 0, 0, 0, 0.1])).astype(np.float32)
    old = replace(sweep, points=np.concatenate([own, shifted]))
    moved = collate_boxed([old], BOUNDS)
    assert (batch.labels == 255).sum() == 0
    current = moved.voxel_of_point[: sweep.current]
    seen = torch.zeros(len(moved.labels), dtype=torch.bool)
    seen[current[current >= 0]] = True
    assert (moved.labels[~seen] == 255).all() and (moved.labels[seen] != 255).all()
    assert CAR_LABEL in moved.labels


def test_other_models_and_odd_maps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"minkunet34.*voxelnet, voxelnet_plain, voxelnet_tiny"):
        Detector("minkunet34", BOUNDS, SMALL, NAMES)
    with pytest.raises(ValueError, match="no group holds tram"):
        Detector("voxelnet_tiny", BOUNDS, SMALL, ("car", "tram"))


def test_batches_depend_on_seed_and_step_alone() -> None:
    def batches(seed: int, process: int = 0, processes: int = 1) -> TrainingBoxes:
        return TrainingBoxes(
            ToyBoxes(6), 2, BOUNDS, AugmentConfig(), seed, 2, len(NAMES), True, None, process, processes
        )

    whole = batches(0)
    assert len(whole) == 2 * whole.steps_per_epoch == 2
    again = batches(0)[1]
    assert torch.equal(whole[1].voxels.features, again.voxels.features)
    assert all(torch.equal(a, b) for a, b in zip(whole[1].boxes, again.boxes, strict=True))
    assert not torch.equal(whole[0].voxels.features, batches(1)[0].voxels.features)
    halves = [batches(0, process, 2)[1] for process in range(2)]
    assert [len(half.boxes) for half in halves] == [1, 1]
    assert all(torch.equal(half.boxes[0], box) for half, box in zip(halves, whole[1].boxes, strict=True))


def test_without_balance_an_epoch_has_every_sweep_once() -> None:
    sweeps = TrainingBoxes(ToyBoxes(4), 1, BOUNDS, STILL, 0, 1, len(NAMES), False)
    seen = sorted(float(sweeps[step].boxes[0][0, 0]) for step in range(len(sweeps)))
    assert seen == sorted(float(np.float32(sweep.boxes.center[0, 0])) for sweep in ToyBoxes(4))
    with pytest.raises(ValueError, match="4 sweeps of an epoch do not fill a batch of 5"):
        TrainingBoxes(ToyBoxes(4), 5, BOUNDS, STILL, 0, 1, len(NAMES), False)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return networks.save_detector(tmp_path_factory.mktemp("detector") / "both", detector(classes=16), BOUNDS, SMALL)


def test_predictor_gives_what_the_network_gives(path: Path) -> None:
    predictor, sweep = Predictor(path, "cpu"), ToyBoxes(1)[0]
    assert (predictor.detection_names, predictor.sweeps) == (NAMES, 2)
    network, _, _ = load_network(path)
    batch = collate_boxed([sweep], BOUNDS)
    with torch.no_grad():
        outputs, logits = network(batch.voxels, 1)
        expected = to_detections(network.box_head.decode(outputs)[0])
    labels = logits.argmax(1)[batch.voxel_of_point[: sweep.current]].numpy()
    found = predictor.perceive(sweep.points)
    np.testing.assert_allclose(found.detections.score, expected.score, atol=1e-4)
    np.testing.assert_allclose(found.detections.boxes.center, expected.boxes.center, atol=1e-3)
    assert np.mean(found.segmentation.labels[: sweep.current] == labels) > 0.99
    current, past = sweep.points[: sweep.current, :4], sweep.points[sweep.current :, :4]
    again = predictor.detect(current, [(past, np.eye(4), 0.1)])
    far = ~(np.abs(past[:, :2]) < 1).all(1)  # the vehicle's own echoes are dropped
    assert len(again) > 0 and far.any()
    assert len(predictor.segment(current).labels) == len(current)


def test_points_out_of_range_or_invalid_have_no_label(path: Path) -> None:
    predictor = Predictor(path, "cpu")
    points = np.array([[1, 1, -1, 0.5], [50, 0, 0, 0.5], [np.nan, 0, 0, 0.5]], np.float32)
    result = predictor.segment(points)
    assert (result.labels[0] < 16, *result.labels[1:]) == (True, 255, 255)
    assert np.isnan(predictor.logits(points)[1:]).all() and np.isfinite(predictor.features(points)[0]).all()
    assert predictor.segment(points[:0]).labels.shape == (0,)
    predictor.detect(points[:0])


def test_asking_for_a_head_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    boxes = Predictor(networks.save_detector(tmp_path / "boxes", detector(), BOUNDS, SMALL), "cpu")
    with pytest.raises(ValueError, match=r"finds boxes and has no classes of points; .*--task both"):
        boxes.segment(np.zeros((1, 4), np.float32))
    labels = Predictor(networks.save_random(tmp_path / "labels"), "cpu")
    with pytest.raises(ValueError, match=r"segments and finds no boxes; .*--task detection"):
        labels.detect(np.zeros((1, 4), np.float32))
    with pytest.raises(ValueError, match=r"\(N, 4\) \[x, y, z, intensity\], got \(1, 5\)"):
        labels.segment(np.zeros((1, 5), np.float32))
    with pytest.raises(ValueError, match=r"or \(N, 5\) with the time lag, got \(1, 3\)"):
        boxes.detect(np.zeros((1, 3), np.float32))
    with pytest.raises(ValueError, match="not both"):
        boxes.detect(np.zeros((1, 5), np.float32), [(np.zeros((1, 4), np.float32), np.eye(4), 0.1)])


def test_checkpoint_of_other_boxes_or_heads_is_refused(path: Path, tmp_path: Path) -> None:
    weights = networks.save_detector(tmp_path / "a", detector("anchor"), BOUNDS, SMALL)  # its metadata say center
    with pytest.raises(CheckpointError, match="made for another model"):
        load_network(weights)
    broken = networks.save_detector(tmp_path / "b", detector(), BOUNDS, SMALL, names=["car", "tram"])
    with pytest.raises(CheckpointError, match=r"broken metadata: ValueError: .*tram"):
        load_network(broken)


def test_statistics_follow_at_the_configured_rate() -> None:
    network = Detector("voxelnet_tiny", BOUNDS, replace(SMALL, norm_momentum=0.3), NAMES)
    norms = [m for m in network.modules() if isinstance(m, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d))]
    assert len(norms) > 20 and {norm.momentum for norm in norms} == {0.3}


def test_circle_suppression_is_for_centers() -> None:
    network = Detector("voxelnet_tiny", BOUNDS, replace(SMALL, nms="circle"), NAMES)
    assert network.box_head.nms == "circle"
    with pytest.raises(ValueError, match="circle is for head center"):
        Detector("voxelnet_tiny", BOUNDS, replace(SMALL, head="anchor", nms="circle"), NAMES)


def test_half_precision_leaves_the_anchors_where_they_are() -> None:
    whole, half = detector("anchor"), detector("anchor").half()
    logits = torch.zeros(1)
    assert torch.equal(whole.box_head._anchors(0, logits), half.box_head._anchors(0, logits.half()))


def test_a_broken_return_of_the_past_does_not_blind_the_detector(path: Path) -> None:
    predictor, sweep = Predictor(path, "cpu"), ToyBoxes(1)[0]
    current, past = sweep.points[: sweep.current, :4], sweep.points[sweep.current :, :4].copy()
    good = predictor.detect(current, [(past[1:], np.eye(4), 0.1)])
    past[0, 3] = np.nan
    again = predictor.detect(current, [(past, np.eye(4), 0.1)])
    np.testing.assert_array_equal(again.score, good.score)
    assert len(good) > 0
