"""Each runtime runs the network in the form that it names."""

import pytest
import torch
from compilers import compiler
from torch import nn

from hetconv_cli.bench.runtimes import _compile, torch_forms
from hetconv_cli.errors import HetconvError
from hetconv_cli.layers import HetConv2d
from hetconv_cli.models.example import ExampleSpec
from hetconv_cli.ops.hetconv2d.cpu_build import cpu_library


def test_every_network_is_compiled_however_many_were_before_it():
    compiled, networks = [], []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    for features in range(1, 13):  # torch compiles one class 8 times and runs the others eagerly
        networks.append(torch.compile(nn.Linear(3, features), backend=backend))
        _compile(lambda run=networks[-1]: run(torch.ones(3)))
    assert len(compiled) == 12


def test_a_network_that_torch_cannot_compile_is_one_line():
    def call():
        raise RuntimeError("no such lowering\nin the compiler")

    with pytest.raises(
        HetconvError, match=r"torch.compile fails on .*: no such lowering\)?; leave compile out"
    ) as said:
        _compile(call)
    assert "\n" not in str(said.value)


def test_the_fused_form_names_the_kernel_of_ours():
    network, example = nn.Sequential(HetConv2d(8, 8, 3, padding=1, p=4)), ExampleSpec(((1, 8, 6, 6),))

    def names():
        return [form.name for form in torch_forms(network, example, "cpu", compiled=False)]

    with compiler(None):
        fused = "fused" if cpu_library().problem else "fused + CPU kernel"
        own = ["as it is, contiguous", "as it is, channels_last"]
        assert names() == [*own, f"{fused}, contiguous", f"{fused}, channels_last"]
    with compiler(""):
        assert names() == [*own, "fused, contiguous", "fused, channels_last"]
