"""Files of data prepared for ESAM, as its scripts make them."""

import pickle
import shutil

import numpy as np
from PIL import Image


# Of all scans, at 640x480.
INTRINSICS = np.array([[577.870605, 0, 319.5], [0, 577.870605, 239.5], [0, 0, 1]])
POINTS = 3000


def rotation(seed):
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.linalg.det(q)


class Room:
    """The pixels of one frame, before ESAM's preparation."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        u, v = np.meshgrid(np.arange(640), np.arange(480))
        self.depth = (1500 + u + v // 2 + 400 * (u > 300)).astype(np.int64)
        self.depth[:, 600:] = 0
        self.image = np.stack([u // 3, v // 2, (u + v) // 5], axis=-1).astype(np.uint8)
        self.raw_ids = np.array([3, 1, 2, 0])[(u > 300) + 2 * (v > 240)]
        self.instance = np.array([1, 2, 4, 0])[(u > 300) + 2 * (v > 240)]
        self.superpoints = u // 50 + 20 * (v // 60)
        self.pose = np.eye(4)
        self.pose[:3, :3] = rotation(seed)
        self.pose[:3, 3] = rng.normal(size=3)


def write_frame(folder, scan, number, seed):
    """Files and row as ESAM's scripts make them."""
    room = Room(seed)
    rng = np.random.default_rng(seed + 100)
    name = f"{scan}_{number}"
    for part in (
        "points",
        "super_points",
        "instance_mask",
        "semantic_mask",
        f"2D/{scan}/color",
        f"pose_centered/{scan}",
    ):
        (folder / part).mkdir(parents=True, exist_ok=True)
    image_path = folder / "2D" / scan / "color" / f"{number}.jpg"
    Image.fromarray(room.image).save(image_path, quality=95)
    image = np.asarray(Image.open(image_path))
    v, u = np.nonzero(room.depth)
    z = room.depth[v, u] / 1000
    rays = np.stack([u, v, np.ones_like(u)]).astype(float)
    xyz = (room.pose[:3, :3] @ (np.linalg.inv(INTRINSICS) @ rays * z)).T + room.pose[:3, 3]
    offset = xyz.mean(axis=0)
    pose = room.pose.copy()
    pose[:3, 3] -= offset
    chosen = rng.choice(len(u), POINTS, replace=False)
    u, v = u[chosen], v[chosen]
    points = np.concatenate([xyz[chosen] - offset, image[v, u]], axis=1).astype(np.float32)
    points.tofile(folder / "points" / f"{name}.bin")
    for part, values in (
        ("super_points", np.unique(room.superpoints[v, u], return_inverse=True)[1]),
        ("instance_mask", room.instance[v, u]),
        ("semantic_mask", room.raw_ids[v, u]),
    ):
        values.astype(np.int64).tofile(folder / part / f"{name}.bin")
    np.save(folder / "pose_centered" / scan / f"{number}.npy", pose)
    return {
        "lidar_points": {"num_pts_feats": 6, "lidar_path": f"{name}.bin"},
        "pts_semantic_mask_path": f"{name}.bin",
        "pts_instance_mask_path": f"{name}.bin",
        "super_pts_path": f"{name}.bin",
        "img_path": f"./data/scannet200-sv/2D/{scan}/color/{number}.jpg",
        "pose": pose,
        "axis_align_matrix": np.eye(4).tolist(),
    }, (room, u, v)


def infos_path(folder, split="val"):
    return folder / f"scannet200_sv_oneformer3d_infos_{split}.pkl"


def write_infos(folder, rows, split="val"):
    infos = {
        "metainfo": {"categories": {"chair": 0}, "dataset": "scannet200_sv", "info_version": "1.1"},
        "data_list": rows,
    }
    infos_path(folder, split).write_bytes(pickle.dumps(infos, protocol=2))


SCANS = {"scene0011_00": (0, 40, 80), "scene0015_00": (0, 40)}


def write_scans(folder, split="val", change=None):
    """The same frames as ESAM's scripts make them of multiple views: in the scan's world, one list for a scan."""
    rows, origins = [], {}
    for number, (scan, frames) in enumerate(SCANS.items()):
        row = {key: [] for key in ("pts_paths", "super_pts_paths", "img_paths", "poses")}
        row |= {"pts_instance_mask_paths": [], "pts_semantic_mask_paths": [], "axis_align_matrix": np.eye(4).tolist()}
        for frame in frames:
            single, (room, u, v) = write_frame(folder / "made", scan, frame, 10 * number + frame // 40)
            name = f"{scan}_{frame}.bin"
            for part, key in (
                ("points", "pts_paths"),
                ("super_points", "super_pts_paths"),
                ("instance_mask", "pts_instance_mask_paths"),
                ("semantic_mask", "pts_semantic_mask_paths"),
            ):
                (folder / part / scan).mkdir(parents=True, exist_ok=True)
                data = (folder / "made" / part / name).read_bytes()
                if part == "points":
                    values = np.frombuffer(data, np.float32).reshape(-1, 6).copy()
                    values[:, :3] += room.pose[:3, 3] - single["pose"][:3, 3]
                    data = values.tobytes()
                (folder / part / scan / f"{frame}.bin").write_bytes(data)
                row[key].append(f"{part}/{scan}/{frame}.bin")
            row["img_paths"].append(f"./data/scannet200-mv/2D/{scan}/color/{frame}.jpg")
            row["poses"].append(room.pose)
            origins[f"{scan}_{frame}"] = room, u, v
        shutil.copytree(folder / "made" / "2D" / scan, folder / "2D" / scan)
        rows.append(row)
    shutil.rmtree(folder / "made")
    if change is not None:
        change(rows)
    infos = {"metainfo": {"dataset": "scannet200_mv"}, "data_list": rows}
    (folder / f"scannet200_mv_oneformer3d_infos_{split}.pkl").write_bytes(pickle.dumps(infos, protocol=2))
    return origins
