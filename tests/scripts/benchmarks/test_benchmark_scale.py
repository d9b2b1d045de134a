import json
from pathlib import Path

import pytest

from scripts.benchmarks import scale, training_cost


ROOT = Path(__file__).parents[3]
STORED = ROOT / "model_cards" / "benchmarks" / "scale.json"


@pytest.fixture(scope="module")
def stored():
    return json.loads(STORED.read_text())


def test_the_tables_of_the_page_are_those_of_the_file(stored):
    page = (ROOT / "docs" / "scale.md").read_text()
    assert stored["queues"] == json.loads(json.dumps(scale.queues(stored["measured"])))
    for frames in scale.FRAMES:
        assert stored["cost"][str(frames)] == scale.cost(stored["measured"], frames)
    for name, table in {
        "scale_measured": scale.measured_table(stored["measured"]),
        "scale_cost": scale.cost_table(stored["measured"]),
        "scale_training": training_cost.table(stored["measured"]["train"], stored["feeding"], scale.FRAMES[0]),
        "scale_queues": scale.queue_table(stored["queues"]),
    }.items():
        assert f"<!-- {name}:begin -->\n{table}\n<!-- {name}:end -->" in page


def test_all_ways_wrote_the_same_though_a_worker_was_killed(stored):
    for name in scale.WORK:
        ways = stored["measured"][name]
        assert set(scale.WAYS) >= set(ways) > {"one process"} and len({way["sha256"] for way in ways.values()}) == 1
        assert all(of["killed"] == (way != "one process") for way, of in ways.items())


def test_the_cost_is_that_of_a_frame_times_the_frames():
    of = {"frames": 4, "cpu_s": 8.0, "bytes": 4000}
    found = scale.cost(
        {"prepare": {"one process": of}, "predict": {"one process": {**of, "bytes": 400}}}, 3_600_000, 1000
    )
    assert found["predict"]["core_hours"] == 2000 and found["predict"]["hours"] == 2000 / scale.CORES
    assert found["predict"]["read_bytes"] == 3.6e9 and found["predict"]["written_bytes"] == 3.6e8
    assert found["predict"]["shards"] == 3600 and found["predict"]["requests"] == 3600 * 5 + 2 * 4
    assert found["prepare"]["requests"] == 3600 * 6 + 2 * 4
    assert found["predict"]["gbit_per_node"] == pytest.approx(8e-9 * 64 * 1100 / 2)


def test_what_feeds_a_gpu_grows_with_its_speed():
    measured = {"frames": 2, "load_cpu_s": 0.1, "step_cpu_s": 1.0}
    for row in training_cost.feeding(measured, 1000.0, 3_600_000):
        speed = row["frames_per_s"]
        assert row["cores"] == pytest.approx(0.05 * speed)
        assert row["gbit_per_node"] == pytest.approx(8 * speed * 8000 / 1e9)
        assert row["epoch_h"] == pytest.approx(1000 / 8 / speed)
    assert "550 core hours" in training_cost.table(measured, [], 3_600_000)


def test_a_training_is_measured_by_part():
    measured = training_cost.measure(1)
    assert measured["frames"] == 1 and measured["load_cpu_s"] > 0 and measured["step_cpu_s"] > 0
