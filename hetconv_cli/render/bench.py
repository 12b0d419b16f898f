"""The report of `hetconv bench`."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hetconv_cli.bench.report import BenchReport, Row
from hetconv_cli.files import replacing
from hetconv_cli.render.table import Table, to_csv

SCHEMA = "hetconv.bench/1"


def bench_json(report: BenchReport) -> dict[str, Any]:
    """The documented structure."""
    return {"schema": SCHEMA, **asdict(report)}


def bench_csv(report: BenchReport) -> str:
    """One line a row."""
    columns = [field.name for field in fields(Row)]
    return to_csv(["model", *columns], [[report.model, *(getattr(row, c) for c in columns)] for row in report.rows])


def bench_table(report: BenchReport) -> Table:
    """A row a network or layer, in a runtime, at a batch size."""
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    headline = f"{report.model}  {report.device}, {report.threads} threads  ({versions})"
    headers = ["layer", "variant", "runtime", "batch", "ms", "+-", "images/s", "speed-up", "promised", "share", "form"]
    rows = [
        [
            row.layer or "network",
            title(row),
            row.runtime if row.dtype == "float32" else f"{row.runtime} {row.dtype}",
            str(row.batch),
            f"{row.median_ms:,.2f}",
            f"{row.iqr_ms:,.2f}",
            f"{row.images_per_s:,.1f}",
            "-" if row.variant == "standard" else f"x{row.speedup:.2f}",
            "-" if row.variant == "standard" else f"x{row.promised:.2f}",
            "-" if row.variant == "standard" else f"{row.share:.2f}",
            row.form,
        ]
        for row in report.rows
    ]
    below = [
        "  speed-up: over the standard network in the same runtime, batch and type, in its faster memory layout.",
        "  promised: the ratio of their MACs. share: how much of the promise the clock keeps.",
    ]
    slower = [row for row in report.rows if row.speedup < 1]
    if slower:
        below.append(f"  slower than standard: {', '.join(dict.fromkeys(_where(row) for row in slower))}")
    return Table(headers, rows, [headline], below, left=frozenset({0, 1, 2, 10}))


def title(row: Row) -> str:
    """What a row's network is called."""
    part = "PC" if row.p == "pc" else f"P={row.p}"
    return {"standard": "standard", "hetconv": part, "dwc": "DWC+PWC", "gwc": f"GWC{row.groups}+PWC"}[row.variant]


def _where(row: Row) -> str:
    runtime = row.runtime if row.dtype == "float32" else f"{row.runtime} {row.dtype}"
    return f"{title(row)} in {runtime} at batch {row.batch}" + (f" ({row.layer})" if row.layer else "")


def plot_bench(report: BenchReport, path: Path) -> None:
    """Promised beside reached speed-up: the paper's figure 4, with a real clock."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    rows = [row for row in report.rows if row.variant != "standard"]
    labels = [_label(row) for row in rows]
    figure, axes = plt.subplots(figsize=(7.5, 1.2 + 0.42 * len(rows)), layout="constrained")
    places = range(len(rows))
    axes.barh([y - 0.2 for y in places], [row.promised for row in rows], 0.4, label="promised by MACs", color="#9ecae1")
    bars = axes.barh([y + 0.2 for y in places], [row.speedup for row in rows], 0.4, label="reached", color="#e6550d")
    axes.bar_label(bars, labels=[f"x{row.speedup:.2f}" for row in rows], fontsize=8, padding=2)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(places, labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("speed-up over the standard network")
    axes.set_title(f"{report.model} on {report.device}, {report.threads} threads", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=150)
    plt.close(figure)


def _label(row: Row) -> str:
    where = f"{row.layer}  " if row.layer else ""
    return f"{where}{title(row)}  {row.runtime}{' int8' if row.dtype == 'int8' else ''}  batch {row.batch}"
