"""Which filter has its K x K kernels on which channels. Plain integers, no torch.

Filters and channels fall into P classes; filter n has a K x K kernel on channel m exactly when both are of the same
class, and a 1 x 1 kernel on every other channel.

    shifted   channel m is of class m mod P, filter n of class n mod P (the paper's figure 3)
    blocked   channel m is of class floor(m P / M), filter n of class floor(n P / N): neighbours stay together

The two are one layer up to a relabelling of channels and, where P divides N, of filters. P divides M, so every class
has M/P channels; P need not divide N, and then the classes differ by at most one filter.
"""

from typing import Literal, get_args

Arrangement = Literal["blocked", "shifted"]
ARRANGEMENTS: tuple[Arrangement, ...] = get_args(Arrangement)


def classes(count: int, p: int, arrangement: Arrangement) -> list[int]:
    """The class of each of `count` channels or filters."""
    if arrangement == "shifted":
        return [index % p for index in range(count)]
    return [index * p // count for index in range(count)]


def members(count: int, p: int, arrangement: Arrangement) -> list[list[int]]:
    """For each of the `p` classes its channels or filters, ascending. A class of filters may be empty."""
    result: list[list[int]] = [[] for _ in range(p)]
    for index, of_class in enumerate(classes(count, p, arrangement)):
        result[of_class].append(index)
    return result


def shifted_as_blocked(channels: int, p: int) -> list[int]:
    """Where each channel of a shifted layer stands in the blocked one: m -> (m mod P) M/P + m // P.

    `channels` must be divisible by `p`.
    """
    return [(m % p) * (channels // p) + m // p for m in range(channels)]
