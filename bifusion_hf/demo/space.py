"""The demo page as a folder for a Hugging Face Space (Gradio SDK, free CPU hardware)."""

import re
import shutil
from pathlib import Path

from .. import assets
from ..io.hub_files import split_revision


REPOSITORY = "https://github.com/bifusion-hf/bifusion_hf"
# The version that constraints.txt pins.
GRADIO_VERSION = "6.31.0"
CHECKPOINT_FILES = ("config.json", "processor_config.json", "model*.safetensors*")

APP = """{imports}from bifusion_hf.cli.demo_app import launch


launch({checkpoint})
"""
REQUIREMENTS = f"""--extra-index-url https://download.pytorch.org/whl/cpu
bifusion_hf[demo] @ git+{REPOSITORY}
"""
README = f"""---
title: RGB-D instance segmentation
colorFrom: blue
colorTo: gray
sdk: gradio
sdk_version: {GRADIO_VERSION}
python_version: "3.11"
app_file: app.py
license: apache-2.0
short_description: Colour and depth in, 3D object instances out
{{models}}---

One frame of colour and depth in, 3D object instances out, by [bifusion_hf]({REPOSITORY}). Pick a sample frame, or
bring your own with the intrinsics of its depth image. Score and class filter act at once; points (PLY) and instances
(JSON) can be downloaded.
"""
ATTRIBUTES = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


def write_space(folder: Path, checkpoint: str) -> list[Path]:
    """Writes what a Space needs to show the demo page: `app.py`, `requirements.txt`, `README.md`, `.gitattributes`.

    Args:
        folder: Where to; files of these names are overwritten, others are left.
        checkpoint: Id on the Hub, perhaps with `@revision`, which the Space then loads; or a folder, which is copied
            into `checkpoint/` unless it is the one that comes with the package.

    Returns:
        The files that were written.

    Raises:
        ValueError: Neither a folder with a checkpoint nor an id.
    """
    imports, models, copied = "", "", []
    if Path(checkpoint) == assets.SAMPLE_CHECKPOINT:
        imports, argument = "from bifusion_hf.assets import SAMPLE_CHECKPOINT\n", "str(SAMPLE_CHECKPOINT)"
    elif Path(checkpoint).is_dir():
        argument = '"checkpoint"'
        copied = sorted(path for pattern in CHECKPOINT_FILES for path in Path(checkpoint).glob(pattern))
        names = {path.name for path in copied}
        if not {"config.json", "processor_config.json"} <= names or not any("safetensors" in name for name in names):
            raise ValueError(f"{checkpoint}: has {sorted(names)}; expected {', '.join(CHECKPOINT_FILES)}")
    elif re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", checkpoint):
        argument, models = f'"{checkpoint}"', f"models:\n  - {split_revision(checkpoint)[0]}\n"
    else:
        raise ValueError(f"checkpoint is {checkpoint!r}; expected a folder, or an id on the Hub (name/model)")
    texts = {
        "app.py": APP.format(imports=imports, checkpoint=argument),
        "requirements.txt": REQUIREMENTS,
        "README.md": README.format(models=models),
        ".gitattributes": ATTRIBUTES,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    if copied:
        (folder / "checkpoint").mkdir(exist_ok=True)
    targets = [Path(shutil.copyfile(path, folder / "checkpoint" / path.name)) for path in copied]
    return [folder / name for name in texts] + targets
