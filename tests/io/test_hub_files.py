import hashlib

import pytest

from bifusion_hf.io.files import DataFileError
from bifusion_hf.io.hub_files import (
    pinned_name,
    split_revision,
    verify_download,
    verify_pulled_weights,
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
    verify_pulled_weights(path.parent, cache_dir=tmp_path)
    # What is no name at all is for whoever loads it to say.
    verify_pulled_weights(tmp_path / "nowhere", cache_dir=tmp_path)
    # Without a link nothing says what it should be.
    path.unlink()
    path.write_bytes(b"anything")
    verify_download(path)
