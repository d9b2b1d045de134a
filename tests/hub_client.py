"""Clients of `hub_server`, each in a process of its own, for huggingface_hub reads the address when it is imported.

Importing everything takes seconds, a fork of this process hundredths: so a client is a fork, in which what was read
from the environment is read once more.
"""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import forks
import huggingface_hub
import transformers
from hub_server import TOKEN, HubServer


# Modules of constants that come from the environment, and packages that copy them.
CONSTANTS = ("huggingface_hub.constants", "datasets.config")
COPYING = ("huggingface_hub", "datasets", "transformers", "bifusion_hf")
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
    code = f"{IMPATIENCE}\n{code}"
    if not fresh:
        code = f"from hub_client import read_environment_again\nread_environment_again()\n{code}"
        # Where it starts a new process all the same, that finds this file.
        variables["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return forks.run_python(code, arguments, fresh, environment=variables)


def read_environment_again() -> None:
    """Gives constants that were read from the environment the values that it has now."""
    for name in CONSTANTS:
        constants = sys.modules.get(name)
        if constants is None:
            continue
        before = dict(vars(constants))
        importlib.reload(constants)
        changed = {key: value for key, value in vars(constants).items() if key.isupper() and before.get(key) != value}
        for module in [module for key, module in sys.modules.items() if key.split(".")[0] in COPYING]:
            for key, value in changed.items():
                if key in vars(module) and vars(module)[key] == before.get(key):
                    setattr(module, key, value)
    huggingface_hub.hf_api.api.endpoint = huggingface_hub.constants.ENDPOINT
    transformers.utils.hub.HF_MODULES_CACHE = os.path.join(huggingface_hub.constants.HF_HOME, "modules")
