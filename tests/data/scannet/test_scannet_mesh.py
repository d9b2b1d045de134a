import numpy as np
import pytest
from scannet_files import ply_bytes, room_mesh

from bifusion_hf.data.scannet.mesh import read_mesh
from bifusion_hf.io.files import DataFileError


VERTICES, FACES, _ = room_mesh()


@pytest.mark.parametrize("order", ["<", ">"])
def test_reads_back_what_was_written(tmp_path, order):
    path = tmp_path / "a.ply"
    path.write_bytes(ply_bytes(VERTICES, FACES, order))
    vertices, faces = read_mesh(path)
    np.testing.assert_array_equal(vertices, VERTICES)
    np.testing.assert_array_equal(faces, FACES)


def test_other_properties_and_elements_are_passed_over(tmp_path):
    header = (
        "ply\r\nformat binary_little_endian 1.0\r\nobj_info x\r\nelement camera 1\r\nproperty double f\r\n"
        "element vertex 3\r\nproperty uchar label\r\nproperty double z\r\nproperty float y\r\nproperty float x\r\n"
        "element face 1\r\nproperty list uint8 uint32 vertex_index\r\nproperty int flags\r\nend_header\r\n"
    )
    vertex = np.array([(9, 3.0, 2.0, 1.0)] * 3, [("l", "u1"), ("z", "<f8"), ("y", "<f4"), ("x", "<f4")])
    face = np.array([(3, (0, 2, 1), 4)], [("n", "u1"), ("i", "<u4", 3), ("f", "<i4")])
    path = tmp_path / "a.ply"
    path.write_bytes(header.encode() + bytes(8) + vertex.tobytes() + face.tobytes())
    vertices, faces = read_mesh(path)
    np.testing.assert_array_equal(vertices, [[1, 2, 3]] * 3)
    np.testing.assert_array_equal(faces, [[0, 2, 1]])


def replaced(old: bytes, new: bytes):
    return ply_bytes(VERTICES, FACES).replace(old, new)


QUAD = bytearray(ply_bytes(VERTICES, FACES))
QUAD[-13] = 4
FAR = bytearray(ply_bytes(VERTICES, FACES))
FAR[-4:] = np.int32(len(VERTICES)).tobytes()
NAN = replaced(VERTICES[0].astype("<f4").tobytes(), np.full(3, np.nan, "<f4").tobytes())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no PLY file"),
        (ply_bytes(VERTICES, FACES)[:-1], "cut short"),
        (replaced(b"binary_little_endian", b"ascii"), "header line 'format ascii 1.0'"),
        (replaced(b"float x", b"quad x"), "header line 'property quad x'"),
        (replaced(b"element face", b"element side"), "no element face"),
        (replaced(b"float z", b"float w"), "no element vertex with x, y, z"),
        (replaced(b"float z", b"float y"), "properties"),
        (replaced(b"element vertex 36", b"element vertex -6"), "header line 'element vertex -6'"),
        (replaced(b"element vertex 36", b"element vertex 99999999999"), "cut short"),
        (bytes(QUAD), "expected triangles"),
        (bytes(FAR), "36 vertices"),
        (NAN, "not finite"),
    ],
)
def test_damaged_meshes_are_refused(tmp_path, data, message):
    path = tmp_path / "a.ply"
    path.write_bytes(data)
    with pytest.raises(DataFileError, match=message) as error:
        read_mesh(path)
    assert str(error.value).startswith(str(path))
