"""The demo page under load: many visitors at once, each with a frame of its own whose answer is known.

Every request is a new visitor. A part of them sends something that is no depth image, which must fail alone. Then come
reads outside of what is served, uploads that are too long, SIGTERM, SIGKILL and a new start.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from bifusion_hf.demo.serving import KEPT_VISITORS
from bifusion_hf.io.atomic import write_text


# Before memory is compared: as many visitors as the server keeps the last frames of, and some; it grows until then.
WARM_UP = KEPT_VISITORS + 20
# Percent.
MEMORY_BOUND = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the benchmark."""
    parser.add_argument("--requests", type=int, default=500, help="default: 500")
    parser.add_argument("--warm_up", type=int, default=WARM_UP, help="requests before, default: %(default)s")
    parser.add_argument("--frames", type=int, default=12, help="different frames, default: 12")
    parser.add_argument("--output", type=Path, help="JSON file")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints what was found, and writes it where `--output` says.

    Raises:
        ValueError: Something that must not be was found; the file is written before.
        ImportError: The extra demo is missing.
    """
    # Not for the parser of all benchmarks: it comes with Gradio.
    from .page_visits import measure

    result = measure(args.requests, args.warm_up, args.frames)
    print(json.dumps(result, indent=2))
    if args.output is not None:
        write_text(args.output, json.dumps(result, indent=2) + "\n")
    if found := faults(result):
        raise ValueError("; ".join(found))
    return result


def faults(result: dict[str, Any]) -> list[str]:
    """What of a result must not be."""
    answers, temporary, uploads = result["answers"], result["temporary"], result["uploads"]
    checks = {
        f"{answers['mixed or wrong']} answers are mixed or wrong": answers["mixed or wrong"] > 0,
        f"{answers['failed']} requests failed: {result['problems'][:3]}": answers["failed"] > 0,
        f"resident memory grew by {result['resident_mib']['growth_percent']} %": result["resident_mib"][
            "growth_percent"
        ]
        > MEMORY_BOUND,
        f"SIGTERM left {temporary['after_sigterm']}": temporary["after_sigterm"]["files"] > 0,
        "a killed server's folder stayed": temporary["folders_of_servers_after_restart"] != 1,
        f"the status after SIGTERM is {result['status_after_sigterm']}": result["status_after_sigterm"] != 143,
        f"uploads: {uploads}": list(uploads.values()) != [200, 413, 413, 413, 411],
        f"files outside were read: {result['reads_outside']}": 200 in result["reads_outside"].values(),
        f"frames of other files: {result['frames_from_other_files']}": any(result["frames_from_other_files"].values()),
    }
    return [text for text, is_fault in checks.items() if is_fault]
