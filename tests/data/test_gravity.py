import numpy as np
import pytest
from frame_factory import make_frame

from bifusion_hf.data.frames import CAMERA_TO_POINTS
from bifusion_hf.data.gravity import (
    _SPREAD,
    _STEEPEST,
    CAMERA,
    CAMERA_UP,
    ESTIMATED,
    MIN_CONFIDENCE,
    POSE,
    _averaged,
    _directions,
    _likelihood,
    _on_surfaces,
    estimate_up,
    up_rotation,
    upright_axes,
)


HEIGHT, WIDTH = 120, 160
INTRINSICS = np.array([[140.0, 0, 79.5], [0, 140.0, 59.5], [0, 0, 1]])
_V, _U = np.mgrid[:HEIGHT, :WIDTH]
RAYS = np.stack([(_U - 79.5) / 140, (_V - 59.5) / 140, np.ones((HEIGHT, WIDTH))], axis=-1)


def camera(pitch, roll):
    """Rotation world (x right, y ahead, z up) to camera, looking down by `pitch` and rolled, in degrees."""
    p, r = np.radians([pitch, roll])
    level = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    look = np.array([[1.0, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    turn = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return turn @ look @ level


def render(rotation, planes, boxes=(), noise=0.002, seed=0):
    """Depth of the nearest of planes (n, d: n x = d in world axes from the camera) and boxes (low, high)."""
    rays = RAYS @ rotation
    depth = np.full((HEIGHT, WIDTH), np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        for normal, distance in planes:
            t = distance / (rays @ np.asarray(normal, float))
            depth = np.where((t > 0) & (t < depth), t, depth)
        for low, high in boxes:
            near, far = (np.asarray(side)[None, None] / rays for side in (low, high))
            first, last = np.minimum(near, far).max(axis=2), np.maximum(near, far).min(axis=2)
            hit = (first < last) & (first > 0) & (first < depth)
            depth = np.where(hit, first, depth)
    depth = np.where(depth < 6, depth, 0)
    rng = np.random.default_rng(seed)
    return (depth + noise * depth**2 * rng.standard_normal(depth.shape)).clip(0).astype(np.float32)


def room(turn=0.5):
    """Floor 1.4 m below, ceiling 1.2 m above, four walls turned about the vertical, and a cupboard."""
    c, s = np.cos(turn), np.sin(turn)
    walls = [((c, s, 0), 2.0), ((-c, -s, 0), 1.5), ((-s, c, 0), 3.0), ((s, -c, 0), 1.5)]
    return {"planes": [((0, 0, -1), 1.4), ((0, 0, 1), 1.2), *walls], "boxes": [((0.2, 1.5, -1.4), (0.9, 1.9, -0.3))]}


def table():
    """A table 0.5 m below the camera with three boxes on it, nothing else."""
    boxes = [((-0.25, 0.5, -0.5), (-0.1, 0.6, -0.3)), ((0.0, 0.55, -0.5), (0.1, 0.7, -0.42))]
    return {"planes": [((0, 0, -1), 0.5)], "boxes": [*boxes, ((0.15, 0.45, -0.5), (0.22, 0.52, -0.35))]}


def error(depth, rotation):
    """Degrees between the estimate and the truth, and the confidence."""
    estimate = estimate_up(depth, INTRINSICS)
    assert np.linalg.norm(estimate.direction) == pytest.approx(1)
    return np.degrees(np.arccos(np.clip(estimate.direction @ rotation[:, 2], -1, 1))), estimate.confidence


@pytest.mark.parametrize("roll", [-15, 0, 8])
@pytest.mark.parametrize("pitch", [0, 20, 40])
def test_up_in_a_room(pitch, roll):
    rotation = camera(pitch, roll)
    degrees, confidence = error(render(rotation, **room()), rotation)
    assert degrees < 1.5 and confidence > MIN_CONFIDENCE


@pytest.mark.parametrize("roll", [-12, 0, 12])
@pytest.mark.parametrize("pitch", [25, 45, 65])
def test_up_over_a_table(pitch, roll):
    rotation = camera(pitch, roll)
    degrees, confidence = error(render(rotation, **table()), rotation)
    assert degrees < 1.5 and confidence > MIN_CONFIDENCE


def test_random_rooms_with_holes_and_noise():
    rng = np.random.default_rng(0)
    degrees = []
    for seed in range(20):
        rotation = camera(rng.uniform(-5, 45), rng.normal(0, 6))
        depth = render(rotation, **room(rng.uniform(0, np.pi)), noise=0.004, seed=seed)
        depth[rng.random(depth.shape) < 0.3] = 0
        found, confidence = error(depth, rotation)
        if confidence >= MIN_CONFIDENCE:
            degrees.append(found)
    assert len(degrees) >= 15
    assert np.median(degrees) < 2 and np.quantile(degrees, 0.9) < 6


def test_what_has_no_up_gives_no_confidence():
    level = camera(0, 0)
    wall = render(level, [((0, 1, 0), 1.5)])
    slanted_wall = render(level, [((0.5, 0.866, 0), 1.5)])
    # (x, y, z - 1.5)^2 = 0.7^2 along the rays.
    half, square = 1.5, (RAYS**2).sum(axis=2)
    root = half**2 - square * (half**2 - 0.49)
    ball = np.where(root > 0, (half - np.sqrt(root.clip(0))) / square, 0).astype(np.float32)
    clutter = np.random.default_rng(0).uniform(1, 3, (HEIGHT, WIDTH)).astype(np.float32)
    for name, depth in {"wall": wall, "slanted wall": slanted_wall, "ball": ball, "clutter": clutter}.items():
        assert estimate_up(depth, INTRINSICS).confidence < MIN_CONFIDENCE, name


FLOOR, BACK = ((0, 0, -1), 1.4), ((0, 1, 0), 2.0)
# Pitch, roll, what is seen, columns without depth; the estimate by the numbers that the method was chosen with.
STORED = {
    "looking up at a ceiling": (
        (-25, 12, {"planes": [((0, 0, 1), 1.2), BACK], "noise": 0}, 0),
        ([0.087651, -0.413771, -0.906152], 0.99519),
    ),
    "straight down on a box": (
        (75, 20, {"planes": [((0, 0, -1), 0.6)], "boxes": [((-0.3, 0.1, -0.6), (0.1, 0.3, -0.45))], "noise": 0}, 0),
        ([0.088796, -0.244453, -0.965587], 0.918626),
    ),
    "rolled": (
        (10, 35, {"planes": room(0.8)["planes"], "noise": 0}, 0),
        ([-0.642871, -0.297162, -0.705983], 0.554715),
    ),
    "a wall and a floor": (
        (20, -10, {"planes": [((0, 1, 0), 1.5), ((0, 0, -1), 1.0)], "noise": 0}, 0),
        ([-0.162515, -0.925442, -0.342266], 0.980727),
    ),
    "a third of a picture": (
        (30, 10, {"planes": [((0.3, 0.9, 0), 2.0), FLOOR], "noise": 0}, 110),
        ([0.148777, -0.853337, -0.499682], 0.980671),
    ),
    "a slope": (
        (5, -20, {"planes": [((0, 0.8, 0.6), 2.0)], "noise": 0}, 0),
        ([0.135776, -0.777892, -0.613555], 0.632016),
    ),
    "a room with much noise": (
        (32, 9, {**room(0.9), "noise": 0.012, "seed": 3}, 0),
        ([0.123694, -0.833672, -0.53823], 0.680892),
    ),
}


@pytest.mark.parametrize("name", STORED)
def test_the_estimate_is_that_of_the_numbers_that_were_chosen(name):
    (pitch, roll, seen, columns), (direction, confidence) = STORED[name]
    depth = render(camera(pitch, roll), **seen)
    depth[:, :columns] = 0
    found = estimate_up(depth, INTRINSICS)
    np.testing.assert_allclose(found.direction, direction, atol=1e-5)
    assert found.confidence == pytest.approx(confidence, abs=1e-4) and type(found.confidence) is float


def test_a_hundred_normals_are_enough():
    depth = np.zeros((HEIGHT, WIDTH), np.float32)
    depth[50:60, 70:80] = 1.0
    found = estimate_up(depth, INTRINSICS)
    assert found.confidence > 0 and (found.direction != CAMERA_UP).any()
    depth[50, 70] = 0
    found = estimate_up(depth, INTRINSICS)
    assert found.confidence == 0 and (found.direction == CAMERA_UP).all()
    # Blocks are no larger than a strip is wide.
    assert estimate_up(np.ones((1, 600), np.float32), INTRINSICS).confidence == 0


def test_too_few_normals_give_the_camera():
    depth = np.zeros((HEIGHT, WIDTH), np.float32)
    depth[::12, ::12] = 1.0
    estimate = estimate_up(depth, INTRINSICS)
    assert estimate.confidence == 0
    np.testing.assert_array_equal(estimate.direction, CAMERA_UP)


def test_the_size_of_the_image_does_not_matter():
    """Blocks of pixels are averaged, and the intrinsics follow."""
    rotation = camera(35, 5)
    small = render(rotation, **table(), noise=0.0)
    large = small.repeat(4, axis=0).repeat(4, axis=1)
    intrinsics = INTRINSICS * np.array([[4], [4], [1]])
    intrinsics[:2, 2] = (INTRINSICS[:2, 2] + 0.5) * 4 - 0.5
    up = estimate_up(large, intrinsics).direction
    assert np.degrees(np.arccos(up @ rotation[:, 2])) < 1


@pytest.mark.parametrize(
    "up",
    [
        *[(0, -1, 0), (0.1, -0.8, -0.6), (0, -0.1, -0.995), (0, -0.1, 0.995), (-0.5, -0.8, 0.3)],
        *[(0, 0, -1), (0, 0, 1), (0.19, -0.2, -0.94), (-0.19, -0.1, 0.94), (0.5, -0.3, -0.8)],
    ],
)
def test_the_axes_are_upright_and_look_ahead(up):
    up = np.asarray(up) / np.linalg.norm(up)
    rotation = up_rotation(up)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    np.testing.assert_allclose(rotation @ up, [0, 0, 1], atol=1e-12)
    # What lies to the right in the image is to the right of where the camera looks.
    if abs(up[0]) < 0.2:
        assert (rotation @ [1, 0, 0])[0] > 0.9
    assert (rotation @ [0, 0, 1])[1] > -1e-9
    # The camera looks straight ahead; where that is up or down, its image's upper edge is ahead or behind.
    ahead = rotation @ ([0, 0, 1] if abs(up[2]) < 0.9 else [0, np.sign(up[2]), 0])
    assert ahead[0] == pytest.approx(0, abs=1e-12) and ahead[1] > 0


def test_the_cameras_own_up_gives_the_convention():
    np.testing.assert_array_equal(up_rotation(CAMERA_UP), CAMERA_TO_POINTS)


def test_the_convention_is_the_poses_the_estimates_or_the_cameras():
    rotation = camera(40, 5)
    depth = render(rotation, **table())
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    labels = {"instance": None, "semantic": None}
    bare = make_frame(image=image, depth=depth, intrinsics=INTRINSICS, with_pose=False, **labels)
    axes, turn, source = upright_axes(bare, estimate=True)
    assert source == ESTIMATED
    np.testing.assert_allclose(axes @ rotation[:, 2], [0, 0, 1], atol=0.02)
    np.testing.assert_allclose(turn @ CAMERA_TO_POINTS, axes, atol=1e-12)
    axes, turn, source = upright_axes(bare, estimate=False)
    assert source == CAMERA
    np.testing.assert_array_equal(axes, CAMERA_TO_POINTS)
    np.testing.assert_array_equal(turn, np.eye(3))
    posed = make_frame()
    axes, turn, source = upright_axes(posed, estimate=True)
    assert source == POSE
    np.testing.assert_array_equal(axes, posed.camera_rotation)
    np.testing.assert_array_equal(turn, np.eye(3))
    wall = make_frame(image=image, depth=np.full_like(depth, 2.0), intrinsics=INTRINSICS, with_pose=False, **labels)
    assert upright_axes(wall, estimate=True)[2] == CAMERA


def test_large_pictures_are_averaged_on_their_planes():
    """Blocks of 4 x 4 pixels of a tilted plane are points of it again, and the noise of the pixels is averaged out."""
    intrinsics = np.array([[560.0, 0, 319.5], [0, 540.0, 239.5], [0, 0, 1]])
    v, u = np.mgrid[:480, :640]
    normal = np.array([0.3, 0.6, 0.74])
    rays = np.stack([(u - 319.5) / 560, (v - 239.5) / 540, np.ones(u.shape)], axis=-1)
    depth = (2 / (rays @ normal)).astype(np.float32)
    reduced, camera = _averaged(depth, intrinsics, 4)
    v, u = np.mgrid[:120, :160]
    x, y = (u - camera[0, 2]) / camera[0, 0], (v - camera[1, 2]) / camera[1, 1]
    np.testing.assert_allclose(np.stack([x, y, np.ones(u.shape)], axis=-1) @ normal * reduced, 2, rtol=1e-5)
    # What was not measured does not count.
    holes = depth.copy()
    holes[::2] = holes[:, 1::2] = holes[:8, :8] = 0
    found, _ = _averaged(holes, intrinsics, 4)
    assert (found[:2, :2] == 0).all() and (found[2:] > 0).all()
    np.testing.assert_allclose(found[2:], reduced[2:], rtol=5e-3)
    # A picture of 180 columns is the smallest that is averaged.
    for width, step in ((179, 1), (180, 2)):
        part = depth[100:200, 100 : 100 + width]
        assert _averaged(part, intrinsics, step)[0].shape == (100 // step, width // step)
        one, other = estimate_up(part, intrinsics), estimate_up(*_averaged(part, intrinsics, step))
        np.testing.assert_array_equal(one.direction, other.direction)
    noisy = depth * (1 + 0.01 * np.random.default_rng(0).standard_normal(depth.shape, dtype=np.float32))
    found, again = estimate_up(noisy, intrinsics), estimate_up(*_averaged(noisy, intrinsics, 5))
    np.testing.assert_array_equal(found.direction, again.direction)
    assert found.confidence == again.confidence


def test_a_block_has_the_mean_of_the_inverse_depth_that_it_has():
    depth = np.array([[0.5, 0, 1, 2, 9], [0, 0, 0, 4, 9], [0, 0, 0.2, 0.2, 9], [0, 0, 0.3, 0.3, 9]], np.float32)
    found, camera = _averaged(depth, [[100, 0, 2], [0, 80, 1.5], [0, 0, 1]], 2)
    np.testing.assert_allclose(found, [[0.5, 12 / 7], [0, 0.24]], rtol=1e-6)
    np.testing.assert_allclose(camera, [[50, 0, 0.75], [0, 40, 0.5], [0, 0, 1]])
    assert found.dtype == np.float32


def test_a_pixel_on_a_surface_has_a_neighbour_along_each_axis():
    rng = np.random.default_rng(0)
    right, down = rng.random((7, 8)) < 0.4, rng.random((6, 9)) < 0.4
    for (row, column), found in np.ndenumerate(_on_surfaces(right, down)):
        beside = [right[row, at] for at in (column - 1, column) if 0 <= at < 8]
        above = [down[at, column] for at in (row - 1, row) if 0 <= at < 6]
        assert found == (any(beside) and any(above))


def test_of_views_that_are_tilted_alike_the_less_rolled_is_the_likelier():
    """Whichever side they lean to; how far they are tilted makes no difference within the usual."""
    directions, prior = _directions.__wrapped__()
    x, y, z = directions.T
    pitch = np.arctan2(-z, -y)
    order = np.argsort(np.abs(x[(pitch >= 0) & (pitch <= _STEEPEST)]))
    lean, known = x[(pitch >= 0) & (pitch <= _STEEPEST)][order], prior[(pitch >= 0) & (pitch <= _STEEPEST)][order]
    assert (np.diff(known) < 1e-6).all() and (lean[-20:] < 0).any() and (lean[-20:] > 0).any()
    # One in twenty cameras is held in any way: the tail is that of the wider spread.
    assert known[0] == pytest.approx(0, abs=1e-3) and known[-1] == pytest.approx(np.log(0.05) - 2, abs=0.1)


def test_directions_are_spread_evenly():
    """None is nearer to another than the golden spiral leaves them, 3.09 over the root of their number."""
    directions = _directions.__wrapped__()[0].astype(np.float64)
    cosines = directions @ directions.T - 2 * np.eye(len(directions))
    assert np.sqrt(2 - 2 * cosines.max()) == pytest.approx(3.09 / np.sqrt(1500), rel=0.01)


def test_a_surface_a_spread_away_from_where_it_should_be_counts_by_the_root_of_e_less():
    table = _likelihood.__wrapped__()
    by_cosine = {cosine: np.exp(np.interp(cosine, np.linspace(-1, 1, 1025), table)) - 1 for cosine in (1, -1, 0)}
    for away, cosine in ((np.cos(_SPREAD), 1), (-np.cos(_SPREAD), -1), (np.sin(_SPREAD), 0)):
        found = np.exp(np.interp(away, np.linspace(-1, 1, 1025), table)) - 1
        assert found / by_cosine[cosine] == pytest.approx(np.exp(-0.5), rel=0.05)
