import json
from types import SimpleNamespace

import psutil
import pytest
import torch

from bifusion_hf.training.metrics import (
    CURVES_FILE,
    LOG_FILE,
    METRICS_FILE,
    OWN_PARTS,
    Recorder,
    Timer,
    for_sums,
    memory_gib,
    read_metrics,
)


def test_sums_are_in_float64_where_the_device_has_it(monkeypatch):
    values = torch.ones(2, dtype=torch.bfloat16)
    assert for_sums(values).dtype == torch.float64
    monkeypatch.setattr("bifusion_hf.training.metrics.DEVICES_WITHOUT_FLOAT64", ("cpu",))
    assert for_sums(values).dtype == torch.float32


def test_timer_splits_the_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("bifusion_hf.training.metrics.time.perf_counter", lambda: now[0])
    timer = Timer()
    for name, seconds in (("data", 2.0), ("evaluation", 5.0), ("compute", 6.0), *((part, 0.25) for part in OWN_PARTS)):
        with timer.part(name):
            now[0] += seconds
    now[0] += 1.0  # in no part
    summary = timer.summary()
    assert summary["seconds"] == pytest.approx(10.0)
    fractions = {name: summary[f"{name}_fraction"] for name in ("data", "compute", "overhead", *OWN_PARTS)}
    expected = {"data": 0.2, "compute": 0.6, "overhead": 0.2, **dict.fromkeys(OWN_PARTS, 0.025)}
    assert fractions == pytest.approx(expected)
    timer.reset()
    now[0] += 1.0
    assert timer.summary()["seconds"] == pytest.approx(1.0) and timer.summary()["data_fraction"] == 0


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"update": 1, "loss": 2.0}) + '\n{"update": 2, "lo')
    assert read_metrics(path) == [{"update": 1, "loss": 2.0}]
    assert read_metrics(tmp_path / "missing") == []


@pytest.fixture
def make_recorder(tmp_path, monkeypatch):
    """Recorders on a clock that stands still, and what their tracker was given."""
    made, tracked = [], []
    monkeypatch.setattr("bifusion_hf.training.metrics.time.perf_counter", lambda: made[0])

    def make(start_update=0, is_main_process=True, progress_bar=False):
        made[:1] = [100.0]
        accelerator = SimpleNamespace(
            is_main_process=is_main_process,
            device=torch.device("cpu"),
            log=lambda values, step: tracked.append((step, values)),
        )
        recorder = Recorder(accelerator, tmp_path / "runs" / "run", 10, start_update, progress_bar)
        made.append(recorder)
        return recorder, made, tracked

    yield make
    for recorder in made[1:]:
        recorder.close()


def test_what_an_update_and_an_evaluation_leave(make_recorder, tmp_path, capsys):
    recorder, clock, tracked = make_recorder(start_update=4)
    assert recorder.bar.n == 4 and recorder.bar.total == 10
    for update, points in ((5, 300), (6, 500)):
        recorder.advance({"points": points, "loss": 2.0}, 1e-3)
        clock[0] += 2
        if update == 6:
            recorder.record_update(update, {"loss": 1.5, "loss_sem": float("nan")})
    recorder.record_evaluation(6, {"all_ap": 0.25, "update_time": 3.0}, {"all_ap": 0.5, "update": 4})
    recorder.warning("careful")
    # What follows is counted anew.
    recorder.advance({"points": 100, "loss": 2.0}, 1e-3)
    clock[0] += 1
    recorder.record_update(7, {"loss": 1.0})
    first, evaluation, second = read_metrics(tmp_path / "runs" / "run" / METRICS_FILE)
    expected = {"update": 6, "loss": 1.5, "loss_sem": None, "seconds": 4, "points_per_second": 200}
    assert {name: first[name] for name in expected} == expected and first["updates_per_second"] == 0.5
    assert evaluation == {"update": 6, "all_ap": 0.25, "update_time": 3.0}
    assert (second["points_per_second"], second["updates_per_second"]) == (100, 1)
    # Trackers take no null.
    assert [step for step, _ in tracked] == [6, 6, 7]
    assert "loss_sem" not in tracked[0][1] and tracked[1][1] == {"all_ap": 0.25, "update_time": 3.0}
    said = "evaluation of update 6: all_ap 0.2500 best_all_ap 0.5000 (best update 4)\n"
    assert capsys.readouterr().out == f"{said}warning: careful\n"
    log = (tmp_path / "runs" / "run" / LOG_FILE).read_text()
    assert f"INFO {said}" in log and "WARNING careful" in log
    assert (tmp_path / "runs" / "run" / CURVES_FILE).is_file()


def test_the_bar_shows_rates_shares_and_the_terms_that_are_there(make_recorder, monkeypatch):
    recorder, clock, _ = make_recorder()
    monkeypatch.setattr("bifusion_hf.training.metrics.memory_gib", lambda device: 1.26)
    shown = {}
    # It is drawn once, with the update that is counted then.
    monkeypatch.setattr(recorder.bar, "set_postfix", lambda values, refresh: refresh or shown.update(values))
    for name, seconds in (("data", 2), ("compute", 6)):
        with recorder.timer.part(name):
            clock[0] += seconds
    clock[0] += 2
    recorder.advance({"points": 4000, "loss": 2.0, "loss_dice": 0.12345, "grad_norm": 9.0}, 1.5e-3)
    expected = {"loss": "2.000", "loss_dice": "0.123", "lr": "1.5e-03", "data/compute": "20/60%"}
    assert list(shown.items()) == [*expected.items(), ("points/s", "400"), ("GiB", "1.3")]


@pytest.mark.parametrize(("is_main", "asked", "shown"), [(True, True, 1), (True, False, 0), (False, True, 0)])
def test_one_process_shows_a_bar_if_it_is_asked_to(make_recorder, is_main, asked, shown):
    recorder, clock, _ = make_recorder(is_main_process=is_main, progress_bar=asked)
    clock[0] += 1
    recorder.advance({"points": 1}, 1e-3)
    # A bar that is not shown does not count.
    assert (recorder.bar.disable, recorder.bar.n) == (not shown, shown)


def test_other_processes_write_nothing(make_recorder, tmp_path, capsys):
    recorder, _, tracked = make_recorder(is_main_process=False)
    recorder.info("here")
    recorder.warning("there")
    recorder.record_update(1, {"loss": 1.0})
    recorder.record_evaluation(1, {"all_ap": 0.25}, {"all_ap": 0.25, "update": 1})
    assert not tracked and not (tmp_path / "runs").exists() and capsys.readouterr().out == ""


def test_a_resumed_run_drops_the_lines_that_are_run_again(make_recorder, tmp_path):
    recorder, _, _ = make_recorder()
    for update in range(1, 5):
        recorder.record_update(update, {"loss": 1.0})
    make_recorder(start_update=2)
    assert [line["update"] for line in read_metrics(tmp_path / "runs" / "run" / METRICS_FILE)] == [1, 2]


def test_memory_is_that_of_the_process(monkeypatch):
    found = memory_gib(torch.device("cpu")) * 2**30
    assert found == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)
    # On a GPU the most that there was at any time.
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 << 29)
    assert memory_gib(torch.device("cuda")) == 1.5
