"""Frames that are read from the Hub: pinned revisions, offline, and what is said when something is not there."""

import io
import json

import pytest
from hub_client import run_python

from bifusion_hf.assets import SAMPLE_FRAMES
from bifusion_hf.data.frames import load_frames


CODE = """
import json, sys
from bifusion_hf.data.frames import frame_from_row, load_frames

def names(source, **options):
    return [frame_from_row(row).frame_id for row in load_frames(source, "val", **options)]

def error_of(source):
    try:
        names(source)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

commit, = sys.argv[1:]
"""


def run(code, hub, home, commit, **options):
    result = run_python(CODE + code, hub, home, commit, **options)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def shards():
    """A shard of the first two sample frames and one of the third."""

    def shard(rows):
        buffer = io.BytesIO()
        rows.to_parquet(buffer)
        return buffer.getvalue()

    rows = load_frames(SAMPLE_FRAMES, "val")
    return shard(rows.select([0, 1])), shard(rows.select([2])), rows["frame_id"][:3]


def test_rows_are_read_in_place_and_results_written_there(hub, shards, tmp_path):
    """What workers of a prediction in shards do, which bring no data set to their machine."""
    first, second, ids = shards
    path = "data/val-00000-of-00001.parquet"
    commit = hub.add("org/rooms", {path: first}, kind="dataset")
    hub.add("org/rooms", {path: second}, kind="dataset")
    hub.create("org/results", kind="dataset")
    code = """
from pathlib import Path
from bifusion_hf.data.frame_table import FrameTable
from bifusion_hf.io.storage import Folder

def rows(source):
    table = FrameTable(source, "val")
    return [row["frame_id"] for row in table.rows(0, len(table))]

found = [rows("org/rooms"), rows(f"org/rooms@{commit}"), rows(f"hf://datasets/org/rooms@{commit}")]
results = Folder("hf://datasets/org/results/out")
results.write_text("shards/a.json", "text")
found += [results.names("shards/*"), results.read_text("shards/a.json")]
print(json.dumps(found))
"""
    found = run(code, hub, tmp_path / "home", commit)
    assert found == [ids[2:], ids[:2], ids[:2], ["shards/a.json"], "text"]
    assert hub.files("org/results", kind="dataset")["out/shards/a.json"] == b"text"


def test_a_revision_is_pinned_by_the_name_and_loads_offline(hub, shards, tmp_path):
    first, second, ids = shards
    path = "data/val-00000-of-00001.parquet"
    commit = hub.add("org/rooms", {path: first}, kind="dataset", private=True)
    hub.repository("org/rooms", "dataset").tags["v1"] = commit
    hub.add("org/rooms", {path: second}, kind="dataset")
    code = """
found = {
    "main": names("org/rooms"), "tag": names("org/rooms@v1"), "commit": names(f"org/rooms@{commit}"),
    "streamed": names("org/rooms@v1", streaming=True),
}
"""
    listing = code + "print(json.dumps(found))"
    expected = {"main": ids[2:], "tag": ids[:2], "commit": ids[:2], "streamed": ids[:2]}
    assert run(listing, hub, tmp_path / "home", commit) == expected
    hub.stop()
    offline = """
print(json.dumps([names("org/rooms@v1"), names(f"org/rooms@{commit}")]))
"""
    assert run(offline, hub, tmp_path / "home", commit, HF_HUB_OFFLINE="1") == [ids[:2], ids[:2]]


def test_recipes_and_evaluations_take_a_pinned_name(hub, shards, tmp_path):
    commit = hub.add("org/rooms", {"data/val-00000-of-00001.parquet": shards[0]}, kind="dataset")
    hub.repository("org/rooms", "dataset").tags["v1"] = commit
    hub.add("org/rooms", {"data/val-00000-of-00001.parquet": shards[1]}, kind="dataset")
    code = """
from pathlib import Path
from bifusion_hf.cli import evaluate, train
train.main([
    "tiny", "--data.train", "org/rooms@v1", "--data.train_split", "val", "--data.val", "null", "--data.num_workers",
    "0", "--training.batch_size", "2", "--dry_run", "true", "--output_dir", "run",
])
evaluate.main(["sample", "--data", "org/rooms@v1", "--limit", "1", "--cpu", "--output", "results.json"])
print(json.dumps(json.loads(Path("results.json").read_text())["protocol"]))
"""
    result = run_python(f"import os; os.chdir({str(tmp_path)!r})\n{CODE}{code}", hub, tmp_path / "home", commit)
    assert result.returncode == 0, result.stderr
    assert "2 frames of org/rooms@v1" in result.stdout
    # What was measured on can be fetched again.
    assert json.loads(result.stdout.splitlines()[-1])["data"] == "org/rooms@v1"


def test_each_error_names_what_is_missing(hub, shards, tmp_path):
    path = "data/val-00000-of-00001.parquet"
    commit = hub.add("org/hidden", {path: shards[0]}, kind="dataset", private=True)
    hub.add("org/damaged", {path: shards[0]}, kind="dataset")
    hub.fail("GET", "org/damaged/resolve/", content=bytes(len(shards[0])), times=9)
    hub.add("org/dropping", {path: shards[0]}, kind="dataset")
    hub.fail("GET", "org/dropping/resolve/", drop_after=1000)
    code = """
errors = {name: error_of(name) for name in ("org/none", "org/hidden@v9", "org/hidden@", "org/damaged")}
errors["dropping"] = names("org/dropping")
print(json.dumps(errors))
"""
    errors = run(code, hub, tmp_path / "home", commit)
    assert "DatasetNotFoundError" in errors["org/none"] and "org/none" in errors["org/none"]
    assert "DatasetNotFoundError" in errors["org/hidden@v9"] and "v9" in errors["org/hidden@v9"]
    assert errors["org/hidden@"] == "ValueError: org/hidden@: names no revision; expected org/name@revision"
    assert "Parquet" in errors["org/damaged"] and "corrupted" in errors["org/damaged"]
    # A connection that breaks once is resumed.
    assert errors["dropping"] == shards[2][:2]
    code = 'print(json.dumps(error_of("org/hidden")))'
    assert "org/hidden" in run(code, hub, tmp_path / "other", commit, token=None)
