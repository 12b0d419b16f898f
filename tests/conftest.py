"""What every test shares: generated examples without a deadline, one torch thread per worker, the GPU marker."""

import os

import pytest
import torch
from hypothesis import settings

settings.register_profile("hetconv", deadline=None, max_examples=60, derandomize="CI" in os.environ)
settings.load_profile("hetconv")

torch.set_num_threads(1)  # pytest-xdist runs workers side by side


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, and there is none here"))
