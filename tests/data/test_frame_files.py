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
        ("a.yaml", "fx: [", r"a\.yaml: cannot be read as YAML"),
        ("a.yaml", "", r"a\.yaml: cannot be read as YAML"),
        ("a.yaml", "a: &a [1, 1]\nK: [*a, *a]\n", r"a\.yaml: cannot be read as YAML: it has aliases"),
        ("a.yaml", "K: !!python/object/apply:os.getcwd []\n", r"a\.yaml: cannot be read as YAML"),
        ("a.json", "[" * 100_000, r"a\.json: cannot be read as JSON"),
    ],
)
def test_malformed_intrinsics(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_intrinsics(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("k.txt", "500.5 501 319.5 239.25"),
        ("k.txt", "500.5, 0, 319.5, 0, 501, 239.25, 0, 0, 1\n"),
        ("k.txt", "500.5 0 319.5 0  0 501 239.25 0  0 0 1 0  0 0 0 1"),
        ("k.json", json.dumps({"fx": 500.5, "fy": 501, "ppx": 319.5, "ppy": 239.25, "coeffs": [0, 0, 0, 0, 0]})),
        ("k.json", json.dumps({"camera_matrix": FOUR})),
        ("k.json", json.dumps({"fl_x": 500.5, "fl_y": 501, "cx": 319.5, "cy": 239.25, "k1": 0, "w": 640, "h": 480})),
        (
            "camera_info.yaml",
            "image_width: 640\nimage_height: 480\ncamera_name: head\ncamera_matrix:\n  rows: 3\n  cols: 3\n"
            "  data: [500.5, 0, 319.5, 0, 501, 239.25, 0, 0, 1]\ndistortion_model: plumb_bob\n"
            "distortion_coefficients:\n  rows: 1\n  cols: 5\n  data: [0, 0, 0, 0, 0]\n",
        ),
        (
            "echo.yml",
            "header:\n  seq: 1\nheight: 480\nwidth: 640\nD: [0.0, 0.0]\n"
            "K: [500.5, 0.0, 319.5, 0.0, 501.0, 239.25, 0.0, 0.0, 1.0]\n---\n",
        ),
        (
            "opencv.yaml",
            "%YAML:1.0\n---\ncamera_matrix: !!opencv-matrix\n   rows: 3\n   cols: 3\n   dt: d\n"
            "   data: [ 500.5, 0., 319.5, 0., 501., 239.25, 0., 0., 1. ]\n",
        ),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_intrinsics_as_cameras_write_them(name, text, mark, tmp_path):
    (tmp_path / name).write_text(mark + text, encoding="utf-8")
    np.testing.assert_array_equal(read_intrinsics(tmp_path / name), K)


@pytest.mark.parametrize(
    "values",
    [
        {"K": K.ravel().tolist(), "D": [0.3, -0.5, 0, 0, 0]},
        {**FOUR, "k1": 0.1},
        {**FOUR, "coeffs": [0, 0, 1e-3, 0, 0]},
        {"camera_matrix": {"data": K.ravel().tolist()}, "distortion_coefficients": {"rows": 1, "data": [0.1, 0]}},
        {**FOUR, "dist_coeffs": [[0.1], [0.0]]},
    ],
)
def test_a_lens_that_distorts_is_refused(values, tmp_path):
    (tmp_path / "c.json").write_text(json.dumps(values))
    for source in (tmp_path / "c.json", values):
        with pytest.raises(ValueError, match=r"has the distortion coefficients .* have to be rectified first"):
            read_intrinsics(source)


def test_the_size_that_a_camera_file_names_is_that_of_the_depth_image(tmp_path):
    """Intrinsics of the colour camera, whose principal point lies far outside of the depth image."""
    Image.fromarray(np.full((144, 192, 3), 90, np.uint8)).save(tmp_path / "color.png")
    np.save(tmp_path / "depth.npy", np.full((24, 32), 2.0, np.float32))
    path = tmp_path / "camera.json"
    values = {"fx": 173.4, "fy": 173.4, "cx": 95.5, "cy": 71.5}
    files = (tmp_path / "color.png", tmp_path / "depth.npy", path)
    path.write_text(json.dumps({**values, "width": 192, "height": 144}))
    with pytest.raises(ValueError, match="camera.json: is of images of 192x144; the depth image is 32x24"):
        read_frame(*files)
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="principal point is outside of the image; intrinsics of .* about 192x144"):
        read_frame(*files)
    assert read_frame(*files[:2], [28.9, 28.9, 15.5, 11.5]).depth.shape == (24, 32)


def test_depth_in_an_archive(tmp_path):
    depth = np.full((2, 3), 1.5, np.float32)
    np.savez(tmp_path / "one.npz", depth)
    np.savez_compressed(tmp_path / "two.npz", depth=depth, mask=depth > 0)
    np.savez(tmp_path / "other.npz", a=depth, b=depth)
    for name in ("one.npz", "two.npz"):
        np.testing.assert_array_equal(read_depth(tmp_path / name), depth)
    with pytest.raises(ValueError, match=r"other.npz: has the arrays \['a', 'b'\]; expected one, or depth"):
        read_depth(tmp_path / "other.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK none")
    with pytest.raises(ValueError, match=r"bad.npz: not a .npz array"):
        read_depth(tmp_path / "bad.npz")
    with pytest.raises(ValueError, match=r"none.npz: No such file"):
        read_depth(tmp_path / "none.npz")


def test_a_pose_in_one_line(tmp_path):
    pose = np.arange(16.0).reshape(4, 4)
    (tmp_path / "p.txt").write_text("\ufeff" + " ".join(map(str, pose.ravel())), encoding="utf-8")
    np.testing.assert_array_equal(read_pose(tmp_path / "p.txt"), pose)
    (tmp_path / "p.txt").write_text(" ".join(map(str, pose.ravel()[:12])))
    with pytest.raises(ValueError, match=r"p\.txt: pose has shape \(1, 12\)"):
        read_pose(tmp_path / "p.txt")


def test_wrong_number_of_intrinsics():
    with pytest.raises(ValueError, match="expected the four numbers fx fy cx cy"):
        read_intrinsics([500.0, 320.0, 240.0])


def test_depth(tmp_path):
    millimetres = np.array([[0, 1000, 2500], [65534, 1, 5000]], np.uint16)
    Image.fromarray(millimetres).save(tmp_path / "d.png")
    np.testing.assert_allclose(read_depth(tmp_path / "d.png", 1000), millimetres / 1000)
    np.testing.assert_allclose(read_depth(tmp_path / "d.png", 5000), millimetres / 5000)
    metres = (millimetres / 1000).astype(np.float32)
    np.save(tmp_path / "d.npy", metres)
    Image.fromarray(metres).save(tmp_path / "d.tiff")
    for name in ("d.npy", "d.tiff"):
        np.testing.assert_array_equal(read_depth(tmp_path / name), metres)
    # The unit of a layout is that of its integers, and the user's word goes before it.
    np.testing.assert_array_equal(read_depth(tmp_path / "d.npy", integer_scale=1000), metres)
    np.testing.assert_allclose(read_depth(tmp_path / "d.png", integer_scale=1000), millimetres / 1000)
    np.testing.assert_allclose(read_depth(tmp_path / "d.png", 5000, integer_scale=1000), millimetres / 5000)
    with pytest.raises(ValueError, match=r"d\.png: depth has dtype uint16 and depth_scale is None"):
        read_depth(tmp_path / "d.png")
    with pytest.raises(ValueError, match="depth_scale is 0"):
        read_depth(tmp_path / "d.png", 0)
    np.save(tmp_path / "d3.npy", metres[..., None])
    with pytest.raises(ValueError, match=r"d3\.npy: depth has shape \(2, 3, 1\); expected one channel \[H, W\]"):
        read_depth(tmp_path / "d3.npy")
    # The numbers of a palette are no depth.
    Image.fromarray(np.ones((4, 5), np.uint8)).convert("P").save(tmp_path / "p.png")
    with pytest.raises(ValueError, match="mode P"):
        read_depth(tmp_path / "p.png", 1000)
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(tmp_path / "c.png")
    with pytest.raises(ValueError, match=r"c\.png: has mode RGB; expected one channel"):
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
    # Programs for labelling give each number a colour, or one bit says where the only object is.
    few = np.array([[-1, 0, 1], [2, 2, -1]])
    indexed = Image.fromarray((few + 1).astype(np.uint8))
    indexed.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 9, 9, 9])
    indexed.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "p.png"), few)
    Image.fromarray(few >= 0).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "b.png"), np.where(few >= 0, 0, -1))
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
