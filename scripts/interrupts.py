"""Signals at random moments of real work: `python -m scripts.interrupts --moments 20`.

A training, an evaluation, a preparation and a scan get in turn SIGINT (to all their processes, as a terminal sends
it), SIGTERM and SIGKILL (to the command alone). Afterwards the exit status must be the signal's, no process may be
left, whatever has a final name must be whole, and the command that goes on must end as one that was let alone.
"""

import argparse
import hashlib
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np


STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
# Seconds in which a command must be gone after a signal, its helpers after it, and the command that goes on be done.
PATIENCE, HELPERS, WHOLE = 120, 60, 600
FORK = multiprocessing.get_context("fork")
NETWORK = {
    "voxel_size": 0.1,
    "hidden_size": 8,
    "projection_dim": 16,
    "projection_hidden_size": 16,
    "decoder_size": 16,
    "decoder_intermediate_size": 32,
    "gate_warmup_steps": 0,
    "point_config": {"stem_channels": 8, "planes": [8] * 8, "stem_kernel_size": 3, "blocks": [2, *[1] * 7]},
    "vision_config": {
        **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        "patch_size": 40,
    },
}
NUM_POINTS = 400


@dataclass(frozen=True)
class Work:
    """A command that is interrupted.

    Args:
        module: Of `bifusion_hf.cli`.
        arguments: For an output folder.
        go_on: Arguments of the command that goes on.
        result: What a whole run leaves, to be compared.
    """

    module: str
    arguments: Callable[[Path], list[str]]
    go_on: Callable[[Path], list[str]]
    result: Callable[[Path], Any]


def works(inputs: Path) -> dict[str, Work]:
    """The commands by name, on what `write_inputs` wrote."""
    frames, checkpoint = str(inputs / "frames"), str(inputs / "checkpoint")

    def train(out: Path) -> list[str]:
        return [str(inputs / "recipe.yaml"), "--output_dir", str(out)]

    def train_on(out: Path) -> list[str]:
        from bifusion_hf.training.checkpoints import checkpoints_folder, list_checkpoints

        found = list_checkpoints(checkpoints_folder(out))
        return [*train(out), *(["--resume_from_checkpoint", "latest"] if found else ["--overwrite_output_dir"])]

    def evaluate(out: Path) -> list[str]:
        files = ["--output", str(out / "results.json"), "--save_predictions", str(out / "predictions.parquet")]
        return [checkpoint, "--data", frames, "--batch_size", "1", "--num_workers", "1", "--cpu", *files]

    def prepare(out: Path) -> list[str]:
        options = ["--labels", "none", "--frame_interval", "1", "--scans_per_shard", "1", "--workers", "2"]
        split = f"train={inputs / 'train.txt'}"
        return ["--scans", str(inputs / "scans"), "--output", str(out), "--split", split, *options]

    def scan(out: Path) -> list[str]:
        options = ["--threshold", "0", "--min_score", "0", "--min_views", "1", "--save_every", "2"]
        return [frames, "--output", str(out), "--checkpoint", checkpoint, "--device", "cpu", *options]

    return {
        "training": Work("train", train, train_on, last_weights),
        "evaluation": Work("evaluate", evaluate, evaluate, lambda out: digests(out, "results.json")),
        "preparation": Work("prepare_scannet200", prepare, prepare, lambda out: digests(out, "data/*.parquet")),
        "scan": Work("scan", scan, scan, lambda out: digests(out, "objects.json")),
    }


def result_of(inputs: Path, name: str, out: Path) -> Any:
    """What a whole run of a command left."""
    return works(inputs)[name].result(out)


def arguments_to_go_on(inputs: Path, name: str, out: Path) -> list[str]:
    """Arguments of the command that goes on with an interrupted one."""
    return works(inputs)[name].go_on(out)


def digests(out: Path, pattern: str) -> dict[str, str]:
    """SHA-256 of files by their names."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob(pattern))}


def last_weights(out: Path) -> dict[str, str]:
    """SHA-256 of the last checkpoint's network."""
    from bifusion_hf.training.checkpoints import checkpoints_folder, list_checkpoints

    return digests(list_checkpoints(checkpoints_folder(out))[-1], "model.safetensors")


def write_inputs(folder: Path, frames: int, scans: int, updates: int) -> None:
    """Small frames, a small checkpoint, a recipe and scans to prepare."""
    import datasets
    import torch
    import yaml

    from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation, BiFusionProcessor
    from bifusion_hf.data.frames import frame_features, frame_to_row

    from .benchmarks.endurance import small_frames
    from .fuzz.targets import write_sens

    torch.manual_seed(0)
    (folder / "frames/data").mkdir(parents=True)
    rows = [
        frame_to_row(replace(frame, frame_id=f"room_{number}")) for number, frame in enumerate(small_frames(frames))
    ]
    for split in ("train", "val"):
        path = folder / f"frames/data/{split}-00000-of-00001.parquet"
        datasets.Dataset.from_list(rows, features=frame_features()).to_parquet(str(path))
    config = BiFusionConfig.from_preset("tiny", **NETWORK)
    BiFusionForInstanceSegmentation(config).save_pretrained(folder / "checkpoint")
    BiFusionProcessor.from_config(config, num_points=NUM_POINTS).save_pretrained(folder / "checkpoint")
    recipe = {
        "extends": "tiny",
        "model": {"config": NETWORK, "processor": {"num_points": NUM_POINTS}},
        "data": {"train": str(folder / "frames"), "val": None, "num_workers": 1},
        "training": {"batch_size": 1, "max_updates": updates},
        "checkpoints": {"every_updates": 2},
        "logging": {"progress_bar": False},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    names = [f"scene{index:04d}_00" for index in range(scans)]
    (folder / "train.txt").write_text("\n".join(names) + "\n")
    write_sens(folder)
    for name in names:
        (folder / "scans" / name).mkdir(parents=True)
        shutil.copy(folder / "scene0000_00.sens", folder / "scans" / name / f"{name}.sens")


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function in a process of its own: this one stays without threads, and can be forked."""
    with ProcessPoolExecutor(1, mp_context=FORK) as pool:
        return pool.submit(function, *arguments).result()


def _command(module: str, arguments: list[str], log: Path) -> None:
    """A command as a shell starts it, but for the imports, which are there already."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with log.open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    sys.argv = [module, *arguments]
    importlib.import_module(f"bifusion_hf.cli.{module}").main(arguments)


def start(module: str, arguments: list[str], log: Path) -> multiprocessing.process.BaseProcess:
    """Starts a command in a session of its own."""
    process = FORK.Process(target=_command, args=(module, arguments, log))
    process.start()
    return process


def members(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            # After the name, which may hold anything: state, parent, group, session.
            state, _, _, own = place.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(own) == session and state not in "ZX":
            found.append(int(place.parent.name))
    return found


def _command_line(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
    except OSError:
        return "gone"


def broken_files(out: Path) -> list[str]:
    """What has a final name and cannot be read."""
    import pyarrow.parquet
    from PIL import Image
    from safetensors.numpy import load_file

    def lines(path: Path) -> None:
        # A log grows line by line; a kill may cut the last one.
        for line in path.read_text().splitlines()[:-1]:
            json.loads(line)

    readers: dict[str, Callable[[Path], Any]] = {
        ".parquet": pyarrow.parquet.read_table,
        ".json": lambda path: json.loads(path.read_text()),
        ".jsonl": lines,
        ".safetensors": load_file,
        **dict.fromkeys((".jpg", ".png", ".webp", ".gif"), lambda path: Image.open(path).load()),
    }
    broken = []
    for path in sorted(out.rglob("*")):
        if path.suffix not in readers or any(part.startswith(".") for part in path.relative_to(out).parts):
            continue
        try:
            readers[path.suffix](path)
        except Exception as error:  # whatever it is, the file is not whole
            broken.append(f"{path.relative_to(out)}: {type(error).__name__}: {error}"[:200])
    return broken


def loads(out: Path) -> bool:
    """Whether the last checkpoint of a training, if there is one, is a network."""
    from bifusion_hf.hub.pretrained import load_pretrained
    from bifusion_hf.training.checkpoints import checkpoints_folder, list_checkpoints

    found = list_checkpoints(checkpoints_folder(out))
    return not found or load_pretrained(found[-1]) is not None


def interrupt(inputs: Path, name: str, number: int, seconds: float, out: Path, expected: Any) -> dict[str, Any]:
    """Interrupts a command after some seconds, and goes on.

    Args:
        inputs: See `write_inputs`.
        name: Of the command.
        number: The signal.
        seconds: When it is sent.
        out: A folder that is not there.
        expected: The result of a run that was let alone.

    Returns:
        `status`, None where it had ended before the signal; `problems`, what must not be; and the seconds until the
        command was gone (`command`) and its helpers were after it (`helpers`).
    """
    work, log = works(inputs)[name], out.with_suffix(".log")
    process = start(work.module, work.arguments(out), log)
    process.join(seconds)
    if process.exitcode is not None:
        return {"status": None, "problems": [] if process.exitcode == 0 else [f"ended with {process.exitcode}"]}
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    sent = time.monotonic()
    process.join(PATIENCE)
    gone = time.monotonic()
    problems = []
    if process.exitcode is None:
        problems.append(f"still there after {PATIENCE} s")
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    # A signal may come when the work is done and the process about to end.
    elif process.exitcode not in (STATUS[signal.Signals(number)], 0):
        problems.append(f"status {process.exitcode}")
    while (left := members(process.pid)) and time.monotonic() < gone + HELPERS:
        time.sleep(0.05)
    seconds = {"command": gone - sent, "helpers": time.monotonic() - gone}
    if left:
        problems.append(f"{len(left)} processes left: {[_command_line(each) for each in left]}")
        os.killpg(process.pid, signal.SIGKILL)
    problems += in_child(broken_files, out) if out.exists() else []
    if work.module == "train" and not in_child(loads, out):
        problems.append("the last checkpoint does not load")
    again = start(work.module, in_child(arguments_to_go_on, inputs, name, out), log)
    again.join(WHOLE)
    if again.exitcode is None:
        problems.append(f"the command that goes on is still there after {WHOLE} s: {log.read_text()[-300:]}")
        os.killpg(again.pid, signal.SIGKILL)
        again.join()
    elif again.exitcode != 0:
        problems.append(f"the command that goes on ended with {again.exitcode}: {log.read_text()[-300:]}")
    elif (found := in_child(result_of, inputs, name, out)) != expected:
        problems.append(f"another result: {found}")
    return {"status": process.exitcode, "problems": problems, **seconds}


class Tally:
    """What became of the moments of a command.

    Args:
        signals: Their numbers.

    Attributes: `counts` of outcomes by signal, `problems`, and `longest`, seconds until the command and its helpers
        were gone.
    """

    def __init__(self, signals: Sequence[int]):
        self.counts = {signal.Signals(number).name: Counter() for number in signals}
        self.problems: list[str] = []
        self.longest = {"command": 0.0, "helpers": 0.0}

    def add(self, number: int, when: float, found: Mapping[str, Any]) -> None:
        """Adds what `interrupt` found."""
        kinds = {None: "ended before", 0: "ended by itself"}
        name = signal.Signals(number).name
        self.counts[name][kinds.get(found["status"], "interrupted")] += 1
        self.problems += [f"{name}, {when:.2f} s: {text}" for text in found["problems"]]
        for part in self.longest:
            self.longest[part] = max(self.longest[part], round(found.get(part, 0.0), 2))


def run(
    moments: int,
    minutes: float | None,
    seed: int,
    names: Sequence[str],
    size: tuple[int, int, int] = (12, 100, 20),
    signals: Sequence[int] = tuple(STATUS),
) -> dict[str, Any]:
    """Interrupts each command at so many moments, by the signals in turn.

    Args:
        moments: Of each command.
        minutes: Begin nothing after these.
        seed: Of the moments.
        names: Of the commands.
        size: Frames, scans and updates.
        signals: Their numbers.
    """
    for module in ("train", "evaluate", "prepare_scannet200", "scan"):
        importlib.import_module(f"bifusion_hf.cli.{module}")
    # Heavy, and needed by all: once for all forks.
    for module in ("datasets", "torch", "accelerate", "bifusion_hf.training.run", "bifusion_hf.evaluation.evaluator"):
        importlib.import_module(module)
    import datasets

    until = None if minutes is None else time.monotonic() + 60 * minutes
    rng = np.random.default_rng(seed)
    tallies = {name: Tally(tuple(signals)) for name in names}
    with (
        tempfile.TemporaryDirectory(prefix="interrupts-") as place,
        mock.patch.object(datasets.config, "HF_DATASETS_CACHE", f"{place}/cache"),
    ):
        folder = Path(place)
        inputs = folder / "inputs"
        in_child(write_inputs, inputs, *size)
        alone = {name: _let_alone(inputs, name, folder / f"{name}-alone") for name in names}
        for moment in range(moments):
            for index, name in enumerate(names):
                if until is not None and time.monotonic() > until:
                    continue
                number, (seconds, expected) = signals[(moment + index) % len(signals)], alone[name]
                when = float(rng.uniform(0.02, 1.0)) * seconds
                out = folder / f"{name}-{moment}"
                tallies[name].add(number, when, interrupt(inputs, name, number, when, out, expected))
                for left in (out, out.with_suffix(".log")):
                    shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    order = ", ".join(signal.Signals(number).name for number in signals)
    return {
        "seed": seed,
        "moments": f"{moments} of each command, {order} in turn",
        "seconds_alone": {name: round(seconds, 2) for name, (seconds, _) in alone.items()},
        "counts": {name: tally.counts for name, tally in tallies.items()},
        "longest_seconds_until_gone": {name: tally.longest for name, tally in tallies.items()},
        "problems": [f"{name}, {problem}" for name, tally in tallies.items() for problem in tally.problems],
        "load_average": round(os.getloadavg()[0], 2),
    }


def _let_alone(inputs: Path, name: str, out: Path) -> tuple[float, Any]:
    """Seconds and result of a command that nothing interrupts."""
    work, begin = works(inputs)[name], time.monotonic()
    process = start(work.module, work.arguments(out), out.with_suffix(".log"))
    process.join(WHOLE)
    if process.exitcode != 0:
        for each in members(process.pid):
            os.kill(each, signal.SIGKILL)
        raise ValueError(f"{name} ended with {process.exitcode}: {out.with_suffix('.log').read_text()[-2000:]}")
    return time.monotonic() - begin, in_child(result_of, inputs, name, out)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Raises:
        SystemExit: 1 where something must not be.
    """
    names = ("training", "evaluation", "preparation", "scan")
    parser = argparse.ArgumentParser(prog="python -m scripts.interrupts", description=__doc__)
    parser.add_argument("--moments", type=int, default=20, help="of each command, the signals in turn, default: 20")
    parser.add_argument("--minutes", type=float, help="begin nothing after these")
    parser.add_argument("--seed", type=int, default=0, help="of the moments, default: 0")
    parser.add_argument("--works", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the counts")
    arguments = parser.parse_args(argv)
    found = run(arguments.moments, arguments.minutes, arguments.seed, arguments.works)
    print(json.dumps(found, indent=2))
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    if found["problems"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
