import numpy as np
import pytest
import torch
from frame_factory import POSE, make_frame
from PIL import Image

from bifusion_hf.data.inputs import frame_from_arrays, frames_from_columns, to_array


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


def test_a_frame_of_arrays_tensors_pictures_or_files(tmp_path):
    frame = make_frame(24, 32, holes=False)
    millimetres = np.rint(frame.depth * 1000).astype(np.uint16)
    image, depth = Image.fromarray(frame.image), Image.fromarray(millimetres)
    image.save(tmp_path / "image.png")
    depth.save(tmp_path / "depth.png")
    fx, _, cx, _, fy, cy, *_ = frame.intrinsics.ravel()
    camera = {"fx": fx, "fy": fy, "cx": cx, "cy": cy, "width": 32, "height": 24}
    metres = torch.from_numpy(millimetres / 1000)
    for given in (
        frame_from_arrays(tmp_path / "image.png", str(tmp_path / "depth.png"), camera, depth_scale=1000),
        frame_from_arrays(image, depth, frame.intrinsics, depth_scale=1000, camera_to_world=None),
        frame_from_arrays(torch.from_numpy(frame.image), metres, torch.from_numpy(frame.intrinsics)),
        frame_from_arrays(frame.image, metres.tolist(), frame.intrinsics.tolist()),
    ):
        np.testing.assert_array_equal(given.image, frame.image)
        np.testing.assert_allclose(given.depth, millimetres / 1000, rtol=1e-6)
        np.testing.assert_allclose(given.intrinsics, frame.intrinsics)
        assert given.camera_to_world is None and given.frame_id == "frame"
    labels = {"instance": torch.zeros(24, 32, dtype=torch.int64), "superpoints": None}
    posed = frame_from_arrays(image, metres, camera, frame_id="a", camera_to_world=torch.tensor(POSE), **labels)
    assert posed.frame_id == "a" and (posed.camera_to_world == POSE).all() and not posed.instance.any()
    with pytest.raises(ValueError, match="intrinsics: is of images of 32x24; the depth image is 24x32"):
        frame_from_arrays(np.zeros((32, 24, 3), np.uint8), np.ones((32, 24)), camera)
    with pytest.raises(ValueError, match=r"b: depth has shape \(24, 32, 1\)"):
        frame_from_arrays(image, metres[..., None], camera, frame_id="b")
    with pytest.raises(ValueError, match="frame: depth has dtype uint16 and depth_scale is None"):
        frame_from_arrays(image, depth, camera)
    with pytest.raises(ValueError, match="c: depth: has mode RGB; expected one channel"):
        frame_from_arrays(image, image, camera, frame_id="c")


def test_columns_of_one_frame_or_of_several():
    one, two = make_frame(24, 32, seed=1), make_frame(24, 32, seed=2)
    columns = {"image": one.image, "depth": one.depth, "intrinsics": one.intrinsics.tolist(), "depth_scale": None}
    (found,) = frames_from_columns({**columns, "frame_id": "x", "camera_to_world": POSE})
    assert found.frame_id == "x" and (found.image == one.image).all() and (found.camera_to_world == POSE).all()
    (found,) = frames_from_columns({**columns, "image": Image.fromarray(one.image), "instance": one.instance})
    assert found.frame_id == "frame 0" and (found.instance == one.instance).all()
    images, depths = np.stack([one.image, two.image]), [one.depth * 1000, two.depth * 1000]
    for stack in (images, torch.from_numpy(images), list(images), [Image.fromarray(image) for image in images]):
        for scale in (1000, [1000, 1000.0], np.array([1000, 1000]), (1000, 1000)):
            batch = {"image": stack, "depth": depths, "intrinsics": one.intrinsics.tolist(), "depth_scale": scale}
            found = frames_from_columns(batch)
            assert [frame.frame_id for frame in found] == ["frame 0", "frame 1"]
            for frame, source in zip(found, (one, two), strict=True):
                np.testing.assert_array_equal(frame.image, source.image)
                np.testing.assert_allclose(frame.depth, source.depth, rtol=1e-6)
                np.testing.assert_array_equal(frame.intrinsics, one.intrinsics)
    wide = one.intrinsics * [[0.9], [0.8], [1]]
    wide[:2, 2] = one.intrinsics[:2, 2]
    for cameras in ([one.intrinsics.tolist(), wide.tolist()], np.stack([one.intrinsics, wide]),
                    [{"K": one.intrinsics.tolist()}, {"K": wide.tolist()}],
                    [torch.tensor(one.intrinsics), torch.tensor(wide)]):  # fmt: skip
        found = frames_from_columns({"image": images, "depth": np.stack(depths) / 1000, "intrinsics": cameras})
        np.testing.assert_allclose(found[1].intrinsics, wide)
        np.testing.assert_allclose(found[0].intrinsics, one.intrinsics)
    found = frames_from_columns(
        {"image": images, "depth": [one.depth, two.depth], "intrinsics": {"K": one.intrinsics.tolist()}}
    )
    np.testing.assert_array_equal(found[1].intrinsics, one.intrinsics)
