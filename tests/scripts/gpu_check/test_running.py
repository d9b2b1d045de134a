import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from scripts.gpu_check.running import FAILED, PASSED, SKIPPED, TIMED_OUT, Step, run_steps


def counts(settings, note):
    for number in range(3):
        note(f"number {number}", {"value": settings * number, "parts": (1.23456789, float("nan"), None, Path("a"))})
    print("printed by a step")


def fails(settings, note):
    note("before", 1)
    raise ValueError("the reason")


def never_ends(settings, note):
    note("before", 1)
    child = subprocess.Popen(["sleep", "600"])
    note("child", child.pid)
    time.sleep(600)


def crashes(settings, note):
    note("before", 1)
    os.kill(os.getpid(), signal.SIGKILL)


def leaves(settings, note):
    os._exit(7)


def run(tmp_path, steps, seconds=60.0, skipped=None):
    output = tmp_path / "folder" / "result.json"
    result = run_steps(steps, 10, output, skipped=skipped or {}, seconds=seconds, header={"date": "today"})
    assert json.loads(output.read_text()) == result
    assert sorted(path.name for path in output.parent.iterdir()) == ["result.json", "result.log"]
    return result


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_steps_that_fail_leave_the_others_and_the_file(tmp_path):
    steps = [
        Step("slow", "", 1.5, never_ends),
        Step("wrong", "", 30, fails),
        Step("dead", "", 30, crashes),
        Step("gone", "", 30, leaves),
        Step("left out", "", 30, counts),
        Step("good", "", 30, counts),
    ]
    result = run(tmp_path, steps, skipped={"left out": "not asked"})
    found = result["steps"]
    statuses = {name: entry["status"] for name, entry in found.items()}
    assert statuses == {
        "slow": TIMED_OUT,
        "wrong": FAILED,
        "dead": FAILED,
        "gone": FAILED,
        "left out": SKIPPED,
        "good": PASSED,
    }
    # What was found before stays.
    for name in ("slow", "wrong", "dead"):
        assert found[name]["found"]["before"] == 1
    assert found["slow"]["error"] == "took more than 2 s" and 1.5 <= found["slow"]["seconds"] < 15
    assert found["wrong"]["error"].splitlines()[-1] == "ValueError: the reason"
    assert "in fails" in found["wrong"]["error"]
    assert "SIGKILL" in found["dead"]["error"] and "exit code 7" in found["gone"]["error"]
    assert found["left out"]["error"] == "not asked"
    # As JSON has it.
    assert found["good"]["found"]["number 2"] == {"value": 20, "parts": [1.235, "nan", None, "a"]}
    assert result["date"] == "today" and result["seconds"] > 0
    # With a step ends what it has started.
    deadline = time.monotonic() + 5
    while is_alive(found["slow"]["found"]["child"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(found["slow"]["found"]["child"])
    assert "== good\nprinted by a step\n" in (tmp_path / "folder" / "result.log").read_text()


def test_the_file_is_written_after_every_number(tmp_path):
    seen = tmp_path / "seen.json"

    def looks(settings, note):
        note("first", 1)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            written = json.loads((tmp_path / "folder" / "result.json").read_text())
            if written["steps"]["looks"].get("found"):
                break
            time.sleep(0.02)
        seen.write_text(json.dumps(written["steps"]))

    run(tmp_path, [Step("looks", "", 30, looks), Step("later", "", 30, counts)])
    assert json.loads(seen.read_text()) == {
        "looks": {"status": "running", "found": {"first": 1}},
        "later": {"status": "waiting"},
    }


def test_all_steps_together_are_bounded(tmp_path):
    steps = [Step("slow", "", 60, never_ends), Step("later", "", 60, counts)]
    result = run(tmp_path, steps, seconds=4.0)
    assert result["steps"]["slow"]["status"] == TIMED_OUT
    assert result["steps"]["later"] == {"status": SKIPPED, "error": "no time was left"}
    assert result["seconds"] < 20


def test_nothing_runs_where_what_is_required_fails(tmp_path):
    steps = [Step("machine", "", 30, fails, is_required=True), Step("later", "", 30, counts)]
    assert run(tmp_path, steps)["steps"]["later"] == {"status": SKIPPED, "error": "machine failed"}


@pytest.mark.parametrize("step", [counts, fails])
def test_a_line_for_each_step(tmp_path, capfd, step):
    run(tmp_path, [Step("name", "", 30, step)])
    (line,) = capfd.readouterr().out.splitlines()
    assert line.split()[:2] == ["name", "passed" if step is counts else "failed"]
    assert line.endswith("ValueError: the reason") == (step is fails)
