import math

import accelerate
import pytest
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from training_standin import (
    make_trainer,
    recipe,
)

import bifusion_hf.training.metrics
import bifusion_hf.training.setup
import bifusion_hf.training.trainer
from bifusion_hf.training.metrics import read_metrics


class NotebookTracker(GeneralTracker):
    """Stands in for one of Accelerate's trackers."""

    name = "tensorboard"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, run_name, **kwargs):
        super().__init__()
        self.run_name, self.config, self.lines, self.ended = run_name, None, [], False

    @property
    def tracker(self):
        return self.lines

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **kwargs):
        self.lines.append((step, values))

    def finish(self):
        self.ended = True


def test_a_tracker_gets_the_recipe_and_every_line(tmp_path, monkeypatch):
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", NotebookTracker)
    for module in (accelerate.tracking, bifusion_hf.training.setup):
        monkeypatch.setattr(module, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    arguments = recipe(tmp_path, logging={"trackers": ["tensorboard"], "project": "mine"}, training={"max_updates": 4})
    trainer = make_trainer(arguments)
    trainer.train()
    (tracker,) = trainer.accelerator.trackers
    assert tracker.run_name == "mine" and tracker.ended
    assert tracker.config["optimizer.learning_rate"] == 1e-2 and tracker.config["training.max_updates"] == 4
    written = read_metrics(tmp_path / "metrics.jsonl")
    assert [step for step, _ in tracker.lines] == [line["update"] for line in written]
    assert {"loss", "loss_points", "learning_rate_main"} <= tracker.lines[0][1].keys()
    assert "all_ap_50%" in tracker.lines[-1][1]
    for (_, values), line in zip(tracker.lines, written, strict=True):
        assert all(math.isfinite(value) for value in values.values())
        assert values == {name: value for name, value in line.items() if name != "update" and value is not None}


def test_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    arguments = recipe(tmp_path, logging={"trackers": ["tensorboard"]}, training={"max_updates": 2})
    make_trainer(arguments).train()
    # Hyperparameters lie in a folder below.
    (file,) = (tmp_path / "bifusion").glob("events.out.tfevents*")
    events = accumulator.EventAccumulator(str(file))
    events.Reload()
    losses = [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl") if "loss" in line]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (step, pytest.approx(loss, rel=1e-6)) for step, loss in enumerate(losses, start=1)
    ]


@pytest.mark.parametrize(("name", "package"), [("clearml", "clearml"), ("comet_ml", "comet_ml")])
def test_a_tracker_that_is_not_installed_is_named(tmp_path, name, package):
    with pytest.raises(ImportError, match=f"logging.trackers: {name} not installed; pip install {package}"):
        make_trainer(recipe(tmp_path, logging={"trackers": [name]}))
    with pytest.raises(ValueError, match=r"logging.trackers has no paper, stone; Accelerate knows \[.*'tensorboard'"):
        make_trainer(recipe(tmp_path / "b", logging={"trackers": ["stone", "tensorboard", "paper"]}))
