import json

from hub_client import run_python


CLIENT = """
import json, sys
from pathlib import Path
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError

api = HfApi()
def error_of(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except Exception as error:
        return type(error).__name__
"""


def run(code, hub, home, *arguments, **options):
    result = run_python(CLIENT + code, hub, home, *arguments, **options)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_push_tag_and_pull(hub, tmp_path):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "notes.txt").write_text("notes")
    code = """
folder, = sys.argv[1:]
api.create_repo("org/m", private=True)
second = error_of(api.create_repo, "org/m")
api.create_repo("org/m", exist_ok=True)
commit = api.upload_folder(repo_id="org/m", folder_path=folder, commit_message="first")
ModelCard("---\\nlicense: mit\\ntags: [a]\\n---\\n# M\\n").push_to_hub("org/m")
bad_card = b"---\\nlicense: [\\n---\\n"
bad_card = error_of(api.upload_file, repo_id="org/m", path_or_fileobj=bad_card, path_in_repo="README.md")
api.create_tag("org/m", tag="v1", revision=commit.oid)
api.create_branch("org/m", branch="dev")
api.upload_file(repo_id="org/m", path_or_fileobj=b"{1}", path_in_repo="config.json", revision="dev")
api.delete_file("sub/notes.txt", "org/m")
info = api.model_info("org/m", files_metadata=True)
again = api.upload_file(repo_id="org/m", path_or_fileobj=b"{}", path_in_repo="config.json")
pulled = Path(snapshot_download("org/m", revision="v1"))
print(json.dumps({
    "commit": commit.oid, "second": second, "bad_card": bad_card, "sha": info.sha, "again": again.oid,
    "private": info.private, "tags": info.tags, "refs": [t.name for t in api.list_repo_refs("org/m").tags],
    "lfs": {s.rfilename: s.lfs.sha256 for s in info.siblings if s.lfs},
    "tree": [f.path for f in api.list_repo_tree("org/m", recursive=True)],
    "top": [f.path for f in api.list_repo_tree("org/m", revision="v1")],
    "history": [c.title for c in api.list_repo_commits("org/m")][:2],
    "whoami": api.whoami()["name"], "dev": Path(hf_hub_download("org/m", "config.json", revision="dev")).read_text(),
    "pulled": sorted(str(p.relative_to(pulled)) for p in pulled.rglob("*") if p.is_file()),
    "same": (pulled / "model.safetensors").read_bytes() == Path(folder, "model.safetensors").read_bytes(),
}))
"""
    result = run(code, hub, tmp_path / "home", str(folder))
    repository = hub.repository("org/m")
    assert repository.private and result["private"] and result["tags"] == ["a"]
    assert repository.tags == {"v1": result["commit"]} and result["refs"] == ["v1"]
    assert (result["second"], result["bad_card"]) == ("HfHubHTTPError", "ValueError")
    assert result["sha"] == result["again"] == repository.branches["main"]
    assert list(result["lfs"]) == ["model.safetensors"] and list(hub.large_files) == list(result["lfs"].values())
    assert result["tree"] == [".gitattributes", "README.md", "config.json", "model.safetensors"]
    assert result["top"] == [".gitattributes", "config.json", "model.safetensors", "sub"]
    assert result["history"][0].startswith("Delete") and result["whoami"] == "tester"
    assert result["pulled"] == [".gitattributes", "config.json", "model.safetensors", "sub/notes.txt"]
    assert result["same"] and result["dev"] == "{1}"


def test_errors_and_faults(hub, tmp_path):
    content = bytes(range(256)) * 400
    hub.add("org/public", {"w.bin": content, "a.txt": "a"})
    hub.add("org/hidden", {"a.txt": "a"}, private=True)
    hub.add("org/data", {"data/val.parquet": b"p"}, kind="dataset")
    hub.fail("GET", r"/resolve/.*w\.bin", drop_after=1000)
    hub.fail("POST", "preupload", status=503)
    code = """
resumed = Path(hf_hub_download("org/public", "w.bin")).read_bytes()
api.upload_file(repo_id="org/public", path_or_fileobj=b"weights", path_in_repo="v.bin")
print(json.dumps({
    "resumed": len(resumed), "private": Path(hf_hub_download("org/hidden", "a.txt")).read_text(),
    "data": Path(hf_hub_download("org/data", "data/val.parquet", repo_type="dataset")).read_text(),
    "repo": error_of(hf_hub_download, "org/none", "a.txt"),
    "revision": error_of(hf_hub_download, "org/public", "a.txt", revision="v9"),
    "file": error_of(hf_hub_download, "org/public", "b.txt"),
    "wrong_token": error_of(api.create_repo, "org/new", token="hf_wrong"),
    "parent": error_of(api.upload_file, repo_id="org/public", path_or_fileobj=b"x", path_in_repo="x",
                       parent_commit="0" * 40),
}))
"""
    result = run(code, hub, tmp_path / "home")
    assert result == {
        **{"resumed": len(content), "private": "a", "data": "p", "repo": "RepositoryNotFoundError"},
        **{"revision": "RevisionNotFoundError", "file": "RemoteEntryNotFoundError"},
        **{"wrong_token": "HfHubHTTPError", "parent": "HfHubHTTPError"},
    }
    assert hub.files("org/public")["v.bin"] == b"weights" and "x" not in hub.files("org/public")
    assert sum("w.bin" in request for request in hub.requests if request.startswith("GET")) == 2
    assert ("model", "org/new") not in hub.repositories

    code = """
print(json.dumps([error_of(hf_hub_download, "org/hidden", "a.txt"), error_of(api.create_repo, "org/new")]))
"""
    assert run(code, hub, tmp_path / "other", token=None)[0] == "RepositoryNotFoundError"
    hub.fail("GET", r"/resolve/", content=bytes(len(content)))
    hub.fail("PUT", "/large-files/", corrupt=True)
    code = """
api.upload_file(repo_id="org/public", path_or_fileobj=b"weights!", path_in_repo="u.bin")
print(json.dumps(sum(Path(hf_hub_download("org/public", "w.bin")).read_bytes())))
"""
    assert run(code, hub, tmp_path / "other") == 0
    assert hub.files("org/public")["u.bin"] == b"veights!"
    hub.stop()
    code = 'print(json.dumps(error_of(hf_hub_download, "org/public", "a.txt")))'
    assert run(code, hub, tmp_path / "third") == "LocalEntryNotFoundError"
