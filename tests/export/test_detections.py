"""Detections are compared as sets."""

import numpy as np
import torch

from hetconv_cli.export.detections import in_order_of

EXPECTED = {
    "boxes_0": torch.tensor([[0.0, 0, 9, 9], [5, 5, 7, 7], [1, 1, 2, 2]]),
    "labels_0": torch.tensor([3, 4, 5]),
    "scores_0": torch.tensor([0.9, 0.5, 0.4999]),
    "scores_1": torch.zeros(0),
}


def test_near_ties_are_put_in_order_with_all_that_belongs_to_them():
    swapped = {name: tensor.numpy()[[0, 2, 1][: len(tensor)]] for name, tensor in EXPECTED.items()}
    for name, array in in_order_of(EXPECTED, swapped).items():
        np.testing.assert_array_equal(array, EXPECTED[name].numpy())


def test_other_detections_and_other_numbers_of_them_stay_as_they_are():
    got = {name: tensor.numpy() for name, tensor in EXPECTED.items()}
    twice = {**got, "boxes_0": got["boxes_0"][[0, 1, 1]], "labels_0": got["labels_0"][[0, 1, 1]]}
    fewer = {**got, **{name: got[name][:2] for name in ("boxes_0", "labels_0", "scores_0")}}
    for other in (twice, fewer):
        for name, array in in_order_of(EXPECTED, other).items():
            np.testing.assert_array_equal(array, other[name])
