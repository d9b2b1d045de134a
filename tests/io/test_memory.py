import platform
import resource
import subprocess
import sys

import pytest
from light_package import light_package

from bifusion_hf.io.memory import give_back_freed_memory


# Blocks of 8 MB, taken, touched and freed by turns, cost new pages each time where glibc gives them back. They are
# not NumPy's, which asks the system for pages of two megabytes, and three: of one or two, glibc may keep the memory.
PROGRAM = """
import ctypes, resource, sys
from bifusion_hf.io.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p

def take_and_free():
    blocks = [ctypes.c_void_p(library.malloc(2**23)) for _ in range(3)]
    for block in blocks:
        ctypes.memset(block, 1, 2**23)
    for block in blocks:
        library.free(block)

take_and_free()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    take_and_free()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_blocks_that_are_freed_and_taken_again_cost_no_new_pages(tmp_path):
    # The test is of what the program does to itself.
    environment = {name: value for name, value in light_package(tmp_path).items() if not name.startswith("MALLOC_")}
    counts = {}
    for how in ("keep", "give back"):
        command = [sys.executable, "-c", PROGRAM, how]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=tmp_path)
        counts[how] = int(done.stdout)
    # Of the second there are 120,000, or less where the system gives pages of two megabytes.
    assert counts["keep"] < 100 and counts["keep"] < counts["give back"] / 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_holes_in_a_heap_are_given_back():
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    # Those that stay lie between the others.
    blocks = [bytearray(b"x" * 60_000) for _ in range(2000)]
    blocks = blocks[::10]
    before = resident()
    assert give_back_freed_memory() and len(blocks) == 200
    assert before - resident() > 60_000_000
