import numpy as np
import pytest
import torch
from frame_factory import make_frame

from bifusion_hf.data.inputs import frames_from_columns, to_array


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ([[1.5, -2.0]], np.float64),
        (np.array([[1.5, -2.0]], np.float16), np.float16),
        (torch.tensor([[1.5, -2.0]], requires_grad=True), np.float32),
        # numpy has no bfloat16.
        (torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16), np.float32),
    ],
)
def test_numbers_of_any_kind_become_an_array(value, dtype):
    found = to_array(value)
    assert found.dtype == dtype and found.tolist() == [[1.5, -2.0]]


def test_one_camera_for_all_frames_or_one_for_each(tmp_path):
    frame = make_frame()
    columns = {"image": [frame.image] * 2, "depth": [frame.depth] * 2}
    path = tmp_path / "intrinsics.txt"
    np.savetxt(path, frame.intrinsics)
    for intrinsics in (frame.intrinsics, path, [frame.intrinsics] * 2, [path, frame.intrinsics], [path] * 2):
        found = frames_from_columns({**columns, "intrinsics": intrinsics})
        assert all((one.intrinsics == frame.intrinsics).all() for one in found) and len(found) == 2
    with pytest.raises(ValueError, match="intrinsics has 3 entries; expected one for each of 2 images"):
        frames_from_columns({**columns, "intrinsics": [path] * 3})
