"""How the C library's allocator treats large blocks."""

import ctypes
import sys


# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Larger blocks go back to the system when they are freed; glibc knows no higher bound.
LARGEST_KEPT = 32 * 2**20
# So much may lie free at the end of the heap.
MOST_KEPT = 256 * 2**20


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that it frees, up to 256 MB, for its next blocks.

    Images and features of a frame are blocks of some megabytes. By default glibc takes each from the system and gives
    it back, and the system clears each page when it is first touched, at every frame anew. The commands call this; a
    program that predicts with a pipeline may.

    Returns:
        Whether the C library was told; only glibc can be.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    # Other C libraries have the function and ignore it; glibc answers 1.
    return all(
        [mallopt(_M_MMAP_THRESHOLD, ctypes.c_int(LARGEST_KEPT)), mallopt(_M_TRIM_THRESHOLD, ctypes.c_int(MOST_KEPT))]
    )


def give_back_freed_memory() -> bool:
    """Gives the system the pages that are free in the heaps of all threads.

    Each thread of a server has a heap of its own, which grows to what its largest request took and has holes after it:
    over hundreds of requests some hundred megabytes that nobody uses.

    Returns:
        Whether the C library has a way; only glibc does.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return False
    trim(0)
    return True
