import json
import mmap

import pytest

from scripts.benchmarks import endurance
from scripts.benchmarks.__main__ import main
from scripts.benchmarks.endurance import RUNS, Watch, later_slope


def test_a_pipeline_a_scene_and_an_evaluation_stay_flat(tmp_path, monkeypatch):
    """Few frames show leaks of a frame's size: about 40 KB here, twenty times the bound of this test."""
    monkeypatch.setattr(endurance, "DISTINCT", 4)
    monkeypatch.setattr(endurance, "MEMORY_BOUND", 40.0)
    frames = endurance.small_frames(4, 4)
    monkeypatch.setattr(endurance, "small_frames", lambda: frames)
    output = tmp_path / "endurance.json"
    main(["endurance", "--frames", "60", "--every", "2", "--output", str(output)])
    results = json.loads(output.read_text())
    assert list(results) == list(RUNS) and all(result["flat"] for result in results.values())
    assert {result["frames"] for result in results.values()} == {60}


@pytest.mark.parametrize("leak", ["memory", "files"])
def test_a_leak_is_seen(tmp_path, monkeypatch, leak):
    kept = []

    def leaking(model, processor, frames, count, tick):
        for _ in range(count):
            if leak == "memory":
                # Pages of its own: an array might take what the process has already.
                kept.append(mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
                kept[-1].write(b"1" * (1 << 20))
            else:
                kept.append(open(tmp_path / "file", "w"))  # noqa: SIM115
            tick()

    monkeypatch.setitem(RUNS, "pipeline", leaking)
    monkeypatch.setattr(endurance, "small_frames", lambda: [])
    output = tmp_path / "endurance.json"
    with pytest.raises(SystemExit, match="memory or open files grow: pipeline"):
        main(["endurance", "--frames", "40", "--every", "2", "--runs", "pipeline", "--output", str(output)])
    result = json.loads(output.read_text())["pipeline"]
    assert not result["flat"] and (result["mib_per_1000_frames"] > 900) == (leak == "memory")


def test_the_slope_is_that_of_the_later_half():
    at = list(range(100, 2100, 100))
    settled = [min(value, 1000) / 10 for value in at]
    assert later_slope(at, settled) == pytest.approx(0, abs=1e-9)
    assert later_slope(at, [value / 50 for value in at]) == pytest.approx(20)
    watch = Watch(10)
    for _ in range(25):
        watch.tick()
    assert watch.at == [10, 20] and len(watch.resident_mib) == len(watch.open_files) == 2
