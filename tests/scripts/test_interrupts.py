import json
import os
import signal
import sys

import pytest

from scripts import interrupts
from scripts.interrupts import broken_files, main, members


pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")


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
        return {"status": None if number == signal.SIGINT else 1, "problems": ["status 1"] if number == 9 else []}

    class Ended:
        exitcode = 0

        def join(self):
            pass

    monkeypatch.setattr(interrupts, "interrupt", interrupt)
    monkeypatch.setattr(interrupts, "in_child", lambda function, *arguments: None)
    monkeypatch.setattr(interrupts, "start", lambda *arguments: Ended())
    path = tmp_path / "counts.json"
    with pytest.raises(SystemExit, match="1"):
        main(["--moments", "2", "--works", "scan", "--json", str(path)])
    found = json.loads(path.read_text())
    assert found["counts"] == {
        "scan": {"SIGINT": {"ended before": 2}, "SIGTERM": {"interrupted": 2}, "SIGKILL": {"interrupted": 2}}
    }
    assert len(found["problems"]) == 2 and found["problems"][0].startswith("scan, SIGKILL, 0.")
    main(["--minutes", "0", "--works", "scan", "--json", str(path)])
    assert json.loads(path.read_text())["problems"] == []
