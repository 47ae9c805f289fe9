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


@pytest.mark.parametrize("big", [0, 1])
def test_of_16_bits_the_high_byte_is_shown(big):
    wide = np.random.default_rng(1).integers(0, 2**16, (6, 8), np.uint16)
    msg = raw(wide.astype(">u2" if big else "<u2").view(np.uint8), "mono16", 3, width=8, is_bigendian=big)
    np.testing.assert_array_equal(image_from_message(msg, "/cam").rgb, np.dstack([wide // 256] * 3))


def mosaic(rgb, pattern):
    """What a sensor behind a colour filter of this pattern measures of (H, W, 3)."""
    out = np.zeros(rgb.shape[:2], rgb.dtype)
    for index, color in enumerate(pattern):
        row, column = divmod(index, 2)
        out[row::2, column::2] = rgb[row::2, column::2, "rgb".index(color)]
    return out


def bilinear(measured, pattern):
    """Each colour as the mean of its measured neighbours in 3 x 3, by a sum over shifts; the inner pixels hold."""
    height, width = measured.shape
    out = np.zeros((height, width, 3))
    for index, color in enumerate("rgb"):
        known = np.zeros((height, width))
        for place, name in enumerate(pattern):
            known[place // 2 :: 2, place % 2 :: 2] = name == color
        total, count = np.zeros((height, width)), np.zeros((height, width))
        # a green pixel's own value, else the nearest ones: straight neighbours before diagonal ones
        for ring in ([(0, 0)], [(0, 1), (1, 0), (0, -1), (-1, 0)], [(1, 1), (1, -1), (-1, 1), (-1, -1)]):
            fresh = count == 0
            for dy, dx in ring:
                shifted = np.roll(known, (dy, dx), (0, 1)) * fresh
                total += shifted * np.roll(measured.astype(float), (dy, dx), (0, 1))
                count += shifted
        out[..., index] = total / count
    return out


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_mosaic_is_interpolated(pattern, bits):
    smooth = (np.mgrid[0:8, 0:10].sum(axis=0)[..., None] * [3, 5, 7] + [90, 60, 20]).astype(np.uint8)
    measured = mosaic(smooth, pattern)
    data = measured if bits == 8 else (measured.astype("<u2") * 256 + 77).view(np.uint8)
    rgb = image_from_message(raw(data, f"bayer_{pattern}{bits}", 4, width=10), "/cam").rgb
    inside = np.s_[1:-1, 1:-1]
    assert rgb.shape == (8, 10, 3)
    np.testing.assert_allclose(rgb[inside], bilinear(measured, pattern)[inside], atol=1)
    assert np.abs(rgb[inside].astype(int) - smooth[inside]).max() <= 10  # a swapped colour is 30 off and more


def yuv(rgb):
    """(H, W, 3) -> luma and chroma of ITU-R BT.601 in studio range, by the formula of the standard."""
    r, g, b = (rgb.astype(float) / 255).transpose(2, 0, 1)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return 16 + 219 * y, 128 + 224 * (b - y) / 1.772, 128 + 224 * (r - y) / 1.402


@pytest.mark.parametrize("pad", [0, 6])
@pytest.mark.parametrize("encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv"])
def test_yuv_with_two_pixels_per_colour(encoding, pad):
    pairs = np.random.default_rng(2).integers(0, 256, (6, 4, 3), np.uint8).repeat(2, axis=1)
    y, u, v = (np.rint(plane).astype(np.uint8) for plane in yuv(pairs))
    chroma = np.where(np.arange(8) % 2, v, u)
    bytes_ = np.dstack([chroma, y] if encoding in ("yuv422", "uyvy") else [y, chroma])
    rgb = image_from_message(raw(bytes_, encoding, pad), "/cam").rgb
    assert np.abs(rgb.astype(int) - pairs).max() <= 3


def test_compressed_is_decoded_on_use_only():
    flat = np.full((32, 48, 3), (200, 100, 50), np.uint8)
    data = cv2.imencode(".jpg", flat[..., ::-1])[1].tobytes()
    image = image_from_message(SimpleNamespace(format="jpeg", data=data), "/cam")
    assert image.jpeg() == data
    assert np.abs(image.rgb.astype(int) - flat).max() <= 3
    broken = image_from_message(SimpleNamespace(format="jpeg", data=data[:40]), "/cam")
    with pytest.raises(ImageError, match="/cam"):
        broken.rgb  # noqa: B018


def claiming(extension, width, height, progressive=0):
    """A small picture whose header says that it is large."""
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive] if extension == ".jpg" else []
    data = cv2.imencode(extension, RGB.repeat(9, 0).repeat(9, 1), options)[1].tobytes()
    size = [height.to_bytes(2, "big"), width.to_bytes(2, "big")]
    frame = data.find(b"\xff\xc2" if progressive else b"\xff\xc0") + 5
    if extension == ".png":
        size, frame = [width.to_bytes(4, "big"), height.to_bytes(4, "big")], 16
    size = b"".join(size)
    return SimpleNamespace(format=extension[1:], data=data[:frame] + size + data[frame + len(size) :])


@pytest.mark.parametrize(("extension", "progressive"), [(".jpg", 0), (".jpg", 1), (".png", 0)])
def test_a_small_message_cannot_claim_a_huge_picture(extension, progressive):
    with pytest.raises(ImageError, match=r"/cam: \d+ bytes claim 30000 x 20000"):
        image_from_message(claiming(extension, 30000, 20000, progressive), "/cam")
    assert image_from_message(claiming(extension, 72, 54, progressive), "/cam").rgb.shape == (54, 72, 3)


@pytest.mark.parametrize(
    ("msg", "word"),
    [
        (raw(RGB, "16UC1"), "16UC1"),
        (raw(RGB, "rgb8", data=b"\0" * 10), "10 bytes"),
        (raw(RGB, "rgb8", step=23), "step 23"),
        (raw(RGB, "rgb8", height=0), "8 x 0"),
        (raw(RGB, "rgb8", height=2**31), "10|144 bytes"),
        (raw(RGB[..., 0], "mono16"), "16 bytes"),
        (raw(RGB[..., 0], "bayer_rggb8", width=2), "3 x 3"),
        (raw(RGB[..., :2], "yuv422", width=7), "odd width"),
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
    fields = {
        "width": 640,
        "height": 480,
        "k": k,
        "p": p,
        "r": np.eye(3).ravel().tolist(),
        "d": [0.1, 0.01, 0, 0, 0],
        "distortion_model": "plumb_bob",
    }
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
        ({"k": [500.0, 0, 960, 0, 500, 540, 0, 0, 1]}, "another resolution"),
        ({"k": [500.0, 0, 320, 2, 510, 240, 0, 0, 1]}, "K is not a calibration"),
        ({"k": [500.0, 0, 320]}, "K has 3 numbers"),
        ({"d": [0.1] * 5, "distortion_model": "equidistant"}, "equidistant takes"),
        ({"d": [0.1] * 5, "distortion_model": "rational_polynomial"}, "rational_polynomial takes"),
        ({"k": [0.0] * 9}, "K"),
        ({"k": [np.nan] * 9}, "K"),
        ({"d": [0.1] * 3}, "coefficients"),
        ({"d": [np.inf] * 5}, "finite"),
        ({"distortion_model": "magic"}, "magic"),
        ({"binning_x": 2}, "binning"),
        ({"roi": SimpleNamespace(x_offset=8, y_offset=0, width=100, height=100)}, "region"),
        ({"roi": SimpleNamespace(x_offset=0, y_offset=8, width=0, height=0)}, "region"),
        ({"roi": SimpleNamespace(x_offset=0, y_offset=0, width=640, height=240)}, "region"),
    ],
)
def test_an_invalid_camera_info_says_what(changes, word):
    with pytest.raises(ValueError, match=word):
        camera_from_info(info(**changes))


def test_a_rectified_picture_needs_its_projection():
    with pytest.raises(ValueError, match="P is zero"):
        camera_from_info(info(p=[0.0] * 12), rectified=True)


QUARTER = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    ("r", "word"),
    [
        ([1.0, 0, 0, 1, 0, 0, 1, 0, 0], "R is not a rotation"),  # as a converter of nuScenes writes it
        ([-1.0, 0, 0, 0, 1, 0, 0, 0, 1], "R is not a rotation"),
        ([np.nan] * 9, "R is not a rotation"),
        (QUARTER.ravel().tolist(), "R turns the picture"),
    ],
)
def test_r_of_a_rectified_picture(r, word):
    with pytest.raises(ValueError, match=word):
        camera_from_info(info(r=r), rectified=True)
    assert camera_from_info(info(r=r))[0][0, 0] == 500  # a raw picture does not use R


def test_r_of_a_rectified_picture_may_be_unset():
    assert camera_from_info(info(r=[0.0] * 9), rectified=True)[0][0, 0] == 400


def test_the_whole_picture_as_region_of_interest():
    whole = SimpleNamespace(x_offset=0, y_offset=0, width=640, height=480)
    assert camera_from_info(info(roi=whole))[2] == (640, 480)
