import numpy as np
import pytest
from PIL import Image
from scannet_files import COLOR_INTRINSICS, COLOR_SIZE, DEPTH_INTRINSICS, DEPTH_SIZE, pose, view

from bifusion_hf.data.frames import scale_intrinsics
from bifusion_hf.data.scannet.registration import register_color, register_labels, resize_nearest


def ramp(size, intrinsics):
    """An image whose first two channels tell the ray of the pixel's centre."""
    u, v = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    x = (u - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (v - intrinsics[1, 2]) / intrinsics[1, 1]
    return np.stack([127 + 200 * x, 127 + 200 * y, np.zeros_like(x)], axis=-1)


@pytest.mark.parametrize("scale", [(1, 1), (0.5, 0.5), (2, 2)])
def test_a_pixel_sees_the_same_ray_after_registration(scale):
    size = (round(DEPTH_SIZE[0] * scale[0]), round(DEPTH_SIZE[1] * scale[1]))
    intrinsics = scale_intrinsics(DEPTH_INTRINSICS, *scale)
    image = np.rint(ramp(COLOR_SIZE, COLOR_INTRINSICS)).clip(0, 255).astype(np.uint8)
    found = register_color(image, COLOR_INTRINSICS, intrinsics, size)
    expected = ramp(size, intrinsics)
    inner = (slice(2, -2), slice(2, -2))
    # One grey level is half a pixel of the colour camera.
    assert np.abs(found[inner].astype(float) - expected[inner]).max() < 1.2


def test_a_plain_resize_would_not_register():
    """With the numbers of a real scan: the aspect of its colour image is another, which shifts border pixels."""
    color = np.array([[1170.187988, 0, 647.75], [0, 1170.187988, 483.75], [0, 0, 1]])
    depth = np.array([[577.870605, 0, 319.5], [0, 577.870605, 239.5], [0, 0, 1]])
    place = np.array([320, 10, 1])
    centre = color @ np.linalg.inv(depth) @ place
    u, v = np.meshgrid(np.arange(1296), np.arange(968))
    blob = 255 * np.exp(-((u - centre[0]) ** 2 + (v - centre[1]) ** 2) / 32)
    image = np.repeat(blob.astype(np.uint8)[..., None], 3, axis=2)
    found = register_color(image, color, depth, (640, 480))
    resized = np.asarray(Image.fromarray(image).resize((640, 480), Image.Resampling.BILINEAR))
    offsets = [
        np.array(np.average(np.indices((480, 640)).reshape(2, -1), axis=1, weights=values[..., 0].ravel())) - [10, 320]
        for values in (found, resized)
    ]
    assert np.abs(offsets[0]).max() < 0.05
    assert np.abs(offsets[1]).max() > 0.7


def test_unknown_intrinsics_mean_a_resize():
    image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    found = register_color(image, None, DEPTH_INTRINSICS, DEPTH_SIZE)
    expected = np.asarray(Image.fromarray(image).resize(DEPTH_SIZE, Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(register_color(expected, None, DEPTH_INTRINSICS, DEPTH_SIZE), expected)
    # Also of another aspect, as a resize on export may have made it.
    expected = np.asarray(Image.fromarray(image).resize((32, 48), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(register_color(image, None, DEPTH_INTRINSICS, (32, 48)), expected)
    labels = np.arange(60 * 50).reshape(60, 50)
    expected = labels.repeat(2, axis=0).repeat(3, axis=1)
    np.testing.assert_array_equal(register_labels(labels, None, DEPTH_INTRINSICS, (150, 120)), expected)


@pytest.mark.parametrize("shift", [0, 4])
def test_label_images_keep_their_values_and_places(shift):
    matrix = pose(0.3)
    intrinsics = COLOR_INTRINSICS - [[0, 0, shift], [0] * 3, [0] * 3]
    labels = view(matrix, intrinsics, COLOR_SIZE)[1] + 1
    found = register_labels(labels, intrinsics, DEPTH_INTRINSICS, DEPTH_SIZE)
    expected = view(matrix, DEPTH_INTRINSICS, DEPTH_SIZE)[1] + 1
    assert set(np.unique(found)) <= {0, 1, 2, 3, 4}
    assert (found == expected)[found > 0].mean() > 0.97
    # By another way: the colour pixel whose centre is nearest to the projection of the depth pixel's ray.
    u, v = np.meshgrid(np.arange(DEPTH_SIZE[0]), np.arange(DEPTH_SIZE[1]))
    rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(DEPTH_INTRINSICS).T
    places = np.rint((rays @ intrinsics.T)[..., :2]).astype(int)
    inside = ((places >= 0) & (places < COLOR_SIZE)).all(axis=-1)
    assert inside.all() == (shift == 0)
    np.testing.assert_array_equal(found[inside], labels[places[inside][:, 1], places[inside][:, 0]])
    assert (found[~inside] == 0).all()


# Shifts (x, y) of a grid of the same pixels in an image of 30x20, and how much larger it is: up to the tenth of a side
# by which the two may differ, on one side alone or on both.
SECTIONS = [
    ((0, 0), (0, 0)), ((3, 2), (0, 0)), ((-3, -2), (0, 0)), ((1, -2), (0, 0)), ((-3, 2), (3, 0)), ((-1, -1), (2, 2)),
    ((0, 2), (0, -2)), ((3, 1), (-4, -2)), ((-2, 0), (5, 2)),
]  # fmt: skip


def section(shift, larger):
    """Intrinsics of the image and of the grid, and the grid's size."""
    target = np.array([[25.0, 0, 14.5], [0, 26.0, 9.5], [0, 0, 1]])
    return target + [[0, 0, shift[0]], [0, 0, shift[1]], [0] * 3], target, (30 + larger[0], 20 + larger[1])


@pytest.mark.parametrize(("shift", "larger"), SECTIONS)
def test_beyond_the_image_its_border_goes_on_and_labels_end(shift, larger):
    image = np.random.default_rng(0).integers(1, 256, (20, 30, 3), dtype=np.uint8)
    own, target, size = section(shift, larger)
    rows, columns = np.arange(size[1]) + shift[1], np.arange(size[0]) + shift[0]
    nearest = np.ix_(rows.clip(0, 19), columns.clip(0, 29))
    found = register_color(image, own, target, size)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, image[nearest])
    inside = ((rows >= 0) & (rows < 20))[:, None] & ((columns >= 0) & (columns < 30))
    labels = image[..., 0].astype(np.int32)
    np.testing.assert_array_equal(register_labels(labels, own, target, size), np.where(inside, labels[nearest], 0))


@pytest.mark.parametrize("shift", [(0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5), (2.5, 0), (0, -1.5)])
def test_between_two_pixels_colour_is_their_mean(shift):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    own, target, size = section(shift, (0, 0))
    grids = []
    for half in (-0.5, 0.5):
        x, y = (int(value + half * (value % 1 > 0)) for value in shift)
        grids.append(image[np.ix_((np.arange(20) + y).clip(0, 19), (np.arange(30) + x).clip(0, 29))].astype(float))
    assert np.abs(register_color(image, own, target, size) - np.mean(grids, axis=0)).max() <= 1


@pytest.mark.parametrize(
    ("shift", "larger"),
    [
        ((3.1, 0), (0, 0)), ((-3.1, 0), (0, 0)), ((0, 2.1), (0, 0)), ((0, -2.1), (0, 0)),
        # One side alone: left, right, top, bottom; within the image and beyond it.
        ((-4, 0), (4, 0)), ((4, 0), (-4, 0)), ((0, 0), (4, 0)), ((0, 0), (-4, 0)),
        ((0, -3), (0, 3)), ((0, 3), (0, -3)), ((0, 0), (0, 3)), ((0, 0), (0, -3)),
    ],
)  # fmt: skip
def test_a_grid_of_another_section_is_refused(shift, larger):
    own, target, size = section(shift, larger)
    axis = int(bool(shift[1] or larger[1]))
    low = shift[axis]
    high = low + (30, 20)[axis] + larger[axis]
    message = rf"colour image of 30x20 .*on axis {axis} .*pixels {low:.1f}\.\.{high:.1f}; .*0\.\.{(30, 20)[axis]}\."
    with pytest.raises(ValueError, match=message):
        register_color(np.zeros((20, 30, 3), dtype=np.uint8), own, target, size)
    with pytest.raises(ValueError, match=message):
        register_labels(np.zeros((20, 30), dtype=np.int32), own, target, size)


def test_nearest_resize():
    image = np.arange(15).reshape(3, 5)
    np.testing.assert_array_equal(resize_nearest(image, (2, 7)), image[[0, 0, 1, 1, 1, 2, 2]][:, [1, 3]])
    image = np.arange(48).reshape(6, 8)
    np.testing.assert_array_equal(resize_nearest(image, (8, 6)), image)
    np.testing.assert_array_equal(resize_nearest(image, (4, 3)), image[1::2, 1::2])
    np.testing.assert_array_equal(resize_nearest(image, (16, 12)), image.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("intrinsics", [2 * COLOR_INTRINSICS, COLOR_INTRINSICS + [[0, 0, 40], [0] * 3, [0] * 3]])
def test_intrinsics_of_another_image_are_refused(intrinsics):
    image = np.zeros((*COLOR_SIZE[::-1], 3), np.uint8)
    with pytest.raises(ValueError, match="130x97 shows another section"):
        register_color(image, intrinsics, DEPTH_INTRINSICS, DEPTH_SIZE)
    with pytest.raises(ValueError, match="another section"):
        register_labels(image[..., 0], np.full((3, 3), np.nan), DEPTH_INTRINSICS, DEPTH_SIZE)
