"""A revision reaches the Hub wherever one can be named; what asks the Hub is replaced by what writes that down."""

import datasets
import pytest
import transformers

from bifusion_hf import BiFusionForInstanceSegmentation, BiFusionProcessor
from bifusion_hf.data.frames import load_frames
from bifusion_hf.hub.pretrained import load_pretrained
from bifusion_hf.recipe.arguments import ModelArguments
from bifusion_hf.superpoints import masks
from bifusion_hf.training import run
from bifusion_hf.weights import clip, sv3d, vision


DINO = {
    "model_type": "dinov2",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "mlp_ratio": 2,
}


class Asked(Exception):
    """Nothing comes back: what was asked for is all that counts."""


@pytest.fixture
def asked(monkeypatch):
    """Requests (name, revision), by who makes them."""
    requests = {}

    def record(who, fails=True, place=None):
        def request(*args, revision=None, **options):
            name, *rest = (args[1:] if isinstance(args[0], type) else args) or (options.get("model"),)
            requests[who] = (name, rest[place] if place is not None and len(rest) > place else revision)
            if fails:
                raise Asked
            return (None, {"missing_keys": set()}) if options.get("output_loading_info") else None

        return request

    monkeypatch.setattr(BiFusionForInstanceSegmentation, "from_pretrained", classmethod(record("model", fails=False)))
    monkeypatch.setattr(BiFusionProcessor, "from_pretrained", classmethod(record("processor")))
    monkeypatch.setattr(transformers.Dinov2Model, "from_pretrained", classmethod(record("tower")))
    monkeypatch.setattr(datasets, "load_dataset", record("frames"))
    monkeypatch.setattr(clip, "resolve_file", record("clip", place=1))
    monkeypatch.setattr(sv3d, "resolve_file", record("sv3d", place=1))
    monkeypatch.setattr(vision, "verify_pulled_weights", record("checksum", fails=False, place=0))
    return requests


@pytest.fixture(scope="module")
def dino(small_config):
    return BiFusionForInstanceSegmentation(small_config("residual", vision_config=DINO))


def ask(function, *args, **options):
    with pytest.raises(Asked):
        function(*args, **options)


def test_of_a_checkpoint(asked):
    ask(load_pretrained, "org/m@v1")
    assert asked == {"model": ("org/m", "v1"), "processor": ("org/m", "v1")}


def test_of_a_recipes_checkpoint(asked, small_config):
    arguments = ModelArguments(pretrained="org/m@v1")
    with pytest.raises(AttributeError):
        run.build_model(arguments, 0)
    ask(run.build_processor, arguments, small_config("none"))
    assert asked == {"model": ("org/m", "v1"), "processor": ("org/m", "v1")}


def test_of_frames(asked):
    ask(load_frames, "org/rooms@v1", "val")
    assert asked == {"frames": ("org/rooms", "v1")}


def test_of_a_mask_generator(monkeypatch):
    seen = []
    monkeypatch.setattr(masks.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(transformers, "pipeline", lambda task, **options: seen.append(options), raising=False)
    masks.load_mask_generator("org/sam", revision="v1", device="cuda:1")
    assert seen == [{"model": "org/sam", "revision": "v1", "device": "cuda:1"}]


def test_of_foreign_weights(asked, dino, small_config):
    ask(vision.load_vision_weights, dino, "org/dino", revision="v1")
    assert asked == {"tower": ("org/dino", "v1"), "checksum": ("org/dino", "v1")}
    asked.clear()
    model = BiFusionForInstanceSegmentation(small_config("residual"))
    ask(clip.load_clip_weights, model, "org/clip", revision="v1")
    ask(sv3d.load_sv3d_weights, model, "org/sv3d:file.pth", revision="v1")
    assert {name: request[1] for name, request in asked.items()} == {"clip": "v1", "sv3d": "v1"}
