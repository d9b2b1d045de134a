"""Checkpoints of other projects in all the wrappings that they come in."""

import json
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bifusion_hf.io.checkpoint_files import read_state_dict, resolve_file
from bifusion_hf.io.files import DataFileError


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.visual = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4))
        self.scale = nn.Parameter(torch.rand(()))
        self.strided = nn.Parameter(torch.rand(3, 5).half().t())
        self.size = 7

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.visual(image) * self.scale


@pytest.fixture
def state():
    return {name: value.clone() for name, value in Network().state_dict().items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(
        torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in expected.items()
    )


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: name.replace("visual.", "visual._orig_mod."),
    ],
)
def test_names_are_those_of_the_bare_network(tmp_path, state, wrap):
    wrapped = {wrap(name): value for name, value in state.items()}
    torch.save({"state_dict": wrapped}, tmp_path / "a.pth")
    save_file({name: value.contiguous() for name, value in wrapped.items()}, tmp_path / "a.safetensors")
    assert_same(read_state_dict(tmp_path / "a.pth"), state)
    assert_same(read_state_dict(tmp_path / "a.safetensors"), state)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_are_put_together(tmp_path, state, kind):
    names = list(state)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.{kind}"
        tensors = {name: state[name].contiguous() for name in part}
        save_file(tensors, tmp_path / file) if kind == "safetensors" else torch.save(tensors, tmp_path / file)
        index.update(dict.fromkeys(part, file))
    path = tmp_path / f"model.{kind}.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert resolve_file(tmp_path) == path
    assert_same(read_state_dict(path), state)
    path.write_text(json.dumps({"weight_map": {"a": "../model.bin"}}))
    with pytest.raises(DataFileError, match="names the file"):
        read_state_dict(path)
    path.write_text("{}")
    with pytest.raises(DataFileError, match="has no weight_map"):
        read_state_dict(path)


def test_a_torchscript_file_is_read_and_not_run(tmp_path, state, monkeypatch):
    path = tmp_path / "ViT-B-16.pt"
    torch.jit.script(Network()).save(str(path))

    def refuse(*_arguments, **_options):
        raise AssertionError("the archive was run")

    monkeypatch.setattr(torch.jit, "load", refuse)
    assert_same(read_state_dict(path), state)


def test_a_torchscript_file_that_is_damaged_or_holds_more_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    torch.jit.script(Network()).save(str(path))
    for name, change in (
        ("data.pkl", lambda data: data[: len(data) // 2]),
        ("data.pkl", lambda data: b"cposix\nsystem\n(S'true'\ntR."),
        ("data/0", lambda data: data[:2]),
    ):
        other = tmp_path / "b.pt"
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
            for item in old.namelist():
                data = old.read(item)
                new.writestr(item, change(data) if item.partition("/")[2] == name else data)
        with pytest.raises(DataFileError, match="b.pt: is no readable TorchScript file"):
            read_state_dict(other)
    shutil.copy(path, tmp_path / "c.pt")
    (tmp_path / "c.pt").write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataFileError, match="c.pt: is no readable checkpoint"):
        read_state_dict(tmp_path / "c.pt")
