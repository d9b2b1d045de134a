"""A small annotated room, seen exactly, and writers of it in ScanNet's published formats."""

import io
import json
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


DEPTH_SIZE = (64, 48)
COLOR_SIZE = (130, 97)
DEPTH_INTRINSICS = np.array([[57.0, 0, 31.5], [0, 57.0, 23.5], [0, 0, 1]])
COLOR_INTRINSICS = np.array([[115.43, 0, 64.6], [0, 115.43, 48.2], [0, 0, 1]])

# object id, category as annotated, class index of this project; object 3 (the ceiling) is not annotated
OBJECTS = ((0, "wall", 0), (1, "floor", 1), (2, "stack of chairs", 2))
BOX = np.array([[-0.6, 1.8, 0.0], [0.4, 2.4, 0.8]])
WALL, CEILING = 3.2, 2.6
LABEL_MAP = "\n".join(
    "\t".join(row)
    for row in (
        ("id", "raw_category", "category", "count"),
        ("1", "wall", "wall", "8277"),
        ("2", "chair", "chair", "4646"),
        ("3", "floor", "floor", "1553"),
        ("2", "stack of chairs", "chair", "35"),
        ("1357", '5" picture', "picture", "1"),
    )
)


def pose(yaw: float = 0.0, position=(0.0, 0.0, 1.4)) -> np.ndarray:
    """A level camera that looks along y at yaw 0."""
    forward = np.array([-np.sin(yaw), np.cos(yaw), 0])
    down = np.array([0, 0, -1.0])
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([np.cross(down, forward), down, forward], axis=1)
    matrix[:3, 3] = position
    return matrix


def view(matrix: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Depth [H, W] and object ids [H, W] of the room, by exact ray casting."""
    u, v = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    rays = np.stack([(u - intrinsics[0, 2]) / intrinsics[0, 0], (v - intrinsics[1, 2]) / intrinsics[1, 1]], axis=-1)
    rays = np.concatenate([rays, np.ones_like(rays[..., :1])], axis=-1) @ matrix[:3, :3].T
    origin = matrix[:3, 3]
    with np.errstate(divide="ignore"):
        to_planes = np.stack(
            [(WALL - origin[1]) / rays[..., 1], -origin[2] / rays[..., 2], (CEILING - origin[2]) / rays[..., 2]],
            axis=-1,
        )
        to_sides = (BOX[:, None, None] - origin) / rays
    near, far = np.sort(to_sides, axis=0)
    enter, leave = near.max(axis=-1), far.min(axis=-1)
    box = np.where((enter < leave) & (enter > 0), enter, np.inf)
    distances = np.stack([*np.where(to_planes > 0, to_planes, np.inf).transpose(2, 0, 1)[:2], box, to_planes[..., 2]])
    distances[3] = np.where(distances[3] > 0, distances[3], np.inf)
    return distances.min(axis=0), distances.argmin(axis=0)


def color_view(matrix: np.ndarray) -> np.ndarray:
    """uint8 [97, 130, 3]; smooth, so that its compression loses little."""
    depth, ids = view(matrix, COLOR_INTRINSICS, COLOR_SIZE)
    return np.stack([60 * ids, 40 * depth, 255 - 60 * ids], axis=-1).clip(0, 255).astype(np.uint8)


def depth_view(matrix: np.ndarray) -> np.ndarray:
    """uint16 [48, 64] millimetres."""
    return np.rint(1000 * view(matrix, DEPTH_INTRINSICS, DEPTH_SIZE)[0]).astype(np.uint16)


def room_mesh() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices [V, 3], triangles [F, 3] of metres, and the object of each vertex. Two triangles a face."""
    side, back = 8.0, -3.0
    faces = [
        (0, [(-side, WALL, 0), (side, WALL, 0), (side, WALL, CEILING), (-side, WALL, CEILING)]),
        (1, [(-side, back, 0), (side, back, 0), (side, WALL, 0), (-side, WALL, 0)]),
        (3, [(-side, back, CEILING), (side, back, CEILING), (side, WALL, CEILING), (-side, WALL, CEILING)]),
    ]
    corners = np.array([[x, y, z] for x in BOX[:, 0] for y in BOX[:, 1] for z in BOX[:, 2]])
    for axis in range(3):
        for end in range(2):
            face = corners[np.isclose(corners[:, axis], BOX[end, axis])]
            faces.append((2, face[[0, 1, 3, 2]]))
    vertices = np.concatenate([np.asarray(face, dtype=np.float32) for _, face in faces])
    triangles = np.concatenate([np.array([[0, 1, 2], [0, 2, 3]]) + 4 * index for index in range(len(faces))])
    return vertices, triangles, np.repeat([object_id for object_id, _ in faces], 4)


def encode(image: np.ndarray, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=kind, **options)
    return buffer.getvalue()


def matrix4(matrix: np.ndarray) -> np.ndarray:
    result = np.eye(4)
    result[:3, :3] = matrix
    return result


def sens_bytes(
    poses,
    colors,
    depths,
    *,
    color_type=2,
    depth_type=1,
    imu_frames=1,
    depth_extrinsics=None,
    version=4,
    depth_scale=1000.0,
) -> bytes:
    """A `.sens` file of colours uint8 [H, W, 3] and depths uint16 [H, W]; types: 0 raw, 1 png or zlib, 2 jpeg."""
    name = b"StructureSensor"
    matrices = [matrix4(COLOR_INTRINSICS), np.eye(4), matrix4(DEPTH_INTRINSICS)]
    matrices.append(np.eye(4) if depth_extrinsics is None else depth_extrinsics)
    parts = [struct.pack("<IQ", version, len(name)), name]
    parts += [matrix.astype("<f4").tobytes() for matrix in matrices]
    (color_height, color_width), (depth_height, depth_width) = colors[0].shape[:2], depths[0].shape
    parts.append(struct.pack("<ii4I", color_type, depth_type, color_width, color_height, depth_width, depth_height))
    parts.append(struct.pack("<fQ", depth_scale, len(poses)))
    for index, (matrix, color, depth) in enumerate(zip(poses, colors, depths, strict=True)):
        color_data = (color.tobytes, lambda c=color: encode(c), lambda c=color: encode(c, "JPEG", quality=95))[
            color_type
        ]()
        depth_data = depth.astype("<u2").tobytes()
        depth_data = zlib.compress(depth_data) if depth_type == 1 else depth_data
        parts.append(np.asarray(matrix).astype("<f4").tobytes())
        parts.append(struct.pack("<4Q", 1000 * index, 1000 * index + 7, len(color_data), len(depth_data)))
        parts += [color_data, depth_data]
    parts.append(struct.pack("<Q", imu_frames) + bytes(128 * imu_frames))
    return b"".join(parts)


def ply_bytes(vertices: np.ndarray, faces: np.ndarray, order: str = "<") -> bytes:
    """A mesh with the properties of `_vh_clean_2.ply`."""
    kind = {"<": "binary_little_endian", ">": "binary_big_endian"}[order]
    header = (
        f"ply\nformat {kind} 1.0\ncomment MLIB generated\nelement vertex {len(vertices)}\n"
        "property float x\nproperty float y\nproperty float z\n"
        "property uchar red\nproperty uchar green\nproperty uchar blue\nproperty uchar alpha\n"
        f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    table = np.zeros(len(vertices), [("xyz", order + "f4", 3), ("rgba", "u1", 4)])
    table["xyz"] = vertices
    lists = np.zeros(len(faces), [("count", "u1"), ("index", order + "i4", 3)])
    lists["count"], lists["index"] = 3, faces
    return header.encode() + table.tobytes() + lists.tobytes()


def write_annotation(folder: Path) -> None:
    """Mesh, segments, objects and information of the room; each face is a segment, numbered with gaps."""
    vertices, faces, objects = room_mesh()
    scan = folder.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{scan}_vh_clean_2.ply").write_bytes(ply_bytes(vertices, faces))
    segments = 7 + 5 * (np.arange(len(vertices)) // 4)
    values = {"params": {"kThresh": "0.0001"}, "sceneId": scan, "segIndices": segments.tolist()}
    (folder / f"{scan}_vh_clean_2.0.010000.segs.json").write_text(json.dumps(values))
    groups = [
        {
            "id": object_id,
            "objectId": object_id,
            "segments": np.unique(segments[objects == object_id]).tolist(),
            "label": label,
        }
        for object_id, label, _ in OBJECTS
    ]
    values = {"sceneId": f"scannet.{scan}", "appId": "Aggregator.v2", "segGroups": groups, "segmentsFile": "..."}
    (folder / f"{scan}.aggregation.json").write_text(json.dumps(values))
    (folder / f"{scan}.txt").write_text(scan_info(axis_alignment()))


def axis_alignment() -> np.ndarray:
    matrix = pose(0.3, (0.5, -0.2, 0.1))
    matrix[:3, :3] = [[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1]]
    return matrix


def scan_info(alignment: np.ndarray) -> str:
    return (
        f"axisAlignment = {' '.join(f'{value:.6f}' for value in alignment.ravel())} \n"
        f"colorHeight = {COLOR_SIZE[1]}\ncolorWidth = {COLOR_SIZE[0]}\ndepthHeight = {DEPTH_SIZE[1]}\n"
        f"depthWidth = {DEPTH_SIZE[0]}\nfx_depth = 55.000000\nnumDepthFrames = 3\nsceneType = Bedroom / Hotel\n"
    )


def write_sens_scan(folder: Path, poses, *, annotation: bool = True, **options) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    depths = [depth_view(matrix if np.isfinite(matrix).all() else pose()) for matrix in poses]
    colors = [color_view(matrix if np.isfinite(matrix).all() else pose()) for matrix in poses]
    (folder / f"{folder.name}.sens").write_bytes(sens_bytes(poses, colors, depths, **options))
    if annotation:
        write_annotation(folder)


def write_exported_scan(
    folder: Path, poses: dict[int, np.ndarray], *, color_size: tuple[int, int] | None = None
) -> None:
    """The folders that SensReader exports; colour images resized as its option does."""
    for name in ("color", "depth", "pose", "intrinsic"):
        (folder / name).mkdir(parents=True)
    for number, matrix in poses.items():
        color = color_view(matrix)
        if color_size is not None:
            color = np.asarray(Image.fromarray(color).resize(color_size))
        (folder / "color" / f"{number}.jpg").write_bytes(encode(color, "JPEG", quality=95))
        (folder / "depth" / f"{number}.png").write_bytes(encode(depth_view(matrix)))
        np.savetxt(folder / "pose" / f"{number}.txt", matrix, fmt="%f")
    for kind, matrix in (("color", COLOR_INTRINSICS), ("depth", DEPTH_INTRINSICS)):
        np.savetxt(folder / "intrinsic" / f"intrinsic_{kind}.txt", matrix4(matrix), fmt="%f")
        np.savetxt(folder / "intrinsic" / f"extrinsic_{kind}.txt", np.eye(4), fmt="%f")


def write_label_images(folder: Path, poses: dict[int, np.ndarray], *, zipped: bool) -> None:
    """2D label images of the colour camera's size: 16-bit raw category ids and 8-bit object id + 1."""
    raw_ids = np.array([1, 3, 2, 0])
    for kind in ("label-filt", "instance-filt"):
        images = {}
        for number, matrix in poses.items():
            ids = view(matrix, COLOR_INTRINSICS, COLOR_SIZE)[1]
            instance = np.where(ids == 3, 0, ids + 1)
            values = raw_ids[ids].astype(np.uint16) if kind == "label-filt" else instance.astype(np.uint8)
            images[f"{kind}/{number}.png"] = encode(values)
        if zipped:
            with zipfile.ZipFile(folder / f"{folder.name}_2d-{kind}.zip", "w") as archive:
                for name, data in images.items():
                    archive.writestr(name, data)
        else:
            (folder / kind).mkdir()
            for name, data in images.items():
                (folder / name).write_bytes(data)
