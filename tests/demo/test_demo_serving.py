"""What the page leaves on the disk, and what it takes in; nothing here needs Gradio."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from light_package import light_package

from bifusion_hf.demo import serving
from bifusion_hf.demo.serving import FOLDER_PREFIX, FOLDER_VARIABLE, BodyLimit, delete_old_files


SERVER = """
import sys, time
from bifusion_hf.demo.serving import serve_from_own_folder
from bifusion_hf.stopping import terminable

with terminable():
    folder = serve_from_own_folder()
    (folder / "upload").mkdir()
    (folder / "upload" / "depth.npy").write_bytes(b"1")
    print(folder.parent, flush=True)
    time.sleep(float(sys.argv[1]))
"""
posix = pytest.mark.skipif(os.name != "posix", reason="needs locks that die with their process")


def start(parent, seconds, environment):
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(seconds)],
        env={**environment, "GRADIO_TEMP_DIR": str(parent)},
        cwd=environment["PYTHONPATH"],
        stdout=subprocess.PIPE,
        text=True,
    )
    return process, process.stdout.readline().strip()


@posix
def test_the_servers_folder_goes_with_it_however_it_ends(tmp_path, tmp_path_factory):
    environment = light_package(tmp_path_factory.mktemp("program"))
    process, _ = start(tmp_path, 0, environment)
    assert process.wait(60) == 0 and not list(tmp_path.iterdir())
    process, folder = start(tmp_path, 600, environment)
    assert [str(path) for path in tmp_path.iterdir()] == [folder]
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143 and not list(tmp_path.iterdir())
    # Killed, it can do nothing: the next server deletes what is left, but nothing of one that lives.
    killed, folder_of_killed = start(tmp_path, 600, environment)
    killed.kill()
    killed.wait(60)
    alive, folder_of_alive = start(tmp_path, 600, environment)
    third, folder_of_third = start(tmp_path, 600, environment)
    try:
        found = {str(path) for path in tmp_path.iterdir()}
        assert found == {folder_of_alive, folder_of_third} and folder_of_killed not in found
    finally:
        for process in (alive, third):
            process.kill()
            process.wait(60)


@posix
def test_folders_of_others_and_links_stay(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    (tmp_path / f"{FOLDER_PREFIX}link").symlink_to(elsewhere)
    (tmp_path / f"{FOLDER_PREFIX}dead").mkdir()
    own = tmp_path / f"{FOLDER_PREFIX}own"
    own.mkdir()
    monkeypatch.setattr(serving, "_made_here", {own})
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    serving._delete_abandoned(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    monkeypatch.undo()
    monkeypatch.setattr(serving, "_made_here", {own})
    serving._delete_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", f"{FOLDER_PREFIX}link", own.name}
    assert (elsewhere / "file").exists()


def test_the_folder_is_used_by_nobody_else_and_named_for_gradio(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    ends = []
    monkeypatch.setattr(serving.atexit, "register", ends.append)
    folder = serving.serve_from_own_folder()
    assert os.environ["GRADIO_TEMP_DIR"] == str(folder) and folder.parent.parent == tmp_path
    # Gradio serves whatever is in the folder that is named for it.
    assert (folder.parent / ".in-use").exists() and not list(folder.iterdir())
    serving._delete_abandoned(tmp_path)
    assert folder.exists()
    (end,) = ends
    end()
    assert not list(tmp_path.iterdir())


def test_what_is_old_goes_but_for_the_pages_own(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    for name in ("old", "own", "new", "empty", "just"):
        (tmp_path / name).mkdir()
    for name in ("old/mask.png", "own/sample.png", "new/depth.npy"):
        (tmp_path / name).touch()
    for name in ("old/mask.png", "own/sample.png", "own", "new", "empty"):
        os.utime(tmp_path / name, (time.time() - 700,) * 2)
    delete_old_files(600, {str(tmp_path / "own" / "sample.png")})
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    # A folder is as old as its last change.
    assert found == {"old", "own", "own/sample.png", "new", "new/depth.npy", "just"}
    monkeypatch.delenv("GRADIO_TEMP_DIR")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    delete_old_files(-1)
    assert (tmp_path / "new/depth.npy").exists()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-length": str(1 << 20)}, 200),
        ({}, 200),
        ({"content-length": str((1 << 20) + 1)}, 413),
        ({"content-length": "1e9"}, 413),
        ({"content-length": "-1"}, 413),
        ({"transfer-encoding": "chunked"}, 411),
    ],
)
def test_long_requests_are_refused_before_their_body_is_read(headers, status):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive():
        raise AssertionError("the body is read")

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "headers": [(key.encode(), value.encode()) for key, value in headers.items()]}
    asyncio.run(BodyLimit(app, 1)(scope, receive, send))
    assert sent[0]["status"] == status and sent[1]["type"] == "http.response.body"


def test_what_is_no_request_passes():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    asyncio.run(BodyLimit(app, 1)({"type": "lifespan"}, None, None))
    assert seen == ["lifespan"]


def test_a_folder_that_goes_while_old_files_are_looked_for_is_no_error(tmp_path, monkeypatch):
    for name in ("a/old", "shown-1/points.ply", "z/old"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    scandir = os.scandir

    def scan(path):
        if Path(path).name == "shown-1":
            (Path(path) / "points.ply").unlink()
            Path(path).rmdir()
        return scandir(path)

    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(os, "scandir", scan)
    delete_old_files(-1)
    assert list(tmp_path.iterdir()) == []
