import pytest

from bifusion_hf.losses.schedule import STAGE_MULTIPLIERS, TERM_GROUPS, stage_multiplier, warmup_multiplier


@pytest.mark.parametrize(
    ("progress", "stage"), [(0.0, 0), (0.29, 0), (0.3, 1), (0.5, 1), (0.7, 1), (0.71, 2), (1.0, 2)]
)
def test_stages(progress, stage):
    expected = {
        "loss_cls": (0.8, 1, 1),
        "loss_mask": (0.8, 1, 1),
        "loss_dice": (0.8, 1, 1),
        "loss_sem": (0.75, 1, 1.1),
        "loss_image_sem": (0.75, 1, 1.1),
        "loss_clip": (0.5, 1, 2),
        "loss_spatial": (1, 0.5, 0.25),
        "loss_noview": (1, 0.5, 0.25),
        "loss_balance": (1, 0.5, 0.25),
    }
    for term, multipliers in expected.items():
        assert stage_multiplier("bifusion", term, progress) == multipliers[stage]
        assert stage_multiplier("none", term, progress) == 1
    original = {
        "loss_cls": (0.4, 0.5, 0.5),
        "loss_sem": (0.3, 0.4, 0.45),
        "loss_clip": (0.2, 0.08, 0.04),
        "loss_spatial": (0.1, 0.02, 0.01),
    }
    for term, multipliers in original.items():
        assert stage_multiplier("original", term, progress) == multipliers[stage]


def test_without_progress_no_stage_applies():
    for schedule in STAGE_MULTIPLIERS:
        for term in TERM_GROUPS:
            assert stage_multiplier(schedule, term, None) == 1


def test_warmup():
    assert [warmup_multiplier(p, 0.1, 0.1) for p in (0.0, 0.1, 0.15, 0.2, 0.9)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert warmup_multiplier(None, 0.1, 0.1) == 1
    assert warmup_multiplier(0.0, 0.0, 0.0) == 1


def test_weights_of_the_criterion(make_criterion):
    criterion = make_criterion(consistency_loss_weight=0.1, dice_weight=(1.0, 2.0), consistency_warmup=(0.0, 0.2))
    assert criterion.term_weight("loss_clip", 0.1) == pytest.approx(0.1 * 0.5 * 0.5)
    assert criterion.term_weight("loss_clip", 0.8) == pytest.approx(0.1 * 2)
    assert criterion.term_weight("loss_clip") == pytest.approx(0.1)
    assert criterion.term_weight("loss_dice", 0.1) == pytest.approx((0.8, 1.6))


@pytest.mark.parametrize("wrong", [("linear", 0.5), ("bifusion", 1.5), ("bifusion", -0.1)])
def test_bad_arguments(wrong):
    with pytest.raises(ValueError, match="expected"):
        stage_multiplier(wrong[0], "loss_clip", wrong[1])
