"""How the threads of OpenMP wait, which is set before torch is loaded."""

import os
import sys


def restart_with_passive_threads() -> None:
    """Starts this process anew with `OMP_WAIT_POLICY=PASSIVE`, unless the variable is set.

    On a CPU, loader workers share the cores with the network. OpenMP threads that spin while they wait for one another
    then slow both many times over. The library reads the variable when it is loaded, with torch, which importing
    anything of this package has done: a process that is known to be bifusion-train has set it before, any other is
    late. The process keeps its id, so that launchers do not notice.
    """
    if "OMP_WAIT_POLICY" in os.environ or os.name != "posix":
        return
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    # What is still in the buffers would be lost.
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
