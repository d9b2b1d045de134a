import json
import runpy
import sys

import pytest

from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation, BiFusionProcessor
from bifusion_hf.evaluation.scene_evaluator import SceneEvaluator
from scripts.benchmarks import scenes as scenes_benchmark
from scripts.benchmarks.__main__ import main
from scripts.benchmarks.scenes import RUNS, format_table


def results():
    identity = {"id_share": 0.876, "coverage": 0.8, "id_switches": 9, "id_switches_per_object": 1.234}
    three = {"ap": 44.04, "ap50": 65.0, "ap25": 74.2, "num_instances": 146}
    return {
        "merging": {
            "geometric": {**three, "identity": identity},
            "geometric_whole": {**three, "identity": identity},
            "none": {**three, "identity": identity},
            "single_frames": three,
            "protocol": {"num_scenes": 20, "num_frames": 600, "threshold": 0.3},
        },
        "session": {
            "num_frames": 1000,
            "size": [320, 240],
            "frame_seconds": 0.16,
            "threads": 2,
            "load": 0.25,
            "update_seconds_first_quarter": 0.0271,
            "update_seconds_last_quarter": 0.0283,
            "peak_mib_every_100_frames": [700, 720],
            "objects": 100,
            "voxels": 50000,
        },
    }


def test_the_table_is_made_of_the_stored_numbers(tmp_path):
    table = format_table(results())
    assert "20 rendered rooms, 600 frames" in table
    assert "| geometric merging | 44.0 | 65.0 | 74.2 | 87.6 % | 1.23 |" in table
    assert "| the same frames alone, over their points | 44.0 | 65.0 | 74.2 | – | – |" in table
    assert table.startswith(format_table({"merging": results()["merging"]}))
    online = {name: results()["merging"]["none"] for name in ("geometric", "learned")}
    named = format_table({**results(), "online": {"seed 1": online, "seed 2": online}})
    for name in ("seed 1", "seed 2"):
        assert f"| after the online stage, learned merging ({name}) | 44.0 | 65.0 |" in named
    others = format_table({**results(), "other_rooms": {"seed 5": results()["merging"]}})
    assert "| the same frames alone, over their points (seed 5) | 44.0 | 65.0 |" in others
    with pytest.raises(SystemExit, match="--online is 'best'; expected NAME=CHECKPOINT"):
        main(["scenes", "--output", str(tmp_path / "new.json"), "--data", "walks", "--online", "best"])
    assert "160 ms on 2 threads, 6.2 frames a second (load of the machine 0.25)" in table
    assert "27 ms" in table and "28 ms" in table and "from 700 to 720 MiB" in table
    (tmp_path / "scenes.json").write_text(json.dumps(results()))
    (tmp_path / "doc.md").write_text("a\n<!-- scenes:begin -->\n<!-- scenes:end -->\nb\n")
    main(["scenes", "--output", str(tmp_path / "scenes.json"), "--update", str(tmp_path / "doc.md")])
    assert table in (tmp_path / "doc.md").read_text()


def test_a_set_of_walks_is_measured_and_a_killed_run_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("embreex")
    from bifusion_hf.rooms.dataset import build_dataset
    from bifusion_hf.rooms.generate import RoomSettings

    sizes = {"width": 80, "height": 60, "views": 2}
    settings = RoomSettings((), (), str(tmp_path / "cache"), path=True, **sizes)
    build_dataset(tmp_path / "walks", settings, {"val": 4}, progress=False)
    whole, killed = (tmp_path / name / "scenes.json" for name in ("whole", "killed"))

    def measure(output, *more):
        main(["scenes", "--data", str(tmp_path / "walks"), "--updates", "5", "--output", str(output), *more])
        return json.loads(output.read_text())

    config = BiFusionConfig.from_pretrained("sample", use_box_head=True, use_merge_head="layer")
    config.point_config.use_frame_adapters = True
    BiFusionForInstanceSegmentation(config).save_pretrained(tmp_path / "online")
    BiFusionProcessor.from_preset("tiny").save_pretrained(tmp_path / "online")
    both = scenes_benchmark.measure_online(str(tmp_path / "online"), str(tmp_path / "walks"), "val", 1, 0.0)
    assert set(both) == {"geometric", "learned"} and both["learned"]["identity"]["num_frames"] == 2

    found = measure(whole)
    assert found["merging"]["protocol"] == {"num_scenes": 2, "num_frames": 4, "threshold": 0.3}
    instances = {found["merging"][name]["num_instances"] for name in RUNS}
    assert len(instances) == 1 and instances.pop() > 0
    assert found["session"]["num_frames"] == 5 and found["session"]["voxels"] > 100
    assert found["session"]["frame_seconds"] > 0
    others = measure(whole, "--rooms", "again", "--limit", "1")
    assert others["merging"] == found["merging"] and list(others["other_rooms"]) == ["again"]

    with monkeypatch.context() as patch:
        scenes = iter(range(len(RUNS)))
        run = SceneEvaluator.run
        patch.setattr(SceneEvaluator, "run", lambda *args: [next(scenes), run(*args)])
        with pytest.raises(StopIteration):
            measure(killed)
    # What is kept is that of the first scene, which was measured above.
    kept = json.loads(killed.read_text())["merging"]
    assert kept["protocol"]["num_scenes"] == 1 and kept == others["other_rooms"]["again"]
    monkeypatch.setattr(scenes_benchmark, "measure_session", lambda *_: found["session"])
    assert measure(killed)["merging"] == found["merging"]
    assert [path.name for path in killed.parent.iterdir()] == ["scenes.json"]


def test_the_module_is_a_command(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", "--help"])
    monkeypatch.delitem(sys.modules, "scripts.benchmarks.__main__")
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("scripts.benchmarks", run_name="__main__")
    assert stopped.value.code == 0 and "scenes" in capsys.readouterr().out
