"""A tiny open_clip model with random weights, and the numbers of it that the default environment is tested against.

Run as a script (in the environment of `make test-openclip`) it writes tests/fixtures/clip_tokens.npz.
"""

import json
from pathlib import Path

import numpy as np
import torch


FIXTURE = Path(__file__).parents[1] / "fixtures" / "clip_tokens.npz"
BLOCKS = 3
VISION = {"layers": BLOCKS, "width": 24, "head_width": 12, "mlp_ratio": 2.0, "patch_size": 8, "image_size": 32}
TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
RESIZED_IMAGE = 48


def model_config(quick_gelu):
    return {"embed_dim": 16, "quick_gelu": quick_gelu, "vision_cfg": VISION, "text_cfg": TEXT}


def randomize(model, seed=0):
    """Weights at which every bias matters and the two activations differ visibly."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
            parameter.copy_(1.5 * noise / fan_in**0.5)
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.add_(1)
    return model.eval()


def make_model(folder, quick_gelu, **options):
    """The model that open_clip builds from a folder in its format, with random weights; the folder gets them too."""
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": model_config(quick_gelu), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    model = randomize(open_clip.create_model(f"local-dir:{folder}", load_weights=False))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return open_clip.create_model(f"local-dir:{folder}", **options).eval() if options else model


@torch.no_grad()
def patch_tokens(visual, images):
    """Patch tokens [B, rows * columns, C] after each block, by open_clip's own forward."""
    return visual.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)["image_intermediates"]


def main():
    import tempfile

    import conftest  # noqa: F401  declares the operators that a torchvision for another torch lacks

    images = torch.randn(1, 3, VISION["image_size"], VISION["image_size"], generator=torch.Generator().manual_seed(1))
    arrays = {"images": images.numpy()}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("quick_gelu", "gelu"):
            model = make_model(Path(folder) / name, name == "quick_gelu")
            for block, tokens in enumerate(patch_tokens(model.visual, images), start=1):
                arrays[f"{name}_{block}"] = tokens.numpy()
        state = {name: value for name, value in model.state_dict().items() if name.startswith("visual.")}
        arrays.update({name: value.numpy() for name, value in state.items()})
        resized = make_model(Path(folder) / "resized", False, force_image_size=RESIZED_IMAGE)
        arrays["resized_positions"] = resized.visual.positional_embedding.detach().numpy()
    np.savez_compressed(FIXTURE, **arrays)


if __name__ == "__main__":
    main()
