"""The command line of releases; what becomes of them on the Hub is tested in tests/hub/test_release.py."""

import json
import shutil

import pytest
from hub_client import run_python
from hub_server import TOKEN, HubServer
from release_files import RESULTS, save_checkpoint

from bifusion_hf.assets import SAMPLE_FRAMES
from bifusion_hf.cli.push_to_hub import find_recipe, main
from bifusion_hf.data.frames import load_frames


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("run"))


@pytest.fixture
def metrics(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**RESULTS, "protocol": {"data": "sample", "split": "val"}}))
    return path


NAMES = ["--training_data", "Rooms", "--training_data_license", "cc0-1.0"]


def test_a_dry_run_writes_the_folder(checkpoint, metrics, tmp_path, capsys):
    folder = tmp_path / "release"
    main([str(checkpoint), "org/m", "--metrics", str(metrics), "--dry_run", str(folder), "--tag", "v1", *NAMES])
    assert (folder / "model.safetensors").is_file() and (folder / "recipe.yaml").is_file()
    card = (folder / "README.md").read_text()
    assert "bifusion-evaluate org/m --data sample --split val" in card and "Rooms, licence: cc0-1.0" in card
    assert "not uploaded" in capsys.readouterr().out


def test_a_dry_run_of_a_data_set_writes_what_loads_and_uploads_nothing(tmp_path, capsys):
    folder = tmp_path / "release"
    main([str(SAMPLE_FRAMES), "org/rooms", "--type", "dataset", "--dry_run", str(folder), "--tag", "v1"])
    assert f"{folder}: the release, not uploaded" in capsys.readouterr().out
    files = [path.relative_to(SAMPLE_FRAMES) for path in SAMPLE_FRAMES.rglob("*") if path.is_file()]
    assert sorted(files) == sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert all((folder / name).read_bytes() == (SAMPLE_FRAMES / name).read_bytes() for name in files)
    for split in ("train", "val"):
        assert load_frames(folder, split)["frame_id"] == load_frames("sample", split)["frame_id"]
    with HubServer() as hub:
        arguments = [str(SAMPLE_FRAMES), "org/rooms", "--dry_run", str(tmp_path / "again"), "--public"]
        result = run_python(
            "import sys; from bifusion_hf.cli.push_to_hub import main; main([*sys.argv[1:], '--type', 'dataset'])",
            hub, tmp_path / "home", *arguments, token=None,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert not hub.requests and not hub.repositories
    # A card is made where there is none, and what must stay private is refused before anything is written.
    bare = tmp_path / "bare"
    shutil.copytree(SAMPLE_FRAMES / "data", bare / "data")
    words = ["--name", "Kitchens", "--license", "cc-by-4.0", "--origin", "My kitchen."]
    main([str(bare), "org/k", "--type", "dataset", "--dry_run", str(tmp_path / "kitchens"), *words])
    assert "My kitchen." in (tmp_path / "kitchens" / "README.md").read_text()
    (bare / "README.md").write_text("---\nlicense: other\nlicense_name: scannet-terms-of-use\n---\n")
    with pytest.raises(SystemExit, match="must be private"):
        main([str(bare), "org/k", "--type", "dataset", "--dry_run", str(tmp_path / "scans"), "--public"])
    assert not (tmp_path / "scans").exists()


def test_what_is_missing_is_named(checkpoint, metrics, tmp_path, capsys):
    def error_of(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return f"{stop.value} {capsys.readouterr().err}"

    dry = ["--dry_run", tmp_path / "release"]
    assert "--metrics is missing" in error_of(checkpoint, "org/m", *dry)
    assert "--origin: not for --type model" in error_of(checkpoint, "org/m", "--origin", "x", *dry)
    assert "--metrics: not for --type dataset" in error_of("d", "org/d", "--type", "dataset", "--metrics", "x", *dry)
    assert "/home/me/rooms" in error_of(checkpoint, "org/m", "--metrics", metrics, *dry)
    assert "owner/name" in error_of(checkpoint, "m", "--metrics", metrics, *dry, *NAMES)
    (tmp_path / "bad.json").write_text("{}")
    assert "bad.json" in error_of(checkpoint, "org/m", "--metrics", tmp_path / "bad.json", *dry, *NAMES)
    with pytest.raises(ValueError, match="--recipe"):
        find_recipe(str(tmp_path))
    assert not (tmp_path / "release").exists()


DATASET = """
import sys
from bifusion_hf.cli.push_to_hub import main
main([*sys.argv[1:], "--type", "dataset", "--tag", "v1"])
from bifusion_hf.data.frames import frame_from_row, load_frames
frame = frame_from_row(load_frames("org/rooms", "val")[0])
print(frame.image.shape)
"""


def test_a_data_set_goes_up_and_comes_down(tmp_path):
    with HubServer() as hub:
        result = run_python(DATASET, hub, tmp_path / "home", str(SAMPLE_FRAMES), "org/rooms")
        assert result.returncode == 0, result.stderr
        repository = hub.repository("org/rooms", "dataset")
        assert repository.private and repository.tags == {"v1": repository.branches["main"]}
        files = hub.files("org/rooms", "v1", "dataset")
    assert set(files) == {".gitattributes"} | {
        path.relative_to(SAMPLE_FRAMES).as_posix() for path in SAMPLE_FRAMES.rglob("*") if path.is_file()
    }
    assert "tag v1" in result.stdout and "(240, 320, 3)" in result.stdout
    # Neither printed nor stored.
    assert TOKEN not in result.stdout + result.stderr
    for path in (tmp_path / "home").rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()


def test_without_a_token_the_remedy_is_told(tmp_path):
    code = "import sys; from bifusion_hf.cli.push_to_hub import main; main([*sys.argv[1:], '--type', 'dataset'])"
    with HubServer() as hub:
        result = run_python(code, hub, tmp_path / "home", str(SAMPLE_FRAMES), "org/rooms", token=None)
        assert not hub.repositories
    assert result.returncode == 1
    assert "hf auth login" in result.stderr and "Traceback" not in result.stderr
