"""`python -m scripts.gpu_check`: what only a GPU can show, in less than seven minutes, into one JSON file."""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from .wheels import install_wheels, recompress


OUTPUT = Path("model_cards/benchmarks/gpu.json")
MINUTES = 6.75


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="python -m scripts.gpu_check", description=__doc__)
    parser.add_argument("--output", type=Path, help=f"the JSON file, default: {OUTPUT}; of a rehearsal: outputs/")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="run these steps alone")
    parser.add_argument("--skip", nargs="+", metavar="STEP", default=[], help="leave these steps out")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"for all steps, default: {MINUTES}")
    parser.add_argument("--dry_run", action="store_true", help="rehearse on the CPU with tiny sizes")
    parser.add_argument("--list", action="store_true", help="print the steps and stop")
    wheels = parser.add_argument_group("packages that the machine lacks")
    wheels.add_argument("--wheels", type=Path, nargs="+", default=[], metavar="FOLDER", help="unpack the wheels there")
    wheels.add_argument("--site", type=Path, help="where to; what earlier calls left there is used too")
    wheels.add_argument("--recompress", type=Path, nargs="+", metavar="WHEEL", help="make wheels smaller, and stop")
    wheels.add_argument("--into", type=Path, help="folder of the smaller wheels")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        0 where no step failed or ran out of time.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.recompress:
        if args.into is None:
            parser.error("--recompress needs --into FOLDER")
        for path in recompress(args.recompress, args.into):
            print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
        return 0
    installed = []
    if args.wheels or args.site:
        site = args.site or Path(tempfile.mkdtemp(prefix="gpu_check_site_"))
        try:
            installed = install_wheels(args.wheels, site)
        except ValueError as error:
            parser.error(str(error))
    # What the wheels bring is there from here on.
    from .plan import STEPS, import_all
    from .running import FAILED, TIMED_OUT, run_steps

    if args.list:
        for step in STEPS:
            print(f"{step.name:12} {step.seconds:4.0f} s  {step.about}")
        return 0
    names = [step.name for step in STEPS]
    if unknown := {*args.skip, *(args.only or [])} - set(names):
        parser.error(f"no such step: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    chosen = set(args.only or names) - set(args.skip)
    skipped = {name: "left out on the command line" for name in names if name not in chosen}
    begin = time.monotonic()
    # An import that asks torch for a device must not start CUDA here: it would not work in the steps' processes.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    import_all()
    from .settings import Settings

    with tempfile.TemporaryDirectory(prefix="gpu_check_") as folder:
        settings = Settings.rehearsal(Path(folder)) if args.dry_run else Settings("cuda", Path(folder))
        result = run_steps(
            STEPS,
            settings,
            args.output or (Path("outputs/gpu_check_rehearsal.json") if args.dry_run else OUTPUT),
            skipped=skipped,
            seconds=60 * args.minutes - (time.monotonic() - begin),
            header={"date": time.strftime("%Y-%m-%d"), "is_rehearsal": args.dry_run, "wheels": installed},
        )
    statuses = [entry["status"] for entry in result["steps"].values()]
    print(f"{result['seconds']} s: " + ", ".join(f"{statuses.count(each)} {each}" for each in sorted(set(statuses))))
    return int(FAILED in statuses or TIMED_OUT in statuses)


if __name__ == "__main__":
    raise SystemExit(main())
