"""A few visitors at once; `python -m scripts.benchmarks page_load` has 500 requests."""

import json

import pytest

from scripts.benchmarks.__main__ import main
from scripts.benchmarks.page_load import faults


@pytest.mark.slow
def test_visitors_at_once_get_their_own_frames_and_nothing_stays(tmp_path):
    pytest.importorskip("gradio")
    output = tmp_path / "page.json"
    # Ten requests have one of the kind that must be refused; memory is looked at by the long run.
    main(["page_load", "--requests", "14", "--warm_up", "6", "--frames", "3", "--output", str(output)])
    result = json.loads(output.read_text())
    assert faults(result) == []
    assert result["answers"] == {"right": 18, "refused as it should": 2, "mixed or wrong": 0, "failed": 0}
    assert [level["users"] for level in result["levels"]] == [1, 5, 20]


def test_what_must_not_be_is_told():
    result = {
        "answers": {"right": 1, "refused as it should": 1, "mixed or wrong": 2, "failed": 3},
        "problems": ["7: failed"],
        "resident_mib": {"growth_percent": 11.0},
        "temporary": {"after_sigterm": {"files": 1}, "folders_of_servers_after_restart": 2},
        "status_after_sigterm": 0,
        "uploads": {"half": 200, "above": 200, "one": 413, "words": 413, "unknown": 411},
        "reads_outside": {"/etc/passwd": 200},
        "frames_from_other_files": {"a file of the server": True},
    }
    assert len(faults(result)) == 9
