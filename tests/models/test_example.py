import re

import pytest
import torch

from hetconv_cli.errors import ArgumentError
from hetconv_cli.models.example import ExampleSpec, parse_input, spec_of

IMAGE = ExampleSpec(((1, 3, 224, 224),))
FLOW = ExampleSpec(((1, 3, 520, 960), (1, 3, 520, 960)))
VIDEO = ExampleSpec(((1, 3, 16, 112, 112),))
IMAGES = ExampleSpec(((1, 3, 800, 800),), kind="images")
ASSUMED = ExampleSpec(((1, 3, 224, 224),), assumed=True)


@pytest.mark.parametrize(
    ("text", "like", "shapes"),
    [
        ("1x3x224x224", None, ((1, 3, 224, 224),)),
        ("2x3x64x32, 2x5", None, ((2, 3, 64, 32), (2, 5))),
        ("1x3x192x192", IMAGE, ((1, 3, 192, 192),)),
        ("192", IMAGE, ((1, 3, 192, 192),)),
        ("224x320", IMAGE, ((1, 3, 224, 320),)),
        ("128x256", FLOW, ((1, 3, 128, 256), (1, 3, 128, 256))),
        ("1x3x128x256", FLOW, ((1, 3, 128, 256), (1, 3, 128, 256))),
        ("1x3x128x256,1x3x128x256", FLOW, ((1, 3, 128, 256), (1, 3, 128, 256))),
        ("96", VIDEO, ((1, 3, 16, 96, 96),)),
        ("2x3x400x600", IMAGES, ((2, 3, 400, 600),)),
        ("1x1x8x28x28", ASSUMED, ((1, 1, 8, 28, 28),)),
        ("1x3x64x64,1x10", ASSUMED, ((1, 3, 64, 64), (1, 10))),
        ("64", ASSUMED, ((1, 3, 64, 64),)),
    ],
)
def test_an_input_is_read_as_typed_and_completed_by_the_models_own(text, like, shapes):
    spec = parse_input(text, like)
    assert spec == ExampleSpec(shapes, kind=like.kind if like else "tensors")
    assert parse_input(spec.describe()).shapes == shapes


@pytest.mark.parametrize(
    ("text", "like", "message"),
    [
        ("", IMAGE, "expected positive whole sizes such as 1x3x224x224"),
        ("0", IMAGE, "positive whole sizes"),
        ("1x3x0x224", IMAGE, "positive whole sizes"),
        ("1x3x-1x224", IMAGE, "positive whole sizes"),
        ("1.5", IMAGE, "positive whole sizes"),
        ("1_000", IMAGE, "positive whole sizes"),
        ("٢٢٤", IMAGE, "positive whole sizes"),
        ("1x3x224x", IMAGE, "positive whole sizes"),
        ("9" * 5000, IMAGE, "positive whole sizes"),
        ("1x3x8x8,", IMAGE, "sizes such as .*, got ''"),
        ("3x224x224", IMAGE, r"expected 4 sizes such as 1x3x224x224 \(or 224.*, got 3"),
        ("1x1x28x28", IMAGE, "expected 3 channels as in 1x3x224x224 .*, got 1"),
        ("1x3x8x8,1x3x8x8", IMAGE, r"expected 1 shape\(s\) such as .*, got 2"),
        ("99999", IMAGE, r"expected at most 2\*\*31 elements, got 29,999,400,003"),
        ("224", None, "expected the batch size and at least one more"),
    ],
)
def test_any_other_input_is_refused_with_what_was_expected(text, like, message):
    with pytest.raises(ArgumentError, match=message):
        parse_input(text, like)


def test_tensors_are_standard_normal_repeatable_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    (first,) = IMAGE.make(seed=3)
    (again,) = IMAGE.make(seed=3)
    (other,) = IMAGE.make(seed=4)
    (double,) = IMAGE.make(seed=3, dtype=torch.float64)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first.double(), double)
    assert abs(first.mean()) < 0.02
    assert abs(first.std() - 1) < 0.02


def test_two_inputs_differ():
    first, second = FLOW.with_batch(2).make()
    assert first.shape == second.shape == (2, 3, 520, 960)
    assert not torch.equal(first, second)


def test_images_come_as_one_list_of_images_in_zero_to_one():
    (images,) = parse_input("3x3x20x30", IMAGES).make()
    assert [tuple(image.shape) for image in images] == [(3, 20, 30)] * 3
    assert all(0 <= image.min() and image.max() <= 1 for image in images)


def test_on_meta_nothing_is_allocated():
    (huge,) = IMAGE.with_batch(10**9).make(device="meta", dtype=torch.float16)
    assert huge.is_meta
    assert (huge.shape, huge.dtype) == ((10**9, 3, 224, 224), torch.float16)


def test_a_device_context_of_the_caller_does_not_change_where_inputs_are():
    with torch.device("meta"):
        (tensor,) = IMAGE.make()
    assert tensor.device.type == "cpu"


@pytest.mark.parametrize("spec", [IMAGE, FLOW, VIDEO, IMAGES.with_batch(2)])
def test_spec_of_is_the_inverse_of_make(spec):
    assert spec_of(spec.make(device="meta")) == spec


def test_spec_of_takes_a_bare_tensor_and_a_bare_list():
    assert spec_of(torch.zeros(2, 3, 8, 8)) == ExampleSpec(((2, 3, 8, 8),))
    assert spec_of([torch.zeros(3, 8, 8)]) == ExampleSpec(((1, 3, 8, 8),), kind="images")


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ("text", "expected a tensor, a tuple of tensors or a list of images, got str"),
        ((torch.zeros(1, 3), 4), "got int"),
        ((), "at least one tensor, got an empty tuple"),
        (torch.zeros(()), "batch dimension first"),
        ([], "images of one size, got 0 sizes"),
        ([torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)], "images of one size, got 2 sizes"),
        ([torch.zeros(8, 8)], re.escape("[3, H, W] images, got 2 dimensions")),
        (["image"], "got no tensors"),
    ],
)
def test_spec_of_refuses_what_no_model_is_called_with(example, message):
    with pytest.raises(ArgumentError, match=message):
        spec_of(example)
