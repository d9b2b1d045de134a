"""The options that all commands have, and their old names."""

import importlib
import os

import pytest

from bifusion_hf.cli import train
from bifusion_hf.cli.parser import use_device
from bifusion_hf.recipe.reading import load_arguments, take_device
from bifusion_hf.version import __version__


PARSERS = (
    *("convert_sv3d", "demo_app", "evaluate", "predict", "prepare_scannet200", "push_to_hub", "render_rooms", "scan"),
)
# Old and other spellings -> what they set.
SPELLINGS = [
    ("evaluate", ["sample", "--data", "sample", "--batch-size", "3", "--class-agnostic"], {"batch_size": 3}),
    ("evaluate", ["sample", "--data", "sample", "--batch-size=3"], {"batch_size": 3}),
    ("prepare_scannet200", ["--scans", "s", "--out", "o", "--split", "a=b"], {"output": "o"}),
    ("render_rooms", ["--out", "o", "--jpeg-quality", "9", "--texture-pack", "p"], {"output": "o", "jpeg_quality": 9}),
    ("render_rooms", ["--output", "o", "--texture_pack", "p"], {"texture_pack": "p"}),
    ("convert_sv3d", ["a", "b", "--push-to-hub", "me/a"], {"push_to_hub": "me/a"}),
    ("predict", ["--output", "o", "--pose", "p.txt", "--depth-scale", "5000"], {"camera_to_world": "p.txt"}),
    ("scan", ["a", "--output", "o", "--max-difference", "0.5"], {"max_difference": 0.5}),
    # Of a value nothing is changed.
    (
        "predict",
        ["--output", "o", "--data", "my-rooms", "--checkpoint=a-b"],
        {"data": "my-rooms", "checkpoint": "a-b"},
    ),
]


def parser_of(command):
    return importlib.import_module(f"bifusion_hf.cli.{command}").build_parser()


@pytest.mark.parametrize(("command", "words", "values"), SPELLINGS)
def test_dashes_underscores_and_old_names(command, words, values):
    found = vars(parser_of(command).parse_args(words))
    assert {name: str(found[name]) for name in values} == {name: str(value) for name, value in values.items()}


@pytest.mark.parametrize("command", [*PARSERS, "check", "train"])
def test_every_command_tells_its_version(command, capsys):
    main = importlib.import_module(f"bifusion_hf.cli.{command}").main
    try:
        main(["--version"])
    except SystemExit as end:
        assert end.code == 0
    name = command.removesuffix("_app").replace("_", "-")
    assert capsys.readouterr().out == f"bifusion-{name} {__version__}\n"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("evaluate", ["a", "--checkpoint", "b", "--data", "sample"]),
        ("scan", ["a", "--data", "b", "--output", "o"]),
        ("scan", ["--output", "o"]),
        ("convert_sv3d", ["a", "b", "--output", "c"]),
        ("convert_sv3d", ["a"]),
    ],
)
def test_a_thing_is_named_once(command, words, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"bifusion_hf.cli.{command}").main(words)
    assert end.value.code == 2 and "error: expected" in capsys.readouterr().err


def test_words_of_other_commands_in_a_recipe():
    found = load_arguments("tiny", ["--output", "out", "--data", "my-rooms", "--checkpoint", "sample"])
    assert (found.output_dir, found.data.train, found.data.val) == ("out", "my-rooms", "my-rooms")
    assert found.model.pretrained == "sample"
    words = ["--training.batch-size", "3", "--output-dir=o", "--training.unfreeze_at.a-b", "0.5"]
    found = load_arguments("tiny", words)
    assert (found.training.batch_size, found.output_dir, found.training.unfreeze_at) == (3, "o", {"a-b": 0.5})
    with pytest.raises(ValueError, match="unknown key 'training.batch-siz'"):
        load_arguments("tiny", ["--training.batch-siz", "3"])


def test_the_device_is_no_key_of_a_recipe(monkeypatch):
    assert take_device(["tiny", "--device", "cuda:1", "--seed", "3"]) == (["tiny", "--seed", "3"], "cuda:1")
    assert take_device(["--device=cpu"]) == ([], "cpu")
    with pytest.raises(ValueError, match="--device: expected cpu"):
        take_device(["tiny", "--device"])
    for name in ("ACCELERATE_USE_CPU", "ACCELERATE_TORCH_DEVICE"):
        monkeypatch.setenv(name, "before")
        monkeypatch.delenv(name)
    use_device(None)
    use_device("cpu")
    use_device("cuda:1")
    assert (os.environ["ACCELERATE_USE_CPU"], os.environ["ACCELERATE_TORCH_DEVICE"]) == ("true", "cuda:1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="each of the launched processes"):
        use_device("cuda:1")


def test_a_run_goes_on_where_it_was_asked_to_run():
    command = train.command_to_go_on(["tiny", "--device", "cpu", "--overwrite-output-dir"])
    assert command == "bifusion-train tiny --device cpu --resume_from_checkpoint latest"
