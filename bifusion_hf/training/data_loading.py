"""Which frame goes into which update, and the loaders that bring it there.

The order of frames is a function of (seed, update) alone: update u of an epoch takes the u-th slice of the epoch's
permutation, whatever the number of processes, the batch size and the accumulation that share it. So a run resumes at
any update without replaying anything, and one process with batch 4 sees the same updates as two with batch 2. Frames
carry their own seed (seed, epoch, row), so that loader workers have no state.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from ..data.collator import HOST_ENTRIES
from ..data.mixture import Mixture, shuffled
from ..recipe.arguments import DataArguments
from ..stopping import leave_interrupts_to_the_parent


class UpdateSampler(Sampler[tuple[int, int]]):
    """Keys (epoch, row) of all updates of a run, in order; of a mixture, the epoch is the pass over the row's source.

    Frames that do not fill a whole update at the end of an epoch are left out of it; another permutation leaves out
    others.

    Args:
        num_rows: Rows of the data set.
        frames_per_update: Batch size x accumulation x processes.
        total_updates: Updates of the whole run.
        seed: Of the permutations.
        start_update: Finished updates, when a run resumes.
        mixture: Says which of the rows an epoch takes, and how often; None = each one once.

    Raises:
        ValueError: The data set is smaller than one update.
    """

    def __init__(
        self,
        num_rows: int,
        frames_per_update: int,
        total_updates: int,
        seed: int,
        start_update: int = 0,
        mixture: Mixture | None = None,
    ):
        self.updates_per_epoch = updates_per_epoch(num_rows, frames_per_update)
        self.num_rows = num_rows
        self.frames_per_update = frames_per_update
        self.total_updates = total_updates
        self.seed = seed
        self.start_update = start_update
        self.mixture = mixture

    def __len__(self) -> int:
        return (self.total_updates - self.start_update) * self.frames_per_update

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for update in range(self.start_update, self.total_updates):
            epoch, position = divmod(update, self.updates_per_epoch)
            if position == 0 or update == self.start_update:
                keys = self.epoch_keys(epoch)
            first = position * self.frames_per_update
            yield from keys[first : first + self.frames_per_update]

    def epoch_keys(self, epoch: int) -> list[tuple[int, int]]:
        """The keys of an epoch, in order."""
        if self.mixture is not None:
            return self.mixture.epoch_keys(self.seed, epoch)
        return shuffled([(epoch, row) for row in range(self.num_rows)], self.seed, epoch)


def updates_per_epoch(num_rows: int, frames_per_update: int) -> int:
    """Whole updates in one pass over the rows.

    Raises:
        ValueError: There is none.
    """
    if num_rows < frames_per_update:
        raise ValueError(
            f"{num_rows} training frames do not fill one update of {frames_per_update} (batch_size x accumulation x "
            "processes; with data.window_frames these are windows, one a scene); lower training.batch_size or "
            "training.accumulation"
        )
    return num_rows // frames_per_update


class StreamedFrames(IterableDataset):
    """Samples of a streamed data set, in an order that depends on (seed, epoch) and resumes exactly.

    Each loader worker of each process reads its own shards. To resume, a worker passes over the rows that it has
    already given (reading, not preparing them).

    Args:
        rows: `datasets.IterableDataset`, undecoded.
        prepare: (row, epoch, index of the row in its worker's pass) -> sample.
        batch_size: Frames of a batch; worker w of W gives batches w, w + W, ...
        start_batch: Batches that this process has already consumed.
        seed: Of the shuffling.
        shuffle_buffer: Rows among which is shuffled.
        num_processes: Training processes.
        process_index: Which of them this is.
    """

    def __init__(
        self,
        rows: Any,
        prepare: Callable[[dict, int, int], Any],
        batch_size: int,
        start_batch: int = 0,
        seed: int = 0,
        shuffle_buffer: int = 256,
        num_processes: int = 1,
        process_index: int = 0,
    ):
        self.rows = rows
        self.prepare = prepare
        self.batch_size = batch_size
        self.start_batch = start_batch
        self.seed = seed
        self.shuffle_buffer = shuffle_buffer
        self.num_processes = num_processes
        self.process_index = process_index

    def __iter__(self) -> Iterator[Any]:
        worker = torch.utils.data.get_worker_info()
        if worker is not None:
            # A lock that was held when the worker was forked would hang remote file systems.
            fsspec.asyn.reset_lock()
        num_workers, index = (worker.num_workers, worker.id) if worker else (1, 0)
        # The loader asks worker 0 first, also after a resume; it takes the part whose turn it is.
        index = (index + self.start_batch) % num_workers
        readers = self.num_processes * num_workers
        if self.rows.num_shards < readers:
            raise ValueError(
                f"the streamed data set has {self.rows.num_shards} shards for {readers} readers (processes x "
                f"data.num_workers); set data.num_workers to at most {self.rows.num_shards // self.num_processes}"
            )
        shard = self.rows.shuffle(seed=self.seed, buffer_size=self.shuffle_buffer)
        shard = shard.shard(num_shards=readers, index=self.process_index * num_workers + index)
        # Batches i < start_batch with i = index (mod num_workers) are this reader's.
        skip = len(range(index, self.start_batch, num_workers)) * self.batch_size
        epoch = 0
        while True:
            shard.set_epoch(epoch)
            count = 0
            # Not `iter(shard)`: in a loader worker it would split the shards over the workers once more.
            for position, rows in enumerate(shard.iter(batch_size=1)):
                count += 1
                if skip > 0:
                    skip -= 1
                    continue
                yield self.prepare({name: values[0] for name, values in rows.items()}, epoch, position)
            if count == 0:
                raise ValueError(f"shard {index} of the streamed data set has no rows")
            epoch += 1


def stream_readers(data: DataArguments, batch_size: int, processes: int) -> dict[str, int]:
    """What decides which reader of a stream gives which row; empty where rows are taken by index.

    Args:
        data: Section of the recipe.
        batch_size: Frames of one forward in one process.
        processes: Of the training.
    """
    if not data.streaming:
        return {}
    # The process itself reads as one worker does.
    return {
        "data.num_workers": max(1, data.num_workers),
        "data.shuffle_buffer": data.shuffle_buffer,
        "training.batch_size": batch_size,
        "processes": processes,
    }


def check_readers(checkpoint: Path, state: Mapping[str, Any], here: Mapping[str, int]) -> None:
    """Refuses to go on with other readers of a stream than a checkpoint was written with.

    Args:
        checkpoint: For the message.
        state: Its `trainer_state.json`.
        here: `stream_readers` of this run.

    Raises:
        ValueError: They differ.
    """
    # Older checkpoints do not tell all of it.
    before = state.get("stream", here)
    before = {**before, "processes": state["num_processes"]} if before else before
    for key in {**before, **here}:
        if before.get(key) != here.get(key):
            raise ValueError(
                f"{checkpoint} has {key} {before.get(key)}, this run {here.get(key)}: other readers of a stream would "
                "give some rows twice and others never; keep it"
            )


def build_loader(dataset: Dataset, sampler: UpdateSampler | None, batch_size: int, **options: Any) -> DataLoader:
    """Loader of the whole run: one iterator over all epochs, so that workers never stop between them.

    Args:
        dataset: Map-style, indexed by (epoch, row); or iterable, then `sampler` is None.
        sampler: Keys of all updates.
        batch_size: Frames of one forward in one process.
        options: For `DataLoader`.
    """
    # A generator of its own, so that starting the loader anew on a resume does not move torch's default one.
    generator = torch.Generator().manual_seed(0)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=True,
        generator=generator,
        worker_init_fn=leave_interrupts_to_the_parent,
        **options,
    )


def train_batches(
    dataset: Any,
    sampler: UpdateSampler | None,
    batch_size: int,
    collate: Callable[[list], Any],
    data: DataArguments,
    accelerator: Accelerator,
) -> Iterator[dict[str, Any] | None]:
    """Batches of this process for all updates that a run has left, on its device.

    Args:
        dataset: Map-style, indexed by (epoch, row), or `StreamedFrames`.
        sampler: Keys of all updates; None for a stream.
        batch_size: Frames of one forward in one process.
        collate: List of samples -> batch; None passes through.
        data: Section of the recipe; says how many workers there are and how far they run ahead.
        accelerator: Of the run.
    """
    options = {
        "collate_fn": collate,
        "num_workers": data.num_workers,
        "prefetch_factor": data.prefetch_factor if data.num_workers else None,
        "pin_memory": accelerator.device.type == "cuda",
    }
    loader = build_loader(dataset, sampler, batch_size, **options)
    if sampler is not None:
        # Each process reads its own shards of a stream; Accelerate would shard or dispatch them once more.
        loader = accelerator.prepare_data_loader(loader, device_placement=False)
    return (to_device(batch, accelerator.device) for batch in loader)


def to_device(batch: dict[str, Any] | None, device: torch.device) -> dict[str, Any] | None:
    """The batch with what training reads on a device; from pinned memory the host does not wait for the copy."""
    return send_to_device(batch, device, non_blocking=True, skip_keys=list(HOST_ENTRIES))


def count_samples(
    window: list[dict[str, Any]], count: Callable[[dict], Mapping[str, torch.Tensor]], accelerator: Accelerator
) -> tuple[dict[str, int], dict[str, int]]:
    """Samples that each loss term applies to, `points` and `visible_points`; all processes call this together.

    Args:
        window: Batches of an update in this process.
        count: Batch -> samples of each loss term.
        accelerator: Of the run.

    Returns:
        Over window and processes; and in this process's last batch.
    """
    per_batch = []
    for batch in window:
        points, visible = batch["point_mask"], batch.get("point_visible")
        counts = dict(count(batch))
        counts["points"] = points.sum()
        counts["visible_points"] = torch.zeros_like(counts["points"]) if visible is None else (visible & points).sum()
        per_batch.append(torch.stack(list(counts.values())))
    total = accelerator.reduce(torch.stack(per_batch).sum(0), "sum")
    return dict(zip(counts, total.tolist(), strict=True)), dict(zip(counts, per_batch[-1].tolist(), strict=True))


def take_window(
    batches: Iterator[dict[str, Any] | None], size: int, accelerator: Accelerator, *, may_lack: bool
) -> tuple[list[dict[str, Any]], int, list[str]]:
    """The next batches of an update, without those of which all frames are broken.

    All processes make the same number of passes, in each of which they wait for one another: where one has a batch
    less, the others leave one out too.

    Args:
        batches: Of this process; None for one without frames.
        size: Batches of an update in one process.
        accelerator: Of the run.
        may_lack: Whether a batch may be None at all.

    Returns:
        The batches of this process; how many are missing in all; and the frames, of all processes, that are left out
        although they are whole.
    """
    window = [batch for batch in (next(batches) for _ in range(size)) if batch is not None]
    if not may_lack:
        return window, 0, []
    left = accelerator.gather(torch.tensor([len(window)], device=accelerator.device)).tolist()
    missing, common = sum(size - number for number in left), min(left)
    whole = [name for batch in window[common:] for name in batch.get("frame_ids", [])]
    return window[:common], missing, gather_object(whole) if missing else []
