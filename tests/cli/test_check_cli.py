import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from bifusion_hf.cli.check import main
from bifusion_hf.data.frames import RGBDFrame, frame_features, frame_to_row
from bifusion_hf.training.environment_check import EnvironmentCheck


ROOT = Path(__file__).parents[2]
HEIGHT, WIDTH = 48, 64
NAMES = [
    "packages", "torchvision", "optional packages", "device", "sparse backends", "recipe", "train frames",
    "val frames", "model", "output folder", "sv3d weights", "clip weights", "vision weights",
    "alignment (train)", "alignment (val)", "forward, backward",
]  # fmt: skip


def write_frames(folder, split, *, labels=True, bgr=False, count=3):
    rows = []
    for index in range(count):
        rng = np.random.default_rng(index)
        depth = np.full((HEIGHT, WIDTH), 2.5)
        depth[15:40, 15:40] = 1.5
        image = np.full((HEIGHT, WIDTH, 3), (200, 120, 40), dtype=np.uint8)
        image[15:40, 15:40] = (30, 90, 220)
        image += rng.integers(0, 4, image.shape).astype(np.uint8)
        intrinsics = np.array([[60, 0, 31.5], [0, 60, 23.5], [0, 0, 1.0]])
        superpoints = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) // 200
        instance = np.where(depth < 2, 0, -1)
        extra = {"instance": instance, "semantic": np.where(depth < 2, 2, 0)} if labels else {}
        frame = RGBDFrame(image, depth, intrinsics, superpoints=superpoints, frame_id=f"room {index}", **extra)
        rows.append(frame_to_row(frame))
    (folder / "data").mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_list(rows, features=frame_features())
    table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    for split in ("train", "val"):
        write_frames(folder, split)
    return folder


@pytest.fixture
def overrides(frames, tmp_path):
    values = {
        "data.train": frames,
        "data.val": frames,
        "model.processor.num_points": 800,
        "model.config.decoder_layers": 1,
        "model.config.decoder_mask_levels": "[superpoint, point]",
        "output_dir": tmp_path / "out",
    }
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


def run(overrides, recipe="tiny"):
    check = EnvironmentCheck(recipe, overrides, num_frames=2)
    return check, {result.name: result for result in check.run()}


def failed_in(results):
    return {name for name, result in results.items() if result.status == "failed"}


def test_a_good_recipe_passes(overrides, capsys, tmp_path):
    main(["tiny", "--frames", "2", *overrides])
    lines = capsys.readouterr().out.splitlines()
    status = {line[9:].split("  ")[0]: line.split()[0] for line in lines if not line.startswith(" ")}
    skipped = {name for name, value in status.items() if value == "skipped"}
    assert [name for name in NAMES if name in status] == NAMES
    assert skipped == {"sv3d weights", "clip weights", "vision weights"}
    assert "Everything that was checked passed." in lines[-1]
    text = "\n".join(lines)
    assert f"torch {torch.__version__}" in text and "3 frames of" in text and "gradients finite" in text
    assert "2 frames, at most 0.00/255" in text
    assert not (tmp_path / "out").exists(), "a check leaves nothing behind"


def test_overrides_may_come_without_a_recipe_and_around_options(overrides):
    with pytest.raises(SystemExit) as stop:
        main([*overrides[:2], "--frames", "1", "--data.val_split", "nothing", *overrides[4:]])
    assert "val frames" in str(stop.value) and "train frames" not in str(stop.value)


def test_a_mistake_in_the_recipe_is_told_and_the_rest_is_skipped(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["tiny", "--training.batchsize", "4"])
    assert str(stop.value).startswith(f"1 of {len(NAMES)} checks failed: recipe")
    out = capsys.readouterr().out
    assert "training.batch_size" in out and "-> bifusion-train --help" in out
    assert out.count("needs: ") == len(NAMES) - NAMES.index("recipe") - 1


def test_each_failure_is_reported_with_what_to_do(overrides, tmp_path):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    wrong = [
        *("--data.val", str(tmp_path / "nowhere")),
        *("--output_dir", str(tmp_path / "file" / "run")),
        *("--init.sv3d", str(tmp_path / "broken.pth")),
        *("--init.clip", str(tmp_path / "absent.bin")),
    ]
    _, results = run([*overrides, *wrong])
    failed = failed_in(results)
    assert failed == {"val frames", "output folder", "sv3d weights", "clip weights"}
    assert all(results[name].remedy for name in failed)
    assert "nowhere" in results["val frames"].detail and "data.val" in results["val frames"].remedy
    assert results["alignment (val)"].status == "skipped"
    # One failure does not hide what is right.
    assert results["forward, backward"].status == results["alignment (train)"].status == "passed"


def test_weights_are_loaded_and_counted(overrides, tmp_path):
    check, _ = run(overrides)
    check.model.save_pretrained(tmp_path / "baseline")
    _, results = run([*overrides, "--init.sv3d", str(tmp_path / "baseline")])
    assert results["sv3d weights"].status == "passed", results["sv3d weights"].detail
    assert "loaded" in results["sv3d weights"].detail and "baseline" in results["sv3d weights"].detail


def test_misaligned_frames_are_caught(overrides, frames, tmp_path, monkeypatch):
    prepare = "bifusion_hf.processing_bifusion.BiFusionProcessor.prepare_frame"
    from bifusion_hf.processing_bifusion import BiFusionProcessor

    original = BiFusionProcessor.prepare_frame

    def as_bgr(self, frame, rng=None):
        sample = original(self, frame, rng)
        return {**sample, "image": np.ascontiguousarray(sample["image"][..., ::-1])}

    monkeypatch.setattr(prepare, as_bgr)
    _, results = run(overrides)
    for split in ("train", "val"):
        result = results[f"alignment ({split})"]
        assert result.status == "failed" and "misaligned" in result.detail and "room 0" in result.detail
        assert "colour order" in result.remedy
    assert results["forward, backward"].status == "skipped"


def test_frames_without_labels_cannot_train(overrides, tmp_path):
    write_frames(tmp_path / "plain", "train", labels=False)
    _, results = run([*overrides, "--data.train", str(tmp_path / "plain"), "--data.val", "null"])
    assert results["val frames"].status == results["alignment (val)"].status == "skipped"
    assert "no" in results["forward, backward"].detail and "instance labels" in results["forward, backward"].detail


def test_broken_frames_are_named_or_skipped_as_in_training(overrides, tmp_path):
    write_frames(tmp_path / "part", "train")
    path = tmp_path / "part" / "data" / "train-00000-of-00001.parquet"
    rows = datasets.Dataset.from_parquet(str(path), features=frame_features()).to_list()
    rows[2]["depth"] = {"bytes": b"no image", "path": None}
    datasets.Dataset.from_list(rows, features=frame_features()).to_parquet(path)
    words = [*overrides, "--data.train", str(tmp_path / "part"), "--data.val", "null"]
    _, results = run(words)
    assert "row 2 (frame 'room 2') is broken" in results["alignment (train)"].detail
    _, results = run([*words, "--data.skip_broken_rows"])
    assert not failed_in(results) and "2 frames, 1 of them broken and skipped" in results["alignment (train)"].detail


def test_a_part_without_gradient_is_named(overrides, monkeypatch):
    from bifusion_hf.layers.superpoint_pooling import SuperpointPooling

    forward = SuperpointPooling.forward
    monkeypatch.setattr(
        SuperpointPooling, "forward", lambda self, *inputs: tuple(value.detach() for value in forward(self, *inputs))
    )
    _, results = run(overrides)
    assert results["forward, backward"].status == "failed"
    assert "superpoint_pooling.shape_in.weight" in results["forward, backward"].detail


def test_mixed_precision_and_streaming(overrides, monkeypatch):
    monkeypatch.setattr("bifusion_hf.layers.bfloat16.bfloat16_slowdown", lambda: 80.0)
    options = ["--training.mixed_precision", "bf16", "--data.streaming", "true", "--training.max_updates", "5"]
    options += ["--evaluation.every_updates", "5", "--checkpoints.every_updates", "5"]
    _, results = run([*overrides, *options])
    assert not failed_in(results), results
    assert "streamed" in results["train frames"].detail
    if not torch.cuda.is_available():
        assert "bfloat16 matrices takes 80 times as long" in results["forward, backward"].detail
        _, results = run([*overrides, "--training.mixed_precision", "fp16"])
        assert "fp16 needs a GPU" in results["recipe"].detail


def test_outdated_packages_are_named(overrides, monkeypatch):
    real = "bifusion_hf.training.environment_check.importlib.metadata.requires"
    monkeypatch.setattr(real, lambda name: ["torch>=99", "numpy>=1", "gradio>=5; extra == 'demo'"])
    _, results = run(["--no.such", "key"])
    assert results["packages"].status == "failed" and "torch" in results["packages"].detail
    assert "numpy" not in results["packages"].detail and "gradio" not in results["packages"].detail


def test_a_torchvision_that_does_not_fit_is_named(monkeypatch):
    module = "bifusion_hf.training.environment_check"
    monkeypatch.setattr(f"{module}.is_available", lambda name: name == "torchvision")
    monkeypatch.setattr(
        f"{module}.torchvision_misfit", lambda: "torchvision 0.1 does not work with torch 2; remove it"
    )
    _, results = run(["--no.such", "key"])
    assert results["torchvision"].status == "failed" and "remove it" in results["torchvision"].detail


def test_bad_usage():
    with pytest.raises(SystemExit) as stop:
        main(["tiny", "--frames", "0"])
    assert stop.value.code == 2


def test_the_command_explains_a_torchvision_that_does_not_fit(tmp_path):
    """It breaks transformers, and with it the package: importing it tells."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        'raise RuntimeError("operator torchvision::nms does not exist")\n'
    )
    (tmp_path / "torchvision-0.1.0.dist-info").mkdir()
    (tmp_path / "torchvision-0.1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1.0\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run(
        [sys.executable, "-m", "bifusion_hf.cli.check", "--no.such", "key"],
        capture_output=True, text=True, env=environment, cwd=ROOT, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (1, "")
    (text,) = result.stderr.splitlines()
    assert text.startswith(f"bifusion-check: error: torchvision 0.1.0 does not work with torch {torch.__version__}")
    assert "pip uninstall torchvision" in text
