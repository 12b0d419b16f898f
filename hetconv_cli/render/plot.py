"""Pictures of a flops report. matplotlib is imported inside, so that only who plots pays for it."""

from pathlib import Path

from hetconv_cli.errors import ArgumentError
from hetconv_cli.files import check_target, replacing
from hetconv_cli.measure.report import FlopsReport
from hetconv_cli.render.flops import title
from hetconv_cli.render.numbers import Unit, scale_for

FORMATS = (".png", ".svg", ".pdf")
_SERIES = (("by equation and shapes", "analytic"), ("counted by torch", "dispatcher"), ("executed here", "executed"))
_COLORS = ("#9ecae1", "#3182bd", "#e6550d")


def check_plot_target(path: Path, overwrite: bool) -> None:
    """Raises ArgumentError unless matplotlib is there, can draw a file that ends so, and the file may be written."""
    if path.suffix.lower() not in FORMATS:
        raise ArgumentError(f"{path}: expected a name that ends in {', '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ArgumentError("--plot needs matplotlib: pip install 'hetconv-cli[plot]'") from None
    check_target(path, overwrite)


def plot_flops(report: FlopsReport, path: Path, unit: Unit) -> None:
    """A group of bars for each variant: what the equations say, what was counted, what is executed."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    scale = scale_for(report.variants[0].macs.dispatcher, unit)
    figure, axes = plt.subplots(figsize=(max(6.0, 1.1 * len(report.variants)), 4.2), layout="constrained")
    for index, ((label, column), color) in enumerate(zip(_SERIES, _COLORS, strict=True)):
        heights = [getattr(variant.macs, column) / scale.divisor for variant in report.variants]
        places = [place + (index - 1) * 0.27 for place in range(len(heights))]
        bars = axes.bar(places, heights, 0.27, label=label, color=color)
        if column == "dispatcher":
            axes.bar_label(bars, fmt="{:,.2f}", fontsize=8, padding=2)
    axes.set_xticks(range(len(report.variants)), [title(variant) for variant in report.variants])
    axes.set_ylabel(scale.name)
    axes.set_title(f"{report.model}: multiply-accumulates of each variant")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=150)
    plt.close(figure)
