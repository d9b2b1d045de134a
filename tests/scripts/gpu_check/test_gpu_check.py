import dataclasses
import functools
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile

import pytest
import torch

from scripts.benchmarks import voxel_scenes
from scripts.gpu_check import machine_steps, model_steps, plan, sparse_steps
from scripts.gpu_check.__main__ import main
from scripts.gpu_check.plan import STEPS
from scripts.gpu_check.settings import Settings
from scripts.gpu_check.wheels import install_wheels, recompress


@pytest.fixture
def settings(tmp_path, monkeypatch):
    # A view of full size has a thousand times the voxels that are taken of it.
    view = functools.partial(voxel_scenes.depth_camera_view, height=48, width=64)
    monkeypatch.setattr(voxel_scenes, "depth_camera_view", view)
    sizes = {"voxels": (120,), "determinism_voxels": 120, "large_voxels": 150}
    return dataclasses.replace(Settings.rehearsal(tmp_path), **sizes, dtypes=("bfloat16",))


class Notes(dict):
    def __call__(self, name, value):
        self[name] = value


def make_wheel(folder, name, files):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, text in files.items():
            archive.writestr(inner, text)
    return path


def test_wheels_are_found_by_this_process_and_those_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = "a_module_that_travels"
    make_wheel(
        tmp_path / "one", module, {f"{module}.py": "VALUE = 7\n", f"{module}-1.0.dist-info/METADATA": "Name: x\n"}
    )
    make_wheel(tmp_path / "two", "other", {"other-1.0.data/purelib/other_module.py": "VALUE = 8\n"})
    site = tmp_path / "site"
    install_wheels([tmp_path / "one"], site)
    # What an earlier call left is there too, and is not unpacked again.
    (site / f"{module}.py").write_text("VALUE = 9\n")
    names = install_wheels([tmp_path / "one", tmp_path / "two"], site)
    assert names == [f"{module}-1.0-py3-none-any.whl", "other-1.0-py3-none-any.whl"]
    assert sys.path[0] == str(site)
    script = f"import {module}, other_module; print({module}.VALUE, other_module.VALUE)"
    done = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(site)}, capture_output=True, text=True
    )
    assert done.stdout == "9 8\n"


def test_what_is_no_wheel_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no wheel"):
        install_wheels([tmp_path / "empty"], tmp_path / "site")
    (tmp_path / "empty" / "broken.whl").write_text("no archive")
    with pytest.raises(ValueError, match=r"broken.whl is no wheel"):
        install_wheels([tmp_path / "empty"], tmp_path / "site")
    make_wheel(tmp_path / "outside", "outside", {"../escaped.py": ""})
    with pytest.raises(ValueError, match="lies outside"):
        install_wheels([tmp_path / "outside"], tmp_path / "site")


def test_recompressed_wheels_hold_the_same(tmp_path):
    files = {"module.py": "x = 1\n" * 2000, "module-1.0.dist-info/RECORD": "module.py,,\n"}
    wheel = make_wheel(tmp_path, "module", files)
    assert main(["--recompress", str(wheel), "--into", str(tmp_path / "small")]) == 0
    with zipfile.ZipFile(tmp_path / "small" / wheel.name) as archive:
        assert {name: archive.read(name).decode() for name in archive.namelist()} == files
    assert (tmp_path / "small" / wheel.name).stat().st_size < wheel.stat().st_size / 5
    assert recompress([wheel], tmp_path / "small")[0].name == wheel.name


def test_steps_are_chosen_by_name(tmp_path, capfd):
    output = tmp_path / "gpu.json"
    assert main(["--dry_run", "--only", "versions", "backends", "--skip", "backends", "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert result["is_rehearsal"] and list(result["steps"]) == [step.name for step in STEPS]
    assert result["steps"]["versions"]["found"]["device"] == "cpu"
    assert {entry["status"] for name, entry in result["steps"].items() if name != "versions"} == {"skipped"}
    with pytest.raises(SystemExit):
        main(["--only", "nothing"])
    assert "no such step: nothing; there are versions, " in capfd.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_without_a_gpu_nothing_else_is_tried(tmp_path):
    output = tmp_path / "gpu.json"
    assert main(["--output", str(output)]) == 1
    steps = json.loads(output.read_text())["steps"]
    assert "torch finds no CUDA device; --dry_run rehearses on the CPU" in steps["versions"]["error"]
    assert all(entry["error"] == "versions failed" for name, entry in steps.items() if name != "versions")


def test_the_most_telling_steps_fit_into_the_time():
    # The last ones run in what the others leave.
    assert sum(step.seconds for step in STEPS[:6]) < 60 * 6.75
    assert all(step.about and step.seconds > 0 for step in STEPS)
    assert len({step.name for step in STEPS}) == len(STEPS)


def test_machine_steps(settings):
    notes = Notes()
    machine_steps.versions(settings, notes)
    machine_steps.backends(settings, notes)
    machine_steps.eigen(settings, notes)
    assert notes["packages"]["torch"] == torch.__version__ and notes["torch"] == "works"
    for name in machine_steps.EIGENVALUES:
        assert notes[name]["error"] < 1e-5 and notes[name]["ms"] > 0


def test_sparse_steps(settings):
    notes = Notes()
    sparse_steps.determinism(settings, notes)
    assert notes["torch, bfloat16"] == {"plain": True, "deterministic": True}
    sparse_steps.unet(settings, notes)
    found = notes["120, bfloat16, torch"]
    assert 0 < found["rms_difference"] < 0.1 and found["update_ms"] > 0
    sparse_steps.large(settings, notes)
    assert notes["torch"]["is_finite"]


def test_a_backend_whose_bits_differ_is_told(settings, monkeypatch):
    update, runs = sparse_steps.Scene.update, []

    def changing(self, network, dtype):
        runs.append(dtype)
        return [value + len(runs) for value in update(self, network, dtype)]

    monkeypatch.setattr(sparse_steps.Scene, "update", changing)
    notes = Notes()
    with pytest.raises(RuntimeError, match="not the same bits twice: torch in bfloat16"):
        sparse_steps.determinism(settings, notes)
    assert notes["torch, bfloat16"] == {"plain": False, "deterministic": False}


def test_a_frame_by_stage(settings):
    notes = Notes()
    model_steps.latency(settings, notes)
    found = notes["tiny, bfloat16"]
    assert set(found) == {"processing", "copy", "network", "post-processing", "frame", "peak_mb"}
    assert found["frame"] > 0 and found["network"] > 0


@pytest.mark.slow
def test_updates_are_the_same_when_resumed(settings, monkeypatch):
    notes = Notes()
    model_steps.updates(settings, notes)
    (found,) = notes.values()
    assert found["is_finite"] and found["resumed_difference"] < 0.05 and len(found["losses"]) == settings.updates
    # Another loss after the middle is told.
    runs = iter([{1: 2.0, 2: 3.0}, {2: 3.5}])
    monkeypatch.setattr(model_steps, "train", lambda *_: next(runs))
    (settings.folder / "tiny_bf16" / "checkpoints").mkdir(parents=True, exist_ok=True)
    with pytest.raises(RuntimeError, match="another loss when resumed: tiny in bf16"):
        model_steps.updates(settings, Notes())


def test_reports_of_pytest_are_read():
    text = (
        '<testsuites><testsuite><testcase classname="a" name="b"/>'
        '<testcase classname="a" name="c"><failure message="wrong"/></testcase>'
        '<testcase classname="a" name="d"><skipped/></testcase>'
        '<testcase classname="a" name="e"><error message="worse"/></testcase></testsuite></testsuites>'
    )
    counts, failures = machine_steps.read_report(ElementTree.fromstring(text))
    assert counts == {"tests": 4, "passed": 1, "skipped": 1}
    assert failures == {"a::c": "wrong", "a::e": "worse"}


@pytest.mark.parametrize(("body", "message"), [("pass", None), ("assert 1 == 2", "1 tests fail: .*test_on_gpu")])
def test_tests_of_the_gpu_are_run(settings, tmp_path, monkeypatch, body, message):
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_other.py").write_text("raise RuntimeError('not read')")
    (tests / "test_some.py").write_text(
        f"import pytest\n\ndef test_on_cpu():\n    assert 0\n\n@pytest.mark.gpu\ndef test_on_gpu():\n    {body}\n"
    )
    monkeypatch.setattr(machine_steps, "TESTS", tests)
    notes = Notes()
    if message is None:
        machine_steps.gpu_tests(settings, notes)
    else:
        with pytest.raises(RuntimeError, match=message):
            machine_steps.gpu_tests(settings, notes)
    assert (notes["tests"], notes["passed"]) == (1, int(message is None))


def test_every_step_has_its_function():
    plan.import_all()
    for module, names in {
        machine_steps: ("versions", "backends", "eigen", "gpu_tests"),
        sparse_steps: ("determinism", "unet", "large", "tiles"),
        model_steps: ("latency", "updates", "launches"),
    }.items():
        assert all(callable(getattr(module, name)) for name in names)
    broken = plan._late("no_such_module", "anything")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        broken(None, None)
