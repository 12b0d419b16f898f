"""The report of a calibration."""

import math
from dataclasses import asdict
from typing import Any

from hetconv_cli.conversion.calibration.report import Agreement, CalibrationReport
from hetconv_cli.render.table import Table


def calibration_json(report: CalibrationReport) -> dict[str, Any]:
    """The documented structure; null where a number is infinite or there is none, as JSON knows neither."""
    structure: dict[str, Any] = _finite(asdict(report))
    return structure


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def calibration_table(report: CalibrationReport) -> Table:
    """Layer by layer, then the whole network."""
    rows = [
        [
            layer.name,
            str(layer.p),
            f"{layer.unknowns:,}",
            f"{layer.positions:,}",
            f"{layer.error_center:.4f}",
            f"{layer.error_calibrated:.4f}",
            f"{layer.seconds:.1f}",
        ]
        for layer in report.layers
    ]
    headers = ["layer", "P", "unknowns", "positions", "error, centre taps", "calibrated", "seconds"]
    blocks = "a quarter of each map, fitted on only afterwards; the whole network's on all images"
    on = f"{report.held_out} held out" if report.held_out else blocks
    headline = f"calibrated on {report.images} images; errors measured on {on}"
    return Table(headers, rows, [headline], _below(report))


def _below(report: CalibrationReport) -> list[str]:
    lines = [
        f"  whole network, centre taps: {_agreement(report.center)}",
        f"  whole network, calibrated:  {_agreement(report.calibrated)}",
        f"  {report.batch_norms} BatchNorm statistics corrected; {report.seconds:.1f} s; "
        + f"{report.held_bytes / 1e6:,.0f} MB of activations held",
    ]
    if report.rerun_images:
        lines.append(
            f"  {report.rerun_images} of {report.images} images ran anew for each layer, to keep the memory bound"
            " (more: --memory) or because the networks took different ways"
        )
    return [*lines, *(f"  note: {warning}" for warning in report.warnings)]


def _agreement(found: Agreement) -> str:
    parts = [f"relative error {found.relative_error:.4f}", f"cosine {found.cosine:.4f}"]
    if found.psnr is not None:
        parts.append(f"PSNR {found.psnr:.1f} dB")
    if found.top1 is not None:
        parts.append(f"same top-1 on {100 * found.top1:.1f} %")
    return ", ".join(parts)
