"""How the local engine deals with its workers, seen on ones that make a shard within this process."""

import multiprocessing
import os
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import pytest

from bifusion_hf.batch import LocalEngine, WorkerDiedError, local_engine


@pytest.fixture
def workers(monkeypatch):
    """The workers that were started; each calls what it is given at once, and "wait" is never done."""
    started = []

    class Worker:
        def __init__(self, build, index):
            self.work, self.index, self.ended = build(), index, []
            started.append(self)

        def submit(self, _, name, task):
            future = Future()
            if task == "die":
                future.set_exception(BrokenProcessPool())
            elif task != "wait":
                future.set_result(self.work(name, task))
            return future

        def shutdown(self, **options):
            self.ended.append(options)

    monkeypatch.setattr(LocalEngine, "_start", lambda self, build, index: Worker(build, index))
    monkeypatch.setattr(local_engine, "ended_when_stopped", lambda: local_engine.contextlib.nullcontext())
    return started


def test_shards_are_begun_in_their_order_by_no_more_workers_than_they_are(workers):
    begun = []

    def build():
        return lambda name, task: begun.append(name) or 2 * task

    found = dict(LocalEngine(7).run(build, {"c": 1, "a": 2, "b": 3}))
    assert begun == ["c", "a", "b"] and found == {"c": 2, "a": 4, "b": 6}
    assert [worker.index for worker in workers] == [0, 1, 2]
    # None is left, and none is waited for.
    assert [worker.ended for worker in workers] == [[{"wait": False, "cancel_futures": True}]] * 3


def test_a_single_shard_has_a_worker_too_and_none_have_none(workers):
    assert dict(LocalEngine(2).run(lambda: lambda *_: "made", {"a": 0})) == {"a": "made"}
    assert len(workers) == 1
    assert dict(LocalEngine(2).run(pytest.fail, {})) == {} and len(workers) == 1


def test_a_dead_worker_is_replaced_in_its_place_and_its_shard_made_next(workers, caplog):
    """Three of them, and the shard is what kills them; the others go on."""
    found = []
    with pytest.raises(WorkerDiedError, match="shard b: 3 workers died"):
        for name, _ in LocalEngine(2).run(lambda: lambda *_: None, {"a": 0, "b": "die", "c": 0, "d": "wait"}):
            found.append(name)
    assert found[:1] == ["a"] and caplog.text.count("shard b: its worker died; once more") == 2
    assert {worker.index for worker in workers} == {0, 1} and len(workers) == 4
    assert len({worker.index for worker in workers[2:]}) == 1


def test_shards_that_are_made_at_once_are_given_in_the_order_in_which_they_were_begun(workers):
    names = [f"{number}" for number in range(40)]
    assert list(dict(LocalEngine(8).run(lambda: lambda name, _: name, dict.fromkeys(names)))) == names


def test_who_stops_asking_ends_what_still_works(workers, monkeypatch):
    ended = []
    children = [SimpleNamespace(terminate=lambda number=number: ended.append(number)) for number in (1, 2)]
    monkeypatch.setattr(multiprocessing, "active_children", lambda: children)
    records = LocalEngine(2).run(lambda: lambda name, _: name, {"a": "give", "b": "wait", "c": "wait"})
    assert next(records) == ("a", "a") and not ended
    records.close()
    assert ended == [1, 2]
    assert [len(worker.ended) for worker in workers] == [1, 1]


@pytest.mark.parametrize(("before", "within"), [(None, "1"), ("3", "3")])
def test_a_worker_computes_with_one_thread_unless_told_otherwise(workers, monkeypatch, before, within):
    monkeypatch.setenv("OMP_NUM_THREADS", before or "")
    if before is None:
        del os.environ["OMP_NUM_THREADS"]
    found = LocalEngine(2).run(lambda: lambda *_: os.environ["OMP_NUM_THREADS"], {"a": 0, "b": 0})
    assert dict(found) == {"a": within, "b": within}


@pytest.mark.parametrize(("gpus", "seen"), [(0, [None] * 5), (3, [0, 1, 2, 0, 1])])
def test_a_worker_is_one_process_and_takes_the_next_gpu(monkeypatch, gpus, seen):
    preloaded, context = [], object()
    monkeypatch.setattr(local_engine, "fork_server_context", lambda names: preloaded.append(names) or context)
    monkeypatch.setattr(local_engine, "ProcessPoolExecutor", lambda count, **options: (count, options))
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["fork", "spawn", "forkserver"])
    engine = LocalEngine(5, ("json", "csv"), gpus)
    made = [engine._start(dict, index) for index in range(5)]
    assert [count for count, _ in made] == [1] * 5
    assert [options["initargs"] for _, options in made] == [(dict, gpu) for gpu in seen]
    assert all(options["mp_context"] is context for _, options in made)
    assert {options["initializer"] for _, options in made} == {local_engine._start_worker}
    assert set(preloaded[0]) == {"bifusion_hf.batch.local_engine", "json", "csv"}
