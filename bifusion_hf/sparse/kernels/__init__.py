"""The compiled kernels: of sparse convolution, of sums by group, and of the search for a kernel's voxels."""

from pathlib import Path

from ...io.compiled_library import FLAG, POINTER, SIZE, CompiledLibrary


KERNELS = CompiledLibrary(
    "sparse_kernels",
    [Path(__file__).with_name(name) for name in ("convolution.c", "groups.c", "lines.c")],
    # Products and sums become one instruction; a unit is read as float or as two bfloat16.
    ["-O3", "-march=native", "-fPIC", "-shared", "-fopenmp", "-ffp-contract=fast", "-fno-strict-aliasing"],
    {
        "has_bfloat16": (FLAG, []),
        "has_tiles": (FLAG, []),
        "count_pairs": (SIZE, [POINTER] * 2 + [SIZE] * 4 + [FLAG]),
        "fill_pairs": (None, [POINTER] * 4 + [SIZE] * 4 + [FLAG]),
        "is_packed": (FLAG, [SIZE]),
        "packed_units": (SIZE, [SIZE] * 3 + [FLAG]),
        "pack_weights": (None, [POINTER] * 2 + [SIZE] * 3 + [FLAG] * 4),
        "convolve": (None, [POINTER] * 9 + [SIZE] * 5 + [FLAG] * 4),
        "kernel_gradient": (FLAG, [POINTER] * 6 + [SIZE] * 5 + [FLAG] * 2),
        "sum_where_negative": (None, [POINTER] * 4 + [SIZE] * 4 + [FLAG] * 2),
        "find_lines": (None, [POINTER] * 3 + [SIZE] * 4 + [FLAG]),
    },
)
