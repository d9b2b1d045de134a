"""What importing the package costs, and what a checkpoint says about the package."""

import configparser
import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

from bifusion_hf import (
    BiFusionConfig,
    BiFusionForInstanceSegmentation,
    BiFusionProcessor,
    import_utils,
    version,
)
from bifusion_hf.version import __version__, check_checkpoint_version


HEAVY = (
    "datasets",
    "open_clip",
    "torchvision",
    "gradio",
    "spconv",
    "spconv_triton",
    "skimage",
    "embreex",
    "rerun",
    "imageio",
    "pandas",
    "onnx",
)


PROGRAM = """
import os, sys
import bifusion_hf

print(*sys.modules, flush=True)
import torch

torch.set_num_threads(int(sys.argv[1]))
model = bifusion_hf.BiFusionForInstanceSegmentation.from_pretrained(sys.argv[2])
with torch.no_grad():
    logits = model(**torch.load(sys.argv[3])).masks_queries_logits
torch.save(logits, sys.argv[4])
# Without what Python does at its end, which takes most of a second.
os._exit(0)
"""


@pytest.fixture(scope="module")
def in_a_fresh_process(small_config, make_batch, tmp_path_factory):
    """The modules that importing the package brings, and logits of a checkpoint there and here."""
    folder = tmp_path_factory.mktemp("fresh")
    torch.manual_seed(0)
    model = BiFusionForInstanceSegmentation(small_config("lite_gate")).eval()
    with torch.no_grad():
        # Away from where they start, so that every part shows in the output.
        for value in (*model.parameters(), *(value for name, value in model.named_buffers() if "mean" in name)):
            value.add_(0.05 * torch.randn_like(value))
        batch = {name: value for name, value in make_batch().items() if not name.endswith("_labels")}
        expected = model(**batch).masks_queries_logits
    model.save_pretrained(folder / "model")
    torch.save(batch, folder / "batch.pt")
    arguments = [str(torch.get_num_threads()), *(str(folder / name) for name in ("model", "batch.pt", "logits.pt"))]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.split(), torch.load(folder / "logits.pt"), expected


def test_import_brings_no_package_that_is_only_sometimes_used(in_a_fresh_process):
    modules, *_ = in_a_fresh_process
    assert "bifusion_hf" in modules and not set(HEAVY) & set(modules)


def test_same_prediction_in_a_fresh_process(in_a_fresh_process):
    _, found, expected = in_a_fresh_process
    # But for the last bits, which a matrix product may give otherwise where memory lies otherwise.
    assert expected.std() > 0 and (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_a_checkpoint_names_the_version_that_wrote_it(small_config, tmp_path):
    small_config().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["bifusion_hf_version"] == __version__
    assert not hasattr(BiFusionConfig.from_pretrained(tmp_path), "bifusion_hf_version")


@pytest.mark.parametrize(
    ("written_by", "installed", "readable"),
    [
        (None, "0.1.0", True),
        ("0.1.0", "0.1.0", True),
        ("0.1.9", "0.1.0", True),
        ("0.1.0", "0.2.3", True),
        ("0.2.0", "0.1.9", False),
        ("1.0.0", "0.9.0", False),
        ("0.10.0", "0.9.0", False),
        ("0.9.0", "0.10.0", True),
        ("0.2.0.dev1", "0.1.0", False),
    ],
)
def test_which_checkpoints_a_version_reads(written_by, installed, readable, monkeypatch):
    monkeypatch.setattr(version, "__version__", installed)
    if readable:
        check_checkpoint_version(written_by)
    else:
        with pytest.raises(ValueError, match=r"bifusion_hf .*pip install --upgrade"):
            check_checkpoint_version(written_by)


@pytest.mark.parametrize("written_by", ["new", "1", 3])
def test_a_malformed_version_is_named(written_by):
    with pytest.raises(ValueError, match="bifusion_hf_version"):
        check_checkpoint_version(written_by)


def test_a_newer_checkpoint_says_so_before_anything_else(small_config, tmp_path):
    """Fields of the later release that this one would stumble over come second."""
    BiFusionForInstanceSegmentation(small_config()).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content.update(bifusion_hf_version="99.0.0", fusion_type="of the future")
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"saved by bifusion_hf 99\.0\.0; installed is .*pip install --upgrade"):
        BiFusionForInstanceSegmentation.from_pretrained(tmp_path)


def test_other_classes_keep_the_backbone_and_get_new_heads(small_config, tmp_path, caplog):
    trained = BiFusionForInstanceSegmentation(small_config("residual", num_labels=5))
    trained.save_pretrained(tmp_path)
    names = {0: "mug", 1: "drill"}
    model, report = BiFusionForInstanceSegmentation.from_pretrained(
        tmp_path, id2label=names, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert model.config.num_labels == 2 and model.config.id2label == names
    assert model.config.label2id == {"mug": 0, "drill": 1}
    replaced = {name for name, *_ in report["mismatched_keys"]}
    assert replaced and all(name.startswith("decoder.") for name in replaced)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    before = trained.state_dict()
    for name, value in model.state_dict().items():
        if name in replaced:
            # Two labels and "no object" instead of five.
            assert value.shape[0] == 3 and before[name].shape[0] == 6
        else:
            assert value.equal(before[name]), name
    assert "MISMATCH" in caplog.text and all(name in caplog.text for name in replaced)
    assert "incompatible" not in caplog.text
    processor = BiFusionProcessor.from_config(model.config, class_to_label=[-1] * 198 + [0, 1])
    assert processor.label_names == ["mug", "drill"]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("version", [(3, 10), (3, 11), (3, 12), (3, 13), (3, 14)])
def test_the_extra_spconv_brings_a_package_for_every_python(monkeypatch, machine, version):
    """What the error message names is what the extra brings there."""
    parser = configparser.ConfigParser()
    parser.read(Path(__file__).parents[1] / "setup.cfg")
    environment = {
        "sys_platform": "linux",
        "platform_machine": machine,
        "python_version": ".".join(map(str, version)),
    }
    requirements = map(Requirement, parser["options.extras_require"]["spconv"].strip().splitlines())
    (brought,) = [requirement.name for requirement in requirements if requirement.marker.evaluate(environment)]
    monkeypatch.setattr(import_utils, "sys", SimpleNamespace(version_info=(*version, 0), platform="linux"))
    monkeypatch.setattr(platform, "machine", lambda: machine)
    for package in ("spconv", "spconv_triton"):
        advice = import_utils.how_to_install(package)
        assert re.findall(r"spconv-\w+", advice) == [brought] and "bifusion_hf[spconv]" in advice
    monkeypatch.setattr(import_utils, "sys", SimpleNamespace(version_info=(*version, 0), platform="win32"))
    assert "no package" in import_utils.how_to_install("spconv")


@pytest.mark.parametrize(
    ("program", "given", "expected"),
    [
        (["bifusion-predict", "--help"], {}, "1000"),
        (["bifusion-predict", "--help"], {"GOMP_SPINCOUNT": "7"}, "7"),
        (["bifusion-predict", "--help"], {"OMP_WAIT_POLICY": "active"}, None),
        (["my_program.py"], {}, None),
    ],
)
def test_threads_of_commands_alone_sleep_soon_while_they_wait(program, given, expected, monkeypatch):
    environment = dict(given)
    monkeypatch.setattr(import_utils, "os", SimpleNamespace(environ=environment))
    monkeypatch.setattr(import_utils, "sys", SimpleNamespace(argv=program, orig_argv=["python", *program]))
    frozen = []
    monkeypatch.setattr(import_utils, "gc", SimpleNamespace(freeze=lambda: frozen.append(program)))
    with import_utils.import_for_command():
        assert environment.get("GOMP_SPINCOUNT") == expected and not frozen
    # What a command has imported is not looked through any more.
    assert frozen == [program] * program[0].startswith("bifusion-")


@pytest.mark.parametrize(
    ("program", "given", "modules", "expected"),
    [
        (["bifusion-train", "tiny"], {}, (), "PASSIVE"),
        (["bifusion-train", "tiny"], {"OMP_WAIT_POLICY": "active"}, (), "active"),
        # It would say so of threads that wait as they did.
        (["bifusion-train", "tiny"], {}, ("torch",), None),
        (["bifusion-predict", "--help"], {}, (), None),
        (["my_program.py"], {}, (), None),
    ],
)
def test_threads_of_a_training_do_not_wait_in_a_loop(program, given, modules, expected, monkeypatch):
    environment = dict(given)
    monkeypatch.setattr(import_utils, "os", SimpleNamespace(environ=environment, name="posix"))
    arguments = {"argv": program, "orig_argv": ["python", *program]}
    monkeypatch.setattr(import_utils, "sys", SimpleNamespace(modules=dict.fromkeys(modules), **arguments))
    monkeypatch.setattr(import_utils, "gc", SimpleNamespace(freeze=list))
    with import_utils.import_for_command():
        assert environment.get("OMP_WAIT_POLICY") == expected
