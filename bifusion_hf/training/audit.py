"""Liveness audit: what should train is shown to train.

The original BiFusion trained for weeks with a gate, a projection head and a loss that never received a gradient. The
audit watches every trainable tensor and every loss term, prints one table at the start and at each evaluation, and
stops the run when one of them stays without gradient although the data held elements for it.
"""

import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from .sharding import part, whole_norms


# A tensor whose gradient is below this fraction of the model's largest is without gradient: rounding noise.
DEAD_FRACTION = 1e-10
# How often within a window a loss term is probed; all probes must find it dead before the run is stopped.
PROBES_PER_WINDOW = 5
# Nearest parameters of a loss term that a probe looks at: the last layers' backward pass for the first two is cheap,
# and only a term that they take for dead is looked at more closely.
NEAREST_PARAMETERS = (2, 16)
# A table row is a module at this depth of the name.
TABLE_DEPTH = 4


class LivenessError(RuntimeError):
    """Something that should train receives no gradient."""


@dataclass(frozen=True)
class Exemption:
    """What may be without gradient, and why.

    Args:
        pattern: Regular expression, searched in the parameter's name.
        reason: Shown in the table.
        until: `"always"`, `"update 1"`, `"warmup"` (the gate's), or `"no elements"`: in any update without what
            `needs` names.
        needs: A count of the update, a loss term or `"visible_points"`, without which alone the exemption holds.
    """

    pattern: str
    reason: str
    until: str = "always"
    needs: str = ""


# What gets a gradient only from points that the image shows.
IMAGE_SIDE = r"encoder\.(image_encoder|tiny_sa_2d|fusion|film|geometric_encoding)\."
# Without a loss of its own, a residual network's projection of the points feeds nothing but the gate.
POINT_PROJECTION = r"encoder\.point_projection(_norm)?\."
# The one table of what may be without gradient.
EXEMPTIONS = (
    Exemption(r"\bk_proj\.bias$", "softmax does not change when one constant is added to all keys"),
    Exemption(r"\bgate\b", "alpha is held at 0.5 during gate warm-up", until="warmup"),
    Exemption(POINT_PROJECTION, "feeds the gate alone, which is held", until="warmup", needs="loss_clip"),
    Exemption(IMAGE_SIDE, "lies behind an output that starts at zero", until="update 1"),
    Exemption(r"\bframe_adapters\.", "lies behind an output that starts at zero", until="update 1"),
    Exemption(r"encoder\.tiny_sa_3d\.", "lies behind an output that starts at zero", until="update 1"),
    Exemption(f"{IMAGE_SIDE}|{POINT_PROJECTION}", "no point is visible", until="no elements", needs="visible_points"),
    Exemption(r"decoder\.\w*mask_proj\.", "no instance to match", until="no elements", needs="loss_mask"),
    Exemption(r"decoder\.box_head\.", "no instance to match", until="no elements", needs="loss_box"),
    Exemption(r"\bmerge_head\.", "no two objects in adjacent frames", until="no elements", needs="loss_merge"),
    Exemption(r"decoder\.semantic_head\.", "no semantic label", until="no elements", needs="loss_sem"),
    Exemption(r"\bimage_classifier\.", "no semantic label", until="no elements", needs="loss_image_sem"),
)


class LivenessAudit:
    """Watches gradients of parameters and losses.

    Args:
        model: The network, unwrapped, after freezing.
        window: Updates with eligible elements after which something without gradient stops the run.
        warmup_updates: Updates during which the gate is held.
        exempt: Regular expressions of parameter names that are reported, but do not stop the run.
        exemptions: The table of what may be without gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        window: int = 50,
        warmup_updates: int = 0,
        exempt: Sequence[str] = (),
        exemptions: Sequence[Exemption] = EXEMPTIONS,
    ):
        self.model = model
        self.window = window
        self.warmup_updates = warmup_updates
        self.exemptions = [*exemptions, *(Exemption(pattern, "exempt by training.audit_exempt") for pattern in exempt)]
        # Some towers hold tensors without elements (DINOv3 without register tokens).
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.numel()]
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        self._exempted = [
            (e, torch.tensor([bool(re.search(e.pattern, name)) for name in self.names])) for e in self.exemptions
        ]
        self._largest = torch.zeros(len(self.names))
        self._eligible = torch.zeros(len(self.names), dtype=torch.int64)
        self._norms: torch.Tensor | None = None
        self._before: list[torch.Tensor] | None = None
        self._moved: list[float] = []
        self._sizes: list[float] = []
        self._terms: dict[str, dict[str, Any]] = {}
        self._since_check = 0
        self._alpha: dict[str, float] = {}
        self._alignment: float | None = None

    # Parameters

    def observe(self, update: int, counts: Mapping[str, float] | None = None) -> None:
        """Takes in the gradients of an update, after the backward pass and before the optimizer.

        Args:
            update: Number of this update, from 1.
            counts: Elements of each loss term, and `visible_points`, over the update; what is not named is there.

        Raises:
            LivenessError: A trainable tensor had no gradient in a whole window of updates that could give it one.
        """
        norms = self._gradient_norms()
        largest = norms.max()
        fraction = norms / largest.clamp_min(torch.finfo(norms.dtype).tiny)
        self._norms = norms
        eligible = self._may_have_gradient(update, counts or {}).to(norms.device) & (largest > 0)
        self._largest = torch.where(
            eligible, torch.maximum(self._largest.to(norms.device), fraction), self._largest.to(norms.device)
        )
        self._eligible = self._eligible.to(norms.device) + eligible
        self._since_check += 1
        if self._since_check >= self.window:
            self._check_parameters(update)

    def _gradient_norms(self) -> torch.Tensor:
        device = self.parameters[0].device
        norms = torch.zeros(len(self.parameters), device=device)
        present = [index for index, parameter in enumerate(self.parameters) if parameter.grad is not None]
        if present:
            parameters = [self.parameters[index] for index in present]
            norms[present] = whole_norms([part(parameter.grad) for parameter in parameters], parameters)
        return norms

    def _may_have_gradient(self, update: int, counts: Mapping[str, float]) -> torch.Tensor:
        eligible = torch.tensor([parameter.requires_grad for parameter in self.parameters])
        for exemption, concerned in self._exempted:
            if self._applies(exemption, update, counts):
                eligible &= ~concerned
        return eligible

    def _applies(self, exemption: Exemption, update: int, counts: Mapping[str, float]) -> bool:
        if exemption.needs and counts.get(exemption.needs, 1) > 0:
            return False
        if exemption.until == "no elements":
            return True
        return exemption.until == "always" or update <= (1 if exemption.until == "update 1" else self.warmup_updates)

    def _check_parameters(self, update: int) -> None:
        self._since_check = 0
        ripe = self._eligible >= self.window
        alive = self._largest > DEAD_FRACTION
        dead = (ripe & ~alive).cpu()
        self._largest = torch.where(ripe | alive, torch.zeros_like(self._largest), self._largest)
        self._eligible = torch.where(ripe | alive, torch.zeros_like(self._eligible), self._eligible)
        if dead.any():
            names = [name for name, is_dead in zip(self.names, dead.tolist(), strict=True) if is_dead]
            shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
            raise LivenessError(
                f"update {update}: no gradient in {self.window} updates for {len(names)} trainable tensors: {shown}. "
                "Nothing that depends on them reaches the loss: a no_grad, a detach, a term switched off, or a "
                "module that is not called. Freeze them, or name them in training.audit_exempt.\n" + self.table()
            )

    def before_step(self) -> None:
        """Remembers the parameters, so that `after_step` can tell how far they moved."""
        self._before = [part(parameter.detach()).clone() for parameter in self.parameters]

    def after_step(self) -> None:
        """Measures how far each tensor moved since `before_step`."""
        with torch.no_grad():
            change = torch._foreach_sub([part(parameter.detach()) for parameter in self.parameters], self._before)
            self._moved = whole_norms(change, self.parameters).tolist()
            self._sizes = whole_norms(self._before, self.parameters).tolist()
        self._before = None

    # Loss terms

    def wants_probe(self, counts: Mapping[str, float]) -> list[str]:
        """Loss terms whose gradient is to be measured in this update.

        Args:
            counts: Elements that each term applies to in this update, over all processes.
        """
        due = []
        for name, count in counts.items():
            if count <= 0 or not name.startswith("loss"):
                continue
            term = self._term(name)
            term["eligible"] += 1
            if term["eligible"] >= term["next"]:
                due.append(name)
        return due

    def record_probe(self, update: int, name: str, norm: float) -> None:
        """Takes in a measured gradient norm of a term.

        Raises:
            LivenessError: The term had no gradient in any probe over a window of updates that held elements for it.
        """
        term = self._terms[name]
        term.update(norm=norm, probed=update)
        # NaN is no proof of death: such an update is skipped anyway.
        if norm != 0:
            # A living term is looked at once a window.
            term.update(eligible=0, next=self.window, dead_probes=0)
            return
        term["dead_probes"] += 1
        term["next"] = term["eligible"] + max(1, self.window // PROBES_PER_WINDOW)
        if term["eligible"] >= self.window and term["dead_probes"] >= PROBES_PER_WINDOW:
            raise LivenessError(
                f"update {update}: the loss {name} had no gradient in {term['dead_probes']} probes over "
                f"{term['eligible']} updates that held elements for it; its value is {term['value']}. It is "
                "detached, or constant. Give it a gradient, or set its weight to 0.\n" + self.table()
            )

    def record_values(self, values: Mapping[str, float]) -> None:
        """Latest values of the loss terms, for the table."""
        for name, value in values.items():
            if name in self._terms:
                self._terms[name]["value"] = value

        self._alpha = {name: values[name] for name in ("alpha_mean", "alpha_std") if name in values} or self._alpha

    def record_alignment(self, errors: Sequence[float]) -> None:
        """Colour differences between points and their pixels, fractions of 1, for the table."""
        self._alignment = max([*errors, *([] if self._alignment is None else [self._alignment])], default=None)

    def _term(self, name: str) -> dict[str, Any]:
        return self._terms.setdefault(name, {"eligible": 0, "next": 1, "dead_probes": 0, "norm": None, "value": None})

    # Report

    def notes(self, name: str, parameter: nn.Parameter) -> str:
        """Why a tensor is, or may be, without gradient; empty where it has to have one."""
        if not parameter.requires_grad:
            return "frozen"
        return "; ".join(
            f"{e.reason} ({e.until})" if e.until != "always" else e.reason
            for e in self.exemptions
            if re.search(e.pattern, name)
        )

    def table(self) -> str:
        """One table of modules, loss terms, the gate and the alignment, as they were last recorded."""
        rows: dict[str, list[int]] = {}
        for index, name in enumerate(self.names):
            rows.setdefault(".".join(name.split(".")[:-1][:TABLE_DEPTH]) or name, []).append(index)
        norms = self._norms.tolist() if self._norms is not None else [0.0] * len(self.names)
        width = max([len(name) for name in rows], default=10)
        lines = [f"{'module':<{width}}  {'parameters':>10}  {'state':<9}  {'gradient':>9}  {'update':>8}  note"]
        for module, indices in rows.items():
            trainable = [index for index in indices if self.parameters[index].requires_grad]
            state = "trainable" if len(trainable) == len(indices) else "part" if trainable else "frozen"
            gradient = sum(norms[index] ** 2 for index in indices) ** 0.5
            silent = [index for index in trainable if not norms[index] > DEAD_FRACTION * max(norms)]
            lines.append(
                f"{module:<{width}}  {sum(self.parameters[index].numel() for index in indices):>10,}  {state:<9}  "
                f"{gradient:>9.2e}  {self._relative_update(indices):>8}  {self._silence(silent)}".rstrip()
            )
        for name, term in self._terms.items():
            value = "-" if term["value"] is None else f"{term['value']:.4f}"
            norm = "-" if term["norm"] is None else f"{term['norm']:.2e} in update {term['probed']}"
            lines.append(f"{name:<{width}}  value {value}  gradient {norm}")
        if self._alpha:
            lines.append(
                "alpha on visible points: mean {alpha_mean:.3f}, spread {alpha_std:.3f}".format(**self._alpha)
            )
        if self._alignment is not None:
            lines.append(f"colour of points against their pixels: at most {self._alignment * 255:.2f}/255")
        return "\n".join(lines)

    def _relative_update(self, indices: Iterable[int]) -> str:
        """|change| / |parameters| of a row in the last step that was measured."""
        if not self._moved:
            return "-"
        moved, size = (sum(norms[index] ** 2 for index in indices) ** 0.5 for norms in (self._moved, self._sizes))
        return f"{moved / size:.1e}" if size > 0 else "from 0" if moved > 0 else "0"

    def _silence(self, indices: Iterable[int]) -> str:
        """Notes on the tensors of a row that have no gradient right now."""
        notes: dict[str, int] = {}
        for index in indices:
            note = self.notes(self.names[index], self.parameters[index]) or "NO GRADIENT"
            notes[note] = notes.get(note, 0) + 1
        return "; ".join(f"{count} without gradient: {note}" for note, count in notes.items())


def probe_terms(
    terms: Mapping[str, torch.Tensor], counts: Mapping[str, int], accelerator: Accelerator
) -> dict[str, float]:
    """`probe_loss` of loss terms, the largest over processes; all of them call this together.

    Args:
        terms: Scalars.
        counts: Samples of this process that each term applies to.
        accelerator: Knows the processes, and the scale of losses under fp16.

    Returns:
        Of the terms that had something to select in any process.
    """
    # Under fp16 small gradients would vanish without the scale that the backward pass has too.
    scale = 1.0 if accelerator.scaler is None else accelerator.scaler.get_scale()
    # A value of exactly 0 means that the term selected nothing in this batch: no evidence.
    evidence = [float(counts[name] > 0 and bool(term.detach() != 0)) for name, term in terms.items()]
    norms = [has and probe_loss(scale * term) / scale for has, term in zip(evidence, terms.values(), strict=True)]
    found = torch.tensor([[norms, evidence]], device=accelerator.device)
    norms, evidence = accelerator.gather(found).amax(0).tolist()
    return {name: norm for name, norm, has in zip(terms, norms, evidence, strict=True) if has}


def probe_loss(loss: torch.Tensor) -> float:
    """L2 norm of the gradient of a loss with respect to the parameters nearest to it, before the backward pass.

    Args:
        loss: Scalar; its graph is kept.

    Returns:
        0 where even more distant parameters have no gradient.
    """
    norm = 0.0
    for limit in NEAREST_PARAMETERS:
        norm = norm or gradient_norm(loss, nearest_parameters(loss, limit))
    return norm


def nearest_parameters(loss: torch.Tensor, limit: int) -> list[torch.Tensor]:
    """The parameters closest to a loss in its graph, breadth first."""
    found, seen, queue = [], set(), deque([loss.grad_fn])
    while queue and len(found) < limit:
        node = queue.popleft()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and variable.requires_grad:
            found.append(variable)
        queue.extend(parent for parent, _ in node.next_functions)
    return found


def gradient_norm(loss: torch.Tensor, parameters: Sequence[torch.Tensor]) -> float:
    """L2 norm of the gradient of a loss, 0 where it has none; the graph is kept."""
    if not loss.requires_grad or loss.grad_fn is None or not parameters:
        return 0.0
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    present = [gradient for gradient in gradients if gradient is not None]
    return float(torch.stack([gradient.float().norm() for gradient in present]).norm()) if present else 0.0


def alpha_statistics(outputs: Any, batch: Mapping[str, Any]) -> tuple[float, float] | None:
    """Mean and standard deviation of the gate over the visible points of a batch; None without a gate."""
    weights = getattr(outputs, "fusion_weights", None)
    if weights is None or batch.get("point_visible") is None:
        return None
    values = weights.detach().float().squeeze(-1)[batch["point_visible"] & batch["point_mask"]]
    return (float(values.mean()), float(values.std(correction=0))) if values.numel() else None
