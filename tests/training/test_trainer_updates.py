"""What happens in each update of the loop, and around it."""

import contextlib
import json
import logging
import random
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from training_standin import StandIn, StandInConfig, StandInFrames, collate, evaluate, make_trainer, recipe

from bifusion_hf.training import trainer as trainer_module
from bifusion_hf.training.audit import LivenessError
from bifusion_hf.training.checkpoints import read_state
from bifusion_hf.training.metrics import Recorder, read_metrics
from bifusion_hf.training.trainer import BiFusionTrainer


def update_lines(folder):
    return [line for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]


def test_the_network_knows_its_progress_before_each_update(tmp_path):
    trainer = make_trainer(recipe(tmp_path, training={"batch_size": 2, "accumulation": 2, "max_updates": 3}))
    seen = []
    # The last passes are those of the evaluation.
    trainer.network.inner.register_forward_pre_hook(lambda *_: seen.append(trainer.network.progress.tolist()))
    trainer.train()
    assert seen == [[update, 3] for update in (0, 0, 1, 1, 2, 2, 3)]


def test_a_line_holds_the_losses_of_all_batches_and_no_term_that_is_off(tmp_path):
    """A term that is counted is shown although it is detached; a constant that nothing counts is not."""
    arguments = recipe(tmp_path, training={"batch_size": 2, "accumulation": 2, "max_updates": 2})
    trainer = make_trainer(arguments, config={"detach": "loss_class"}, dtype=torch.float64)
    seen = []

    def watch(network, inputs, outputs):
        if network.training:
            seen.append({"loss": outputs.loss.item(), **{name: v.item() for name, v in outputs.loss_dict.items()}})
            outputs.loss_dict["loss_off"] = torch.zeros((), dtype=torch.float64)

    def step(sums, counts, audited, step=trainer._step):
        # They hold no graph: what a batch needs memory for is free before the next one.
        assert not any(value.requires_grad for value in sums.values())
        return step(sums, counts, audited)

    trainer._step = step
    trainer.network.register_forward_hook(watch)
    trainer.train()
    lines = update_lines(tmp_path)
    for line, first, second in zip(lines, seen[::2], seen[1::2], strict=True):
        assert {name: value for name, value in line.items() if name.startswith("loss")} == pytest.approx(
            {name: first[name] + second[name] for name in ("loss", "loss_points", "loss_class")}, rel=1e-12
        )
    assert [line["epoch"] for line in lines] == [0.25, 0.5]
    assert {name for name in lines[0] if name.startswith("learning_rate")} == {"learning_rate_main"}


def test_updates_are_logged_first_last_and_now_and_then(tmp_path):
    """Those that are audited show the gate too, in the table alone where they are not logged."""
    arguments = recipe(tmp_path, logging={"every_updates": 5}, evaluation={"every_updates": 3})
    make_trainer(arguments, frames=StandInFrames(poison={(2, row) for row in range(16)})).train()
    lines = update_lines(tmp_path)
    assert [line["update"] for line in lines] == [1, 5, 10, 12]
    # Of a skipped update there is no gate to tell of.
    assert ["alpha_mean" in line for line in lines] == [True, True, False, False]
    tables = (tmp_path / "train.log").read_text().split("liveness audit of update ")[1:]
    assert [table.partition("\n")[0] for table in tables] == ["1", "3", "6", "9", "12"]
    shown = [next(line for line in table.splitlines() if line.startswith("alpha")) for table in tables]
    assert len(set(shown[:3])) == 3 and shown[2:] == [shown[2]] * 3
    # How far a tensor moved is measured in these updates.
    moved = [next(line for line in table.splitlines() if line.startswith("inner")).split()[4] for table in tables]
    assert "-" not in moved and len(set(moved[:3])) == 3


def test_a_loss_term_is_probed_in_the_last_batch_alone(tmp_path, monkeypatch):
    probed, probe = [], trainer_module.probe_terms

    def count(terms, counts, accelerator):
        probed.append((trainer.update + 1, sorted(terms), counts["points"]))
        return probe(terms, counts, accelerator)

    monkeypatch.setattr(trainer_module, "probe_terms", count)
    sections = {"training": {"batch_size": 2, "accumulation": 2, "max_updates": 3, "audit_window": 2}}
    trainer = make_trainer(recipe(tmp_path, **sections))
    points, finish = [], trainer._finish_update
    trainer._finish_update = lambda window, values: (
        points.append(int(window[-1]["point_mask"].sum())),
        finish(window, values),
    )
    trainer.train()
    # A living term is looked at once a window.
    terms = ["loss_class", "loss_points"]
    assert probed == [(1, terms, points[0]), (3, terms, points[2])]
    assert "in update 3" in next(line for line in trainer.audit.table().splitlines() if line.startswith("loss_points"))


def test_the_loop_stops_for_dead_tensors_in_the_update_that_shows_them(tmp_path):
    trainer = make_trainer(recipe(tmp_path, training={"audit_window": 4}), config={"detach": "loss_class"})
    expected = r"^update 4: no gradient in 4 updates for 2 trainable tensors: classes.weight, classes.bias\."
    with pytest.raises(LivenessError, match=expected):
        trainer.train()


def test_the_rates_go_on_where_updates_are_skipped(tmp_path):
    """For want of frames, or of numbers."""
    frames = StandInFrames(poison={(1, row) for row in range(16)}, broken=range(4))
    sections = {"data": {"skip_broken_rows": True}, "training": {"batch_size": 1, "max_updates": 20}}
    make_trainer(recipe(tmp_path, **sections), frames=frames).train()
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "points" in line]
    assert [line["skipped"] for line in lines].count(1.0) == 4 + 4
    assert {type(line["skipped"]) for line in lines} == {float}
    rates = [line["learning_rate_main"] for line in lines]
    assert rates == pytest.approx([1e-2 * (1 - update / 20) ** 0.9 for update in range(1, 21)])


def test_points_and_pixels_are_compared_in_the_first_five_updates(tmp_path, monkeypatch):
    compared = []

    def check(batch, processor):
        compared.append((trainer.update, processor))
        return 0.01 * trainer.update

    monkeypatch.setattr(trainer_module, "check_alignment", check)

    batches = []

    def without_pixels_in_the_second(samples):
        batches.append(samples)
        return {**collate(samples), **({} if len(batches) == 2 else {"pixel_values": 1})}

    saved = []
    processor = SimpleNamespace(save_pretrained=lambda folder: saved.append(folder.name.rpartition("-")[2]))
    arguments = recipe(tmp_path, training={"batch_size": 1, "max_updates": 7})
    model, frames = StandIn(StandInConfig()), StandInFrames()
    trainer = BiFusionTrainer(arguments, model, processor, frames, without_pixels_in_the_second)
    trainer.train()
    assert compared == [(update, processor) for update in (1, 3, 4, 5)]
    assert "at most 12.75/255" in trainer.audit.table()
    # Without evaluation there is no best.
    assert "final" in saved and "best" not in saved


def test_the_bar_shows_the_largest_rate(tmp_path, monkeypatch):
    shown, advance = [], Recorder.advance
    monkeypatch.setattr(
        Recorder, "advance", lambda self, values, rate: (shown.append(rate), advance(self, values, rate))
    )
    trainer = make_trainer(recipe(tmp_path, training={"max_updates": 2}))
    tower = trainer.optimizer.param_groups[1]
    tower["name"], tower["lr"] = "tower_no_decay", 1e-3
    trainer.scheduler.scheduler.base_lrs[1] = 1e-3
    trainer.train()
    (first, last) = update_lines(tmp_path)
    assert first["learning_rate_tower"] == pytest.approx(0.1 * first["learning_rate_main"])
    assert shown == [first["learning_rate_main"], last["learning_rate_main"]]


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_how_an_evaluation_is_run(tmp_path, precision, dtype):
    seen = []

    def evaluate(model):
        modes = {module.training for module in model.modules()}
        seen.append((modes, torch.is_grad_enabled(), model.inner(torch.ones(1, 3)).dtype))
        return {"all_ap_50%": torch.tensor(0.25), "all_ap": 1}

    arguments = recipe(tmp_path, training={"mixed_precision": precision, "max_updates": 2})
    arguments.evaluation.every_updates = 1
    trainer = make_trainer(arguments)
    trainer.evaluate_model = evaluate
    results = trainer.train()
    assert seen == [({False}, False, dtype)] * 2
    assert results == {"all_ap_50%": 0.25, "all_ap": 1.0} and type(results["all_ap_50%"]) is float
    assert {module.training for module in trainer.network.modules()} == {True}


def test_a_metric_that_no_evaluation_gives_is_named(tmp_path):
    trainer = make_trainer(recipe(tmp_path, evaluation={"metric": "ap"}, training={"max_updates": 1}))
    with pytest.raises(ValueError, match=r"evaluation\.metric 'ap' is none of the results \['all_ap', 'all_ap_50%'\]"):
        trainer.train()


def test_without_validation_frames_nothing_is_best(tmp_path):
    trainer = make_trainer(recipe(tmp_path, training={"max_updates": 1}))
    trainer.evaluate_model = None
    assert trainer.train() == {} and not (tmp_path / "best").exists()


def test_a_run_says_what_it_does_and_closes_its_log(tmp_path):
    for overwrite in (False, True):
        arguments = recipe(
            tmp_path, training={"batch_size": 2, "accumulation": 3, "max_updates": 2}, overwrite_output_dir=overwrite
        )
        trainer = make_trainer(arguments)
        trainer.train()
        first = (tmp_path / "train.log").read_text().splitlines()[0]
        told = f"{trainer.total_updates} updates of 6 frames (2 x 3 accumulated x 1 processes) on cpu"
        note = f"; what an earlier run left is in {tmp_path / 'earlier-1'}" if overwrite else ""
        assert first.endswith(f" INFO {told}{note}") and trainer.total_updates == 2
        assert not logging.getLogger("bifusion_hf.training").handlers
    arguments = recipe(tmp_path, training=arguments.training.__dict__, resume_from_checkpoint="latest")
    make_trainer(arguments).train()
    log = (tmp_path / "train.log").read_text()
    assert f"INFO resumed from {trainer.checkpoint_dir / 'checkpoint-0000002'} at update 2 of 2\n" in log


def test_what_a_checkpoint_says(tmp_path):
    """All that happened, exactly; an evaluation that was made is not due any more."""
    frames = StandInFrames(poison={(0, 3), *((1, row) for row in range(16))}, broken={5, 6, 7, 8})
    sections = {
        "data": {"skip_broken_rows": True},
        "training": {"batch_size": 1, "accumulation": 2, "max_updates": 12},
    }
    cadence = {"evaluation": {"every_updates": 5}, "checkpoints": {"every_updates": 10}}
    trainer = make_trainer(recipe(tmp_path, **sections, **cadence), frames=frames)
    trainer.evaluate_model = lambda model: {"all_ap_50%": 1 / trainer.update}
    trainer.train()
    (left_out,) = [
        line["skipped_batches"]
        for line in read_metrics(tmp_path / "metrics.jsonl")
        if (line["update"], "loss" in line) == (10, True)
    ]
    assert left_out >= 4
    assert read_state(trainer.checkpoint_dir / "checkpoint-0000010") == {
        "update": 10,
        "total_updates": 12,
        "frames_per_update": 2,
        "num_processes": 1,
        "best": {"update": 5, "all_ap_50%": 0.2},
        "skipped": 3,
        "skipped_in_a_row": 2,
        "skipped_batches": left_out,
        "evaluation_due": False,
        "stream": {},
    }


@pytest.fixture
def begun(tmp_path):
    """A run of twelve updates that ended after the fourth; and a factory of trainers that go on with it."""
    sections = {"checkpoints": {"every_updates": 4, "keep": 9}}
    make_trainer(recipe(tmp_path, **sections)).train()
    checkpoint = tmp_path / "checkpoints" / "checkpoint-0000004"

    def go_on(seed=0, **changes):
        state = {name: value for name, value in {**read_state(checkpoint), **changes}.items() if value is not None}
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
        return make_trainer(recipe(tmp_path, resume_from_checkpoint=str(checkpoint), seed=seed, **sections))

    return go_on


def test_checkpoints_that_tell_less_are_taken_too(begun):
    trainer = begun(skipped=3, skipped_in_a_row=2, skipped_batches=None, evaluation_due=None, stream=None)
    trainer._start()
    assert (trainer.update, trainer.guard.skipped, trainer.guard.in_a_row) == (4, 3, 2)
    assert trainer.skipped_batches == 0 and trainer.evaluation_due is False


def test_with_other_processes_a_run_goes_on_with_random_states_of_its_seed(begun, monkeypatch):
    asked = []
    monkeypatch.setattr(trainer_module, "set_seed", lambda *given, **how: asked.append(how) or set_seed(*given, **how))

    def draw(seed, processes):
        trainer = begun(seed, num_processes=processes)
        told = trainer._start()
        return torch.rand(()).item(), told

    (first, told), (again, _), (other, _) = draw(0, 2), draw(0, 2), draw(1, 2)
    assert "at update 4 of 12; processes 2 -> 1, with new random states" in told and first == again != other
    # Each process has its own.
    assert asked == [{"device_specific": True}] * 6
    set_seed(random.Random("0 4").getrandbits(31))
    assert first == torch.rand(()).item()
    (saved, told), (same, _) = draw(0, 1), draw(1, 1)
    assert "; processes" not in told and saved == same != first


def test_a_run_says_what_its_processes_share_and_that_they_share_a_folder(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(trainer_module, "shares_batch_statistics", lambda *_: bool(looked))
    monkeypatch.setattr(trainer_module.run_folder, "check_shared", lambda *given: looked.append(given))
    monkeypatch.setattr(nn.SyncBatchNorm, "convert_sync_batchnorm", lambda network: network)
    trainer = make_trainer(recipe(tmp_path))
    trainer.sharding = "some"
    assert trainer._start().endswith(" on cpu; weights and optimizer state in parts; batch statistics shared")
    assert looked == [(tmp_path, trainer.accelerator)]


@pytest.mark.parametrize(("processes", "in_parts", "is_anew"), [(2, False, True), (2, True, False), (1, False, False)])
def test_processes_are_told_of_what_starts_to_train(tmp_path, monkeypatch, processes, in_parts, is_anew):
    """Their wrapper averages the gradients that there were when it was made."""
    trainer = make_trainer(recipe(tmp_path, training={"unfreeze_at": {"inner": 0.5}}))
    before = trainer.model, trainer.optimizer, trainer.scheduler
    inner = trainer.optimizer.optimizer, trainer.scheduler.scheduler
    monkeypatch.setattr(Accelerator, "num_processes", processes)
    monkeypatch.setattr(trainer.accelerator, "prepare", lambda *given: given)
    monkeypatch.setattr(trainer_module.sharding, "wrap_network", lambda network, *_: ("wrapped", network))
    trainer.sharding = "some" if in_parts else None
    trainer.update = 5
    trainer._unfreeze()
    assert (trainer.model, trainer.optimizer, trainer.scheduler) == before
    trainer.update = 6
    trainer._unfreeze()
    assert trainer.network.inner.weight.requires_grad
    expected = (("wrapped", trainer.network), *inner) if is_anew else before
    assert (trainer.model, trainer.optimizer, trainer.scheduler) == expected


def test_each_process_draws_its_own(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(trainer_module, "set_seed", lambda seed, **options: asked.append((seed, options)))
    make_trainer(recipe(tmp_path, seed=7))
    assert asked == [(7, {"device_specific": True})]


def test_statistics_that_start_to_train_move(tmp_path):
    trainer = make_trainer(recipe(tmp_path, training={"unfreeze_at": {"norm": 0.5}}))
    seen = []
    finish = trainer._finish_update
    trainer._finish_update = lambda window, values: (
        seen.append(int(trainer.network.norm.num_batches_tracked)),
        finish(window, values),
    )
    trainer.train()
    assert seen == [0] * 6 + [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_a_trial_is_a_pass_as_in_training_without_a_trace(tmp_path, precision, dtype):
    trainer = make_trainer(recipe(tmp_path, training={"mixed_precision": precision}))
    trainer.network.eval()
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    seen = []
    trainer.network.inner.register_forward_hook(lambda module, _, output: seen.append((module.training, output.dtype)))
    trainer.network.inner.weight.register_hook(lambda gradient: seen.append(gradient.abs().sum().item() > 0))
    trainer.trial([StandInFrames()[0, row] for row in (0, 1)])
    assert seen == [(True, dtype), True]
    assert all(torch.equal(value, before[name]) for name, value in trainer.network.state_dict().items())
    assert all(parameter.grad is None for parameter in trainer.network.parameters())


def test_gradients_that_processes_average_are_made_of_their_sum(tmp_path, monkeypatch):
    """Counts are sums over all processes, and so must the gradient be."""
    trainer = make_trainer(recipe(tmp_path))
    trainer._start()
    trainer.recorder = Recorder(trainer.accelerator, tmp_path, 1, 0, False)
    window = trainer._next_window(trainer._batches())
    seen, given = [], []
    trainer.network.register_forward_hook(lambda network, _, outputs: seen.append(outputs.loss.item()))
    backward = trainer.accelerator.backward
    monkeypatch.setattr(trainer.accelerator, "backward", lambda loss: (given.append(loss.item()), backward(loss)))
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    trainer._run_update(window)
    trainer.recorder.close()
    assert given == pytest.approx([2 * seen[0]])


def test_audits_know_how_long_the_gate_is_held(tmp_path):
    trainer = make_trainer(recipe(tmp_path), config={"gate_warmup_steps": 7})
    assert trainer.audit.warmup_updates == 7
    del trainer.network.config.gate_warmup_steps
    model = trainer.network
    other = BiFusionTrainer(recipe(tmp_path), model, None, StandInFrames(), collate, evaluate=evaluate)
    assert other.audit.warmup_updates == 0
    assert isinstance(other.network.norm, nn.BatchNorm1d)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_what_a_network_in_parts_goes_through(tmp_path, monkeypatch, decay):
    """The optimizer is made anew for the parts; single loss terms are differentiated while all is gathered."""
    calls, gathered, averaged, build = [], [], [], trainer_module.build_optimizer

    @contextlib.contextmanager
    def kept_gathered(network, how):
        gathered.append(how)
        yield

    for name, stand_in in {
        "read_sharding": lambda *_: "parts",
        "shard_network": lambda module, how, accelerator: calls.append(module),
        "keep_whole_states": calls.append,
        "wrap_network": lambda network, *_: network,
        "kept_gathered": kept_gathered,
        "average_unsharded_gradients": lambda parameters, accelerator: averaged.append(len(parameters)),
    }.items():
        monkeypatch.setattr(trainer_module.sharding, name, stand_in)
    monkeypatch.setattr(
        trainer_module, "build_optimizer", lambda *given, later: calls.append(later) or build(*given, later=later)
    )
    training = {"batch_size": 2, "accumulation": 2, "max_updates": 3, "audit_window": 2, "ema_decay": decay}
    trainer = make_trainer(recipe(tmp_path, training={**training, "unfreeze_at": {"inner": 0.9}}))
    sharded = [trainer.network] if decay is None else [trainer.network, trainer.ema.module]
    assert calls == [["inner"], *sharded, ["inner"], trainer.optimizer.optimizer]
    evaluated = []
    trainer.evaluate_model = lambda model: evaluated.append(model) or {"all_ap_50%": 0.0}
    trainer.train()
    # Loss terms are probed in the last batches of the first and the third update.
    assert gathered == [None, "parts", None, None, None, "parts"]
    # Weights and biases of all but what starts later.
    assert averaged == [8] * 3 and evaluated == [trainer.whole_copy] and trainer.whole_copy is not trainer.network
    kept = sharded[-1].state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in trainer.whole_copy.state_dict().items())
