"""The checks before a run: is everything there that a recipe needs, and does it fit together?

Each check is tried by itself, so that one call tells all that is wrong, not the first thing only.
"""

import dataclasses
import importlib.metadata
import inspect
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from packaging.requirements import Requirement

from ..data.alignment import check_alignment
from ..data.augmentation import AugmentationConfig, JointAugmentation
from ..data.dataset import FrameDataset
from ..data.frames import load_frames
from ..data.mixture import load_rows
from ..import_utils import OPTIONAL_PACKAGES, is_available, torchvision_misfit
from ..recipe.arguments import TrainArguments, check_names
from ..recipe.reading import load_arguments
from ..sparse import SparseTensor, SubmanifoldConv3d, voxelize, working_backends
from .freezing import freeze_for_training, train_mode
from .run import build_model, build_processor, load_initial_weights
from .run_folder import find_checkpoint
from .setup import slow_training_warning


PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
# Two backends sum in another order; beyond this one of them is wrong.
BACKEND_TOLERANCE = 1e-4
# Less free space than this many copies of the float32 weights does not hold a run's checkpoints.
CHECKPOINT_COPIES = 10
# Keys of `init` that name weights.
INIT_SOURCES = ("sv3d", "clip", "vision")
# Frames of the trial step on a CPU.
CPU_FRAMES = 2


@dataclass
class CheckResult:
    """Outcome of one check.

    Args:
        name: What was checked.
        status: `"passed"`, `"failed"` or `"skipped"`.
        detail: What was found.
        remedy: What to do, where it failed.
    """

    name: str
    status: str
    detail: str
    remedy: str = ""


class _NotAsked(Exception):
    """The recipe does not ask for what a check is about."""


class EnvironmentCheck:
    """Checks a machine and a recipe.

    Args:
        recipe: YAML file or name of a packaged recipe; None = defaults.
        overrides: `["--section.key", "value", ...]`.
        num_frames: Rows of each split that are looked at.
        device: That of the run; None = a GPU if there is one.
    """

    def __init__(
        self, recipe: str | None, overrides: Sequence[str] = (), num_frames: int = 8, device: str | None = None
    ):
        self.recipe, self.overrides, self.num_frames = recipe, overrides, num_frames
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.results: list[CheckResult] = []
        self._rows: dict[str, Any] = {}
        self._samples: list[dict] = []

    def run(self) -> list[CheckResult]:
        """Runs all checks; the order is that of a run."""
        self._check("packages", self._packages, "pip install --upgrade the packages named")
        self._check("torchvision", self._torchvision, "remove torchvision, or install the one that fits")
        self._check("optional packages", self._optional_packages, "pip install the extra again")
        self._check(
            "device", self._find_device, "see https://pytorch.org/get-started for a torch that fits the driver"
        )
        self._check("sparse backends", self._backends, "set model.config.sparse_backend to torch")
        self._check("recipe", self._recipe, "bifusion-train --help lists every key")
        for split in ("train", "val"):
            remedy = f"point data.{split} at a folder with data/SPLIT-*.parquet (docs/data.md), or at 'sample'"
            self._check(f"{split} frames", partial(self._frames, split), remedy, needs=["recipe"])
        self._check("model", self._model, "change model.preset or model.config", needs=["recipe"])
        self._check("output folder", self._output, "choose another output_dir, or free space", needs=["model"])
        remedy = "check the path or the connection; init.{0} null starts without, a local file works offline"
        for source in INIT_SOURCES:
            self._check(f"{source} weights", partial(self._weights, source), remedy.format(source), needs=["model"])
        remedy = "bring colour order, registration, intrinsics and pose of these frames in order (docs/data.md)"
        for split in ("train", "val"):
            needs = ["model", f"{split} frames"]
            self._check(f"alignment ({split})", partial(self._alignment, split), remedy, needs=needs)
        remedy = "lower training.batch_size where memory ran out; otherwise the message names the part"
        self._check("forward, backward", self._step, remedy, needs=["alignment (train)"])
        return self.results

    def _check(self, name: str, check: Callable[[], str], remedy: str, needs: Sequence[str] = ()) -> None:
        good = {result.name for result in self.results if result.status == PASSED}
        lacking = [need for need in needs if need not in good]
        if lacking:
            self.results.append(CheckResult(name, SKIPPED, f"needs: {', '.join(lacking)}"))
            return
        try:
            self.results.append(CheckResult(name, PASSED, check()))
        except _NotAsked as reason:
            self.results.append(CheckResult(name, SKIPPED, str(reason)))
        # Whatever goes wrong is what this is here to report.
        except Exception as error:
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            self.results.append(CheckResult(name, FAILED, " ".join(f"{kind}{error}".split()), remedy))

    # The machine

    def _packages(self) -> str:
        try:
            needed = [Requirement(text) for text in importlib.metadata.requires("bifusion_hf") or ()]
        except importlib.metadata.PackageNotFoundError as error:
            raise ValueError("bifusion_hf itself is not installed: run pip install -e . in its folder") from error
        found, bad = [f"python {platform.python_version()}"], []
        for requirement in needed:
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            version = _version(requirement.name)
            found.append(f"{requirement.name} {version}")
            if version is None or not requirement.specifier.contains(version, prereleases=True):
                bad.append(f"{requirement.name} {version}, needed {requirement.specifier}")
        if bad:
            raise ValueError("; ".join(bad))
        return ", ".join(found)

    def _torchvision(self) -> str:
        if not is_available("torchvision"):
            return "not installed, and not needed"
        misfit = torchvision_misfit()
        if misfit:
            raise ValueError(misfit)
        return f"{_version('torchvision')} works with torch {torch.__version__}"

    def _optional_packages(self) -> str:
        return ", ".join(
            f"{package} {_version(package) or 'installed'}" if is_available(package) else f"no {package} [{extra}]"
            for package, extra in OPTIONAL_PACKAGES.items()
        )

    def _find_device(self) -> str:
        if self.device.type == "cpu":
            return f"{os.cpu_count()} CPU cores, no GPU; torch {torch.__version__}, {torch.get_num_threads()} threads"
        properties = torch.cuda.get_device_properties(self.device)
        (torch.ones(64, 64, device=self.device) @ torch.ones(64, 64, device=self.device)).sum().item()
        return f"{torch.cuda.device_count()} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB"

    def _backends(self) -> str:
        """A convolution by every backend that is there, against each other."""
        generator = torch.Generator().manual_seed(0)
        points, features = torch.rand(500, 3, generator=generator), torch.rand(500, 16, generator=generator)
        grid = voxelize(points.to(self.device), torch.zeros(500, dtype=torch.int64, device=self.device), 0.1, 1)
        layer = SubmanifoldConv3d(16, 16, kernel_size=3).to(self.device)
        reasons = working_backends(self.device.type)
        names = [name for name, reason in reasons.items() if reason is None]
        note = "".join(f"; not {name}, which is faster: {reason}" for name, reason in reasons.items() if reason)
        results = []
        for layer.backend in names:
            with torch.no_grad():
                results.append(layer(SparseTensor(grid.mean(features.to(self.device)), grid)).features)
        error = max(float((result - results[0]).abs().max() / results[0].abs().max()) for result in results)
        if not error < BACKEND_TOLERANCE:
            raise ValueError(f"the backends {', '.join(names)} differ by {error:.1e} of the largest value")
        return ", ".join(names) + (f"; they agree to {error:.0e}" if len(names) > 1 else "") + note

    # The recipe

    def _recipe(self) -> str:
        self.arguments: TrainArguments = load_arguments(self.recipe, self.overrides)
        check_names("data.augmentation", self.arguments.data.augmentation, AugmentationConfig.__dataclass_fields__)
        training = self.arguments.training
        if training.mixed_precision == "fp16" and self.device.type == "cpu":
            raise ValueError("training.mixed_precision fp16 needs a GPU; use bf16")
        start = self.arguments.model.pretrained or f"preset {self.arguments.model.preset}"
        return (
            f"{self.recipe or 'defaults'}: {start}, {training.batch_size} x {training.accumulation} frames an update"
        )

    def _frames(self, split: str) -> str:
        data = self.arguments.data
        source, name = getattr(data, split), getattr(data, f"{split}_split")
        if source is None:
            raise _NotAsked(f"data.{split} is null")
        if data.streaming and split == "train":
            rows = list(load_frames(source, name, streaming=True).take(self.num_frames))
            count = f"the first {len(rows)}, streamed,"
        else:
            rows = load_rows(source, name)
            count = f"{len(rows)} frames"
        if not len(rows):
            raise ValueError(f"{source}: split {name!r} has no frame")
        self._rows[split] = rows
        return f"{count} of {source}, split {name!r}"

    def _model(self) -> str:
        arguments = self.arguments
        checkpoint = find_checkpoint(arguments.output_dir, arguments.resume_from_checkpoint)
        self.model = build_model(arguments.model, arguments.seed, checkpoint)
        self.processor = build_processor(arguments.model, self.model.config)
        freeze_for_training(self.model, arguments.training)
        parameters = list(self.model.parameters())
        trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        return f"{sum(parameter.numel() for parameter in parameters):,} parameters, {trainable:,} of them train"

    def _output(self) -> str:
        folder = Path(self.arguments.output_dir).absolute()
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise ValueError(f"output_dir {folder}: cannot write in {existing}")
        free = shutil.disk_usage(existing).free
        needed = CHECKPOINT_COPIES * 4 * sum(parameter.numel() for parameter in self.model.parameters())
        if free < needed:
            raise ValueError(f"output_dir {folder}: {free / 1e9:.1f} GB free, checkpoints need {needed / 1e9:.1f} GB")
        return f"{folder}, {free / 1e9:.0f} GB free"

    def _weights(self, source: str) -> str:
        if getattr(self.arguments.init, source) is None:
            raise _NotAsked(f"init.{source} is null: that part starts without them")
        others = {name: None for name in INIT_SOURCES if name != source}
        alone = dataclasses.replace(self.arguments.init, **others)
        (report,) = load_initial_weights(self.model, alone)
        # The report's last line that counts tensors, without its table.
        return next((line for line in reversed(report.splitlines()) if " loaded" in line), report)

    # Real rows

    def _alignment(self, split: str) -> str:
        """Colours of points against their pixels; training frames as they are and augmented."""
        rows, arguments = self._rows[split], self.arguments
        chosen = np.unique(np.linspace(0, len(rows) - 1, self.num_frames).astype(int)).tolist()
        skip = arguments.data.skip_broken_rows
        datasets = {"": FrameDataset(rows, self.processor, skip_broken=skip)}
        if split == "train":
            augmentation = AugmentationConfig(**arguments.data.augmentation)
            augmentation = JointAugmentation(augmentation) if arguments.data.augment else None
            datasets[" augmented"] = FrameDataset(
                rows,
                self.processor,
                training=True,
                augmentation=augmentation,
                seed=arguments.seed,
                skip_broken=skip,
            )
        parts = []
        for kind, dataset in datasets.items():
            samples = [sample for sample in (dataset[index] for index in chosen) if sample is not None]
            if not samples:
                raise ValueError(f"all {len(chosen)} frames that were looked at are broken")
            worst = max(check_alignment(self.processor.collate([sample]), self.processor) for sample in samples)
            parts.append(f"{255 * worst:.2f}/255{kind}")
        if split == "train":
            self._samples = samples
        broken = f", {len(chosen) - len(samples)} of them broken and skipped" if len(samples) < len(chosen) else ""
        return f"{len(chosen)} frames{broken}, at most {', '.join(parts)}"

    def _step(self) -> str:
        samples = [sample for sample in self._samples if sample.get("instance") is not None]
        if not samples:
            raise ValueError("none of the training frames looked at has instance labels")
        # On a GPU the batch of the recipe, to see that it fits; a CPU would take minutes for it.
        size = self.arguments.training.batch_size if self.device.type == "cuda" else CPU_FRAMES
        model = train_mode(self.model.to(self.device))
        names = inspect.signature(model.forward).parameters
        batch = self.processor.collate([samples[index % len(samples)] for index in range(size)])
        inputs = send_to_device({name: value for name, value in batch.items() if name in names}, self.device)
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.arguments.training.mixed_precision)
        begin = time.perf_counter()
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            output = model(**inputs)
        output.loss.backward()
        values = {name: float(value.detach()) for name, value in output.loss_dict.items()}
        seconds = time.perf_counter() - begin
        trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        silent = [name for name, parameter in trainable.items() if parameter.grad is None]
        if silent:
            raise ValueError(f"no gradient reaches {', '.join(silent)}")
        wild = [name for name, value in values.items() if not np.isfinite(value)]
        wild += [name for name, parameter in trainable.items() if not torch.isfinite(parameter.grad).all()]
        if wild:
            raise ValueError(f"not finite: {', '.join(wild)}")
        took = f"{size} frames in {seconds:.1f} s on {self.device.type}"
        slow = slow_training_warning() if dtype == torch.bfloat16 and self.device.type == "cpu" else ""
        return f"loss {float(output.loss.detach()):.3f}, gradients finite; {took}" + (f"; {slow}" if slow else "")


def _version(package: str) -> str | None:
    """Version of an installed distribution, by its name or that of its import; None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(package, ())
        return importlib.metadata.version(names[0]) if names else None
