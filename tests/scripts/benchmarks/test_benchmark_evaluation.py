import argparse
import json

import numpy as np

from bifusion_hf.evaluation.instance_average_precision import mask_overlaps
from scripts.benchmarks import evaluation


def test_forms_agree_and_result_is_written(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    evaluation.add_arguments(parser)
    output = tmp_path / "benchmarks" / "evaluation.json"
    sizes = ["--frames", "6", "--comparison_frames", "3", "--predictions", "20", "--points", "3000"]
    report = evaluation.run(parser.parse_args([*sizes, "--instances", "8", "--output", str(output)]))
    assert json.loads(output.read_text()) == report == json.loads(capsys.readouterr().out)
    assert report["full_size"]["num_predictions"] > 60
    assert 0 < report["full_size"]["all_ap"] < 1
    assert set(report["comparison"]["speedup"]) == {"over_pairwise", "over_pairwise_as_in_scripts"}


def test_plain_forms_count_the_same_overlaps():
    for masks, _, _, ids, labels in evaluation.synthetic_frames(
        2, num_points=2000, num_instances=9, num_predictions=15
    ):
        expected = mask_overlaps(masks, ids, len(labels))
        np.testing.assert_array_equal(evaluation.pairwise_overlaps(masks, ids, len(labels)), expected)
        np.testing.assert_array_equal(evaluation.script_overlaps(masks, ids, len(labels)), expected)


def test_synthetic_frames_are_deterministic_and_varied():
    frames = [list(evaluation.synthetic_frames(2, num_points=2000, num_instances=9, num_predictions=60)) for _ in "ab"]
    for first, second in zip(*frames, strict=True):
        for mine, theirs in zip(first, second, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    masks, scores, _, ids, _ = frames[0][0]
    assert len(np.unique(scores)) < len(scores)
    assert 0.3 < np.mean(ids >= 0) < 0.9
    assert 0.02 < masks.mean() < 0.5
