"""transformers' own `Trainer` on the package's model, data set, collator and processor, with its defaults."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from bifusion_hf import BiFusionForInstanceSegmentation, BiFusionProcessor
from bifusion_hf.data.collator import BiFusionCollator
from bifusion_hf.data.dataset import FrameDataset
from bifusion_hf.data.frames import load_frames
from bifusion_hf.hub.pretrained import load_pretrained
from bifusion_hf.training.callbacks import TrainingProgressCallback


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_defaults_train_evaluate_and_save_what_loads(small_config, tmp_path, num_workers):
    torch.manual_seed(0)
    config = small_config("residual", id2label={0: "object"})
    processor = BiFusionProcessor.from_config(config, num_points=600, image_size=64)
    rows = load_frames("sample", "train").select(range(4))
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, save_steps=2, per_device_train_batch_size=2, per_device_eval_batch_size=2,
        dataloader_num_workers=num_workers, report_to="none", use_cpu=True, disable_tqdm=True, logging_steps=1,
    )  # fmt: skip
    assert arguments.remove_unused_columns
    trainer = Trainer(
        BiFusionForInstanceSegmentation(config),
        arguments,
        train_dataset=FrameDataset(rows, processor, training=True),
        eval_dataset=FrameDataset(rows, processor),
        data_collator=BiFusionCollator(processor),
        processing_class=processor,
        callbacks=[TrainingProgressCallback()],
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 2 and all(loss > 0 for loss in losses)
    assert trainer.evaluate()["eval_loss"] > 0
    model, loaded = load_pretrained(tmp_path / "checkpoint-2")
    assert loaded.to_dict() == processor.to_dict()
    assert model.model.training_progress.update == model.model.training_progress.total == 2
