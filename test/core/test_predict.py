"""The Predictor on good and bad clouds, and the shipped checkpoint on a street it has not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lima_core.checkpoint import CheckpointError, load_network, save_checkpoint
from lima_core.data.synthetic.street import Street
from lima_core.metrics.segmentation import ConfusionMatrix
from lima_core.models.heads import build_segmenter
from lima_core.paths import STREET_CHECKPOINT
from lima_core.predictor import Predictor
from lima_core.training.collate import collate

torch.set_num_threads(1)  # tests share the cores, and waiting threads spin
META = {
    "format": 1,
    "model": "minkunet_tiny",
    "classes": {"names": ["a", "b", "c"], "colors": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]},
    "config": {"voxels": {"kind": "cylinder", "size": [0.1, 1.0, 0.1], "rounding": "round"}},
    "inputs": {},
    "metrics": {},
    "versions": {},
    "provenance": {},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    return save_checkpoint(tmp_path_factory.mktemp("predict") / "a", build_segmenter("minkunet_tiny", 3), META)


@pytest.fixture(scope="module")
def predictor(path: Path) -> Predictor:
    return Predictor(path, "cpu")


def cloud(n: int = 500) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.random((n, 4)) * [40, 40, 3, 1] - [20, 20, 2, 0]).astype(np.float32)


def test_labels_and_probabilities_are_those_of_the_network(path: Path, predictor: Predictor) -> None:
    points = cloud()
    network, voxels, _ = load_network(path)
    batch = collate([(points, np.zeros(len(points), np.uint8))], voxels)
    with torch.no_grad():
        expected = network(batch.voxels).softmax(1)[batch.voxel_of_point].numpy()
    result = predictor.segment(points)
    assert result.labels.dtype == np.uint8
    assert result.probability.dtype == np.float32
    np.testing.assert_allclose(result.probability, expected.max(1), atol=1e-4)
    sure = np.ptp(np.sort(expected, 1)[:, -2:], axis=1) > 1e-3
    np.testing.assert_array_equal(result.labels[sure], expected.argmax(1)[sure])


def test_facts_of_the_checkpoint(predictor: Predictor) -> None:
    assert predictor.class_names == ("a", "b", "c")
    assert predictor.colors.tolist() == META["classes"]["colors"]
    assert predictor.meta == META
    assert predictor.device == torch.device("cpu")


def test_features_have_a_row_per_point(predictor: Predictor) -> None:
    points = cloud()
    points[7, 2] = np.nan
    features = predictor.features(points)
    assert features.shape == (500, 32)
    assert np.isnan(features[7]).all()
    assert np.isfinite(np.delete(features, 7, 0)).all()


@pytest.mark.parametrize("n", [0, 1, 2])
def test_tiny_clouds(predictor: Predictor, n: int) -> None:
    result = predictor.segment(cloud(n))
    assert result.labels.shape == result.probability.shape == (n,)
    assert (result.labels < 3).all()
    assert predictor.features(cloud(n)).shape == (n, 32)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e9])
@pytest.mark.parametrize("column", [0, 2])
def test_invalid_points_are_ignored_and_do_not_touch_the_others(predictor: Predictor, bad: float, column: int) -> None:
    points = cloud()
    clean = predictor.segment(np.delete(points, [0, 9], 0))
    points[[0, 9], column] = bad
    result = predictor.segment(points)
    assert result.labels[[0, 9]].tolist() == [255, 255]
    assert result.probability[[0, 9]].tolist() == [0, 0]
    np.testing.assert_array_equal(np.delete(result.labels, [0, 9]), clean.labels)
    np.testing.assert_array_equal(np.delete(result.probability, [0, 9]), clean.probability)


def test_all_points_invalid(predictor: Predictor) -> None:
    assert predictor.segment(np.full((5, 4), np.nan, np.float32)).labels.tolist() == [255] * 5


def test_real_sweep_passes_whole(shared: Path, predictor: Predictor) -> None:
    (path,) = (shared / "data" / "nus_tiny" / "samples" / "LIDAR_TOP").glob("*.pcd.bin")
    points = np.fromfile(path, np.float32).reshape(-1, 5)[:, :4] / np.float32([1, 1, 1, 255])
    result = predictor.segment(points)
    assert len(result.labels) == 34688
    assert (result.labels < 3).all()
    assert (result.probability > 1 / 3 - 1e-6).all()


def test_wrong_shape_is_an_error(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match=r"\(N, 4\).*\(5, 3\)"):
        predictor.segment(np.zeros((5, 3), np.float32))


def test_input_is_left_alone_and_may_be_read_only_or_strided(predictor: Predictor) -> None:
    points = cloud()
    expected = predictor.segment(points)
    points.flags.writeable = False
    np.testing.assert_array_equal(predictor.segment(points).labels, expected.labels)
    strided = np.repeat(points, 2, axis=0)[::2]
    np.testing.assert_array_equal(predictor.segment(strided).labels, expected.labels)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_absent_gpu(path: Path) -> None:
    with pytest.raises(RuntimeError, match="no GPU"):
        Predictor(path, "cuda")
    assert Predictor(path, "auto").device == torch.device("cpu")


def test_unknown_device(path: Path) -> None:
    with pytest.raises(ValueError, match="'gpu'; use auto, cpu or cuda"):
        Predictor(path, "gpu")


def test_half_precision_changes_few_labels() -> None:
    points = Street(200_000, frames=1, cameras=False)[0].points
    whole, half = (Predictor(STREET_CHECKPOINT, "cpu", precision) for precision in ("fp32", "fp16"))
    assert half.features(points[:100]).dtype == np.float32
    assert np.mean(whole.segment(points).labels == half.segment(points).labels) > 0.99


def test_spconv_gives_the_same_labels(path: Path, predictor: Predictor) -> None:
    pytest.importorskip("spconv.pytorch", reason="spconv is not installed; pip install -e '.[dev]'")
    other = Predictor(path, "cpu", backend="spconv")
    np.testing.assert_allclose(other.features(cloud()), predictor.features(cloud()), atol=1e-4)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_gpu_and_cpu_agree(path: Path, predictor: Predictor) -> None:
    on_gpu = Predictor(path, "cuda", "fp32")
    np.testing.assert_allclose(on_gpu.features(cloud()), predictor.features(cloud()), atol=1e-3)
    assert np.mean(Predictor(path, "cuda").segment(cloud()).labels == predictor.segment(cloud()).labels) > 0.98


def test_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        Predictor(tmp_path / "none.safetensors")


def test_shipped_checkpoint_segments_a_street_it_was_neither_trained_nor_validated_on() -> None:
    assert STREET_CHECKPOINT.stat().st_size <= 5e6
    predictor = Predictor(STREET_CHECKPOINT, "cpu")
    street = Street(200_000, frames=11, cameras=False)
    assert predictor.class_names == street.taxonomy.names
    assert predictor.meta["metrics"]["val_miou"] >= 0.5
    confusion = ConfusionMatrix(len(predictor.class_names))
    for index in (0, 10):
        frame = street[index]
        confusion.update(frame.labels, predictor.segment(frame.points).labels)
    iou = dict(zip(predictor.class_names, confusion.iou(), strict=True))
    for name in ("driveable_surface", "manmade", "vegetation", "car"):
        assert iou[name] > 0.6, f"{name}: {iou[name]:.2f}"
