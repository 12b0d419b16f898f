"""The report of `hetconv export`."""

from dataclasses import asdict
from typing import Any

from hetconv_cli.export.onnx_file import ExportReport
from hetconv_cli.render.numbers import size
from hetconv_cli.render.table import to_csv

SCHEMA = "hetconv.export/1"


def export_json(report: ExportReport, source: str) -> dict[str, Any]:
    """The documented structure."""
    return {"schema": SCHEMA, "source": source, **asdict(report)}


def export_csv(report: ExportReport, source: str) -> str:
    """One line."""
    columns = ("output", "opset", "bytes", "verified", "max_abs_diff", "max_rel_diff", "reaction")
    return to_csv(("source", *columns), [[source, *(getattr(report, column) for column in columns)]])


def export_text(report: ExportReport, source: str) -> str:
    """For people: where it came from, what the graph is, the file, the proof."""
    lines = [
        ("source", source),
        ("graph", _graph(report)),
        ("file", f"{report.output}  {size(report.bytes)}"),
        *zip(("proof", ""), _proof(report), strict=False),
        *(("", note) for note in report.notes),
    ]
    verdict = "VERIFIED" if report.verified else "NOT VERIFIED (--no-verify)"
    return "\n".join([*(f"{label:<8} {text}" for label, text in lines), verdict]) + "\n"


def _graph(report: ExportReport) -> str:
    batch = "batch dynamic" if report.dynamic_batch else f"batch fixed at {report.example_batch}"
    folded = f"{report.bn_folded} BatchNorm folded into both branches of a HetConv, " if report.bn_folded else ""
    left = f"{report.bn_left} BatchNormalization left" if report.bn_left else "no BatchNormalization left"
    nodes = ", ".join(f"{count} {kind}" for kind, count in list(report.nodes.items())[:4])
    return f"opset {report.opset}, {batch}; {folded}{left}; {nodes}; standard operators only"


def _proof(report: ExportReport) -> tuple[str, ...]:
    if report.max_rel_diff is None or report.reaction is None:
        return ("none was asked for",)
    return (
        f"onnx.checker; ONNX Runtime on CPU against torch{' on CUDA' if report.device == 'cuda' else ''},"
        f" batch {report.proof_batch} (exported at {report.example_batch}): largest difference"
        f" {report.max_rel_diff:.1e} of the output's scale (limit {report.tolerance['rtol']:g})",
        f"the output moves by {100 * report.reaction:.2g} % of its scale when the input does: the proof has meaning",
    )
