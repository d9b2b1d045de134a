"""The notebook of the documents runs from top to bottom, and what is shown in it is what it gives."""

import ast
import contextlib
import io
import json
from pathlib import Path

import pytest

from bifusion_hf.results import InstanceSegmentation


PATH = Path(__file__).parents[1] / "docs" / "notebooks" / "quickstart.ipynb"
# With the picture in it.
LARGEST = 300_000


def run_cell(source, names):
    """What a notebook shows of a cell: what is printed, and the value of its last line."""
    lines = ast.parse(source).body
    last = lines.pop() if isinstance(lines[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(lines, []), str(PATH), "exec"), names)
        value = None if last is None else eval(compile(ast.Expression(last.value), str(PATH), "eval"), names)
    return printed.getvalue(), value


@pytest.mark.slow
def test_it_runs_and_is_as_it_was_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert PATH.stat().st_size < LARGEST
    cells = [cell for cell in json.loads(PATH.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)) and len(cells) > 4
    names = {"__name__": "__main__"}
    for cell in cells:
        printed, value = run_cell("".join(cell["source"]), names)
        stored = {output["output_type"]: output for output in cell["outputs"]}
        assert ("execute_result" in stored) == (value is not None)
        if value is not None and "image/png" not in stored["execute_result"]["data"]:
            assert "".join(stored["execute_result"]["data"]["text/plain"]) == repr(value)
        # Of the training, the times and losses are those of another machine.
        shown = [output["text"] for output in cell["outputs"] if output.get("name") == "stdout"]
        assert bool(shown) == bool(printed)
    assert isinstance(names["again"], InstanceSegmentation) and names["again"]["segments_info"]
