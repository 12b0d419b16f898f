"""int8 by ONNX Runtime's static quantization: QDQ, per channel, calibrated on given images or random inputs."""

import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from hetconv_cli.models.example import ExampleSpec

RANDOM_BATCHES = 4

Batch = tuple[Tensor, ...]  # a tensor for each input of the graph


def random_batches(example: ExampleSpec) -> Iterator[Batch]:
    """Random inputs: good for the time of an int8 network, not for its accuracy."""
    for seed in range(RANDOM_BATCHES):
        yield example.make(seed=seed)


def image_batches(images: Tensor, size: int) -> Iterator[Batch]:
    """Images [n, C, H, W] in batches [size, C, H, W], as the graph takes them; the last is filled from the first."""
    for start in range(math.ceil(len(images) / size)):
        yield (images[torch.arange(start * size, (start + 1) * size) % len(images)],)


def quantize(file: Path, batches: Iterable[Batch]) -> None:
    """Replaces the ONNX file by its int8 form: activations by their least and greatest values over `batches`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    names = [node.name for node in onnx.load(str(file)).graph.input]
    feeds = ({name: tensor.numpy() for name, tensor in zip(names, batch, strict=True)} for batch in batches)

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
        def get_next(self) -> dict[str, Any] | None:
            return next(feeds, None)

    prepared, quantized = file.with_suffix(".prepared.onnx"), file.with_suffix(".int8.onnx")
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it recommends the pre-processing that was just done
    try:
        quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(quantized),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        logging.root.setLevel(level)
    quantized.replace(file)
    prepared.unlink()
