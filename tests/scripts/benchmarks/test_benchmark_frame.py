import json

from bifusion_hf.superpoints import segmentation
from scripts.benchmarks import frame as frame_benchmark
from scripts.benchmarks.__main__ import main
from scripts.benchmarks.frame import STAGES


def test_every_stage_is_measured_and_the_table_made_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(frame_benchmark, "SIZES", ((60, 80),))
    backend = segmentation.choose_backend
    output, readme = tmp_path / "frame.json", tmp_path / "doc.md"
    readme.write_text("a\n<!-- frame:begin -->\n<!-- frame:end -->\nb\n")
    arguments = ["frame", "--output", str(output), "--update", str(readme)]
    precisions = ["float32", "bfloat16"]
    main([*arguments, "--repeats", "2", "--threads", "1", "--stream_frames", "2", "--precisions", *precisions])
    assert segmentation.choose_backend is backend
    result = json.loads(output.read_text())
    assert [setting["precision"] for setting in result["settings"]] == precisions
    for setting in result["settings"]:
        assert setting["size"] == [60, 80] and setting["threads"] == 1
        assert set(setting["ms"]) == set(STAGES) and min(setting["ms"].values()) > 0
    # What is there is shown, not measured again.
    result["settings"][0]["ms"]["network"] = 12345.4
    result["settings"][0]["ms"]["stream"] = 40.0
    output.write_text(json.dumps(result))
    main(arguments)
    assert "| network | 12345 |" in readme.read_text()
    assert "| frames a second of a stream | 25.0 |" in readme.read_text()
    assert "| | 80x60, float32, 1 | 80x60, bfloat16, 1 |" in readme.read_text()
