"""The network and its processor, ready to predict."""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from ..pipeline_bifusion import RGBDInstanceSegmentationPipeline


def load_segmenter(checkpoint: str, device: str | None) -> "RGBDInstanceSegmentationPipeline":
    """The pipeline of a checkpoint.

    Args:
        checkpoint: See `load_pretrained`.
        device: `torch.device` string; None = a GPU if there is one.
    """
    import torch
    from transformers.utils import logging

    from ..hub.pretrained import load_pretrained
    from ..pipeline_bifusion import RGBDInstanceSegmentationPipeline

    logging.disable_progress_bar()
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processor = load_pretrained(checkpoint)
    return RGBDInstanceSegmentationPipeline(model=model, processor=processor, device=torch.device(device))
