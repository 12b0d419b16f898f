"""The report of `hetconv bench`."""

import string
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from hetconv_cli.bench.int8_graph import Int8Graph
from hetconv_cli.bench.report import BenchReport, Row
from hetconv_cli.files import replacing
from hetconv_cli.render.table import Table, to_csv

SCHEMA = "hetconv.bench/1"
_MEANING = [
    "  speed-up: over the standard network in the same runtime, batch and type, in its fastest form.",
    "  promised: the ratio of their MACs. share: how much of the promise the clock keeps.",
]
_PEER = "  grouped: HetConv as public code runs it; promised by the MACs that it executes, its centre taps twice."
_NUMBERS = ("ms", "+-", "images/s", "speed-up", "promised", "share")


def bench_json(report: BenchReport) -> dict[str, Any]:
    """The documented structure."""
    shapes = [list(shape) for shape in report.input]
    return {"schema": SCHEMA, **asdict(report), "input": shapes[0] if len(shapes) == 1 else shapes}


def bench_csv(report: BenchReport) -> str:
    """One line a row."""
    columns = [field.name for field in fields(Row) if field.name not in ("parts", "int8")]
    headers = ["model", *columns, "parts", "int8_convolutions", "float_convolutions"]
    return to_csv(headers, [_csv_line(report.model, row, columns) for row in report.rows])


def _csv_line(model: str, row: Row, columns: Sequence[str]) -> list[object]:
    graph = (row.int8.int8_convolutions, row.int8.float_convolutions) if row.int8 else (None, None)
    parts = " ".join(f"{p}:{layers}" for p, layers in row.parts.items())
    return [model, *(getattr(row, column) for column in columns), parts, *graph]


def bench_tables(report: BenchReport) -> list[Table]:
    """A table for each runtime, type and batch size, whose rows are compared with one another: networks and layers."""
    blocks: dict[str, list[Row]] = {}
    for row in report.rows:
        blocks.setdefault(_block(row), []).append(row)
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    above = [f"{_headline(report)}  ({versions})"]
    letters = _letters(blocks)
    tables = [_table(name, rows, letters) for name, rows in blocks.items()]
    tables[0] = replace(tables[0], above=[*above, *tables[0].above])
    tables[-1] = replace(tables[-1], below=[*_below(report), *_legend(letters)])
    return tables


def _table(name: str, rows: list[Row], letters: Mapping[str, str]) -> Table:
    """One block; what is the same in all its rows stands above them."""
    headers = ["layer"] if any(row.layer for row in rows) else []
    headers += ["variant", *_NUMBERS]
    cells = [[_cell(row, header) for header in headers] for row in rows]
    left = frozenset(index for index, header in enumerate(headers) if header not in _NUMBERS)
    if len({row.form for row in rows}) > 1:
        headers.append("form")
        cells = [[*line, letters[row.form]] for line, row in zip(cells, rows, strict=True)]
    elif rows[0].form != "onnx":
        name = f"{name}, {rows[0].form}"
    return Table(headers, cells, [name], left=left)


def _letters(blocks: Mapping[str, list[Row]]) -> dict[str, str]:
    """A letter for each form in a block of several: their names are too long for a column."""
    forms = dict.fromkeys(row.form for rows in blocks.values() if len({r.form for r in rows}) > 1 for row in rows)
    return dict(zip(forms, string.ascii_lowercase, strict=False))


def _legend(letters: Mapping[str, str]) -> list[str]:
    return [f"  form: {'; '.join(f'{letter} = {form}' for form, letter in letters.items())}"] if letters else []


def _headline(report: BenchReport) -> str:
    size = ", ".join("x".join(map(str, shape[1:])) for shape in report.input)
    threads = f"{report.threads} thread{'s' * (report.threads > 1)}"
    return f"{report.model}  {size}  {report.device}, {threads}"


def _block(row: Row) -> str:
    return f"{_runtime(row)}, batch {row.batch}"


def _runtime(row: Row) -> str:
    return row.runtime if row.dtype == "float32" else f"{row.runtime} {row.dtype}"


def _cell(row: Row, header: str) -> str:
    if row.variant == "standard" and header in ("speed-up", "promised", "share"):
        return "-"
    cells: dict[str, Callable[[], str]] = {
        "layer": lambda: row.layer or "network",
        "variant": lambda: title(row),
        "ms": lambda: f"{row.median_ms:,.2f}",
        "+-": lambda: f"{row.iqr_ms:,.2f}",
        "images/s": lambda: f"{row.images_per_s:,.1f}",
        "speed-up": lambda: f"x{row.speedup:.2f}",
        "promised": lambda: f"x{row.promised:.2f}",
        "share": lambda: f"{row.share:.2f}",
    }
    return cells[header]()


def title(row: Row) -> str:
    """What a row's network is called."""
    part = "PC" if row.p == "pc" else f"P={row.p}" if row.p else "P mixed"
    groups = f"GWC{row.groups}" if row.groups else "GWC"
    names = {"hetconv": part, "grouped": f"grouped {part}", "dwc": "DWC+PWC", "gwc": f"{groups}+PWC"}
    name = names.get(row.variant, row.variant)
    return f"{name} ({row.origin})" if row.origin else name


def _below(report: BenchReport) -> list[str]:
    lines = list(_MEANING)
    if any(row.variant == "grouped" for row in report.rows):
        lines.append(_PEER)
    if report.weights != "random":
        lines.append(f"  weights of the standard network: {report.weights}")
    lines += [*_mixtures(report), *_int8_notes(report)]
    return lines + _slower(report)


def _slower(report: BenchReport) -> list[str]:
    """A line for each variant that lost to the standard form, with the layers that did so alone."""
    places: dict[str, list[str]] = {}
    for row in report.rows:
        if row.speedup < 1:
            places.setdefault(f"{title(row)} in {_block(row)}", []).append(row.layer or "network")
    alone = any(row.layer for row in report.rows)
    return [
        f"  slower than standard: {name}" + (f": {', '.join(layers)}" if alone else "")
        for name, layers in places.items()
    ]


def _mixtures(report: BenchReport) -> list[str]:
    """Which parts are in the rows that have several."""
    found = {}
    for row in report.rows:
        if len(row.parts) > 1 and row.layer is None and row.variant != "grouped":
            parts = ", ".join(f"P={p} in {layers} layer{'s' * (layers > 1)}" for p, layers in row.parts.items())
            found[title(row)] = f"  {title(row)}: {parts}"
    return list(found.values())


def _int8_notes(report: BenchReport) -> list[str]:
    """What int8 was calibrated on, and what of it runs in int8."""
    rows = [row for row in report.rows if row.dtype == "int8"]
    if not rows:
        return []
    kinds = {row.calibration for row in rows}
    on = "random inputs: nothing is said of its accuracy"
    if "images" in kinds:
        on = f"{report.images} images" + ("; layers alone on random inputs" if "random" in kinds else "")
    lines = [f"  int8: calibrated on {on}."]
    graphs = {
        f"{title(row)} in {row.runtime}" + (f" ({row.layer})" if row.layer else ""): _in_int8(row.int8)
        + (_off(row) if report.weights != "random" and row.calibration == "images" else "")
        for row in rows
        if row.int8
    }
    return lines + [f"  {name}: {said}" for name, said in graphs.items()]


def _off(row: Row) -> str:
    return f"; off by {100 * row.error:.2g} % of the output's scale"


def _in_int8(graph: Int8Graph) -> str:
    in_float = {**graph.float_operators, "BatchNormalization": graph.batch_norms, "Transpose": graph.transposes}
    left = ", ".join(f"{number} {operator}" for operator, number in in_float.items() if number)
    convolutions = graph.int8_convolutions + graph.float_convolutions
    return f"{graph.int8_convolutions} of {convolutions} convolutions in int8; not in int8: {left or 'nothing'}"


def plot_bench(report: BenchReport, path: Path) -> None:
    """Promised beside reached speed-up, layer by layer: the paper's figure 4, with a real clock."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    rows = [row for row in report.rows if row.variant != "standard"]
    common = len({_block(row) for row in rows}) == 1  # then the title says it, else each label
    layered = any(row.layer for row in rows)
    labels = [_label(row, (row.layer or "network") * layered, "" if common else _block(row)) for row in rows]
    width = 6 + 0.08 * max(map(len, labels), default=0)  # inches: room for the names beside the bars
    figure, axes = plt.subplots(figsize=(width, 1.7 + 0.42 * len(rows)), layout="constrained")
    places = range(len(rows))
    axes.barh([y - 0.2 for y in places], [row.promised for row in rows], 0.4, label="promised by MACs", color="#9ecae1")
    bars = axes.barh([y + 0.2 for y in places], [row.speedup for row in rows], 0.4, label="reached", color="#e6550d")
    white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # a label may fall on the line at 1
    axes.bar_label(bars, labels=[f"x{row.speedup:.2f}" for row in rows], fontsize=8, padding=3, bbox=white)
    axes.axvline(1, color="black", linewidth=0.8, zorder=2)  # over bars, under labels
    groups = [row.layer if layered else _block(row) for row in rows]
    for place in places[1:]:
        if groups[place] != groups[place - 1]:
            axes.axhline(place - 0.5, color="#dddddd", linewidth=0.8, zorder=0.5)
    axes.set_yticks(places, labels, fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the first row on top, no empty space at the ends
    axes.set_xlabel("speed-up over the standard network")
    lines = [_headline(report), *([_block(rows[0])] if common else [])]
    figure.suptitle("\n".join(textwrap.fill(line, 90) for line in lines), fontsize=9)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)  # never over a bar
    axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=150)
    plt.close(figure)


def _label(row: Row, *words: str) -> str:
    return "  ".join([*filter(None, words), title(row)])
