import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from superpoint_metrics import oracle_ious, undersegmentation_error

from bifusion_hf.data.frames import frame_from_row, load_frames
from bifusion_hf.superpoints import geometry
from bifusion_hf.superpoints import segmentation as superpoints
from bifusion_hf.superpoints.colour import gaussian_taps, rgb_to_lab
from bifusion_hf.superpoints.geometry import MIN_EDGE_LENGTH, depth_edges, estimate_normals, surface_links
from bifusion_hf.superpoints.segmentation import segment_superpoints


def camera(width: int, height: int) -> np.ndarray:
    return np.array([[0.9 * width, 0, (width - 1) / 2], [0, 0.9 * width, (height - 1) / 2], [0, 0, 1]])


def plane_depth(normal, offset, width=320, height=240) -> np.ndarray:
    """Depth of the plane normal . x = offset (camera axes); 0 where it is behind the camera or beyond 10 m."""
    intrinsics = camera(width, height)
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    rays = np.stack([(u - intrinsics[0, 2]) / intrinsics[0, 0], (v - intrinsics[1, 2]) / intrinsics[1, 1]], -1)
    along = rays @ np.asarray(normal, float)[:2] + normal[2]
    depth = np.where(along * offset > 0, offset / np.where(along == 0, 1, along), 0)
    return np.where(depth < 10, depth, 0).astype(np.float32)


def room(width=320, height=240, noise=0.0, seed=0):
    """Floor, back wall and a grey box that floats before the wall; everything of one colour, with holes."""
    floor = plane_depth((0, 1, 0), 1.4, width, height)
    wall = plane_depth((0, 0, 1), 4.0, width, height)
    depth = np.where((floor > 0) & (floor < wall), floor, wall)
    part = np.where((floor > 0) & (floor < wall), 0, 1)
    box = (slice(height // 4, height // 2), slice(width // 4, width // 2))
    depth[box], part[box] = 2.0, 2
    depth[: height // 10, : width // 5] = 0
    rng = np.random.default_rng(seed)
    depth = np.where(depth > 0, depth + rng.normal(0, noise, depth.shape) * depth**2, 0).astype(np.float32)
    image = np.full((height, width, 3), 128, np.uint8)
    return image, depth, camera(width, height), part


def check_map(superpoints, depth, all_connected=True):
    """What every superpoint map of `segment_superpoints` keeps to; returns the sizes."""
    min_size = depth.size // 4800
    assert superpoints.dtype == np.int32 and superpoints.shape == depth.shape
    assert ((superpoints >= 0) == (depth > 0)).all()
    sizes = np.bincount(superpoints[superpoints >= 0])
    assert (sizes > 0).all()
    first = np.unique(superpoints[superpoints >= 0], return_index=True)[1]
    assert (np.diff(first) > 0).all()
    for index, box in enumerate(ndimage.find_objects(superpoints + 1)):
        parts = np.sort(np.bincount(ndimage.label(superpoints[box] == index)[0].ravel())[1:])
        assert len(parts) == 1 or (not all_connected and parts[-2] < min_size)
    right, down = depth_edges(depth)
    assert not (right & (superpoints[:, 1:] == superpoints[:, :-1])).any()
    assert not (down & (superpoints[1:] == superpoints[:-1])).any()
    if all_connected:
        assert sizes.min() >= min_size
    return sizes


@pytest.mark.parametrize("size", [(320, 240), (640, 480)])
@pytest.mark.parametrize("noise", [0.0, 0.0014])
def test_parts_that_differ_in_geometry_alone_are_separated(size, noise):
    image, depth, intrinsics, part = room(*size, noise=noise)
    superpoints = segment_superpoints(image, depth, intrinsics)
    sizes = check_map(superpoints, depth)
    assert 50 < len(sizes) <= 300
    valid = superpoints >= 0
    parts = np.bincount(superpoints[valid] * 3 + part[valid], minlength=3 * len(sizes)).reshape(-1, 3)
    # The box ends in strong depth edges all round: exact. Floor and wall meet in a crease.
    assert (np.minimum(parts[:, 2], parts[:, :2].sum(axis=1)) == 0).all()
    assert (parts.sum(axis=1) - parts.max(axis=1)).sum() < 0.01 * valid.sum()


def test_colours_on_one_plane_are_separated():
    depth = plane_depth((0, 0, 1), 2.0)
    image = np.full((240, 320, 3), 100, np.uint8)
    image[60:180, 80:200] = (180, 60, 60)
    superpoints = segment_superpoints(image, depth, camera(320, 240), num_segments=40)
    check_map(superpoints, depth)
    inside = np.zeros(depth.shape, bool)
    inside[60:180, 80:200] = True
    share = np.bincount(superpoints[inside], minlength=superpoints.max() + 1) / np.bincount(superpoints.ravel())
    assert np.minimum(share, 1 - share).max() < 0.05


def test_number_of_segments_follows_the_request_and_not_the_resolution():
    counts = {}
    for size in ((320, 240), (640, 480)):
        image, depth, intrinsics, _ = room(*size)
        rng = np.random.default_rng(0)
        image = np.kron(rng.integers(0, 255, (12, 16, 3)), np.ones((size[1] // 12, size[0] // 16, 1))).astype(np.uint8)
        for number in (100, 400):
            counts[size, number] = segment_superpoints(image, depth, intrinsics, num_segments=number).max() + 1
    for number in (100, 400):
        assert 0.6 * number < counts[(320, 240), number] <= number
        assert 0.75 < counts[(320, 240), number] / counts[(640, 480), number] < 1.33


def test_same_input_gives_the_same_map_and_input_is_left_alone():
    image, depth, intrinsics, _ = room(noise=0.0014)
    before = image.copy(), depth.copy(), intrinsics.copy()
    first = segment_superpoints(image, depth, intrinsics)
    np.testing.assert_array_equal(first, segment_superpoints(image, depth, intrinsics))
    for array, copy in zip((image, depth, intrinsics), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_image_of_another_size_is_resized_to_the_depth_image():
    image, depth, intrinsics, _ = room()
    image[100:160, 40:120] = (20, 160, 40)
    large = np.asarray(Image.fromarray(image).resize((640, 480), Image.Resampling.NEAREST))
    superpoints = segment_superpoints(large, depth, intrinsics)
    check_map(superpoints, depth)
    sizes = np.bincount(superpoints[superpoints >= 0])
    inside = np.bincount(superpoints[100:160, 40:120].ravel(), minlength=len(sizes))
    assert np.minimum(inside, sizes - inside).sum() < 0.1 * 60 * 80


def test_scattered_depth_and_no_depth():
    rng = np.random.default_rng(1)
    image = rng.integers(0, 255, (60, 80, 3)).astype(np.uint8)
    depth = np.where(rng.random((60, 80)) < 0.4, rng.uniform(0.5, 5, (60, 80)), 0).astype(np.float32)
    check_map(segment_superpoints(image, depth, camera(80, 60)), depth, all_connected=False)
    assert (segment_superpoints(image, 0 * depth, camera(80, 60)) == -1).all()


def test_measurement_that_is_none_is_treated_as_none():
    image, depth, intrinsics, _ = room()
    odd = depth.copy()
    odd[odd == 0] = np.nan
    odd[0, :10] = -1
    odd[1, :10] = np.inf
    np.testing.assert_array_equal(
        segment_superpoints(image, odd, intrinsics), segment_superpoints(image, depth, intrinsics)
    )


def test_real_frames(real_frames):
    intrinsics = np.array([[520.9, 0, 325.1], [0, 521.0, 249.7], [0, 0, 1]])
    for name in ("desk_1", "desk_2"):
        image = np.asarray(Image.open(real_frames / f"{name}_color.png"))
        depth = np.asarray(Image.open(real_frames / f"{name}_depth.png")) / np.float32(5000)
        sizes = check_map(segment_superpoints(image, depth, intrinsics), depth, all_connected=False)
        assert 150 < len(sizes) < 450
        # Islands between holes and depth edges may be small, but hold next to nothing.
        assert sizes[sizes < 64].sum() < 0.005 * sizes.sum()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((240, 320), np.uint8)}, r"image has shape \(240, 320\)"),
        ({"image": np.zeros((240, 320, 3), np.float32)}, "float32; expected uint8"),
        ({"depth": np.ones((240, 320), np.uint16)}, "depth has shape .* uint16; expected float"),
        ({"intrinsics": np.eye(4)}, r"intrinsics has shape \(4, 4\); expected \[3, 3\]"),
        ({"num_segments": 0}, "num_segments is 0"),
    ],
)
def test_malformed_input(change, message):
    image, depth, intrinsics, _ = room()
    with pytest.raises(ValueError, match=message):
        segment_superpoints(**{"image": image, "depth": depth, "intrinsics": intrinsics, **change})


def test_a_slanted_plane_has_no_depth_edges_and_a_step_has():
    floor = plane_depth((0, 1, 0), 1.4)
    assert not any(edge.any() for edge in depth_edges(floor))
    stepped = np.where(np.arange(320) < 160, floor, 1.2 * floor)
    right, down = depth_edges(stepped)
    rows = stepped[:, 0] > 0
    assert right[rows, 159].all() and right.sum() == rows.sum() and not down.any()


def test_depth_quantised_as_by_a_kinect_has_no_edges():
    floor = plane_depth((0, 1, 0.2), 1.6)
    disparity = np.round(np.divide(1 / 0.00285, floor, where=floor > 0, out=np.zeros_like(floor)))
    quantised = np.divide(1 / 0.00285, disparity, where=disparity > 0, out=np.zeros_like(floor)).astype(np.float32)
    assert (quantised[floor > 0] != floor[floor > 0]).mean() > 0.9
    assert not any(edge.any() for edge in depth_edges(quantised))


def test_a_step_spread_over_two_pixels_is_still_an_edge():
    depth = np.full((10, 8), 1.0, np.float32)
    depth[:, 4], depth[:, 5:] = 1.5, 2.0
    right, _ = depth_edges(depth)
    assert right[:, 3:5].all() and right.sum() == 20


def test_a_pixel_that_sticks_out_is_no_edge_but_a_thin_rod_is():
    depth = np.full((40, 40), 2.0, np.float32)
    depth[10, 10] = 1.5
    depth[20:30, 20] = 1.5
    right, down = depth_edges(depth)
    assert not right[:15].any() and not down[:15].any()
    assert right[20:30, 19:21].all() and down[[19, 29], 20].all()


def long_chains(right, down, valid):
    """The edges that are left of those given: cracks between pixels whose chain, with the corners, has 12 or more."""
    rows, columns = valid.shape
    cracks = {(2 * y, 2 * x + 1) for y, x in np.argwhere(right | (valid[:, 1:] != valid[:, :-1])).tolist()}
    cracks |= {(2 * y + 1, 2 * x) for y, x in np.argwhere(down | (valid[1:] != valid[:-1])).tolist()}

    def beside(place):
        for y, x in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            yield place[0] + y, place[1] + x

    corners = {at for crack in cracks for at in beside(crack) if at[0] % 2 and at[1] % 2}
    corners = {at for at in corners if 0 < at[0] < 2 * rows - 1 and 0 < at[1] < 2 * columns - 1}
    left, kept = cracks | corners, set()
    while left:
        chain = todo = {left.pop()}
        while todo:
            todo = {at for place in todo for at in beside(place)} & left
            left, chain = left - todo, chain | todo
        kept |= chain if len(chain) >= 2 * MIN_EDGE_LENGTH else set()
    kept = np.array([[(y, x) in kept for x in range(2 * columns - 1)] for y in range(2 * rows - 1)])
    return right & kept[::2, 1::2], down & kept[1::2, ::2]


@pytest.mark.parametrize("seed", range(8))
def test_edges_are_those_of_long_chains_with_the_borders_of_holes(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    # Only the step from the least to the largest is an edge, so that edges end anywhere.
    depth = rng.choice(np.float32([1.96, 2, 2, 2, 2.04, 0]), (40, 36))
    with monkeypatch.context() as patch:
        patch.setattr(geometry, "MIN_EDGE_LENGTH", 0)
        right, down = depth_edges(depth)
    expected = long_chains(right, down, depth > 0)
    for found, edge in zip(depth_edges(depth), expected, strict=True):
        np.testing.assert_array_equal(found, edge)
    assert (right.sum() + down.sum()) > sum(edge.sum() for edge in expected) > 0


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize(("steps", "is_edge"), [(MIN_EDGE_LENGTH - 1, False), (MIN_EDGE_LENGTH, True)])
def test_an_edge_that_ends_inside_is_as_long_as_its_steps_to_whichever_side_it_runs(steps, is_edge, turns):
    depth = np.full((20, 16), 2.0, np.float32)
    # Only the step from one half to the other is large enough.
    depth[:steps, :8], depth[:steps, 8:] = 1.96, 2.04
    right, down = (np.rot90(edge, -turns) for edge in depth_edges(np.rot90(depth, turns))[:: 1 - turns % 2 * 2])
    expected = np.zeros_like(right)
    expected[:steps, 7] = is_edge
    np.testing.assert_array_equal(right, expected)
    assert not down.any()


@pytest.mark.parametrize("normal", [(0, 0, -1), (0, -1, 0), (0.3, -0.5, -0.8)])
def test_normals_of_a_plane(normal):
    normal = np.asarray(normal) / np.linalg.norm(normal)
    depth = plane_depth(normal, -1.5)
    found = estimate_normals(depth, camera(320, 240), surface_links(depth), 5)
    np.testing.assert_allclose(found[depth > 0], np.broadcast_to(normal, found[depth > 0].shape), atol=2e-3)
    assert (found[depth == 0] == 0).all()


def test_normals_do_not_bend_at_a_depth_edge():
    depth = np.where(np.arange(320) < 160, 1.0, 3.0).astype(np.float32) * np.ones((240, 1), np.float32)
    found = estimate_normals(depth, camera(320, 240), surface_links(depth), 5)
    np.testing.assert_allclose(found, np.broadcast_to((0, 0, -1), found.shape), atol=1e-5)


def test_lab_is_the_standard_one():
    from skimage.color import rgb2lab

    # All greys and dark colours are among them, for which other formulae hold.
    rng = np.random.default_rng(0)
    greys = np.arange(256)[:, None].repeat(3, axis=1)
    colours = np.concatenate([greys, rng.integers(0, 256, (64, 3)), rng.integers(0, 40, (64, 3))]).astype(np.uint8)
    np.testing.assert_allclose(rgb_to_lab(colours), rgb2lab(colours), atol=1e-2)


def test_a_gaussian_is_cut_off_at_four_sigma_and_keeps_means():
    taps = gaussian_taps(0.7)
    assert taps.dtype == np.float32 and taps.shape == (7,) and taps.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(taps / taps[3], np.exp(-0.5 * (np.arange(-3, 4) / 0.7) ** 2), rtol=1e-5)


def test_a_wall_seen_through_a_lattice_is_not_left_in_crumbs():
    depth = np.full((240, 320), 3.0, np.float32)
    depth[40:200:4, 100:220] = 2.0
    depth[40:200, 100:220:4] = 2.0
    image = np.full((240, 320, 3), 128, np.uint8)
    superpoints = segment_superpoints(image, depth, camera(320, 240))
    sizes = check_map(superpoints, depth, all_connected=False)
    # 1,200 openings of 9 pixels.
    assert sizes.min() >= 16 and len(sizes) < 350
    for value in (2.0, 3.0):
        assert (depth[np.isin(superpoints, np.unique(superpoints[depth == value]))] == value).all()


def test_superpoints_let_a_model_find_the_objects_of_the_sample_frames():
    frames = [frame_from_row(row) for row in load_frames("sample", "val").select(range(0, 32, 4))]
    recalls, errors = [], []
    for frame in frames:
        superpoints = segment_superpoints(frame.image, frame.depth, frame.intrinsics)
        check_map(superpoints, frame.depth, all_connected=False)
        things = np.where(frame.semantic > 1, frame.instance, -1)
        ious, sizes = oracle_ious(superpoints, things)
        # 100 of 20,000 points.
        recalls.extend(ious[sizes >= 0.005 * np.count_nonzero(frame.depth)] > 0.5)
        errors.append(undersegmentation_error(superpoints, frame.instance))
    assert len(recalls) > 40 and np.mean(recalls) > 0.95
    assert np.mean(errors) < 0.03


def striped_wall(distance=2.0, period=0.03, width=640, height=480):
    """A wall that faces the camera, with upright stripes left of the middle and plain right of it."""
    intrinsics = camera(width, height)
    x = (np.arange(width) - intrinsics[0, 2]) * distance / intrinsics[0, 0]
    stripes = np.where(np.sin(2 * np.pi * x / period) > 0, 60, 160)
    row = np.where(x < 0, stripes, 230).astype(np.uint8)
    image = np.broadcast_to(row[None, :, None], (height, width, 3)).copy()
    rng = np.random.default_rng(0)
    image += rng.integers(0, 6, image.shape, np.uint8)
    # Noise of a structured-light sensor, alike in neighbours.
    noise = ndimage.gaussian_filter(rng.normal(size=(height, width)), 1.5)
    depth = distance + 0.002 * distance**2 * noise / noise.std()
    return image, depth.astype(np.float32), intrinsics


@pytest.mark.parametrize("distance", [1.0, 2.0])
def test_texture_below_the_blur_makes_no_superpoints_but_an_edge_of_colour_stays(distance):
    image, depth, intrinsics = striped_wall(distance)
    left = np.s_[:, : 320 - 30]
    # Columns in which two stripes meet.
    meet = np.abs(np.diff(image[:, :, 0].mean(axis=0)[:290])) > 50

    def on_stripes(superpoints) -> float:
        """Part of the boundaries between columns that lie where two stripes meet, per part of the columns."""
        boundary = superpoints[left][:, 1:] != superpoints[left][:, :-1]
        return boundary[:, meet].sum() / boundary.sum() / meet.mean()

    assert on_stripes(segment_superpoints(image, depth, intrinsics)) > 3
    blurred = segment_superpoints(image, depth, intrinsics, color_blur=0.02)
    assert on_stripes(blurred) < 1.3
    # The mean of the stripes and the plain wall differ: their edge stays where it is.
    mixed = np.intersect1d(blurred[:, : 320 - 4], blurred[:, 320 + 4 :])
    assert np.isin(blurred, mixed).mean() < 0.05


def test_blur_of_colour_follows_the_distance():
    lab = np.random.default_rng(0).normal(0, 30, (240, 320, 3)).astype(np.float32)
    depth = np.where(np.arange(320) < 160, 1.0, 3.0)[None].repeat(240, 0)
    found = np.moveaxis(superpoints._blurred(np.moveaxis(lab, -1, 0), depth, 0.5, 12.0), 0, -1)
    for sigma, columns in ((12.0, np.s_[40:100, 40:100]), (4.0, np.s_[40:200, 200:280])):
        expected = ndimage.gaussian_filter(lab, (sigma, sigma, 0))[columns]
        # A mixture of two blurs instead of the blur between them.
        assert 0.7 < found[columns].std() / expected.std() < 1.6
        assert np.corrcoef(found[columns].ravel(), expected.ravel())[0, 1] > 0.9


def test_blur_must_not_be_negative():
    image, depth, intrinsics = striped_wall()
    with pytest.raises(ValueError, match="color_blur is -0.1"):
        segment_superpoints(image, depth, intrinsics, color_blur=-0.1)
