from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bifusion_hf.rooms import camera as camera_module
from bifusion_hf.rooms.camera import (
    Camera,
    look_at,
    random_pose,
    sensor_intrinsics,
)
from bifusion_hf.rooms.furnish import Furnisher
from bifusion_hf.rooms.inventory import Inventory
from bifusion_hf.rooms.layout import (
    Box,
    PlacedObject,
    Room,
    place_against_wall,
    place_beside,
    place_on_top,
    rotation,
)
from bifusion_hf.rooms.meshes import box_mesh
from bifusion_hf.rooms.support import make_scene


def block(width, depth, height):
    half = np.array([width / 2, depth / 2, 0])
    return box_mesh(-half, half + [0, 0, height], [0.5, 0.5, 0.5])


@pytest.fixture(scope="module")
def rooms():
    furnisher = Furnisher(Inventory([], "train", Path("unused")))
    return [furnisher.furnish(np.random.default_rng(seed)) for seed in range(12)]


def test_boxes_overlap_as_sampled_points_say():
    rng = np.random.default_rng(0)
    agreed = Counter()
    for _ in range(300):
        first, second = (
            Box(rng.uniform(0, 2, 2), rng.uniform(0.1, 0.8, 2), rng.uniform(-4, 4), (0.0, 1.0)) for _ in range(2)
        )
        grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 41)] * 2), -1).reshape(-1, 2)
        points = first.center + (grid * first.half) @ rotation(first.yaw)[:2, :2].T
        inside = (np.abs((points - second.center) @ rotation(second.yaw)[:2, :2]) < second.half).all(axis=1).any()
        # A corner of the other may poke in between the samples.
        agreed[bool(inside), first.overlaps(second)] += 1
    assert agreed[True, False] == 0
    assert agreed[False, True] <= 6 and agreed[True, True] > 50 and agreed[False, False] > 50


def test_boxes_above_each_other_do_not_overlap():
    low = Box(np.zeros(2), np.ones(2), 0.0, (0.0, 1.0))
    assert not low.overlaps(Box(np.zeros(2), np.ones(2), 0.5, (1.0, 2.0)))
    assert low.overlaps(Box(np.zeros(2), np.ones(2), 0.5, (0.9, 2.0)))


@pytest.mark.parametrize("seed", range(8))
def test_against_a_wall_means_the_back_touches_it(seed):
    room = Room(4.0, 3.0, 2.5)
    item = place_against_wall(room, np.random.default_rng(seed), block(1.0, 0.4, 0.8), "cabinet", gap=0.02)
    back = item.position[:2] + rotation(item.yaw)[:2, 1] * (0.2 + 0.02)
    distance = np.abs([back[0], back[1], 4 - back[0], 3 - back[1]]).min()
    assert distance == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("side", range(4))
def test_a_chair_beside_a_table_faces_it(side):
    room = Room(6.0, 6.0, 2.5)
    table = PlacedObject(block(1.6, 0.8, 0.75), "table", np.array([3.0, 3.0, 0.0]), 0.4)
    room.objects.append(table)
    turn = (0.0, -np.pi / 2, np.pi, np.pi / 2)[side]
    chair = place_beside(
        room, np.random.default_rng(side), block(0.45, 0.5, 0.9), "chair", table, side, (0.0, 0.1), turn, spread=0.0
    )
    toward = table.position[:2] - chair.position[:2]
    front = -rotation(chair.yaw)[:2, 1]
    assert front @ toward / np.linalg.norm(toward) > 0.85
    assert not chair.box.overlaps(table.box)


def test_what_lies_on_top_rests_on_the_surface():
    room = Room(5.0, 5.0, 2.5)
    table = PlacedObject(block(1.2, 0.7, 0.74), "table", np.array([2.0, 2.0, 0.0]), 0.7)
    room.objects.append(table)
    rng = np.random.default_rng(0)
    items = [place_on_top(room, rng, block(0.2, 0.15, 0.1), "book", table) for _ in range(12)]
    placed = [item for item in items if item is not None]
    assert len(placed) >= 4
    for item in placed:
        assert item.position[2] == pytest.approx(0.74, abs=1e-3)
        local = (item.box.corners() - table.position[:2]) @ rotation(table.yaw)[:2, :2]
        assert (np.abs(local) <= [0.6 + 0.02, 0.35 + 0.02]).all()
    assert place_on_top(room, rng, block(0.9, 0.9, 0.1), "box", table) is None


def test_nothing_interpenetrates_or_leaves_the_room(rooms):
    for room in rooms:
        solid = [item for item in room.objects if item.solid]
        for index, item in enumerate(solid):
            corners = item.box.corners()
            assert (corners >= -1e-9).all() and (corners <= np.array([room.width, room.depth]) + 1e-9).all()
            assert item.box.z[1] <= room.height + 1e-9
            for other in solid[:index]:
                if item.box.overlaps(other.box):
                    # Only what lies on or in a piece of furniture shares its box; `test_nothing_floats` sees that
                    # it does not sink into it.
                    base, top = sorted((item, other), key=lambda entry: entry.position[2])
                    assert top.position[2] > base.position[2]
            assert not any(item.box.overlaps(block) for block in room.blocks)


def test_nothing_floats(rooms):
    """Rays from just above the lower side of each thing find a surface close below, unless it hangs."""
    down = np.array([[0, 0, -1]], np.float32)
    checked = Counter()
    for room in rooms:
        for item in room.objects:
            hangs = item.class_name in ("picture", "poster", "whiteboard", "window", "curtain", "towel")
            if hangs or item.position[2] == 0:
                checked["floor or wall"] += 1
                continue
            others = make_scene(np.concatenate([other.triangles() for other in room.objects if other is not item]))
            corners = item.triangles().reshape(-1, 3)
            feet = corners[corners[:, 2] < corners[:, 2].min() + 0.005]
            start = np.ascontiguousarray(feet + [0, 0, 0.06], np.float32)
            hit = others.run(start, np.repeat(down, len(start), axis=0), output=True)
            gap = np.where(hit["primID"] >= 0, hit["tfar"] - 0.06, np.inf)
            # Neither above the surface nor sunk into it.
            assert gap.min() < 0.015, (item.class_name, gap.min())
            assert gap.min() > -0.005, (item.class_name, gap.min())
            checked["on something"] += 1
    assert checked["on something"] > 40 and checked["floor or wall"] > 100


def test_rooms_are_furnished_and_repeatable(rooms):
    again = Furnisher(Inventory([], "train", Path("unused"))).furnish(np.random.default_rng(3))
    assert [item.class_name for item in again.objects] == [item.class_name for item in rooms[3].objects]
    np.testing.assert_array_equal(again.objects[-1].position, rooms[3].objects[-1].position)
    assert np.mean([len(room.objects) for room in rooms]) > 12


def test_the_camera_sees_its_target_in_the_middle_and_stands_upright():
    pose = look_at(np.array([1.0, 2.0, 1.5]), np.array([3.0, 1.0, 0.7]), roll=0.1)
    target = np.linalg.inv(pose) @ [3.0, 1.0, 0.7, 1.0]
    np.testing.assert_allclose(target[:2], 0, atol=1e-12)
    assert target[2] > 0 and np.linalg.det(pose[:3, :3]) == pytest.approx(1)
    assert pose[2, 1] < -0.8  # image down is world down
    level = look_at(np.array([1.0, 2.0, 1.5]), np.array([3.0, 1.0, 0.7]), roll=0.0)
    assert level[2, 0] == 0  # image right is level without roll
    assert np.arccos(level[:3, 0] @ pose[:3, 0]) == pytest.approx(0.1)


def test_rays_agree_with_the_intrinsics():
    camera = Camera(sensor_intrinsics(320, 240), look_at(np.zeros(3) + 1, np.array([2.0, 3.0, 0.5]), 0.2), 320, 240)
    origins, directions = camera.rays()
    local = directions.reshape(240, 320, 3)[100, 37] @ camera.pose[:3, :3]
    pixel = camera.intrinsics @ local
    np.testing.assert_allclose(pixel, [37, 100, 1], atol=1e-4)
    np.testing.assert_allclose(origins[0], camera.pose[:3, 3], atol=1e-6)
    # cx -> (cx + 0.5) s - 0.5
    np.testing.assert_allclose(camera.intrinsics, [[288.935, 0, 159.5], [0, 288.935, 119.5], [0, 0, 1]])


def test_cameras_stand_at_human_height_in_free_space(rooms):
    rng = np.random.default_rng(0)
    found = [(room, pose) for room in rooms if (pose := random_pose(room, rng)) is not None]
    assert len(found) > len(rooms) / 2
    for room, pose in found:
        x, y, z = pose[:3, 3]
        assert 0 < x < room.width and 0 < y < room.depth and 1.0 < z < 1.9
        point = Box(pose[:2, 3], np.array([0.1, 0.1]), 0.0, (z - 0.1, z + 0.1))
        assert not any(item.box.overlaps(point) for item in room.objects)


def test_poses_do_not_depend_on_the_last_bits_of_a_processor(rooms, monkeypatch):
    poses = [random_pose(room, np.random.default_rng(0)) for room in rooms]
    exact = camera_module.look_at
    noise = np.random.default_rng(1)
    monkeypatch.setattr(
        camera_module, "look_at", lambda *args: exact(*args) + np.vstack([noise.normal(0, 4e-16, (3, 4)), [0] * 4])
    )
    for room, pose in zip(rooms, poses, strict=True):
        again = random_pose(room, np.random.default_rng(0))
        assert (pose is None and again is None) or pose.tobytes() == again.tobytes()
    assert sum(pose is not None for pose in poses) > 2
