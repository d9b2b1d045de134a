import hashlib
import re

import pytest
import torch
from safetensors.torch import save_file

from bifusion_hf.assets import SAMPLE_CHECKPOINT
from bifusion_hf.data.frames import load_frames
from bifusion_hf.io.files import DataFileError
from bifusion_hf.io.hub_files import (
    checkpoint_place,
    pinned_name,
    split_revision,
    verify_download,
    verify_pulled_weights,
    verify_safetensors,
)


def test_a_name_may_carry_a_revision(tmp_path):
    assert split_revision("org/rooms") == ("org/rooms", None)
    assert split_revision("org/rooms@v1.0") == ("org/rooms", "v1.0")
    assert pinned_name("org/m@refs/pr/1") == ("org/m", {"revision": "refs/pr/1"})
    assert pinned_name("org/m") == ("org/m", {})
    with pytest.raises(ValueError, match="org/rooms@: names no revision; expected org/name@revision"):
        split_revision("org/rooms@")
    # A folder may be called so.
    folder = tmp_path / "run@home"
    folder.mkdir()
    assert split_revision(folder) == (str(folder), None)


@pytest.mark.parametrize("name", ["nowhere", "/no/where", "runs/a/best", "./nowhere", "nowhere@v1"])
def test_what_can_be_no_id_is_no_folder_either(name):
    with pytest.raises(FileNotFoundError, match=rf"^{re.escape(name)}: no such folder, and no id of the Hub"):
        pinned_name(name)
    with pytest.raises(FileNotFoundError, match="'sample' is the frames of the package"):
        load_frames(name, "val")


def test_the_packages_own_checkpoint_has_a_name():
    assert pinned_name("sample") == (str(SAMPLE_CHECKPOINT), {})
    assert checkpoint_place("org/sample") == "org/sample" and checkpoint_place(None) is None


@pytest.mark.parametrize("kind", ["sha256", "sha1"])
def test_a_cached_file_is_held_against_the_name_of_its_blob(tmp_path, kind):
    content = b"weights" * 1000
    names = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "sha1": hashlib.sha1(b"blob 7000\0" + content).hexdigest(),  # as git names it
    }
    blob, path = tmp_path / "blobs" / names[kind], tmp_path / "snapshots" / "c0ffee" / "model.safetensors"
    for folder in (blob.parent, path.parent):
        folder.mkdir(parents=True)
    blob.write_bytes(content)
    path.symlink_to(blob)
    verify_download(path)
    blob.write_bytes(content[:-1] + b"!")
    with pytest.raises(DataFileError, match=rf"model.safetensors: has the {kind} \w+, but .* {names[kind]}.* Delete"):
        verify_download(path)
    verify_pulled_weights("org/m", cache_dir=tmp_path)
    # What is no name at all is for whoever loads it to say.
    verify_pulled_weights(tmp_path / "nowhere", cache_dir=tmp_path)
    # Without a link nothing says what it should be.
    path.unlink()
    path.write_bytes(b"anything")
    verify_download(path)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(30, 3), "b": torch.zeros(2)}, path, metadata={"format": "pt"})
    return path


def test_whole_weights_pass(weights):
    verify_safetensors(weights)
    verify_pulled_weights(weights.parent)
    save_file({}, weights)
    verify_safetensors(weights)


def test_weights_that_are_cut_short_are_named(weights):
    content = weights.read_bytes()
    for kept in (0, 5, 8, 40, len(content) - 1):
        weights.write_bytes(content[:kept])
        with pytest.raises(DataFileError, match=f"model.safetensors: is cut short: it has {kept} bytes and needs"):
            verify_pulled_weights(weights.parent)
    # One of several files.
    weights.write_bytes(content[:99])
    weights.rename(weights.parent / "model-00002-of-00002.safetensors")
    with pytest.raises(DataFileError, match="model-00002-of-00002.safetensors: is cut short"):
        verify_pulled_weights(weights.parent)


def test_what_is_no_safetensors_file_is_named(weights):
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(DataFileError, match="model.safetensors: is a Git LFS pointer, not the file itself.*git lfs"):
        verify_pulled_weights(weights.parent)
    for content in (b"PK\3\4" + b"x" * 100, (20).to_bytes(8, "little") + b"x" * 20):
        weights.write_bytes(content)
        with pytest.raises(DataFileError, match="model.safetensors: is no safetensors file"):
            verify_safetensors(weights)
