"""How the two weight tensors make up kernels, and how a window is padded. Shared by the implementations.

A HetConv's weights are held as a 1 x 1 kernel for EVERY channel, [N, M, 1, 1], and for the channels of a filter's own
class the K x K window without its centre (the "ring"), [N, M/P, K*K - 1]; the 1 x 1 weight is that window's centre.
Each weight stands in one place only: N M + N M/P (K*K - 1) = N (M/P K*K + M - M/P), the paper's count.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hetconv_cli.geometry import Geometry, Size


def window(ring: Tensor, centre: Tensor, kernel: Size) -> Tensor:
    """K x K kernels [n, m, K_h, K_w] from rings [n, m, K_h*K_w - 1] and centres [n, m]."""
    middle = kernel[0] * kernel[1] // 2
    taps = torch.cat((ring[..., :middle], centre.unsqueeze(-1), ring[..., middle:]), dim=-1)
    return taps.view(*taps.shape[:-1], *kernel)


def split_window(kernels: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse of `window`: the ring [n, m, K_h*K_w - 1] and centre [n, m] of kernels [n, m, K_h, K_w]."""
    taps = kernels.flatten(-2)
    middle = taps.shape[-1] // 2
    return torch.cat((taps[..., :middle], taps[..., middle + 1 :]), dim=-1), taps[..., middle]


def pad_as(input: Tensor, geometry: Geometry) -> Tensor:
    """`input` padded in the layer's own way, so that a convolution with padding 0 follows."""
    rows, columns = geometry.padding
    if (rows, columns) == (0, 0):
        return input
    mode = "constant" if geometry.padding_mode == "zeros" else geometry.padding_mode
    return F.pad(input, (columns, columns, rows, rows), mode=mode)


def reach(geometry: Geometry) -> Size:
    """Distance from the centre tap to the window's edge, in input pixels."""
    (rows, columns), dilation = geometry.kernel, geometry.dilation
    return (rows // 2 * dilation[0], columns // 2 * dilation[1])


def crop(input: Tensor, rows: int, columns: int) -> Tensor:
    """`input` without `rows` at top and bottom and `columns` at left and right."""
    height, width = input.shape[-2:]
    return input[..., rows : height - rows, columns : width - columns]
