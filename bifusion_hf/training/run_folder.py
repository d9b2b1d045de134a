"""The folder of a run. What an earlier run left there is gone on from or moved aside; it is never deleted."""

import shutil
import time
import uuid
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..io.atomic import recover_folder, remove_unfinished
from .checkpoints import (
    CheckpointError,
    checkpoints_folder,
    failures,
    in_main_process,
    list_checkpoints,
    read_state,
    update_of,
)


# Values of `resume_from_checkpoint` that are no folder.
LATEST, AUTO = "latest", "auto"
WEIGHTS = ("checkpoints", "best", "final")
LOGS = ("metrics.jsonl", "train.log", "curves.png")
RECIPE = "recipe.yaml"
# Network file systems remember for some time that a file was not there.
SECONDS_TO_APPEAR = 60.0


def find_checkpoint(output_dir: str | Path, name: str | None) -> Path | None:
    """The checkpoint that a run goes on from.

    Args:
        output_dir: Folder of the run.
        name: The recipe's `resume_from_checkpoint`: `"latest"`, `"auto"`, a folder, or None.

    Returns:
        The folder; None for None, and for `"auto"` where there is none yet.

    Raises:
        CheckpointError: The named folder is no checkpoint, or there is no latest one.
    """
    if name is None:
        return None
    if name in (LATEST, AUTO):
        found = list_checkpoints(checkpoints_folder(output_dir))
        if not found and name == LATEST:
            raise CheckpointError(
                f"--resume_from_checkpoint latest: there is no checkpoint in {checkpoints_folder(output_dir)}. Check "
                "--output_dir, or leave --resume_from_checkpoint out to start a run there"
            )
        return found[-1] if found else None
    read_state(Path(name))
    return Path(name)


def parts_of_run(output_dir: str | Path) -> list[str]:
    """Names of what a run has left in its folder; a recipe alone is no run."""
    folder = Path(output_dir)
    return [name for name in (*WEIGHTS, *LOGS) if _holds_something(folder / name)]


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.is_file()


def choose_start(output_dir: str | Path, resume: str | None, overwrite: bool) -> Path | None:
    """The checkpoint that a run goes on from; None where it starts anew.

    Args:
        output_dir: Folder of the run.
        resume: The recipe's `resume_from_checkpoint`.
        overwrite: Move the run that is there aside.

    Raises:
        CheckpointError: See `find_checkpoint`.
        ValueError: The folder holds a run, and nobody said what is to become of it.
    """
    checkpoint = find_checkpoint(output_dir, resume)
    if checkpoint is not None and _is_own(checkpoint, output_dir):
        if overwrite:
            raise ValueError(
                f"--resume_from_checkpoint {resume} goes on with the run in {output_dir}, --overwrite_output_dir "
                "starts anew: give one of them"
            )
        return checkpoint
    parts = parts_of_run(output_dir)
    # Of a run that died before its first checkpoint was whole there is nothing to go on with.
    may_move = overwrite or (resume == AUTO and checkpoint is None and not set(parts) & {"best", "final"})
    if parts and not may_move:
        has_checkpoint = bool(list_checkpoints(checkpoints_folder(output_dir)))
        raise ValueError(
            f"{output_dir} holds a run ({', '.join(parts)}): pass "
            + ("--resume_from_checkpoint latest to go on, " if has_checkpoint else "")
            + "another --output_dir, or --overwrite_output_dir to start anew; the run is then moved aside, into a "
            "folder within it"
        )
    return checkpoint


def check_shared(output_dir: Path, accelerator: Accelerator) -> None:
    """Makes sure that all processes see one folder: a checkpoint has a file of each of them.

    Raises:
        CheckpointError: Some, on other nodes, do not see what the first process writes.
    """
    if accelerator.num_processes == 1:
        return
    name = [uuid.uuid4().hex]
    broadcast_object_list(name)
    token = output_dir / f".{name[0]}.seen"

    def write() -> None:
        output_dir.mkdir(parents=True, exist_ok=True)
        token.touch()

    def look() -> None:
        end = time.monotonic() + SECONDS_TO_APPEAR
        while not token.exists():
            if time.monotonic() > end:
                raise FileNotFoundError(f"{output_dir} is not the folder that process 0 writes to")
            time.sleep(0.2)

    in_main_process(accelerator, write)
    errors = failures(accelerator, look)
    in_main_process(accelerator, lambda: token.unlink(missing_ok=True))
    if errors:
        raise CheckpointError(f"output_dir must be one folder that all nodes share: {'; '.join(errors)}")


def recover_run(output_dir: Path) -> None:
    """Ends what a kill of an earlier run cut short in its folder."""
    remove_unfinished(output_dir)
    for name in ("best", "final"):
        recover_folder(output_dir / name)


def prepare_run_folder(output_dir: Path, checkpoint: Path | None, recipe_text: str) -> Path | None:
    """Makes room for a run: what it would replace is moved aside.

    Args:
        output_dir: Folder of the run.
        checkpoint: Of `choose_start`.
        recipe_text: The recipe that takes the place of the one there.

    Returns:
        The folder into which something was moved; None where there was nothing.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    recover_run(output_dir)
    aside = free_name(output_dir / "earlier")
    is_own = checkpoint is not None and _is_own(checkpoint, output_dir)
    if not is_own:
        for name in parts_of_run(output_dir):
            _move(output_dir / name, aside)
    else:
        later = [
            path
            for path in list_checkpoints(checkpoints_folder(output_dir))
            if update_of(path) > update_of(checkpoint)
        ]
        for path in later:
            _move(path, aside / "checkpoints")
        if later:
            _move(output_dir / "final", aside)
            # The run goes on with these, and changes them.
            for name in ("best", *LOGS):
                _copy(output_dir / name, aside)
    recipe = output_dir / RECIPE
    is_replaced = not is_own and recipe.is_file() and recipe.read_text(encoding="utf-8") != recipe_text
    if is_replaced or aside.exists():
        _copy(recipe, aside)
    return aside if aside.exists() else None


def free_name(path: Path) -> Path:
    """`path` with the first number behind it that is not taken: `earlier-1`, `earlier-2`, ..."""
    number = 1
    while (found := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return found


def _is_own(checkpoint: Path, output_dir: str | Path) -> bool:
    return checkpoint.resolve().parent == checkpoints_folder(output_dir).resolve()


def _move(path: Path, folder: Path) -> None:
    if path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)


def _copy(path: Path, folder: Path) -> None:
    if path.exists():
        folder.mkdir(exist_ok=True)
        (shutil.copytree if path.is_dir() else shutil.copy2)(path, folder / path.name)
