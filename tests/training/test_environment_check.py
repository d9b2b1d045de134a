import dataclasses
import importlib.metadata
import os
import platform
import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bifusion_hf.recipe.arguments import TrainArguments
from bifusion_hf.training import environment_check
from bifusion_hf.training.environment_check import CheckResult, EnvironmentCheck, _NotAsked, _version


def make_check(num_frames=8, **fields):
    """Checks that have come as far as `fields` say."""
    check = EnvironmentCheck("mine", num_frames=num_frames, device="cpu")
    vars(check).update(fields)
    return check


def replace(monkeypatch, **values):
    for name, value in values.items():
        monkeypatch.setattr(environment_check, name, value)


def test_the_disk_has_to_hold_ten_copies_of_the_weights(tmp_path, monkeypatch):
    check = SimpleNamespace(
        arguments=SimpleNamespace(output_dir=tmp_path / "new" / "run"), model=nn.Linear(1000, 1000, bias=False)
    )
    free = [40_000_000]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free[0]) if path == tmp_path else None)
    assert EnvironmentCheck._output(check).startswith(f"{tmp_path / 'new' / 'run'}, 0 GB free")
    free[0] -= 1
    with pytest.raises(ValueError, match=r"run: 0\.0 GB free, checkpoints need 0\.0 GB"):
        EnvironmentCheck._output(check)
    # The folder itself is asked where it is there.
    check.arguments.output_dir = tmp_path / "file"
    check.arguments.output_dir.touch()
    with pytest.raises(ValueError, match=r"file: cannot write in .*file$"):
        EnvironmentCheck._output(check)
    check.arguments.output_dir = tmp_path
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="cannot write in"):
        EnvironmentCheck._output(check)


@pytest.mark.parametrize(
    ("package", "distribution"), [("torch", "torch"), ("PIL", "pillow"), ("yaml", "PyYAML"), ("no_such_package", None)]
)
def test_versions_are_found_by_the_name_of_the_import_too(package, distribution):
    assert _version(package) == (distribution and importlib.metadata.version(distribution))


def test_a_check_is_on_the_gpu_if_there_is_one_and_looks_at_eight_frames(monkeypatch):
    assert (EnvironmentCheck(None).num_frames, EnvironmentCheck(None, device="meta").device.type) == (8, "meta")
    for there, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert EnvironmentCheck(None).device == torch.device(device)


def test_outcomes_and_what_they_need():
    check = make_check()

    def fail(error):
        raise error

    check._check("a", lambda: "fine", "none")
    check._check("b", lambda: fail(ValueError("too  much\nof it")), "less")
    check._check("c", lambda: fail(TypeError("of another kind")), "another")
    check._check("d", lambda: fail(_NotAsked("null")), "none")
    check._check("e", lambda: fail(AssertionError), "none", needs=["a", "b", "d"])
    check._check("f", lambda: "fine", "none", needs=["a"])
    assert check.results == [
        CheckResult("a", "passed", "fine"),
        CheckResult("b", "failed", "too much of it", "less"),
        CheckResult("c", "failed", "TypeError: of another kind", "another"),
        CheckResult("d", "skipped", "null"),
        CheckResult("e", "skipped", "needs: b, d"),
        CheckResult("f", "passed", "fine"),
    ]


def test_packages_have_the_versions_that_are_asked_for(monkeypatch):
    versions = {"one": "2.0rc1", "two": "1.5", "three": None}
    replace(monkeypatch, _version=versions.get)
    python = f"python {platform.python_version()}"

    def found(*needed):
        monkeypatch.setattr(importlib.metadata, "requires", lambda name: list(needed) or None)
        return make_check()._packages()

    assert found() == python
    # One that comes before a release is good enough, and an extra is nobody's need.
    assert found("one>=1", "two==1.5", "three; extra == 'demo'") == f"{python}, one 2.0rc1, two 1.5"
    assert found("two; python_version > '3'") == f"{python}, two 1.5"
    with pytest.raises(ValueError, match="^two 1.5, needed >=2; three None, needed >=1$"):
        found("one>=2.0rc1", "two>=2", "three>=1")
    with pytest.raises(ValueError, match="^three None, needed $"):
        found("three")


def test_what_is_optional_is_told_with_its_extra(monkeypatch):
    there = ["one", "two", "torchvision"]
    replace(
        monkeypatch,
        _version={"one": "2.0", "torchvision": "0.9"}.get,
        is_available=there.__contains__,
        torchvision_misfit=lambda: None,
        OPTIONAL_PACKAGES={"one": "a", "two": "b", "three": "c"},
    )
    assert make_check()._optional_packages() == "one 2.0, two installed, no three [c]"
    assert make_check()._torchvision() == f"0.9 works with torch {torch.__version__}"
    there.remove("torchvision")
    assert make_check()._torchvision() == "not installed, and not needed"


# Of values up to 4, some of them below zero.
@pytest.mark.parametrize(
    ("difference", "told"), [(3.6e-4, "9e-05"), (-3.6e-4, "9e-05"), (4.4e-4, None), (-1e-3, None)]
)
def test_backends_agree_to_one_part_in_ten_thousand(monkeypatch, difference, told):
    results = {"one": torch.tensor([-4.0, 1.0, 2.0])}
    results["two"] = results["one"] + torch.tensor([0.0, difference, 0.0])

    class Layer(nn.Module):
        def __init__(self, *_, kernel_size):
            super().__init__()

        def forward(self, tensor):
            return SimpleNamespace(features=results[self.backend])

    reasons = {"one": None, "two": None, "three": "no compiler"}
    replace(monkeypatch, SubmanifoldConv3d=Layer, working_backends=lambda device: reasons)
    if told is None:
        with pytest.raises(ValueError, match=r"the backends one, two differ by (1\.1|2\.5)e-04 of the largest"):
            make_check()._backends()
    else:
        note = "; not three, which is faster: no compiler"
        assert make_check()._backends() == f"one, two; they agree to {told}{note}"
        del reasons["two"]
        assert make_check()._backends() == f"one{note}"


def test_the_recipe_is_told_by_what_it_starts_from(tmp_path):
    def found(recipe, *overrides):
        check = EnvironmentCheck(recipe, overrides, device="cpu")
        return check._recipe()

    assert found("tiny", "--training.batch_size", "3") == "tiny: preset tiny, 3 x 1 frames an update"
    assert found(None, "--model.pretrained", "some/folder").startswith("defaults: some/folder, ")
    with pytest.raises(ValueError, match=r"unknown key 'data\.augmentation\.flip'"):
        found("tiny", "--data.augmentation", "{flip: 1}")
    with pytest.raises(ValueError, match="fp16 needs a GPU; use bf16"):
        found("tiny", "--training.mixed_precision", "fp16")
    on_another = EnvironmentCheck("tiny", ["--training.mixed_precision", "fp16"], device="meta")
    assert on_another._recipe().startswith("tiny: ")


def test_frames_of_each_split_are_counted(monkeypatch):
    data = SimpleNamespace(train="a", train_split="first", val="b", val_split="second", streaming=True)
    tables = {("a", "first"): list(range(7)), ("b", "second"): list(range(3))}

    def stream(source, name, streaming):
        return SimpleNamespace(take=lambda count: iter(tables[source, name][:count])) if streaming else None

    replace(monkeypatch, load_frames=stream, load_rows=lambda source, name: tables[source, name])
    check = make_check(2, arguments=SimpleNamespace(data=data))
    assert check._frames("train") == "the first 2, streamed, of a, split 'first'"
    assert check._frames("val") == "3 frames of b, split 'second'"
    assert check._rows == {"train": [0, 1], "val": [0, 1, 2]}
    data.streaming = False
    assert check._frames("train") == "7 frames of a, split 'first'"
    tables["b", "second"] = []
    with pytest.raises(ValueError, match="^b: split 'second' has no frame$"):
        check._frames("val")
    data.val = None
    with pytest.raises(_NotAsked, match=r"data\.val is null"):
        check._frames("val")


def test_parameters_that_train_are_counted_after_freezing(monkeypatch):
    network, asked = nn.Sequential(nn.Linear(1000, 3), nn.Linear(3, 1)), []
    network.config = SimpleNamespace()
    arguments = TrainArguments.from_dict({"output_dir": "run", "seed": 5, "training": {"freeze": ["0"]}})
    replace(
        monkeypatch,
        find_checkpoint=lambda *given: asked.append(given) or "found",
        build_model=lambda *given: asked.append(given) or network,
        build_processor=lambda *given: asked.append(given),
    )
    assert make_check(arguments=arguments)._model() == "3,007 parameters, 4 of them train"
    assert asked == [("run", None), (arguments.model, 5, "found"), (arguments.model, network.config)]


def test_weights_are_loaded_one_source_at_a_time_and_told_by_the_last_count(monkeypatch):
    report, asked = ["head\n1 of 9 loaded\n2 of 9 loaded\nmissing"], []
    replace(monkeypatch, load_initial_weights=lambda model, init: asked.append((model, init)) or report)
    arguments = TrainArguments.from_dict({"init": {"sv3d": "a", "clip": "b", "clip_activation": "gelu"}})
    check = make_check(arguments=arguments, model="network")
    assert check._weights("clip") == "2 of 9 loaded"
    assert asked == [("network", dataclasses.replace(arguments.init, sv3d=None))]
    report[:] = ["nothing fits"]
    assert check._weights("sv3d") == "nothing fits"
    with pytest.raises(_NotAsked, match=r"init\.vision is null"):
        check._weights("vision")


def alignment_of(monkeypatch, rows, split, num_frames=3, **data):
    """The text of a check of alignment, the check, and per data set (options, rows asked for).

    A row is the difference of its colours in 255ths; augmented, it is larger by a half.
    """
    made = []

    class Frames:
        def __init__(self, rows, processor, **options):
            self.rows, self.asked, self.more = rows, [], 0.5 * options.get("training", False)
            made.append((options, self.asked))

        def __getitem__(self, index):
            self.asked.append(index)
            return None if self.rows[index] is None else self.rows[index] + self.more

    replace(monkeypatch, FrameDataset=Frames, check_alignment=lambda batch, processor: batch[0] / 255)
    arguments = TrainArguments.from_dict({"seed": 5, "data": data})
    check = make_check(
        num_frames,
        arguments=arguments,
        _rows={split: rows},
        processor=SimpleNamespace(collate=lambda samples: samples),
    )
    return check._alignment(split), check, made


def test_frames_all_over_a_split_are_aligned_as_they_are_and_augmented(monkeypatch):
    rows = [0.0, 9.0, 9.0, 2.0, 9.0, 9.0, 1.0]
    text, check, ((plain, asked), (augmented, again)) = alignment_of(monkeypatch, rows, "train")
    assert text == "3 frames, at most 2.00/255, 2.50/255 augmented" and asked == again == [0, 3, 6]
    assert plain == {"skip_broken": False} and check._samples == [0.5, 2.5, 1.5]
    assert augmented["augmentation"] is not None and augmented["training"] and augmented["seed"] == 5
    text, check, made = alignment_of(monkeypatch, rows[:2], "val", num_frames=8)
    assert text == "2 frames, at most 9.00/255" and made == [({"skip_broken": False}, [0, 1])] and not check._samples


def test_alignment_passes_over_broken_frames_where_the_recipe_does(monkeypatch):
    text, check, made = alignment_of(
        monkeypatch, [None, 9.0, 2.0, 9.0, None], "train", skip_broken_rows=True, augment=False
    )
    assert text == "3 frames, 2 of them broken and skipped, at most 2.00/255, 2.50/255 augmented"
    assert [options["skip_broken"] for options, _ in made] == [True, True] and made[1][0]["augmentation"] is None
    assert check._samples == [2.5]
    with pytest.raises(ValueError, match="all 3 frames that were looked at are broken"):
        alignment_of(monkeypatch, [None] * 3, "val")


class Network(nn.Module):
    """Two weights and a statistic; the loss is the sum of what it is given."""

    def __init__(self):
        super().__init__()
        self.weight, self.other = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))
        self.frozen = nn.Linear(1, 1).requires_grad_(False)
        self.scale, self.value, self.seen = 1.0, 0.0, []

    def forward(self, values):
        mode = (self.training, self.frozen.training)
        autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        self.seen.append((values, mode, autocast))
        loss = self.weight * sum(values) * self.scale
        loss = loss if self.other is None else loss + 0 * self.other
        return SimpleNamespace(loss=loss, loss_dict={"loss_a": loss, "loss_b": torch.tensor(self.value)})


@pytest.fixture
def step(monkeypatch):
    """Factory: a trial step of a network and samples of these values."""
    monkeypatch.setattr(environment_check, "slow_training_warning", lambda: "slow here")

    def make(network, *values, precision="no", **fields):
        clock = iter([10.0, 12.5])
        monkeypatch.setattr(environment_check.time, "perf_counter", lambda: next(clock))
        samples = [{"values": value, "instance": None if value is None else 1} for value in values]

        def collate(samples):
            return {"values": [sample["values"] for sample in samples], "frame_ids": ["a"] * len(samples)}

        arguments = TrainArguments.from_dict({"training": {"mixed_precision": precision, "batch_size": 7}})
        processor = SimpleNamespace(collate=collate)
        return make_check(model=network, processor=processor, arguments=arguments, _samples=samples)._step()

    return make


@pytest.mark.parametrize(
    ("precision", "autocast", "told"), [("no", None, ""), ("bf16", torch.bfloat16, "; slow here")]
)
def test_a_step_of_two_frames_on_a_cpu(step, precision, autocast, told):
    """Those with labels, in the recipe's precision, as in training."""
    network = Network()
    text = step(network, None, 2.0, None, 3.0, 4.0, precision=precision)
    assert text == f"loss 5.000, gradients finite; 2 frames in 2.5 s on cpu{told}"
    assert network.seen == [([2.0, 3.0], (True, False), autocast)]
    step(network, 7.0)
    assert network.seen[1][0] == [7.0, 7.0]
    with pytest.raises(ValueError, match="none of the training frames looked at has instance labels"):
        step(network, None, None)


def test_a_step_names_what_is_silent_and_what_is_not_finite(step):
    network = Network()
    network.value = float("inf")
    network.scale = float("nan")
    with pytest.raises(ValueError, match="^not finite: loss_a, loss_b, weight$"):
        step(network, 2.0)
    network = Network()
    network.silent = nn.Parameter(torch.ones(()))
    with pytest.raises(ValueError, match="^no gradient reaches silent$"):
        step(network, 2.0)
