"""The search for the orders that keep the most.

One stream is taken at a time and solved exactly while the others stay (`assignment`), until nothing gets better. That
ends in a local optimum, so there are several starts: the order as it is; orders that spread from axes in fixed order;
orders that spread from one stream whose channels are clustered by what they are connected to; random ones.
"""

from collections.abc import Sequence

import numpy as np

from hetconv_cli.conversion.reorder.assignment import Floats
from hetconv_cli.conversion.reorder.classes import FreeStream, LayerEnergy, Orders, free_streams, identity, value

SEEDED_STARTS, RANDOM_STARTS = 3, 2
_ROUNDS = 30  # of all streams; a climb that takes more has all but ended
_GAIN = 1e-9  # of all energy: less is no gain
_MEAN_STEPS = 20
_MOST_CLUSTERS = 64


def best_orders(layers: Sequence[LayerEnergy], sizes: Sequence[int], free: Sequence[int], seed: int = 0) -> Orders:
    """The order of each stream that keeps the most, as far as it is found.

    Args:
        layers: The layers and what their axes carry.
        sizes: Channels of each stream.
        free: The streams that may be reordered.
        seed: Of the random starts.

    Returns:
        Orders, the same for the same arguments; all as they were where nothing better is found.
    """
    search = _Search(layers, sizes, free)
    best = identity(sizes)
    most = value(layers, best) + search.least
    for start in search.starts(seed):
        found = search.climb(start)
        reached = value(layers, found)
        if reached > most:
            best, most = found, reached
    return best


class _Search:
    def __init__(self, layers: Sequence[LayerEnergy], sizes: Sequence[int], free: Sequence[int]) -> None:
        self._layers, self._sizes = layers, sizes
        self._streams = {stream.number: stream for stream in free_streams(layers, set(free))}
        self._neighbours = {
            number: sorted({other for role in stream.roles for other in role.other_streams() if other in self._streams})
            for number, stream in self._streams.items()
        }
        self.least = _GAIN * sum(layer.weight * float(layer.energies.sum()) for layer in layers)

    def starts(self, seed: int) -> list[Orders]:
        """Where to climb from, the order as it is first."""
        if not self._streams:
            return []
        found = [identity(self._sizes)]
        anchored = [number for number, stream in self._streams.items() if self._is_anchored(stream)]
        if anchored:
            found.append(self._spread(identity(self._sizes), set(), anchored))
        random = np.random.default_rng(seed)
        heaviest = sorted(self._streams.values(), key=lambda stream: -self._weight(stream))
        for stream in heaviest[:SEEDED_STARTS]:
            if 1 < len(stream.capacities) <= _MOST_CLUSTERS:
                orders = identity(self._sizes)
                orders[stream.number] = stream.order_of(_clusters(stream, random))
                found.append(self._spread(orders, {stream.number}, self._neighbours[stream.number]))
        for _ in range(RANDOM_STARTS):
            orders = identity(self._sizes)
            for number, stream in self._streams.items():
                orders[number] = random.permutation(stream.size)
            found.append(orders)
        return found

    def climb(self, start: Orders) -> Orders:
        """From a start, stream by stream, until nothing gets better; a step that does not pay is not taken."""
        orders = list(start)
        todo = set(self._streams)
        for _ in range(_ROUNDS):
            now, todo = todo, set()
            for number in sorted(now):
                if self._step(self._streams[number], orders):
                    todo.update(self._neighbours[number])
            if not todo:
                break
        return orders

    def _step(self, stream: FreeStream, orders: Orders) -> bool:
        """Takes the best order of one stream where it is better than the one that it has."""
        benefits = stream.benefits(orders)
        found = stream.order_of(benefits)
        if stream.meets_itself:
            layers = list({id(role.layer): role.layer for role in stream.roles}.values())
            tried = [found if number == stream.number else order for number, order in enumerate(orders)]
            gain = value(layers, tried) - value(layers, orders)
        else:
            gain = stream.sum_of(benefits, found) - stream.sum_of(benefits, orders[stream.number])
        if gain > self.least:
            orders[stream.number] = found
        return gain > self.least

    def _spread(self, orders: Orders, placed: set[int], first: Sequence[int]) -> Orders:
        """Orders stream after stream, outward from what is placed already and from what cannot move."""
        placed = placed | set(range(len(orders))) - set(self._streams)
        queue = [number for number in first if number not in placed]
        while queue or (queue := [number for number in self._streams if number not in placed][:1]):
            stream = self._streams[queue.pop(0)]
            if stream.number in placed:
                continue
            orders[stream.number] = stream.order_of(stream.benefits(orders, placed))
            placed.add(stream.number)
            queue += [number for number in self._neighbours[stream.number] if number not in placed]
        return orders

    def _is_anchored(self, stream: FreeStream) -> bool:
        """Whether a layer has this stream on one side and an order that is fixed on the other."""
        return any(other not in self._streams for role in stream.roles for other in role.other_streams())

    def _weight(self, stream: FreeStream) -> float:
        return sum(role.layer.weight * float(role.profiles().sum()) for role in stream.roles)


def _clusters(stream: FreeStream, random: np.random.Generator) -> Floats:
    """[channels, groups]: how near each channel is to each of as many clusters, of channels with like profiles.

    Channels of one hidden class are connected to the same others. Their profiles are compared in the leading
    eigenvectors of the cosines between them (Ng, Jordan and Weiss 2001), clustered by k-means with classes of fixed
    sizes.
    """
    likeness = np.zeros((stream.size, stream.size))
    for role in stream.roles:
        profiles = np.sqrt(role.profiles())
        profiles /= np.maximum(np.linalg.norm(profiles, axis=1, keepdims=True), 1e-30)
        likeness += profiles @ profiles.T
    count = len(stream.capacities)
    degrees = np.sqrt(np.maximum(likeness.sum(1), 1e-30))
    embedded = np.linalg.eigh(likeness / degrees[:, None] / degrees)[1][:, -count:]
    embedded = embedded / np.maximum(np.linalg.norm(embedded, axis=1, keepdims=True), 1e-30)
    centres = embedded[_far_apart(embedded, count, random)]
    for _ in range(_MEAN_STEPS):
        order = stream.order_of(embedded @ centres.T)
        group = stream.groups[np.argsort(order)]
        means = np.stack([embedded[group == cluster].mean(0) for cluster in range(count)])
        if np.array_equal(means, centres):
            break
        centres = means
    near: Floats = embedded @ centres.T
    return near


def _far_apart(points: Floats, count: int, random: np.random.Generator) -> list[int]:
    """The first at random, each further one as far from those before as there is."""
    chosen = [int(random.integers(len(points)))]
    nearest = points @ points[chosen[0]]
    while len(chosen) < count:
        chosen.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, points @ points[chosen[-1]])
    return chosen
