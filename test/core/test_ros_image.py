"""Image and CameraInfo messages: encodings, row padding, broken pictures, intrinsics and distortion."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from lima_core.data.frame import ImageError
from lima_core.data.ros_image import camera_from_info, image_from_message

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


def raw(pixels, encoding, pad=0, **changes):
    rows = np.pad(pixels.reshape(len(pixels), -1), ((0, 0), (0, pad)), constant_values=7)
    fields = {"width": pixels.shape[1], "height": len(pixels), "step": rows.shape[1], "data": rows.tobytes()}
    return SimpleNamespace(**{"encoding": encoding, "is_bigendian": 0, **fields, **changes})


ALPHA = np.dstack([RGB, np.full((6, 8), 9, np.uint8)])


@pytest.mark.parametrize("pad", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [("rgb8", RGB), ("bgr8", RGB[..., ::-1]), ("rgba8", ALPHA), ("bgra8", ALPHA[..., [2, 1, 0, 3]])],
)
def test_colour_encodings(encoding, pixels, pad):
    np.testing.assert_array_equal(image_from_message(raw(pixels, encoding, pad), "/cam").rgb, RGB)


def test_mono_is_grey():
    grey = RGB[..., 0]
    np.testing.assert_array_equal(image_from_message(raw(grey, "mono8", 3), "/cam").rgb, np.dstack([grey] * 3))


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_mosaic_of_a_flat_colour(pattern):
    color = {"r": 200, "g": 100, "b": 50}
    tile = np.array([color[c] for c in pattern], np.uint8).reshape(2, 2)
    rgb = image_from_message(raw(np.tile(tile, (4, 4)), f"bayer_{pattern}8"), "/cam").rgb
    np.testing.assert_array_equal(rgb[2:-2, 2:-2].reshape(-1, 3).mean(axis=0), [200, 100, 50])


def test_compressed_is_decoded_on_use_only():
    flat = np.full((32, 48, 3), (200, 100, 50), np.uint8)
    data = cv2.imencode(".jpg", flat[..., ::-1])[1].tobytes()
    image = image_from_message(SimpleNamespace(format="jpeg", data=data), "/cam")
    assert image.jpeg() == data
    assert np.abs(image.rgb.astype(int) - flat).max() <= 3
    broken = image_from_message(SimpleNamespace(format="jpeg", data=data[:40]), "/cam")
    with pytest.raises(ImageError, match="/cam"):
        broken.rgb  # noqa: B018


@pytest.mark.parametrize(
    ("msg", "word"),
    [
        (raw(RGB, "16UC1"), "16UC1"),
        (raw(RGB, "rgb8", data=b"\0" * 10), "10 bytes"),
        (raw(RGB, "rgb8", step=23), "step 23"),
        (raw(RGB, "rgb8", height=0), "8 x 0"),
        (SimpleNamespace(format="32FC1; compressedDepth png", data=b""), "depth"),
    ],
)
def test_a_message_that_is_no_picture(msg, word):
    with pytest.raises(ImageError, match=word) as error:
        image_from_message(msg, "/cam")
    assert "/cam" in str(error.value)


def info(**changes):
    k = [500.0, 0, 320, 0, 510, 240, 0, 0, 1]
    p = [400.0, 0, 300, 0, 0, 410, 200, 0, 0, 0, 1, 0]
    roi = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0)
    fields = {"width": 640, "height": 480, "k": k, "p": p, "d": [0.1, 0.01, 0, 0, 0], "distortion_model": "plumb_bob"}
    return SimpleNamespace(**{**fields, "binning_x": 0, "binning_y": 0, "roi": roi, **changes})


def test_intrinsics_of_a_raw_picture():
    K, distortion, size = camera_from_info(info())
    assert K.tolist() == [[500, 0, 320], [0, 510, 240], [0, 0, 1]] and size == (640, 480)
    assert distortion.model == "plumb_bob" and distortion.coefficients == (0.1, 0.01, 0, 0, 0)


def test_intrinsics_of_a_rectified_picture():
    K, distortion, _ = camera_from_info(info(), rectified=True)
    assert K.tolist() == [[400, 0, 300], [0, 410, 200], [0, 0, 1]] and distortion.model == "none"


@pytest.mark.parametrize(
    ("changes", "model"),
    [
        ({"d": [0.0] * 5}, "none"),
        ({"d": [], "distortion_model": ""}, "none"),
        ({"d": [0.0] * 4, "distortion_model": "equidistant"}, "equidistant"),
        ({"d": [0.1] * 4, "distortion_model": "fisheye"}, "equidistant"),
        ({"d": [0.1] * 8, "distortion_model": "rational_polynomial"}, "rational_polynomial"),
    ],
)
def test_distortion_models(changes, model):
    assert camera_from_info(info(**changes))[1].model == model


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"width": 0}, "size 0 x 480"),
        ({"k": [0.0] * 9}, "K"),
        ({"k": [np.nan] * 9}, "K"),
        ({"d": [0.1] * 3}, "coefficients"),
        ({"d": [np.inf] * 5}, "finite"),
        ({"distortion_model": "magic"}, "magic"),
        ({"binning_x": 2}, "binning"),
        ({"roi": SimpleNamespace(x_offset=8, y_offset=0, width=100, height=100)}, "region"),
    ],
)
def test_an_invalid_camera_info_says_what(changes, word):
    with pytest.raises(ValueError, match=word):
        camera_from_info(info(**changes))


def test_a_rectified_picture_needs_its_projection():
    with pytest.raises(ValueError, match="P is zero"):
        camera_from_info(info(p=[0.0] * 12), rectified=True)
