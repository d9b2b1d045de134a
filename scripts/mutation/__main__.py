"""`python -m scripts.mutation`: puts small faults into the package and tells which of them the tests let pass."""

import argparse
import hashlib
import importlib.util
import itertools
import json
import random
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .faults import Fault, find_faults
from .runner import BREADTHS, PACKAGE, ROOT, TestRunner, copy_tree, tests_of


# What is looked at.
TARGETS = (
    "layers",
    "losses",
    "sparse",
    "evaluation",
    "training",
    "postprocessing.py",
    "processing_bifusion.py",
    "mask_parts",
    "weights",
    "data",
    "boxes.py",
    "results.py",
    "scenes",
    "superpoints",
    "batch",
    "prediction",
)
# Files whose tests need what another environment has (`make test-spconv` and so on), by the package that it takes.
UNTESTED = {"spconv_backend": "spconv", "triton_backend": "triton", "triton_kernels": "triton", "ray_engine": "ray"}
# The outcome of a fault whose tests wait for something that does not come, with it and without.
UNCLEAR = "unclear"
# Seconds of the processor that the tests of a file may take when they are run once without a fault.
BASELINE_SECONDS = 600
# Faults that change no behaviour, each with its reason, by the text of its line: [{path, line, fault, reason}, ...].
EQUIVALENTS = Path(__file__).with_name("equivalents.json")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; those of the process by default.
    """
    parser = argparse.ArgumentParser(
        prog="python -m scripts.mutation",
        description="Puts faults into a copy of the package, one at a time, and runs the mirrored tests that reach "
        "the line, those of the file's own name first. The faults are drawn by a seed and run file by file, and what "
        "RESULTS knows is not run again: a larger sample goes on where a smaller one ended, as does a run that was "
        "stopped.",
    )
    parser.add_argument("results", type=Path, metavar="RESULTS", help="JSON lines, one a fault; appended to")
    parser.add_argument("--count", type=int, default=60, help="faults of the sample, default: 60")
    parser.add_argument("--per_file", type=int, help="faults of each file, in place of --count")
    parser.add_argument("--seed", type=int, default=0, help="of the sample, default: 0")
    parser.add_argument("--minutes", type=float, help="stop after so long")
    parser.add_argument("--only", nargs="+", default=TARGETS, metavar="PART", help=f"default: {' '.join(TARGETS)}")
    parser.add_argument(
        "--tests_seconds", type=float, default=60, help="of the processor for one fault, the fastest first"
    )
    parser.add_argument(
        "--breadth", choices=BREADTHS, default=BREADTHS[-1],
        help="which tests are asked: those of the file's own name, those of its folder as well, or neighbours too "
        "(the default); what survived fewer of them is then asked about the rest",
    )  # fmt: skip
    parser.add_argument("--again", action="store_true", help="run only the survivors of RESULTS, again")
    parser.add_argument("--report", action="store_true", help="run nothing, report RESULTS")
    arguments = parser.parse_args(argv)
    if not arguments.report:
        # So that the tests that run at the moment end too.
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
        try:
            run(arguments)
        finally:
            signal.signal(signal.SIGTERM, before)
    print(report(read_results(arguments.results), arguments.only))


def sample_faults(
    parts: Sequence[str], seed: int, per_file: int | None = None, root: Path = ROOT
) -> Iterator[tuple[Fault, bytes]]:
    """The faults of the parts in the order of the sample: one of each file in turn, each file's in a random order.

    Args:
        parts: Files and folders below the package.
        seed: Of the order.
        per_file: Largest number of faults of a file; None = all.
        root: Of the repository.

    Yields:
        A fault and its file's content.
    """
    files = []
    for part in parts:
        path = root / PACKAGE / part
        files += [path] if path.is_file() else sorted(path.rglob("*.py"))
    missing = {stem for stem, package in UNTESTED.items() if importlib.util.find_spec(package) is None}
    files = [path for path in files if path.stem not in missing]
    columns = [_shuffled_faults(path, seed, root) for path in files]
    random.Random(seed).shuffle(columns)
    for _ in itertools.count() if per_file is None else range(per_file):
        row = [next(column, None) for column in columns]
        if not any(row):
            return
        yield from filter(None, row)


def _shuffled_faults(path: Path, seed: int, root: Path) -> Iterator[tuple[Fault, bytes]]:
    source, name = path.read_bytes(), path.relative_to(root).as_posix()
    faults = find_faults(name, source)
    random.Random(f"{seed} {name}").shuffle(faults)
    yield from ((fault, source) for fault in faults if fault.parses(source))


def read_results(path: Path) -> dict[str, dict]:
    """The last result of each fault."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {line["key"]: line for line in map(json.loads, lines)}


def run(arguments: argparse.Namespace) -> None:
    """Runs the faults of the sample that have no result yet."""
    deadline = None if arguments.minutes is None else time.monotonic() + 60 * arguments.minutes
    known, reasons, todo = read_results(arguments.results), read_equivalents(), []
    count = None if arguments.per_file else arguments.count
    for fault, source in itertools.islice(sample_faults(arguments.only, arguments.seed, arguments.per_file), count):
        result = known.get(fault.key(source), {"outcome": None})
        asked = BREADTHS.index(result["breadth"]) + 1 if result["outcome"] == "survived" else 0
        if arguments.again:
            left = BREADTHS[:asked]
        else:
            left = () if result["outcome"] == "noticed" else BREADTHS[asked : BREADTHS.index(arguments.breadth) + 1]
        if left:
            todo.append((fault, source, left))
    if not todo:
        return
    # What the tests of a file reach is learnt when its turn comes.
    first = {}
    todo.sort(key=lambda entry: first.setdefault(entry[0].path, len(first)))
    results = arguments.results.resolve()
    results.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder, results.open("a", encoding="utf-8") as file:
        copy = Path(folder) / "main"
        copy_tree(copy)
        tests = {test for fault, _, left in todo for each in left for test in tests_of(fault.path, ROOT)[each]}
        runner = TestRunner(copy, Path(folder) / "log.txt", sorted(tests))
        baselines = Baselines(runner, results.with_suffix(".reached.jsonl"))
        for number, (fault, source, breadths) in enumerate(todo, 1):
            if deadline is not None and time.monotonic() > deadline:
                print(f"stopped after {arguments.minutes:g} minutes with {len(todo) - number + 1} faults left")
                return
            start = time.monotonic()
            line, change = source.splitlines()[fault.line - 1].decode().strip(), fault.describe(source)
            outcome, tried = "survived", 0
            # What is known to change nothing is not tried.
            is_equivalent = (fault.path, line, change.partition(" ")[2]) in reasons
            for breadth in () if is_equivalent else breadths:
                tests, expected = baselines.choose(fault, source, arguments.tests_seconds, breadth)
                limit = 60 + 6 * expected
                if tests:
                    with runner.fault(fault, source):
                        outcome = runner.outcome(tests, limit)
                # A fault may make processes wait for each other; or the machine is busier than that.
                if outcome == "waiting":
                    outcome = "noticed" if runner.outcome(tests, limit) == "survived" else UNCLEAR
                tried += len(tests)
                if outcome != "survived":
                    break
            result = {
                "key": fault.key(source),
                "path": fault.path,
                "outcome": outcome,
                "breadth": breadths[-1],
                "tests": tried,
                "seconds": round(time.monotonic() - start, 1),
                "line": line,
                "fault": change,
            }
            file.write(json.dumps(result) + "\n")
            file.flush()
            print(f"{number}/{len(todo)} {result['outcome']:<8} {result['seconds']:>5}s {result['fault']}", flush=True)


class Baselines:
    """What each test reaches without a fault, kept as long as its file and those it reaches stay as they are.

    Args:
        runner: Runs the tests.
        path: JSON lines, one a file of tests; appended to.
    """

    def __init__(self, runner: TestRunner, path: Path):
        self.runner = runner
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.found = {line["file"]: line for line in map(json.loads, lines)}
        self._valid: set[str] = set()

    def choose(self, fault: Fault, source: bytes, seconds: float, breadth: str) -> tuple[list[str], float]:
        """Tests of a fault, the fastest first, and how long they take.

        Args:
            fault: The fault.
            source: Its file's content.
            seconds: Of all these tests; one that takes longer is given where there is no other.
            breadth: Of `BREADTHS`: which test files are meant, without those of a narrower one.
        """
        name = fault.path.removeprefix(f"{PACKAGE}/")
        fault_lines = set(range(fault.line, fault.line + source[fault.start : fault.end].count(b"\n") + 1))
        reaching, touching, others, durations = [], [], [], {}
        for file in tests_of(fault.path, self.runner.root)[breadth]:
            found = self._reached(file)
            durations.update(found["seconds"])
            for test, lines in found["lines"].items():
                if test not in found["failed"]:
                    here = lines.get(name, ())
                    (reaching if fault_lines.intersection(here) else touching if here else others).append(test)
        # Definitions run at import, and other processes are not seen: any test may notice those.
        groups = [reaching] if reaching else [touching, others]
        chosen, total = [], 0.0
        for test in itertools.chain.from_iterable(sorted(group, key=durations.get) for group in groups):
            total += durations[test]
            if total > seconds and chosen:
                return chosen, total - durations[test]
            chosen.append(test)
        return chosen, total

    def _reached(self, test_file: str) -> dict:
        digests = self.found.get(test_file, {}).get("digests", {})
        if test_file not in self._valid and (not digests or digests != self._digests(digests)):
            print(f"without a fault: {test_file}", flush=True)
            reached = self.runner.reached(test_file, BASELINE_SECONDS)
            if reached is None or reached["failed"]:
                names = [test_file] if reached is None else reached["failed"]
                print(f"left out, as they fail without a fault: {' '.join(names)}\n{self.runner.tail()}", flush=True)
            found = reached or {"lines": {}, "seconds": {}, "failed": []}
            names = {f"{PACKAGE}/{name}" for lines in found["lines"].values() for name in lines}
            self.found[test_file] = {"file": test_file, **found, "digests": self._digests({test_file, *names})}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.found[test_file]) + "\n")
        self._valid.add(test_file)
        return self.found[test_file]

    def _digests(self, names: Iterable[str]) -> dict[str, str | None]:
        files = {name: self.runner.root / name for name in names}
        return {
            name: hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None
            for name, file in files.items()
        }


def read_equivalents() -> dict[tuple[str, str, str], str]:
    """The reason why each known fault changes no behaviour, by file, text of the line and fault."""
    return {
        (known["path"], known["line"], known["fault"]): known["reason"]
        for known in json.loads(EQUIVALENTS.read_text(encoding="utf-8"))
    }


def report(results: dict[str, dict], parts: Sequence[str]) -> str:
    """A table of files, worst first, the scores with and without the equivalent faults, and the survivors."""
    reasons = read_equivalents()
    by_file, equivalent, survivors, every, unasked = defaultdict(list), [], [], 0, 0
    for result in results.values():
        if result["outcome"] == UNCLEAR or not any(result["path"].startswith(f"{PACKAGE}/{part}") for part in parts):
            continue
        change = result["fault"].partition(" ")[2]
        reason = reasons.get((result["path"], result["line"], change))
        if result["tests"] == 0 and reason is None and result["breadth"] != BREADTHS[-1]:
            # A file without tests of its name, say, whose other tests a later run asks.
            unasked += 1
            continue
        every += 1
        if result["outcome"] == "survived" and reason is not None:
            equivalent.append(f"{result['fault']} ({reason})")
            continue
        by_file[result["path"]].append(result["outcome"] == "noticed")
        if result["outcome"] == "survived":
            # Not asked about all tests yet.
            asked = "" if result["breadth"] == BREADTHS[-1] else f" [{result['breadth']}]"
            survivors.append(result["fault"] + asked)
    rows = sorted((sum(found) / len(found), path) for path, found in by_file.items())
    noticed, asked = sum(map(sum, by_file.values())), sum(map(len, by_file.values()))
    return "\n".join(
        [
            *(f"{share:6.1%} of {len(by_file[path]):>3}  {path}" for share, path in rows),
            f"{noticed / max(asked, 1):.1%}: {noticed} of {asked} faults noticed",
            f"{noticed / max(every, 1):.1%}: {noticed} of {every} with those that change no behaviour",
            *([f"{unasked} more that no test was asked about yet"] if unasked else []),
            *("survivors:", *sorted(survivors)),
            *("no behaviour changed:", *sorted(equivalent)),
        ]
    )


if __name__ == "__main__":
    main()
