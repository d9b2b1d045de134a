import numpy as np
import pytest
from ply_files import read_ply

from bifusion_hf.visualization import color_by_instance, instance_colors, write_ply


@pytest.fixture
def cloud():
    rng = np.random.default_rng(0)
    return rng.normal(size=(7, 3)).astype(np.float32), rng.integers(0, 256, (7, 3)).astype(np.uint8)


def test_round_trip(cloud, tmp_path):
    points, colors = cloud
    instance = np.array([-1, 0, 1, 1, -1, 5, 70000])
    write_ply(tmp_path / "a.ply", points, colors, instance=instance)
    found = read_ply(tmp_path / "a.ply")
    np.testing.assert_array_equal(np.stack([found[name] for name in "xyz"], axis=1), points)
    np.testing.assert_array_equal(np.stack([found[name] for name in ("red", "green", "blue")], axis=1), colors)
    np.testing.assert_array_equal(found["instance"], instance)


def test_bytes_are_those_of_the_format(tmp_path):
    write_ply(tmp_path / "a.ply", np.array([[1.0, 2.0, -0.5]]), np.array([[255, 0, 7]], np.uint8))
    header = (
        b"ply\nformat binary_little_endian 1.0\nelement vertex 1\nproperty float x\nproperty float y\n"
        b"property float z\nproperty uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n"
    )
    body = bytes.fromhex("0000803f 00000040 000000bf ff0007")
    assert (tmp_path / "a.ply").read_bytes() == header + body


def test_empty_cloud(tmp_path):
    write_ply(tmp_path / "a.ply", np.zeros((0, 3)), np.zeros((0, 3), np.uint8))
    assert len(read_ply(tmp_path / "a.ply")["x"]) == 0


def test_malformed_input(cloud, tmp_path):
    points, colors = cloud
    with pytest.raises(ValueError, match=r"points has shape \(7, 2\)"):
        write_ply(tmp_path / "a.ply", points[:, :2], colors)
    with pytest.raises(ValueError, match=r"colors has shape \(7, 3\) and dtype float32; expected uint8"):
        write_ply(tmp_path / "a.ply", points, colors.astype(np.float32))
    with pytest.raises(ValueError, match=r"instance has shape \(6,\)"):
        write_ply(tmp_path / "a.ply", points, colors, instance=np.zeros(6, int))


def test_one_colour_per_instance_and_own_colour_for_the_rest(cloud):
    _, colors = cloud
    before = colors.copy()
    instance = np.array([-1, 0, 1, 1, -1, 2, 0])
    found = color_by_instance(colors, instance)
    np.testing.assert_array_equal(found[instance < 0], colors[instance < 0])
    np.testing.assert_array_equal(found[instance >= 0], instance_colors(3)[instance[instance >= 0]])
    np.testing.assert_array_equal(colors, before)
    np.testing.assert_array_equal(color_by_instance(colors, np.full(7, -1)), colors)
