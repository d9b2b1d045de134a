"""Writers of recordings in the layouts that the package reads, from frames."""

import json
import zipfile
from pathlib import Path

import numpy as np
from frame_factory import POSE, make_frame
from PIL import Image
from scipy.spatial.transform import Rotation


HEIGHT, WIDTH = 24, 32


def make_frames(count=3):
    """Frames from one place, turned further and further about the vertical axis; depth in whole millimetres."""
    frames = []
    for index in range(count):
        pose = POSE.copy()
        pose[:3, :3] = Rotation.from_euler("z", 5 * index, degrees=True).as_matrix() @ pose[:3, :3]
        frame = make_frame(HEIGHT, WIDTH, seed=index, camera_to_world=pose)
        frame.depth = np.rint(1000 * frame.depth).astype(np.float32) / 1000
        frames.append(frame)
    return frames


def save_image(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def save_depth(path: Path, frame, scale=1000) -> None:
    save_image(path, np.rint(frame.depth * scale).astype(np.uint16))


def save_text(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, values)


def write_folders(folder: Path, frames, *, poses=True, start=0) -> None:
    """`color/ depth/ pose/ intrinsic.txt`, as ESAM reads them."""
    for index, frame in enumerate(frames, start):
        save_image(folder / "color" / f"{10 * index}.png", frame.image)
        save_depth(folder / "depth" / f"{10 * index}.png", frame)
        if poses:
            save_text(folder / "pose" / f"{10 * index}.txt", frame.camera_to_world)
    save_text(folder / "intrinsic.txt", frames[0].intrinsics)


def pose_words(pose: np.ndarray) -> list[float]:
    """tx ty tz qx qy qz qw."""
    return [*pose[:3, 3], *Rotation.from_matrix(pose[:3, :3]).as_quat()]


def write_tum(folder: Path, frames) -> None:
    lists = {"rgb": [], "depth": [], "groundtruth": []}
    for index, frame in enumerate(frames):
        time = 100 + 0.5 * index
        save_image(folder / "rgb" / f"{time:.6f}.png", frame.image)
        save_depth(folder / "depth" / f"{time + 0.007:.6f}.png", frame, 5000)
        lists["rgb"].append(f"{time:.6f} rgb/{time:.6f}.png")
        lists["depth"].append(f"{time + 0.007:.6f} depth/{time + 0.007:.6f}.png")
        for shift in (-0.01, 0.01):
            words = " ".join(f"{word:.9f}" for word in pose_words(frame.camera_to_world))
            lists["groundtruth"].append(f"{time + 0.007 + shift:.6f} {words}")
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(["# comment", *lines, ""]))
    save_text(folder / "intrinsics.txt", frames[0].intrinsics)


def write_redwood(folder: Path, frames) -> None:
    """Poses in the world of a first camera that looks along +z, y down."""
    to_first = np.eye(4)
    to_first[:3, :3] = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]
    lines = []
    for index, frame in enumerate(frames):
        save_image(folder / "image" / f"{index + 1:07d}-000001.jpg", frame.image)
        save_depth(folder / "depth" / f"{index + 1:07d}-000002.png", frame)
        lines.append(f"{index} {index} {index + 1}")
        lines += [" ".join(f"{value:.12f}" for value in row) for row in to_first @ frame.camera_to_world]
    (folder / "trajectory.log").write_text("\n".join(lines) + "\n")
    k = frames[0].intrinsics
    content = {"width": WIDTH, "height": HEIGHT, "intrinsic_matrix": k.T.ravel().tolist()}
    (folder / "intrinsic.json").write_text(json.dumps(content))


def write_r3d(path: Path, frames, lzfse, *, sizes=True, each=True) -> None:
    """Colour twice as large as depth; poses relative to the first, in the axes of OpenGL with y up.

    `each`: every frame has the camera, and K is wrong; or what stands in that place beside a right K.
    """
    to_opengl = np.eye(4)
    to_opengl[:3, :3] = [[1, 0, 0], [0, 0, 1], [0, -1, 0]]
    flip = np.diag([1.0, -1, -1, 1])
    poses = [to_opengl @ frame.camera_to_world @ flip for frame in frames]
    k = frames[0].intrinsics
    large = [2 * k[0, 0], 2 * k[1, 1], 2 * k[0, 2] + 0.5, 2 * k[1, 2] + 0.5]
    first = np.linalg.inv(poses[0])

    def seven(pose):
        words = pose_words(pose)
        return [*words[3:], *words[:3]]

    metadata = {
        "w": 2 * WIDTH,
        "h": 2 * HEIGHT,
        "fps": 30,
        "K": [large[0], 0, 0, 0, large[1], 0, large[2], large[3], 1],
        "poses": [seven(first @ pose) for pose in poses],
        "initPose": seven(poses[0]),
    }
    if sizes:
        metadata.update(dw=WIDTH, dh=HEIGHT)
    if each is True:
        metadata["perFrameIntrinsicCoeffs"] = [large] * len(frames)
        metadata["K"] = [1.0] * 9
    elif each:
        metadata["perFrameIntrinsicCoeffs"] = each
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata", json.dumps(metadata))
        for index, frame in enumerate(frames):
            from io import BytesIO

            buffer = BytesIO()
            Image.fromarray(frame.image.repeat(2, 0).repeat(2, 1)).save(buffer, format="PNG")
            archive.writestr(f"rgbd/{index}.jpg", buffer.getvalue())
            archive.writestr(f"rgbd/{index}.depth", lzfse.compress(frame.depth.astype("<f4").tobytes()))


def write_frame_folders(folder: Path, frames) -> None:
    k = frames[0].intrinsics
    for index, frame in enumerate(frames):
        place = folder / f"{5 * index}"
        save_image(place / "colour.png", frame.image)
        save_depth(place / "depth.png", frame, 2000)
        content = {"fx": k[0, 0], "fy": k[1, 1], "cx": k[0, 2], "cy": k[1, 2], "depth_scale": 2000}
        (place / "intrinsics.json").write_text(json.dumps(content))
        save_text(place / "pose.txt", np.eye(4))
        save_text(place / "pose_gravity.txt", frame.camera_to_world)
        save_image(place / "instance.png", (frame.instance + 1).astype(np.uint16))


def write_labelled_scan(folder: Path, numbers) -> None:
    """An exported scan with 2D labels: a wall with a chair's rectangle before it."""
    for name in ("color", "depth", "pose", "intrinsic", "label-filt", "instance-filt"):
        (folder / name).mkdir(parents=True)
    chair = np.zeros((48, 64), bool)
    chair[10:30, 20:40] = True
    matrix = np.eye(4)
    matrix[:3, :3] = [[57, 0, 31.5], [0, 57, 23.5], [0, 0, 1]]
    for number in numbers:
        images = {
            "color/{}.jpg": np.dstack([np.full((48, 64), number % 256), 200 * chair, 0 * chair]).astype(np.uint8),
            "depth/{}.png": np.where(chair, 1500, 2000).astype(np.uint16),
            "label-filt/{}.png": np.where(chair, 2, 1).astype(np.uint16),
            "instance-filt/{}.png": np.where(chair, 5, 1).astype(np.uint8),
        }
        for name, values in images.items():
            Image.fromarray(values).save(folder / name.format(number))
        np.savetxt(folder / "pose" / f"{number}.txt", np.eye(4))
    for kind in ("color", "depth"):
        np.savetxt(folder / "intrinsic" / f"intrinsic_{kind}.txt", matrix)
