"""A small CLIP from scratch, on crops of rendered instances with the names of their classes as captions.

No released image-text model is at hand everywhere, so this is what shows that features learned from crops and captions
name things by the package's own path. It is no model to use: it knows the words of these classes and no others.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from bifusion_hf.data.frames import frame_from_row, load_frames
from bifusion_hf.labeling.crops import SCALES, instance_crops
from bifusion_hf.labels import SCANNET200_CLASS_NAMES, point_instances_from_labels


SIDE = 48
MEAN = (0.5, 0.5, 0.5)
TEMPLATES = ("a photo of a {}.", "{}", "a picture of the {}.")
# Pixels of an instance that is worth a crop.
MIN_PIXELS = 150


def build_tokenizer(sentences: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, of those in the sentences."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    text = " ".join(sentences).lower().replace("{}", " ").replace(".", " . ")
    # The end comes last: CLIP may pool at the largest id.
    words = ["<pad>", "<start>", "<unknown>", *sorted(set(text.split())), "<end>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", len(vocabulary) - 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unknown>",
    )


def build_clip(vocabulary: int) -> CLIPModel:
    """Two small towers: 3 blocks of width 96 on 36 patches, 2 blocks of width 64 on words."""
    text = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 24,
        "eos_token_id": vocabulary - 1,
        "bos_token_id": 1,
        "pad_token_id": 0,
        "projection_dim": 64,
    }
    vision = {
        "image_size": SIDE,
        "patch_size": 8,
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "projection_dim": 64,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def read_crops(data: str, split: str, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The true instances of a data set.

    Returns:
        uint8 [N, scales, SIDE, SIDE, 3], and their classes int64 [N].
    """
    rows = load_frames(data, split)
    crops, classes = [], []
    fill = np.round(255 * np.array(MEAN))
    for index in range(len(rows) if limit is None else min(limit, len(rows))):
        frame = frame_from_row(rows[index])
        instance, labels = point_instances_from_labels(frame.instance, frame.semantic)
        for number, label in enumerate(labels.tolist()):
            mask = instance == number
            if np.count_nonzero(mask) < MIN_PIXELS:
                continue
            found = (Image.fromarray(crop) for crop in instance_crops(frame.image, mask, fill))
            crops.append([np.asarray(crop.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for crop in found])
            classes.append(label + 2)
    return np.array(crops), np.array(classes)


def batches(crops: np.ndarray, classes: np.ndarray, size: int, updates: int, seed: int) -> Iterator:
    """Pixels float32 [B, 3, SIDE, SIDE] and classes; rare classes come more often than their number says."""
    rng = np.random.default_rng(seed)
    counts = np.bincount(classes)
    weights = 1 / np.sqrt(counts[classes])
    for _ in range(updates):
        rows = rng.choice(len(crops), size, p=weights / weights.sum())
        pixels = crops[rows, rng.integers(len(SCALES), size=size)].astype(np.float32) / 255
        pixels = pixels * rng.uniform(0.8, 1.2, (size, 1, 1, 1)) + rng.uniform(-0.1, 0.1, (size, 1, 1, 3))
        flipped = rng.random(size) < 0.5
        pixels[flipped] = pixels[flipped, :, ::-1]
        # Shifts by up to an eighth, the border repeated.
        shift = SIDE // 8
        padded = np.pad(pixels, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
        top, left = rng.integers(2 * shift + 1, size=2)
        pixels = padded[:, top : top + SIDE, left : left + SIDE]
        values = (np.clip(pixels, 0, 1).astype(np.float32) - 0.5) / 0.5
        yield torch.from_numpy(values).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(classes[rows])


def train(data: str, output: Path, *, updates: int, batch_size: int = 64, seed: int = 0) -> dict[str, float]:
    """Trains the model and saves it as transformers loads it.

    Every image is told from the captions of all classes that there are: CLIP's loss from images to texts, in which no
    caption stands twice.

    Returns:
        What was trained on, and for how long.
    """
    torch.manual_seed(seed)
    crops, classes = read_crops(data, "train")
    names = [SCANNET200_CLASS_NAMES[index] for index in np.unique(classes)]
    # All 200 classes have words, of which some are never trained.
    tokenizer = build_tokenizer([*TEMPLATES, *SCANNET200_CLASS_NAMES])
    model = build_clip(len(tokenizer))
    captions = [
        tokenizer([template.replace("{}", name) for name in names], padding=True, return_tensors="pt")
        for template in TEMPLATES
    ]
    targets = np.searchsorted(np.unique(classes), classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=updates, pct_start=0.1)
    begin = time.process_time()
    for update, (pixels, rows) in enumerate(batches(crops, targets, batch_size, updates, seed)):
        texts = captions[update % len(TEMPLATES)]
        images = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=1)
        words = F.normalize(model.get_text_features(**texts).pooler_output, dim=1)
        loss = F.cross_entropy(model.logit_scale.exp() * images @ words.T, rows, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(100)))
        if update % 100 == 0 or update == updates - 1:
            seconds = time.process_time() - begin
            print(f"update {update} loss {loss.item():.3f} CPU {seconds:.0f} s", flush=True)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    size = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size=size, image_mean=list(MEAN), image_std=list(MEAN)
    ).save_pretrained(output)
    return {
        "instances": len(crops),
        "classes": len(names),
        "updates": updates,
        "batch_size": batch_size,
        "cpu_seconds": round(time.process_time() - begin),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
