import json
import os
import signal
import sys
from pathlib import Path

import pytest
from forks import run_python

from scripts import interrupts
from scripts.interrupts import broken_files, main, members


pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
ROOT = Path(__file__).parents[2]
# The first number of this seed is 0.28: a machine that is four times as fast in the second run would miss the moment.
PROGRAM = """
import json
from scripts.interrupts import run
print(json.dumps(run(1, None, 2, ["evaluation"], (3, 1, 2), (15,))))
"""


def test_an_evaluation_that_is_stopped_goes_on_to_the_same_end():
    """One moment; the command has twenty of each work."""
    # Where threads of earlier tests are no more.
    result = run_python(PROGRAM, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["problems"] == [] and found["counts"] == {"evaluation": {"SIGTERM": {"interrupted": 1}}}


def test_a_file_that_is_cut_and_a_process_that_stays_are_seen(tmp_path):
    (tmp_path / "results.json").write_text('{"a": 1')
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    (tmp_path / ".partial-x.json").write_text("{")
    (tmp_path / "metrics.jsonl").write_text('{"a": 1}\n{"b"')
    (tmp_path / "log.jsonl").write_text('{"a"\n{"b": 1}\n')
    assert [text.split(":")[0] for text in broken_files(tmp_path)] == ["log.jsonl", "results.json", "rows.parquet"]
    assert os.getpid() in members(os.getsid(0)) and members(-1) == []


def test_what_goes_wrong_is_counted_and_ends_with_1(tmp_path, monkeypatch):
    def interrupt(inputs, name, number, seconds, out, expected):
        status = {signal.SIGINT: None, signal.SIGTERM: 0, signal.SIGKILL: 1}[number]
        return {"status": status, "problems": ["status 1"] if number == 9 else [], "command": 1.0, "helpers": number}

    class Ended:
        exitcode = 0

        def join(self, seconds):
            pass

    monkeypatch.setattr(interrupts, "interrupt", interrupt)
    monkeypatch.setattr(interrupts, "in_child", lambda function, *arguments: None)
    monkeypatch.setattr(interrupts, "start", lambda *arguments: Ended())
    path = tmp_path / "counts.json"
    with pytest.raises(SystemExit, match="1"):
        main(["--moments", "5", "--works", "scan", "--json", str(path)])
    found = json.loads(path.read_text())
    assert found["moments"] == "5 of each command, SIGINT, SIGTERM, SIGKILL in turn"
    assert found["counts"] == {
        "scan": {"SIGINT": {"ended before": 2}, "SIGTERM": {"ended by itself": 2}, "SIGKILL": {"interrupted": 1}}
    }
    assert found["longest_seconds_until_gone"] == {"scan": {"command": 1.0, "helpers": signal.SIGTERM}}
    assert len(found["problems"]) == 1 and found["problems"][0].startswith("scan, SIGKILL, 0.")
    main(["--minutes", "0", "--works", "scan", "--json", str(path)])
    assert json.loads(path.read_text())["problems"] == []
