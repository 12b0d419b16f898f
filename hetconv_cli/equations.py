"""The paper's equations (1) to (9), exact: integers for counts, fractions for ratios.

Source: P. Singh, V. K. Verma, P. Rai, V. P. Namboodiri, "HetConv: Heterogeneous Kernel-Based Convolutions
for Deep CNNs", CVPR 2019. What the paper calls FLOPs are multiply-accumulates (MACs), and so are all counts
here. Biases are not counted. The paper writes K K and D_o D_o; here both may be rectangular:

    m        input channels (M)
    n        output channels, filters (N)
    kernel   (K_h, K_w)
    output   (H_o, W_o) of one sample
    p        part (P); "PC" is p = m
    groups   groups of the group-wise convolution (G)

This file imports nothing of the project: arithmetic, and no torch.
"""

from fractions import Fraction

Size = tuple[int, int]


def _divide(m: int, by: int, symbol: str) -> int:
    if by < 1 or m % by:
        raise ValueError(f"{symbol} must divide the {m} input channels, got {by}")
    return m // by


def standard_macs(m: int, n: int, kernel: Size, output: Size) -> int:
    """Equation (1): FL_S = D_o D_o M N K K."""
    return output[0] * output[1] * m * n * kernel[0] * kernel[1]


def hetconv_kxk_macs(m: int, n: int, kernel: Size, output: Size, p: int) -> int:
    """The K x K part of a HetConv: FL_K = D_o D_o M N K K / P."""
    return output[0] * output[1] * _divide(m, p, "p") * n * kernel[0] * kernel[1]


def hetconv_1x1_macs(m: int, n: int, output: Size, p: int) -> int:
    """The 1 x 1 part of a HetConv: FL_1 = D_o D_o N (1 - 1/P) M."""
    return output[0] * output[1] * n * (m - _divide(m, p, "p"))


def hetconv_macs(m: int, n: int, kernel: Size, output: Size, p: int) -> int:
    """Equation (2): FL_HC = FL_K + FL_1."""
    return hetconv_kxk_macs(m, n, kernel, output, p) + hetconv_1x1_macs(m, n, output, p)


def hetconv_ratio(kernel: Size, p: int) -> Fraction:
    """Equation (3): R_HetConv = 1/P + (1 - 1/P) / K^2."""
    part = Fraction(1, p)
    return part + (1 - part) / (kernel[0] * kernel[1])


def dwc_macs(m: int, n: int, kernel: Size, output: Size) -> int:
    """Equation (4), depthwise + pointwise: FL_MobNet = D_o D_o M K K + D_o D_o M N."""
    return output[0] * output[1] * m * (kernel[0] * kernel[1] + n)


def dwc_ratio(n: int, kernel: Size) -> Fraction:
    """Equation (5): R_MobNet = 1/N + 1/K^2."""
    return Fraction(1, n) + Fraction(1, kernel[0] * kernel[1])


def pc_against_dwc(m: int, kernel: Size) -> tuple[Fraction, Fraction]:
    """Equation (6), for M = N: the ratio of P = M (left) is below that of DWC+PWC (right)."""
    return hetconv_ratio(kernel, m), dwc_ratio(m, kernel)


def gwc_macs(m: int, n: int, kernel: Size, output: Size, groups: int) -> int:
    """Equation (7) as printed, group-wise + pointwise: FL_G = D_o D_o M N K K / G + D_o D_o M N.

    It puts the group convolution on M -> N and the pointwise on M -> N, which is one network only where M = N;
    what can be built, and what the paper's tables count, is `gwc_table_macs`.
    """
    return output[0] * output[1] * n * (_divide(m, groups, "groups") * kernel[0] * kernel[1] + m)


def gwc_table_macs(m: int, n: int, kernel: Size, output: Size, groups: int) -> int:
    """Group-wise convolution M -> M, then pointwise M -> N: what the paper's tables count.

    Equal to equation (7) where M = N. With groups = M it is equation (4).
    """
    return output[0] * output[1] * m * (_divide(m, groups, "groups") * kernel[0] * kernel[1] + n)


def gwc_ratio(kernel: Size, groups: int) -> Fraction:
    """Equation (8): R_Group = 1/G + 1/K^2."""
    return Fraction(1, groups) + Fraction(1, kernel[0] * kernel[1])


def hetconv_against_gwc(kernel: Size, p: int) -> tuple[Fraction, Fraction]:
    """Equation (9), for P = G: the ratio of HetConv (left) is below that of GWC+PWC (right)."""
    return hetconv_ratio(kernel, p), gwc_ratio(kernel, p)


def hetconv_weights(m: int, n: int, kernel: Size, p: int) -> int:
    """Weights of a HetConv without biases: N (M/P K^2 + M - M/P), equation (2) for one output pixel."""
    return hetconv_macs(m, n, kernel, (1, 1), p)
