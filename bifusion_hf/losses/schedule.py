"""How loss weights change as training proceeds."""

from collections.abc import Mapping


# Stage S0 lasts until 30 % of the updates, S1 until 70 %, then S2.
STAGE_ENDS = (0.3, 0.7)

# Group of loss terms -> multiplier of their base weights in S0, S1, S2. "original" is the table that the original
# BiFusion defines but never applies.
STAGE_MULTIPLIERS: Mapping[str, Mapping[str, tuple[float, float, float]]] = {
    "bifusion": {
        "instance": (0.8, 1.0, 1.0),
        "semantic": (0.75, 1.0, 1.1),
        "clip": (0.5, 1.0, 2.0),
        "auxiliary": (1.0, 0.5, 0.25),
    },
    "original": {
        "instance": (0.4, 0.5, 0.5),
        "semantic": (0.3, 0.4, 0.45),
        "clip": (0.2, 0.08, 0.04),
        "auxiliary": (0.1, 0.02, 0.01),
    },
    "none": {
        "instance": (1.0, 1.0, 1.0),
        "semantic": (1.0, 1.0, 1.0),
        "clip": (1.0, 1.0, 1.0),
        "auxiliary": (1.0, 1.0, 1.0),
    },
}

# Loss term -> group.
TERM_GROUPS: Mapping[str, str] = {
    "loss_cls": "instance",
    "loss_mask": "instance",
    "loss_dice": "instance",
    "loss_box": "instance",
    "loss_merge": "instance",
    "loss_sem": "semantic",
    "loss_image_sem": "semantic",
    "loss_clip": "clip",
    "loss_spatial": "auxiliary",
    "loss_noview": "auxiliary",
    "loss_balance": "auxiliary",
}


def stage_multiplier(schedule: str, term: str, progress: float | None) -> float:
    """Multiplier of a loss term's base weight.

    Args:
        schedule: Key of `STAGE_MULTIPLIERS`.
        term: Key of `TERM_GROUPS`.
        progress: Fraction of the updates done, or None where nobody said: then no stage applies and it is 1.

    Raises:
        ValueError: Unknown schedule, or progress outside [0, 1].
    """
    if schedule not in STAGE_MULTIPLIERS:
        raise ValueError(f"stage_schedule is {schedule!r}; expected one of {sorted(STAGE_MULTIPLIERS)}")
    if progress is None:
        return 1.0
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is {progress}; expected a fraction in [0, 1]")
    stage = (progress >= STAGE_ENDS[0]) + (progress > STAGE_ENDS[1])
    return STAGE_MULTIPLIERS[schedule][TERM_GROUPS[term]][stage]


def warmup_multiplier(progress: float | None, start: float, length: float) -> float:
    """0 until `start`, then linearly to 1 over `length`, all fractions of the updates; 1 where progress is None."""
    if progress is None or progress >= start + length:
        return 1.0
    return max(0.0, (progress - start) / length)
