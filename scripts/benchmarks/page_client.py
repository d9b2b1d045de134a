"""A server of the demo page in a process of its own, and visitors that speak to it as a browser does."""

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx


API = "/gradio_api"
# What `FileData` is known by.
FILE_TYPE = {"_type": "gradio.FileData"}


class PageServer:
    """`bifusion-demo` in a process of its own.

    Args:
        process: The process.
        url: Its address.
        folder: Its temporary folder.
    """

    def __init__(self, process: subprocess.Popen, url: str, folder: Path):
        self.process, self.url, self.folder = process, url, folder

    @property
    def resident_mib(self) -> float:
        """Resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    @property
    def open_files(self) -> int:
        """Number of open descriptors."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def left_behind(self) -> dict[str, float]:
        """Files, folders and mebibytes in its temporary folder."""
        parts = list(self.folder.rglob("*"))
        sizes = []
        for part in parts:
            # The server deletes meanwhile.
            with contextlib.suppress(FileNotFoundError):
                if part.is_file():
                    sizes.append(part.stat().st_size)
        return {"files": len(sizes), "folders": len(parts) - len(sizes), "mib": round(sum(sizes) / 2**20, 1)}

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends it by a signal and gives its status."""
        self.process.send_signal(number)
        return self.process.wait(60)


@contextlib.contextmanager
def served(folder: Path, threads: int = 1, seconds: float = 300) -> Iterator[PageServer]:
    """Starts a server and waits until it answers.

    Args:
        folder: For its temporary files and its log.
        threads: Of the network.
        seconds: To wait.

    Raises:
        ValueError: It ended, or gave no answer.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    temporary, log = folder / "temporary", folder / "server.log"
    temporary.mkdir(parents=True, exist_ok=True)
    own = {"HF_HUB_OFFLINE": "1", "TMPDIR": str(temporary), "OMP_NUM_THREADS": str(threads)}
    environment = {**{key: value for key, value in os.environ.items() if key != "GRADIO_TEMP_DIR"}, **own}
    command = [sys.executable, "-m", "bifusion_hf.cli.demo_app", "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    server = PageServer(process, f"http://127.0.0.1:{port}", temporary)
    try:
        end = time.monotonic() + seconds
        while True:
            if process.poll() is not None or time.monotonic() > end:
                raise ValueError(f"the page's server gave no answer: {log.read_text()[-2000:]}")
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(server.url, timeout=5)
                break
            time.sleep(0.5)
        yield server
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


class Visitor:
    """One session of the page.

    Args:
        url: Of the server.
        config: The page's, from an earlier visitor.
    """

    def __init__(self, url: str, config: dict[str, Any] | None = None):
        # No proxies: the server is this machine's.
        self.http = httpx.Client(base_url=url, timeout=600, trust_env=False)
        self.session = secrets.token_hex(6)
        self.config = config or self.http.get("/config").json()

    def __enter__(self) -> "Visitor":
        return self

    def __exit__(self, *_error: Any) -> None:
        self.http.close()

    def upload(self, name: str, content: bytes) -> str:
        """Sends a file and gives its path on the server.

        Raises:
            httpx.HTTPStatusError: It is refused.
        """
        answer = self.http.post(f"{API}/upload", files={"files": (name, content)})
        answer.raise_for_status()
        return answer.json()[0]

    def event(self, element: str, kind: str) -> int:
        """Number of the function behind an event of an element by its id."""
        (component,) = (part["id"] for part in self.config["components"] if part["props"].get("elem_id") == element)
        return next(part["id"] for part in self.config["dependencies"] if [component, kind] in part["targets"])

    def call(self, function: int, data: list[Any]) -> tuple[list[Any] | None, list[str]]:
        """Calls a function: what it gives, None where it failed, and the messages that were shown meanwhile."""
        body = {"data": data, "fn_index": function, "session_hash": self.session, "event_data": None}
        self.http.post(f"{API}/queue/join", json=body).raise_for_status()
        shown: list[str] = []
        with self.http.stream("GET", f"{API}/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                if not line.startswith("data: "):
                    continue
                message = json.loads(line[len("data: ") :])
                if message["msg"] == "log":
                    shown.append(message["log"])
                elif message["msg"] == "process_completed":
                    return (message["output"]["data"] if message["success"] else None), shown
        raise ValueError("the server ended the stream without an answer")

    def download(self, path: str) -> bytes:
        """The content of a file of the server.

        Raises:
            httpx.HTTPStatusError: It is refused.
        """
        answer = self.http.get(f"{API}/file={path}")
        answer.raise_for_status()
        return answer.content


def file_data(path: str) -> dict[str, Any]:
    """A file of the server as an argument of a function."""
    return {"path": path, "orig_name": Path(path).name, "meta": FILE_TYPE}
