"""What bfloat16 costs on this machine."""

import time

import torch


# With bfloat16 instructions a product is rarely slower than in float32; without them it takes tens of times as long.
SLOW_BFLOAT16 = 3.0


def slow_bfloat16_warning(setting: str, remedy: str) -> str:
    """What to say of bfloat16 on this CPU; empty where its products are about as fast as float32's, or faster.

    Measured, not looked up: a processor's name or flags do not say what the installed torch makes of them.

    Args:
        setting: What asks for bfloat16.
        remedy: What to do instead.
    """
    ratio = bfloat16_slowdown()
    if ratio < SLOW_BFLOAT16:
        return ""
    return (
        f"{setting}: on this CPU a product of bfloat16 matrices takes {ratio:.0f} times as long as one of float32; "
        f"{remedy}"
    )


def bfloat16_slowdown(size: int = 192, repeats: int = 3) -> float:
    """Time of a product of bfloat16 matrices on the CPU by that of float32 ones.

    Args:
        size: Rows and columns.
        repeats: Of each, in turn; the fastest count.
    """
    seconds = {torch.float32: [], torch.bfloat16: []}
    # The first round pays for what is set up once.
    for _ in range(repeats + 1):
        for dtype, found in seconds.items():
            matrix = torch.ones(size, size, dtype=dtype)
            begin = time.perf_counter()
            matrix @ matrix
            found.append(time.perf_counter() - begin)
    return min(seconds[torch.bfloat16][1:]) / min(seconds[torch.float32][1:])
