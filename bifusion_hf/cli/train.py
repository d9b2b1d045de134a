"""`bifusion-train CONFIG --any.key value`: trains a network by a recipe."""

import os
import shlex
import sys
from collections.abc import Sequence

from ..recipe.reading import describe_keys, load_arguments, recipe_names, split_overrides, take_device
from ..stopping import Stopped
from .entry import command
from .openmp import restart_with_passive_threads
from .parser import use_device, version_line


USAGE = """usage: bifusion-train [RECIPE] [--section.key VALUE ...]

RECIPE is a YAML file, or one that the package carries: {recipes}.
Without one, the defaults below hold.

  bifusion-train tiny --output_dir outputs/tiny                    train
  bifusion-train tiny --output_dir outputs/tiny --dry_run          print the plan and stop
  bifusion-train tiny --output_dir outputs/tiny --resume_from_checkpoint latest
                                                                   go on after a crash or a stop
  bifusion-train tiny --data rooms --checkpoint sample --output outputs/mine --device cpu
                                                                   the words of the other commands: data.train and
                                                                   data.val, model.pretrained, output_dir
  accelerate launch -m bifusion_hf.cli.train tiny                  the processes of Accelerate's configuration
  torchrun --nproc_per_node 2 -m bifusion_hf.cli.train tiny        two processes

Every key of a recipe can be given on the command line, its value as YAML:

{keys}"""


@command("bifusion-train")
def main(argv: Sequence[str] | None = None) -> None:
    """Reads the recipe, then plans or trains.

    Args:
        argv: Command line without the program's name; None = `sys.argv`.

    Raises:
        SystemExit: The recipe is wrong, with the reason.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or {"-h", "--help"} & set(words):
        print(USAGE.format(recipes=", ".join(recipe_names()), keys=describe_keys()))
        return
    if "--version" in words:
        print(version_line("bifusion-train"))
        return
    words_given = list(words)
    words, device = take_device(words)
    use_device(device)
    recipe = None if words[0].startswith("--") else words.pop(0)
    arguments = load_arguments(recipe, words)
    if argv is None:
        restart_with_passive_threads()
    # Late, so that a mistake in the recipe is told at once.
    from ..training.run import build_trainer

    trainer = build_trainer(arguments)
    if arguments.dry_run:
        from ..training.plan import describe_plan

        trainer.accelerator.print(describe_plan(trainer))
        return
    try:
        trainer.train()
    except Stopped:
        if trainer.accelerator.is_main_process:
            print(f"It goes on with:\n  {command_to_go_on(words_given)}", file=sys.stderr)
        raise


def command_to_go_on(words: Sequence[str]) -> str:
    """The command line that goes on with a run that was started with `words`.

    Keys that say how a run starts are replaced. A launcher (torchrun, accelerate launch) stands where the dots are.
    """
    recipe = [] if not words or words[0].startswith("--") else [words[0]]
    kept = list(recipe)
    for key, given in split_overrides(words[len(recipe) :]):
        if key.replace("-", "_") not in ("resume_from_checkpoint", "overwrite_output_dir"):
            kept += given
    program = "bifusion-train" if int(os.environ.get("WORLD_SIZE", 1)) == 1 else "... -m bifusion_hf.cli.train"
    return shlex.join([*program.split(), *kept, "--resume_from_checkpoint", "latest"])


if __name__ == "__main__":
    main()
