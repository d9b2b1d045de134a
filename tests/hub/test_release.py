"""Releases: what is in them, that they arrive whole, and that they load again.

The Hub is a stand-in on loopback; its clients run in processes of their own, because huggingface_hub reads the address
when it is imported.
"""

import hashlib
import json
import shutil

import pytest
from hub_client import run_python
from hub_server import TOKEN
from PIL import Image
from release_files import EVALUATION_DATA, RESULTS, TRAINING_DATA, recipe, save_checkpoint, small_model
from transformers import AutoModelForInstanceSegmentation, AutoProcessor

from bifusion_hf import BiFusionForInstanceSegmentation, BiFusionProcessor
from bifusion_hf.evaluation.results import load_results
from bifusion_hf.hub.release import check_repo_id, write_dataset_release, write_model_release
from bifusion_hf.recipe.reading import load_arguments


FILES = {
    "README.md",
    "config.json",
    "metrics.json",
    "model.safetensors",
    "picture.png",
    "processor_config.json",
    "recipe.yaml",
    "remote_code_shim.py",
}


def run(code, hub, home, *arguments, **options):
    result = run_python(code, hub, home, *arguments, **options)
    assert result.returncode == 0, result.stderr
    assert TOKEN not in result.stdout + result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("run"))


def write_release(folder, checkpoint, **overrides):
    arguments = {
        "repo_id": "org/m",
        "results": RESULTS,
        "recipe": recipe(checkpoint.parent),
        "training_data": TRAINING_DATA,
        "evaluation_data": EVALUATION_DATA,
        "license": "apache-2.0",
        "tag": "v1",
    }
    write_model_release(folder, checkpoint, **{**arguments, **overrides})


@pytest.fixture(scope="module")
def release(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("releases") / "m"
    write_release(folder, checkpoint)
    return folder


def test_the_folder_of_a_model_release_is_complete(release, checkpoint):
    assert {path.name for path in release.iterdir()} == FILES
    picture = Image.open(release / "picture.png")
    assert picture.mode == "RGB" and min(picture.size) >= 240
    results = load_results(release / "metrics.json")
    assert results["class_agnostic"] == RESULTS["class_agnostic"]
    assert results["protocol"] == {"checkpoint": "org/m", "data": "Kitchens", "split": "val", "min_points": 4.5}
    published = load_arguments(release / "recipe.yaml")
    assert (published.data.train, published.data.val, published.output_dir) == ("org/rooms", "Kitchens", "outputs/m")
    assert published.optimizer == recipe(checkpoint.parent).optimizer
    for path in release.iterdir():
        assert b"/home/me" not in path.read_bytes() and str(checkpoint.parent).encode() not in path.read_bytes()
    config = json.loads((release / "config.json").read_text())
    assert config["auto_map"]["AutoModelForInstanceSegmentation"].startswith("remote_code_shim.")
    assert "custom_pipelines" not in config


@pytest.mark.parametrize("key", ["init.sv3d", "init.clip", "init.vision", "model.pretrained"])
def test_weights_to_start_from_are_named_without_their_folder(key, checkpoint, tmp_path):
    started = load_arguments("tiny", [f"--{key}", "/home/me/towers/dinov2", "--data.train", "/home/me/rooms"])
    write_release(tmp_path / "r", checkpoint, recipe=started)
    section, field = key.split(".")
    assert getattr(getattr(load_arguments(tmp_path / "r" / "recipe.yaml"), section), field) == "dinov2"
    assert all(b"/home/me" not in path.read_bytes() for path in (tmp_path / "r").iterdir())


def test_the_sources_of_a_mixture_are_named_without_their_folder(checkpoint, tmp_path):
    mixed = load_arguments("tiny", ["--data.train", "{/home/me/rooms: 1, org/tabletop: 2}"])
    write_release(tmp_path / "r", checkpoint, recipe=mixed)
    assert load_arguments(tmp_path / "r" / "recipe.yaml").data.train == {"rooms": 1.0, "org/tabletop": 2.0}


def test_a_release_loads_as_the_checkpoint_does(release, checkpoint, tmp_path):
    original = BiFusionForInstanceSegmentation.from_pretrained(checkpoint)
    released = AutoModelForInstanceSegmentation.from_pretrained(release)
    assert type(released) is BiFusionForInstanceSegmentation
    for name, value in original.state_dict().items():
        assert value.equal(released.state_dict()[name]), name
    processor = AutoProcessor.from_pretrained(release)
    assert processor.to_dict() == BiFusionProcessor.from_pretrained(checkpoint).to_dict()
    # A checkpoint that is trained on from a release has no shim beside it and must not ask for one.
    released.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for name in ("config.json", "processor_config.json"):
        assert "auto_map" not in json.loads((tmp_path / name).read_text())


REMOTE_CODE = """
import importlib.abc, json, os, sys
from transformers import AutoConfig, AutoModel, AutoModelForInstanceSegmentation, AutoProcessor

class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "bifusion_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def error_of(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except Exception as error:
        return str(error)

release, again = sys.argv[1:]
finder = Hide()
sys.meta_path.insert(0, finder)
missing = error_of(AutoModelForInstanceSegmentation.from_pretrained, release, trust_remote_code=True)
sys.meta_path.remove(finder)
untrusted = error_of(AutoConfig.from_pretrained, release, trust_remote_code=False)
before = "bifusion_hf" in sys.modules
processor = AutoProcessor.from_pretrained(release, trust_remote_code=True)
config = AutoConfig.from_pretrained(release, trust_remote_code=True)
base = AutoModel.from_pretrained(release, trust_remote_code=True)
model = AutoModelForInstanceSegmentation.from_pretrained(release, trust_remote_code=True)
model.save_pretrained(again)
processor.save_pretrained(again)
import bifusion_hf
print(json.dumps({
    "missing": missing, "untrusted": untrusted, "before": before,
    "classes": [type(item) is cls for item, cls in (
        (processor, bifusion_hf.BiFusionProcessor), (config, bifusion_hf.BiFusionConfig),
        (base, bifusion_hf.BiFusionModel), (model, bifusion_hf.BiFusionForInstanceSegmentation))],
    "sum": sum(p.double().sum().item() for p in model.parameters()),
}), flush=True)
# Without what Python does at its end, which takes most of a second.
os._exit(0)
"""


def test_remote_code_loads_without_importing_the_package(release, hub, tmp_path):
    result = run(REMOTE_CODE, hub, tmp_path / "home", str(release), str(tmp_path / "again"), fresh=True)
    assert "pip install bifusion_hf" in result["missing"]
    assert "trust_remote_code" in result["untrusted"]
    assert not result["before"] and all(result["classes"])
    total = sum(p.double().sum().item() for p in BiFusionForInstanceSegmentation.from_pretrained(release).parameters())
    assert result["sum"] == pytest.approx(total)
    again = {path.name for path in (tmp_path / "again").iterdir()}
    assert again == {"config.json", "model.safetensors", "processor_config.json"}


def test_a_checkpoint_that_is_not_whole_is_refused(checkpoint, tmp_path):
    model = small_model()
    state = {name: value for name, value in model.state_dict().items() if "class_head" not in name}
    model.save_pretrained(tmp_path / "partial", state_dict=state)
    BiFusionProcessor.from_config(model.config).save_pretrained(tmp_path / "partial")
    with pytest.raises(ValueError, match="missing_keys"):
        write_release(tmp_path / "r", tmp_path / "partial")
    shutil.copytree(checkpoint, tmp_path / "renamed")
    BiFusionProcessor.from_config(model.config, label_names=["thing"]).save_pretrained(tmp_path / "renamed")
    with pytest.raises(ValueError, match="label_names"):
        write_release(tmp_path / "r", tmp_path / "renamed")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "old.txt").write_text("")
    with pytest.raises(ValueError, match="not an empty folder"):
        write_release(tmp_path / "full", checkpoint)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("name", ["m", "a/b/c", "org/m m", "org/", ""])
def test_a_malformed_repository_is_named(name):
    with pytest.raises(ValueError, match="repository"):
        check_repo_id(name)


PUBLISH = """
import json, sys
from pathlib import Path
from bifusion_hf.hub.release import ReleaseError, publish

def error_of(*arguments, **options):
    try:
        publish(*arguments, **options)
    except (ReleaseError, ValueError) as error:
        return f"{type(error).__name__}: {error}"

folder = Path(sys.argv[1])
"""


def test_push_tag_pull_and_offline(release, hub, tmp_path):
    folder = shutil.copytree(release, tmp_path / "release")
    code = """
first = publish(folder, "org/m", tag="v1")
(folder / "picture.png").unlink()
(folder / "README.md").write_text((folder / "README.md").read_text() + "Second.")
second = publish(folder, "org/m", tag="v2", message="Second")
print(json.dumps([vars(first), vars(second)]))
"""
    first, second = run(PUBLISH + code, hub, tmp_path / "home", str(folder))
    repository = hub.repository("org/m")
    assert repository.private and repository.tags == {"v1": first["commit"], "v2": second["commit"]}
    assert first["url"] == f"{hub.url}/org/m"
    # One commit each, after the one that the Hub makes itself.
    assert [commit.title for commit in repository.commits[1:]] == ["Release v1", "Second"]
    expected = {path.name: path.read_bytes() for path in release.iterdir()}
    assert hub.files("org/m", "v1") == {".gitattributes": b"", **expected}
    assert set(hub.files("org/m", "v2")) == {".gitattributes", *expected} - {"picture.png"}
    puts = [request for request in hub.requests if request.startswith("PUT")]
    assert len(puts) == len(set(puts)), "the weights were sent once for both releases"

    code = """
import json, sys
from bifusion_hf import BiFusionForInstanceSegmentation
from bifusion_hf.hub.pretrained import load_pretrained
from transformers import AutoProcessor

def total(revision):
    AutoProcessor.from_pretrained("org/m", revision=revision)
    model = BiFusionForInstanceSegmentation.from_pretrained("org/m", revision=revision)
    return sum(p.double().sum().item() for p in model.parameters())

def error_of(name, **options):
    try:
        BiFusionForInstanceSegmentation.from_pretrained(name, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

print(json.dumps({
    "v1": total("v1"), "commit": total(sys.argv[1]), "revision": error_of("org/m", revision="v9"),
    "none": error_of("org/none"), "wrong": error_of("org/wrong", revision="main"),
    "flipped": error_of("org/flipped"), "at": load_pretrained("org/m@v1")[0].num_parameters(),
}))
"""
    cache = tmp_path / "fresh"
    # Other content under the promised sha256, once unreadable, once with a single bit of a weight changed.
    weights = bytearray(expected["model.safetensors"])
    weights[-1] ^= 1
    for name, content in (("wrong", bytes(len(weights))), ("flipped", bytes(weights))):
        hub.add(f"org/{name}", {path.name: path for path in release.iterdir()})
        hub.fail("GET", f"org/{name}/resolve/.*safetensors", content=content, times=9)
    total = sum(p.double().sum().item() for p in BiFusionForInstanceSegmentation.from_pretrained(release).parameters())
    pulled = run(code, hub, cache, second["commit"])
    assert pulled["v1"] == pulled["commit"] == pytest.approx(total)
    assert "v9" in pulled["revision"] and "org/none" in pulled["none"]
    assert pulled["at"] == small_model().num_parameters()
    promised = hashlib.sha256(expected["model.safetensors"]).hexdigest()
    for name, content in (("wrong", bytes(len(weights))), ("flipped", bytes(weights))):
        found = hashlib.sha256(content).hexdigest()
        assert pulled[name].startswith("DataFileError") and "model.safetensors" in pulled[name]
        assert f"has the sha256 {found}, but the Hub promised {promised}" in pulled[name]
        assert f"blobs/{promised} and load again" in pulled[name]
    before = len(hub.requests)
    offline = run(code, hub, cache, second["commit"], HF_HUB_OFFLINE="1")
    assert offline["v1"] == offline["commit"] == pulled["v1"]
    assert "OSError" in offline["revision"] and "OSError" in offline["none"]
    assert len(hub.requests) == before


def test_failures_leave_no_half_release_and_can_be_repeated(release, hub, tmp_path):
    folder = shutil.copytree(release, tmp_path / "release")
    hub.create("org/public")
    hub.add("org/tagged", {"a.txt": "a"}, private=True)
    hub.repository("org/tagged").tags["v1"] = hub.repository("org/tagged").branches["main"]
    hub.fail("PUT", "/large-files/", status=400, message="broken upload")
    hub.fail("POST", "org/dropped/commit/", drop_after=0)
    hub.fail("POST", "org/untagged/tag/", status=500)
    hub.fail("PUT", "/large-files/", corrupt=True)
    code = """
import os
token = os.environ["HF_TOKEN"]
results = {"upload": error_of(folder, "org/upload", tag="v1")}
results["corrupt"] = error_of(folder, "org/corrupt", tag="v1")
weights = folder / "model.safetensors"
weights.write_bytes(weights.read_bytes() + b" ")
for name in ("dropped", "untagged", "tagged", "public"):
    results[name] = error_of(folder, f"org/{name}", tag="v1")
for name in ("upload", "dropped", "untagged"):
    results[f"{name} again"] = error_of(folder, f"org/{name}", tag="v1")
(folder / "notes.txt").write_text(f"my token is {token}")
results["secret"] = error_of(folder, "org/secret")
(folder / "notes.txt").unlink()
os.environ["HF_TOKEN"] = "hf_wrong"
results["wrong"] = error_of(folder, "org/new")
del os.environ["HF_TOKEN"]
results["none"] = error_of(folder, "org/new")
print(json.dumps(results))
"""
    results = run(PUBLISH + code, hub, tmp_path / "home", str(folder))
    assert "ReleaseError: the upload to org/upload failed" in results["upload"]
    assert "ReleaseError: the upload to org/dropped failed" in results["dropped"]
    assert "ReleaseError: org/untagged has the release" in results["untagged"]
    assert "ReleaseError" in results["corrupt"] and "checksums of ['model.safetensors'" in results["corrupt"]
    assert not hub.repository("org/corrupt").tags
    assert "ValueError: org/tagged has the tag 'v1' already" in results["tagged"]
    assert "ValueError: org/public is public, the release is to be private" in results["public"]
    assert "ValueError" in results["secret"] and "notes.txt holds the access token" in results["secret"]
    for name in ("wrong", "none"):
        assert "ReleaseError: org/new could not be opened" in results[name] and "hf auth login" in results[name]
    assert "hf_wrong" not in results["wrong"]
    for name in ("upload", "dropped", "untagged"):
        assert results[f"{name} again"] is None
        repository = hub.repository(f"org/{name}")
        assert len(repository.commits) == 2 and repository.tags == {"v1": repository.branches["main"]}
        assert set(hub.files(f"org/{name}")) == {".gitattributes", *FILES}
    assert set(hub.files("org/tagged")) == {".gitattributes", "a.txt"}
    assert set(hub.files("org/public")) == {".gitattributes"}
    assert not {("model", "org/secret"), ("model", "org/new")} & set(hub.repositories)


def dataset_folder(root, card):
    (root / "data").mkdir(parents=True)
    from bifusion_hf.assets import SAMPLE_FRAMES

    shutil.copyfile(next(SAMPLE_FRAMES.glob("data/val-*")), root / "data" / "val-00000-of-00001.parquet")
    (root / "rooms.json").write_text("{}")
    (root / "private.txt").write_text("not part of a data set")
    if card is not None:
        (root / "README.md").write_text(card)
    return root


def test_dataset_releases_carry_shards_and_card(tmp_path):
    card = "---\nlicense: cc0-1.0\npretty_name: Rooms\n---\n# Rooms\n"
    write_dataset_release(tmp_path / "r", dataset_folder(tmp_path / "a", card), repo_id="org/rooms")
    files = {path.relative_to(tmp_path / "r").as_posix() for path in (tmp_path / "r").rglob("*") if path.is_file()}
    assert files == {"README.md", "rooms.json", "data/val-00000-of-00001.parquet"}
    assert (tmp_path / "r" / "README.md").read_text() == card
    bare = dataset_folder(tmp_path / "b", None)
    with pytest.raises(ValueError, match="--name, --license, --origin"):
        write_dataset_release(tmp_path / "s", bare, repo_id="org/rooms")
    write_dataset_release(
        tmp_path / "s", bare, repo_id="org/mine", name="Mine", license="cc-by-4.0", origin="My kitchen."
    )
    text = (tmp_path / "s" / "README.md").read_text()
    assert "| val | 32 | 1 |" in text and "My kitchen." in text and "license: cc-by-4.0" in text


def test_data_that_must_not_be_passed_on_stays_private(tmp_path):
    card = "---\nlicense: other\nlicense_name: scannet-terms-of-use\n---\n# ScanNet\n"
    folder = dataset_folder(tmp_path / "a", card)
    with pytest.raises(ValueError, match="must be private"):
        write_dataset_release(tmp_path / "r", folder, repo_id="org/scannet", private=False)
    write_dataset_release(tmp_path / "r", folder, repo_id="org/scannet", private=True)
    (folder / "README.md").write_text("# No licence\n")
    with pytest.raises(ValueError, match="licence"):
        write_dataset_release(tmp_path / "s", folder, repo_id="org/scannet")
    (folder / "data" / "val-00000-of-00001.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="not a parquet file"):
        write_dataset_release(tmp_path / "s", folder, repo_id="org/scannet")
    shutil.rmtree(folder / "data")
    with pytest.raises(ValueError, match="no data/"):
        write_dataset_release(tmp_path / "s", folder, repo_id="org/scannet")
