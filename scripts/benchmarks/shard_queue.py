"""A queue of shards with workers that die, event by event: what stops and stragglers cost at which size of a shard.

`"queue"` is what `LocalEngine` and Ray do: a free worker takes the next shard, and a worker that dies is replaced, its
shard begun anew. `"launch"` is what torchrun does: each process has its share from the start, and when one dies all
are started again, on what is left of the shards, shared anew.
"""

import heapq
from collections import deque
from dataclasses import dataclass

import numpy as np


# Where processes die faster than a shard is made, a launch never ends; nobody starts one as often as this.
MAX_RESTARTS = 200


@dataclass(frozen=True)
class Fleet:
    """Workers and shards; times in seconds.

    Args:
        workers: How many at once.
        frames: Of the whole work.
        shard_size: Frames of a shard.
        frame_s: Mean time of a frame.
        spread: Standard deviation of the logarithm of a shard's time, which frames of one place share.
        start_s: From the start of a worker to its first frame.
        lifetime_s: Mean time between two deaths of a worker, exponential; None = they do not die.
    """

    workers: int
    frames: int
    shard_size: int
    frame_s: float
    spread: float = 0.2
    start_s: float = 30.0
    lifetime_s: float | None = None

    def durations(self, rng: np.random.Generator) -> np.ndarray:
        """Time of each shard, float64 [S]; the last one may be shorter."""
        count = -(-self.frames // self.shard_size)
        sizes = np.full(count, self.shard_size, dtype=np.float64)
        sizes[-1] = self.frames - (count - 1) * self.shard_size
        factors = rng.lognormal(-(self.spread**2) / 2, self.spread, count)
        return sizes * self.frame_s * factors

    def lifetimes(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Times from the start of workers to their deaths, float64 [count]."""
        return np.full(count, np.inf) if self.lifetime_s is None else rng.exponential(self.lifetime_s, count)


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Args:
        wall_s: From the start to the last shard.
        useful_s: Of all workers together, in shards that were finished.
        lost_s: In shards that were begun and not finished.
        deaths: Of workers.
        finished: Shards; fewer than all where a launch was given up after `MAX_RESTARTS`.
    """

    wall_s: float
    useful_s: float
    lost_s: float
    deaths: int
    finished: int

    def efficiency(self, workers: int) -> float:
        """Share of the time of all workers that made results."""
        return self.useful_s / (workers * self.wall_s)


def simulate(fleet: Fleet, way: str, seed: int = 0) -> Outcome:
    """One run.

    Args:
        fleet: Workers and shards.
        way: `"queue"` or `"launch"`; see the module.
        seed: Of all draws.

    Raises:
        ValueError: There is no such way.
    """
    if way not in ("queue", "launch"):
        raise ValueError(f"way is {way!r}; expected 'queue' or 'launch'")
    rng = np.random.default_rng(seed)
    return (_queue if way == "queue" else _launch)(fleet, fleet.durations(rng), rng)


def _queue(fleet: Fleet, durations: np.ndarray, rng: np.random.Generator) -> Outcome:
    # From when on a shard can be begun: what a worker has lost, from its death on.
    waiting = deque((0.0, duration) for duration in durations)
    useful = lost = wall = 0.0
    deaths = finished = 0
    # When a worker is free, and when it dies.
    lifetimes = fleet.lifetimes(rng, fleet.workers)
    free = [(fleet.start_s, number, fleet.start_s + lifetime) for number, lifetime in enumerate(lifetimes)]
    heapq.heapify(free)
    while waiting:
        now, number, dies = heapq.heappop(free)
        known, duration = waiting.popleft()
        begin = max(now, known)
        if begin + duration <= dies:
            now = begin + float(duration)
            useful, finished, wall = useful + float(duration), finished + 1, max(wall, now)
        else:
            # One that waited may have died before.
            lost, deaths = lost + max(dies - begin, 0.0), deaths + 1
            waiting.append((max(dies, known), duration))
            now = dies + fleet.start_s
            dies = now + fleet.lifetimes(rng, 1)[0]
        heapq.heappush(free, (now, number, dies))
    return Outcome(wall, useful, lost, deaths, finished)


def _launch(fleet: Fleet, durations: np.ndarray, rng: np.random.Generator) -> Outcome:
    left = np.arange(len(durations))
    useful = lost = now = 0.0
    deaths = 0
    while len(left) and deaths < MAX_RESTARTS:
        # A column for each process, which takes its shards from top to bottom; the last row may be short.
        ends = np.zeros(-(-len(left) // fleet.workers) * fleet.workers)
        ends[: len(left)] = durations[left]
        ends = np.cumsum(ends.reshape(-1, fleet.workers), axis=0)
        last = ends[-1].max()
        # A process that waits at the end may die too.
        dies = fleet.lifetimes(rng, fleet.workers).min()
        now += fleet.start_s + min(last, dies)
        if dies >= last:
            return Outcome(now, useful + durations[left].sum(), lost, deaths, len(durations))
        deaths += 1
        done = ends <= dies
        made = np.where(done, ends, 0.0).max(axis=0)
        is_left = ~done.ravel()[: len(left)]
        useful += sum(made.tolist())
        has_more = np.bincount(np.flatnonzero(is_left) % fleet.workers, minlength=fleet.workers) > 0
        lost += sum((dies - made[has_more]).tolist())
        left = left[is_left]
    return Outcome(now, useful, lost, deaths, len(durations) - len(left))
