import numpy as np
import pytest

from bifusion_hf.scenes.view_features import ViewFeatures


def unit(*values):
    return np.array(values) / np.linalg.norm(values)


@pytest.fixture
def views():
    """Two views of an object are kept, the most visible ones; object 3 has a third that is not."""
    views = ViewFeatures(2)
    for pixels, feature in ((10, [1.0, 0.0]), (30, [0.0, 1.0]), (20, unit(1, 1))):
        views.add(3, pixels, feature)
    views.add(8, 5, [0.6, 0.8])
    return views


def test_the_mean_is_that_of_the_most_visible_views(views):
    found, means = views.mean(np.array([8, 5, 3]))
    assert found.tolist() == [8, 3] and found.dtype == np.int64, "an object without views has no feature"
    np.testing.assert_allclose(means, [[0.6, 0.8], unit(*(unit(0, 1) + unit(1, 1)))], rtol=1e-6)
    assert means.dtype == np.float32
    assert views.mean([8, 5, 3])[0].tolist() == [8, 3]
    found, means = views.mean(np.array([5]))
    assert found.shape == (0,) and found.dtype == np.int64 and means.shape == (0, 0) and means.dtype == np.float32


def test_a_view_is_wanted_where_it_would_be_kept(views):
    assert [views.wanted(3, pixels) for pixels in (0, 20, 21)] == [False, False, True]
    # One more has room.
    assert [views.wanted(8, pixels) for pixels in (0, 1)] == [False, True]
    assert [views.wanted(-1, pixels) for pixels in (0, 1)] == [False, True]


def test_a_view_must_show_more_than_the_least_of_those_that_are_kept():
    views = ViewFeatures(3)
    for pixels, feature in ((30, [1.0, 0.0]), (20, [1.0, 0.0]), (10, [1.0, 0.0])):
        views.add(3, pixels, feature)
    assert [views.wanted(3, pixels) for pixels in (10, 11)] == [False, True]
    # Of views that show as much the first one stays.
    views = ViewFeatures(1)
    views.add(3, 10, [1.0, 0.0])
    views.add(3, 10, [0.0, 1.0])
    assert views.mean([3])[1].tolist() == [[1.0, 0.0]]


def test_what_is_kept_goes_on_as_before(views):
    again = ViewFeatures.from_state(2, views.state())
    for some in (views, again):
        some.add(3, 25, [1.0, 0.0])
        some.forget(np.array([8, 99]))
    for found in (views.mean(np.array([3, 8])), again.mean(np.array([3, 8]))):
        assert found[0].tolist() == [3]
        np.testing.assert_allclose(found[1], [unit(1, 1)], rtol=1e-6)
    assert {name: value.dtype for name, value in views.state().items()} == {
        "ids": np.int64,
        "pixels": np.int64,
        "features": np.float32,
    }
    views.forget(np.array([3]))
    assert views.state() == {} and ViewFeatures.from_state(2, {}).mean(np.array([3]))[0].tolist() == []
