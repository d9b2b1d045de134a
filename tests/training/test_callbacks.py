import torch
from training_standin import StandIn, StandInConfig, StandInFrames, collate
from transformers import Trainer, TrainingArguments

from bifusion_hf.training.callbacks import TrainingProgressCallback


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, row):
        return StandInFrames()[0, row]


def test_trainer_users_get_the_progress(tmp_path):
    model = StandIn(StandInConfig())
    seen = []
    told = model.set_training_progress
    model.set_training_progress = lambda update, total: (seen.append((update, total)), told(update, total))
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=2,
        report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", remove_unused_columns=False,
    )  # fmt: skip

    def without_names(samples):
        return {name: value for name, value in collate(samples).items() if name != "frame_ids"}

    Trainer(
        model, arguments, data_collator=without_names, train_dataset=Rows(), callbacks=[TrainingProgressCallback()]
    ).train()
    # Updates, not forward passes.
    assert seen == [(update, 4) for update in range(5)]
    assert model.progress.tolist() == [4, 4]
