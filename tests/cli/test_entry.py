import importlib
import os
import pkgutil
import subprocess
import sys

import pytest
from light_package import light_package
from safetensors import SafetensorError

import bifusion_hf.cli
from bifusion_hf.cli.entry import command
from bifusion_hf.training.checkpoints import CheckpointError


HELPERS = {"engine_options", "entry", "labeler_options", "openmp", "output_names", "parser", "recording_options"}


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        FileNotFoundError("x"),
        ImportError("x"),
        SafetensorError("x"),
        RuntimeError("x"),
        CheckpointError("x"),
        MemoryError(),
        BrokenPipeError("x"),
    ],
)
def test_an_expected_error_is_told_in_a_line(error, monkeypatch):
    @command("do-it")
    def main(argv=None):
        raise error

    # As a message, SystemExit prints it on stderr and ends with status 1.
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == f"do-it: error: {'MemoryError' if type(error) is MemoryError else 'x'}"
    monkeypatch.setenv("BIFUSION_TRACEBACK", "1")
    with pytest.raises(type(error)) as shown:
        main([])
    assert shown.value is error


def test_a_fault_of_the_program_keeps_its_traceback():
    @command("do-it")
    def main(argv=None):
        return {}["key"]

    with pytest.raises(KeyError):
        main([])


def test_an_interruption_ends_with_its_own_status(capsys):
    @command("do-it")
    def main(argv=None):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 130
    assert capsys.readouterr().err == "do-it: interrupted\n"


def test_arguments_and_statuses_pass():
    @command("do-it")
    def main(argv=None):
        raise SystemExit(f"{argv}")

    for argv in (None, ["a", "b"]):
        with pytest.raises(SystemExit, match=str(argv).replace("[", r"\[")):
            main(argv)


def test_every_command_ends_so():
    names = {module.name for module in pkgutil.iter_modules(bifusion_hf.cli.__path__)} - HELPERS
    assert "predict" in names and len(names) >= 9
    for name in names:
        main = importlib.import_module(f"bifusion_hf.cli.{name}").main
        assert main.__wrapped__.__module__ == f"bifusion_hf.cli.{name}", name


@pytest.mark.parametrize("length", [10, 100_000])
def test_help_into_a_closed_pipe_is_silent(length, tmp_path):
    """Whether it is written at once, or when the command ends."""
    code = f"""
from bifusion_hf.cli.entry import command

@command("do-it")
def main(argv=None):
    print("x" * {length})

main([])
"""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        env=light_package(tmp_path),
        cwd=tmp_path,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
