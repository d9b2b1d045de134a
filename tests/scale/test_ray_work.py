from types import SimpleNamespace

import pytest


pytest.importorskip("ray")

from scripts.benchmarks import scale  # noqa: E402


def test_two_nodes_write_the_bytes_of_one_process_though_a_worker_is_killed(ray_cluster):
    """Import and prediction; that the bytes are the same `measure` sees to."""
    ways = ("one process", "Ray, two nodes")
    found = scale.measure(SimpleNamespace(ways=ways, frames=4, shard_size=2))
    for of in found.values():
        assert [of[way]["killed"] for way in ways] == [0, 1] and of["one process"]["frames"] == 4
