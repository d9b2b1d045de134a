import contextlib
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from training_standin import make_trainer, recipe

from bifusion_hf.training.audit import (
    Exemption,
    LivenessAudit,
    LivenessError,
    alpha_statistics,
    gradient_norm,
    nearest_parameters,
    probe_loss,
    probe_terms,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.used = nn.Linear(2, 2)
        self.unused = nn.Linear(2, 2)
        self.gate = nn.Linear(2, 1)


def step(net, audit, update, *, gate=False, **kwargs):
    net.zero_grad()
    value = net.used(torch.randn(4, 2))
    loss = (value * torch.sigmoid(net.gate(value))).sum() if gate else value.sum()
    loss.backward()
    audit.observe(update, **kwargs)


def test_a_dead_module_stops_the_run_after_the_window():
    net = Net()
    audit = LivenessAudit(net, window=5)
    for update in range(1, 5):
        step(net, audit, update, gate=True)
    with pytest.raises(LivenessError, match=r"2 trainable tensors: unused.weight, unused.bias"):
        step(net, audit, 5, gate=True)


def test_frozen_exempt_and_warming_up_tensors_do_not_stop_it():
    net = Net()
    net.unused.requires_grad_(False)
    audit = LivenessAudit(net, window=5, warmup_updates=8)
    for update in range(1, 13):
        step(net, audit, update)
    # The gate's window begins after its warm-up.
    with pytest.raises(LivenessError, match="gate.weight"):
        for update in range(13, 30):
            step(net, audit, update)
    audit = LivenessAudit(net, window=5, exempt=["^gate"])
    for update in range(1, 30):
        step(net, audit, update)
    assert "exempt by training.audit_exempt" in audit.table()


@pytest.mark.parametrize(("until", "first"), [(None, 1), ("update 1", 2), ("warmup", 4)])
def test_an_exemption_ends_when_it_says(until, first):
    net = Net()
    exemptions = [Exemption("unused", "waits", until=until)] if until else []
    audit = LivenessAudit(net, window=1, warmup_updates=3, exemptions=exemptions)
    for update in range(1, first):
        step(net, audit, update, gate=True)
    with pytest.raises(LivenessError, match=f"update {first}: no gradient in 1 updates for 2 .*unused"):
        step(net, audit, first, gate=True)


def test_updates_without_visible_points_do_not_count_for_the_image_side():
    net = nn.ModuleDict({"encoder": nn.ModuleDict({"image_encoder": nn.Linear(2, 2)}), "other": nn.Linear(2, 2)})
    audit = LivenessAudit(net, window=4)
    for update in range(2, 30):
        net.zero_grad()
        net["other"](torch.ones(1, 2)).sum().backward()
        audit.observe(update, {"visible_points": 0})
    with pytest.raises(LivenessError, match="encoder.image_encoder.weight"):
        for update in range(30, 60):
            audit.observe(update, {"visible_points": 3})


def test_heads_without_a_labelled_element_do_not_count():
    decoder = nn.ModuleDict({"semantic_head": nn.Linear(2, 2), "point_mask_proj": nn.Linear(2, 2)})
    net = nn.ModuleDict({"decoder": decoder, "other": nn.Linear(2, 2)})
    audit = LivenessAudit(net, window=4)
    net["other"](torch.ones(1, 2)).sum().backward()
    for update in range(2, 30):
        audit.observe(update, {"loss_sem": 0, "loss_mask": 0})
    with pytest.raises(LivenessError, match=r"tensors: decoder.semantic_head.weight, decoder.semantic_head.bias\."):
        for update in range(30, 60):
            audit.observe(update, {"loss_sem": 2, "loss_mask": 0})


def test_one_living_update_in_the_window_is_enough():
    net = Net()
    net.unused.requires_grad_(False)
    audit = LivenessAudit(net, window=5)
    for update in range(1, 40):
        step(net, audit, update, gate=update % 4 == 0)


def test_a_detached_loss_stops_the_run_and_an_absent_one_does_not():
    audit = LivenessAudit(Net(), window=10)
    probes = 0
    for _ in range(30):
        assert audit.wants_probe({"loss_absent": 0, "points": 5}) == []
    with pytest.raises(LivenessError, match="loss_dead had no gradient in"):
        for update in range(1, 30):
            for name in audit.wants_probe({"loss_dead": 3, "loss_live": 3}):
                probes += 1
                audit.record_probe(update, name, 0.0 if name == "loss_dead" else 1.0)
    assert 10 <= update <= 12 and probes < 12


def test_gradient_norms_of_losses():
    net = Net()
    value = net.used(torch.randn(4, 2))
    loss, detached, constant = value.sum(), value.sum().detach(), torch.tensor(1.0, requires_grad=True)
    found = probe_loss(loss)
    assert probe_loss(detached) == probe_loss(constant) == 0
    loss.backward()
    expected = torch.stack([parameter.grad.norm() for parameter in net.used.parameters()]).norm()
    assert found == pytest.approx(float(expected))
    assert gradient_norm(detached, [net.used.weight]) == 0
    apart = torch.ones(2, requires_grad=True)
    loss = net.used(torch.ones(1, 2)).sum()
    assert gradient_norm(loss, [apart]) == gradient_norm(loss, []) == 0
    assert gradient_norm(loss, [apart, net.used.bias]) == pytest.approx(math.sqrt(2))
    assert type(gradient_norm(loss, [apart, net.used.bias])) is float
    # Beyond what half precision holds.
    half = torch.zeros(4, dtype=torch.half, requires_grad=True)
    assert gradient_norm((half.float() * 4e4).sum(), [half]) == 8e4


def test_a_loss_lives_where_only_distant_parameters_have_a_gradient():
    """A zero behind the last layer stops nothing that has another way past it."""
    layers = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    last = nn.LayerNorm(2)
    hidden = layers(torch.ones(1, 2))
    loss = (0 * last(hidden)).sum() + hidden.sin().sin().sin().sin().sum()
    assert {id(p) for p in nearest_parameters(loss, 2)} == {id(p) for p in last.parameters()}
    assert gradient_norm(loss, list(last.parameters())) == 0
    assert probe_loss(loss) > 0
    assert probe_loss((0 * last(hidden)).sum()) == 0


def test_nearest_parameters_stay_near():
    layers = nn.Sequential(*(nn.Linear(2, 2) for _ in range(30)))
    found = nearest_parameters(layers(torch.ones(1, 2)).sum(), limit=4)
    last = {id(parameter) for layer in layers[-3:] for parameter in layer.parameters()}
    assert len(found) == 4 and all(id(parameter) in last for parameter in found)
    # One that is used twice is one.
    weight = nn.Parameter(torch.ones(2))
    assert [id(parameter) for parameter in nearest_parameters((weight * weight + weight).sum(), 3)] == [id(weight)]


def test_alpha_is_measured_on_visible_points():
    class Outputs:
        fusion_weights = torch.tensor([[[0.2], [0.6], [0.0]]])

    batch = {"point_visible": torch.tensor([[True, True, False]]), "point_mask": torch.ones(1, 3, dtype=torch.bool)}
    mean, spread = alpha_statistics(Outputs, batch)
    assert mean == pytest.approx(0.4) and spread == pytest.approx(0.2)
    # Of real points alone, and in single precision.
    Outputs.fusion_weights = torch.tensor([[[1.0], [1.0078125], [0.0]]], dtype=torch.bfloat16)
    batch = {"point_visible": torch.ones(1, 3, dtype=torch.bool), "point_mask": torch.tensor([[True, True, False]])}
    assert alpha_statistics(Outputs, batch) == (1.00390625, 0.00390625)
    assert alpha_statistics(Outputs, {"point_visible": None}) is None
    assert alpha_statistics(Outputs, {**batch, "point_mask": torch.zeros(1, 3, dtype=torch.bool)}) is None
    for outputs in (SimpleNamespace(), SimpleNamespace(fusion_weights=None)):
        assert alpha_statistics(outputs, batch) is None


def test_table_names_state_gradient_and_reason():
    net = Net()
    net.unused.requires_grad_(False)
    audit = LivenessAudit(net, warmup_updates=3, exemptions=[Exemption("gate", "held", until="warmup")])
    step(net, audit, 1)
    audit.before_step()
    with torch.no_grad():
        net.used.weight.mul_(1.1)
    audit.after_step()
    audit.wants_probe({"loss_a": 1})
    audit.record_values({"loss_a": 1.25, "alpha_mean": 0.5, "alpha_std": 0.1})
    audit.record_probe(1, "loss_a", 2.0)
    audit.record_alignment([0.01])
    lines = {line.split()[0]: line for line in audit.table().splitlines()}
    assert "trainable" in lines["used"] and "frozen" in lines["unused"]
    assert "2 without gradient: held (warmup)" in lines["gate"]
    assert "value 1.2500  gradient 2.00e+00" in lines["loss_a"]
    assert "mean 0.500, spread 0.100" in lines["alpha"] and "2.55/255" in lines["colour"]


def test_the_loop_stops_for_a_detached_loss(tmp_path):
    arguments = recipe(tmp_path, training={"epochs": 20, "audit_window": 10})
    # The detached term leaves the class head without gradient too; the loss itself is to be named here.
    arguments.training.audit_exempt = ["classes"]
    trainer = make_trainer(arguments, config={"detach": "loss_class"})
    with pytest.raises(LivenessError, match="the loss loss_class had no gradient"):
        trainer.train()
    assert trainer.update < 15


@pytest.mark.parametrize("clip_samples", [0, 4])
def test_a_projection_that_feeds_a_held_gate_alone_is_no_alarm(clip_samples):
    """A residual network without the CLIP loss: its projection of the points waits for the gate."""
    model = torch.nn.ModuleDict({"encoder": torch.nn.ModuleDict({"point_projection": torch.nn.Linear(2, 2)})})
    model["other"] = torch.nn.Linear(2, 2)
    audit = LivenessAudit(model, window=3, warmup_updates=10)
    with contextlib.nullcontext() if clip_samples == 0 else pytest.raises(LivenessError, match="point_projection"):
        for update in range(1, 7):
            model.zero_grad()
            model["other"](torch.ones(1, 2)).sum().backward()
            audit.observe(update, {"loss_clip": clip_samples, "visible_points": 5})


@pytest.mark.parametrize("scale", [None, 2.0**16])
def test_of_all_processes_the_one_with_the_largest_gradient_speaks_for_a_term(scale):
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    terms = {"here": (weight * weight).sum() / 2, "elsewhere": 0 * weight.sum(), "nowhere": 0 * weight.sum()}
    # What nothing in a batch asks for tells nothing, whatever its value.
    terms["uncounted"] = weight.sum()
    # Norms and evidence of another process.
    other = torch.tensor([[[1.0, 7.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]])
    accelerator = SimpleNamespace(
        scaler=scale and SimpleNamespace(get_scale=lambda: scale),
        device="cpu",
        gather=lambda found: torch.cat([found, other]),
    )
    found = probe_terms(terms, {"here": 2, "elsewhere": 0, "nowhere": 3, "uncounted": 0}, accelerator)
    assert found == {"here": pytest.approx(5.0), "elsewhere": 7.0}


def audit_of(window=1, warmup_updates=0, **gradients):
    """An audit of tensors by name, of these sizes of gradients; None for a frozen one."""
    named = {}
    for name, size in gradients.items():
        parameter = nn.Parameter(torch.ones(4), requires_grad=size is not None)
        parameter.grad = None if size is None else torch.tensor([size, 0.0, 0.0, 0.0])
        named[name] = parameter
    model = SimpleNamespace(named_parameters=named.items)
    return LivenessAudit(model, window=window, warmup_updates=warmup_updates), named


# A tensor, and (update, counts) at which it may be without gradient, and at which it may not; warm-up is three long.
NOTHING = {"visible_points": 0, "loss_mask": 0, "loss_box": 0, "loss_merge": 0, "loss_sem": 0, "loss_image_sem": 0}
MAY_BE_SILENT = {
    "decoder.layers.0.k_proj.bias": ([(5, {})], []),
    "decoder.layers.0.k_proj.weight": ([], [(1, NOTHING), (5, {})]),
    "encoder.gate.0.weight": ([(1, {}), (3, {})], [(4, {}), (5, NOTHING)]),
    "encoder.point_projection.weight": (
        [(3, {"loss_clip": 0})],
        [(3, {"loss_clip": 1}), (3, {}), (4, {"loss_clip": 0})],
    ),
    "encoder.point_projection_norm.weight": ([(5, {"visible_points": 0})], [(5, {"visible_points": 1}), (5, {})]),
    "encoder.image_encoder.projection.weight": ([(1, {}), (5, NOTHING)], [(2, {}), (2, {"visible_points": 1})]),
    "point_encoder.frame_adapters.1.weight": ([(1, {})], [(2, NOTHING)]),
    "encoder.tiny_sa_3d.weight": ([(1, {})], [(2, NOTHING)]),
    **{
        name: ([(5, {needs: 0})], [(5, {**NOTHING, needs: 1}), (5, {}), (1, {needs: 1})])
        for name, needs in {
            "decoder.point_mask_proj.weight": "loss_mask",
            "decoder.mask_proj.weight": "loss_mask",
            "decoder.box_head.weight": "loss_box",
            "merge_head.weight": "loss_merge",
            "decoder.semantic_head.weight": "loss_sem",
            "image_classifier.weight": "loss_image_sem",
        }.items()
    },
}


@pytest.mark.parametrize("name", MAY_BE_SILENT)
def test_what_may_be_without_gradient_and_when(name):
    silent, alarmed = MAY_BE_SILENT[name]
    for update, counts in silent:
        audit_of(warmup_updates=3, **{name: 0.0, "other": 1.0})[0].observe(update, counts)
    for update, counts in alarmed:
        with pytest.raises(LivenessError, match=rf"update {update}: no gradient in 1 updates for 1 .*: {name}\."):
            audit_of(warmup_updates=3, **{name: 0.0, "other": 1.0})[0].observe(update, counts)


@pytest.mark.parametrize(("size", "is_dead"), [(2e-7, False), (5e-8, True)])
def test_noise_of_rounding_is_no_gradient(size, is_dead):
    audit, _ = audit_of(quiet=size, loud=-1e3)
    with pytest.raises(LivenessError, match=": quiet") if is_dead else contextlib.nullcontext():
        audit.observe(1)


def test_an_update_without_any_gradient_tells_nothing():
    audit, named = audit_of(window=2, one=0.0, two=0.0)
    for update in range(1, 9):
        audit.observe(update)
    named["one"].grad.fill_(1.0)
    audit.observe(9)
    with pytest.raises(LivenessError, match="update 10: .* for 1 trainable tensors: two"):
        audit.observe(10)


@pytest.mark.parametrize(("count", "more"), [(10, ""), (11, " and 1 more"), (13, " and 3 more")])
def test_ten_names_are_enough(count, more):
    audit, _ = audit_of(alive=1.0, **{f"dead_{index}": 0.0 for index in range(count)})
    with pytest.raises(
        LivenessError, match=rf"for {count} trainable tensors: dead_0, .*, dead_9{more}\. Nothing that"
    ):
        audit.observe(1)


@pytest.mark.parametrize(("alive", "stopped"), [(1, 12), (5, 16)])
def test_updates_that_count_need_not_follow_one_another(alive, stopped):
    """Of every second one a window is twice as long, and one gradient in it is enough."""
    audit, named = audit_of(window=4, **{"merge_head.weight": 0.0, "other": 1.0})
    head = named["merge_head.weight"]
    with pytest.raises(LivenessError, match=f"update {stopped}:"):
        for update in range(1, 30):
            # What was counted up to the next look after it was alive counts no more.
            head.grad.fill_(float(update == alive))
            audit.observe(update, {"loss_merge": update % 2})


@pytest.mark.parametrize(("window", "probes", "update"), [(3, 5, 5), (5, 5, 5), (10, 6, 11), (20, 6, 21)])
def test_a_dead_term_is_probed_five_times_at_least(window, probes, update):
    audit = LivenessAudit(Net(), window=window)
    made = []
    expected = (
        f"update {update}: the loss loss_a had no gradient in {probes} probes over {update} updates that held .*1.25"
    )
    with pytest.raises(LivenessError, match=expected):
        for number in range(1, 40):
            # What nothing in an update asks for, and what is no loss, is not probed.
            assert audit.wants_probe({"loss_b": 0, "points": 3}) == []
            for name in audit.wants_probe({"loss_a": 2}):
                made.append(number)
                audit.record_values({"loss_a": 1.25, "grad_norm": 3.0})
                audit.record_probe(number, name, 0.0)
    assert len(made) == probes


@pytest.mark.parametrize("norm", [2.0, math.nan])
def test_a_living_term_is_probed_once_a_window(norm):
    """One gradient makes up for all that was missed before it; a number that is none is no proof of death."""
    audit, made = LivenessAudit(Net(), window=4), []
    norms = iter([0.0, 0.0, 0.0, norm, 0.0, 0.0, norm, norm])
    for update in range(1, 16):
        for name in audit.wants_probe({"loss_a": 1}):
            made.append(update)
            audit.record_probe(update, name, next(norms))
    assert made == [1, 2, 3, 4, 8, 9, 10, 14]


def test_the_table_to_the_letter():
    names = {"a.b.c.d.e.weight": 3.0, "a.b.c.d.bias": 4.0, "scale": 0.0, "part.weight": 1e-12, "part.bias": None}
    audit, named = audit_of(window=9, **names, **{"k.k_proj.bias": 0.0, "k.k_proj.weight": 0.0, "f.weight": None})
    head, *rows = audit.table().splitlines()
    assert head == "module    parameters  state       gradient    update  note"
    assert rows[0] == "a.b.c.d            8  trainable   0.00e+00         -  2 without gradient: NO GRADIENT"
    audit.observe(1)
    with torch.no_grad():
        named["scale"].zero_(), named["part.weight"].zero_(), named["part.bias"].zero_()
        audit.before_step()
        named["a.b.c.d.bias"].add_(torch.tensor([0.0, 0.6, 0.8, 0.0]))
        named["scale"].add_(1.0)
        audit.after_step()
    audit.record_alignment([])
    *_, last = audit.table().splitlines()
    assert last.startswith("f ")
    audit.record_alignment([0.01, 0.02])
    audit.record_alignment([0.005])
    audit.wants_probe({"loss_a": 1, "loss_b": 1})
    audit.record_probe(7, "loss_a", 0.5)
    audit.record_values({"loss_b": 2.0, "alpha_mean": 0.25, "alpha_std": 0.125})
    audit.record_values({"loss_b": 3.0})
    assert audit.table().splitlines() == [
        head,
        # A length of 1 beside two of 2.
        "a.b.c.d            8  trainable   5.00e+00   3.5e-01",
        "scale              4  trainable   0.00e+00    from 0  1 without gradient: NO GRADIENT",
        "part               8  part        1.00e-12         0  1 without gradient: NO GRADIENT",
        "k.k_proj           8  trainable   0.00e+00   0.0e+00  1 without gradient: softmax does not change when one "
        "constant is added to all keys; 1 without gradient: NO GRADIENT",
        "f                  4  frozen      0.00e+00   0.0e+00",
        "loss_a    value -  gradient 5.00e-01 in update 7",
        "loss_b    value 3.0000  gradient -",
        "alpha on visible points: mean 0.250, spread 0.125",
        "colour of points against their pixels: at most 5.10/255",
    ]


def test_a_tensor_without_elements_is_left_out():
    model = SimpleNamespace(
        named_parameters={"none": nn.Parameter(torch.zeros(0)), "some": nn.Parameter(torch.ones(1))}.items
    )
    audit = LivenessAudit(model)
    assert audit.names == ["some"] and (audit.window, audit.warmup_updates) == (50, 0)
