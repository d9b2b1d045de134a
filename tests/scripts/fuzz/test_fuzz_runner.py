import json
import os
import time

import pytest

from scripts.fuzz.__main__ import main, report, summary
from scripts.fuzz.runner import CRASH, HANG, LIBRARY, OK, REFUSED, Outcome, Runner
from scripts.fuzz.targets import Target


def _write(folder):
    (folder / "file.txt").write_text("1 2 3")


def _keep(_folder, _rng):
    pass


def _hang(_folder):
    time.sleep(60)


def _die(_folder):
    os.kill(os.getpid(), 11)


def _allocate(_folder):
    return bytearray(40 * 2**30)


def _raise(error):
    def read(folder):
        raise error(f"{folder / 'file.txt'}: is no good")

    return read


def _unnamed(_folder):
    raise ValueError("is no good")


def endings():
    """Kinds of inputs that end in every way."""
    reads = {
        **{"hang": _hang, "die": _die, "allocate": _allocate, "named": _raise(ValueError)},
        **{"unnamed": _unnamed, "library": _raise(KeyError)},
    }
    reads["fine"] = lambda folder: (folder / "file.txt").read_text()
    return {name: Target(name, _write, read, _keep) for name, read in reads.items()}


def test_every_ending_is_told_and_the_next_input_runs(tmp_path):
    with Runner(0, tmp_path / "kept", seconds=1, targets=endings) as runner:
        found = {
            name: runner.run(name, 7) for name in ("fine", "hang", "named", "die", "unnamed", "allocate", "library")
        }
        scratch = runner._scratch
    assert {name: outcome.outcome for name, outcome in found.items()} == {
        **{"fine": OK, "hang": HANG, "named": REFUSED, "die": CRASH, "unnamed": LIBRARY, "allocate": CRASH},
        "library": LIBRARY,
    }
    assert "-11" in found["die"].error and "MemoryError" in found["allocate"].error
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {
        f"{name}-7" for name in ("hang", "die", "unnamed", "allocate", "library")
    }
    assert not scratch.exists()


def test_the_command_counts_and_fails_where_an_input_does(tmp_path, monkeypatch, capsys):
    path = tmp_path / "new" / "counts.json"
    main(["--inputs", "5", "--targets", "pose.txt", "camera.txt", "--json", str(path)])
    content = json.loads(path.read_text())
    assert content["inputs"] == 5 == sum(content["counts"].values())
    assert sum(content["by_target"]["pose.txt"].values()) == 3 and content["failures"] == []
    assert "refused by name" in capsys.readouterr().out
    bad = Outcome("pose.txt", 3, LIBRARY, "KeyError: x", 0.5)
    monkeypatch.setattr("scripts.fuzz.__main__.run_inputs", lambda *_args, **_options: iter([bad]))
    with pytest.raises(SystemExit) as ended:
        main(["--inputs", "1"])
    assert ended.value.code == 1
    assert "pose.txt 3: library's message: KeyError: x" in capsys.readouterr().out


def test_failures_that_are_mended_are_counted_anew(tmp_path, capsys):
    path = tmp_path / "counts.json"
    outcomes = [
        *(Outcome("pose.txt", number, OK, "", 0.1) for number in range(3)),
        Outcome("pose.txt", 3, CRASH, "exit status 1", 0.1),
        Outcome("camera.txt", 0, LIBRARY, "x", 50.0),
    ]
    path.write_text(json.dumps(report(outcomes, 0)))
    with pytest.raises(SystemExit) as ended:
        main(["--again", "--json", str(path)])
    content = json.loads(path.read_text())
    assert not ended.value.code and "2 run again in all, 0 fail" in capsys.readouterr().out
    assert content["failures"] == [] and content["failures_run_again"] == 2 and content["slowest_seconds"] == 50.0
    assert content["counts"][CRASH] == content["counts"][LIBRARY] == 0 and sum(content["counts"].values()) == 5
    assert content["by_target"]["camera.txt"][LIBRARY] == 0 and sum(content["by_target"]["camera.txt"].values()) == 1
    with pytest.raises(SystemExit, match="2"):
        main(["--again"])


def test_the_report_has_each_kind_and_outcome():
    outcomes = [Outcome("a", 0, OK, "", 0.1), Outcome("a", 1, REFUSED, "x", 0.2), Outcome("b", 0, HANG, "y", 3.0)]
    content = report(outcomes, 5)
    assert content["by_target"] == {"a": {OK: 1, REFUSED: 1}, "b": {HANG: 1}}
    assert content["counts"] == {OK: 1, REFUSED: 1, HANG: 1} and content["slowest_seconds"] == 3.0
    assert [failure["target"] for failure in content["failures"]] == ["b"]
    assert summary(outcomes).splitlines()[-1] == "slowest: 3.0 s"
