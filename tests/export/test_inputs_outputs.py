"""Inputs are drawn like the example's; outputs get names that a reader can follow."""

import pytest
import torch
from torch import nn

from hetconv_cli.errors import ArgumentError
from hetconv_cli.export.inputs import flatten_arguments, inputs_like
from hetconv_cli.export.outputs import named_outputs
from hetconv_cli.models.example import ExampleSpec

MODEL = nn.Linear(2, 2).double()


def test_shapes_become_tensors_of_the_models_type():
    (x,) = inputs_like(ExampleSpec(((1, 3, 4),)), MODEL).make(5, seed=1)
    assert x.shape == (5, 3, 4)
    assert x.dtype == torch.float64


def test_given_tensors_keep_type_and_values_at_another_batch_size():
    tokens, mask = torch.tensor([[3, 7, 9]]), torch.tensor([[True, False]])
    inputs = inputs_like((tokens, mask), MODEL)
    drawn = inputs.make(50, seed=1)
    assert inputs.names == ["input_0", "input_1"]
    assert [value.shape for value in drawn] == [(50, 3), (50, 2)]
    assert drawn[0].unique().tolist() == [3, 7, 9]
    assert drawn[1].dtype == torch.bool


def test_zeros_as_an_example_become_noise():
    (x,) = inputs_like(torch.zeros(1, 1000), MODEL).make(2, seed=1)
    assert 0.9 < x.std() < 1.1


def test_seeds_differ():
    inputs = inputs_like(torch.randn(1, 8), MODEL)
    assert torch.equal(inputs.make(2, seed=1)[0], inputs.make(2, seed=1)[0])
    assert not torch.equal(inputs.make(2, seed=1)[0], inputs.make(2, seed=2)[0])


@pytest.mark.parametrize("example", [[torch.rand(3, 4, 4)] * 2, ExampleSpec(((2, 3, 4, 4),), "images")], ids=type)
def test_images_stay_a_list_of_as_many(example):
    inputs = inputs_like(example, MODEL)
    arguments = inputs.make(7, seed=1)
    assert inputs.names == ["input_0", "input_1"]
    assert [image.shape for image in flatten_arguments(arguments)] == [(3, 4, 4)] * 2
    assert isinstance(arguments[0], list)


def test_an_empty_example_is_refused():
    with pytest.raises(ArgumentError, match="expected at least one element"):
        inputs_like(torch.zeros(1, 0), MODEL)


def test_output_names():
    a, b = torch.zeros(1), torch.ones(1)
    assert list(named_outputs(a, [])) == ["output"]
    assert list(named_outputs((a,), [])) == ["output"]
    assert list(named_outputs([a, b], [])) == ["output_0", "output_1"]
    assert list(named_outputs({"out": a, "aux": None, "rest": [a, b]}, [])) == ["out", "rest_0", "rest_1"]
    assert list(named_outputs([{"boxes": a}], [])) == ["boxes"]
    assert list(named_outputs([{"boxes": a}, {"boxes": b}], [])) == ["boxes_0", "boxes_1"]


def test_no_two_names_are_the_same():
    a = torch.zeros(1)
    assert list(named_outputs({"input": a, "x_0": a, "x": [a, a]}, ["input"])) == ["input_", "x_0", "x_0_", "x_1"]


@pytest.mark.parametrize(("output", "message"), [({"loss": 1.5}, "returns a float"), ([], "returns no tensor")])
def test_outputs_without_tensors_are_refused(output, message):
    with pytest.raises(ArgumentError, match=message):
        named_outputs(output, [])
