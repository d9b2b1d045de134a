"""What a run leaves is never deleted by another one: refused, gone on from, or moved aside."""

import shutil

import pytest
from processes import another_in
from training_standin import make_trainer, recipe

from bifusion_hf.io.locks import LOCK_FILE
from bifusion_hf.recipe.reading import load_arguments, recipe_names
from bifusion_hf.training.checkpoints import CheckpointError, list_checkpoints
from bifusion_hf.training.run_folder import WEIGHTS, choose_start


def contents(folder):
    """Every file below a folder, with what is in it."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run of three checkpoints."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    make_trainer(recipe(folder, checkpoints={"every_updates": 4, "keep": 9})).train()
    return folder


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["checkpoints", "best", "final", "metrics.jsonl", "train.log", "curves.png"])
def test_anything_of_a_run_guards_it(run, name):
    for path in list(run.iterdir()):
        if path.name != name:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = contents(run)
    with pytest.raises(ValueError, match=rf"holds a run \({name}\)"):
        make_trainer(recipe(run)).train()
    assert contents(run) == before


def test_what_is_replaced_moves_aside(run):
    for number in (1, 2):
        before = {path: data for path, data in contents(run).items() if "earlier" not in path.parts[0]}
        trainer = make_trainer(recipe(run, overwrite_output_dir=True, training={"max_updates": 2}))
        trainer.train()
        assert contents(run / f"earlier-{number}") == before
        assert [path.name for path in list_checkpoints(trainer.checkpoint_dir)] == ["checkpoint-0000002"]


def test_going_back_keeps_what_came_later(run):
    before = contents(run)
    back = str(run / "checkpoints" / "checkpoint-0000004")
    make_trainer(recipe(run, resume_from_checkpoint=back, checkpoints={"every_updates": 4, "keep": 9})).train()
    kept = contents(run / "earlier-1")
    assert all(kept[path] == before[path] for path in kept)
    assert {path.parts[0] for path in kept} >= {"checkpoints", "best", "final", "metrics.jsonl", "train.log"}
    assert {path.parts[1] for path in kept if path.parts[0] == "checkpoints"} == {
        "checkpoint-0000008",
        "checkpoint-0000012",
    }


def test_going_on_moves_nothing(run):
    make_trainer(recipe(run, resume_from_checkpoint="latest")).train()
    assert not list(run.glob("earlier*"))


def test_a_checkpoint_of_another_run_does_not_clear_this_one(run, finished):
    other = str(finished / "checkpoints" / "checkpoint-0000004")
    before = contents(run)
    with pytest.raises(ValueError, match="holds a run"):
        make_trainer(recipe(run, resume_from_checkpoint=other)).train()
    assert contents(run) == before


def test_latest_without_a_checkpoint_is_refused_and_auto_starts(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no checkpoint in .*checkpoints\. Check --output_dir"):
        make_trainer(recipe(tmp_path / "new", resume_from_checkpoint="latest")).train()
    assert not (tmp_path / "new").exists()
    arguments = recipe(tmp_path / "new", resume_from_checkpoint="auto", training={"max_updates": 2})
    trainer = make_trainer(arguments)
    trainer.train()
    assert trainer.update == 2
    make_trainer(arguments).train()
    assert not list((tmp_path / "new").glob("earlier*"))


def test_auto_starts_anew_after_a_death_before_the_first_checkpoint(run):
    (run / "checkpoints").rename(run.parent / "away")
    with pytest.raises(ValueError, match=r"holds a run \(best, final"):
        choose_start(run, "auto", False)
    for name in WEIGHTS[1:]:
        shutil.rmtree(run / name)
    assert choose_start(run, "auto", False) is None
    # A checkpoint that a kill cut short is none.
    (run / "checkpoints" / "checkpoint-0000001.partial").mkdir(parents=True)
    (run / "checkpoints" / "checkpoint-0000001.partial" / "model.safetensors").touch()
    assert choose_start(run, "auto", False) is None
    shutil.rmtree(run / "checkpoints")
    log = (run / "train.log").read_bytes()
    make_trainer(recipe(run, resume_from_checkpoint="auto", training={"max_updates": 2})).train()
    assert (run / "earlier-1" / "train.log").read_bytes() == log


def test_a_recipe_of_ones_own_in_the_folder_is_kept(tmp_path):
    (tmp_path / "recipe.yaml").write_text("# mine\nseed: 3\n")
    make_trainer(recipe(tmp_path, training={"max_updates": 2})).train()
    assert (tmp_path / "earlier-1" / "recipe.yaml").read_text() == "# mine\nseed: 3\n"


def test_overwriting_is_for_the_command_line_alone(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("overwrite_output_dir: true\n")
    with pytest.raises(ValueError, match=r"mine.yaml: sets overwrite_output_dir; only the command line may"):
        load_arguments(path)
    (tmp_path / "child.yaml").write_text("extends: mine\n")
    with pytest.raises(ValueError, match="sets overwrite_output_dir"):
        load_arguments(tmp_path / "child.yaml")
    assert load_arguments(None, ["--overwrite_output_dir"]).overwrite_output_dir
    for name in recipe_names():
        assert not load_arguments(name).overwrite_output_dir, name


def test_a_saved_recipe_starts_a_run_of_its_own(tmp_path):
    arguments = recipe(tmp_path, overwrite_output_dir=True, resume_from_checkpoint="auto")
    arguments.save(tmp_path / "recipe.yaml")
    again = load_arguments(tmp_path / "recipe.yaml")
    assert (again.overwrite_output_dir, again.resume_from_checkpoint) == (False, None)


def test_a_run_in_progress_is_not_joined(run):
    before = contents(run)
    with another_in(run) as process, pytest.raises(CheckpointError, match=f"in use by process {process.pid}"):
        make_trainer(recipe(run, resume_from_checkpoint="auto")).train()
    assert {path: content for path, content in contents(run).items() if path.name != LOCK_FILE} == before
