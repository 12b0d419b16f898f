"""The public form computes what the HetConv layer computes, and executes what it is said to execute."""

import onnx
import pytest
import torch
from torch import nn

from hetconv_cli.bench.peer import in_public_form, more_macs
from hetconv_cli.bench.runtimes import torch_forms, write_onnx
from hetconv_cli.conversion.candidates import find_candidates
from hetconv_cli.conversion.convert import convert
from hetconv_cli.conversion.trace import trace
from hetconv_cli.layers import HetConv2d
from hetconv_cli.measure.analytic import analytic_macs
from hetconv_cli.measure.counters import count_dispatched
from hetconv_cli.models.example import ExampleSpec
from hetconv_cli.plan import Rules, Wish, make_plan


@pytest.mark.parametrize(
    "layer",
    [
        (8, 12, 3, 1, 1),
        (8, 12, 3, 2, 1, 1, False),
        (8, 6, 3, 1, 1),  # filters that 4 does not divide
        (8, 2, 3),  # fewer filters than classes, no padding
        (8, 8, (1, 5), 1, (3, 1), (1, 2)),  # padded beyond the window's centre in rows, less in columns
        (8, 8, 3, 2, 2, 2, True, "reflect"),
    ],
    ids=str,
)
@pytest.mark.parametrize("arrangement", ["blocked", "shifted"])
def test_it_computes_the_same(layer, arrangement):
    hetconv = HetConv2d(*layer, p=4, arrangement=arrangement).double()
    hetconv.implementation = "reference"
    input = torch.randn(2, 8, 11, 9, dtype=torch.double)
    public = in_public_form(hetconv)
    torch.testing.assert_close(public(input), hetconv(input))


def test_it_is_two_convolutions_and_nothing_else_that_multiplies():
    public = in_public_form(HetConv2d(16, 32, 3, padding=1, p=4))
    shapes = [(conv.groups, conv.kernel_size) for conv in public.modules() if isinstance(conv, nn.Conv2d)]
    assert shapes == [(4, (3, 3)), (1, (1, 1))]


def test_its_macs_are_those_that_are_executed():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 16, 3, 2)).eval()
    input = torch.randn(1, 3, 12, 12)
    calls = trace(model, (input,))
    plan = make_plan(find_candidates(model, calls), Rules(Wish(p=4)))
    public = in_public_form(convert(model, 4, example=input).model)
    promised = sum(analytic_macs(model, calls, plan).values()) + more_macs(plan, calls)
    assert promised == sum(count_dispatched(public, (input,)).values())


def test_a_shared_layer_stays_one_module():
    layer = HetConv2d(8, 8, 3, padding=1, p=4)
    public = in_public_form(nn.Sequential(layer, nn.ReLU(), layer))
    assert public[0] is public[2]
    assert not isinstance(public[0], HetConv2d)


@pytest.mark.parametrize("compiled", [False, True])
def test_nothing_of_it_is_fused(compiled, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    example = ExampleSpec(((1, 8, 6, 6),))
    model = nn.Sequential(in_public_form(HetConv2d(8, 8, 3, p=4)), nn.BatchNorm2d(8))
    forms = torch_forms(model, example, "cpu", compiled=compiled, plain=True)
    assert [form.name for form in forms] == ["as it is, contiguous", "as it is, channels_last"]


def test_its_file_is_what_the_exporter_makes_of_it(tmp_path):
    layer = HetConv2d(32, 32, 3, padding=1, p=8, bias=False)  # 4 channels a group: hetconv export joins groups
    example = ExampleSpec(((1, 32, 6, 6),))
    operators = {}
    for name, model, plain in (("own", layer, False), ("public", in_public_form(layer), True)):
        network = nn.Sequential(model, nn.BatchNorm2d(32)).eval()
        write_onnx(network, tmp_path / f"{name}.onnx", example, plain=plain)
        nodes = onnx.load(tmp_path / f"{name}.onnx").graph.node
        groups = [a.i for node in nodes for a in node.attribute if a.name == "group" and a.i > 1]
        operators[name] = ([node.op_type for node in nodes].count("BatchNormalization"), groups)
    assert operators == {"own": (0, [2]), "public": (1, [8])}
