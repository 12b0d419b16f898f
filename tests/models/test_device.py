"""Only devices that are here are taken."""

import pytest
import torch

from hetconv_cli.errors import ArgumentError
from hetconv_cli.models.device import check_device


@pytest.mark.parametrize("here", [True, False])
def test_the_cpu_is_always_here_and_cuda_where_torch_sees_one(monkeypatch, here):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here)
    assert check_device("cpu") == "cpu"
    if here:
        assert check_device("cuda") == "cuda"
    else:
        with pytest.raises(ArgumentError, match="torch sees no CUDA GPU here"):
            check_device("cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:9", "", "mps"])
def test_other_names_are_refused(name):
    with pytest.raises(ArgumentError, match="--device: expected cpu, cuda; got"):
        check_device(name)
