from types import SimpleNamespace

import pytest
import torch
from real_recipe import prepared_frames, small_recipe
from torch import nn
from training_standin import StandInFrames, make_trainer, recipe

from bifusion_hf.training import plan
from bifusion_hf.training.plan import describe_plan, saved_bytes
from bifusion_hf.training.run import build_trainer


def test_the_plan_says_what_will_happen(tmp_path):
    training = {"accumulation": 2, "max_updates": 200}
    arguments = small_recipe(tmp_path, config={"gate_warmup_steps": 700}, training=training)
    trainer = build_trainer(arguments)
    text = describe_plan(trainer)
    rows = text.split("update   learning rate\n")[1].splitlines()[:7]
    assert [row.split()[0] for row in rows] == ["0", "20", "50", "100", "150", "180", "198"]
    for part in ("200 updates", "2 x 2 accumulated x 1 processes", "LONGER THAN THE RUN", "main_no_decay", "tower",
                 "MiB (measured on the first batch)", "model.encoder.fusion"):  # fmt: skip
        assert part in text, part
    assert not (tmp_path / "checkpoints").exists()


def test_the_plan_counts_what_the_memory_holds(monkeypatch):
    monkeypatch.setattr(plan, "saved_bytes", lambda trainer: 5 << 20)
    network = nn.Sequential(nn.Linear(1024, 1024, bias=False), nn.Linear(1024, 512, bias=False))
    network[1].requires_grad_(False)
    # Gradient and two moments of the part that trains; as many numbers again as there are for the moving average.
    for average, state, together in ((None, 12, 23), (network, 18, 29)):
        text = plan._memory(SimpleNamespace(network=network, ema=average))
        assert f"weights 6 MiB, gradients and optimizer {state} MiB, kept for the backward pass 5 MiB" in text
        assert f"together {together / 1024:.2f} GiB" in text
    rows = [line.split() for line in plan._modules(SimpleNamespace(network=network)).splitlines()]
    assert rows == [
        ["module", "parameters", "trainable"],
        ["0", "1,048,576", "1,048,576"],
        ["1", "524,288", "0"],
        ["all", "1,572,864", "1,048,576"],
    ]
    # A row is a module at the third level.
    deep = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.ModuleDict({"c": network, "d": network[1]})})})
    rows = [line.split() for line in plan._modules(SimpleNamespace(network=deep)).splitlines()]
    assert rows[1:] == [["a.b.c", "1,572,864", "1,048,576"], ["all", "1,572,864", "1,048,576"]]


def test_a_stream_has_a_plan_too(tmp_path):
    data = {"val": None, "streaming": True, "max_train_frames": None}
    sections = {"training": {"max_updates": 5}, "checkpoints": {"every_updates": 2}}
    text = describe_plan(build_trainer(small_recipe(tmp_path, data=data, **sections)))
    assert f"5 updates; streamed of {prepared_frames()}" in text and "checkpoint: every 2 updates and after" in text
    assert "evaluation: after the last update" in text


PLAN = """\
12 updates, 4 in an epoch; 16 frames of somewhere
frames of an update: 4 = 2 x 2 accumulated x 1 processes
device cpu, mixed precision no
evaluation: every 8 updates and after the last
checkpoint: every 5 updates and after the last

update   learning rate
{rates}
gate held at 0.5 for 12 updates; LONGER THAN THE RUN: alpha stays 0.5
loss stages (original) change at updates 4, 9
inner starts to train at update 5
gate starts to train at update 3

parameter group       tensors   parameters   learning rate   weight decay
main                        4        1,152         1.0e-02            0.3
main_no_decay               7          497         1.0e-02              0

module       parameters    trainable
scale               107          107
inner               512            0
norm                256          256
gate                129            0
regression          129          129
classes             516          516
all               1,649        1,008
"""


def test_the_plan_is_told_to_the_number(tmp_path):
    """What is to train later has its place in the groups; a parameter of the network itself has a row."""
    arguments = recipe(
        tmp_path,
        data={"train": "somewhere"},
        optimizer={"warmup_updates": 2, "weight_decay": 0.3},
        training={"batch_size": 2, "accumulation": 2, "unfreeze_at": {"inner": 0.4, "gate": 0.25}},
        evaluation={"every_epochs": 2},
        checkpoints={"every_updates": 5, "every_epochs": 3},
    )
    trainer = make_trainer(arguments, config={"gate_warmup_steps": 12, "width": 128})
    trainer.network.scale = nn.Parameter(torch.ones(107))
    trainer.network.config.loss_config = SimpleNamespace(stage_schedule="original")
    rates = [0.01 * (1 - update / 12) ** 0.9 * min(1, (update + 1) / 3) for update in (0, 1, 3, 6, 9, 10, 11)]
    rows = [f"{update:>6}   {rate:.3e}" for update, rate in zip((0, 1, 3, 6, 9, 10, 11), rates, strict=True)]
    text = describe_plan(trainer)
    assert text.partition("\nmemory")[0] == PLAN.format(rates="\n".join(rows))
    trainer.network.config.gate_warmup_steps = 11
    trainer.network.config.loss_config.stage_schedule = "none"
    arguments.data.window_frames = 3
    arguments.evaluation.every_epochs = 0
    text = describe_plan(trainer)
    assert (
        "gate held at 0.5 for 11 updates\ninner" in text
        and "16 scenes of somewhere\nwindows of 3 frames of an" in text
    )
    assert "evaluation: after the last update\ncheckpoint" in text
    # A stage begins with three tenths of the updates, and the next one beyond seven.
    trainer.network.config.loss_config.stage_schedule, trainer.total_updates = "bifusion", 10
    assert "loss stages (bifusion) change at updates 3, 8\n" in describe_plan(trainer)
    del trainer.network.config.gate_warmup_steps
    assert "gate held" not in describe_plan(trainer)


def test_stages_change_when_the_plan_says(tmp_path):
    """The first frozen part trains in the sixth update of twelve: five of them are more than two fifths."""
    trainer = make_trainer(recipe(tmp_path, training={"unfreeze_at": {"inner": 0.4, "gate": 0.25}}))
    started = {}
    finish = trainer._finish_update

    def finish_update(window, values):
        finish(window, values)
        for name in ("inner", "gate"):
            if trainer.network.get_submodule(name).weight.requires_grad:
                started.setdefault(name, trainer.update)

    trainer._finish_update = finish_update
    trainer.train()
    assert started == {"inner": 5, "gate": 3}
    for name, update in started.items():
        assert f"{name} starts to train at update {update}\n" in describe_plan(trainer)


def test_what_is_kept_for_the_backward_pass_is_counted_once_and_without_weights():
    network, other = nn.Linear(1000, 10, bias=False), nn.Linear(10, 10, bias=False)

    def trial(samples):
        hidden = network(torch.ones(4, 1000)).exp()
        # Its result is kept by `exp`, by the product and by the second layer.
        (other(hidden) * hidden).sum().backward()

    trainer = SimpleNamespace(
        network=nn.ModuleList([network, other]),
        trial=trial,
        train_dataset=StandInFrames(2),
        batch_size=1,
        arguments=recipe("unused"),
    )
    assert saved_bytes(trainer) == 4 * (4 * 1000 + 4 * 10 + 4 * 10)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_first_frames_that_are_whole_are_measured(streaming):
    frames = StandInFrames(8, broken={0, 2})
    dataset = iter([frames[0, row] for row in range(8)]) if streaming else frames
    sections = {"training": {"max_updates": 1}} if streaming else {}
    sections |= dict.fromkeys(("evaluation", "checkpoints"), {"every_updates": 1})
    seen = []
    trainer = SimpleNamespace(
        network=nn.Linear(1, 1),
        trial=lambda samples: seen.extend((sample["frame_id"], sample["points"].tolist()) for sample in samples),
        train_dataset=dataset,
        batch_size=3,
        arguments=recipe("unused", data={"streaming": streaming}, **sections),
    )
    assert saved_bytes(trainer) == 0
    assert seen == [(f"frame_{row}", frames[0, row]["points"].tolist()) for row in (1, 3, 4)]
    trainer.train_dataset = iter([None]) if streaming else StandInFrames(2, broken={0, 1})
    with pytest.raises(ValueError, match="all training frames are broken"):
        saved_bytes(trainer)
