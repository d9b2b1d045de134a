import functools
import os
import signal
from concurrent.futures.process import BrokenProcessPool

import pytest

from bifusion_hf.batch import LocalEngine, WorkerDiedError, local_engine, open_engine


def build(folder):
    """A worker that notes its start, and does what a shard says."""
    (folder / f"started-{os.getpid()}").touch()

    def work(name, task):
        kind, value = task
        if kind == "die" and len(list(folder.glob(f"{name}-*"))) < value:
            (folder / f"{name}-{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "fail":
            raise ZeroDivisionError(f"no {value}")
        return os.getppid() if kind == "parent" else os.getpid(), value

    return work


def run(folder, shards, processes):
    return dict(LocalEngine(processes).run(functools.partial(build, folder), shards))


def started(folder):
    return {int(path.name.partition("-")[2]) for path in folder.glob("started-*")}


def test_this_process_alone(tmp_path):
    found = run(tmp_path, {name: ("give", name) for name in "abc"}, 1)
    assert found == {name: (os.getpid(), name) for name in "abc"} and started(tmp_path) == {os.getpid()}
    assert run(tmp_path / "nowhere", {}, 1) == run(tmp_path / "nowhere", {}, 3) == {}


def test_workers_are_no_forks_of_this_process(tmp_path):
    """Which has threads, and would hand down their locks."""
    shards = {name: ("parent", name) for name in "ab"}
    assert os.getpid() not in {parent for parent, _ in run(tmp_path, shards, 2).values()}


def test_a_killed_worker_costs_its_shard_one_more_try(tmp_path, caplog):
    shards = {name: ("give", name) for name in "abcd"} | {"e": ("die", 1)}
    found = run(tmp_path, shards, 2)
    assert {name: value for name, (_, value) in found.items()} == {**{name: name for name in "abcd"}, "e": 1}
    # Two, and the one that took the place of the dead one; each was built once.
    assert len(started(tmp_path)) == 3 and {pid for pid, _ in found.values()} <= started(tmp_path)
    assert "shard e: its worker died; once more" in caplog.text and caplog.text.count("once more") == 1


def test_a_worker_that_died_with_nothing_to_do_is_replaced(tmp_path, monkeypatch, caplog):
    start, dead = LocalEngine._start, []

    def start_dead_at_first(self, build, index):
        worker = start(self, build, index)
        if not dead:
            dead.append(worker.submit(os.getpid).result())
            os.kill(dead[0], signal.SIGKILL)
            with pytest.raises(BrokenProcessPool):
                while True:
                    worker.submit(os.getpid).result()
        return worker

    monkeypatch.setattr(LocalEngine, "_start", start_dead_at_first)
    found = run(tmp_path, {name: ("give", name) for name in "ab"}, 2)
    assert {name: value for name, (_, value) in found.items()} == {"a": "a", "b": "b"}
    assert len(dead) == 1 and "once more" not in caplog.text


def test_a_shard_that_kills_its_workers_is_named_and_the_others_are_made(tmp_path):
    seen = {}
    with pytest.raises(WorkerDiedError, match="shard a: 3 workers died while they made it"):
        for name, record in LocalEngine(2).run(
            functools.partial(build, tmp_path), {"a": ("die", 9), "b": ("give", 1), "c": ("give", 2)}
        ):
            seen[name] = record[1]
    assert seen == {"b": 1, "c": 2} and len(list(tmp_path.glob("a-*"))) == 3


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_ends_the_run_with_the_shard_in_the_log(tmp_path, processes, caplog):
    with pytest.raises(ZeroDivisionError, match="no luck"):
        run(tmp_path, {"a": ("give", 1), "b": ("fail", "luck")}, processes)
    assert "shard b failed: no luck" in caplog.text


def test_one_process_of_this_machine_unless_more_are_asked_for():
    assert open_engine() == LocalEngine(1) == LocalEngine() and open_engine(processes=3) == LocalEngine(3)
    assert open_engine(processes=1) == LocalEngine(1, (), 0)


def test_gpus_are_those_of_this_machine(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert open_engine(processes=2, preload=("json",), gpu=True) == LocalEngine(2, ("json",), 4)
    assert open_engine(processes=2).gpus == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "slurm"}, "engine is 'slurm'; expected one of"),
        ({"processes": 0}, "processes is 0"),
        ({"address": "auto"}, "expected the engine 'ray'"),
    ],
)
def test_engines_that_there_are_not(options, message):
    with pytest.raises(ValueError, match=message):
        open_engine(**options)


def test_a_worker_sees_the_gpu_that_it_was_given(monkeypatch):
    done = []
    for name in ("leave_interrupts_to_the_parent", "end_with_the_parent"):
        monkeypatch.setattr(local_engine, name, lambda name=name: done.append(name))
    monkeypatch.setattr(local_engine, "_build", None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    local_engine._start_worker(build, None)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2,3" and local_engine._build is build
    assert sorted(done) == ["end_with_the_parent", "leave_interrupts_to_the_parent"]
    local_engine._start_worker(build, 2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
