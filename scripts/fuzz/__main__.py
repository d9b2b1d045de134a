"""Damages inputs of every kind that the package reads, and counts how reading them ends."""

import argparse
import copy
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .runner import FAILURES, OUTCOMES, SECONDS, Outcome, Runner, run_inputs
from .targets import all_targets


EXAMPLES = """examples:
  python -m scripts.fuzz --inputs 600
  python -m scripts.fuzz --minutes 30 --seed 7 --keep failures
  python -m scripts.fuzz --targets sens r3d --inputs 1000
  python -m scripts.fuzz --again --json counts.json

An input is valid but for some damage: bytes, values, headers, members of archives. Reading it must end well, or in a
ValueError or OSError that names the file or the argument. Whatever else is a failure: an error that a library raised,
more than 20 seconds, more than 3 GiB, or a process that died. The same seed gives the same inputs.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Raises:
        SystemExit: 1 where an input failed, 2 where an argument is wrong.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.again:
        if arguments.json is None:
            parser.error("--again takes the inputs from a file of counts; expected --json FILE")
        content = run_again(json.loads(arguments.json.read_text()), arguments)
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")
        print(f"{content['failures_run_again']} run again in all, {len(content['failures'])} fail")
        raise SystemExit(1 if content["failures"] else None)
    until = None if arguments.minutes is None else time.monotonic() + 60 * arguments.minutes
    outcomes = []
    with Runner(arguments.seed, arguments.keep, arguments.seconds) as runner:
        limits = {"count": arguments.inputs, "until": until, "start": arguments.start}
        for outcome in run_inputs(arguments.targets or list(all_targets()), runner, **limits):
            outcomes.append(outcome)
            if outcome.outcome in FAILURES:
                print(f"{outcome.target} {outcome.number}: {outcome.outcome}: {outcome.error[:300]}", flush=True)
    print(summary(outcomes))
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report(outcomes, arguments.seed), indent=2) + "\n")
    if any(outcome.outcome in FAILURES for outcome in outcomes):
        raise SystemExit(1)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `main`."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.fuzz",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = list(all_targets())
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--inputs", type=int, metavar="N", help="so many in all")
    length.add_argument("--minutes", type=float, metavar="M", help="so long")
    length.add_argument(
        "--again", action="store_true", help="only the inputs that failed in the counts of --json, which are corrected"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all inputs (default: %(default)s)")
    parser.add_argument("--start", type=int, default=0, metavar="N", help="number of the first input of each kind")
    parser.add_argument("--targets", nargs="+", choices=names, metavar="KIND", help=f"of {', '.join(names)}")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="bound for an input (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="copies of the inputs that failed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the counts, as JSON")
    return parser


def run_again(content: Mapping[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the failures of a report once more, when what was found is mended.

    Args:
        content: What `report` gave.
        arguments: Of the command line; the seed is the report's.

    Returns:
        The report with their new outcomes, and how many were run again so far.
    """
    content = copy.deepcopy(dict(content))
    before, content["failures"] = content["failures"], []
    with Runner(content["seed"], arguments.keep, arguments.seconds) as runner:
        for row in before:
            outcome = runner.run(row["target"], row["number"])
            for counts in (content["counts"], content["by_target"][outcome.target]):
                counts[row["outcome"]] -= 1
                counts[outcome.outcome] = counts.get(outcome.outcome, 0) + 1
            if outcome.outcome in FAILURES:
                content["failures"].append(outcome.row())
            content["slowest_seconds"] = max(content["slowest_seconds"], outcome.seconds)
    content["failures_run_again"] = content.get("failures_run_again", 0) + len(before)
    return content


def report(outcomes: Sequence[Outcome], seed: int) -> dict:
    """Counts by kind and outcome, the failures, and the slowest input."""
    return {
        "seed": seed,
        "inputs": len(outcomes),
        "counts": dict(Counter(outcome.outcome for outcome in outcomes)),
        "by_target": {
            name: dict(Counter(outcome.outcome for outcome in outcomes if outcome.target == name))
            for name in dict.fromkeys(outcome.target for outcome in outcomes)
        },
        "failures": [outcome.row() for outcome in outcomes if outcome.outcome in FAILURES],
        "slowest_seconds": max((outcome.seconds for outcome in outcomes), default=0.0),
    }


def summary(outcomes: Sequence[Outcome]) -> str:
    """The counts as a table."""
    content = report(outcomes, 0)
    lines = ["".join([f"{'':20}", *(f"{name:>20}" for name in OUTCOMES)])]
    for name, counts in [*content["by_target"].items(), ("all", content["counts"])]:
        lines.append("".join([f"{name:20}", *(f"{counts.get(outcome, 0):20}" for outcome in OUTCOMES)]))
    return "\n".join([*lines, f"slowest: {content['slowest_seconds']:.1f} s"])


if __name__ == "__main__":
    main()
