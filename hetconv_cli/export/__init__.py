"""ONNX files, and the proof that a file computes what the model computes.

`onnx_file.export_onnx` is the way in. Behind it: `inputs` and `outputs` (what a model is called with and returns, as
named tensors), `lowering` (HetConv2d -> two plain convolutions), `exporters` (torch's two exporters), `fold`
(BatchNormalization into the convolutions before it), `residuals` (the order of sums), `proof` and `conditioning`.
"""

from hetconv_cli.export.onnx_file import DEFAULT_OPSET, ExportReport, export_onnx

__all__ = ["DEFAULT_OPSET", "ExportReport", "export_onnx"]
