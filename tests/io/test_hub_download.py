"""Baseline weights and conversions through the stand-in of the Hub, each client in a process of its own."""

import json
import re

import pytest
import torch
from hub_client import run_python
from original_checkpoint import original_state, save_original

from bifusion_hf import BiFusionForInstanceSegmentation
from bifusion_hf.io import checkpoint_files


CLIENT = """
import json, sys
import torch
from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation, load_sv3d_weights

config = BiFusionConfig.from_pretrained(sys.argv[1])
def load(source, **options):
    torch.manual_seed(1)
    model = BiFusionForInstanceSegmentation(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        report = load_sv3d_weights(model, source, **options)
    except Exception as error:
        same = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        return {"error": type(error).__name__, "message": str(error), "unchanged": same}
    weight = model.decoder.semantic_head.bias.sum().item()
    return {"loaded": len(report.loaded), "missing": len(report.missing), "source": report.source, "sum": weight}
calls = json.loads(sys.argv[2])
print(json.dumps([load(source, **options) for source, options in calls]))
"""


@pytest.fixture(scope="module")
def baseline(small_config, tmp_path_factory):
    """Folder of a configuration, and checkpoint files with the original's names."""
    folder = tmp_path_factory.mktemp("baseline")
    torch.manual_seed(0)
    model = BiFusionForInstanceSegmentation(small_config("none"))
    model.config.save_pretrained(folder)
    state = original_state(model)
    save_original(folder / "sv3d.pth", state)
    state["decoder.out_sem.bias"] = state["decoder.out_sem.bias"] + 1
    save_original(folder / "sv3d_next.pth", state)
    return folder


def load(hub, home, baseline, *calls, **environment):
    calls = [(call, {}) if isinstance(call, str) else call for call in calls]
    result = run_python(CLIENT, hub, home, str(baseline), json.dumps(calls), **environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1]), result.stderr


def check_failure(result, error, message):
    assert result.get("error") == error and re.search(message, result["message"]), result
    assert result["unchanged"]


def test_pull_cache_and_offline(hub, baseline, tmp_path):
    first = hub.add("org/sv3d", {"sv3d.pth": baseline / "sv3d.pth", "README.md": "# weights"})
    hub.add("org/sv3d", {"sv3d.pth": baseline / "sv3d_next.pth"})
    hub.add("org/two", {"a.pth": baseline / "sv3d.pth", "b/c.pth": baseline / "sv3d_next.pth"})
    hub.add("org/later", {"sv3d.pth": baseline / "sv3d.pth"})
    hub.repository("org/sv3d").tags["v1"] = first
    # The connection breaks once, in the middle of the file.
    hub.fail("GET", r"/resolve/.*sv3d\.pth", drop_after=10_000)
    calls = ["org/sv3d", "org/sv3d:sv3d.pth", ("org/sv3d", {"revision": "v1"}), "org/two:b/c.pth"]
    # Progress is shown where there is no terminal either.
    results, log = load(hub, tmp_path / "home", baseline, *calls, *calls, TQDM_POSITION="-1")
    assert all(result["loaded"] > 200 and result["missing"] == 0 for result in results), results
    assert results[4:] == results[:4]
    assert [result["source"] for result in results[:4]] == ["org/sv3d", "org/sv3d:sv3d.pth", "org/sv3d", calls[3]]
    new, named, old, other = (result["sum"] for result in results[:4])
    assert new == named == other and new - old == pytest.approx(201, rel=1e-4)
    # Two versions of one file, one of them in two tries, and one of another repository: nothing twice.
    assert len([request for request in hub.requests if re.match(r"GET .*/resolve/", request)]) == 4
    assert "resume" in log and "sv3d.pth: 100%" in log

    # A second process finds all of it in the cache, whether it is told to stay offline or finds the network down.
    asked = len(hub.requests)
    uncached = ["org/later", "org/later:sv3d.pth"]
    offline, _ = load(hub, tmp_path / "home", baseline, *calls, *uncached, HF_HUB_OFFLINE="1")
    assert len(hub.requests) == asked
    hub.stop()
    down, _ = load(hub, tmp_path / "home", baseline, *calls, *uncached)
    for found in (offline, down):
        assert found[:4] == results[:4]
        for result in found[4:]:
            check_failure(result, "ConnectionError", r"org/later.*cannot be reached, and the cache does not hold it")


def test_each_error_names_what_is_missing(hub, baseline, tmp_path):
    content = (baseline / "sv3d.pth").read_bytes()
    hub.add("org/sv3d", {"sv3d.pth": content})
    hub.add("org/two", {"a.pth": b"a", "b.pth": b"b"})
    hub.add("org/none", {"README.md": "# no weights"})
    hub.add("org/hidden", {"sv3d.pth": content}, private=True)
    hub.add("org/damaged", {"sv3d.pth": content[:20_000]})
    hub.add("org/busy", {"sv3d.pth": content})
    # A file of the right size, but with another content than the repository's.
    middle = len(content) // 2
    hub.add("org/swapped", {"sv3d.pth": content})
    hub.fail("GET", "org/swapped/resolve", content=content[:middle] + b"?" + content[middle + 1 :], times=9)
    hub.fail(path="org/busy", status=503, times=1000)
    at_v9 = {"revision": "v9"}
    absent = ("FileNotFoundError", "org/absent: no such repository")
    no_revision = ("FileNotFoundError", "org/sv3d: has no revision 'v9'")
    busy = ("ConnectionError", "org/busy.*the Hub cannot be reached")
    cases = [
        ("org/absent", *absent),
        ("org/absent:sv3d.pth", *absent),
        ("org/sv3d:other.pth", "FileNotFoundError", r"org/sv3d: has no file 'other\.pth' at revision main"),
        (("org/sv3d", at_v9), *no_revision),
        (("org/sv3d:sv3d.pth", at_v9), *no_revision),
        ("org/two", "ValueError", r"org/two: holds several weight files.*\['a\.pth', 'b\.pth'\]"),
        ("org/none", "FileNotFoundError", "org/none: holds no weight file"),
        ("org/hidden", "FileNotFoundError", "org/hidden: no such repository on the Hub, or it is private"),
        ("org/damaged", "DataFileError", r"sv3d\.pth.*no readable checkpoint"),
        ("org/swapped", "DataFileError", r"sv3d\.pth: has the sha256 \w{64}, but the Hub promised .* load again"),
        ("no such name", "FileNotFoundError", "no such name"),
        ("org/busy", *busy),
        ("org/busy:sv3d.pth", *busy),
    ]
    results, _ = load(hub, tmp_path / "home", baseline, *(case[0] for case in cases), token=None)
    for result, (_, error, message) in zip(results, cases, strict=True):
        check_failure(result, error, message)


def test_a_connection_that_keeps_breaking(monkeypatch):
    class RemoteProtocolError(Exception):
        __module__ = "httpx2"

    def broken(*_, **__):
        raise RemoteProtocolError("peer closed connection")

    monkeypatch.setattr(checkpoint_files, "hf_hub_download", broken)
    with pytest.raises(ConnectionError, match=r"org/sv3d:sv3d\.pth"):
        checkpoint_files.resolve_file("org/sv3d:sv3d.pth")


CONVERT = """
import json, os, sys
from bifusion_hf import BiFusionForInstanceSegmentation, BiFusionProcessor
from bifusion_hf.cli.convert_sv3d import main

source, dest, *options = sys.argv[1:]
main([source, dest, "--push_to_hub", "me/sv3d", *options])
model = BiFusionForInstanceSegmentation.from_pretrained("me/sv3d")
print(json.dumps([BiFusionProcessor.from_pretrained("me/sv3d").num_points, model.num_parameters()]))
os.environ["HF_TOKEN"] = "hf_wrong"
main([source, dest + "_again", "--push_to_hub", "me/other", *options])
"""


def test_convert_from_the_hub_and_push_back(hub, baseline, tmp_path):
    commit = hub.add("org/sv3d", {"weights/sv3d.pth": baseline / "sv3d.pth"})
    unseen = ["--voxel_size", "0.05", "--num_points", "600", "--decoder_attention_heads", "2"]
    arguments = ["org/sv3d:weights/sv3d.pth", str(tmp_path / "dest"), *unseen, "--revision", commit]
    result = run_python(CONVERT, hub, tmp_path / "home", *arguments)
    repository = hub.repository("me/sv3d")
    assert repository.private and f'/me/sv3d: revision="{repository.branches["main"]}"' in result.stdout, result.stderr
    pushed = hub.files("me/sv3d")
    for path in (tmp_path / "dest").iterdir():
        assert pushed[path.name] == path.read_bytes(), path.name
    card = pushed["README.md"].decode()
    for text in (f"`{commit}`", "`weights/sv3d.pth`", "base_model: org/sv3d", 'from_pretrained("me/sv3d")'):
        assert text in card, text
    model = BiFusionForInstanceSegmentation.from_pretrained(tmp_path / "dest")
    assert f"[600, {model.num_parameters()}]" in result.stdout

    # The second push has a wrong token: an error that says where the conversion is.
    assert result.returncode == 1 and ("model", "me/other") not in hub.repositories
    assert "401" in result.stderr and f"The conversion is complete in {tmp_path / 'dest_again'}" in result.stderr
    assert (tmp_path / "dest_again" / "model.safetensors").is_file()
