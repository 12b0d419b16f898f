"""convert(): a network in, a rewritten copy and the plan out."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn

from hetconv_cli.arrangement import Arrangement
from hetconv_cli.conversion.calibration.calibrate import MEMORY, calibrate
from hetconv_cli.conversion.calibration.report import CalibrationReport
from hetconv_cli.conversion.calibration.samples import read_samples
from hetconv_cli.conversion.candidates import find_candidates
from hetconv_cli.conversion.copying import copy_structure
from hetconv_cli.conversion.pairs import with_pairs
from hetconv_cli.conversion.reorder.reorder import reorder_for
from hetconv_cli.conversion.reorder.report import ReorderReport
from hetconv_cli.conversion.rewrite import apply_plan, core_name
from hetconv_cli.conversion.trace import Recorder, Trace, forward_pass, trace
from hetconv_cli.conversion.transfer import Transfer
from hetconv_cli.errors import ArgumentError, HetconvError
from hetconv_cli.models.example import ExampleSpec, inputs_of, spec_of
from hetconv_cli.plan import SE_REDUCTION, VARIANTS, Part, Plan, Rules, Variant, Wish, make_plan
from hetconv_cli.plan_file import parse_part

How = Literal[Transfer, "calibrated"]


@dataclass(frozen=True)
class Conversion:
    """A rewritten network.

    Attributes:
        model: The network with its new layers; the one that was passed in is unchanged.
        plan: What became of every Conv2d, and why.
        example: What the network is called with, where that is known.
        weights: Where the weights come from, for people.
        calibration: What a calibration did, where there was one.
        reordering: What a reordering of the channels did before, where there was one.
    """

    model: nn.Module
    plan: Plan
    example: ExampleSpec | None = None
    weights: str = "the given model's, by centre taps"
    calibration: CalibrationReport | None = None
    reordering: ReorderReport | None = None


def convert(
    model: nn.Module,
    p: Part = 4,
    *,
    example: Any = None,
    arrangement: Arrangement | None = None,
    variant: Variant = "hetconv",
    groups: int | None = None,
    se: bool | int = False,
    rules: Rules | None = None,
    transfer: How | None = None,
    pairs: bool = False,
    calibration: Iterable[Any] | None = None,
    seed: int = 0,
    memory: int = MEMORY,
    reorder: bool = False,
) -> Conversion:
    """Rewrites the eligible Conv2d layers of any network; the caller's model is untouched.

    Args:
        model: Any module, a bare Conv2d too.
        p: The part; must divide a layer's input channels for it to be converted. "pc": each layer's M.
        example: A tensor, a tuple of tensors, or a list of images that `model` takes. With it the plan sees which
            layers read a concatenation, and the rewritten network is run once.
        arrangement: 'blocked' or 'shifted' for every layer; None: blocked, shifted after a concatenation.
        variant: 'hetconv', 'dwc' or 'gwc'.
        groups: Of 'gwc'; `p` if None.
        se: Add a squeeze-and-excitation after each new layer: True (reduction 16) or the reduction.
        rules: Per-layer rules, in place of the arguments above.
        transfer: 'center' carries the weights over by centre taps, 'sum' by sums of taps; 'calibrated' fits them to
            `calibration`; 'fresh' takes them as fresh random numbers and rescales them. None: 'calibrated' where
            `calibration` is given, else 'center'.
        calibration: Unlabelled images: a tensor, or batches of them. A tuple's or list's first element is taken, so
            a DataLoader with labels will do.
        seed: Which window positions a calibration draws where there are plenty.
        memory: Bytes of activations that a calibration may hold to run each network once. Images beyond that run anew
            for every layer; the result is the same.
        pairs: Take a depthwise + pointwise pair, with the normalisation and activation between them, as one
            convolution, and convert that. Needs `example`: pairs are found by watching a forward pass.
        reorder: First put channels that belong together next to each other, wherever that leaves the network's
            function as it is, so that the classes keep more (`hetconv_cli.reorder`). Needs `example`.

    Raises:
        ArgumentError: an argument out of range; a part that fits no layer; a rule that names none.
        HetconvError: the model cannot be copied or does not run on `example`.

    Example:
        >>> conversion = convert(torchvision.models.resnet18(), p=4, example=torch.randn(1, 3, 224, 224))
        >>> len(conversion.plan.converted)
        16
    """
    if transfer is None:
        transfer = "center" if calibration is None else "calibrated"
    _check_transfer(transfer, calibration)
    if pairs and calibration is not None:
        raise ArgumentError("a pair's one convolution cannot be calibrated: pass pairs or calibration, not both")
    rules = rules or Rules(make_wish(p, arrangement=arrangement, variant=variant, groups=groups, se=se))
    inputs = None if example is None else inputs_of(example)
    watched = copy_structure(model)  # a forward may write to buffers, and the caller's are not to change
    seen = None if inputs is None else trace(watched, inputs)
    candidates = find_candidates(model, seen)
    if pairs:
        if inputs is None:
            raise ArgumentError("pairs are found by watching a forward pass: expected an example, got None")
        candidates = with_pairs(candidates, watched, inputs)
    plan = make_plan(candidates, rules)
    reordering = None
    if reorder and plan.converted:
        reordered = reorder_for(model, plan, _for_reorder(inputs, transfer), seed=seed)
        model, reordering = reordered.model, reordered.report
        watched = copy_structure(model)
    new_model = apply_plan(model, plan, "center" if transfer == "calibrated" else transfer)
    if inputs is not None and seen is not None:
        check_calls(seen, plan, new_model, inputs)
    spec = example if isinstance(example, ExampleSpec | None) else spec_of(example)
    if calibration is None:
        return Conversion(new_model, plan, spec, reordering=reordering)
    samples = read_samples(calibration, model, spec)
    report = calibrate(watched, new_model, plan, samples, seed=seed, memory=memory)
    weights = f"the given model's, calibrated on {report.images} images"
    return Conversion(new_model, plan, spec, weights, report, reordering)


def _check_transfer(transfer: str, calibration: object) -> None:
    known = (*get_args(Transfer), "calibrated")
    if transfer not in known:
        raise ArgumentError(f"transfer must be one of {', '.join(known)}; got {transfer!r}")
    if (transfer == "calibrated") != (calibration is not None):
        raise ArgumentError("transfer 'calibrated' and `calibration`, the images, go together")


def _for_reorder(inputs: tuple[Any, ...] | None, transfer: str) -> tuple[Any, ...]:
    if transfer == "fresh":
        raise ArgumentError("reorder is for trained weights, and transfer 'fresh' takes random ones: leave one out")
    if inputs is None:
        raise ArgumentError("reorder follows channels through a forward pass: expected an example, got None")
    return inputs


def make_wish(
    p: object = 4,
    *,
    arrangement: Arrangement | None = None,
    variant: Variant = "hetconv",
    groups: int | None = None,
    se: bool | int = False,
) -> Wish:
    """The wish that `convert`'s arguments express.

    Raises:
        ArgumentError: an argument out of range.
    """
    part = parse_part(p if isinstance(p, str) else str(p) if type(p) is int else repr(p))
    if variant not in VARIANTS:
        raise ArgumentError(f"variant must be one of {', '.join(VARIANTS)}; got {variant!r}")
    if arrangement not in (None, "blocked", "shifted"):
        raise ArgumentError(f"arrangement must be 'blocked' or 'shifted', got {arrangement!r}")
    if groups is not None and (type(groups) is not int or groups < 1):
        raise ArgumentError(f"groups must be a positive integer, got {groups!r}")
    if type(se) not in (bool, int) or se < 0:
        raise ArgumentError(f"se must be True, False or a reduction such as 16, got {se!r}")
    if groups is None:
        groups = 4 if part == "pc" else part
    reduction = (SE_REDUCTION if se is True else int(se)) or None
    return Wish(variant=variant, p=part, groups=groups, arrangement=arrangement, se=reduction)


def check_calls(before: Trace, plan: Plan, new_model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Raises HetconvError where a layer that ran before is not reached any more (held outside the module tree)."""
    names = {core_name(layer) for layer in plan.converted}
    watched = copy_structure(new_model)
    with forward_pass(watched), Recorder(watched, names) as recorder:
        watched(*inputs)
    reached = {call.module for call in recorder.calls}
    for layer in plan.converted:
        if before.of(layer.name) and core_name(layer) not in reached:
            raise HetconvError(
                f"{layer.name}: the model calls this convolution past its module tree (a list, a closure), so it"
                " cannot be replaced; keep it: rules with this name set to 'keep'"
            )
