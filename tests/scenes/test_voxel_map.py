import numpy as np
import pytest

from bifusion_hf.scenes.voxel_map import MAX_COORDINATE, SceneMap, VoxelIndex, frame_voxels, voxel_keys


def test_rows_are_found_as_a_dictionary_finds_them():
    rng = np.random.default_rng(0)
    index, expected = VoxelIndex(), {}
    for _ in range(60):
        keys = np.unique(rng.integers(0, 40000, size=rng.integers(1, 3000)))
        rng.shuffle(keys)
        for key in keys.tolist():
            expected.setdefault(key, len(expected))
        assert index.insert(keys).tolist() == [expected[key] for key in keys.tolist()]
        asked = rng.integers(0, 80000, size=500)
        assert index.find(asked).tolist() == [expected.get(key, -1) for key in asked.tolist()]
    assert len(index) == len(expected) and index.keys.tolist() == list(expected)
    # Whichever voxel came first, others find their way past it.
    for _ in range(20):
        keys = rng.integers(0, 2**62, 1000)
        assert VoxelIndex(keys).find(np.append(keys, -1)).tolist() == [*range(1000), -1]


def test_keys_of_negative_places_and_of_places_too_far():
    points = np.array([[-0.01, 0.0, 0.01], [0.01, 0.0, 0.01], [-0.039, 0.039, 0.0], [0.0, 0.0, 0.0]])
    keys = voxel_keys(points, 0.04)
    assert keys[0] == keys[2] and keys[1] == keys[3] and keys[0] != keys[1]
    # In single precision this would be the third voxel's border.
    below = np.array([[0.12, 0, 0]], dtype=np.float32)
    assert voxel_keys(below, 0.04) == voxel_keys(np.array([[0.1, 0, 0]]), 0.04)
    for place in (MAX_COORDINATE * 0.04 + 1, np.nan, np.inf):
        with pytest.raises(ValueError, match="from the origin"):
            voxel_keys(np.array([[0, 0, place]]), 0.04)
    # A million voxels, to both sides.
    assert MAX_COORDINATE == 1048576
    voxel_keys(np.array([[1048575.5, -1048575.0, 0.0]]), 1.0)
    for place in (1048576.0, -1048575.5):
        with pytest.raises(ValueError, match=r"points lie up to 1.04858e\+06 m from the origin; expected less than"):
            voxel_keys(np.array([[0, place, 0]]), 1.0)


def test_each_voxel_has_a_key_of_its_own():
    rng = np.random.default_rng(0)
    near = np.stack(np.meshgrid(*[np.arange(-4, 4)] * 3), axis=-1).reshape(-1, 3)
    ends = np.stack(np.meshgrid(*[[-(2**20) + 1, -1, 0, 1, 2**20 - 1]] * 3), axis=-1).reshape(-1, 3)
    places = np.unique(np.concatenate([near, ends, rng.integers(-(2**20) + 1, 2**20, (500, 3))]), axis=0)
    keys = voxel_keys(0.5 * places + rng.uniform(0.01, 0.49, places.shape), 0.5)
    assert keys.dtype == np.int64 and len(np.unique(keys)) == len(places)
    # Keys are kept with a scene.
    assert voxel_keys(np.array([[0.5, -1.0, 1.5]]), 0.5).tolist() == [
        (2**20 + 1 << 42) + (2**20 - 2 << 21) + 2**20 + 3
    ]


def test_what_a_frame_says_of_its_voxels():
    keys = np.array([9, 4, 9, 9, 4, 9, 7])
    positions = np.arange(21.0).reshape(7, 3)
    colors = (np.arange(21) * 10 % 256).astype(np.uint8).reshape(7, 3)
    rows = np.array([2, 1, 2, 0, -1, 0, -1])
    voxels, means, tints, winners = frame_voxels(keys, positions, colors, rows)
    assert voxels.tolist() == [4, 7, 9]
    assert [values.dtype for values in (voxels, means, tints, winners)] == [np.int64, *[np.float32] * 2, np.int64]
    for row, key in enumerate(voxels):
        np.testing.assert_allclose(means[row], positions[keys == key].mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(tints[row], colors[keys == key].mean(axis=0), rtol=1e-6)
    # Equal numbers: none before any instance, the lower instance before the higher one.
    assert winners.tolist() == [-1, -1, 0]


def test_mean_colours_are_rounded_to_the_nearest():
    scene = SceneMap(0.1)
    for colors in ([10, 10, 0, 254], [11, 10, 0, 255], [11, 11, 0, 255]):
        scene.add(np.arange(4), np.zeros((4, 3)), np.repeat(colors, 3).reshape(4, 3), np.full(4, -1))
    assert scene.colors.dtype == np.uint8 and scene.colors.tolist() == [[11] * 3, [10] * 3, [0] * 3, [255] * 3]


def test_means_votes_and_forgetting():
    scene = SceneMap(0.1)
    keys = np.array([3, 8], dtype=np.int64)
    for value, ids in ((1.0, [5, -1]), (2.0, [5, 6]), (6.0, [4, 6])):
        scene.add(keys, np.full((2, 3), value), np.full((2, 3), 10 * value), np.array(ids))
    np.testing.assert_allclose(scene.positions, 3, rtol=1e-6)
    assert (scene.colors == 30).all() and scene.seen.tolist() == [3, 3]
    owners, shares = scene.owners()
    assert owners.tolist() == [5, 6]
    np.testing.assert_allclose(shares, [2 / 3, 2 / 3], rtol=1e-6)
    assert owners.dtype == np.int64 and shares.dtype == np.float32
    assert [values.tolist() for values in scene.owners(min_share=0.7)] == [[-1, -1], [0, 0]]
    assert scene.owners(np.array([1]), min_share=float(shares[0]))[0].tolist() == [6], "as much is enough"
    assert scene.voted_for().tolist() == [4, 5, 6] and scene.voted_for().dtype == np.int64
    before = scene.state()
    scene.forget(np.array([5, 99]))
    assert scene.owners()[0].tolist() == [4, 6] and scene.voted_for().tolist() == [4, 6]
    assert before["ids"].tolist() == [[5, 4, -1, -1], [6, -1, -1, -1]] and before["votes"][0].tolist() == [2, 1, 0, 0]
    again = SceneMap.from_state(0.1, scene.state())
    again.add(keys, np.zeros((2, 3)), np.zeros((2, 3)), np.array([7, 7]))
    scene.add(keys, np.zeros((2, 3)), np.zeros((2, 3)), np.array([7, 7]))
    dtypes = {name: value.dtype for name, value in scene.state().items()}
    assert dtypes.pop("keys") == np.int64
    assert dtypes.pop("positions") == dtypes.pop("colors") == np.float32 and set(dtypes.values()) == {
        np.dtype("int32")
    }
    for name, value in scene.state().items():
        np.testing.assert_array_equal(again.state()[name], value)
        assert again.state()[name].dtype == value.dtype
    before = scene.state()
    scene.add(np.array([3, 4]), np.ones((2, 3)), np.ones((2, 3)), np.array([-1, 8]))
    assert before["seen"].tolist() == [4, 4] and before["keys"].tolist() == [3, 8]
    assert scene.seen.tolist() == [5, 4, 1] and scene.find(np.array([4, 5])).tolist() == [2, -1]


def test_a_further_object_takes_votes_from_the_weakest_and_then_its_place():
    scene = SceneMap(1.0)
    found = []
    for index in (0, 0, 2, 2, 2, 3, 3, 3, 4, 4, 4, 9, 9, 9):
        scene.add(np.array([5]), np.zeros((1, 3)), np.zeros((1, 3)), np.array([index]))
        found.append((scene.state()["ids"][0].tolist(), scene.state()["votes"][0].tolist()))
    assert found[-4:] == [
        ([0, 2, 3, 4], [2, 3, 3, 3]),
        ([0, 2, 3, 4], [1, 3, 3, 3]),
        ([-1, 2, 3, 4], [0, 3, 3, 3]),
        ([9, 2, 3, 4], [1, 3, 3, 3]),
    ]
    scene.forget(np.array([9, 4]))
    assert scene.state()["ids"].tolist() == [[-1, 2, 3, -1]] and scene.state()["votes"].tolist() == [[0, 3, 3, 0]]
    scene.add(np.array([5]), np.zeros((1, 3)), np.zeros((1, 3)), np.array([0]))
    assert scene.voted_for().tolist() == [0, 2, 3]


def test_a_map_of_many_voxels_goes_on_from_its_state():
    """Arrays that are longer than what they hold have no votes beyond it."""
    scene, keys = SceneMap(0.1), np.arange(1500)
    scene.add(keys, np.zeros((1500, 3)), np.zeros((1500, 3)), keys)
    again = SceneMap.from_state(0.1, scene.state())
    more = np.arange(1400, 5000)
    for some in (scene, again):
        some.add(more, np.ones((3600, 3)), np.ones((3600, 3)), np.where(more % 2, more, -1))
        assert len(some) == 5000
        np.testing.assert_array_equal(some.owners()[0], [k if k < 1500 or k % 2 else -1 for k in range(5000)])
        np.testing.assert_array_equal(some.seen, [2 if 1400 <= k < 1500 else 1 for k in range(5000)])
        np.testing.assert_array_equal(some.positions[[0, 1450, 1500]], [[0] * 3, [0.5] * 3, [1] * 3])
