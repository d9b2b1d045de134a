import numpy as np
import pytest
from scannet_files import pose, write_exported_scan, write_sens_scan

from bifusion_hf.data.recordings import open_recording


def test_a_stream_and_its_export_are_one_recording(tmp_path):
    views = {index: pose(0.1 * index) for index in range(3)}
    lost = np.full((4, 4), -np.inf)
    folder, exported = tmp_path / "scene0000_00", tmp_path / "exported" / "scene0000_00"
    write_sens_scan(folder, [views[0], lost, views[2]], annotation=False)
    write_exported_scan(exported, views)
    np.savetxt(exported / "pose" / "1.txt", lost)
    recordings = [open_recording(place) for place in (folder, folder / "scene0000_00.sens", exported)]
    for recording in recordings:
        assert recording.ids == ["scene0000_00_0", "scene0000_00_1", "scene0000_00_2"] and recording.posed
        np.testing.assert_allclose(recording[2].camera_to_world, views[2], atol=1e-6)
        # Colour is brought onto the grid of the depth image.
        assert recording[0].image.shape == (48, 64, 3)
        with pytest.raises(ValueError, match="scene0000_00_1: camera_to_world is not finite"):
            recording[1]
    np.testing.assert_array_equal(recordings[0][0].depth, recordings[2][0].depth)
    halved = open_recording(exported, depth_scale=2000)[0].depth
    np.testing.assert_allclose(halved, recordings[2][0].depth / 2, rtol=1e-6)
