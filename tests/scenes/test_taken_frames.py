import numpy as np

from bifusion_hf.scenes.taken_frames import TakenFrames


def test_names_poses_and_maps_come_back_and_it_goes_on():
    taken = TakenFrames()
    maps = [np.arange(12, dtype=np.int32).reshape(3, 4) - 1, np.full((2, 5), 70_000, dtype=np.int32)]
    for index, segmentation in enumerate(maps):
        taken.add(f"frame {index}", np.eye(4) * (index + 1), segmentation)
    again = TakenFrames.from_state(taken.ids, taken.state())
    again.add("frame 2", np.eye(4) * 3, maps[0])
    assert again.state()["maps"].dtype == np.uint8
    assert again.ids == ["frame 0", "frame 1", "frame 2"] and taken.ids == again.ids[:2]
    assert again.poses.shape == (3, 4, 4) and again.poses[:, 0, 0].tolist() == [1, 2, 3]
    for index, expected in enumerate([*maps, maps[0]]):
        found = again.segmentation(index)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, expected)


def test_without_maps_and_without_frames():
    taken = TakenFrames()
    assert taken.poses.shape == (0, 4, 4)
    taken.add("frame 0", np.eye(4), None)
    again = TakenFrames.from_state(taken.ids, taken.state())
    assert again.ids == ["frame 0"] and again.poses.shape == (1, 4, 4)
    assert again.state()["maps"].shape == (0,) and again.state()["sizes"].dtype == np.int64
