import dataclasses

import numpy as np
import pytest

from scripts.benchmarks.shard_queue import Fleet, simulate


FLEET = Fleet(workers=8, frames=6400, shard_size=100, frame_s=0.1, spread=0.0, start_s=5.0)
WAYS = ("queue", "launch")


@pytest.mark.parametrize("way", WAYS)
def test_without_deaths_the_time_is_that_of_the_largest_share(way):
    found = simulate(FLEET, way)
    assert found.wall_s == pytest.approx(5 + 8 * 10) and found.useful_s == pytest.approx(640)
    assert (found.deaths, found.lost_s, found.finished) == (0, 0, 64)
    # One shard more is one round more.
    assert simulate(dataclasses.replace(FLEET, frames=6450), way).wall_s == pytest.approx(5 + 8 * 10 + 5)


@pytest.mark.parametrize("way", WAYS)
def test_every_shard_is_finished_once_whatever_dies(way):
    fleet = dataclasses.replace(FLEET, spread=0.5, lifetime_s=100.0)
    for seed in range(5):
        found = simulate(fleet, way, seed)
        durations = fleet.durations(np.random.default_rng(seed))
        assert found.finished == 64 and found.useful_s == pytest.approx(durations.sum()) and found.deaths > 0
        assert found.useful_s + found.lost_s <= fleet.workers * found.wall_s
        assert found == simulate(fleet, way, seed)


def test_one_worker_takes_the_time_of_the_closed_form():
    """A shard of t that begins anew at each death, at a rate of r: (exp(rt) - 1) (1/r + start) on average."""
    fleet = Fleet(1, 20_000, 10, 1.0, spread=0.0, start_s=3.0, lifetime_s=20.0)
    expected = 2000 * (np.exp(10 / 20) - 1) * (20 + 3.0)
    assert simulate(fleet, "queue").wall_s == pytest.approx(expected, rel=0.03)


def test_a_launch_loses_more_than_a_queue_and_small_shards_less():
    lossy = dataclasses.replace(FLEET, frames=64_000, lifetime_s=600.0)
    lost = {way: simulate(lossy, way).lost_s for way in WAYS}
    assert lost["launch"] > 2 * lost["queue"] > 0
    small = dataclasses.replace(lossy, shard_size=25)
    assert all(simulate(small, way).lost_s < 0.5 * lost[way] for way in WAYS)


def test_there_are_two_ways():
    with pytest.raises(ValueError, match="way is 'slurm'"):
        simulate(FLEET, "slurm")
