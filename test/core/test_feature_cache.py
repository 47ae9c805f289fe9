"""The feature cache: what is stored comes back, what is broken is noticed, what is cached is not computed again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from drives import ToyDrive
from lima_core.data.frame import Frame, Image
from lima_core.models.teacher import Teacher
from lima_core.training.feature_cache import (
    CacheError,
    FeatureCache,
    bytes_per_frame,
    check_space,
    frame_digest,
    teacher_key,
)

torch.set_num_threads(1)  # tests share the cores, and waiting threads spin


def grids(value: float) -> torch.Tensor:
    return torch.full((2, 3, 4, 5), value) + torch.arange(5) / 3


def filled(folder: Path, names: str = "abc", **options: int) -> FeatureCache:
    cache = FeatureCache(folder, "key", **options)
    for i, name in enumerate(names):
        cache.put(name, grids(i))
    cache.flush()
    return cache


def test_features_come_back_as_float16(tmp_path: Path) -> None:
    filled(tmp_path)
    again = FeatureCache(tmp_path, "key")
    assert len(again) == 3
    for i, name in enumerate("abc"):
        torch.testing.assert_close(again.get(name), grids(i).half(), rtol=0, atol=0)
    assert again.get("d") is None
    assert again.corrupt == 0


def test_put_returns_what_get_will_give(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "key")
    stored = cache.put("a", grids(0.1))
    pending = cache.get("a")
    cache.flush()
    for features in (stored, pending, cache.get("a")):
        torch.testing.assert_close(features, grids(0.1).half(), rtol=0, atol=0)


def test_full_shards_survive_a_kill_and_the_unfinished_one_does_not(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "key", shard_bytes=2 * grids(0).half().nbytes)
    for name in "abcde":
        cache.put(name, grids(1))
    assert [name in FeatureCache(tmp_path, "key") for name in "abcde"] == [True, True, True, True, False]


def test_caches_of_other_teachers_are_apart(tmp_path: Path) -> None:
    filled(tmp_path)
    assert "a" not in FeatureCache(tmp_path, "other")


def test_shards_of_two_processes_do_not_collide_and_are_seen_by_both(tmp_path: Path) -> None:
    first, second = FeatureCache(tmp_path, "key", 0), FeatureCache(tmp_path, "key", 1)
    first.put("a", grids(0))
    second.put("b", grids(1))
    first.flush()
    second.flush()
    assert first.get("b") is not None
    assert second.get("a") is not None


@pytest.mark.parametrize("damage", ["tensor", "header", "truncated", "empty"])
def test_damage_is_counted_and_named_and_computing_again_repairs_it(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = filled(tmp_path, "a")
    (shard,) = cache.folder.iterdir()
    content = bytearray(shard.read_bytes())
    if damage == "tensor":
        content[-3] ^= 0x10
    elif damage == "header":
        content[9] ^= 0xFF
    shard.write_bytes(content[: {"truncated": len(content) // 2, "empty": 0}.get(damage, len(content))])
    broken = FeatureCache(tmp_path, "key")
    assert broken.get("a") is None
    assert broken.get("a") is None
    assert broken.corrupt == 1
    assert str(shard) in caplog.text
    broken.put("a", grids(7))
    broken.flush()
    torch.testing.assert_close(FeatureCache(tmp_path, "key").get("a"), grids(7).half(), rtol=0, atol=0)


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_features_that_float16_cannot_hold_are_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(CacheError, match="do not fit float16"):
        FeatureCache(tmp_path, "key").put("a", torch.full((1, 1, 1, 1), value))


def test_space_is_told_and_too_little_is_an_error(tmp_path: Path) -> None:
    assert "1000 frames to store, 2.36 GB" in check_space(tmp_path, 1000, 2_359_296)
    with pytest.raises(CacheError, match=r"point teacher\.cache to another disk"):
        check_space(tmp_path, 10**9, 2_359_296)


def changed(frame: Frame, camera: int) -> Frame:
    views = list(frame.cameras)
    pixels = views[camera].image.rgb.copy()
    pixels[0, 0] ^= 255
    views[camera] = type(views[camera])(**{**vars(views[camera]), "image": Image(pixels=pixels)})
    return type(frame)(**{**vars(frame), "cameras": tuple(views)})


def test_digest_is_of_the_pictures_alone() -> None:
    frame, other = ToyDrive()[0], ToyDrive()[1]
    assert frame_digest(frame) == frame_digest(ToyDrive()[0])
    renamed = type(frame)(**{**vars(frame), "sequence": "another", "points": frame.points[:10], "extra": {}})
    assert frame_digest(renamed) == frame_digest(frame)
    swapped = type(frame)(**{**vars(frame), "cameras": frame.cameras[::-1]})
    digests = {frame_digest(f) for f in (frame, other, swapped, changed(frame, 0), changed(frame, 1))}
    assert len(digests) == 5


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import timm

    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(timm.create_model("vit_small_patch14_dinov2.lvd142m", num_classes=0).state_dict(), path)
    return path


def test_key_names_all_that_features_depend_on(weights: Path, tmp_path: Path) -> None:
    state = Teacher("small", (28, 28), weights).vit.state_dict()
    copy = tmp_path / "copy.pth"
    torch.save(state, copy)
    same = {teacher_key(Teacher("small", (28, 28), path)) for path in (weights, copy)}
    state["blocks.3.mlp.fc1.bias"][7] += 1e-3
    torch.save(state, copy)
    others = [
        Teacher("small", (28, 28), copy),
        Teacher("small", (42, 28), weights),
        Teacher("small", (28, 28), weights, layer=5),
        Teacher("small", (28, 28), weights, precision="bf16"),
    ]
    assert len(same) == 1
    assert len(same | {teacher_key(other) for other in others}) == 5


def test_key_changes_with_the_preprocessing(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = teacher_key(Teacher("small", (28, 28), weights))
    monkeypatch.setattr("lima_core.models.teacher.IMAGENET_MEAN", (0.5, 0.5, 0.5))
    assert teacher_key(Teacher("small", (28, 28), weights)) != before


def test_bytes_per_frame_are_those_on_disk(weights: Path, tmp_path: Path) -> None:
    teacher = Teacher("small", (56, 28), weights)
    features = teacher(teacher.prepare([np.zeros((28, 56, 3), np.uint8)] * 2))
    assert FeatureCache(tmp_path, "key").put("a", features).nbytes == bytes_per_frame(teacher, 2) == 2 * 384 * 2 * 4 * 2
