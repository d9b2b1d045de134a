import gc

import pytest

from bifusion_hf.import_utils import without_garbage_collection


@pytest.fixture
def collector():
    before = gc.isenabled()
    yield
    (gc.enable if before else gc.disable)()


@pytest.mark.parametrize("is_enabled", [True, False])
def test_garbage_is_collected_after_an_import_as_it_was_before(collector, is_enabled):
    (gc.enable if is_enabled else gc.disable)()
    with pytest.raises(ImportError), without_garbage_collection():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled() == is_enabled
