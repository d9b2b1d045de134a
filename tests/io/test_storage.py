import json
import uuid

import fsspec
import pytest

from bifusion_hf.io.files import DataFileError
from bifusion_hf.io.storage import Folder, is_remote, local_path


@pytest.fixture(params=["path", "file", "memory"])
def folder(request, tmp_path):
    """A folder on the disk, by its path and by its address, and one in a store."""
    return Folder({
        "path": tmp_path / "out", "file": f"file://{tmp_path}/out", "memory": f"memory://{uuid.uuid4().hex}/out"
    }[request.param])  # fmt: skip


def test_what_is_written_is_read_and_listed(folder):
    assert folder.names("data/*.json") == [] and not folder.is_file("data/b.json")
    for name in ("data/b.json", "data/a.json", "data/.partial-c.json", "other.txt", "data/deep/a.json"):
        folder.write_text(name, json.dumps(name))
    assert folder.names("data/*.json") == ["data/a.json", "data/b.json"]
    assert folder.names("*", folders=True) == ["data", "other.txt"] and folder.names("*") == ["other.txt"]
    assert folder.is_file("data/b.json") and not folder.is_file("data")
    assert json.loads(folder.read_text("data/b.json")) == "data/b.json"
    with folder.open("data/b.json") as file:
        file.seek(1)
        assert file.read(4) == b"data"
    folder.delete("data/b.json")
    folder.delete("data/b.json")
    assert folder.names("data/*.json") == ["data/a.json"]
    assert str(folder.place("data/a.json")).endswith("out/data/a.json")


def test_a_file_is_whole_or_not_there(folder):
    folder.write_text("report", "first")
    with pytest.raises(ZeroDivisionError), folder.new_file("report") as path:
        path.write_text("half")
        1 / 0  # noqa: B018
    assert folder.read_text("report") == "first" and folder.names("*") == ["report"]
    with folder.sole_use():
        folder.remove_unfinished("")
    assert folder.names("*") == ["report"]


def test_a_copy_is_here_as_long_as_it_is_needed(folder):
    folder.write_text("scans/scene/a.txt", "a")
    folder.write_text("scans/scene/b/c.txt", "c")
    with folder.copy("scans/scene") as path:
        assert path.name == "scene" and (path / "a.txt").read_text() == "a" and (path / "b" / "c.txt").is_file()
    assert path.exists() == (folder.path is not None)
    with folder.copy("scans/scene/a.txt") as path:
        assert path.read_text() == "a"


def test_what_is_not_there_is_named_by_its_address(folder):
    for read in (folder.read_text, folder.open):
        with pytest.raises(DataFileError, match="out/nothing.txt: (?i:no such file)"):
            read("nothing.txt")
    with pytest.raises(DataFileError, match="is not UTF-8"):
        with folder.new_file("bytes") as path:
            path.write_bytes(b"\xff\xfe\xfd")
        folder.read_text("bytes")


def test_a_store_that_fails_is_named(monkeypatch):
    def fail(*_arguments, **_options):
        raise RuntimeError("the bucket is closed")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "put_file", fail)
    with pytest.raises(OSError, match="memory://closed/out/a: the bucket is closed"):
        Folder("memory://closed/out").write_text("a", "text")
    with pytest.raises(ValueError, match="(?i)protocol not known: nowhere"):
        Folder("nowhere://a").names("*")


def test_what_another_process_wrote_is_seen(monkeypatch):
    """Though the store answers from what it listed before, as those of S3 do."""
    store = fsspec.get_filesystem_class("memory")
    folder = Folder("memory://shared/out")
    folder.write_text("data/a", "a")
    known, look = {}, store.info
    monkeypatch.setattr(store, "info", lambda self, path, **options: known.get(path) or look(self, path, **options))
    monkeypatch.setattr(store, "invalidate_cache", lambda self, path=None: known.clear())

    def copied():
        with folder.copy("data") as path:
            return (path / "a").read_text()

    for ask, right in (
        (copied, "a"),
        (lambda: folder.is_file("data"), False),
        (lambda: folder.names("data/*"), ["data/a"]),
        (lambda: folder.read_text("data/a"), "a"),
    ):
        # As if that had been a file when it was listed.
        known["/shared/out/data"] = {"name": "/shared/out/data", "type": "file", "size": 0}
        assert ask() == right and not known


def test_addresses(tmp_path):
    assert is_remote("s3://b/a") and is_remote("hf://datasets/o/n")
    assert not any(map(is_remote, ("file:///a", "/a/b", "org/name", tmp_path)))
    assert str(local_path("file:///a/b")) == "/a/b" and local_path(tmp_path) == tmp_path
