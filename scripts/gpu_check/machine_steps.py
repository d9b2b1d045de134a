"""What the machine is, whether the tests for GPUs pass on it, and the eigen decomposition of many small matrices."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import torch

from bifusion_hf.layers.eigen import smallest_eigenpair
from bifusion_hf.sparse import working_backends

from .running import Note
from .settings import ROOT, TESTS, Settings, median_ms


PACKAGES = (
    *("torch", "triton", "numpy", "transformers", "accelerate", "datasets", "huggingface_hub", "safetensors"),
    *("spconv-cu120", "spconv-cu126", "cumm-cu120", "cumm-cu126", "spconv-triton"),
)


def versions(settings: Settings, note: Note) -> None:
    """The machine; an error without the device."""
    note("python", platform.python_version())
    note("packages", {name: version for name in PACKAGES if (version := _version(name))})
    note("cores", os.cpu_count())
    if settings.is_rehearsal:
        note("device", "cpu")
        return
    if not torch.cuda.is_available():
        raise RuntimeError("torch finds no CUDA device; --dry_run rehearses on the CPU")
    properties = torch.cuda.get_device_properties(0)
    note("device", properties.name)
    note("capability", f"{properties.major}.{properties.minor}")
    note("memory_gib", properties.total_memory / 2**30)
    note("multiprocessors", properties.multi_processor_count)
    note("cuda", torch.version.cuda)
    (torch.ones(64, 64, device="cuda") @ torch.ones(64, 64, device="cuda")).sum().item()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def backends(settings: Settings, note: Note) -> None:
    """Which backends of sparse convolution pass their test, and why others do not."""
    for name, reason in working_backends(settings.device).items():
        note(name, reason or "works")


def gpu_tests(settings: Settings, note: Note) -> None:
    """`pytest -m gpu`, of the files that have such tests; without a GPU they are skipped."""
    files = sorted(str(path) for path in TESTS.rglob("test_*.py") if "mark.gpu" in path.read_text(encoding="utf-8"))
    report = settings.folder / "gpu_tests.xml"
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    # What it prints goes into the log, as far as it comes.
    done = subprocess.run([*command, *files], cwd=ROOT, env=environment)
    if not report.exists():
        raise RuntimeError(f"pytest ended with {done.returncode}, see the log")
    counts, failures = read_report(ElementTree.parse(report).getroot())
    for name, count in counts.items():
        note(name, count)
    note("failures", failures)
    if failures:
        raise RuntimeError(f"{len(failures)} tests fail: {', '.join(failures)}")
    if not counts["tests"] or (counts["passed"] == 0 and not settings.is_rehearsal):
        raise RuntimeError("no test ran, see the log")


def read_report(root: ElementTree.Element) -> tuple[dict[str, int], dict[str, str]]:
    """Counts of a JUnit file of pytest, and the messages of what failed."""
    cases = list(root.iter("testcase"))
    skipped = sum(case.find("skipped") is not None for case in cases)
    failures: dict[str, str] = {}
    for case in cases:
        for kind in ("failure", "error"):
            if (found := case.find(kind)) is not None:
                failures[f"{case.get('classname')}::{case.get('name')}"] = (found.get("message") or "")[:300]
    counts = {"tests": len(cases), "passed": len(cases) - skipped - len(failures), "skipped": skipped}
    return counts, failures


def eigen(settings: Settings, note: Note) -> None:
    """The smallest eigenvalue of symmetric 3x3 matrices on the device, ours and torch's, against the CPU."""
    generator = torch.Generator().manual_seed(0)
    scatter = torch.randn(settings.matrices, 3, 3, generator=generator)
    matrices = scatter @ scatter.transpose(1, 2)
    wanted = torch.linalg.eigvalsh(matrices.double())
    moved = matrices.to(settings.device)
    note("matrices", settings.matrices)
    for name, function in EIGENVALUES.items():
        try:
            difference = (function(moved).cpu().double() - wanted[:, 0]).abs() / wanted[:, 2]
            found = {"ms": median_ms(lambda function=function: function(moved), settings)}
            note(name, {**found, "error": float(difference.max())})
        # cuSOLVER's batched solver is reported to fail on so many.
        except RuntimeError as failure:
            note(name, str(failure)[:300])
    if not float((smallest_eigenpair(moved)[0].cpu().double() - wanted[:, 0]).abs().max()) < 1e-4 * wanted.max():
        raise RuntimeError("the closed form is wrong")


# Name -> the smallest eigenvalues [N] of [N, 3, 3].
EIGENVALUES = {
    "closed form": lambda matrices: smallest_eigenpair(matrices)[0],
    "eigh": lambda matrices: torch.linalg.eigh(matrices)[0][:, 0],
}
