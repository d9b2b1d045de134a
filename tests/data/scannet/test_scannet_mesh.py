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


def test_a_mesh_of_places_alone_and_without_triangles(tmp_path):
    header = "ply\nformat binary_little_endian 1.0\nelement vertex 2\nproperty float x\nproperty float y\n"
    header += "property float z\nelement face 0\nproperty list uchar int vertex_indices\nend_header\n"
    path = tmp_path / "a.ply"
    path.write_bytes(header.encode() + np.arange(6, dtype="<f4").tobytes())
    vertices, faces = read_mesh(path)
    assert vertices.dtype == np.float64 and vertices.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert faces.dtype == np.int64 and faces.shape == (0, 3)


@pytest.mark.parametrize("is_longer", [False, True])
def test_a_header_ends_within_65536_bytes(tmp_path, is_longer):
    data = ply_bytes(VERTICES, FACES)
    end = data.index(b"end_header") + len(b"end_header")
    remark = b"comment " + bytes([ord("x")]) * (65536 - end - 9 + is_longer) + b"\n"
    path = tmp_path / "a.ply"
    path.write_bytes(data.replace(b"element vertex", remark + b"element vertex"))
    if is_longer:
        with pytest.raises(DataFileError, match="no PLY file"):
            read_mesh(path)
    else:
        assert len(read_mesh(path)[0]) == 36


def replaced(old: bytes, new: bytes):
    return ply_bytes(VERTICES, FACES).replace(old, new)


QUAD = bytearray(ply_bytes(VERTICES, FACES))
QUAD[-13] = 4
FAR = bytearray(ply_bytes(VERTICES, FACES))
FAR[-4:] = np.int32(len(VERTICES)).tobytes()
BELOW = bytearray(ply_bytes(VERTICES, FACES))
BELOW[-4:] = np.int32(-1).tobytes()
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
        (replaced(b"element vertex 36", b"element vertex 999999999999"), "header line 'element vertex 9{12}'"),
        (replaced(b"element vertex 36\n", b""), "header line 'property float x'"),
        (replaced(b"element vertex 36\n", b"property list uchar int x\n"), "header line 'property list uchar int x'"),
        (replaced(b"list uchar int", b"list float int"), "header line 'property list float int vertex_indices'"),
        (replaced(b"list uchar int", b"list uchar quad"), "header line 'property list uchar quad vertex_indices'"),
        (replaced(b"list uchar int", b"list uchar float"), "no element face with a list of integers"),
        (replaced(b"list uchar int", b"int"), "no element face with a list of integers"),
        (replaced(b"element vertex", b"element point"), "no element vertex with x, y, z"),
        (replaced(b"format binary_little_endian 1.0\n", b""), "no format line"),
        (ply_bytes(VERTICES, FACES).partition(b"\nend_header")[0], "no PLY file"),
        (ply_bytes(VERTICES, FACES).partition(b"end_header")[0] + b"end_header", "no PLY file"),
        (bytes(BELOW), "has faces of vertex"),
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
