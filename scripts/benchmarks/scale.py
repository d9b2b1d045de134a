"""Preparation and prediction in shards: what a frame takes, on each engine, and what that makes of millions of them.

The processor's time is counted, of which other load on the machine takes nothing. Measured are frames of the package;
what they cost in other numbers of cores and frames is reckoned from that, by `cost`, and not measured.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import platform
import resource
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bifusion_hf.batch import Engine, LocalEngine, Work, cut, open_engine, shard_names
from bifusion_hf.data.importing import import_recording
from bifusion_hf.io.storage import Folder
from bifusion_hf.prediction.shards import PRELOAD, PredictionSettings, predict_shards
from bifusion_hf.prediction.sources import DataSetFrames, Piece

from . import training_cost
from .parameters import update_file
from .shard_queue import Fleet, simulate


WAYS = ("one process", "four processes", "Ray, two nodes")
# Four frames of the sample.
ROOM = "rooms-0-train-00000"
FRAMES = (2_500_000, 1_000_000_000)
# What the cost is reckoned for: machines as clouds lend them.
CORES = 1024
CORES_PER_NODE = 64
# A file system or store lists so many names at once.
LISTED = 1000
# Simulated: workers, shard sizes, and the mean time between two deaths of a worker, in hours.
SIZES = (64, 256, 1024, 4096)
LIFETIMES = (24.0, 240.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `benchmark.py scale`."""
    parser.add_argument("--frames", type=int, default=8, help="frames to measure with, default: 8")
    parser.add_argument("--shard_size", type=int, default=2, help="frames of a shard, default: 2")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="default: all")
    parser.add_argument("--result", type=Path, help="reckon with the measurements of this file instead")
    parser.add_argument("--output", type=Path, help="write the result there as JSON")
    parser.add_argument("--update", type=Path, nargs="+", default=(), metavar="FILE", help="fill in the tables there")


class MeasuredEngine:
    """An engine whose workers say what their shards took; one of them is killed in the middle, the first time.

    Args:
        engine: The engine.
        death: A file that is made when a worker is killed; None kills none.
    """

    def __init__(self, engine: Engine, death: Path | None):
        self.engine, self.death = engine, death
        self.cpu_s = self.peak_mb = 0.0

    def run(self, build: Callable[[], Work], shards: Mapping[str, Any]):
        """See `Engine`."""
        for name, (record, cpu_s, peak_mb) in self.engine.run(partial(_measured, build, self.death), shards):
            self.cpu_s, self.peak_mb = self.cpu_s + cpu_s, max(self.peak_mb, peak_mb)
            yield name, record


def _measured(build: Callable[[], Work], death: Path | None) -> Work:
    work = build()

    def measured(name: str, task: Any) -> tuple[Any, float, float]:
        if death is not None and "-00001-" in name and not death.exists():
            death.touch()
            # In the middle of the shard, and not before it.
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()
        begin = time.process_time()
        record = work(name, task)
        return record, time.process_time() - begin, _peak_mb()

    return measured


def _peak_mb() -> float:
    # Not of getrusage: a process inherits the peak of the one that started it.
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def prepare(out: Path, args: argparse.Namespace, engine: Engine) -> dict[str, int]:
    """Makes a data set of the frames of a rendered room, a shard each."""
    report = import_recording(
        "sample", out, val=0, split="train", scene=ROOM, frames_per_shard=1, engine=engine, progress=False
    )
    return {"frames": sum(part["frames"] for part in report["splits"].values())}


def predict(out: Path, args: argparse.Namespace, engine: Engine) -> dict[str, int]:
    """Predicts the first frames of the sample."""
    source = FirstFrames("sample", "val", args.frames)
    report = predict_shards(
        source, PredictionSettings("sample"), out, shard_size=args.shard_size, device="cpu", engine=engine, tell=False
    )
    return {"frames": report["frames"]}


@dataclass(frozen=True)
class FirstFrames(DataSetFrames):
    """The first rows of a data set.

    Args:
        count: How many.
    """

    count: int = 1

    def shards(self, size: int) -> dict[str, Piece]:
        """See `FrameSource`."""
        pieces = [Piece("", piece[0], piece[-1] + 1) for piece in cut(range(self.count), size)]
        return dict(zip(shard_names(self.split, len(pieces)), pieces, strict=True))


WORK = {"prepare": (prepare, "data/*.parquet"), "predict": (predict, "shards/*.parquet")}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Each work on each engine: time of the processor, peak memory of a worker, and what was written.

    Raises:
        RuntimeError: What was written is not the same on all.
    """
    found: dict[str, Any] = {}
    for way in args.ways:
        with _engine(way) as engine:
            for name, (work, pattern) in WORK.items():
                with tempfile.TemporaryDirectory() as folder:
                    # Alone, whatever is killed is all there is.
                    death = None if way == "one process" else Path(folder, "died")
                    measured = MeasuredEngine(engine, death)
                    begin = time.perf_counter()
                    counts = work(Path(folder, "out"), args, measured)
                    wall = time.perf_counter() - begin
                    files = [Path(folder, "out", file) for file in Folder(Path(folder, "out")).names(pattern)]
                    found.setdefault(name, {})[way] = {
                        **counts,
                        "shards": len(files),
                        "killed": 0 if death is None else int(death.exists()),
                        "cpu_s": round(measured.cpu_s, 2),
                        "wall_s": round(wall, 1),
                        "peak_mb": round(measured.peak_mb),
                        "bytes": sum(path.stat().st_size for path in files),
                        "sha256": _digest(files),
                    }
                    print(way, name, found[name][way], flush=True)
    for name, ways in found.items():
        if len({way["sha256"] for way in ways.values()}) != 1:
            raise RuntimeError(f"{name}: the ways write different bytes: {ways}")
    return found


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


@contextlib.contextmanager
def _engine(way: str) -> Iterator[Engine]:
    if way == "one process":
        yield LocalEngine()
    elif way == "four processes":
        yield LocalEngine(4, PRELOAD)
    else:
        import ray

        with contextlib.nullcontext() if ray.is_initialized() else two_nodes():
            yield open_engine("ray")


@contextlib.contextmanager
def two_nodes(tries: int = 5) -> Iterator[None]:
    """A Ray cluster of two nodes on this machine, with a core each, that this process works with.

    Args:
        tries: How often it is started; on a machine that has much else to do Ray does not wait long enough.
    """
    import ray
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
    for left in reversed(range(tries)):
        cluster = Cluster()
        try:
            for _ in range(2):
                cluster.add_node(**options)
            ray.init(address=cluster.address, log_to_driver=False)
            break
        # Whatever says that something took too long.
        except Exception:
            ray.shutdown()
            cluster.shutdown()
            if not left:
                raise
    try:
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def cost(measured: Mapping[str, Any], frames: int, shard_size: int = 1024) -> dict[str, dict[str, float]]:
    """What so many frames take, reckoned from what one took.

    Args:
        measured: Of `measure`; the way "one process" counts.
        frames: Number of them.
        shard_size: Frames of a shard, of input and of output.

    Returns:
        For each work `core_hours`; `hours` on `CORES` cores; `read_bytes` and `written_bytes`; `requests`, of a store;
        `gbit_per_node`, what a machine of `CORES_PER_NODE` cores reads and writes a second.
    """
    read = _bytes_a_frame(measured)
    costs = {}
    for name in WORK:
        of = measured[name]["one process"]
        seconds, written = of["cpu_s"] / of["frames"], of["bytes"] / of["frames"]
        shards = math.ceil(frames / shard_size)
        # Of each shard its end and its rows are read; the result is written, of a preparation a record too, and
        # read again for the report; all are listed before and after.
        requests = shards * (3 + 1 + (2 if name == "prepare" else 1)) + 2 * math.ceil(shards / LISTED)
        costs[name] = {
            "core_hours": frames * seconds / 3600,
            "hours": frames * seconds / 3600 / CORES,
            "read_bytes": frames * read,
            "written_bytes": frames * written,
            "shards": shards,
            "requests": requests,
            "gbit_per_node": 8e-9 * CORES_PER_NODE * (read + written) / seconds,
        }
    return costs


def _bytes_a_frame(measured: Mapping[str, Any]) -> float:
    """Of a data set of frames."""
    prepared = measured["prepare"]["one process"]
    return prepared["bytes"] / prepared["frames"]


def queues(measured: Mapping[str, Any], frames: int = FRAMES[0], seed: int = 0) -> list[dict[str, Any]]:
    """What deaths and stragglers cost a prediction of so many frames on `CORES` cores, by size of a shard."""
    of = measured["predict"]["one process"]
    rows = []
    for hours in LIFETIMES:
        for size in SIZES:
            row: dict[str, Any] = {"shard_size": size, "lifetime_h": hours}
            fleet = Fleet(CORES, frames, size, of["cpu_s"] / of["frames"], lifetime_s=3600 * hours)
            for way in ("queue", "launch"):
                outcome = simulate(fleet, way, seed)
                row[way] = {
                    "hours": outcome.wall_s / 3600,
                    "efficiency": outcome.efficiency(CORES),
                    "deaths": outcome.deaths,
                    "finished": outcome.finished == math.ceil(frames / size),
                }
            rows.append(row)
    return rows


def measured_table(measured: Mapping[str, Any]) -> str:
    """What was measured, as Markdown."""
    lines = [
        "| work | by | frames | shards | workers killed | processor time | peak memory of a worker | output |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in WORK:
        for way, of in measured[name].items():
            lines.append(
                f"| {name} | {way} | {of['frames']} | {of['shards']} | {of['killed']} "
                f"| {of['cpu_s']:.2f} s | {of['peak_mb']} MB | `{of['sha256'][:12]}` |"
            )
    return "\n".join(lines)


def cost_table(measured: Mapping[str, Any]) -> str:
    """The cost of `FRAMES`, as Markdown."""
    lines = [
        f"| frames | work | core hours | hours on {CORES} cores | read | written | shards | requests "
        f"| traffic of {CORES_PER_NODE} cores |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for frames in FRAMES:
        for name, of in cost(measured, frames).items():
            lines.append(
                f"| {frames:,} | {name} | {of['core_hours']:,.0f} | {of['hours']:,.1f} "
                f"| {of['read_bytes'] / 1e12:.2f} TB | {of['written_bytes'] / 1e12:.2f} TB "
                f"| {of['shards']:,} | {of['requests']:,} | {of['gbit_per_node']:.2f} Gbit/s |"
            )
    return "\n".join(lines)


def queue_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The simulated queues, as Markdown."""
    lines = [
        "| a worker lives | frames of a shard | queue: hours | of it useful | launch: hours | of it useful "
        "| deaths, queue and launch |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        queue, launch = row["queue"], row["launch"]
        ends = f"{launch['hours']:.2f} | {100 * launch['efficiency']:.1f} %" if launch["finished"] else "no end | 0 %"
        lines.append(
            f"| {row['lifetime_h']:g} h | {row['shard_size']:,} | {queue['hours']:.2f} "
            f"| {100 * queue['efficiency']:.1f} % | {ends} "
            f"| {queue['deaths']}, {launch['deaths']} |"
        )
    return "\n".join(lines)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints the tables and writes them where `--update` and `--output` say."""
    if args.result is None:
        measured = {**measure(args), "train": training_cost.measure(args.frames)}
        machine = {"cpu": platform.machine(), "cpu_count": os.cpu_count()}
    else:
        content = json.loads(args.result.read_text(encoding="utf-8"))
        measured, machine = content["measured"], content["machine"]
    result = {
        "machine": machine,
        "measured": measured,
        "cost": {str(frames): cost(measured, frames) for frames in FRAMES},
        "feeding": training_cost.feeding(measured["train"], _bytes_a_frame(measured), FRAMES[0]),
        "queues": queues(measured),
    }
    tables = {
        "scale_measured": measured_table(measured),
        "scale_cost": cost_table(measured),
        "scale_training": training_cost.table(measured["train"], result["feeding"], FRAMES[0]),
        "scale_queues": queue_table(result["queues"]),
    }
    for name, table in tables.items():
        print(table, end="\n\n")
        for path in args.update:
            update_file(path, name, table)
    if args.output is not None:
        args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result
