import pytest
from hub_server import HubServer


@pytest.fixture
def hub():
    """A running stand-in of the Hugging Face Hub."""
    with HubServer() as server:
        yield server
