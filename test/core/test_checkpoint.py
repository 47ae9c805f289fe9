"""Checkpoints: exact round trip, and an error that names what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from lima_core.checkpoint import (
    CheckpointError,
    load_checkpoint,
    load_network,
    load_weights,
    save_checkpoint,
    write_tensors,
)
from lima_core.models.heads import build_segmenter

META = {
    "format": 1,
    "model": "minkunet_tiny",
    "classes": {"names": ["a", "b", "c"], "colors": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]},
    "config": {"voxels": {"kind": "cylinder", "size": [0.1, 1.0, 0.1], "rounding": "round"}},
    "inputs": {},
    "metrics": {"val_miou": 0.5},
    "versions": {},
    "provenance": {},
}


@pytest.fixture()
def path(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save_checkpoint(tmp_path / "a.safetensors", build_segmenter("minkunet_tiny", 3), META)


def test_weights_and_metadata_come_back(path: Path) -> None:
    torch.manual_seed(0)
    original = build_segmenter("minkunet_tiny", 3)
    network, voxels, meta = load_network(path)
    assert meta == META
    assert voxels.size == (0.1, 1.0, 0.1)
    assert not network.training
    torch.testing.assert_close(network.state_dict(), original.state_dict(), rtol=0, atol=0)


def test_equal_content_gives_equal_bytes(path: Path) -> None:
    network, _, meta = load_network(path)
    again = save_checkpoint(path.with_name("b.safetensors"), network, dict(reversed(meta.items())))
    assert again.read_bytes() == path.read_bytes()


def test_half_stores_matrices_as_float16_and_loads_as_float32(path: Path) -> None:
    network, _, meta = load_network(path)
    half = save_checkpoint(path.with_name("half.safetensors"), network, meta, half=True)
    kinds = {name: value.dtype for name, value in load_file(half).items()}
    assert kinds["head.weight"] == torch.float16
    assert kinds["backbone.stem.0.norm.running_var"] == torch.float32
    loaded, _, _ = load_network(half)
    torch.testing.assert_close(loaded.state_dict(), network.state_dict(), rtol=1e-3, atol=1e-5)
    assert loaded.head.weight.dtype == torch.float32


def test_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not exist.*lima_core\.finetune"):
        load_checkpoint(tmp_path / "none.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_truncated_file(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="broken or cut short"):
        load_checkpoint(path)


def test_pickle_is_refused_without_being_read(tmp_path: Path) -> None:
    torch.save({"head.bias": torch.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="broken or cut short"):
        load_checkpoint(tmp_path / "a.safetensors")


def test_foreign_safetensors(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="not a lima checkpoint"):
        load_checkpoint(tmp_path / "a.safetensors")


def test_broken_header(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(save({"x": torch.zeros(3)}, {"lima": "{"}))
    with pytest.raises(CheckpointError, match="broken"):
        load_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "resnet"}, "'resnet' is unknown to this lima; known: minkunet34"),
        ({"model": "minkunet18"}, "made for another model"),
        ({"format": 2}, "format 2, this lima reads 1"),
        ({"classes": {"names": [], "colors": []}}, r"pretrained backbone.*finetune --init"),
        ({"classes": {"names": ["a", "b"], "colors": []}}, "weights for 3 classes, the model has 2"),
        ({"config": {}}, "broken metadata: KeyError: 'voxels'"),
        ({"config": {"voxels": {"siez": 1}}}, "did you mean size"),
    ],
)
def test_checkpoint_of_something_else_names_the_difference(path: Path, change: dict, message: str) -> None:
    write_tensors(path, load_file(path), {**META, **change})
    with pytest.raises(CheckpointError, match=message):
        load_network(path)


def test_missing_metadata_is_named(path: Path) -> None:
    write_tensors(path, load_file(path), {key: value for key, value in META.items() if key != "inputs"})
    with pytest.raises(CheckpointError, match="lacks inputs"):
        load_network(path)


def test_missing_and_unexpected_weights_are_named(path: Path) -> None:
    weights = load_file(path)
    weights["head.wieght"] = weights.pop("head.weight")
    with pytest.raises(CheckpointError, match=r"1 missing \(head\.weight\); 1 unexpected \(head\.wieght\)"):
        load_weights(build_segmenter("minkunet_tiny", 3), weights, "x")


def test_incomplete_metadata_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="lacks model"):
        save_checkpoint(tmp_path / "a.safetensors", build_segmenter("minkunet_tiny", 3), {"format": 1})
    assert list(tmp_path.iterdir()) == []


def test_header_is_plain_json_that_other_tools_can_read(path: Path) -> None:
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"]["lima"])["classes"]["names"] == ["a", "b", "c"]
