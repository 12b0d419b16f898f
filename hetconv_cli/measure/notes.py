"""Why the columns of one variant differ, in sentences. Every difference is named by the modules that make it."""

from collections import Counter
from collections.abc import Mapping

from hetconv_cli.measure.tally import Tally, differences
from hetconv_cli.plan import Plan

CONVERTED = "the converted layers"
SQUEEZES = "the squeeze-and-excitations"


def column_notes(
    analytic: Tally, dispatcher: Tally, thop: Tally, executed: Tally, kinds: Mapping[str, str]
) -> list[str]:
    """One sentence for each column that is not the dispatcher's; none where they agree module by module."""
    sentences = []
    beyond = differences(thop, dispatcher, kinds)
    products = {kinds.get(name, name) for name in dispatcher}
    more = {kind: macs for kind, macs in beyond.items() if macs > 0 and kind not in products}
    again = {kind: macs for kind, macs in beyond.items() if macs > 0 and kind in products}
    less = {kind: macs for kind, macs in beyond.items() if macs < 0}
    if more:
        sentences.append(f"thop: {_listed(more)}: element-wise work that thop counts and the others do not")
    if again:
        sentences.append(f"thop: {_listed(again)}: thop counts a module that parents share once for each of them")
    if less:
        sentences.append(f"thop: {_listed(less)}: products outside of its module rules")
    missed = differences(analytic, dispatcher, kinds)
    if missed:
        sentences.append(f"analytic: {_listed(missed)}: products that no convolution or linear module's shape tells")
    extra = differences(executed, dispatcher, kinds)
    if extra:
        sentences.append(
            f"executed: more in {' and '.join(extra)}, where the grouped K x K multiplies zero centre taps too"
            " (and repeats filters where P does not divide N)"
        )
    return sentences


def plan_notes(plan: Plan) -> list[str]:
    """What a reader of one variant must know of its plan: layers that P does not fit, equation (8)'s limit."""
    notes = []
    kept = Counter(layer.reason for layer in plan.kept if "not divisible" in (layer.reason or ""))
    if kept:
        listed = ", ".join(f"{count} with {reason}" for reason, count in kept.items())
        notes.append(f"kept: {listed}")
    pairs = [layer for layer in plan.converted if layer.absorbs]
    if pairs:
        notes.append(
            f"{len(pairs)} depthwise + pointwise pairs are one convolution each: ratios are to the pairs, and the"
            " equation's is divided by equation (5)"
        )
    grouped = [layer.geometry for layer in plan.converted if layer.change and layer.change.variant == "gwc"]
    uneven = [geometry for geometry in grouped if geometry.in_channels != geometry.out_channels]
    if uneven:
        notes.append(
            f"equation (8) holds only for M = N; in {len(uneven)} layers M and N differ,"
            " and the K x K is put on M -> M, as in the paper's tables"
        )
    return notes


def _listed(by_kind: Mapping[str, int]) -> str:
    ordered = sorted(by_kind.items(), key=lambda item: -abs(item[1]))
    return ", ".join(f"{'+' if macs > 0 else '-'} {abs(macs):,} in {kind}" for kind, macs in ordered)
