import pytest
import torch

from bifusion_hf.layers.training_progress import TrainingProgress


def test_minus_one_says_that_nobody_told():
    progress = TrainingProgress()
    assert {name: int(value) for name, value in progress.state_dict().items()} == {"update": -1, "total": -1}
    assert progress.fraction() is None and not progress(10**9)


@pytest.mark.parametrize(
    ("update", "total", "fraction", "warm"), [(0, 8, 0.0, True), (2, 8, 0.25, True), (3, 3, 1.0, False)]
)
def test_progress_is_saved_and_told(update, total, fraction, warm):
    first, second = TrainingProgress(), TrainingProgress()
    first.set(update, total)
    second.load_state_dict(first.state_dict())
    for progress in (first, second):
        assert progress.fraction() == fraction and torch.equal(progress(3), torch.tensor(warm))


def test_progress_beyond_the_end_is_refused():
    progress = TrainingProgress()
    for update in (-1, 5):
        with pytest.raises(ValueError, match=rf"update must lie in 0\.\.4, got {update}"):
            progress.set(update, 4)
    # A run of no update is over.
    progress.set(0, 0)
    assert progress.fraction() == 0
