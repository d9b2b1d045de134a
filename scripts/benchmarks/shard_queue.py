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

    def lifetime(self, rng: np.random.Generator) -> float:
        """Time from the start of a worker to its death."""
        return np.inf if self.lifetime_s is None else rng.exponential(self.lifetime_s)


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
    free = [(fleet.start_s, number, fleet.start_s + fleet.lifetime(rng)) for number in range(fleet.workers)]
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
            dies = now + fleet.lifetime(rng)
        heapq.heappush(free, (now, number, dies))
    return Outcome(wall, useful, lost, deaths, finished)


def _launch(fleet: Fleet, durations: np.ndarray, rng: np.random.Generator) -> Outcome:
    left = np.arange(len(durations))
    useful = lost = now = 0.0
    deaths = 0
    while len(left) and deaths < MAX_RESTARTS:
        shares = [left[rank :: fleet.workers] for rank in range(fleet.workers)]
        ends = [np.cumsum(durations[share]) for share in shares]
        last = max(end[-1] for end in ends if len(end))
        # A process that waits at the end may die too.
        dies = min(fleet.lifetime(rng) for _ in range(fleet.workers))
        now += fleet.start_s + min(last, dies)
        if dies >= last:
            return Outcome(now, useful + durations[left].sum(), lost, deaths, len(durations))
        deaths += 1
        done = [np.searchsorted(end, dies, side="right") for end in ends]
        useful += sum(float(end[count - 1]) for end, count in zip(ends, done, strict=True) if count)
        for share, end, count in zip(shares, ends, done, strict=True):
            if count < len(share):
                lost += dies - (float(end[count - 1]) if count else 0.0)
        left = np.sort(np.concatenate([share[count:] for share, count in zip(shares, done, strict=True)]))
    return Outcome(now, useful, lost, deaths, len(durations) - len(left))
