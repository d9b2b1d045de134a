"""Both READMEs: their commands run or are accepted, what they link and name exists, and they say the same."""

import argparse
import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from configparser import ConfigParser
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
from forks import run_command, run_python
from PIL import Image

from bifusion_hf import BiFusionConfig, BiFusionProcessor
from bifusion_hf.assets import SAMPLE_FRAMES
from bifusion_hf.cli import predict
from bifusion_hf.data.frames import frame_from_row, load_frames
from bifusion_hf.recipe.arguments import valid_keys
from bifusion_hf.recipe.reading import load_arguments, recipe_names
from bifusion_hf.visualization.cameras import CAMERA_PRESETS, nominal_intrinsics


ROOT = Path(__file__).parents[1]
READMES = ["README.md", "README.zh-CN.md"]
DOCUMENTS = [*READMES, "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
# Commands whose arguments are a recipe and its keys, instead of a parser's.
RECIPE_COMMANDS = ("train", "check")
# Commands whose module has another name.
MODULES = {"demo": "demo_app", "import": "import_data"}


def blocks(name: str) -> list[tuple[str, str]]:
    """Language and text of the fenced blocks."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def spans(name: str) -> list[str]:
    """Code within lines of prose."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def split_commands(text: str) -> list[list[str]]:
    """Words of each command of a shell script, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    words = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [command for command in words if command]


def commands(name: str) -> list[list[str]]:
    """Every command line, of blocks and of prose."""
    scripts = [text for language, text in blocks(name) if language == "bash"]
    scripts += [span for span in spans(name) if re.match(r"bifusion-[\w-]+( |$)|make |pip install ", span)]
    return [command for script in scripts for command in split_commands(script)]


def accept(words: list[str]) -> None:
    """Raises unless the program of a command line takes its arguments."""
    program, *arguments = words
    if program in ("accelerate", "torchrun"):
        # What a launcher starts comes after its own options.
        start = arguments.index("-m") + 1
        package, _, module = arguments[start].rpartition(".")
        assert package == "bifusion_hf.cli"
        program, arguments = f"bifusion-{module}", arguments[start + 1 :]
    if program.startswith("bifusion-"):
        module = program.removeprefix("bifusion-").replace("-", "_")
        if module in RECIPE_COMMANDS:
            recipe, *overrides = arguments or ["tiny"]
            load_arguments(recipe, overrides)
            return
        command = importlib.import_module(f"bifusion_hf.cli.{MODULES.get(module, module)}")
        parser: argparse.ArgumentParser = command.build_parser()
        parsed = parser.parse_args(arguments)
        if module == "predict":
            predict.check_arguments(parser, parsed)
    elif program == "make":
        subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    elif program == "pip":
        extras = re.findall(r"\.\[(\w+)\]", " ".join(arguments))
        setup = ConfigParser()
        setup.read(ROOT / "setup.cfg")
        # The package is on no index: only the checkout can be installed.
        assert arguments[0] == "install" and arguments[-1].startswith(".")
        assert all(extra in setup["options.extras_require"] for extra in extras)
        assert "-c" not in arguments or (ROOT / arguments[arguments.index("-c") + 1]).is_file()
    else:
        assert words[:2] == ["git", "clone"] or program == "cd", f"nothing here knows {shlex.join(words)}"


def test_both_languages_hold_the_same_code():
    def content(language, text):
        if language == "bash":
            return split_commands(text)
        return ast.dump(ast.parse(text)) if language == "python" else text

    first, second = ([(language, content(language, text)) for language, text in blocks(name)] for name in READMES)
    assert first and first == second


@pytest.mark.parametrize("name", READMES)
def test_every_command_is_accepted(name):
    found = commands(name)
    assert len(found) > 15
    for words in found:
        try:
            accept(words)
        except (Exception, SystemExit) as error:
            pytest.fail(f"{name}: {shlex.join(words)}: {error}")


def test_what_is_wrong_is_not_accepted():
    for words in (
        ["bifusion-predict", "--colour", "color.png"],
        ["bifusion-predict", "--image", "color.png", "--output", "out"],
        ["bifusion-train", "bifusion_tiny"],
        ["accelerate", "launch", "-m", "bifusion_hf.cli.train", "tiny", "--data.trian", "rooms"],
        ["accelerate", "launch", "-m", "bifusion_hf.cli.learn", "tiny"],
        ["make", "everything"],
        ["pip", "install", ".[everything]"],
        ["pip", "install", "bifusion_hf[demo]"],
        ["bifusion-segment"],
        ["rm", "-r", "outputs"],
    ):
        with pytest.raises((Exception, SystemExit)):
            accept(words)


@pytest.mark.parametrize("name", READMES)
def test_keys_and_recipes_exist(name):
    keys = valid_keys()
    fields = {"config": BiFusionConfig.from_preset("tiny"), "processor": BiFusionProcessor.from_preset("tiny")}
    sections = {key.split(".")[0] for key in keys if "." in key}
    found = {match for span in spans(name) for match in re.findall(r"[\w.]*\.\w+", span.split("=")[0])}
    named = {key.removeprefix("--") for key in found if key.split(".")[0] in sections}
    assert len(named) > 8
    for key in named:
        section, _, field = key.removeprefix("model.").partition(".")
        assert key in keys or attrgetter(field)(fields[section]) is not None, key
    rows = re.findall(r"^\| (`[^|]*`) \|[^|]*(?:\[[^|]*\))?[^|]*\| ([^|]*) \| ([^|]*) \|$", _text(name), re.MULTILINE)
    rows = [row for row in rows if set(re.findall(r"`(\w+)`", row[0])) & set(recipe_names())]
    assert len(rows) >= 5
    for recipes, frames, epochs in rows:
        recipes = re.findall(r"`(\w+)`", recipes)
        # One number for all, or one for each.
        frames, epochs = (re.split(r"[,、] ?", cell) * len(recipes) for cell in (frames, epochs))
        for recipe, count, length in zip(recipes, frames, epochs, strict=False):
            training = load_arguments(recipe).training
            expected = f"{training.batch_size} x {training.accumulation}".removesuffix(" x 1")
            assert (count, length) == (expected, str(training.epochs)), recipe


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", READMES)
def test_cameras_have_the_numbers_of_the_presets(name):
    rows = re.findall(r"^\| ([^,|]+), (\d+)x(\d+) \| `([\d. ]+)` \| ([^|]*) \|", _text(name), re.MULTILINE)
    assert {camera for camera, *_ in rows} > {"Intel RealSense D435", "Azure Kinect", "iPhone LiDAR"}
    for camera, width, height, numbers, scale in rows:
        matrix = nominal_intrinsics(camera, int(width), int(height))
        expected = matrix[[0, 1, 0, 1], [0, 1, 2, 2]]
        np.testing.assert_allclose([float(number) for number in numbers.split()], expected, atol=0.01)
        assert "`.npy`" in scale or float(scale.strip("`")) == CAMERA_PRESETS[camera].depth_scale


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", _text(name)):
        path, _, anchor = target.partition("#")
        linked = (ROOT / name).parent / path if path else ROOT / name
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, target


@pytest.fixture
def desk(tmp_path):
    """A folder as a reader's: a frame of their own, and rooms."""
    frame = frame_from_row(load_frames("sample", "val")[0])
    Image.fromarray(frame.image).resize((640, 480)).save(tmp_path / "color.png")
    depth = Image.fromarray(np.rint(frame.depth * 1000).astype(np.uint16))
    depth.resize((640, 480), Image.Resampling.NEAREST).save(tmp_path / "depth.png")
    shutil.copytree(SAMPLE_FRAMES, tmp_path / "rooms")
    return tmp_path


def run(words: list[str], folder: Path, fresh: bool = False) -> subprocess.CompletedProcess:
    """Runs a command of this environment in `folder`, without a network.

    Those of the package run in a fork, or, with `fresh`, as their users start them; Python code is what follows "-c".
    """
    paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    options = {"environment": environment, "cwd": folder, "timeout": 1200}
    if words[0] == "-c":
        result = run_python(words[1], **options)
    elif words[0].startswith("bifusion-"):
        if not fresh:
            # Without it bifusion-train would start itself anew, which a fork cannot.
            environment["OMP_WAIT_POLICY"] = "PASSIVE"
        result = run_command(words, fresh, **options)
    else:
        result = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, f"{shlex.join(words)}\n{result.stdout}\n{result.stderr}"
    return result


def find(*start: str) -> list[str]:
    """The one command of the README that begins so; both languages have the same."""
    (words,) = [words for words in commands("README.md") if words[: len(start)] == list(start)]
    return words


@pytest.mark.slow
def test_a_frame_of_ones_own(desk):
    run(find("bifusion-predict", "--image"), desk, fresh=True)
    assert {path.name for path in (desk / "out").iterdir()} == {"color.json", "color.ply", "color_overlay.png"}
    # Each block goes on from those before.
    text = "\n".join(text for language, text in blocks("README.md") if language == "python")
    lines = run(["-c", text], desk).stdout.splitlines()
    assert len(lines) > 3 and all(any(size in line for line in lines) for size in ("[480, 640]", "(480, 640)"))
    run(find("bifusion-predict", "--data"), desk)
    assert len(list((desk / "out").glob("*_comparison.png"))) == 3


@pytest.mark.slow
def test_train_and_evaluate(desk, monkeypatch):
    # The first frames for one epoch; data and folders are those of the README.
    short = ["--data.max_train_frames", "4", "--data.max_val_frames", "2", "--data.num_workers", "0"]
    short += ["--training.epochs", "1", "--evaluation.every_epochs", "1"]
    # OpenMP tells how its threads wait when torch is loaded: by the launcher, and once by what it starts.
    monkeypatch.setenv("OMP_DISPLAY_ENV", "true")
    told = run([*find("accelerate", "launch"), *short], desk).stderr
    assert re.findall(r"OMP_WAIT_POLICY = '(\w+)'", told)[1:] == ["PASSIVE"]
    output = run([*find("bifusion-evaluate"), "--limit", "4"], desk).stdout
    assert "all_ap" in output and (desk / "results.json").is_file()


@pytest.mark.slow
def test_the_plan_of_a_run(desk):
    # One frame in float32: a plan runs one batch, and bfloat16 takes minutes on a CPU without its instructions.
    small = ["--training.batch_size", "1", "--training.mixed_precision", "no", "--data.cache_superpoints", "false"]
    small += ["--model.processor.num_points", "2000"]
    plan = run([*find("bifusion-train", "bifusion_residual"), *small], desk).stdout
    assert "updates" in plan and "init.clip ViT-B-16/openai: loaded when the run starts" in plan
    assert not (desk / "outputs").exists()
