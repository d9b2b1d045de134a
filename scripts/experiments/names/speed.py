"""How long naming a frame takes."""

import os
import time
from typing import Any

import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from bifusion_hf import RGBDFrame
from bifusion_hf.labeling import TextLabeler, read_labels
from bifusion_hf.labeling.encoders import TransformersEncoder

from .small_clip import build_tokenizer


# Instances of the frame: a grid of rectangles.
ROWS, COLUMNS = 4, 5


def seconds(labeler: TextLabeler, frame: RGBDFrame, threads: tuple[int, ...] = (1, 2), repeats: int = 3) -> dict:
    """Median seconds of naming a frame of 20 instances, texts encoded before, by number of threads."""
    height, width = frame.depth.shape
    masks = np.zeros((ROWS * COLUMNS, height, width), dtype=bool)
    for index in range(len(masks)):
        top, left = index // COLUMNS * height // ROWS, index % COLUMNS * width // COLUMNS
        masks[index, top : top + height // ROWS, left : left + width // COLUMNS] = True
    labels, before, result = read_labels("scannet200"), torch.get_num_threads(), {}
    labeler.text_features(labels)
    for count in threads:
        torch.set_num_threads(count)
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            labeler.label(labeler.instance_features(frame.image, masks), labels, 1)
            times.append(time.perf_counter() - begin)
        result[f"{count} threads"] = round(float(np.median(times)), 4)
    torch.set_num_threads(before)
    return result


def full_size(frame: RGBDFrame) -> dict[str, Any]:
    """Seconds with a CLIP ViT-B/16 of the released size; weights do not change them, so they are random."""
    tokenizer = build_tokenizer(["a photo of a {}.", *read_labels("scannet200")])
    text = {"vocab_size": len(tokenizer), "eos_token_id": len(tokenizer) - 1, "bos_token_id": 1, "pad_token_id": 0}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config={"patch_size": 16}))
    encoder = TransformersEncoder(model, tokenizer, CLIPImageProcessorPil(), "clip-vit-base-patch16, random weights")
    result: dict[str, Any] = {"model": encoder.name, "instances": ROWS * COLUMNS, "load_before": os.getloadavg()[0]}
    modes = {"dense": {"dense_size": 224}, "dense, at twice the model's size": {}, "crops": {}}
    for name, options in modes.items():
        labeler = TextLabeler(encoder, mode=name.partition(",")[0], **options)
        # A warm-up would cost as much as the measurement, and one frame of crops is already 60 images.
        result[name] = seconds(labeler, frame, threads=(2,), repeats=1)
    return {**result, "load_after": os.getloadavg()[0]}
