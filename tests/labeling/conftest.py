import pytest
from tiny_image_text import save_model


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("clip"), "clip")


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("siglip"), "siglip")
