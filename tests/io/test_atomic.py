import errno
import multiprocessing
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from bifusion_hf.io.atomic import (
    WriteError,
    delete_folder,
    flush,
    new_file,
    new_folder,
    partial_path,
    publish_folder,
    recover_folder,
    remove_unfinished,
    write_text,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_appears_whole_with_its_parents(tmp_path, durable):
    path = tmp_path / "a" / "b" / "c.npz"
    with new_file(path, durable=durable) as partial:
        np.savez(partial, x=np.arange(3))
        assert partial.parent == path.parent and partial.suffix == ".npz" and partial.name.startswith(".")
        assert not path.exists()
    assert names(path.parent) == ["c.npz"]
    write_text(path, "ü\n", durable=durable)
    assert path.read_bytes() == "ü\n".encode()


@pytest.mark.parametrize("error", [ValueError("x"), FileNotFoundError(2, "no"), KeyboardInterrupt()])
def test_a_failed_block_leaves_what_was_there_and_nothing_else(tmp_path, error):
    write_text(tmp_path / "a", "old")
    with pytest.raises(type(error)) as caught, new_file(tmp_path / "a") as partial:
        partial.write_text("new")
        raise error
    assert caught.value is error
    with pytest.raises(type(error)) as caught, new_folder(tmp_path / "b", replace=True) as partial:
        (partial / "x").write_text("new")
        raise error
    assert caught.value is error
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


def test_a_folder_appears_whole_and_replaces_only_when_told(tmp_path):
    folder = tmp_path / "parent" / "f"
    with new_folder(folder) as partial:
        (partial / "x").write_text("1")
        assert not folder.exists()
    with pytest.raises(FileExistsError, match="f exists"), new_folder(folder) as partial:
        (partial / "x").write_text("2")
    assert (folder / "x").read_text() == "1"
    with new_folder(folder, replace=True, durable=True) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "y").write_text("2")
    assert names(folder) == ["sub"] and names(folder.parent) == ["f"]


def test_a_kill_between_the_two_renames_is_mended(tmp_path):
    (tmp_path / ".old-f").mkdir()
    (tmp_path / ".old-f" / "x").write_text("1")
    recover_folder(tmp_path / "f")
    assert (tmp_path / "f" / "x").read_text() == "1" and names(tmp_path) == ["f"]
    # The same on the way to the next replacement, and what is left of an ended one goes.
    (tmp_path / "f").rename(tmp_path / ".old-f")
    with new_folder(tmp_path / "f", replace=True) as partial:
        (partial / "x").write_text("2")
    (tmp_path / ".old-f").mkdir()
    recover_folder(tmp_path / "f")
    assert (tmp_path / "f" / "x").read_text() == "2" and names(tmp_path) == ["f"]


def test_what_kills_left_is_removed(tmp_path):
    write_text(tmp_path / "a", "x")
    (tmp_path / partial_path(tmp_path / "a").name).write_text("half")
    partial_path(tmp_path / "b", shared=True).mkdir()
    (tmp_path / ".deleted-c").mkdir()
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["a"]


def test_a_shared_folder_has_one_name_in_all_processes_and_others_none_twice(tmp_path):
    path = tmp_path / "f"
    assert partial_path(path, shared=True) == partial_path(path, shared=True) != partial_path(path)
    assert partial_path(path) != partial_path(path)
    partial_path(path, shared=True).mkdir()
    publish_folder(partial_path(path, shared=True), path)
    assert names(tmp_path) == ["f"]
    delete_folder(path)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_named_whatever_the_writer_raises(tmp_path, error):
    message = r"could not write .*a: .*MiB are free on it \(\w+: .*No space left on device"
    with pytest.raises(WriteError, match=message) as caught, new_file(tmp_path / "a") as partial:
        partial.write_text("half")
        raise error
    assert caught.value.__cause__ is error and names(tmp_path) == []


def test_a_folder_that_cannot_be_made_gives_its_own_reason(tmp_path, monkeypatch):
    def mkdir(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    for context in (new_file, new_folder):
        with pytest.raises(WriteError, match="No space left on device"), context(tmp_path / "x" / "a"):
            raise AssertionError("not reached")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_really_full_disk(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        write_text(tmp_path / "a", "old")
        with pytest.raises(WriteError, match="the disk is full"):
            write_text(tmp_path / "a", "x" * 100_000)
        assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def write_often(path, letter):
    for _ in range(50):
        write_text(path, letter * 10_000)


def test_processes_that_write_the_same_file_leave_a_whole_one(tmp_path):
    context = multiprocessing.get_context("fork")
    path = tmp_path / "a"
    write_text(path, "a" * 10_000)
    workers = [context.Process(target=write_often, args=(path, letter)) for letter in "bc"]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        content = path.read_text()
        assert len(content) == 10_000 and len(set(content)) == 1
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert names(tmp_path) == ["a"]


def test_flush_reaches_all_of_a_folder(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x").write_text("1")
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, flags: opened.append(Path(path).name) or real(path, flags))
    flush(tmp_path)
    assert opened == ["sub", "x", tmp_path.name]
