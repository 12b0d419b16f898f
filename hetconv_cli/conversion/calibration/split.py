"""A layer's window positions in two sums: those to fit on, and those to judge by."""

from torch import Tensor

from hetconv_cli.conversion.calibration.moments import Moments
from hetconv_cli.conversion.calibration.samples import Chunk, Samples
from hetconv_cli.layers import HetConv2d


class SplitMoments:
    """Images held out are judged by. Where there are none, because the images are too few, blocks of every map are.

    Args:
        layer: As for Moments.
        samples: How many images there are, and how many are held out.
        key: As for Moments.
        calls: How often the layer is called with each image.
    """

    def __init__(self, layer: HetConv2d, samples: Samples, key: str, calls: int = 1) -> None:
        self.by_blocks = not samples.held_out
        self.images = samples.images - samples.held_out
        self.fitted = Moments(layer, self.images * calls, key)
        self.held = Moments(layer, (samples.held_out or samples.images) * calls, key)

    def add(self, inputs: Tensor, outputs: Tensor, chunk: Chunk, call: int = 0) -> None:
        """Adds a call of the layer with a chunk of images: its inputs and the wanted outputs."""
        if not self.by_blocks:
            (self.held if chunk.held_out else self.fitted).add(inputs, outputs, chunk.images, call)
            return
        self.fitted.add(inputs, outputs, chunk.images, call, blocks="others")
        self.held.add(inputs, outputs, chunk.images, call, blocks="diagonal")
