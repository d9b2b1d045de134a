"""A stand-in of the Hugging Face Hub on loopback: the requests of pull, push, tags and branches, kept in memory.

    with HubServer() as hub:
        hub.add("org/repo", {"model.safetensors": data})
        result = run_python("from huggingface_hub import ...", hub, tmp_path / "home")

Clients run in processes of their own (`hub_client.run_python`). Only what huggingface_hub (2.x, without xet) asks is
answered; pull requests are not.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


TOKEN = "hf_test"
# What the Hub's default .gitattributes keeps as large files.
LARGE_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".pkl", ".parquet", ".arrow", ".npz", ".npy", ".zip")
LARGE_SIZE = 10_000_000


@dataclass
class Commit:
    sha: str
    title: str
    files: dict[str, bytes]


@dataclass
class Repository:
    kind: str
    name: str
    private: bool
    # Oldest first.
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> Commit | None:
        """Commit of a branch, tag or (shortened) commit id."""
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        found = [commit for commit in self.commits if len(sha) >= 7 and commit.sha.startswith(sha)]
        return found[-1] if found else None

    def commit(self, branch: str, title: str, files: dict[str, bytes]) -> Commit:
        content = "".join(f"{path} {blob_id(data)}\n" for path, data in sorted(files.items()))
        sha = hashlib.sha1(f"{self.kind} {self.name} {len(self.commits)} {title}\n{content}".encode()).hexdigest()
        self.commits.append(Commit(sha, title, files))
        self.branches[branch] = sha
        return self.commits[-1]


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose method and path (query included) match.

    Args:
        method: `"GET"`, `"PUT"`, ...; None = any.
        path: Regular expression, searched in the path.
        times: Requests that fail; after them all is well again.
        status, code, message: Answer with an error, as the headers X-Error-Code and X-Error-Message too.
        drop_after: Close the connection after so many bytes of the body (0: without an answer, before acting).
        content: Body of a download in place of the file's, under the headers of the file (a wrong sha256).
        corrupt: Store an uploaded large file with its first byte changed, under the promised sha256.
    """

    method: str | None = None
    path: str = ""
    times: int = 1
    status: int | None = None
    code: str | None = None
    message: str = "fault"
    drop_after: int | None = None
    content: bytes | None = None
    corrupt: bool = False


class HubServer:
    """The server and what it stores.

    Args:
        token: Writing, and reading what is private, needs it.

    Attributes:
        url: `HF_ENDPOINT` of its clients.
        requests: "METHOD /path?query" of every request so far.
        faults: Pending `Fault`s, see `fail`.
    """

    def __init__(self, token: str = TOKEN):
        self.token = token
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Request)
        self._server.daemon_threads = True
        self._server.hub = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self) -> None:
        """From now on connections are refused."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def create(self, name: str, kind: str = "model", private: bool = False) -> Repository:
        repository = self.repositories[kind, name] = Repository(kind, name, private)
        repository.commit("main", "initial commit", {".gitattributes": b""})
        return repository

    def add(self, name: str, files: dict, kind: str = "model", private: bool = False, branch: str = "main") -> str:
        """Commits files (bytes, text or paths) without a request, in a new repository if there is none.

        Returns:
            The commit's sha.
        """
        repository = self.repositories.get((kind, name)) or self.create(name, kind, private)
        content = {}
        for path, value in files.items():
            content[path] = value.read_bytes() if isinstance(value, Path) else value
            content[path] = content[path].encode() if isinstance(value, str) else content[path]
        before = repository.resolve(branch) or repository.commits[0]
        return repository.commit(branch, f"add {', '.join(files)}", {**before.files, **content}).sha

    def repository(self, name: str, kind: str = "model") -> Repository:
        return self.repositories[kind, name]

    def files(self, name: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """Content of a revision."""
        return self.repositories[kind, name].resolve(revision).files

    def fail(self, method: str | None = None, path: str = "", **fault) -> None:
        """Adds a `Fault`."""
        self.faults.append(Fault(method, path, **fault))

    def take_fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.method in (None, method) and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None


def blob_id(content: bytes) -> str:
    """Git's id of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str, size: int) -> bool:
    return size > 0 and (path.endswith(LARGE_SUFFIXES) or size > LARGE_SIZE)


class HubError(Exception):
    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


_API = r"/api/(?P<kind>model|dataset|space)s/(?P<name>[^/]+/[^/]+)"
_PAGE = r"/(?:(?P<kind>dataset|space)s/)?(?P<name>[^/]+/[^/]+?)"
# Method, path, method of `_Request`; those whose name starts with "write_" need the token.
_ROUTES = [
    ("GET", r"/api/whoami-v2", "who_am_i"),
    ("POST", r"/api/validate-yaml", "validate_card"),
    ("POST", r"/api/repos/create", "write_repository"),
    ("GET", _API + r"(?:/revision/(?P<revision>[^/]+))?", "repository_info"),
    ("GET", _API + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", "tree"),
    ("POST", _API + r"/paths-info/(?P<revision>[^/]+)", "paths_info"),
    ("GET", _API + r"/refs", "references"),
    ("GET", _API + r"/commits/(?P<revision>[^/]+)", "history"),
    ("PUT", _API + r"/settings", "write_settings"),
    ("POST", _API + r"/preupload/(?P<revision>[^/]+)", "write_upload_modes"),
    ("POST", _API + r"/commit/(?P<revision>[^/]+)", "write_commit"),
    ("POST", _API + r"/(?P<what>tag|branch)/(?P<revision>[^/]+)", "write_reference"),
    ("DELETE", _API + r"/(?P<what>tag|branch)/(?P<revision>[^/]+)", "write_no_reference"),
    ("POST", _PAGE + r"\.git/info/lfs/objects/batch", "write_large_file_actions"),
    ("PUT", r"/large-files/(?P<sha256>[0-9a-f]{64})", "store_large_file"),
    ("GET", _PAGE + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "download"),
]


class _Request(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        hub, self.fault = self.server.hub, None
        with hub.lock:
            hub.requests.append(f"{self.command} {self.path}")
            self.fault = hub.take_fault(self.command, self.path)
        self.body = self._read_body()
        try:
            if self.fault and self.fault.status is not None:
                raise HubError(self.fault.status, self.fault.message, self.fault.code)
            if self.fault and self.fault.drop_after == 0:
                self.close_connection = True
                return
            self._dispatch()
        except HubError as error:
            headers = {"X-Error-Message": error.message, **({"X-Error-Code": error.code} if error.code else {})}
            self._answer(json.dumps({"error": error.message}).encode(), headers, error.status)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _dispatch(self):
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, name in _ROUTES:
            match = re.fullmatch(pattern, url.path) if wanted == method else None
            if match:
                parts = {key: value and unquote(value) for key, value in match.groupdict().items()}
                with self.server.hub.lock:
                    self._authorise(parts, writes=name.startswith("write_"))
                    getattr(self, name)(**parts)
                return
        raise HubError(404, f"the stand-in has no {self.command} {url.path}")

    def _authorise(self, parts: dict, writes: bool):
        """Replaces kind and name among `parts` by the repository, if the client may see it."""
        hub, authorization = self.server.hub, self.headers.get("Authorization")
        if authorization not in (None, f"Bearer {hub.token}"):
            raise HubError(401, "Invalid credentials in Authorization header")
        if writes and authorization is None:
            raise HubError(401, "Invalid username or password.")
        if "name" in parts:
            kind, name = parts.pop("kind") or "model", parts.pop("name")
            repository = hub.repositories.get((kind, name))
            if repository is None or (repository.private and authorization is None):
                # As the Hub does: whoever is not logged in does not learn what exists.
                raise HubError(401 if authorization is None else 404, "Repository not found", "RepoNotFound")
            parts["repository"] = repository

    def _answer(self, content: bytes, headers: dict, status: int = 200):
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            end = None if self.fault is None else self.fault.drop_after
            self.wfile.write(content[:end])

    def _json(self, value, status: int = 200):
        self._answer(json.dumps(value).encode(), {"Content-Type": "application/json"}, status)

    def _commit_of(self, repository: Repository, revision: str | None) -> Commit:
        commit = repository.resolve(revision or "main")
        if commit is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def who_am_i(self):
        if self.headers.get("Authorization") is None:
            raise HubError(401, "Invalid username or password.")
        self._json({"type": "user", "name": "tester", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def validate_card(self):
        content, errors = json.loads(self.body)["content"], []
        match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        try:
            if match and not isinstance(yaml.safe_load(match[1]), dict):
                errors = [{"message": "metadata must be a mapping"}]
        except yaml.YAMLError as error:
            errors = [{"message": str(error)}]
        warnings = [] if match else [{"message": "empty or missing yaml metadata in repo card"}]
        self._json({"errors": errors, "warnings": warnings}, 400 if errors else 200)

    def write_repository(self):
        request, hub = json.loads(self.body), self.server.hub
        kind, name = request.get("type") or "model", f"{request['organization'] or 'tester'}/{request['name']}"
        page = f"{hub.url}/{'' if kind == 'model' else f'{kind}s/'}{name}"
        if (kind, name) in hub.repositories:
            self._json({"error": "You already created this repo", "url": page}, 409)
            return
        hub.create(name, kind, request.get("visibility") == "private" or request.get("private") is True)
        self._json({"url": page, "name": name})

    def write_settings(self, repository: Repository):
        request = json.loads(self.body)
        if "visibility" in request or "private" in request:
            repository.private = request.get("visibility") == "private" or request.get("private") is True
        self._json({"private": repository.private})

    def repository_info(self, repository: Repository, revision: str | None):
        commit = self._commit_of(repository, revision)
        card = re.match(r"---\n(.*?)\n---\n", commit.files.get("README.md", b"").decode(), re.DOTALL)
        card = yaml.safe_load(card[1]) if card else {}
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        if self.query.get("blobs"):
            siblings = [{**_entry(item["rfilename"], commit), **item} for item in siblings]
            siblings = [{**item, "blobId": item["oid"]} for item in siblings]
        self._json(
            {
                **{"id": repository.name, "sha": commit.sha, "private": repository.private, "siblings": siblings},
                **{"cardData": card, "tags": card.get("tags") or [], "pipeline_tag": card.get("pipeline_tag")},
            }
        )

    def tree(self, repository: Repository, revision: str, path: str | None):
        commit = self._commit_of(repository, revision)
        prefix = f"{path}/" if path else ""
        files = [name for name in sorted(commit.files) if name.startswith(prefix)]
        if path and not files:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        if self.query.get("recursive", "").lower() != "true":
            files = sorted({prefix + name.removeprefix(prefix).split("/")[0] for name in files})
        self._json([_entry(name, commit) for name in files])

    def paths_info(self, repository: Repository, revision: str):
        commit = self._commit_of(repository, revision)
        wanted = parse_qs(self.body.decode())["paths"]
        self._json([_entry(path, commit) for path in wanted if _exists(path, commit)])

    def references(self, repository: Repository):
        def entries(names: dict[str, str], folder: str) -> list[dict]:
            return [{"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": sha} for name, sha in names.items()]

        branches, tags = entries(repository.branches, "heads"), entries(repository.tags, "tags")
        self._json({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})

    def history(self, repository: Repository, revision: str):
        last = repository.commits.index(self._commit_of(repository, revision))
        self._json(
            [
                {"id": c.sha, "title": c.title, "message": "", "authors": [], "date": "2026-01-01T00:00:00.000Z"}
                for c in reversed(repository.commits[: last + 1])
            ]
        )

    def write_reference(self, repository: Repository, what: str, revision: str):
        request = json.loads(self.body or b"{}")
        # A tag's path names what it points to; a branch's names the branch.
        name, start = (request["tag"], revision) if what == "tag" else (revision, request.get("startingPoint"))
        names = repository.tags if what == "tag" else repository.branches
        target = self._commit_of(repository, start)
        if name in names:
            raise HubError(409, f"{what} {name} exists already")
        names[name] = target.sha
        self._json({})

    def write_no_reference(self, repository: Repository, what: str, revision: str):
        if (repository.tags if what == "tag" else repository.branches).pop(revision, None) is None:
            raise HubError(404, f"no {what} {revision}", "RevisionNotFound")
        self._json({})

    def write_upload_modes(self, repository: Repository, revision: str):
        commit = self._commit_of(repository, revision)
        answers = []
        for item in json.loads(self.body)["files"]:
            path, old = item["path"], commit.files.get(item["path"])
            mode = "lfs" if is_large(path, item["size"]) else "regular"
            oid = None if old is None else _oid(path, old)
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answers})

    def write_large_file_actions(self, repository: Repository):
        objects = []
        for item in json.loads(self.body)["objects"]:
            if item["oid"] not in self.server.hub.large_files:
                item["actions"] = {"upload": {"href": f"{self.server.hub.url}/large-files/{item['oid']}"}}
            objects.append(item)
        self._json({"transfer": "basic", "objects": objects})

    def store_large_file(self, sha256: str):
        found = hashlib.sha256(self.body).hexdigest()
        if found != sha256:
            raise HubError(400, f"sha256 of the content is {found}, promised was {sha256}")
        corrupt = self.fault is not None and self.fault.corrupt
        self.server.hub.large_files[sha256] = bytes([self.body[0] ^ 1]) + self.body[1:] if corrupt else self.body
        self._answer(b"", {"ETag": f'"{sha256}"'})

    def write_commit(self, repository: Repository, revision: str):
        files, title, branch = dict(self._commit_of(repository, revision).files), "", revision
        for line in self.body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, repository.branches.get(branch)):
                    raise HubError(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.server.hub.large_files:
                    raise HubError(400, f"{value['path']}: large file {value['oid']} was not uploaded")
                files[value["path"]] = self.server.hub.large_files[value["oid"]]
            elif key in ("deletedFile", "deletedFolder"):
                gone = [path for path in files if path == value["path"] or path.startswith(value["path"] + "/")]
                if not gone:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
                for path in gone:
                    del files[path]
        commit = repository.commit(branch, title, files)
        page = f"{self.server.hub.url}/{repository.name}/commit/{commit.sha}"
        self._json({"success": True, "commitOid": commit.sha, "commitUrl": page})

    def download(self, repository: Repository, revision: str, path: str):
        commit = self._commit_of(repository, revision)
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound")
        content = commit.files[path]
        headers = {"ETag": f'"{_oid(path, content)}"', "X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if is_large(path, len(content)):
            headers |= {"X-Linked-Size": len(content), "X-Linked-Etag": headers["ETag"]}
        if self.fault and self.fault.content is not None:
            content = self.fault.content
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match:
            start, end = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
            if start >= len(content):
                raise HubError(416, f"range {match[0]} of {len(content)} bytes")
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content = content[start : end + 1]
        self._answer(content, headers, 206 if match else 200)


def _oid(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if is_large(path, len(content)) else blob_id(content)


def _exists(path: str, commit: Commit) -> bool:
    return path in commit.files or any(name.startswith(f"{path}/") for name in commit.files)


def _entry(path: str, commit: Commit) -> dict:
    """What the Hub says of a file or folder of a commit."""
    content = commit.files.get(path)
    if content is None:
        return {"type": "directory", "path": path, "oid": blob_id(path.encode())}
    entry = {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
    if is_large(path, len(content)):
        entry["lfs"] = {"oid": _oid(path, content), "size": len(content), "pointerSize": 130}
        entry["lfs"]["sha256"] = entry["lfs"]["oid"]
    return entry
