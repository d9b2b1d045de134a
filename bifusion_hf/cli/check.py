"""`bifusion-check RECIPE`: is everything there that a training run needs?"""

import sys
import textwrap
from collections.abc import Sequence

from .entry import command
from .parser import DEVICE_HELP, CommandParser, use_device


EXAMPLES = """examples:
  bifusion-check
  bifusion-check bifusion_simple --data.train data/scannet200-sv --init.clip ViT-B-16/openai
  bifusion-check my_recipe.yaml --frames 32
"""
WIDTH = 118


@command("bifusion-check")
def main(argv: Sequence[str] | None = None) -> None:
    """Prints what passed and what failed, with what to do.

    Args:
        argv: Command line without the program's name; None = `sys.argv`.

    Raises:
        SystemExit: A check failed; the exit status is 1.
    """
    parser = CommandParser(
        prog="bifusion-check",
        usage="bifusion-check [RECIPE] [--frames N] [--section.key VALUE ...]",
        description="Checks what a recipe needs (a YAML file or a name; tiny by default): packages, devices, data, "
        "weights,\nthe alignment of points and images on real frames, and one forward and backward pass.\n"
        "Any key of the recipe can be given as with bifusion-train.",
        epilog=EXAMPLES,
        allow_abbrev=False,
    )
    parser.add_argument("--frames", type=int, default=8, help="frames of each split that are looked at, default: 8")
    parser.add_argument("--device", help=DEVICE_HELP)
    words = list(sys.argv[1:] if argv is None else argv)
    # As in bifusion-train: the recipe comes first, so that values of other keys are not taken for it.
    recipe = words.pop(0) if words and not words[0].startswith("-") else "tiny"
    arguments, overrides = parser.parse_known_args(words)
    if arguments.frames < 1:
        parser.error(f"--frames is {arguments.frames}; expected at least 1")

    use_device(arguments.device)

    from ..training.environment_check import EnvironmentCheck

    check = EnvironmentCheck(recipe, overrides, arguments.frames, arguments.device)
    results = check.run()
    print(format_results(results))
    failed = [result.name for result in results if result.status == "failed"]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(results)} checks failed: {', '.join(failed)}")
    print("Everything that was checked passed.")


def format_results(results: Sequence) -> str:
    """A table of `CheckResult`s: status, name, what was found and, where it failed, what to do."""
    name_width = max(len(result.name) for result in results)
    lines = []
    for result in results:
        head = f"{result.status:<7}  {result.name:<{name_width}}  "
        rest = {"initial_indent": head, "subsequent_indent": " " * len(head)}
        lines.append(textwrap.fill(result.detail, WIDTH, break_long_words=False, **rest))
        if result.remedy:
            rest["initial_indent"] = " " * len(head) + "-> "
            lines.append(textwrap.fill(result.remedy, WIDTH, break_long_words=False, **rest))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
