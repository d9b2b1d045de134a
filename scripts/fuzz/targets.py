"""What is attacked: for each kind of input a valid one, the files that are damaged, and the reader."""

import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from bifusion_hf.data import frame_files
from bifusion_hf.data.camera_files import read_camera
from bifusion_hf.data.frames import frame_features, frame_to_row
from bifusion_hf.data.inputs import frame_from_arrays
from bifusion_hf.data.recordings import open_recording
from bifusion_hf.evaluation.predictions import FramePrediction, PredictionFile, PredictionWriter
from bifusion_hf.io.checkpoint_files import read_state_dict
from bifusion_hf.io.images import read_color
from bifusion_hf.io.safe_pickle import load_pickle
from bifusion_hf.recipe.reading import load_arguments
from bifusion_hf.scenes.storage import read_scene, write_scene

from .changes import Generator, change_file, pick


HEIGHT, WIDTH = 24, 32
CAMERA = {"fx": 30.0, "fy": 30.0, "cx": 15.5, "cy": 11.5, "width": WIDTH, "height": HEIGHT}
K = np.array([[30.0, 0, 15.5], [0, 30, 11.5], [0, 0, 1]])
Write = Callable[[Path], None]


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Args:
        name: Of the kind.
        write: Writes a valid input into an empty folder.
        read: Reads it from there.
        damage: Changes files below the folder.
        words: The message of a refusal has one of these, or the name of a damaged file or the folder.
    """

    name: str
    write: Write
    read: Callable[[Path], Any]
    damage: Callable[[Path, Generator], None]
    words: Sequence[str] = ()


def damage_files(folder: Path, rng: Generator) -> None:
    """Damages one file, seldom two, or takes one away."""
    for _ in range(1 + (rng.random() < 0.1)):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if not files:
            return
        path = pick(files, rng)
        if rng.random() < 0.03:
            path.unlink()
        else:
            change_file(path, rng)


def depth_image(seed: int = 0) -> np.ndarray:
    """uint16 [24, 32], a slope with a step, millimetres."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (1500 + 10 * rows + 300 * (columns > 16) + seed).astype(np.uint16)


def color_image() -> np.ndarray:
    """uint8 [24, 32, 3]."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([8 * columns, 10 * rows, 4 * (rows + columns)], axis=-1).astype(np.uint8)


def save(path: Path, values: np.ndarray) -> None:
    """Writes a picture, an array, or numbers, as the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, depth=values)
    elif path.suffix in (".txt", ".log"):
        np.savetxt(path, values)
    else:
        Image.fromarray(values).save(path)


def one_file(name: str, values: Any, read: Callable[[Path], Any]) -> Target:
    """A target that is a single file."""

    def write(folder: Path) -> None:
        if isinstance(values, dict):
            dump = yaml.safe_dump if name.endswith(".yaml") else json.dumps
            (folder / name).write_text(dump(values))
        else:
            save(folder / name, values)

    return Target(name, write, lambda folder: read(folder / name), damage_files)


def read_recording(source: Path) -> None:
    """All frames of a recording."""
    recording = open_recording(source)
    for index in range(len(recording)):
        recording[index]


def _read_below(source: str, folder: Path) -> None:
    read_recording(folder / source)


def write_folders(folder: Path) -> None:
    for index in range(2):
        save(folder / "scan/color" / f"{index}.png", color_image())
        save(folder / "scan/depth" / f"{index}.png", depth_image(index))
        save(folder / "scan/pose" / f"{index}.txt", np.eye(4))
    save(folder / "scan/intrinsic.txt", K)


def write_tum(folder: Path) -> None:
    lists: dict[str, list[str]] = {"rgb": [], "depth": [], "groundtruth": []}
    for index in range(2):
        stamp = f"{100 + index}.000000"
        save(folder / "scan/rgb" / f"{stamp}.png", color_image())
        save(folder / "scan/depth" / f"{stamp}.png", 5 * depth_image(index))
        lists["rgb"].append(f"{stamp} rgb/{stamp}.png")
        lists["depth"].append(f"{stamp} depth/{stamp}.png")
        lists["groundtruth"].append(f"{stamp} 0.1 0.2 {index} 0 0 0 1")
    for name, lines in lists.items():
        (folder / "scan" / f"{name}.txt").write_text("\n".join(["# comment", *lines, ""]))
    save(folder / "scan/intrinsics.txt", K)


def write_redwood(folder: Path) -> None:
    lines = []
    for index in range(2):
        save(folder / "scan/image" / f"{index + 1:07d}.jpg", color_image())
        save(folder / "scan/depth" / f"{index + 1:07d}.png", depth_image(index))
        lines += [f"{index} {index} {index + 1}", "1 0 0 0", "0 1 0 0", "0 0 1 0", "0 0 0 1"]
    (folder / "scan/trajectory.log").write_text("\n".join(lines) + "\n")
    content = {"width": WIDTH, "height": HEIGHT, "intrinsic_matrix": K.T.ravel().tolist()}
    (folder / "scan/intrinsic.json").write_text(json.dumps(content))


def write_frame_folders(folder: Path) -> None:
    for index in range(2):
        place = folder / "scan" / str(index)
        save(place / "colour.png", color_image())
        save(place / "depth.png", depth_image(index))
        (place / "intrinsics.json").write_text(json.dumps({**CAMERA, "depth_scale": 1000}))
        save(place / "pose.txt", np.eye(4))


def write_r3d(folder: Path) -> None:
    import lzfse

    metadata = {
        **{"w": WIDTH, "h": HEIGHT, "dw": WIDTH, "dh": HEIGHT, "fps": 30},
        **{"K": [30.0, 0, 0, 0, 30.0, 0, 15.5, 11.5, 1], "initPose": [0, 0, 0, 1, 0, 0, 0]},
        **{"poses": [[0, 0, 0, 1, 0, 0, 0.1 * index] for index in range(2)]},
    }
    save(folder / "color.png", color_image())
    color = (folder / "color.png").read_bytes()
    (folder / "color.png").unlink()
    with zipfile.ZipFile(folder / "scan.r3d", "w") as archive:
        archive.writestr("metadata", json.dumps(metadata))
        for index in range(2):
            archive.writestr(f"rgbd/{index}.jpg", color)
            metres = depth_image(index).astype("<f4") / 1000
            archive.writestr(f"rgbd/{index}.depth", lzfse.compress(metres.tobytes()))


def write_sens(folder: Path) -> None:
    save(folder / "color.png", color_image())
    color = (folder / "color.png").read_bytes()
    (folder / "color.png").unlink()
    name = b"StructureSensor"
    camera = np.eye(4, dtype="<f4")
    camera[:3, :3] = K
    cameras = np.stack([camera, np.eye(4), camera, np.eye(4)]).astype("<f4").tobytes()
    parts = [struct.pack("<IQ", 4, len(name)), name, cameras]
    parts.append(struct.pack("<iiIIIIfQ", 1, 1, WIDTH, HEIGHT, WIDTH, HEIGHT, 1000.0, 2))
    for index in range(2):
        depth = zlib.compress(depth_image(index).tobytes())
        pose = np.eye(4, dtype="<f4").tobytes()
        parts += [pose, struct.pack("<QQQQ", index, index, len(color), len(depth)), color, depth]
    (folder / "scene0000_00.sens").write_bytes(b"".join(parts))


def write_rows(folder: Path) -> None:
    from datasets import Dataset

    frame = frame_from_arrays(color_image(), depth_image(), K, depth_scale=1000, camera_to_world=np.eye(4))
    (folder / "set/data").mkdir(parents=True)
    rows = Dataset.from_list([frame_to_row(frame)] * 2, features=frame_features())
    rows.to_parquet(folder / "set/data/val-00000-of-00001.parquet")


RECORDINGS = {
    **dict.fromkeys((write_folders, write_tum, write_redwood, write_frame_folders), "scan"),
    **{write_r3d: "scan.r3d", write_sens: "scene0000_00.sens", write_rows: "set"},
}
RECIPE = {
    "extends": "tiny",
    "data": {"train": {"a": 1.0, "b": 2.0}, "augmentation": {"color_probability": 0.5}, "num_workers": 1},
    "optimizer": {"learning_rate": 1.0e-4, "betas": [0.9, 0.99]},
    "training": {"max_updates": 10, "batch_size": 2, "freeze": ["encoder"]},
    "checkpoints": {"every_updates": 5},
}


def state_dict() -> dict[str, torch.Tensor]:
    """Tensors as a checkpoint has them."""
    return {"a.weight": torch.ones(4, 3), "a.bias": torch.zeros(4), "count": torch.tensor(3)}


def write_pickled(folder: Path) -> None:
    torch.save({"state_dict": state_dict(), "meta": {"epoch": 3}}, folder / "weights.pt")


def write_safetensors(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(state_dict(), folder / "weights.safetensors")


def write_shards(folder: Path) -> None:
    write_safetensors(folder)
    index = {"metadata": {}, "weight_map": dict.fromkeys(state_dict(), "weights.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def small_checkpoint() -> Callable[[Path], None]:
    """Writes a network of a few layers with its processor; made once a process."""
    made: dict[str, bytes] = {}

    def write(folder: Path) -> None:
        from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation, BiFusionProcessor

        if not made:
            config = BiFusionConfig.from_preset("tiny")
            BiFusionForInstanceSegmentation(config).save_pretrained(folder)
            BiFusionProcessor.from_preset("tiny").save_pretrained(folder)
            made.update({path.name: path.read_bytes() for path in folder.iterdir()})
        for name, content in made.items():
            (folder / name).write_bytes(content)

    return write


def damage_checkpoint(folder: Path, rng: Generator) -> None:
    """Mostly the two small files, where the settings are."""
    name = pick(("config.json", "config.json", "processor_config.json", "model.safetensors"), rng)
    change_file(folder / name, rng)


def read_checkpoint(folder: Path) -> None:
    """Network and processor."""
    from bifusion_hf import BiFusionForInstanceSegmentation, BiFusionProcessor

    BiFusionProcessor.from_pretrained(folder)
    BiFusionForInstanceSegmentation.from_pretrained(folder)


def write_predictions(folder: Path) -> None:
    from bifusion_hf import BiFusionProcessor

    masks = np.arange(40).reshape(2, 20) % 3 == 0
    with PredictionWriter(folder / "predictions.parquet", BiFusionProcessor(), {0: "chair", 1: "table"}) as writer:
        for index in range(3):
            arrays = (np.arange(20), masks, np.array([0.9, 0.5], np.float32), np.array([0, 0]))
            writer.write(FramePrediction(f"frame {index}", *arrays, semantic=np.arange(20) % 2))


def read_predictions(folder: Path) -> None:
    """All of them, and the processor of the file."""
    file = PredictionFile(folder / "predictions.parquet")
    file.processor()
    list(file)


def write_stored_scene(folder: Path) -> None:
    write_scene(folder / "scene.safetensors", {"keys": np.arange(5), "ids": np.zeros(5, np.int32)}, {"frames": 3})


def write_infos(folder: Path) -> None:
    import pickle

    rows = [{"lidar_points": {"num_pts_feats": 6, "lidar_path": "a.bin"}, "pose": np.eye(4), "label": np.int64(3)}]
    (folder / "infos.pkl").write_bytes(pickle.dumps({"metainfo": {"categories": {"chair": 1}}, "data_list": rows}))


def write_arrays(folder: Path) -> None:
    np.savez(
        folder / "frame.npz",
        **{"image": color_image(), "depth": depth_image(), "intrinsics": K, "camera_to_world": np.eye(4)},
        **{"superpoints": np.zeros((HEIGHT, WIDTH), np.int32), "depth_scale": 1000.0},
    )


def damage_arrays(folder: Path, rng: Generator) -> None:
    """Shapes, types and values of the arguments of a call; the file only carries them."""
    with np.load(folder / "frame.npz") as file:
        arrays = dict(file)
    for _ in range(1 + (rng.random() < 0.3)):
        name = pick(sorted(arrays), rng)
        arrays[name] = _other_array(arrays[name], rng)
    np.savez(folder / "frame.npz", **arrays)


def _other_array(value: np.ndarray, rng: Generator) -> np.ndarray:
    way = pick(("shape", "dtype", "values", "strip", "fill"), rng)
    if way == "shape":
        shape = pick(((), (0,), (0, 0), (1, 1), (3,), (2, 300), (200, 1), (24, 32, 4), (1, 24, 32, 3), (4, 4, 4)), rng)
        return np.ones(shape, value.dtype)
    if way == "strip":
        sides = pick(((2, 300), (200, 1), (1, 1000), (5, 2000), (3000, 2), (1, 1), (0, 5)), rng)
        return np.ones((*sides, *value.shape[2:]), value.dtype)
    if way == "dtype":
        return value.astype(pick((np.float64, np.float16, np.int64, np.int8, np.uint8, bool, np.complex64, "U8"), rng))
    values = np.array(value, dtype=np.float64)
    strange = pick((np.nan, np.inf, -np.inf, -1.0, 0.0, 1e-30, 1e30, 65535.0), rng)
    if way == "fill" or values.ndim == 0:
        return np.full_like(values, strange)
    values[rng.random(values.shape) < pick((0.01, 0.5), rng)] = strange
    return values


def read_arrays(folder: Path) -> None:
    """The processor's whole way with a frame."""
    from bifusion_hf import BiFusionProcessor

    with np.load(folder / "frame.npz") as file:
        arrays = dict(file)
    scale = arrays.pop("depth_scale")
    BiFusionProcessor(num_points=200)(
        arrays["image"],
        arrays["depth"],
        arrays["intrinsics"],
        camera_to_world=arrays["camera_to_world"],
        superpoints=arrays["superpoints"],
        depth_scale=scale.item() if scale.ndim == 0 else scale,
    )


ARGUMENTS = ("image", "depth", "intrinsics", "pose", "camera_to_world", "superpoints")


def all_targets() -> dict[str, Target]:
    """By name."""
    metres = depth_image().astype(np.float32) / 1000
    files = (
        one_file("color.png", color_image(), read_color),
        one_file("color.jpg", color_image(), read_color),
        one_file("color.tiff", color_image(), read_color),
        one_file("depth.png", depth_image(), lambda path: frame_files.read_depth(path, 1000)),
        one_file("depth.tiff", metres, frame_files.read_depth),
        one_file("depth.npy", metres, frame_files.read_depth),
        one_file("depth.npz", metres, frame_files.read_depth),
        one_file("depth.pgm", depth_image(), lambda path: frame_files.read_depth(path, 1000)),
        one_file("labels.png", depth_image() % 7, lambda path: frame_files.read_label_map(path, (HEIGHT, WIDTH))),
        one_file("camera.json", CAMERA, read_camera),
        one_file("camera.yaml", {"camera_matrix": {"rows": 3, "cols": 3, "data": K.ravel().tolist()}}, read_camera),
        one_file("camera.txt", K, read_camera),
        one_file("camera.npy", K, read_camera),
        one_file("pose.txt", np.eye(4), frame_files.read_pose),
        one_file("pose.npy", np.eye(4), frame_files.read_pose),
        one_file("recipe.yaml", RECIPE, load_arguments),
    )
    targets = [*files]
    for write, source in RECORDINGS.items():
        name = write.__name__.removeprefix("write_")
        targets.append(
            Target(name, write, lambda folder, source=source: read_recording(folder / source), damage_files)
        )

    def tensors(name: str, file: str, write: Write) -> Target:
        return Target(name, write, lambda folder: read_state_dict(folder / file), damage_files)

    targets += [
        tensors("pickled weights", "weights.pt", write_pickled),
        tensors("safetensors", "weights.safetensors", write_safetensors),
        tensors("shards", "model.safetensors.index.json", write_shards),
        Target("checkpoint", small_checkpoint(), read_checkpoint, damage_checkpoint, ("config", "Processor")),
        Target("predictions", write_predictions, read_predictions, damage_files),
        Target("scene", write_stored_scene, lambda folder: read_scene(folder / "scene.safetensors"), damage_files),
        Target("infos", write_infos, lambda folder: load_pickle(folder / "infos.pkl"), damage_files),
        Target("arrays", write_arrays, read_arrays, damage_arrays, ARGUMENTS),
    ]
    return {target.name: target for target in targets}
