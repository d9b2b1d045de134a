"""Weights in parts, of one process alone or of processes that stand-ins play."""

import copy
from types import SimpleNamespace

import pytest
import torch
from node_run import IN_PARTS
from torch import nn
from training_standin import recipe

from bifusion_hf.training import sharding
from bifusion_hf.training.sharding import (
    Sharding,
    average_unsharded_gradients,
    check_launcher,
    has_parts,
    keep_whole_states,
    kept_gathered,
    load_whole_state,
    part,
    read_sharding,
    shard_network,
    whole,
    whole_norms,
    whole_state,
    wrap_network,
)


@pytest.mark.parametrize(
    ("launcher", "expected"),
    [
        ({}, Sharding(("Linear",), True)),
        ({"FSDP_RESHARD_AFTER_FORWARD": "false"}, Sharding(("Linear",), False)),
        ({"FSDP_RESHARD_AFTER_FORWARD": None}, Sharding(("Linear",), True)),
        ({"FSDP_TRANSFORMER_CLS_TO_WRAP": "A, B ,,"}, Sharding(("A", "B"), True)),
        ({"FSDP_TRANSFORMER_CLS_TO_WRAP": None}, Sharding((), True)),
        ({"FSDP_AUTO_WRAP_POLICY": "transformer_based_wrap"}, Sharding(("Linear",), True)),
        # Names without the policy that asks for them.
        ({"FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}, Sharding((), True)),
        ({"FSDP_AUTO_WRAP_POLICY": None}, Sharding((), True)),
    ],
)
def test_what_the_launcher_says_of_parts(monkeypatch, launcher, expected):
    for name, value in {**IN_PARTS, **launcher}.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    assert read_sharding(recipe("unused"), 2) == expected
    assert Sharding() == Sharding((), True)


def test_a_version_that_is_not_said_is_the_old_one(monkeypatch):
    for name, value in IN_PARTS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("FSDP_VERSION")
    with pytest.raises(ValueError, match="fsdp_version 1, whose flat parameters"):
        read_sharding(recipe("unused"), 2)


def test_a_launcher_that_asks_for_nothing_is_fine(monkeypatch):
    """It says so in capitals."""
    check_launcher()
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "false")
    check_launcher()


class Gathered(nn.Linear):
    """As a module that `fully_shard` has changed."""

    def __init__(self, *layers):
        super().__init__(1, 1)
        self.layers, self.told = nn.ModuleList(layers), {}

    def unshard(self):
        raise AssertionError

    def set_reshard_after_forward(self, value, recurse=True):
        self.told["forward"] = (value, recurse)

    def set_reshard_after_backward(self, value, recurse=True):
        self.told["backward"] = (value, recurse)


@pytest.mark.parametrize("freed", [True, False])
def test_parts_stay_gathered_between_two_backward_passes(freed):
    inner = Gathered()
    network = Gathered(inner, nn.Linear(1, 1))
    with pytest.raises(RuntimeError, match="out of memory"), kept_gathered(network, Sharding((), freed)):
        assert network.told == inner.told == {"forward": (False, False), "backward": (False, False)}
        raise RuntimeError("out of memory")
    assert inner.told == {"forward": (freed, False), "backward": (True, False)}
    assert network.told == {"forward": (False, False), "backward": (True, False)}
    network.told.clear()
    with kept_gathered(network, None):
        assert not network.told


def test_a_network_in_parts_is_wrapped_for_autocast_alone():
    accelerator = SimpleNamespace(prepare_model=lambda network, **options: (network, options))
    assert wrap_network("network", accelerator, None) == ("network", {})
    expected = {"device_placement": False, "evaluation_mode": True}
    assert wrap_network("network", accelerator, Sharding()) == ("network", expected)


class InParts(SimpleNamespace):
    """As a tensor of which each of two processes has a half."""

    def full_tensor(self):
        return self.both

    def to_local(self):
        return self.mine


def test_gradients_that_have_no_parts_are_averaged(monkeypatch):
    matrix, vector, silent = (nn.Parameter(torch.zeros(shape)) for shape in ((2, 2), (3,), (1,)))
    matrix.grad, vector.grad = torch.arange(4.0).view(2, 2), torch.tensor([5.0, 6.0, 8.0])
    in_parts = InParts(grad=torch.ones(2), both=None, mine=None)
    asked = []

    def reduce(values, how):
        asked.append((values.tolist(), how))
        return values + 1

    average_unsharded_gradients([matrix, in_parts, silent, vector], SimpleNamespace(reduce=reduce))
    assert asked == [([0, 1, 2, 3, 5, 6, 8], "mean")]
    assert matrix.grad.tolist() == [[1, 2], [3, 4]] and vector.grad.tolist() == [6, 7, 9]
    assert in_parts.grad.tolist() == [1, 1] and silent.grad is None
    average_unsharded_gradients([silent, in_parts], SimpleNamespace())


def test_norms_are_those_of_whole_tensors(monkeypatch):
    """In single precision, whatever the tensors' own; of parts the squares of all processes are added."""
    tensors = [torch.tensor([3.0, 4.0], dtype=torch.float64), torch.tensor([5.0, 12.0]), torch.tensor([8.0])]
    norms = whole_norms(tensors, tensors)
    assert norms.dtype == torch.float32 and norms.tolist() == [5, 13, 8]
    other = torch.tensor([144.0, 1000.0, 36.0], dtype=torch.float64)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda squares: squares.add_(other))
    halves = InParts(both=None, mine=None)
    norms = whole_norms(tensors, [halves, tensors[1], halves])
    assert norms.dtype == torch.float32 and norms.tolist() == [13, 13, 10]
    # The squares of large ones are beyond single precision.
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda squares: None)
    assert whole_norms([torch.tensor([1e30])], [halves]).tolist() == [pytest.approx(1e30)]


def test_of_what_lies_in_parts_each_process_has_its_own():
    halves, tensor = InParts(both="both", mine="mine"), torch.ones(1)
    assert has_parts(halves) and not has_parts(tensor)
    assert (whole(halves), part(halves)) == ("both", "mine")
    assert whole(tensor) is tensor and part(tensor) is tensor


@pytest.fixture(scope="module")
def alone():
    """The accelerator of a process group of one process, of which Accelerate's own state knows nothing."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "broadcast", lambda tensor: tensor)
        yield SimpleNamespace(device=torch.device("cpu"), num_processes=1)
    torch.distributed.destroy_process_group()


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.last = nn.Linear(4, 2)
        self.scale, self.nothing = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.zeros(0))

    def forward(self, inputs):
        return self.last(self.first(inputs)) * self.scale


def in_parts(alone, seed=0, classes=("Linear",)):
    torch.manual_seed(seed)
    network = Network()
    shard_network(network, Sharding(classes, True), alone)
    return network


def test_parameters_have_parts_but_for_the_smallest(alone, monkeypatch):
    """All begin as the first process has them, statistics too."""
    sent = []
    monkeypatch.setattr(sharding, "broadcast", lambda tensor: sent.append(tensor.shape) or tensor + 1)
    network = in_parts(alone)
    torch.manual_seed(0)
    expected = {name: value + 1 for name, value in Network().state_dict().items()}
    assert len(sent) == len(expected)
    parts = {name for name, parameter in network.named_parameters() if has_parts(parameter)}
    assert parts == {name for name, _ in Network().named_parameters()} - {"scale", "nothing"}
    assert not any(map(has_parts, network.buffers()))
    found = whole_state(network)
    assert not any(map(has_parts, found.values()))
    assert all(torch.equal(value, expected[name]) for name, value in found.items()) and found.keys() == expected.keys()
    gathered = {name for name, module in network.named_modules() if hasattr(module, "unshard")}
    assert gathered == {"", "first.0", "last"}


@pytest.mark.parametrize(
    ("output", "hidden"),
    [
        (torch.ones(1), None),
        (None, None),
        ((torch.ones(1), None), None),
        ([torch.ones(1), 3], "int"),
        ({"a": torch.ones(1)}, None),
        ({"a": torch.ones(1), "b": SimpleNamespace(), "c": 3}, "SimpleNamespace, int"),
        ("text", "str"),
    ],
)
def test_a_module_that_hides_its_tensors_is_not_gathered_by_itself(alone, output, hidden):
    class Layer(nn.Linear):
        def forward(self, inputs):
            return output

    network = nn.Sequential(Layer(1, 1))
    shard_network(network, Sharding(("Layer",)), alone)
    if hidden is None:
        network(torch.ones(1))
        return
    with pytest.raises(ValueError, match=f"names Layer, which returns {hidden}; only a module that returns tensors"):
        network(torch.ones(1))


def test_weights_and_moments_go_in_and_out_as_wholes(alone, monkeypatch):
    """A run in parts takes over what a whole one has left, and leaves the same."""
    distribute, senders = torch.distributed.tensor.distribute_tensor, set()

    def watch(*given, src_data_rank=0):
        senders.add(src_data_rank)
        return distribute(*given, src_data_rank=src_data_rank)

    monkeypatch.setattr(torch.distributed.tensor, "distribute_tensor", watch)

    def updates(network, optimizer, count=1):
        for _ in range(count):
            optimizer.zero_grad()
            network(torch.arange(6.0).view(2, 3).cos()).square().sum().backward()
            optimizer.step()

    def adam(network):
        return torch.optim.AdamW(network.parameters(), lr=0.1)

    torch.manual_seed(3)
    plain = Network()
    optimizer = adam(plain)
    updates(plain, optimizer, 2)
    parts = in_parts(alone)
    load_whole_state(parts, whole_state(plain))
    own = adam(parts)
    keep_whole_states(own)
    own.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    # Every process has read the whole, and nobody sends it.
    assert senders == {None}
    weight = parts.last.weight
    assert has_parts(own.state[weight]["exp_avg"]) and not has_parts(own.state[parts.scale]["exp_avg"])
    updates(plain, optimizer)
    updates(parts, own)
    for name, value in whole_state(parts).items():
        torch.testing.assert_close(value, plain.state_dict()[name])
    first, second = optimizer.state_dict(), own.state_dict()
    assert first["param_groups"] == second["param_groups"] and first["state"].keys() == second["state"].keys()
    for number, values in first["state"].items():
        for name, value in values.items():
            assert not has_parts(second["state"][number][name])
            torch.testing.assert_close(second["state"][number][name], value)
