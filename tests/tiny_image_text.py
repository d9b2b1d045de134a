"""Image-text models of a few thousand parameters with random weights, and a tokenizer of whole words for them."""

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, SiglipConfig, SiglipModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil


WORDS = [
    "a",
    "an",
    "of",
    "photo",
    "the",
    "in",
    "room",
    ".",
    "red",
    "blue",
    "mug",
    "mugs",
    "keyboard",
    "chair",
    "table",
    "bed",
    "lamp",
    "object",
    "things",
    "stuff",
    "texture",
    "office",
    "cabinet",
    "shelf",
    "desk",
    "pillow",
    "couch",
    "door",
]
SIDE, PATCH = 32, 8


def make_tokenizer(limit: int) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<start>", "<unknown>", *WORDS, "<end>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("<start>", 1), ("<end>", len(vocabulary) - 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=special)
    names = {"pad_token": "<pad>", "bos_token": "<start>", "eos_token": "<end>", "unk_token": "<unknown>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=limit, **names)


def save_model(folder, kind: str) -> str:
    """Saves a model, its tokenizer and its image processor; `kind` is "clip" or "siglip"."""
    torch.manual_seed(3)
    tokenizer = make_tokenizer(64)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "eos_token_id": len(tokenizer) - 1,
        "bos_token_id": 1,
        "pad_token_id": 0,
    }
    vision = {
        "image_size": SIDE,
        "patch_size": PATCH,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    if kind == "clip":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
        images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    else:
        text["projection_size"] = 24
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
        images = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
        with torch.no_grad():
            model.logit_scale.fill_(np.log(8.0))
            model.logit_bias.fill_(-1.5)
    # The initial weights are so small that all images would look alike.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    images.save_pretrained(folder)
    return str(folder)
