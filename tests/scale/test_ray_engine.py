import functools
import os
import signal

import pytest


pytest.importorskip("ray")

from bifusion_hf.batch import WorkerDiedError, open_engine  # noqa: E402


def build(folder):
    """A worker that notes its start and its node, and does what a shard says."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    (folder / f"started-{os.getpid()}").touch()

    def work(name, task):
        kind, value = task
        (folder / f"{name}-begun-{len(list(folder.glob(f'{name}-begun-*')))}").touch()
        if kind == "die" and len(list(folder.glob(f"{name}-begun-*"))) <= value:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "fail":
            raise ZeroDivisionError(f"no {value}")
        return node, value

    return work


def run(folder, shards, **options):
    return dict(open_engine("ray", **options).run(functools.partial(build, folder), shards))


def test_both_nodes_work_and_a_killed_worker_costs_its_shard_one_more_try(ray_cluster, tmp_path):
    shards = {name: ("give", name) for name in "abcdefgh"} | {"x": ("die", 1)}
    found = run(tmp_path, shards)
    assert {name: value for name, (_, value) in found.items()} == {**{name: name for name in "abcdefgh"}, "x": 1}
    assert len(list(tmp_path.glob("x-begun-*"))) == 2
    assert all(len(list(tmp_path.glob(f"{name}-begun-*"))) == 1 for name in "abcdefgh")
    assert run(tmp_path, {}) == {}


def test_what_kills_its_workers_is_named(ray_cluster, tmp_path):
    with pytest.raises(WorkerDiedError, match="shard x: 3 workers died while they made it"):
        run(tmp_path, {"x": ("die", 99)}, processes=1)
    assert len(list(tmp_path.glob("x-begun-*"))) == 3


def test_an_error_is_the_one_that_the_shard_raised(ray_cluster, tmp_path):
    with pytest.raises(ZeroDivisionError, match="no luck"):
        run(tmp_path, {"a": ("fail", "luck")})
