"""For users of `transformers.Trainer`."""

from transformers import TrainerCallback


class TrainingProgressCallback(TrainerCallback):
    """Tells the model how far training is, as the package's own loop does after each optimizer update.

    The gate's warm-up and the stage schedule of the losses read it.

    Example:
        ```python
        Trainer(model, ..., callbacks=[TrainingProgressCallback()])
        ```
    """

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Sets the progress at the start, which is not 0 when a run resumes."""
        model.set_training_progress(state.global_step, state.max_steps)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Sets the progress after each optimizer update."""
        model.set_training_progress(state.global_step, state.max_steps)
