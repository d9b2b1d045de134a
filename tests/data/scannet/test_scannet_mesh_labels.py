import numpy as np
import pytest
from scannet_files import BOX, CEILING, DEPTH_INTRINSICS, DEPTH_SIZE, WALL, pose, room_mesh, view

from bifusion_hf.data.frames import RGBDFrame
from bifusion_hf.data.scannet import mesh_labels
from bifusion_hf.data.scannet.annotations import VertexLabels
from bifusion_hf.data.scannet.mesh_labels import MAX_DISTANCE, MeshLabels


VERTICES, FACES, OBJECTS = room_mesh()
LABELS = VertexLabels(np.where(OBJECTS == 3, -1, OBJECTS).astype(np.int32), np.array([1, 3, 2, 0], np.int32)[OBJECTS])


def frame_of(depth, matrix):
    return RGBDFrame(np.zeros((*depth.shape, 3), np.uint8), depth, DEPTH_INTRINSICS, matrix)


def near_another(frame, distance=0.05):
    """Pixels whose point is near two of the room's surfaces: there the nearest sample may be the other's."""
    x, y, z = np.moveaxis(frame.unproject(), -1, 0)
    outside = [np.maximum(low - value, value - high) for low, high, value in zip(*BOX, (x, y, z), strict=True)]
    inside = np.maximum.reduce(outside)
    box = np.where(inside > 0, np.linalg.norm(np.maximum(outside, 0), axis=0), -inside)
    return np.sort([np.abs(y - WALL), np.abs(z), np.abs(z - CEILING), box], axis=0)[1] < distance


@pytest.mark.parametrize("yaw", [0.0, 0.35, -0.5])
def test_pixels_take_the_object_that_is_seen(yaw):
    matrix = pose(yaw, (0.2, -0.3, 1.4))
    depth, ids = view(matrix, DEPTH_INTRINSICS, DEPTH_SIZE)
    frame = frame_of(depth, matrix)
    instance, raw_ids = MeshLabels(VERTICES, FACES, LABELS).label(frame)
    assert len(np.unique(ids)) == 4
    clear = ~near_another(frame)
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(instance[clear], np.where(ids == 3, -1, ids)[clear])
    np.testing.assert_array_equal(raw_ids[clear], np.array([1, 3, 2, 0])[ids][clear])
    assert (instance == np.where(ids == 3, -1, ids)).mean() > 0.97


def test_what_hides_the_mesh_is_not_labelled():
    """The depth test: a board that the mesh lacks stands 20 cm before the box, 10 cm before nothing else."""
    matrix = pose()
    depth, ids = view(matrix, DEPTH_INTRINSICS, DEPTH_SIZE)
    hidden = np.zeros_like(ids, dtype=bool)
    hidden[20:40, 20:40] = True
    depth[hidden] = 1.2
    instance, raw_ids = MeshLabels(VERTICES, FACES, LABELS).label(frame_of(depth, matrix))
    assert (instance[hidden] == -1).all()
    assert (raw_ids[hidden] == 0).all()
    assert (instance[~hidden] >= 0).any()


def test_pixels_without_measurement_have_no_label():
    depth, _ = view(pose(), DEPTH_INTRINSICS, DEPTH_SIZE)
    depth[:, ::2] = 0
    instance, raw_ids = MeshLabels(VERTICES, FACES, LABELS).label(frame_of(depth, pose()))
    assert (instance[:, ::2] == -1).all()
    assert (raw_ids[:, ::2] == 0).all()


def test_the_distance_limit_grows_beyond_two_metres():
    """One wall across the view at 4 m, measured 8 cm too near: within 5 cm x 4/2, but not at half that limit."""
    vertices = np.array([[-9, 4, -9], [9, 4, -9], [9, 4, 9], [-9, 4, 9.0]])
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    labels = VertexLabels(np.full(4, 5, np.int32), np.full(4, 1, np.int32))
    depth = np.full(DEPTH_SIZE[::-1], 3.92)
    assert MAX_DISTANCE == 0.05
    assert (MeshLabels(vertices, faces, labels).label(frame_of(depth, pose()))[0] == 5).mean() > 0.9
    assert (MeshLabels(vertices, faces, labels, 0.025).label(frame_of(depth, pose()))[0] == -1).all()
    # What is nearer takes nothing from what is far.
    mixed = depth.copy()
    mixed[:, ::2] = 1
    instance, raw_ids = MeshLabels(vertices, faces, labels).label(frame_of(mixed, pose()))
    assert (instance[:, 1::2] == 5).mean() > 0.9 and (instance[:, ::2] == -1).all()
    assert instance.dtype == raw_ids.dtype == np.int32
    near = vertices * [1, 0.5, 1]
    assert (MeshLabels(near, faces, labels).label(frame_of(depth - 2, pose()))[0] == -1).all()


def test_a_sample_at_the_limit_is_near_enough():
    """A lone vertex half a metre behind the point of the middle pixel, and one a hair farther; all else is far off."""
    intrinsics = np.array([[10.0, 0, 5], [0, 10, 5], [0, 0, 1]])
    depth = np.full((12, 12), 4.0)
    depth[5, 5] = 1
    frame = RGBDFrame(np.zeros((12, 12, 3), np.uint8), depth, intrinsics, np.eye(4))
    labels = VertexLabels(np.array([3], np.int32), np.array([7], np.int32))
    for place, name in ((1.5, 3), (1.5001, -1)):
        labeller = MeshLabels(np.array([[0, 0, place]]), np.zeros((0, 3), dtype=int), labels, 0.5)
        instance, _ = labeller.label(frame)
        assert instance[5, 5] == name and (instance >= 0).sum() == (name >= 0)


@pytest.mark.parametrize("distance", [0.4, 1.0])
def test_near_surfaces_are_labelled_as_far_ones_are(distance):
    """Of a wall before a wall, and where nothing was measured there is none of either."""
    corners = np.array([[-9, 0, -9], [9, 0, -9], [9, 0, 9], [-9, 0, 9.0]])
    vertices = np.concatenate([corners + [0, distance, 0], corners + [0, 3, 0]])
    faces = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    labels = VertexLabels(np.repeat([0, 5], 4).astype(np.int32), np.repeat([7, 1], 4).astype(np.int32))
    depth = np.full(DEPTH_SIZE[::-1], distance)
    depth[:, ::3], depth[:, 1::3] = 0, 3
    instance, raw_ids = MeshLabels(vertices, faces, labels).label(frame_of(depth, pose()))
    for start, name, raw_id in ((0, -1, 0), (1, 5, 1), (2, 0, 7)):
        assert (instance[:, start::3] == name).all() and (raw_ids[:, start::3] == raw_id).all()


def test_the_nearest_sample_decides_as_a_search_over_all_triangles_does():
    """Against the exact distance of each pixel's point to every triangle, on a mesh of small triangles."""
    rng = np.random.default_rng(0)
    heights = 0.3 * rng.random((9, 9))
    x, y = np.meshgrid(np.linspace(-1, 1, 9), np.linspace(1.5, 2.5, 9))
    vertices = np.stack([x, y, heights], axis=-1).reshape(-1, 3)
    corner = (np.arange(8)[:, None] * 9 + np.arange(8)).reshape(-1, 1)
    faces = np.concatenate([corner + [0, 1, 10], corner + [0, 10, 9]])
    labels = VertexLabels(np.arange(81, dtype=np.int32), np.zeros(81, np.int32))
    labeller = MeshLabels(vertices, faces, labels, 0.02)
    weights = rng.dirichlet(np.ones(3), len(faces) * 4)
    triangles = np.repeat(faces, 4, axis=0)
    points = np.einsum("nc,ncx->nx", weights, vertices[triangles])
    distance, nearest = labeller._tree.query(points)
    # Samples of a triangle cut into edges of at most 2 cm leave no point of it farther than that.
    assert distance.max() <= 0.02
    clear = np.sort(weights, axis=1)[:, -1] > 0.75
    expected = triangles[np.arange(len(triangles)), weights.argmax(axis=1)]
    assert (labeller._instance[nearest] == expected)[clear].mean() > 0.99


@pytest.mark.parametrize("edge", [0.7, 1.0, 1.01, 1.99, 2.01, 3.5])
def test_triangles_of_every_size_are_sampled_densely_enough(edge):
    """Triangles of at most the limit, tall, flat and with equal sides, have no point farther than this from a corner;
    the edges are in units of it."""
    corners = edge * np.array([[0, 0], [1, 0], [0.5, np.sqrt(0.75)], [0.5, 0.1]])
    vertices = 0.05 * np.column_stack([corners, np.zeros(4)])
    faces = np.array([[0, 1, 2], [0, 1, 3]])
    labels = VertexLabels(np.arange(4, dtype=np.int32), np.zeros(4, np.int32))
    labeller = MeshLabels(vertices, faces, labels, 0.05)
    weights = np.random.default_rng(0).dirichlet(np.ones(3), 2000)
    for face in faces:
        distance, nearest = labeller._tree.query(weights @ vertices[face])
        assert distance.max() <= 0.05 / np.sqrt(3) + 1e-9


@pytest.mark.parametrize("count", [1, 2])
def test_a_mesh_of_too_many_samples_is_refused(count, monkeypatch):
    """A triangle whose longest edge is four limits long counts as 4 x 4 / 2 samples."""
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0.5, 0.25, 0]])
    faces = np.array([[0, 1, 2]] * count)
    labels = VertexLabels(np.arange(3, dtype=np.int32), np.zeros(3, np.int32))
    monkeypatch.setattr(mesh_labels, "MAX_SAMPLES", 8 * count)
    MeshLabels(vertices, faces, labels, 0.25)
    monkeypatch.setattr(mesh_labels, "MAX_SAMPLES", 8 * count - 1)
    with pytest.raises(ValueError, match="mesh has edges of 1 m; expected the mesh of a room, in metres"):
        MeshLabels(vertices, faces, labels, 0.25)


def test_malformed_input_is_refused():
    with pytest.raises(ValueError, match="36 vertices, 35 of them with labels"):
        MeshLabels(VERTICES, FACES, VertexLabels(LABELS.instance[:35], LABELS.raw_ids[:35]))
    with pytest.raises(ValueError, match="max_distance is 0"):
        MeshLabels(VERTICES, FACES, LABELS, 0)
    with pytest.raises(ValueError, match="in metres"):
        MeshLabels(1000 * VERTICES, FACES, LABELS)
    none = VertexLabels(np.zeros(0, np.int32), np.zeros(0, np.int32))
    with pytest.raises(ValueError, match="mesh has 0 vertices, 0 of them with labels"):
        MeshLabels(np.zeros((0, 3)), np.zeros((0, 3), dtype=int), none)
    frame = RGBDFrame(np.zeros((48, 64, 3), np.uint8), np.ones((48, 64)), DEPTH_INTRINSICS)
    with pytest.raises(ValueError, match="camera_to_world is None"):
        MeshLabels(VERTICES, FACES, LABELS).label(frame)
