"""Data sets of prepared samples for a DataLoader: rows of frames in, `BiFusionCollator`'s samples out.

All randomness of a sample (point sampling, augmentation, query subset) comes from a generator of (seed, epoch, row),
so that it does not depend on the number of processes and workers, nor on which of them reads the row.
"""

import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from .alignment import alignment_error
from .augmentation import JointAugmentation, Sample
from .frames import RGBDFrame, frame_from_row


if TYPE_CHECKING:
    import datasets

    from ..processing_bifusion import BiFusionProcessor

logger = logging.getLogger(__name__)

Row = Mapping[str, Any] | RGBDFrame


class SampleMaker:
    """Turns rows into samples; what both kinds of data set share.

    Args:
        processor: Samples the points.
        training: Draw anew in every epoch; otherwise sample as at inference, without augmentation.
        augmentation: Applied in training.
        seed: First part of the seed of every draw.
        skip_broken: Give None for a row that cannot be read or prepared, and log its name, instead of raising.

    Raises:
        ValueError: An augmentation without `training`.
    """

    def __init__(
        self,
        processor: "BiFusionProcessor",
        *,
        training: bool = False,
        augmentation: JointAugmentation | None = None,
        seed: int = 0,
        skip_broken: bool = False,
    ):
        if augmentation is not None and not training:
            raise ValueError(
                "augmentation is given while training is False; expected None: evaluation augments nothing"
            )
        self.processor = processor
        self.training = training
        self.augmentation = augmentation
        self.seed = seed
        self.skip_broken = skip_broken
        # Shared memory, so that a change reaches workers that outlive the epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    @epoch.setter
    def epoch(self, value: int):
        self._epoch.fill_(value)

    def __call__(self, row: Row, index: int, place: str, epoch: int | None = None) -> Sample | None:
        """Prepares a row.

        Args:
            row: A row of `frame_features()`, or a frame.
            index: What stands for the row in the seed.
            place: How messages name the row.
            epoch: Of the draws; None = the one that was set.

        Returns:
            The sample of `BiFusionProcessor.prepare_frame`, augmented, with `alignment_error` (measured after the
            geometric part and before the colour jitter) and, in training, `query_seed`.

        Raises:
            ValueError: The row is broken; the message names the row and the frame.
        """
        try:
            return self._make(row, index, self.epoch if epoch is None else epoch)
        # Whatever a decoder, a file system or a check raises, it is the row that has to be named.
        except Exception as error:
            name = row.frame_id if isinstance(row, RGBDFrame) else row.get("frame_id")
            message = f"{place} (frame {name!r}) is broken: {error}"
            if not self.skip_broken:
                raise ValueError(message) from error
            logger.warning("%s; skipped", message)
            return None

    def _make(self, row: Row, index: int, epoch: int) -> Sample:
        frame = row if isinstance(row, RGBDFrame) else frame_from_row(row)
        if not self.training:
            sample = self.processor.prepare_frame(frame)
            sample["alignment_error"] = alignment_error(sample)
            return sample
        rng = np.random.default_rng([self.seed, epoch, index])
        if self.augmentation is not None:
            frame = self.augmentation.frame(frame, rng)
        sample = self.processor.prepare_frame(frame, rng)
        if self.augmentation is not None:
            sample = self.augmentation.geometric(sample, rng)
        sample["alignment_error"] = alignment_error(sample)
        if self.augmentation is not None:
            sample = self.augmentation.photometric(sample, rng)
        sample["query_seed"] = int(rng.integers(2**62))
        return sample


class FrameDataset(Dataset):
    """Map-style data set over the rows of `load_frames`, or over frames.

    Args:
        rows: Rows of `frame_features()` or `RGBDFrame`s.
        processor: Samples the points.
        training: Draw points, augmentation and query subset anew in every epoch, from (seed, epoch, row); otherwise
            sample as at inference.
        augmentation: Applied in training.
        seed: See `training`.
        skip_broken: Give None for a broken row, which `BiFusionCollator` leaves out, instead of raising.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        processor: "BiFusionProcessor",
        *,
        training: bool = False,
        augmentation: JointAugmentation | None = None,
        seed: int = 0,
        skip_broken: bool = False,
    ):
        self.rows = rows
        self.maker = SampleMaker(
            processor, training=training, augmentation=augmentation, seed=seed, skip_broken=skip_broken
        )

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the draws, in running workers too."""
        self.maker.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample | None:
        """The sample of a row; see `SampleMaker.__call__`."""
        index = range(len(self))[index]
        return self.maker(self.rows[index], index, f"row {index}")


class StreamingFrameDataset(IterableDataset):
    """Iterable data set over a stream of rows, split over processes and workers so that each row is read once.

    The split is that of `datasets`: by files where there are enough, else by rows over the processes (workers without
    a file stay idle). The place of a row in a stream is not its own, so the frame's name stands for it in the seed.

    Args:
        rows: `load_frames(..., streaming=True)`, shuffled or not.
        processor: Samples the points.
        process_index: Of this process.
        num_processes: Number of processes.
        training: See `FrameDataset`; likewise the remaining arguments. `skip_broken` drops a broken row.
        augmentation: Applied in training.
        seed: See `training`.
        skip_broken: See `training`.

    Raises:
        ValueError: `process_index` is out of range.
    """

    def __init__(
        self,
        rows: "datasets.IterableDataset",
        processor: "BiFusionProcessor",
        *,
        process_index: int = 0,
        num_processes: int = 1,
        training: bool = False,
        augmentation: JointAugmentation | None = None,
        seed: int = 0,
        skip_broken: bool = False,
    ):
        from datasets.distributed import split_dataset_by_node

        if not 0 <= process_index < num_processes:
            raise ValueError(f"process_index is {process_index}; expected 0..{num_processes - 1}")
        self.rows = split_dataset_by_node(rows, rank=process_index, world_size=num_processes)
        self.maker = SampleMaker(
            processor, training=training, augmentation=augmentation, seed=seed, skip_broken=skip_broken
        )

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the draws and of the order of a shuffled stream, in running workers too."""
        self.maker.epoch = epoch
        self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[Sample]:
        """The samples of this process and worker."""
        for position, row in enumerate(self.rows):
            name = str(row.get("frame_id"))
            sample = self.maker(row, zlib.crc32(name.encode()), f"row {position} of this worker's stream")
            if sample is not None:
                yield sample
