"""The kinds of mistakes: a title, what was done, and how it is provoked."""

import io
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from .bench import CAMERA, WIDTH, Bench


Kind = tuple[str, Callable[[Bench], Any]]


def _pgm(bench: Bench) -> Any:
    header = f"P5\n{WIDTH} {len(bench.metres)}\n3302\n".encode()
    frame = bench.files(depth=bench.write("depth.pgm", header + bench.millimetres.astype(">u2").tobytes()))
    return f"as stored: up to {frame.depth.max():.2f} m"


def _with_largest(bench: Bench) -> Any:
    values = bench.millimetres.copy()
    values[:10] = 65535
    return bench.frame(depth=values, depth_scale=1000.0)


def _half_a_picture(bench: Bench) -> Any:
    content = io.BytesIO()
    Image.fromarray(bench.millimetres).save(content, format="PNG")
    return bench.files(depth=bench.write("depth.png", content.getvalue()[:200]))


def _infrared(bench: Bench) -> Any:
    path = bench.picture("ir.png", np.full(bench.metres.shape, 40000, np.uint16))
    return f"scaled: 40000 is {bench.files(image=path).image.max()} of 255"


def _color_modes(bench: Bench) -> Any:
    picture, shown = Image.fromarray(bench.image), set()
    for mode in ("RGBA", "P", "CMYK"):
        converted = picture.convert(mode, palette=Image.Palette.ADAPTIVE)
        read = bench.files(image=bench.picture(f"{mode}.tif", converted)).image
        shown.add(np.abs(read.astype(int) - bench.image).max() <= 2)
    return "the same colours as from RGB" if shown == {True} else "other colours"


def _turned(bench: Bench) -> Any:
    exif = Image.Exif()
    exif[0x0112] = 3
    return bench.files(image=bench.picture("color.jpg", bench.image, exif=exif))


DEPTH: list[Kind] = [
    ("TUM RGB-D's depth (5000 units a metre) with `depth_scale` 1000", lambda bench: bench.frame(
        depth=5 * bench.millimetres, depth_scale=1000.0)),
    ("SUN RGB-D's depth as stored, its bits rotated", lambda bench: bench.frame(
        depth=bench.millimetres << 3, depth_scale=1000.0)),
    ("Millimetres as floating point, without `depth_scale`", lambda bench: bench.frame(depth=1000 * bench.metres)),
    ("Metres, divided by 1000 once more", lambda bench: bench.frame(depth=bench.metres, depth_scale=1000.0)),
    ("Integers without `depth_scale`", lambda bench: bench.frame(depth=bench.millimetres)),
    ("Centimetres with `depth_scale` 1000", lambda bench: bench.frame(
        depth=bench.millimetres // 10, depth_scale=1000.0)),
    ("`depth_scale` 0", lambda bench: bench.frame(depth=bench.millimetres, depth_scale=0.0)),
    ("A picture of depth, 8 bits", lambda bench: bench.frame(
        depth=(bench.millimetres // 16).astype(np.uint8), depth_scale=100.0)),
    ("A picture of depth in colours", lambda bench: bench.files(depth=bench.picture("depth.png", bench.image))),
    ("65535 where nothing was measured", _with_largest),
    ("60 m where nothing was measured", lambda bench: bench.frame(
        depth=np.where(bench.metres > 2.9, 60.0, bench.metres))),
    ("No pixel with a measurement", lambda bench: bench.frame(depth=np.full_like(bench.metres, np.nan))),
    ("A PGM whose header says a maximum of its own", _pgm),
    ("An .npz of two arrays", lambda bench: (
        np.savez(bench.folder / "two.npz", a=bench.metres, b=bench.metres),
        bench.files(depth=bench.folder / "two.npz"))),
    ("A text file in place of the depth image", lambda bench: bench.files(
        depth=bench.write("depth.png", "not found"))),
    ("A depth image of which half was copied", _half_a_picture),
    ("A depth image that is not there", lambda bench: bench.files(depth=bench.folder / "no.png")),
]  # fmt: skip

COLOUR: list[Kind] = [
    ("Colour of another camera: not the aspect of the depth image", lambda bench: bench.frame(
        image=bench.image[:, :60])),
    ("Colour as [3, H, W]", lambda bench: bench.frame(image=bench.image.transpose(2, 0, 1))),
    ("Colour as floating point", lambda bench: bench.frame(image=bench.image / 255)),
    ("Infrared, 16 bits of grey", _infrared),
    ("Infrared of 16 bits that ends at 200", lambda bench: bench.files(image=bench.picture(
        "ir.png", np.full(bench.metres.shape, 200, np.uint16)))),
    ("Grey as floating point from 0 to 900", lambda bench: bench.files(image=bench.picture(
        "ir.tif", np.linspace(0, 900, bench.metres.size, dtype=np.float32).reshape(bench.metres.shape)))),
    ("RGBA, palette or CMYK", _color_modes),
    ("A photograph whose EXIF says that it is turned", _turned),
]  # fmt: skip


def _camera(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])


def _read(name: str, content: str) -> Callable[[Bench], Any]:
    """Reads a camera file, and says what it found."""

    def provoke(bench: Bench) -> str:
        matrix = bench.files(camera=bench.write(name, content)).intrinsics
        return "read: fx {:g}, fy {:g}, cx {:g}, cy {:g}".format(*matrix[[0, 1, 0, 1], [0, 1, 2, 2]])

    return provoke


_ROS = """image_width: 80
image_height: 60
camera_matrix: {rows: 3, cols: 3, data: [72, 0, 39.5, 0, 72, 29.5, 0, 0, 1]}
distortion_model: plumb_bob
distortion_coefficients: {rows: 1, cols: 5, data: [0, 0, 0, 0, 0]}
"""
CAMERAS: list[Kind] = [
    ("The identity for intrinsics", lambda bench: bench.frame(intrinsics=np.eye(3))),
    ("Intrinsics divided by the image's size", lambda bench: bench.frame(intrinsics=_camera(0.9, 1.2, 0.5, 0.5))),
    ("Intrinsics of the colour image, which is larger", lambda bench: bench.frame(
        intrinsics=_camera(288, 288, 159.5, 119.5))),
    ("The same, in a file that says its size", _read(
        "camera.json", json.dumps({**CAMERA, "width": 320, "height": 240}))),
    ("fx, cx, fy, cy: another order", lambda bench: bench.frame(intrinsics=_camera(72, 39.5, 39.5, 29.5))),
    ("An image that was cropped since", lambda bench: bench.frame(intrinsics=_camera(72, 72, 70, 29.5))),
    ("A focal length of ten times", lambda bench: bench.frame(intrinsics=_camera(720, 720, 39.5, 29.5))),
    ("A negative focal length", lambda bench: bench.frame(intrinsics=_camera(72, -72, 39.5, 29.5))),
    ("The transposed matrix", lambda bench: bench.frame(intrinsics=bench.intrinsics.T)),
    ("Four numbers where a matrix belongs", lambda bench: bench.frame(intrinsics=np.array([72, 72, 39.5, 29.5]))),
    ("A file with distortion coefficients", _read(
        "camera.json", json.dumps({**CAMERA, "coeffs": [0.1, -0.2, 0, 0, 0]}))),
    ("A file with keys of its own", _read("camera.json", '{"focal": 72}')),
    ("A file that begins with a BOM", _read("camera.json", "\ufeff" + json.dumps(CAMERA))),
    ("Nine numbers on one line", _read("camera.txt", "72 0 39.5 0 72 29.5 0 0 1")),
    ("`fx fy cx cy` in a file", _read("camera.txt", "72 72 39.5 29.5")),
    ("`ppx` and `ppy` of RealSense", _read("camera.json", '{"fx": 72, "fy": 72, "ppx": 39.5, "ppy": 29.5}')),
    ("ROS's `camera_info.yaml`", _read("camera.yaml", _ROS)),
    ("JSON that ends in its middle", _read("camera.json", '{"fx": 72,')),
]  # fmt: skip

POSES: list[Kind] = [
    ("A pose of 3x3", lambda bench: bench.frame(camera_to_world=np.eye(3))),
    ("A pose with a scale", lambda bench: bench.frame(camera_to_world=np.diag([2.0, 2, 2, 1]))),
    ("A mirrored pose", lambda bench: bench.frame(camera_to_world=np.diag([1.0, 1, -1, 1]))),
    ("A pose of NaN, of a lost track", lambda bench: bench.frame(camera_to_world=np.full((4, 4), np.nan))),
    ("Position and quaternion in the pose's file", lambda bench: bench.files(
        pose=bench.write("pose.txt", "0 0 1 0 0 0 1"))),
]  # fmt: skip


def _processor() -> Any:
    from bifusion_hf.processing_bifusion import BiFusionProcessor

    return BiFusionProcessor(num_points=400, num_superpoints=10)


def _call(bench: Bench, **changes: Any) -> Any:
    return _processor()(**{"images": bench.image, "depth": bench.metres, "intrinsics": bench.intrinsics, **changes})


def _two_sizes(bench: Bench) -> Any:
    camera = _camera(36, 36, 19.5, 14.5)
    return _call(
        bench,
        images=[bench.image, bench.image[::2, ::2]],
        depth=[bench.metres, bench.metres[::2, ::2]],
        intrinsics=[bench.intrinsics, camera],
        frame_ids=["frame", "frame"],
    )


def _from_dict(**entries: Any) -> Callable[[Bench], Any]:
    def provoke(bench: Bench) -> Any:
        from bifusion_hf.pipeline_bifusion import frame_from_dict

        good = {"image": bench.image, "depth": bench.metres, "intrinsics": bench.intrinsics}
        return frame_from_dict({**good, **entries})

    return provoke


def _load(**files: str | bytes) -> Callable[[Bench], Any]:
    """Loads the sample checkpoint with some of its files replaced, or taken away by None."""

    def provoke(bench: Bench) -> Any:
        from bifusion_hf.assets import SAMPLE_CHECKPOINT
        from bifusion_hf.hub.pretrained import load_pretrained

        for name in ("config.json", "processor_config.json", "model.safetensors"):
            content = files.get(name.partition(".")[0], (SAMPLE_CHECKPOINT / name).read_bytes())
            if content is not None:
                bench.write(f"mine/{name}", content)
        load_pretrained(str(bench.folder / "mine"))
        return "loads"

    return provoke


def _cut_weights(bench: Bench) -> Any:
    from bifusion_hf.assets import SAMPLE_CHECKPOINT

    return _load(model=(SAMPLE_CHECKPOINT / "model.safetensors").read_bytes()[:100_000])(bench)


def _row(**changes: Any) -> Callable[[Bench], Any]:
    def provoke(bench: Bench) -> Any:
        from bifusion_hf.data.frames import frame_from_row

        return frame_from_row(bench.row(**changes))

    return provoke


def _nowhere(bench: Bench) -> Any:
    from bifusion_hf.hub.pretrained import load_pretrained

    return load_pretrained("nowhere")


def _data(bench: Bench) -> Any:
    from bifusion_hf.data.frames import load_frames

    bench.write("rooms/data/train-00000.parquet", struct.pack("4s", b"PAR1"))
    return load_frames(bench.folder / "rooms", "val")


def _same_names(bench: Bench) -> Any:
    from bifusion_hf.cli.output_names import name_for_input

    bench.write("0.json", json.dumps({"input": "monday/0.png"}))
    return f"results are written as {name_for_input(bench.folder, '0', 'tuesday/0.png')}"


PYTHON: list[Kind] = [
    ("`rgb` in place of `image`", _from_dict(rgb=1)),
    ("`pose` and `camera_to_world` at once", _from_dict(pose=np.eye(4), camera_to_world=np.eye(4))),
    ("Two images, one depth image", lambda bench: _call(bench, images=[bench.image] * 2, depth=[bench.metres])),
    ("Frames of two sizes in one batch", _two_sizes),
    ("A threshold in percent", lambda bench: _processor().post_process_instance_segmentation(None, {}, threshold=50)),
    ("A negative `part_gap`", lambda bench: type(_processor())(part_gap=-0.05)),
    ("`return_tensors=\"tf\"`", lambda bench: _call(bench, return_tensors="tf")),
    ("A row without intrinsics", _row(intrinsics=None)),
    ("A row whose image is cut short", _row(image={"bytes": b"\x89PNG\r\n\x1a\n1234", "path": None})),
    ("A data set without the split", _data),
    ("A checkpoint that is not there", _nowhere),
    ("A checkpoint without `processor_config.json`", _load(processor_config=None)),
    ("A checkpoint without `config.json`", _load(config=None)),
    ("A Git LFS pointer in place of the weights", _load(
        model="version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")),
    ("Weights of which a part was downloaded", _cut_weights),
    ("Two inputs of one name, results into one folder", _same_names),
]  # fmt: skip


def _command(name: str, *words: str) -> Callable[[Bench], Any]:
    """Runs a command; `{folder}` in a word is the folder."""

    def provoke(bench: Bench) -> Any:
        import importlib

        module = importlib.import_module(f"bifusion_hf.cli.{name}")
        module.main([word.format(folder=bench.folder) for word in words])
        return "runs"

    return provoke


def _earlier_run(*words: str) -> Callable[[Bench], Any]:
    def provoke(bench: Bench) -> Any:
        from bifusion_hf.training.run_folder import choose_start

        bench.write("run/metrics.jsonl", "{}\n")
        bench.write("run/best/config.json", "{}")
        return choose_start(bench.folder / "run", *words)

    return provoke


def _recipe(text: str) -> Callable[[Bench], Any]:
    def provoke(bench: Bench) -> Any:
        from bifusion_hf.recipe.reading import load_arguments

        return load_arguments(bench.write("mine.yaml", text), [])

    return provoke


COMMANDS: list[Kind] = [
    ("`bifusion-predict` without intrinsics", _command(
        "predict", "--image", "a.png", "--depth", "b.png", "--output", "out")),
    ("`--intrinsics` of three numbers", _command(
        "predict", "--image", "a.png", "--depth", "b.png", "--intrinsics", "72", "72", "39.5", "--output", "out")),
    ("`--data` and `--image` at once", _command("predict", "--data", "sample", "--image", "a.png", "--output", "out")),
    ("`--threshold 50`", _command("predict", "--data", "sample", "--threshold", "50", "--output", "out")),
    ("`--checkpoint nowhere`", _command("predict", "--data", "sample", "--checkpoint", "nowhere", "--output", "out")),
    ("`--output` is a file", lambda bench: (bench.write("out", ""), _command(
        "predict", "--data", "sample", "--output", "{folder}/out")(bench))),
    ("A recipe that is not there", _command("train", "tyni")),
    ("A key that is not there", _command("train", "tiny", "--optimizer.learning_rat", "1")),
    ("A value of another kind", _command("train", "tiny", "--training.epochs", "many")),
    ("`--device` without a value", _command("train", "tiny", "--device")),
    ("A recipe that overwrites its folder", _recipe("overwrite_output_dir: true\n")),
    ("A recipe that is no YAML", _recipe("model: [\n")),
    ("Training into the folder of an earlier run", _earlier_run(None, False)),
    ("`--resume_from_checkpoint latest` without a checkpoint", _earlier_run("latest", False)),
    ("`bifusion-import` of a folder without frames", _command(
        "import_data", "{folder}", "--output", "{folder}/out")),
    ("`bifusion-demo --rows 99`", _command("demo_app", "--rows", "99")),
]  # fmt: skip

GROUPS: dict[str, list[Kind]] = {
    "Depth": DEPTH,
    "Colour": COLOUR,
    "Camera": CAMERAS,
    "Pose": POSES,
    "Python, data sets and checkpoints": PYTHON,
    "Commands": COMMANDS,
}
