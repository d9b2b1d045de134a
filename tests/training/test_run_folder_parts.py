"""The folder of a run, without a run: what counts as one, what moves where, and whether all processes see it."""

from types import SimpleNamespace

import pytest

from bifusion_hf.training import run_folder
from bifusion_hf.training.checkpoints import CheckpointError, checkpoint_folder, checkpoints_folder
from bifusion_hf.training.run_folder import (
    check_shared,
    choose_start,
    find_checkpoint,
    free_name,
    parts_of_run,
    prepare_run_folder,
)


def make_checkpoints(folder, *updates):
    for update in updates:
        path = checkpoint_folder(checkpoints_folder(folder), update)
        path.mkdir(parents=True)
        (path / "trainer_state.json").write_text("{}")
    return path


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_is_left_of_a_run(tmp_path):
    """An empty folder, or a folder in a log's place, is nothing; a recipe alone is no run."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "recipe.yaml").touch()
    assert parts_of_run(tmp_path) == [] == parts_of_run(tmp_path / "nowhere")
    (tmp_path / "train.log").touch()
    (tmp_path / "final" / "config").mkdir(parents=True)
    assert parts_of_run(tmp_path) == ["final", "train.log"]


def test_numbers_that_are_taken_are_passed_over(tmp_path):
    assert free_name(tmp_path / "earlier") == tmp_path / "earlier-1"
    for number in (1, 2):
        (tmp_path / f"earlier-{number}").mkdir()
    assert free_name(tmp_path / "earlier") == tmp_path / "earlier-3"


def test_a_run_goes_on_or_begins_and_not_both(tmp_path, monkeypatch):
    last = make_checkpoints(tmp_path, 3, 4)
    for name in ("latest", "auto", str(last)):
        assert choose_start(tmp_path, name, False) == last == find_checkpoint(tmp_path, name)
        with pytest.raises(ValueError, match=f"--resume_from_checkpoint {name} goes on .* give one of them"):
            choose_start(tmp_path, name, True)
    with pytest.raises(
        ValueError, match=r"holds a run \(checkpoints\): pass --resume_from_checkpoint latest to go on, "
    ):
        choose_start(tmp_path, None, False)
    assert choose_start(tmp_path, None, True) is None
    # However the folder is named.
    monkeypatch.chdir(tmp_path)
    assert choose_start(".", str(last), False) == last
    assert choose_start(tmp_path, "checkpoints/checkpoint-0000004", False).samefile(last)
    # A new run from the weights of another one.
    assert choose_start(tmp_path / "new", str(last), False) == choose_start(tmp_path / "new", str(last), True) == last
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "train.log").touch()
    with pytest.raises(ValueError, match=r"holds a run \(train.log\): pass another --output_dir"):
        choose_start(tmp_path / "logs", None, False)
    # Without a checkpoint of its own, "auto" begins anew, but not with that of another run.
    assert choose_start(tmp_path / "logs", "auto", False) is None
    with pytest.raises(ValueError, match="holds a run"):
        choose_start(tmp_path / "logs", str(last), False)


def test_a_new_folder_is_made_and_nothing_moved(tmp_path):
    folder = tmp_path / "runs" / "new"
    assert prepare_run_folder(folder, None, "seed: 1\n") is None and folder.is_dir()
    (folder / "recipe.yaml").write_text("seed: 1\n")
    assert prepare_run_folder(folder, None, "seed: 1\n") is None and files(folder) == {"recipe.yaml"}
    # The recipe of an earlier run stays where it is, for this one to write over, and is kept.
    assert prepare_run_folder(folder, None, "seed: 2\n") == folder / "earlier-1"
    assert files(folder) == {"recipe.yaml", "earlier-1/recipe.yaml"}


def test_a_run_moves_aside_with_the_recipe_that_it_had(tmp_path):
    make_checkpoints(tmp_path, 3)
    (tmp_path / "train.log").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "recipe.yaml").write_text("seed: 1\n")
    other = make_checkpoints(tmp_path / "other", 3)
    assert prepare_run_folder(tmp_path, other, "seed: 1\n") == tmp_path / "earlier-1"
    aside = {"checkpoints/checkpoint-0000003/trainer_state.json", "train.log", "recipe.yaml"}
    assert files(tmp_path / "earlier-1") == aside and (tmp_path / "notes.txt").exists()
    assert not (tmp_path / "train.log").exists() and other.exists()


@pytest.mark.parametrize(("update", "moved"), [(3, ["0000005", "0000008"]), (5, ["0000008"]), (8, [])])
def test_going_back_moves_what_came_later_and_copies_what_goes_on(tmp_path, update, moved):
    make_checkpoints(tmp_path, 3, 5, 8)
    (tmp_path / "final").mkdir()
    for name in ("final/config.json", "train.log", "recipe.yaml"):
        (tmp_path / name).touch()
    checkpoint = checkpoint_folder(checkpoints_folder(tmp_path), update)
    before = files(tmp_path)
    aside = prepare_run_folder(tmp_path, checkpoint, "seed: 1\n")
    if not moved:
        assert aside is None and files(tmp_path) == before
        return
    later = {f"checkpoints/checkpoint-{name}/trainer_state.json" for name in moved}
    assert files(aside) == later | {"final/config.json", "train.log", "recipe.yaml"}
    kept = {name for name in files(tmp_path) if not name.startswith("earlier-1/")}
    assert kept == before - later - {"final/config.json"}


def test_what_a_kill_cut_short_is_ended_first(tmp_path):
    (tmp_path / ".old-best").mkdir()
    (tmp_path / ".old-best" / "config.json").touch()
    aside = prepare_run_folder(tmp_path, None, "")
    assert files(tmp_path) == {"earlier-1/best/config.json"} and aside == tmp_path / "earlier-1"


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass while a process sleeps, and what happens meanwhile."""
    now = SimpleNamespace(seconds=100.0, after=lambda: None)

    def sleep(seconds):
        now.seconds += seconds
        now.after()

    monkeypatch.setattr(run_folder.time, "monotonic", lambda: now.seconds)
    monkeypatch.setattr(run_folder.time, "sleep", sleep)
    monkeypatch.setattr(run_folder, "broadcast_object_list", lambda names: names.__setitem__(0, "token"))
    return now


def of_two(is_main):
    return SimpleNamespace(num_processes=2, is_main_process=is_main, process_index=1 - is_main)


def test_the_first_process_shows_the_others_where_it_writes(tmp_path, clock):
    """Then nothing is left of what it showed."""
    check_shared(tmp_path / "runs" / "new", of_two(True))
    assert list((tmp_path / "runs" / "new").iterdir()) == [] and clock.seconds == 100
    check_shared(tmp_path / "nowhere", SimpleNamespace(num_processes=1))
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(("seconds", "seen"), [(59, True), (62, False)])
def test_another_node_waits_a_minute_for_what_it_is_shown(tmp_path, clock, seconds, seen):
    clock.after = lambda: clock.seconds >= 100 + seconds and (tmp_path / ".token.seen").touch()
    if seen:
        check_shared(tmp_path, of_two(False))
        assert clock.seconds == pytest.approx(100 + seconds, abs=0.3)
        return
    expected = f"output_dir must be one folder that all nodes share: process 1: FileNotFoundError: {tmp_path} is not"
    with pytest.raises(CheckpointError, match=expected):
        check_shared(tmp_path, of_two(False))
    assert clock.seconds == pytest.approx(160, abs=0.3)
