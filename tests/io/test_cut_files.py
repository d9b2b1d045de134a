"""Files that are cut after they were opened: mapped ones would end the process with SIGBUS (status -7)."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from forks import run_python
from frame_factory import make_frame

from bifusion_hf import RGBDFrame, assets
from bifusion_hf.data.inputs import frame_from_arrays
from bifusion_hf.io.files import DataFileError
from bifusion_hf.io.mapped import in_memory


# Each reads or opens a file, cuts it, and uses what it has.
CUTS = """
import json, os, sys
from pathlib import Path

import numpy as np
from PIL import Image

folder, checkpoint, frames = map(Path, sys.argv[1:4])
told = {}


def model():
    from bifusion_hf import BiFusionForInstanceSegmentation

    model = BiFusionForInstanceSegmentation.from_pretrained(checkpoint)
    os.truncate(checkpoint / "model.safetensors", 4096)
    return sum(float(value.detach().double().sum()) for value in model.parameters())


def weights():
    from bifusion_hf.io.checkpoint_files import read_state_dict

    state = read_state_dict(folder / "weights.safetensors")
    os.truncate(folder / "weights.safetensors", 4096)
    return sum(float(value.double().sum()) for value in state.values())


def scene():
    from bifusion_hf.scenes.storage import read_scene, write_scene
    import safetensors

    write_scene(folder / "scene", {"a": np.ones(1 << 20)}, {})
    opened = safetensors.safe_open

    def open_and_cut(path, *arguments, **options):
        file = opened(path, *arguments, **options)
        os.truncate(path, 4096)
        return file

    safetensors.safe_open = open_and_cut
    read_scene(folder / "scene")


def picture():
    from bifusion_hf.io.images import read_values

    path = folder / "depth.tiff"
    Image.fromarray(np.full((600, 800), 1000, dtype=np.uint16)).save(path)
    exif = Image.Image.getexif

    def decode_and_cut(image):
        image.load()
        os.truncate(path, 4096)
        return exif(image)

    Image.Image.getexif = decode_and_cut
    return float(read_values(path).mean())


def arrays():
    from bifusion_hf import RGBDFrame

    np.save(folder / "image.npy", np.full((240, 320, 3), 7, dtype=np.uint8))
    np.save(folder / "depth.npy", np.ones((240, 320), dtype=np.float32))
    image, depth = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("image", "depth"))
    frame = RGBDFrame(image, depth, [[250, 0, 160], [0, 250, 120], [0, 0, 1]])
    for name in ("image", "depth"):
        os.truncate(folder / f"{name}.npy", 200)
    return float(frame.image.mean() + frame.depth.mean())


def table():
    from bifusion_hf.data.frames import frame_from_row, load_frames

    data = load_frames(frames, "val")
    (copy,) = (folder / "cache").rglob("*.arrow")
    os.truncate(copy, 4096)
    return frame_from_row(data[len(data) - 1]).frame_id


for kind in sys.argv[4:]:
    try:
        told[kind] = locals()[kind]()
    except ValueError as error:
        told[kind] = f"{type(error).__name__}: {error}"
print(json.dumps(told))
"""


def test_what_was_read_outlives_the_cut_of_its_file(tmp_path):
    """A table is read, and not mapped, by the variable of `datasets` that docs/data.md names."""
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(assets.SAMPLE_CHECKPOINT, checkpoint)
    shutil.copy(checkpoint / "model.safetensors", tmp_path / "weights.safetensors")
    kinds = ["model", "weights", "scene", "picture", "arrays", "table"]
    arguments = [str(tmp_path), str(checkpoint), str(assets.SAMPLE_FRAMES), *kinds]
    own = {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_DATASETS_IN_MEMORY_MAX_SIZE": "100000000"}
    run = run_python(CUTS, arguments, environment={**os.environ, **own})
    assert run.returncode == 0, (run.returncode, run.stderr)
    told = json.loads(run.stdout)
    assert isinstance(told["model"], float) and isinstance(told["weights"], float)
    assert told["scene"].startswith(f"DataFileError: {tmp_path / 'scene'}: is no readable scene")
    assert told["picture"] == 1000 and told["arrays"] == 8 and told["table"]


def mapped(path: Path, array: np.ndarray) -> np.ndarray:
    np.save(path, array)
    return np.load(path, mmap_mode="r")


def test_a_mapped_array_that_was_cut_is_refused_by_its_file(tmp_path):
    whole = make_frame(48, 64)
    image, depth = mapped(tmp_path / "image.npy", whole.image), mapped(tmp_path / "depth.npy", whole.depth)
    os.truncate(tmp_path / "depth.npy", 1000)
    message = f"{tmp_path / 'depth.npy'}: was cut: it has 1000 bytes, and frame: depth ends at {128 + 4 * 48 * 64}"
    for make in (RGBDFrame, frame_from_arrays):
        with pytest.raises(DataFileError) as caught:
            make(image, depth, whole.intrinsics)
        assert str(caught.value) == message
    os.truncate(tmp_path / "image.npy", 1000)
    with pytest.raises(DataFileError, match="image.npy: was cut"):
        RGBDFrame(image, whole.depth, whole.intrinsics)


def test_parts_of_a_mapped_array_ask_for_no_more_than_they_show(tmp_path):
    stack = mapped(tmp_path / "stack.npy", np.arange(4 * 6 * 8, dtype=np.float32).reshape(4, 6, 8))
    os.truncate(tmp_path / "stack.npy", 128 + 4 * 2 * 6 * 8)
    second = in_memory(stack[1][::-1, ::2], "depth")
    assert second.base is None and (second == np.arange(48, 96).reshape(6, 8)[::-1, ::2]).all()
    with pytest.raises(DataFileError, match="stack.npy: was cut"):
        in_memory(np.asarray(stack[2]), "depth")
    own = np.arange(3)
    assert in_memory(own, "depth") is own


@pytest.mark.skipif(not hasattr(signal, "SIGBUS"), reason="the system has no such signal")
def test_the_cut_that_is_tried_here_ends_a_process_that_maps(tmp_path):
    """The tests above would see it."""
    code = """
import os, sys
import numpy as np
np.save(sys.argv[1], np.ones(1 << 20))
array = np.load(sys.argv[1], mmap_mode="r")
os.truncate(sys.argv[1], 4096)
array.sum()
"""
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "array.npy")])
    assert run.returncode == -signal.SIGBUS
