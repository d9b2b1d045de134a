import numpy as np
import pytest

from bifusion_hf.data.frames import RGBDFrame
from bifusion_hf.labels import SCANNET200_CLASS_NAMES
from bifusion_hf.rooms.camera import Camera, look_at, sensor_intrinsics
from bifusion_hf.rooms.layout import PlacedObject, Room
from bifusion_hf.rooms.lights import Lighting
from bifusion_hf.rooms.meshes import box_mesh
from bifusion_hf.rooms.primitives import lathe
from bifusion_hf.rooms.render import RenderedView, RoomScene, to_linear
from bifusion_hf.rooms.sensor import expose, measure_depth


FOCAL_LENGTH = 288.935


@pytest.fixture(scope="module")
def scene():
    room = Room(4.0, 5.0, 2.6)
    half = np.array([0.4, 0.3, 0.0])
    box = box_mesh(-half, half + [0, 0, 0.7], [0.8, 0.1, 0.1])
    room.objects.append(PlacedObject(box, "cabinet", np.array([2.0, 3.5, 0.0]), 0.3))
    return RoomScene(room, np.random.default_rng(0), "train")


@pytest.fixture(scope="module")
def view(scene):
    pose = look_at(np.array([1.8, 0.8, 1.5]), np.array([2.0, 3.5, 0.5]), 0.03)
    camera = Camera(sensor_intrinsics(320, 240), pose, 320, 240)
    return camera, scene.render(camera)


def points_of(camera, view):
    frame = RGBDFrame(
        np.zeros((240, 320, 3), np.uint8), view.depth, camera.intrinsics, camera.pose, view.instance, view.semantic
    )
    return frame.unproject()


def test_depth_pose_and_labels_describe_the_same_geometry(view):
    camera, rendered = view
    points = points_of(camera, rendered)
    names = {name: index for index, name in enumerate(SCANNET200_CLASS_NAMES)}
    floor, wall, cabinet = (rendered.semantic == names[name] for name in ("floor", "wall", "cabinet"))
    assert floor.sum() > 5000 and wall.sum() > 5000 and cabinet.sum() > 1000
    np.testing.assert_allclose(points[floor][:, 2], 0, atol=1e-4)
    on_wall = np.abs(points[wall][:, None, :2] - [[0, 0], [4, 5]]).reshape(-1, 4).min(axis=1)
    assert on_wall.max() < 0.013  # the skirting board stands out a little
    local = (points[cabinet] - [2.0, 3.5, 0]) @ np.array(
        [[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1]]
    )
    assert (np.abs(local[:, 0]) < 0.4 + 1e-4).all() and (np.abs(local[:, 1]) < 0.3 + 1e-4).all()
    on_side = np.minimum(np.abs(np.abs(local) - [0.4, 0.3, 0]).min(axis=1), np.abs(local[:, 2] - 0.7))
    assert on_side.max() < 1e-3


def test_stuff_has_no_instance_and_things_have_one(view):
    _, rendered = view
    assert set(np.unique(rendered.instance[rendered.semantic < 2])) == {-1}
    cabinet = rendered.semantic == SCANNET200_CLASS_NAMES.index("cabinet")
    assert set(np.unique(rendered.instance[cabinet])) == {1}


def test_light_casts_shadows_and_colour_is_the_surfaces(view):
    _, rendered = view
    cabinet = rendered.semantic == SCANNET200_CLASS_NAMES.index("cabinet")
    red, green, _ = rendered.radiance[cabinet].sum(axis=0)
    # The lamp's own tint is mild.
    assert 0.5 < red / green / (to_linear(np.array(0.8)) / to_linear(np.array(0.1))) < 2
    floor = rendered.semantic == 1
    assert rendered.radiance[floor].std() > 0.05 * rendered.radiance[floor].mean()
    assert np.isfinite(rendered.radiance).all() and (rendered.radiance >= 0).all()


def flat_view(depth, cosine=None, albedo=0.5):
    shape = depth.shape
    cosine = np.ones(shape) if cosine is None else cosine
    radiance = np.full((*shape, 3), 0.3, np.float32)
    labels = np.zeros(shape, np.int32)
    return RenderedView(
        radiance, depth.astype(np.float32), cosine.astype(np.float32), np.full(shape, albedo), labels, labels
    )


@pytest.mark.parametrize(("distance", "step", "largest_noise"), [(1.0, 0.0029, 0.006), (4.0, 0.046, 0.08)])
def test_depth_steps_and_noise_grow_with_the_square_of_the_distance(distance, step, largest_noise):
    measured = measure_depth(flat_view(np.full((240, 320), distance)), FOCAL_LENGTH, np.random.default_rng(0))
    values = np.unique(measured[measured > 0])
    np.testing.assert_allclose(np.diff(values), step, rtol=0.2)
    noise = measured[measured > 0] - distance
    assert abs(noise.mean()) < 0.6 * step
    assert 0.2 * step < noise.std() < largest_noise
    assert (measured == 0).mean() < 0.1


def test_no_depth_at_edges_at_grazing_angles_and_out_of_range():
    depth = np.full((240, 320), 3.0)
    depth[:, 150:] = 1.5
    measured = measure_depth(flat_view(depth), FOCAL_LENGTH, np.random.default_rng(0))
    # The projector stands to the right: its shadow, f b (1/1.5 - 1/3) = 7 pixels, lies left of the nearer thing.
    missing = (measured == 0).mean(axis=0)
    assert missing[144:149].min() > 0.9
    assert missing[:130].mean() < 0.15 and missing[160:].mean() < 0.15
    cosine = np.ones((240, 320))
    cosine[:120] = 0.05
    measured = measure_depth(flat_view(np.full((240, 320), 2.0), cosine), FOCAL_LENGTH, np.random.default_rng(0))
    assert (measured[:120] == 0).mean() > 0.95 and (measured[125:] == 0).mean() < 0.1
    for distance in (0.2, 9.0):
        assert not measure_depth(
            flat_view(np.full((240, 320), distance)), FOCAL_LENGTH, np.random.default_rng(0)
        ).any()


def test_exposure_brings_any_light_into_range():
    for strength in (0.001, 1.0, 500.0):
        view = flat_view(np.full((240, 320), 2.0))
        view.radiance *= strength
        image = expose(view, np.random.default_rng(0))
        assert image.dtype == np.uint8 and 90 < image.mean() < 200 and 0.5 < image.std() < 30


def test_an_empty_room_renders():
    room = Room(3.0, 3.0, 2.5)
    scene = RoomScene(room, np.random.default_rng(1), "val")
    camera = Camera(
        sensor_intrinsics(80, 60), look_at(np.array([0.5, 0.5, 1.4]), np.array([2.5, 2.5, 1.0]), 0), 80, 60
    )
    assert (scene.render(camera).depth > 0).all()


@pytest.fixture(scope="module")
def balls():
    """A ball, seen from above, of a shine: its view."""

    def of(shine):
        room = Room(4.0, 4.0, 2.6)
        t = np.linspace(-np.pi / 2, np.pi / 2, 41)
        ball = lathe(0.3 * np.stack([np.maximum(np.cos(t), 1e-6), 1 + np.sin(t)], -1), np.full(3, 0.2), sides=48)
        room.objects.append(PlacedObject(ball, "ball", np.array([2.0, 2.0, 0.0]), 0.0, shine=shine))
        scene = RoomScene(room, np.random.default_rng(3), "train")
        scene.lighting.lamps = [(np.array([2.0, 2.0, 2.4]), 0.02, 1.0)]
        scene.lighting.lamp_color = np.ones(3)
        pose = look_at(np.array([2.0, 1.9, 2.0]), np.array([2.0, 2.0, 0.3]), 0.0)
        return scene.render(Camera(sensor_intrinsics(160, 120), pose, 160, 120))

    return of


def test_shiny_things_mirror_lamps_and_what_is_around(balls):
    matt, glossy, rough = balls((0.0, 1.0)), balls((0.05, 0.05)), balls((0.05, 0.5))
    thing = matt.instance == 1
    for view in (glossy, rough):
        assert (view.instance == matt.instance).all() and (view.depth == matt.depth).all()
        assert (view.albedo == matt.albedo).all()
        # Mirrors add light, to themselves alone.
        np.testing.assert_array_equal(view.radiance[~thing], matt.radiance[~thing])
        assert (view.radiance - matt.radiance)[thing].min() >= 0
    added = [(view.radiance - matt.radiance).mean(axis=-1) for view in (glossy, rough)]
    # The lamp is overhead: it shows at the top of the ball, small and bright in the smooth one.
    row, column = np.unravel_index(added[0].argmax(), added[0].shape)
    normal_at = thing.nonzero()[0].mean(), thing.nonzero()[1].mean()
    assert np.hypot(row - normal_at[0], column - normal_at[1]) < 0.25 * np.sqrt(thing.sum())
    assert added[0].max() > 3 * added[1].max() > 0
    assert (added[0] > 0.5 * added[0].max()).sum() < 0.1 * (added[1] > 0.5 * added[1].max()).sum() + 20
    # Towards the rim more is mirrored than straight on, away from the highlight (Fresnel).
    distance = np.hypot(*(np.mgrid[0:120, 0:160] - np.array(normal_at)[:, None, None]))
    radius = distance[thing].max()
    rim, mid = thing & (distance > 0.9 * radius), thing & (distance > 0.5 * radius) & (distance < 0.65 * radius)
    assert np.median(added[0][rim]) > 1.5 * np.median(added[0][mid])


def test_highlights_of_all_widths_hold_the_same_light(scene):
    lighting = Lighting(Room(4.0, 5.0, 2.6), np.random.default_rng(0), scene.embree)
    lighting.lamps = [(np.array([2.0, 1.5, 2.0]), 0.0, 1.0)]
    lighting.lamp_color = np.ones(3)
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(200_000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    directions = directions.astype(np.float32)
    points = np.broadcast_to(np.array([2.0, 1.5, 1.0], np.float32), directions.shape)
    for rough in (0.1, 0.3, 0.6):
        light = lighting.highlights(points, directions, np.full(len(points), rough))[:, 0]
        # As much as a white matt surface throws back: the mean of its cosine over the sphere is 1/4.
        assert light.mean() == pytest.approx(0.25, rel=0.05)
        assert light[directions[:, 2] < 0].max() == 0
