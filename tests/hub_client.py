"""Clients of `hub_server`, each in a process of its own, for huggingface_hub reads the address when it is imported.

Importing everything takes seconds, a fork of this process hundredths: so a client is a fork (`forks`).
"""

import os
import subprocess
from pathlib import Path

import forks
from hub_server import TOKEN, HubServer


# The client waits up to 24 seconds before it believes that the network is down.
IMPATIENCE = "import time; _sleep = time.sleep; time.sleep = lambda seconds: _sleep(min(seconds, 0.02))"


def run_python(
    code: str,
    hub: HubServer,
    home: Path,
    *arguments: str,
    token: str | None = TOKEN,
    fresh: bool = False,
    **environment: str,
) -> subprocess.CompletedProcess:
    """Runs code in a process of its own whose Hub is the stand-in and whose caches lie in `home`.

    Args:
        code: Python source; `arguments` are its sys.argv[1:].
        hub: The server (running or stopped).
        home: HF_HOME; the same folder again means the same cache.
        arguments: Strings.
        token: Of the client; None = not logged in.
        fresh: A new process that has imported nothing, in place of a fork.
        environment: Further variables, such as HF_HUB_OFFLINE="1".
    """
    variables = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    variables |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "30"}
    variables |= {"HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE"):
        variables.pop(name, None)
    if token is not None:
        variables["HF_TOKEN"] = token
    variables |= environment
    return forks.run_python(f"{IMPATIENCE}\n{code}", arguments, fresh, environment=variables)
