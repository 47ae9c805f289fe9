"""The evaluate verb: what it counts is what the Predictor says, on every point."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import networks
from lima_core import evaluate
from lima_core.checkpoint import CheckpointError, load_checkpoint, write_tensors
from lima_core.data.labelled import Sweep
from lima_core.metrics.segmentation import ConfusionMatrix
from lima_core.predictor import Predictor

torch.set_num_threads(1)  # tests share the cores, and waiting threads spin


STREET = ("--workers=1", "--data.street.val_seeds=[7,8]", "--data.street.sweeps_per_street=1")


def sweep(seed: int, n: int = 400) -> Sweep:
    """Points out to 70 m, some with no label, one not finite."""
    rng = np.random.default_rng(seed)
    points = rng.uniform([-50, -50, -2, 0], [50, 50, 2, 1], (n, 4)).astype(np.float32)
    points[7] = np.nan
    return Sweep(points, rng.choice(np.array([0, 1, 3, 15, 255], np.uint8), n), 32)


def with_temperature(path: Path, temperature: object) -> Path:
    """The checkpoint at `path`, saying another temperature."""
    weights, meta = load_checkpoint(path)
    return write_tensors(path.with_name(f"t{temperature}.safetensors"), weights, {**meta, "temperature": temperature})


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(4)
    return networks.save_random(tmp_path_factory.mktemp("evaluate") / "a.safetensors")


@pytest.fixture(scope="module")
def predictor(path: Path) -> Predictor:
    return Predictor(path, "cpu")


def test_evaluation_counts_what_the_predictor_says(predictor: Predictor) -> None:
    sweeps = [sweep(0), sweep(1)]
    found = evaluate.evaluate(predictor, sweeps, False, "test")
    expected = ConfusionMatrix(16)
    for s in sweeps:
        expected.update(s.labels, predictor.segment(s.points).labels)
    np.testing.assert_array_equal(found.confusion.matrix, expected.matrix)
    np.testing.assert_array_equal(found.confusion.missed, expected.missed)
    answered = [(s.labels != 255) & np.isfinite(s.points).all(1) for s in sweeps]
    assert found.raw.count.sum() == found.scaled.count.sum() == np.sum(answered)
    assert found.raw.correct.sum() == np.trace(expected.matrix)
    probability = [predictor.segment(s.points).probability[a].sum() for s, a in zip(sweeps, answered, strict=True)]
    assert found.raw.confidence.sum() == pytest.approx(np.sum(probability), rel=1e-5)
    assert len(found.latency_ms) == 2


def test_logits_are_those_behind_the_labels(predictor: Predictor) -> None:
    points = sweep(2).points
    logits, result = predictor.logits(points), predictor.segment(points)
    known = np.isfinite(points).all(1)
    assert (logits.shape, logits.dtype) == ((400, 16), np.float32)
    np.testing.assert_array_equal(np.isfinite(logits).all(1), known)
    np.testing.assert_array_equal(logits[known].argmax(1), result.labels[known])
    probability = torch.from_numpy(logits[known]).softmax(1).amax(1).numpy()
    np.testing.assert_allclose(result.probability[known], probability, atol=1e-6)


def test_temperature_softens_probabilities_and_changes_no_label(path: Path, predictor: Predictor) -> None:
    points = sweep(3).points
    hot = Predictor(with_temperature(path, 4.0), "cpu")
    plain, soft = predictor.segment(points), hot.segment(points)
    assert (predictor.temperature, hot.temperature) == (1.0, 4.0)
    np.testing.assert_array_equal(plain.labels, soft.labels)
    np.testing.assert_array_equal(hot.logits(points), predictor.logits(points))
    known = plain.labels != 255
    expected = torch.from_numpy(predictor.logits(points)[known] / 4).softmax(1).amax(1).numpy()
    np.testing.assert_allclose(soft.probability[known], expected, atol=1e-6)
    found = evaluate.evaluate(hot, [sweep(3)], False, "test")
    assert found.raw.confidence.sum() > found.scaled.confidence.sum()
    assert found.raw.correct.sum() == found.scaled.correct.sum()


@pytest.mark.parametrize("temperature", [0, -1.0, "warm", None])
def test_impossible_temperature_is_refused(path: Path, temperature: object) -> None:
    with pytest.raises(CheckpointError, match="no positive number"):
        Predictor(with_temperature(path, temperature), "cpu")


def test_views_are_eight_isometries_about_the_vertical() -> None:
    points = sweep(5).points[:6]
    turned = evaluate.views(points, True)
    assert len({view.tobytes() for view in turned}) == 8
    np.testing.assert_array_equal(evaluate.views(points, False), [points])
    np.testing.assert_array_equal(turned[0], points)
    distances = np.linalg.norm(points[:, None, :3] - points[None, :, :3], axis=2)
    for view in turned:
        assert view.dtype == np.float32
        np.testing.assert_array_equal(view[:, 2:], points[:, 2:])
        np.testing.assert_allclose(np.linalg.norm(view[:, None, :3] - view[None, :, :3], axis=2), distances, rtol=1e-5)


def test_views_vote_with_their_probabilities() -> None:
    """Two views: (0.9, 0.1) and (0.3, 0.7) have the mean (0.6, 0.4)."""
    views = [torch.log(torch.tensor([row, row])) for row in ([0.9, 0.1], [0.3, 0.7])]
    views[1][1] = torch.nan
    labels, before, after = evaluate.decide(views, 1.0)
    assert labels.tolist() == [0, 255]
    assert before[0] == after[0] == pytest.approx(0.6)
    assert np.isnan(before[1])


def test_augmented_evaluation_does_not_depend_on_the_heading(predictor: Predictor) -> None:
    one = sweep(6)
    turned = Sweep(evaluate.views(one.points, True)[3], one.labels, 32)
    first, second = (evaluate.evaluate(predictor, [s], True, "test") for s in (one, turned))
    np.testing.assert_array_equal(first.confusion.matrix, second.confusion.matrix)
    assert first.scaled.ece() == pytest.approx(second.scaled.ece(), abs=1e-5)


def test_verb_writes_numbers_table_and_one_page(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main([f"--checkpoint={path}", f"--out={tmp_path}", "--device=cpu", *STREET])
    record = json.loads((tmp_path / "evaluation.json").read_text())
    matrix = np.array(record["confusion"]["matrix"])
    assert record["points"] == matrix.sum() == sum(part["points"] for part in record["by_distance"]) > 1000
    assert record["points"] == sum(part["points"] for part in record["reliability"])
    assert record["accuracy"] == pytest.approx(np.trace(matrix) / matrix.sum())
    known = [value for value in record["iou"].values() if value is not None]
    assert record["miou"] == pytest.approx(np.mean(known))
    assert record["classes_counted"] == len(known)
    assert record["ece"] == record["ece_before_temperature"]
    assert record["config"]["data"]["street"]["val_seeds"] == [7, 8]
    table = (tmp_path / "evaluation.md").read_text()
    assert f"mIoU {100 * record['miou']:.2f} % over {len(known)} of 16 classes" in table
    assert table in capsys.readouterr().out
    page = (tmp_path / "evaluation.html").read_text()
    assert page.count('src="data:image/png;base64,') == page.count("<img") == 5


def test_sweeps_without_any_label_are_no_crash(predictor: Predictor, tmp_path: Path) -> None:
    empty = Sweep(sweep(0).points, np.full(400, 255, np.uint8), 32)
    found = evaluate.evaluate(predictor, [empty], False, "nothing")
    record = json.loads(json.dumps(evaluate.summary(found), allow_nan=False))
    assert (record["miou"], record["classes_counted"], record["ece"]) == (None, 0, None)
    assert "over 0 of 16 classes" in evaluate.markdown(found)
    evaluate.write_page(found, tmp_path / "page.html")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--data.name=semantickitti", "--data.root=x"],
            r"has 16 classes, semantickitti has 19; classes 0 'barrier' for",
        ),
        (["--data.name=nuscenes"], "needs data.root"),
        (["--data.street.val_seeds=[3,3]", "--workers=1"], "no sweeps of split val"),
        (["--splt=val"], r"did you mean split\?"),
    ],
)
def test_what_does_not_fit_is_explained(path: Path, argv: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        evaluate.main([f"--checkpoint={path}", "--device=cpu", *argv])


def test_missing_checkpoint_is_explained(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="does not exist"):
        evaluate.main([f"--checkpoint={tmp_path / 'none'}"])


def test_submission_holds_train_ids_from_one(tmp_path: Path) -> None:
    file = evaluate.write_submission(tmp_path, "mini_val", "abc", np.array([0, 15, 255], np.uint8))
    assert file == tmp_path / "lidarseg/mini_val/abc_lidarseg.bin"
    assert np.fromfile(file, np.uint8).tolist() == [1, 16, 1]


def test_real_keyframe_is_evaluated_and_its_submission_named_by_its_token(
    shared: Path, path: Path, tmp_path: Path
) -> None:
    root = shared / "data/nus_tiny"
    where = ["--data.name=nuscenes", f"--data.root={root}", "--split=train"]
    evaluate.main([f"--checkpoint={path}", *where, f"--out={tmp_path}/out", f"--predictions={tmp_path}/sent"])
    (file,) = (tmp_path / "sent").rglob("*.bin")
    tables = json.loads((root / "v1.0-mini/sample_data.json").read_text())
    (token,) = [row["token"] for row in tables if row["is_key_frame"] and "LIDAR_TOP" in row["filename"]]
    assert file.name == f"{token}_lidarseg.bin"
    assert file.stat().st_size == 34688
    labelled = json.loads((tmp_path / "out/evaluation.json").read_text())["points"]
    assert 0 < labelled < 34688  # things alone have labels there


def test_submissions_are_for_nuscenes_alone(path: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"use them with --data\.name nuscenes"):
        evaluate.main([f"--checkpoint={path}", *STREET, f"--predictions={tmp_path}"])
