"""The data set of prepared samples for a DataLoader: rows of frames in, `BiFusionCollator`'s samples out.

All randomness of a sample (point sampling, augmentation, query subset) comes from a generator of (seed, epoch, row),
so that it does not depend on the number of processes and workers, nor on which of them reads the row.
"""

import logging
import zlib
from collections import UserDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .alignment import alignment_error
from .augmentation import JointAugmentation, Sample
from .collator import FrameProcessor
from .frames import RGBDFrame, frame_from_row
from .mixture import Mixture


logger = logging.getLogger(__name__)

Row = Mapping[str, Any] | RGBDFrame


class PreparedSample(UserDict):
    """What the processor and the augmentation made of a frame.

    No `dict`: of dicts transformers' Trainer leaves the collator only what the network's forward names
    (`remove_unused_columns`), and a batch is made of more than that.
    """


class FrameDataset(Dataset):
    """Samples of frames, by row or by (epoch, row).

    With the epoch in the key, loader workers may run ahead into the next one; without, it is the one that was set.

    Args:
        rows: Rows of `load_frames`, `RGBDFrame`s, or a `Mixture` of either. A stream has no rows by index; its rows
            go through `prepare_streamed`.
        processor: Samples the points.
        training: Draw points, augmentation and query subset anew in every epoch, from (seed, epoch, row); otherwise
            sample as at inference, without augmentation.
        augmentation: Applied in training.
        seed: See `training`.
        skip_broken: Give None for a row that cannot be read or prepared, which `BiFusionCollator` leaves out, and log
            its name, instead of raising.

    Raises:
        ValueError: An augmentation without `training`.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        processor: FrameProcessor,
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
        self.rows = rows
        self.processor = processor
        self.training = training
        self.augmentation = augmentation
        self.seed = seed
        self.skip_broken = skip_broken
        # Shared memory, so that a change reaches workers that outlive the epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def mixture(self) -> Mixture | None:
        """The rows where they are of several sources: it says what an epoch takes of each."""
        return self.rows if isinstance(self.rows, Mixture) else None

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of rows that are asked for without one, in running workers too."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | tuple[int, int]) -> PreparedSample | None:
        """The sample of a row; see `prepare`."""
        epoch, index = key if isinstance(key, tuple) else (int(self._epoch), key)
        index = range(len(self))[index]
        place = f"row {index}" if self.mixture is None else self.mixture.place(index)
        return self.prepare(self.rows[index], epoch, index, place)

    def prepare_streamed(self, row: Row, epoch: int, position: int) -> PreparedSample | None:
        """The sample of a streamed row, whose position is not its own: in the seed the frame's name stands for it."""
        name = row.frame_id if isinstance(row, RGBDFrame) else row.get("frame_id")
        return self.prepare(row, epoch, zlib.crc32(str(name).encode()), f"row {position} of the stream")

    def prepare(self, row: Row, epoch: int, index: int, place: str) -> PreparedSample | None:
        """Reads and prepares a row.

        Args:
            row: A row of `frame_features()`, or a frame.
            epoch: Second part of the seed of its draws.
            index: Third part of it: what stands for the row.
            place: How messages name the row.

        Returns:
            The sample of `BiFusionProcessor.prepare_frame`, augmented, with `alignment_error` (measured after the
            geometric part and before the colour jitter) and, in training, `query_seed`; None for a broken row that is
            skipped.

        Raises:
            ValueError: The row is broken; the message names the row and the frame.
        """
        try:
            return PreparedSample(self._prepare(row, epoch, index))
        # Whatever a decoder, a file system or a check raises, it is the row that has to be named.
        except Exception as error:
            message = f"{place} ({self._name(row)}) is broken: {error}"
            if not self.skip_broken:
                raise ValueError(message) from error
            logger.warning("%s; skipped", message)
            return None

    def _name(self, row: Row) -> str:
        """How messages name a row beside its place."""
        return f"frame {row.frame_id if isinstance(row, RGBDFrame) else row.get('frame_id')!r}"

    def _prepare(self, row: Row, epoch: int, index: int) -> Sample:
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
