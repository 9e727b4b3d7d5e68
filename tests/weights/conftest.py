"""The weights that most tests of this room read."""

import pytest
from helpers import SMALL, state_of
from safetensors.numpy import save_file


@pytest.fixture
def small(tmp_path):
    """A small distilled model's file, and its state dict."""
    state = state_of(SMALL, num_classes=10)
    save_file(state, tmp_path / f"{SMALL}.safetensors")
    return tmp_path / f"{SMALL}.safetensors", state
