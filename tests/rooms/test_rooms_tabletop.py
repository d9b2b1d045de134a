from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

from bifusion_hf.rooms import tabletop
from bifusion_hf.rooms.catalog import open_libraries
from bifusion_hf.rooms.generate import RoomGenerator, RoomSettings
from bifusion_hf.rooms.heap import CELL, Heap, lower_envelope, resting_turns, surface_points, way_to
from bifusion_hf.rooms.inventory import Inventory
from bifusion_hf.rooms.solids import ellipsoid, mean_color, slab, tinted, tube, turn_about
from bifusion_hf.rooms.support import make_scene
from bifusion_hf.rooms.tabletop import ARRANGEMENTS, KINDS, MAX_THINGS, Tabletops
from bifusion_hf.rooms.things import FINISHES, THINGS, compartment, shine, tote


MAKERS = [make for _, _, make, _ in THINGS] + [tote, compartment]


def winding(points, triangles):
    """How often closed surfaces [F, 3, 3] go around points [P, 3] (solid angles, Van Oosterom and Strackee)."""
    a, b, c = (triangles[None, :, index].astype(float) - points[:, None] for index in range(3))
    la, lb, lc = (np.linalg.norm(side, axis=-1) for side in (a, b, c))
    volume = (a * np.cross(b, c)).sum(-1)
    corner = la * lb * lc + (a * b).sum(-1) * lc + (b * c).sum(-1) * la + (c * a).sum(-1) * lb
    return np.arctan2(volume, corner).sum(axis=1) / (2 * np.pi)


def deep_inside(points, triangles, depth):
    """Which points lie in a body, and so do the ends of a cross of this size around them."""
    inside = np.ones(len(points), bool)
    for shift in depth * np.concatenate([np.eye(3), -np.eye(3)]):
        inside[inside] = winding(points[inside] + shift, triangles) > 0.9
    return inside


@pytest.fixture(scope="module")
def tabletops():
    return Tabletops(Inventory([], "train", Path("unused")))


@pytest.fixture(scope="module")
def drawn_stages(tabletops):
    """Of every kind and arrangement, as they are drawn."""
    return {seed: tabletops.stage(np.random.default_rng(seed)) for seed in (1, 3, 4, 5, 8, 10, 13, 18)}


@pytest.fixture(scope="module")
def close_stages(tabletops):
    """Of many things, most of them small and side by side."""
    return {100 + seed: tabletops.stage(np.random.default_rng(seed), ARRANGEMENTS[1]) for seed in range(4)}


@pytest.fixture(scope="module")
def stages(drawn_stages, close_stages):
    return drawn_stages | close_stages


@pytest.mark.parametrize("index", range(len(MAKERS)))
def test_things_stand_on_the_ground_and_face_outwards(index):
    for seed in range(3):
        mesh = MAKERS[index](np.random.default_rng(seed), "train")
        corners = mesh.triangles.astype(float)
        assert np.isfinite(corners).all() and np.isfinite(mesh.uv).all()
        assert mesh.bounds[0, 2] == pytest.approx(0, abs=1e-4)
        assert 0.01 < mesh.size.max() < 1.2
        volume = (corners[:, 0] * np.cross(corners[:, 1], corners[:, 2])).sum() / 6
        assert volume > 0
        assert mesh.material.max() < len(mesh.colors) and mesh.texture_index.max() < len(mesh.textures)


def test_a_winding_number_tells_inside_from_outside():
    ball = ellipsoid((0, 0, 0), (0.1, 0.1, 0.1), np.ones(3)).triangles
    numbers = winding(np.array([[0, 0, 0], [0.05, 0.02, -0.04], [0.2, 0, 0]]), ball)
    np.testing.assert_allclose(numbers, [1, 1, 0], atol=1e-3)
    inside = deep_inside(np.array([[0, 0, 0], [0, 0, 0.097], [0, 0, 0.2]]), ball, 0.01)
    assert inside.tolist() == [True, False, False]


def check_nothing_is_inside(stages):
    """Compares corners and middles of triangles of things with all that is there; how many were near something."""
    rng = np.random.default_rng(0)
    compared = 0
    for seed, stage in stages.items():
        for item in stage.things:
            corners = item.triangles().reshape(-1, 3).astype(float)
            corners = np.concatenate(
                [corners[rng.integers(len(corners), size=150)], item.triangles().mean(axis=1)[::5]]
            )
            for other in stage.room.objects:
                triangles = other.triangles()
                low, high = triangles.reshape(-1, 3).min(axis=0), triangles.reshape(-1, 3).max(axis=0)
                near = corners[((corners > low) & (corners < high)).all(axis=1)]
                if other is item or not len(near) or other.class_name == "clothes":
                    continue
                compared += len(near)
                wrong = deep_inside(near, triangles, 0.75 * CELL)
                assert not wrong.any(), (seed, item.class_name, other.class_name, near[wrong][0])
    return compared


def test_nothing_is_inside_anything_else(stages):
    assert check_nothing_is_inside(stages) > 3000


def test_models_of_a_catalogue_are_not_inside_anything_either(clutter_library, tmp_path, monkeypatch):
    """Arches, dishes and hooks, as they are and as small ones, and stools of a hand's breadth."""
    monkeypatch.setattr(tabletop, "_MADE_SHARE", 0.0)
    inventory = Inventory(open_libraries(clutter_library, ["BlendSwap-CC-0"]), "train", tmp_path)
    assert len(inventory.all_models()) == 4, inventory.all_models()
    tabletops = Tabletops(inventory)

    stages = {
        seed: tabletops.stage(np.random.default_rng(seed), ARRANGEMENTS[1 + 2 * (seed % 2)])
        for seed in (0, 2, 4, 5, 8, 9)
    }
    things = [item for stage in stages.values() for item in stage.things]
    assert len(things) > 50 and {item.class_name for item in things} == {"object"}
    assert check_nothing_is_inside(stages) > 1000


def test_everything_touches_what_is_below(stages):
    gaps = []
    for stage in stages.values():
        below = list(stage.room.objects[: len(stage.room.objects) - len(stage.things)])
        for item in stage.things:
            points = surface_points(item.mesh, np.random.default_rng(0)) + item.position + [0, 0, 1e-4]
            low, high = points.min(axis=0) - 0.02, points.max(axis=0) + 0.02
            others = np.concatenate([other.triangles() for other in below] + [_ground(stage.room)])
            near = (others.min(axis=1) < high) & (others.max(axis=1) > low)
            scene = make_scene(others[near.all(axis=1)])
            distances = []
            for direction in np.concatenate([np.eye(3), -np.eye(3)]).astype(np.float32):
                rays = np.ascontiguousarray(np.broadcast_to(direction, points.shape))
                hit = scene.run(points.astype(np.float32), rays, output=True)
                distances.append(hit["tfar"][hit["primID"] >= 0].min(initial=np.inf))
            gaps.append(min(distances))
            below.append(item)
    assert len(gaps) > 80
    # Two cells, askew, on steep slopes; most things stand on something flat.
    assert np.quantile(gaps, 0.7) < 0.001 and max(gaps) < 0.014


def _ground(room):
    corner = np.array([room.width, room.depth, 0], np.float32)
    x, y = corner * [1, 0, 0], corner * [0, 1, 0]
    return np.array([[0 * x, x, corner], [0 * x, corner, y]], np.float32)


@pytest.fixture(scope="module")
def empty_stages(tabletops):
    return [tabletops.stage(np.random.default_rng(seed), ARRANGEMENTS[0]) for seed in range(6)]


def test_few_things_lie_well_apart_on_what_is_empty(empty_stages):
    counts = [len(stage.things) for stage in empty_stages]
    assert min(counts) >= 1 and max(counts) <= 3 and sum(counts) >= 9
    for stage in empty_stages:
        points = [item.mesh.triangles.reshape(-1, 3) + item.position for item in stage.things]
        for index, first in enumerate(points):
            for other in points[:index]:
                assert cKDTree(first[:, :2]).query(other[:, :2])[0].min() >= 0.06


def test_no_two_faces_lie_in_one_plane(empty_stages):
    """Rays could not tell them apart: the lower side of a thing stays a little above the table it stands on."""
    compared = 0
    for stage in empty_stages:
        tables = [item for item in stage.room.objects if item.class_name == "table"]
        top = tables[0].position[2] + tables[0].mesh.size[2] if tables else 0.0
        for item in stage.things:
            if abs(item.position[2] - top) < 0.002:
                assert 1e-4 < item.position[2] - top < 5e-4
                compared += 1
    assert compared >= 4


def test_small_things_touch_or_nearly_so(close_stages):
    sizes, touching, near = [], 0, 0
    for stage in close_stages.values():
        sizes += [item.mesh.size.max() for item in stage.things]
        clouds = [surface_points(item.mesh, np.random.default_rng(0), 0.002) + item.position for item in stage.things]
        for index, (item, first) in enumerate(zip(stage.things, clouds, strict=True)):
            for other, second in zip(stage.things[:index], clouds[:index], strict=True):
                # Side by side, not one on the other.
                if abs(item.position[2] - other.position[2]) < 0.002:
                    second = second[((second > first.min(axis=0) - 0.03) & (second < first.max(axis=0) + 0.03)).all(1)]
                    distance = cKDTree(first).query(second, distance_upper_bound=0.03)[0].min(initial=1.0)
                    touching += distance < 0.0015
                    near += 0.004 < distance < 0.03
    assert len(sizes) > 25 and np.mean(np.array(sizes) < 0.13) > 0.6
    assert touching > 5 and near > 5, (touching, near)


def test_the_way_to_a_neighbour_is_exact_from_either_side():
    box, ball = slab(0.1, 0.1, 0.1, np.ones(3)), ellipsoid((0.2, 0, 0.05), (0.05, 0.05, 0.05), np.ones(3))
    rng = np.random.default_rng(0)
    on_box, on_ball = surface_points(box, rng), surface_points(ball, rng)
    x = np.array([1.0, 0, 0])
    # Corner against face, either way round: 0.15 - 0.05.
    for way in (
        way_to(on_box, box.triangles, on_ball, ball.triangles, x, 0.5),
        way_to(on_ball, ball.triangles, on_box, box.triangles, -x, 0.5),
    ):
        assert way == pytest.approx(0.1, abs=5e-4)
    # A number that float32, in which rays are cast, makes smaller.
    assert way_to(on_box, box.triangles, on_ball, ball.triangles, x, 0.03) == 0.03
    assert way_to(on_box, box.triangles, on_ball, ball.triangles, -x, 0.5) == 0.5


def test_colours_are_drawn_towards_another():
    red = slab(0.1, 0.1, 0.1, np.array([1.0, 0, 0]))
    printed = slab(0.1, 0.1, 0.1, np.ones(3), texture=np.full((4, 4, 3), 100, np.uint8))
    np.testing.assert_allclose(mean_color(red), [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(mean_color(printed), 100 / 255, atol=1e-6)
    tone = np.array([0.2, 0.4, 0.6])
    np.testing.assert_allclose(mean_color(tinted(red, tone, 1.0)), tone, atol=1e-6)
    np.testing.assert_allclose(mean_color(tinted(printed, tone, 0.5)), (100 / 255 + tone) / 2, atol=0.01)
    np.testing.assert_allclose(mean_color(printed), 100 / 255, atol=1e-6)


def test_finishes_shine_as_often_as_they_say():
    rng = np.random.default_rng(0)
    for finish, (share, strength, rough) in FINISHES.items():
        drawn = np.array([shine(rng, finish) for _ in range(400)])
        shiny = drawn[:, 0] > 0
        assert shiny.mean() == pytest.approx(share, abs=0.08)
        if shiny.any():
            assert strength[0] <= drawn[shiny, 0].min() and drawn[shiny, 0].max() <= strength[1]
            assert rough[0] <= drawn[shiny, 1].min() and drawn[shiny, 1].max() <= rough[1]
    assert {finish for *_, finish in THINGS} == set(FINISHES)


def test_what_is_far_from_a_heap_changes_nothing():
    near, far = slab(0.2, 0.2, 0.1, np.ones(3)), slab(0.2, 0.2, 0.3, np.ones(3), (3.0, 0, 0))
    low, high = np.array([-0.3, -0.3]), np.array([0.3, 0.3])
    alone = Heap(near.triangles, low, high, 1.0)
    both = Heap(np.concatenate([far.triangles, near.triangles]), low, high, 1.0)
    np.testing.assert_array_equal(alone.heights, both.heights)
    assert alone.below(np.zeros(2)) == pytest.approx(0.1)
    # Bounds reach over the rectangle, triangles do not.
    around = [slab(0.1, 0.1, 0.1, np.ones(3), (x, 2.0 * x, 0)).triangles for x in (-1.0, 1.0)]
    assert (Heap(np.concatenate(around), low, high, 1.0).heights < -100).all()


def test_scenes_are_of_all_kinds_and_counts(drawn_stages, stages):
    counts = [len(stage.things) for stage in drawn_stages.values()]
    assert min(counts) <= 3 and max(counts) >= 12 and max(counts) <= MAX_THINGS
    assert len({item.class_name for stage in stages.values() for item in stage.things}) > 12
    assert sum(KINDS.values()) == pytest.approx(1)
    bases = {item.class_name for stage in drawn_stages.values() for item in stage.room.objects}
    assert {"table", "shelf", "container"} <= bases


def test_a_cylinder_rests_on_its_side_and_on_its_ends_but_not_on_its_rim():
    can = tube(np.array([[0, 0, -0.1], [0, 0, 0.1]]), 0.03, np.ones(3), sides=16)
    turns, breadth = resting_turns(can.triangles.reshape(-1, 3).astype(float))
    axes = turns[:, :, 2]
    upright, lying = np.abs(axes[:, 2]) > 0.999, np.abs(axes[:, 2]) < 0.01
    assert (upright | lying).all() and upright.sum() == 2 and lying.sum() == 16
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.broadcast_to(np.eye(3), turns.shape), atol=1e-9)
    assert (breadth > 0).all()


def test_a_box_sinks_to_the_table_and_slides_to_its_neighbour():
    table = slab(1.0, 1.0, 0.7, np.ones(3)).triangles
    heap = Heap(table, np.array([-0.5, -0.5]), np.array([0.5, 0.5]), 2.0)
    heap.add(slab(0.2, 0.2, 0.1, np.ones(3), (0.2, 0.0, 0.7)).triangles)
    points = surface_points(slab(0.1, 0.1, 0.1, np.ones(3)), np.random.default_rng(0)) - [0, 0, 0.05]
    heights = heap.drop(points, np.array([[-0.3, 0.0], [0.2, 0.0], [0.06, 0.0], [5.0, 0.0]]))
    np.testing.assert_allclose(heights[:3], [0.75, 0.85, 0.85], atol=1e-6)
    assert heights[3] < -100
    np.testing.assert_allclose(heap.drop(lower_envelope(points), np.array([[-0.3, 0.0]])), 0.75, atol=1e-6)
    place = heap.slide(points, np.array([-0.3, 0.0]), np.array([0.2, 0.0]), 1.0)
    # Faces at 0.1 - 0.05 and 0.1: nearer than two cells, and apart.
    assert 0.0 <= 0.1 - (place[0] + 0.05) < 0.008 + 1e-9 and place[1] == 0
    assert heap.carries(points, np.array([-0.3, 0.0]), 0.75)
    assert not heap.carries(points, np.array([0.06, 0.0]), 0.85)  # its middle is beyond the edge
    assert not heap.carries(points, np.array([-0.54, 0.0]), 0.75)


def test_settling_lowers_a_thing_and_never_through_the_ground():
    heap = Heap(slab(1.0, 1.0, 0.1, np.ones(3)).triangles, np.array([-0.5, -0.5]), np.array([0.5, 0.5]), 2.0)
    points = surface_points(slab(0.2, 0.1, 0.02, np.ones(3)), np.random.default_rng(0)) - [0, 0, 0.01]
    start = turn_about(0, 1.0)
    before = heap.drop(points @ start.T, np.zeros((1, 2)))[0]
    turn, place, height = heap.settle(points, start, np.zeros(2), np.random.default_rng(1), 60)
    assert height - 0.11 < 0.3 * (before - 0.11)
    assert (points @ turn.T)[:, 2].min() + height == pytest.approx(0.1, abs=1e-6)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-9)


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    settings = RoomSettings((), (), cache, width=160, height=120, views=3, world="tabletop", sensor="dense", seed=5)
    return RoomGenerator(settings)


@pytest.fixture(scope="module")
def frames(generator):
    return [frame for number in (3, 6, 7) for frame in generator.room_frames("train", number)]


def test_frames_show_things_and_labels_agree_with_depth(frames):
    assert len(frames) == 9
    focal = [frame.intrinsics[0, 0] / 160 for frame in frames]
    assert min(focal) >= 0.5 and max(focal) < 1.9 and len(set(np.round(focal, 6))) > 4
    for frame in frames:
        ids, counts = np.unique(frame.instance[frame.instance > 0], return_counts=True)
        assert len(ids) and counts.max() > 50
        assert (frame.depth > 0).mean() > 0.9
        # An instance is one class, and stuff has no instance.
        for index in ids:
            assert len(np.unique(frame.semantic[frame.instance == index])) == 1
        assert not np.isin(frame.semantic[frame.instance > 0], [0, 1]).any()
        # Floors lie at z = 0 in the world, by depth and pose.
        pixels = np.stack([*np.meshgrid(np.arange(160), np.arange(120)), np.ones((120, 160))], -1)
        rays = pixels @ np.linalg.inv(frame.intrinsics).T
        world = (rays * frame.depth[..., None]) @ frame.camera_to_world[:3, :3].T + frame.camera_to_world[:3, 3]
        floor = frame.semantic == 1
        np.testing.assert_allclose(world[floor][:, 2], 0, atol=0.002)
        assert (world[frame.instance > 0][:, 2] > -0.002).all()


def test_worlds_and_frames_depend_on_seed_split_and_number_alone(generator, frames, tmp_path):
    again = RoomGenerator(generator.settings).room_frames("train", 6)
    for first, second in zip(frames[3:6], again, strict=True):
        assert first.frame_id == second.frame_id and first.frame_id.startswith("tabletop-5-train-00006")
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.depth, second.depth)
        np.testing.assert_array_equal(first.instance, second.instance)
    other = generator.room_frames("val", 3)
    assert not np.array_equal(other[0].image, frames[0].image)
    mixed = RoomGenerator(RoomSettings((), (), str(tmp_path), width=80, height=60, views=1, world="mixed", seed=2))
    names = [mixed.room_frames("train", number)[0].frame_id.split("-")[0] for number in (4, 5)]
    assert names == ["rooms", "tabletop"]


def test_unknown_worlds_and_sensors_are_named(tmp_path):
    with pytest.raises(ValueError, match="world is 'garden'"):
        RoomSettings((), (), str(tmp_path), world="garden")
    with pytest.raises(ValueError, match="sensor is 'sonar'"):
        RoomSettings((), (), str(tmp_path), sensor="sonar")
