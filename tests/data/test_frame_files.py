import json

import numpy as np
import pytest
from PIL import Image

from bifusion_hf.data.frame_files import read_depth, read_frame, read_intrinsics, read_label_map, read_pose


K = np.array([[500.5, 0, 319.5], [0, 501.0, 239.25], [0, 0, 1]])
FOUR = {"fx": 500.5, "fy": 501.0, "cx": 319.5, "cy": 239.25}


@pytest.mark.parametrize(
    "content",
    [
        FOUR,
        {**FOUR, "width": 640, "height": 480},
        {"intrinsics": K.tolist()},
        {"K": K.ravel().tolist()},
        {"camera_matrix": K.tolist()},
        {"width": 640, "height": 480, "intrinsic_matrix": K.T.ravel().tolist()},
        K.tolist(),
    ],
)
def test_intrinsics_as_json(content, tmp_path):
    path = tmp_path / "camera.json"
    path.write_text(json.dumps(content))
    np.testing.assert_array_equal(read_intrinsics(path), K)


def test_intrinsics_as_numbers_text_and_array(tmp_path):
    np.testing.assert_array_equal(read_intrinsics([500.5, 501.0, 319.5, 239.25]), K)
    four = np.eye(4)
    four[:3, :3] = K
    np.savetxt(tmp_path / "k3.txt", K, header="intrinsics")
    np.savetxt(tmp_path / "k4.txt", four, delimiter=",")
    np.save(tmp_path / "k.npy", K)
    for name in ("k3.txt", "k4.txt", "k.npy"):
        np.testing.assert_array_equal(read_intrinsics(tmp_path / name), K)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"fx": 1, "fy": 2}', r"a\.json: has the keys \['fx', 'fy'\]; expected fx, fy, cx, cy"),
        ("a.json", '{"fx": "wide", "fy": 2, "cx": 1, "cy": 1}', r"a\.json: 'wide' is no number"),
        ("a.json", "{", r"a\.json: cannot be read as JSON"),
        ("a.json", '{"K": [1, 2]}', r"a\.json: intrinsics have shape \(2,\); expected 3x3"),
        ("a.json", '"text"', r"a\.json: is no matrix of numbers"),
        ("a.txt", "500 0 320\n0 500 240\n", r"a\.txt: intrinsics have shape \(2, 3\)"),
        ("a.txt", "500 0 320\n0 500\n", r"a\.txt: is no matrix of numbers"),
        ("a.txt", "fx 500", r"a\.txt: cannot be read as numbers"),
        ("a.txt", "", r"a\.txt: intrinsics have shape"),
        ("a.npy", "500", r"a\.npy: not a \.npy array"),
    ],
)
def test_malformed_intrinsics(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_intrinsics(path)


def test_wrong_number_of_intrinsics():
    with pytest.raises(ValueError, match="expected the four numbers fx fy cx cy"):
        read_intrinsics([500.0, 320.0, 240.0])


def test_depth(tmp_path):
    millimetres = np.array([[0, 1000, 2500], [65535, 1, 5000]], np.uint16)
    Image.fromarray(millimetres).save(tmp_path / "d.png")
    np.testing.assert_allclose(read_depth(tmp_path / "d.png", 1000), millimetres / 1000)
    np.testing.assert_allclose(read_depth(tmp_path / "d.png", 5000), millimetres / 5000)
    metres = (millimetres / 1000).astype(np.float32)
    np.save(tmp_path / "d.npy", metres)
    Image.fromarray(metres).save(tmp_path / "d.tiff")
    for name in ("d.npy", "d.tiff"):
        np.testing.assert_array_equal(read_depth(tmp_path / name), metres)
    with pytest.raises(ValueError, match=r"d\.png: depth has dtype uint16 and depth_scale is None"):
        read_depth(tmp_path / "d.png")
    with pytest.raises(ValueError, match="depth_scale is 0"):
        read_depth(tmp_path / "d.png", 0)
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(tmp_path / "c.png")
    with pytest.raises(ValueError, match=r"c\.png: depth has shape \(2, 3, 3\); expected one channel"):
        read_depth(tmp_path / "c.png", 1000)


def test_pose(tmp_path):
    pose = np.eye(4)
    pose[:3, 3] = 1, 2, 3
    np.savetxt(tmp_path / "p.txt", pose)
    np.testing.assert_array_equal(read_pose(tmp_path / "p.txt"), pose)
    np.savetxt(tmp_path / "p.txt", pose[:3])
    with pytest.raises(ValueError, match=r"p\.txt: pose has shape \(3, 4\)"):
        read_pose(tmp_path / "p.txt")


def test_label_map(tmp_path):
    labels = np.array([[-1, 0, 300], [2, 2, -1]])
    np.save(tmp_path / "s.npy", labels)
    Image.fromarray((labels + 1).astype(np.uint16)).save(tmp_path / "s.png")
    for name in ("s.npy", "s.png"):
        np.testing.assert_array_equal(read_label_map(tmp_path / name, (2, 3)), labels)
    with pytest.raises(ValueError, match=r"s\.png: has shape \(2, 3\) and dtype uint16; expected integers \(3, 2\)"):
        read_label_map(tmp_path / "s.png", (3, 2))


def test_frame_of_files(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (24, 32, 3)).astype(np.uint8)
    Image.fromarray(np.dstack([image, np.full((24, 32), 255, np.uint8)])).save(tmp_path / "room_7.png")
    depth = rng.integers(500, 4000, (24, 32)).astype(np.uint16)
    Image.fromarray(depth).save(tmp_path / "depth.png")
    masks = tmp_path / "masks"
    masks.mkdir()
    left = np.arange(32) < 16
    Image.fromarray(np.broadcast_to(left, (24, 32))).save(masks / "0.png")
    frame = read_frame(
        tmp_path / "room_7.png", tmp_path / "depth.png", [30, 30, 15.5, 11.5], depth_scale=1000, superpoints=masks
    )
    assert frame.frame_id == "room_7" and frame.camera_to_world is None
    np.testing.assert_array_equal(frame.image, image)
    np.testing.assert_allclose(frame.depth, depth / 1000, rtol=1e-6)
    assert len(np.unique(frame.superpoints[:, :16])) == 1
    assert not set(np.unique(frame.superpoints[:, 16:])) & set(np.unique(frame.superpoints[:, :16]))
    np.save(tmp_path / "s.npy", np.zeros((24, 32), int))
    frame = read_frame(
        tmp_path / "room_7.png",
        tmp_path / "depth.png",
        [30, 30, 15.5, 11.5],
        depth_scale=1000,
        superpoints=tmp_path / "s.npy",
    )
    assert (frame.superpoints == 0).all()
