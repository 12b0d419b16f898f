"""What each row of the paper's tables is, as a network of ours. No figure of the paper's stands here."""

from dataclasses import dataclass

from hetconv_cli.plan import Variant, Wish


@dataclass(frozen=True)
class Recipe:
    """How a row's network is made.

    Attributes:
        model: A MODEL name; with "_se" it has a squeeze-and-excitation after every convolution.
        wish: What its convolutions become; None: they stay.
        pairs: Whether depthwise + pointwise pairs are taken as one convolution.
        baseline: The MODEL that reductions of MACs are relative to: the standard network without
            squeeze-and-excitation, for rows with it too. Those of weights are relative to `model`, with it. (Both
            found from the printed reductions.)
    """

    model: str
    wish: Wish | None
    baseline: str
    pairs: bool = False


def _rows(title: str, baseline: str, *, parts: tuple[int, ...], se: tuple[int, ...] = ()) -> dict[str, Recipe]:
    """TITLE_P1, TITLE_P2, ...; and TITLE_P1_SE, ... for the parts in `se`."""
    rows = {f"{title}_P{part}": Recipe(baseline, _part(part), baseline) for part in parts}
    return rows | {f"{title}_P{part}_SE": Recipe(f"{baseline}_se", _part(part), baseline) for part in se}


def _part(part: int) -> Wish | None:
    return None if part == 1 else Wish(p=part)


def _vgg(wish: Wish, se: bool = False) -> Recipe:
    return Recipe("vgg16_cifar_se" if se else "vgg16_cifar", wish, "vgg16_cifar")


def _other(variant: Variant, groups: int = 1) -> Wish:
    return Wish(variant=variant, groups=groups)


_PARTS = (1, 2, 4, 8, 16, 32, 64)
_MOBILENET = "mobilenet_cifar"

TORCHVISION_RESNET34 = "ResNet-34_P4, torchvision's 1x1 shortcuts"  # a row of ours, printed nowhere

RECIPES: dict[str, dict[str, Recipe]] = {
    "table1": {
        **_rows("VGG-16", "vgg16_cifar", parts=_PARTS, se=_PARTS),
        "VGG-16_GWC4_PWC": _vgg(_other("gwc", groups=4)),
        "VGG-16_DWC_PWC": _vgg(_other("dwc")),
        "VGG-16_PC": _vgg(Wish(p="pc")),
        "VGG-16_PC_SE": _vgg(Wish(p="pc"), se=True),
    },
    "table2": _rows("VGG-16", "vgg16_cifar", parts=(32, 64)),
    "table3": _rows("ResNet-56", "resnet56_cifar", parts=(1, 2, 4), se=(1, 2, 4)),
    "table4": {
        "MobileNet": Recipe(_MOBILENET, None, _MOBILENET),
        "MobileNet_P32": Recipe(_MOBILENET, Wish(p=32), _MOBILENET, pairs=True),
        "MobileNet_P32_SE": Recipe(f"{_MOBILENET}_se", Wish(p=32), _MOBILENET, pairs=True),
    },
    "table5": _rows("VGG-16", "vgg16_bn", parts=(1, 4)),
    "table6": {
        **_rows("ResNet-34", "resnet34_option_a", parts=(1, 4), se=(4,)),
        TORCHVISION_RESNET34: Recipe("resnet34", Wish(p=4), "resnet34"),
    },
}

# Tables in whose figures one addition per output element (a bias) is found: see docs/paper.md.
WITH_BIAS_ADDITIONS = frozenset({"table1", "table2"})
