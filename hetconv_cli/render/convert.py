"""The report of `hetconv convert`."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from hetconv_cli.measure.summary import Stage, Summary
from hetconv_cli.plan import LayerPlan, Plan
from hetconv_cli.render.numbers import count, percent
from hetconv_cli.render.table import Table, to_csv

SCHEMA = "hetconv.convert/1"
_FEW_NAMES = 6


def convert_json(model: str, plan: Plan, summary: Summary, output: str | None, weights: str) -> dict[str, Any]:
    """The documented structure. `p` and `arrangement` are null where layers differ; the plan tells of each."""
    changes = [layer.change for layer in plan.converted if layer.change]
    pairs = [layer for layer in plan.converted if layer.absorbs]
    return {
        "schema": SCHEMA,
        "model": model,
        "output": output,
        "variant": _common([change.variant for change in changes]),
        "p": _common([change.p for change in changes]),
        "groups": _common([change.groups for change in changes]),
        "arrangement": _common([change.arrangement for change in changes]),
        "weights": weights,
        "converted": [layer.name for layer in plan.converted],
        "kept": [{"name": layer.name, "reason": layer.reason} for layer in plan.kept],
        "remarks": [{"name": layer.name, "remark": layer.remark} for layer in plan.converted if layer.remark],
        **({"pairs": [_pair(layer) for layer in pairs]} if pairs else {}),
        "params": {"before": summary.total.params_before, "after": summary.total.params_after},
        "macs": {"before": summary.total.macs_before, "after": summary.total.macs_after},
        "converted_macs": {"analytic": summary.converted_macs, "executed": summary.executed},
    }


def convert_csv(plan: Plan) -> str:
    """One line a Conv2d."""
    rows = [[layer.name, str(layer.geometry), layer.change, layer.reason or layer.remark] for layer in plan.layers]
    return to_csv(("layer", "convolution", "becomes", "reason"), rows)


def convert_table(model: str, plan: Plan, summary: Summary, input_size: str, weights: str) -> Table:
    """Stage by stage, what it was and what it is."""
    rows = [_row(stage) for stage in (*summary.stages, summary.kept, summary.others) if _counts(stage)]
    total = summary.total
    rows.append(_row(total))
    changes = [percent(total.macs_after, total.macs_before), percent(total.params_after, total.params_before)]
    rows.append(["", "", "", changes[0], "", changes[1]])
    headers = ["stage", "convs", "MACs before", "after", "params before", "after"]
    headline = f"{model}  {input_size}  {_changes(plan)}, weights: {weights}"
    return Table(headers, rows, [headline], _below(plan, summary))


def nothing_converted(model: str, plan: Plan) -> str:
    """A plain sentence for a network with nothing to convert."""
    if not plan.layers:
        return f"{model}: nothing to convert: it has no Conv2d. No file was written."
    reasons = Counter(layer.reason for layer in plan.kept)
    listed = "; ".join(f"{number} {reason}" for reason, number in reasons.most_common(_FEW_NAMES))
    return f"{model}: nothing to convert: its {len(plan.layers)} Conv2d are kept ({listed}). No file was written."


def _row(stage: Stage) -> list[str]:
    return [
        stage.name,
        str(stage.convs) if stage.convs else "",
        count(stage.macs_before),
        count(stage.macs_after),
        f"{stage.params_before:,}",
        f"{stage.params_after:,}",
    ]


def _counts(stage: Stage) -> bool:
    return bool(stage.convs or stage.macs_before or stage.params_before)


def _changes(plan: Plan) -> str:
    changes = [layer.change for layer in plan.converted if layer.change]
    names = {"standard": "standard", "hetconv": "HetConv", "dwc": "DWC+PWC", "gwc": "GWC+PWC"}
    words = [_all(names[change.variant] for change in changes)]
    for name, values in (
        ("P=", _all(change.p for change in changes)),
        ("G=", _all(change.groups for change in changes)),
        ("arrangement ", _all(change.arrangement for change in changes)),
        ("SE reduction ", _all(change.se for change in changes)),
    ):
        words += [name + values] if values else []
    return ", ".join(words)


def _all(values: Iterable[object]) -> str:
    """Every different value that is not None, in order."""
    return "/".join(dict.fromkeys(str(value) for value in values if value is not None))


def _below(plan: Plan, summary: Summary) -> list[str]:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for layer in plan.kept:
        by_reason[layer.reason or ""].append(layer.name or "(the model itself)")
    for layer in plan.converted:
        if layer.remark:
            by_reason[f"converted, {layer.remark}"].append(layer.name)
    lines = [f"  {_label(reason)}{_few(names)} ({reason})" for reason, names in by_reason.items()]
    pairs = [f"{layer.name} + {layer.absorbs[-1]}" for layer in plan.converted if layer.absorbs]
    if pairs:
        lines.append(f"  pairs taken as one convolution each ({len(pairs)}): {_few(pairs)}")
    more = summary.executed - summary.converted_macs
    if more:
        lines.append(
            f"  runs here as grouped K x K + 1 x 1: the converted layers execute {count(summary.executed)} MAC"
            f" for {count(summary.converted_macs)} on paper ({percent(summary.executed, summary.converted_macs)})"
        )
    return lines


def _pair(layer: LayerPlan) -> dict[str, Any]:
    return {"depthwise": layer.name, "pointwise": layer.absorbs[-1], "absorbs": list(layer.absorbs)}


def _label(reason: str) -> str:
    return "" if reason.startswith("converted") else "kept: "


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _FEW_NAMES} more" if len(names) > _FEW_NAMES else ""
    return ", ".join(names[:_FEW_NAMES]) + more


def _common(values: list[Any]) -> Any:
    return values[0] if values and all(value == values[0] for value in values) else None
