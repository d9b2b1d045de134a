"""The measurement of `page_load`, which needs what Gradio brings along."""

import io
import itertools
import json
import os
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from bifusion_hf.demo.serving import FOLDER_PREFIX, UPLOAD_MEBIBYTES
from bifusion_hf.demo.upload import intrinsics_text

from .page_client import API, PageServer, Visitor, file_data, served


USERS = (1, 5, 20)
# Shares of the requests by `USERS`.
SHARES = (0.15, 0.25, 0.6)
STRIDE = 4
# One in so many requests sends a file that is no depth image.
BAD_EVERY = 10
# Memory is looked at after so many answers.
LOOK_EVERY = 20


@dataclass(frozen=True)
class Upload:
    """A small frame as a visitor's files.

    Args:
        image: PNG.
        depth: `.npy` in metres.
        intrinsics: As the form takes them.
    """

    image: bytes
    depth: bytes
    intrinsics: str


def make_uploads(count: int) -> list[Upload]:
    """Sample frames at a quarter of their size."""
    from bifusion_hf.cli.demo_app import read_samples
    from bifusion_hf.data.frames import scale_intrinsics

    uploads = []
    for frame in read_samples("sample", "val", range(count)):
        image, depth = io.BytesIO(), io.BytesIO()
        Image.fromarray(frame.image[::STRIDE, ::STRIDE]).save(image, format="PNG")
        np.save(depth, frame.depth[::STRIDE, ::STRIDE])
        camera = scale_intrinsics(frame.intrinsics, 1 / STRIDE, 1 / STRIDE)
        uploads.append(Upload(image.getvalue(), depth.getvalue(), intrinsics_text(camera)))
    return uploads


@dataclass(frozen=True)
class Answer:
    """How a request ended.

    Args:
        seconds: From the first byte of the upload to the answer.
        content: Of the JSON file without the frame's name, and of the PLY file; None where it was refused.
        named: The status and the JSON file name the visitor's own frame.
        messages: That the page showed.
    """

    seconds: float
    content: tuple[str, bytes] | None
    named: bool
    messages: list[str]


def ask(url: str, config: dict[str, Any], upload: Upload, name: str, good: bool) -> Answer:
    """A visitor that sends a frame and takes both downloads.

    Args:
        url: Of the server.
        config: Of the page.
        upload: The frame.
        name: Of its depth file.
        good: False sends text in place of depth.
    """
    with Visitor(url, config) as visitor:
        start = time.perf_counter()
        image = visitor.upload("image.png", upload.image)
        depth = visitor.upload(f"{name}.npy", upload.depth if good else b"no depth at all")
        data = [0.5, "", file_data(image), file_data(depth), None, upload.intrinsics, None]
        outputs, messages = visitor.call(visitor.event("run", "click"), data)
        seconds = time.perf_counter() - start
        if outputs is None:
            return Answer(seconds, None, False, [*messages, "the function failed"])
        if not isinstance(outputs[5], str):
            return Answer(seconds, None, any(name in message for message in messages), messages)
        segments = json.loads(visitor.download(outputs[4]["value"]["path"]))
        points = visitor.download(outputs[3]["value"]["path"])
    named = outputs[5].startswith(f"**{name}**") and segments.pop("frame_id") == name
    return Answer(seconds, (json.dumps(segments, sort_keys=True), points), named, messages)


class Load:
    """Requests by several visitors at once, and the tally of their answers.

    Args:
        server: The server.
        uploads: The frames.
    """

    def __init__(self, server: PageServer, uploads: Sequence[Upload]):
        self.server, self.url, self.uploads = server, server.url, uploads
        with Visitor(server.url) as visitor:
            self.config = visitor.config
        self.expected: list[tuple[str, bytes]] = []
        self.numbers = itertools.count()
        self.tally = {"right": 0, "refused as it should": 0, "mixed or wrong": 0, "failed": 0}
        self.problems: list[str] = []
        # By the number of answers before.
        self.resident_mib: dict[int, float] = {}
        self._lock = threading.Lock()

    def learn(self) -> None:
        """Asks for every frame alone: its own result, which must be no other's."""
        for index, upload in enumerate(self.uploads):
            answer = ask(self.url, self.config, upload, f"alone_{index}", True)
            if answer.content is None or not answer.named:
                raise ValueError(f"frame {index} alone: {answer.messages}")
            self.expected.append(answer.content)
        if len({content for content, _ in self.expected}) < len(self.uploads):
            raise ValueError("two frames have the same result; a mixed answer would not show")

    def run(self, users: int, requests: int) -> dict[str, float]:
        """Requests in turn by so many visitors at once; their latencies."""

        def one(_request: int) -> float:
            number = next(self.numbers)
            good = number % BAD_EVERY != BAD_EVERY - 1
            index = number % len(self.uploads)
            try:
                answer = ask(self.url, self.config, self.uploads[index], f"frame_{number:05d}", good)
            except (httpx.HTTPError, ValueError, LookupError) as error:
                self._count("failed", f"{number}: {type(error).__name__}: {error}")
                return float("nan")
            if good and answer.content is None:
                self._count("failed", f"{number}: {answer.messages}")
            elif good:
                same = answer.named and answer.content == self.expected[index]
                self._count("right" if same else "mixed or wrong", f"{number}: {answer.messages}")
            else:
                refused = answer.content is None and answer.named and len(answer.messages) == 1
                self._count("refused as it should" if refused else "mixed or wrong", f"{number}: {answer.messages}")
            return answer.seconds

        start = time.perf_counter()
        with ThreadPoolExecutor(users) as pool:
            seconds = np.array(list(pool.map(one, range(requests))))
        print(users, requests, self.tally, flush=True)
        median, late = np.nanpercentile(seconds, [50, 95])
        return {
            "users": users,
            "requests": requests,
            "median_s": round(float(median), 3),
            "p95_s": round(float(late), 3),
            "requests_per_s": round(requests / (time.perf_counter() - start), 2),
            "load_average": round(os.getloadavg()[0], 2),
        }

    def _count(self, outcome: str, problem: str) -> None:
        with self._lock:
            self.tally[outcome] += 1
            if outcome in ("mixed or wrong", "failed"):
                self.problems.append(problem[:300])
            if (answers := sum(self.tally.values())) % LOOK_EVERY == 0:
                self.resident_mib[answers] = self.server.resident_mib


def forbidden_reads(server: PageServer) -> dict[str, int]:
    """Status of attempts to read files outside of what the page serves."""
    (own,) = server.folder.glob(f"{FOLDER_PREFIX}*")
    secret = server.folder / "secret.txt"
    secret.write_text("secret")
    repository = Path(__file__).parents[2]
    places = [
        "/etc/passwd",
        "//etc/passwd",
        f"{own}/../../../../../../../../etc/passwd",
        f"{own}/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        f"{own}/..%2fsecret.txt",
        str(secret),
        f"{own}/.in-use",
        f"{own}/served/../.in-use",
        "../setup.cfg",
        "setup.cfg",
        str(repository / "setup.cfg"),
        str(repository / "bifusion_hf/assets/bifusion_tiny_rooms/config.json"),
        "/proc/self/environ",
        f"/proc/{server.process.pid}/environ",
        "file:///etc/passwd",
        "%00/etc/passwd",
    ]
    addresses = [f"{API}/file={place}" for place in places]
    addresses += [f"/static/{place}" for place in ("../../../../etc/passwd", "%2e%2e/%2e%2e/%2e%2e/etc/passwd")]
    addresses += [f"{API}/file/{secret}", f"{API}/proxy=file:///etc/passwd", f"{API}/proxy=http://127.0.0.1/"]
    found = {}
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        for address in addresses:
            found[address.replace(str(server.folder), "TEMP").replace(str(repository), "REPOSITORY")] = client.get(
                address
            ).status_code
    return found


def forbidden_arguments(server: PageServer, upload: Upload) -> dict[str, bool]:
    """Whether a visitor gets a frame from files that were not uploaded: on the server's disk, or at an address."""
    np.save(server.folder / "depth.npy", np.load(io.BytesIO(upload.depth)))
    found = {}
    with Visitor(server.url) as visitor:
        image = visitor.upload("image.png", upload.image)
        places = {
            "a file of the server": str(server.folder / "depth.npy"),
            "an address": f"{server.url}{API}/file={image}",
            "another address": "http://[::1]/depth.npy",
        }
        for name, place in places.items():
            data = [0.5, "", file_data(image), file_data(place), None, upload.intrinsics, None]
            outputs, _ = visitor.call(visitor.event("run", "click"), data)
            found[name] = outputs is not None and isinstance(outputs[5], str)
    return found


def large_uploads(server: PageServer) -> dict[str, int]:
    """Statuses of uploads around the bound, and of a long request of another kind."""
    found = {}
    with Visitor(server.url) as visitor:
        sizes = {"half of the bound": UPLOAD_MEBIBYTES // 2, "above the bound": UPLOAD_MEBIBYTES + 8}
        for name, mebibytes in sizes.items():
            content = bytes(mebibytes << 20)
            found[name] = visitor.http.post(f"{API}/upload", files={"files": ("depth.npy", content)}).status_code
        within = {"files": ("depth.npy", bytes((UPLOAD_MEBIBYTES << 20) + 1))}
        found["one byte above the bound"] = visitor.http.post(f"{API}/upload", files=within).status_code
        words = {"data": [0.5, "x" * (UPLOAD_MEBIBYTES + 8 << 20)], "fn_index": 0, "session_hash": visitor.session}
        found["long words"] = visitor.http.post(f"{API}/queue/join", json=words).status_code
        pieces = (bytes(1 << 20) for _ in range(4))
        found["of unknown length"] = visitor.http.post(f"{API}/upload", content=pieces).status_code
    return found


def measure(requests: int, warm_up: int, frames: int) -> dict[str, Any]:
    """Loads a server, attacks it, ends it by SIGTERM, kills another one, and starts a third.

    Args:
        requests: In all, by `USERS` at once.
        warm_up: Requests before memory is looked at.
        frames: Different ones.
    """
    uploads = make_uploads(frames)
    with tempfile.TemporaryDirectory(prefix="page-load-") as name:
        folder = Path(name)
        with served(folder) as server:
            load = Load(server, uploads)
            load.learn()
            # Each thread of the server keeps some memory once it has run the network.
            load.run(1, warm_up // 2)
            load.run(USERS[-1], warm_up - warm_up // 2)
            files, before = server.open_files, server.resident_mib
            levels = [load.run(users, round(requests * share)) for users, share in zip(USERS, SHARES, strict=True)]
            after, left = server.resident_mib, server.left_behind()
            open_files = {"before": files, "after": server.open_files}
            security = {
                "reads_outside": forbidden_reads(server),
                "frames_from_other_files": forbidden_arguments(server, uploads[0]),
                "uploads": large_uploads(server),
            }
            for place in ("secret.txt", "depth.npy"):
                (server.folder / place).unlink()
            status = server.stop(signal.SIGTERM)
            at_exit = server.left_behind()
        with served(folder) as server:
            Load(server, uploads[:1]).learn()
            server.stop(signal.SIGKILL)
            after_kill = server.left_behind()
        with served(folder) as server:
            after_restart = len(list(server.folder.glob(f"{FOLDER_PREFIX}*")))
            server.stop(signal.SIGTERM)
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, other load beside",
        "frame": list(np.load(io.BytesIO(uploads[0].depth)).shape),
        "warm_up": warm_up,
        "levels": levels,
        "answers": load.tally,
        "problems": load.problems,
        "resident_mib": {
            "before": round(before),
            "after": round(after),
            "growth_percent": _percent(before, after),
            "by_answers": {answers: round(value) for answers, value in load.resident_mib.items()},
        },
        "open_files": open_files,
        "temporary": {
            "after_the_run": left,
            "after_sigterm": at_exit,
            "after_kill": after_kill,
            "folders_of_servers_after_restart": after_restart,
        },
        "status_after_sigterm": status,
        **security,
    }


def _percent(before: float, after: float) -> float:
    return round(100 * (after - before) / before, 1)
