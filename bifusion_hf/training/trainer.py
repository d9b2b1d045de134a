"""The training loop, on Accelerate.

One optimizer update is: take the batches of an accumulation window; count, over window and processes, the samples that
each loss term applies to; forward and backward each batch with those counts, so that the gradient is that of the one
big batch; check that it is finite; clip, step, and tell the model its progress.
"""

import contextlib
import copy
import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from accelerate.utils.memory import clear_device_cache
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..data.alignment import check_alignment
from ..io.locks import sole_use
from ..recipe.arguments import TrainArguments
from ..stopping import Stopped, StopRequested, StopSignals
from . import checkpoints, run_folder, sharding
from .audit import LivenessAudit, alpha_statistics, probe_terms
from .data_loading import (
    UpdateSampler,
    check_readers,
    count_samples,
    stream_readers,
    take_window,
    to_device,
    train_batches,
    updates_per_epoch,
)
from .freezing import eval_mode, train_mode, unfreeze_due
from .guards import NonFiniteGuard, explain_out_of_memory, preserved_buffers, signal_of_any
from .metrics import Recorder, for_sums, memory_gib
from .optimization import build_optimizer, build_scheduler
from .setup import build_accelerator, compile_dense_parts, prepare_network, shares_batch_statistics
from .sizing import fitting_batch_size


# Updates whose frames are checked for the alignment of points and image.
ALIGNMENT_UPDATES = 5
Batch = dict[str, Any]


class BiFusionTrainer:
    """Trains a network by a recipe.

    Args:
        arguments: The recipe.
        model: Network with the contract of `BiFusionForInstanceSegmentation`: `forward(..., loss_counts)` gives `loss`
            and `loss_dict`; `count_loss_samples(**batch)`; `set_training_progress(update, total)`; `save_pretrained`.
        processor: Saved with the model; undoes the normalisation for the alignment check.
        train_dataset: Map-style data set indexed by (epoch, row), or `StreamedFrames`.
        collate: List of samples -> batch; None where all samples are None, of broken rows.
        evaluate: Model in eval mode -> numbers, among them `evaluation.metric`; called in every process. None = no
            evaluation.
        accelerator: Made from the recipe where None.

    Raises:
        ValueError: The recipe does not fit the data or the machine.
    """

    def __init__(
        self,
        arguments: TrainArguments,
        model: nn.Module,
        processor: Any,
        train_dataset: Any,
        collate: Callable[[list], Batch | None],
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
        accelerator: Accelerator | None = None,
    ):
        training = arguments.training
        self.arguments = arguments
        self.accelerator = accelerator or build_accelerator(
            training, arguments.output_dir, arguments.logging.trackers, arguments.deterministic
        )
        self.sharding = sharding.read_sharding(arguments, self.accelerator.num_processes)
        self.processor, self.train_dataset = processor, train_dataset
        self.collate, self.evaluate_model = collate, evaluate
        self.output_dir = Path(arguments.output_dir)
        set_seed(arguments.seed, device_specific=True)

        self.network = prepare_network(model, training, self.accelerator)
        self.forward_names = set(inspect.signature(self.network.forward).parameters)
        self.batch_size, self.accumulation = training.batch_size, training.accumulation
        self.frames_per_update = self.batch_size * self.accumulation * self.accelerator.num_processes
        self.updates_per_epoch = None
        if not arguments.data.streaming:
            self.updates_per_epoch = updates_per_epoch(len(train_dataset), self.frames_per_update)
        self.total_updates = training.max_updates or training.epochs * self.updates_per_epoch

        # The copies are made before Accelerate changes the network's forward.
        average = get_ema_multi_avg_fn(training.ema_decay) if training.ema_decay else None
        self.ema = AveragedModel(self.network, multi_avg_fn=average) if average else None
        self.whole_copy = None if self.sharding is None else copy.deepcopy(self.network)
        optimizer = build_optimizer(self.network, arguments.optimizer, later=list(training.unfreeze_at))
        if training.find_batch_size:
            frames = self.batch_size * self.accumulation
            self.batch_size = fitting_batch_size(
                self.accelerator, self.trial, train_dataset, optimizer, self.batch_size, frames
            )
            self.accumulation = frames // self.batch_size
        if shares_batch_statistics(training, self.accelerator):
            self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        if self.sharding is not None:
            for module in [self.network] if self.ema is None else [self.network, self.ema.module]:
                sharding.shard_network(module, self.sharding, self.accelerator)
            # Parts have taken the place of the parameters.
            optimizer = build_optimizer(self.network, arguments.optimizer, later=list(training.unfreeze_at))
            sharding.keep_whole_states(optimizer)
        self.guard = NonFiniteGuard(self.network, training.max_nonfinite_updates)
        self.audit = LivenessAudit(
            self.network,
            training.audit_window,
            getattr(self.network.config, "gate_warmup_steps", 0),
            exempt=training.audit_exempt,
        )
        scheduler = build_scheduler(optimizer, self.total_updates, arguments.optimizer)
        self.optimizer, self.scheduler = self.accelerator.prepare(optimizer, scheduler)
        if training.compile:
            compile_dense_parts(self.network)
        self.model = sharding.wrap_network(self.network, self.accelerator, self.sharding)
        checkpoints.register_weights(self.accelerator, self.network, self.ema, processor)
        self.update = self.skipped_batches = 0
        # An evaluation that a signal has put off is made up for when the run goes on.
        self.evaluation_due = False
        self.signals = StopSignals("this update, with a checkpoint")
        self.best: dict[str, float] = {}

    @property
    def checkpoint_dir(self) -> Path:
        """Folder of the run's checkpoints."""
        return checkpoints.checkpoints_folder(self.output_dir)

    # The loop

    def train(self) -> dict[str, float]:
        """Runs all updates that are left, then evaluates and saves the final model.

        Returns:
            The numbers of the last evaluation.

        Raises:
            ValueError: `output_dir` holds another run, or points and image are misaligned.
            NonFiniteError, OutOfMemoryError, LivenessError, CheckpointError: See there.
            CheckpointError: Another process trains into `output_dir`.
            Stopped: SIGINT or SIGTERM came; there is a checkpoint of the last update.
        """
        with contextlib.ExitStack() as held:
            checkpoints.in_main_process(self.accelerator, lambda: held.enter_context(sole_use(self.output_dir)))
            return self._train()

    def _train(self) -> dict[str, float]:
        resumed = self._start()
        self.recorder = Recorder(
            self.accelerator, self.output_dir, self.total_updates, self.update, self.arguments.logging.progress_bar
        )
        self.recorder.info(resumed)
        batches = self._batches()
        train_mode(self.network)
        self.network.set_training_progress(self.update, self.total_updates)
        results: dict[str, float] = {}
        try:
            with self.signals:
                self.evaluation_due |= self.arguments.evaluation.at_start and self.update == 0
                results = self._evaluate_if_due(results)
                while self.update < self.total_updates:
                    with self.recorder.timer.part("data"):
                        window = self._next_window(batches)
                    self._finish_update(window, self._run_update(window) if window else self._pass_over())
                    self.evaluation_due = self._due(self.arguments.evaluation, self.update)
                    self._stop_if_asked()
                    results = self._evaluate_if_due(results)
                    if self._due(self.arguments.checkpoints, self.update):
                        self.save_checkpoint()
                self._write_model(self.output_dir / "final")
        finally:
            self.recorder.close()
            self._end()
        return results

    def _evaluate_if_due(self, results: dict[str, float]) -> dict[str, float]:
        """The numbers of an evaluation that is due, else those of the last one."""
        if self.evaluation_due:
            try:
                results = self.evaluate()
            except StopRequested:
                self._stop_if_asked()
            self.evaluation_due = False
        return results

    def _stop_if_asked(self) -> None:
        """Saves a checkpoint and ends where a process got a signal; all processes call this together.

        Raises:
            Stopped: So it is.
        """
        number = signal_of_any(self.signals.number, self.accelerator)
        if number is not None:
            place = self.save_checkpoint()
            self.recorder.info(f"stopped after update {self.update} of {self.total_updates}; checkpoint {place}")
            raise Stopped(number)

    def _batches(self) -> Iterator[Batch]:
        """The batches of all updates that are left."""
        data, sampler = self.arguments.data, None
        if data.streaming:
            self.train_dataset.start_batch = self.update * self.accumulation
        else:
            rows, seed = len(self.train_dataset), self.arguments.seed
            mixture = getattr(self.train_dataset, "mixture", None)
            sampler = UpdateSampler(rows, self.frames_per_update, self.total_updates, seed, self.update, mixture)
        return train_batches(self.train_dataset, sampler, self.batch_size, self.collate, data, self.accelerator)

    def _end(self) -> None:
        """Takes the process group apart; the network stays."""
        if self.accelerator.num_processes > 1:
            # DistributedDataParallel must not outlive the group: it would be the one to end it, and waits for gloo's
            # thread with Python's lock held, which that thread may wait for (PyTorch issue 56297): for ever, then.
            self.model = self.network
            self.accelerator.free_memory()
        self.accelerator.end_training()

    def _next_window(self, batches: Iterator[Batch | None]) -> list[Batch]:
        """The batches of the next update that have frames."""
        skip = self.arguments.data.skip_broken_rows
        window, missing, whole = take_window(batches, self.accumulation, self.accelerator, may_lack=skip)
        if missing:
            self.skipped_batches += missing
            others = f"; so that all processes keep step, whole frames too: {', '.join(whole)}" if whole else ""
            self.recorder.warning(
                f"update {self.update + 1} is smaller: batches of broken frames alone are left out, "
                f"{self.skipped_batches} so far{others}"
            )
        return window

    def _pass_over(self) -> dict[str, float]:
        """Takes the place of `_run_update` where an update has no frame."""
        self.guard.pass_over()
        self.scheduler.step()
        return {"skipped": 1.0, "points": 0}

    def _run_update(self, window: list[Batch]) -> dict[str, float]:
        """Forward, backward and optimizer step over an accumulation window.

        Returns:
            The loss terms over window and processes, `grad_norm`, `skipped` (0 or 1), `points`, `alpha_mean`, ...
        """
        update = self.update + 1
        counts, last_counts = count_samples(
            window, lambda batch: self.network.count_loss_samples(**self._inputs(batch)), self.accelerator
        )
        probed = self.audit.wants_probe(counts)
        audited = self._is_audited(update)
        sums: dict[str, torch.Tensor] = {}
        self.guard.remember()
        # One transfer for all of them.
        loss_counts = torch.tensor(list(counts.values()), device=self.accelerator.device).unbind()
        loss_counts = dict(zip(counts, loss_counts, strict=True))
        for batch in window:
            last = batch is window[-1]
            try:
                with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                    with sharding.kept_gathered(self.network, self.sharding if last and probed else None):
                        with self.recorder.timer.part("compute"):
                            outputs = self.model(**self._inputs(batch), loss_counts=loss_counts)
                        if last and probed:
                            with self.recorder.timer.part("audit"):
                                terms = {name: outputs.loss_dict[name] for name in probed}
                                for name, norm in probe_terms(terms, last_counts, self.accelerator).items():
                                    self.audit.record_probe(update, name, norm)
                    # The gradients are averaged over processes; the counts are already sums over them.
                    with self.recorder.timer.part("compute"):
                        self.accelerator.backward(outputs.loss * self.accelerator.num_processes)
            except Exception as error:
                explain_out_of_memory(error, batch, self.arguments.training)
                raise
            # A term that is switched off is a constant that nothing counts.
            terms = {name: term for name, term in outputs.loss_dict.items() if term.requires_grad or counts.get(name)}
            for name, term in {"loss": outputs.loss, **terms}.items():
                sums[name] = sums.get(name, 0) + for_sums(term.detach())
        values = self._step(sums, counts, audited)
        shown = (audited or self._is_logged(update)) and not values["skipped"]
        with self.recorder.timer.part("logging"):
            alpha = alpha_statistics(outputs, window[-1]) if shown else None
        if alpha is not None:
            values["alpha_mean"], values["alpha_std"] = alpha
        return {**values, "points": counts["points"]}

    def _step(self, sums: dict[str, torch.Tensor], counts: dict[str, int], audited: bool) -> dict[str, float]:
        """Clips and steps, or skips the update where a loss or the gradient is not finite."""
        timer = self.recorder.timer
        trainable = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        with timer.part("compute"):
            if self.sharding is not None:
                sharding.average_unsharded_gradients(trainable, self.accelerator)
            norm = sharding.whole(self.accelerator.clip_grad_norm_(trainable, self.arguments.optimizer.max_grad_norm))
            # One transfer to the host for all numbers of the update; on a GPU it waits for the backward pass.
            losses = self.accelerator.reduce(torch.stack(list(sums.values())), "sum")
            *numbers, norm = torch.cat([losses, for_sums(norm).reshape(1)]).tolist()
        values = {**dict(zip(sums, numbers, strict=True)), "grad_norm": norm}
        accepted = self.guard.accept(values, self.accelerator.scaler)
        if accepted:
            with timer.part("audit"):
                self.audit.observe(self.update + 1, counts)
                if audited:
                    self.audit.before_step()
            with timer.part("compute"):
                self.optimizer.step()
            if audited:
                with timer.part("audit"):
                    self.audit.after_step()
            if self.ema is not None:
                with timer.part("ema"):
                    self.ema.update_parameters(self.network)
        elif self.accelerator.scaler is not None:
            self.accelerator.scaler.update()
        self.optimizer.zero_grad()
        self.scheduler.step()
        return {**values, "skipped": float(not accepted)}

    def _inputs(self, batch: Batch) -> Batch:
        return {name: value for name, value in batch.items() if name in self.forward_names}

    def _finish_update(self, window: list[Batch], values: dict[str, float]) -> None:
        """Progress, reports and checks after an update."""
        self.update += 1
        self.network.set_training_progress(self.update, self.total_updates)
        self._unfreeze()
        self.audit.record_values(values)
        if values["skipped"]:
            frames = gather_object([name for batch in window for name in batch.get("frame_ids", [])])
            self.recorder.warning(self.guard.report(self.update, frames))
        if self.update <= ALIGNMENT_UPDATES and self.processor is not None:
            with self.recorder.timer.part("audit"):
                errors = [check_alignment(batch, self.processor) for batch in window if "pixel_values" in batch]
                self.audit.record_alignment(errors)
        every = self.arguments.training.empty_cache_every
        if every and self.update % every == 0:
            clear_device_cache()
        # Of the groups with and without weight decay, one stands for both.
        rates = {
            f"learning_rate_{group['name'].removesuffix('_no_decay')}": group["lr"]
            for group in self.optimizer.param_groups
        }
        self.recorder.advance(values, max(rates.values()))
        if self._is_logged(self.update):
            state = {
                "epoch": self.update / (self.updates_per_epoch or self.total_updates),
                "memory_gib": memory_gib(self.accelerator.device),
                "skipped_updates": self.guard.skipped,
                "skipped_batches": self.skipped_batches,
            }
            self.recorder.record_update(self.update, {**values, **rates, **state})
        if self._is_audited(self.update):
            with self.recorder.timer.part("audit"):
                self.recorder.info(f"liveness audit of update {self.update}\n{self.audit.table()}")

    # Evaluation and saving

    def evaluate(self) -> dict[str, float]:
        """Evaluates the (averaged) network, keeps it as `best` if it is, and draws the curves."""
        if self.evaluate_model is None:
            return {}
        with self.recorder.timer.part("evaluation"):
            network = checkpoints.network_to_keep(self.network, self.ema, self.accelerator, self.whole_copy)
            # Several processes would wait for the one that was interrupted.
            alone = self.accelerator.num_processes == 1
            interruptible = self.signals.interruptible() if alone else contextlib.nullcontext()
            with interruptible, eval_mode(network), torch.no_grad(), self.accelerator.autocast():
                results = {name: float(value) for name, value in self.evaluate_model(network).items()}
            metric = self.arguments.evaluation.metric
            if metric not in results:
                raise ValueError(f"evaluation.metric {metric!r} is none of the results {sorted(results)}")
            # Of equals the later one: at AP 0 it has learned more. NaN (no instance at all) counts as worst.
            if not self.best or not results[metric] < self.best[metric]:
                self.best = {"update": self.update, **results}
                self._write_model(self.output_dir / "best")
            self.recorder.record_evaluation(self.update, results, self.best)
        return results

    def _write_model(self, folder: Path) -> None:
        """Saves network and processor for `from_pretrained`; all processes call this together."""
        network = checkpoints.network_to_keep(self.network, self.ema, self.accelerator, self.whole_copy)

        def write(partial: Path) -> None:
            network.save_pretrained(partial)
            if self.processor is not None:
                self.processor.save_pretrained(partial)

        checkpoints.in_main_process(self.accelerator, lambda: checkpoints.replace_folder(folder, write))

    def save_checkpoint(self) -> Path:
        """Writes everything that a resumed run needs."""
        state = {
            "update": self.update,
            "total_updates": self.total_updates,
            "frames_per_update": self.frames_per_update,
            "num_processes": self.accelerator.num_processes,
            "best": self.best,
            "skipped": self.guard.skipped,
            "skipped_in_a_row": self.guard.in_a_row,
            "skipped_batches": self.skipped_batches,
            "evaluation_due": self.evaluation_due,
            "stream": stream_readers(self.arguments.data, self.batch_size, self.accelerator.num_processes),
        }
        with self.recorder.timer.part("checkpoint"):
            return checkpoints.save_checkpoint(
                self.accelerator,
                self.checkpoint_dir,
                self.update,
                lambda folder: self.accelerator.save_state(str(folder)),
                state,
                self.arguments.checkpoints.keep,
            )

    # Start and resume

    def _start(self) -> str:
        """Resumes, or makes sure that no other run is overwritten; returns what it did."""
        arguments = self.arguments
        run_folder.check_shared(self.output_dir, self.accelerator)
        checkpoint = run_folder.choose_start(
            self.output_dir, arguments.resume_from_checkpoint, arguments.overwrite_output_dir
        )
        moved: list[Path] = []

        def prepare_folder() -> None:
            aside = run_folder.prepare_run_folder(self.output_dir, checkpoint, arguments.to_yaml())
            moved.extend([] if aside is None else [aside])
            arguments.save(self.output_dir / run_folder.RECIPE)

        # All have looked for checkpoints before one of them moves any.
        self.accelerator.wait_for_everyone()
        checkpoints.in_main_process(self.accelerator, prepare_folder)
        self.accelerator.init_trackers(arguments.logging.project, config=arguments.flat())
        note = "".join(f"; what an earlier run left is in {aside}" for aside in moved)
        if checkpoint is not None:
            others = self._resume(checkpoint)
            return f"resumed from {checkpoint} at update {self.update} of {self.total_updates}{others}{note}"
        shared = "" if self.sharding is None else "; weights and optimizer state in parts"
        if shares_batch_statistics(self.arguments.training, self.accelerator):
            shared += "; batch statistics shared"
        return (
            f"{self.total_updates} updates of {self.frames_per_update} {self.arguments.data.unit} "
            f"({self.batch_size} x {self.accumulation} accumulated x {self.accelerator.num_processes} processes) "
            f"on {self.accelerator.device}{shared}{note}"
        )

    def _resume(self, checkpoint: Path) -> str:
        """Takes over a checkpoint; returns what else to tell about it."""
        state = checkpoints.read_state(checkpoint)
        processes = self.accelerator.num_processes
        checkpoints.check_same_run(checkpoint, state, self.total_updates, self.frames_per_update)
        check_readers(checkpoint, state, stream_readers(self.arguments.data, self.batch_size, processes))
        self.update, self.best = state["update"], state["best"]
        self.guard.skipped, self.guard.in_a_row = state["skipped"], state["skipped_in_a_row"]
        self.skipped_batches = state.get("skipped_batches", 0)
        self.evaluation_due = state.get("evaluation_due", False)
        self._unfreeze()
        self.accelerator.load_state(str(checkpoint))
        if state["num_processes"] == processes:
            return ""
        # Frames and queries have seeds of their own; what a network draws besides, as dropout does, begins anew.
        set_seed(random.Random(f"{self.arguments.seed} {self.update}").getrandbits(31), device_specific=True)
        return f"; processes {state['num_processes']} -> {processes}, with new random states"

    def _unfreeze(self) -> None:
        schedule = self.arguments.training.unfreeze_at
        started = unfreeze_due(self.network, schedule, self.update / self.total_updates) if schedule else []
        if not started:
            return
        train_mode(self.network)
        if self.accelerator.num_processes > 1 and self.sharding is None:
            # DistributedDataParallel reduces the parameters that trained when it was made.
            self.accelerator.free_memory()
            # Accelerate takes no scheduler that it has prepared before: it would be missing in later checkpoints.
            self.optimizer, self.scheduler = self.accelerator.prepare(
                self.optimizer.optimizer, self.scheduler.scheduler
            )
            self.model = sharding.wrap_network(self.network, self.accelerator, self.sharding)

    # Helpers

    def trial(self, samples: list[Any]) -> None:
        """Forward and backward pass of a batch, for the batch-size finder and the plan.

        It leaves no trace in the network.
        """
        batch = self.collate(samples)
        train_mode(self.network)
        try:
            with preserved_buffers(self.network):
                with self.accelerator.autocast():
                    outputs = self.network(**self._inputs(to_device(batch, self.accelerator.device)))
                outputs.loss.backward()
        finally:
            self.network.zero_grad()

    def _due(self, cadence: Any, update: int) -> bool:
        """Whether an evaluation or checkpoint follows an update; it always follows the last."""
        every = cadence.every_updates or cadence.every_epochs * (self.updates_per_epoch or 0)
        return update == self.total_updates or (every > 0 and update % every == 0)

    def _is_logged(self, update: int) -> bool:
        return update in (1, self.total_updates) or update % self.arguments.logging.every_updates == 0

    def _is_audited(self, update: int) -> bool:
        return update == 1 or self._due(self.arguments.evaluation, update)
