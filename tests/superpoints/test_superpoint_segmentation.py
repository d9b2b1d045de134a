"""What the over-segmentation makes of its settings."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from bifusion_hf.data.frames import frame_from_row, load_frames
from bifusion_hf.superpoints import segmentation
from bifusion_hf.superpoints.backends import numpy_backend
from bifusion_hf.superpoints.segmentation import segment_superpoints


STORED = Path(__file__).parents[1] / "fixtures" / "superpoints_of_a_sample_frame.npz"
CALLS = {
    "default": {},
    "few": {"num_segments": 40, "color_blur": 0.02, "min_size": 30},
    "many": {"num_segments": 700},
}


@pytest.fixture(scope="module")
def frame():
    return frame_from_row(load_frames("sample", "val")[5])


def shared(one, two):
    """Share of the pixels of the segments of one that lie in the segment of two that has most of them."""
    table = np.zeros((one.max() + 1, two.max() + 1), int)
    np.add.at(table, (one[one >= 0], two[one >= 0]), 1)
    return table.max(axis=1).sum() / table.sum()


@pytest.mark.parametrize("form", ["chosen", "numpy"])
@pytest.mark.parametrize("name", CALLS)
def test_segments_are_those_that_checkpoints_were_trained_on(frame, name, form, monkeypatch):
    """Another scale of colour, normals, position or size gives other segments, and every network other inputs."""
    if form == "numpy":
        monkeypatch.setattr(segmentation, "choose_backend", lambda: numpy_backend)
    found = segment_superpoints(frame.image, frame.depth, frame.intrinsics, **CALLS[name])
    expected = np.load(STORED)[name]
    np.testing.assert_array_equal(found < 0, expected < 0)
    # Rounding may decide for a few pixels.
    assert min(shared(found, expected), shared(expected, found)) > 0.998


def crumbs(height, width, seed=0):
    """Parts of all sizes, of a few depths far from each other."""
    rng = np.random.default_rng(seed)
    depth = rng.choice([1.0, 1.7, 3.0], (height, width), p=[0.6, 0.2, 0.2]).astype(np.float32)
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    return image, depth, np.array([[2.5 * width, 0, width / 2], [0, 2.0 * width, height / 3], [0, 0, 1]])


@pytest.mark.parametrize(("size", "least"), [((120, 160), 4), ((119, 161), 3), ((70, 70), 1), ((30, 40), 1)])
def test_the_smallest_segment_is_a_4800th_of_the_image_and_a_pixel_at_least(size, least):
    inputs = crumbs(*size)
    found = segment_superpoints(*inputs, num_segments=10)
    np.testing.assert_array_equal(found, segment_superpoints(*inputs, num_segments=10, min_size=least))
    assert (found != segment_superpoints(*inputs, num_segments=10, min_size=least + 1)).any()


def test_at_most_the_number_asked_for_is_left_and_one_is_a_number():
    image, _, intrinsics = crumbs(30, 40)
    depth = np.full((30, 40), 2.0, np.float32)
    for number in (1, 2, 17):
        found = segment_superpoints(image, depth, intrinsics, num_segments=number, min_size=1)
        assert found.max() + 1 == number


@pytest.mark.parametrize("distance", [1.0, 3.0])
@pytest.mark.parametrize(("gap", "joins"), [(2, True), (3, False), (5, False)])
def test_a_crumb_joins_what_is_within_three_hundredths_of_its_depth(gap, joins, distance):
    """Here each pixel is a 75th of the depth from the next, so two are within and three are not."""
    depth = np.zeros((30, 40), np.float32)
    depth[:, :20] = distance
    depth[15, 19 + gap] = distance
    intrinsics = np.array([[75.0, 0, 20], [0, 75.0, 15], [0, 0, 1]])
    image = np.full((30, 40, 3), 90, np.uint8)
    found = segment_superpoints(image, depth, intrinsics, num_segments=1, min_size=2)
    assert found.max() == (0 if joins else 1)
    # What is as large as that goes its own way.
    assert segment_superpoints(image, depth, intrinsics, num_segments=1, min_size=1).max() == 1


@pytest.mark.parametrize(
    ("size", "sigma", "window"),
    [((60, 80), 0.5, 5), ((240, 320), 0.5, 5), ((480, 640), 1.0, 7), ((960, 1280), 2.0, 13), ((240, 1280), 1.0, 7)],
)
def test_blur_and_window_are_of_pixels_at_320x240(size, sigma, window, monkeypatch):
    class Enough(Exception):
        pass

    def stop(*_, **settings):
        raise Enough(settings)

    stages = SimpleNamespace(surface_links=lambda depth: None, pixel_features=stop)
    monkeypatch.setattr(segmentation, "choose_backend", lambda: stages)
    with pytest.raises(Enough) as stopped:
        segment_superpoints(np.zeros((*size, 3), np.uint8), np.ones(size, np.float32), np.eye(3))
    found = stopped.value.args[0]
    assert (found["sigma"], found["window"]) == (pytest.approx(sigma), window)


def test_pictures_and_lists_are_taken_as_arrays_are():
    image, depth, intrinsics = crumbs(30, 40)
    expected = segment_superpoints(image, depth, intrinsics, num_segments=20)
    found = segment_superpoints(Image.fromarray(image), depth.tolist(), intrinsics.tolist(), num_segments=20)
    np.testing.assert_array_equal(found, expected)


def test_the_order_of_the_depth_image_in_memory_changes_nothing(monkeypatch):
    image, depth, intrinsics = crumbs(40, 60)
    expected = segment_superpoints(image, depth, intrinsics, num_segments=20)
    turned = np.asfortranarray(depth.astype(np.float64))
    np.testing.assert_array_equal(segment_superpoints(image, turned, intrinsics, num_segments=20), expected)
    monkeypatch.setattr(segmentation, "choose_backend", lambda: numpy_backend)
    np.testing.assert_array_equal(segment_superpoints(image, turned, intrinsics, num_segments=20), expected)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    # Of three sigmas a mixture of the blurs of two and four; each has lost the variance that the colours have.
    [(2, 2**2 - 1), (4, 4**2 - 1), (3, (1 - np.log2(1.5)) * (2**2 - 1) + np.log2(1.5) * (4**2 - 1))],
)
@pytest.mark.parametrize("distance", [1.0, 2.5])
def test_blur_reaches_the_wanted_width(wanted, expected, distance):
    """Seen on a single bright pixel: the variance of what it becomes, along rows and columns."""
    colours = np.zeros((3, 81, 91), np.float32)
    colours[:, 40, 45] = 100, 200, 500
    depth = np.full((81, 91), distance)
    # A hole, and a corner so far away that its colours stay as they are.
    depth[:3, :3], depth[-3:, -3:] = 0, 100
    colours[:, :3, :3], colours[:, -3:, -3:] = 0.0625, 0.125
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = segmentation._blurred(colours, depth, 1.5, 1.5 * wanted * distance)
    assert (found[:, :3, :3] == 0.0625).all() and (found[:, -3:, -3:] == 0.125).all()
    near = found[:, 14:67, 19:72]
    near = near / near.sum(axis=(1, 2), keepdims=True)
    place = np.arange(-26, 27)
    np.testing.assert_allclose((near.sum(axis=1) * place**2).sum(axis=1), expected * 1.5**2, rtol=0.02)
    np.testing.assert_allclose((near.sum(axis=2) * place**2).sum(axis=1), expected * 1.5**2, rtol=0.02)
    np.testing.assert_allclose(near[0], near[2], atol=1e-6)
