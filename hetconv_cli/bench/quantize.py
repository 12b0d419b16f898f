"""int8 by ONNX Runtime's static quantization: QDQ, per channel, calibrated on given or random inputs."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from hetconv_cli.models.example import ExampleSpec

CALIBRATION_BATCHES = 4


def quantize(file: Path, example: ExampleSpec) -> None:
    """Replaces the ONNX file by its int8 form, calibrated on random inputs: good for its time, not its accuracy."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    names = [node.name for node in onnx.load(str(file)).graph.input]

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
        def __init__(self) -> None:
            self._batches = _random_batches(names, example)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._batches, None)

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


def _random_batches(names: list[str], example: ExampleSpec) -> Iterator[dict[str, Any]]:
    for seed in range(CALIBRATION_BATCHES):
        yield {name: tensor.numpy() for name, tensor in zip(names, example.make(seed=seed), strict=True)}
