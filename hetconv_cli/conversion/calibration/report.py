"""What a calibration did: layer by layer, and for the whole network."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerCalibration:
    """One HetConv2d.

    Attributes:
        name: In the network.
        p: Its part.
        unknowns: Weights of one filter, and its bias.
        positions: Window positions that its weights were fitted on.
        error_center: Relative error of its output with centre taps, on what the converted network gives it: root
            of the squared error over the squared spread of the original layer's output around its mean.
        error_calibrated: The same with the new weights.
        seconds: Time spent on it.
    """

    name: str
    p: int
    unknowns: int
    positions: int
    error_center: float
    error_calibrated: float
    seconds: float


@dataclass(frozen=True)
class Agreement:
    """How near the converted network's output is to the original's.

    Attributes:
        relative_error: Norm of the difference over the norm of the original's output.
        cosine: Of the two outputs, taken as one vector each.
        psnr: In dB, for outputs that are images ([n, C, H, W]): the peak is the original's range. Else None.
        top1: Part of the images on which the largest output is the same, for outputs [n, classes]. Else None.
    """

    relative_error: float
    cosine: float
    psnr: float | None = None
    top1: float | None = None


@dataclass(frozen=True)
class CalibrationReport:
    """Of one calibration.

    Attributes:
        images: How many were given.
        held_out: How many of them were not fitted on, and errors are measured on these. 0: too few to hold any out;
            then a layer's errors are those on blocks of its maps, before these are fitted on too, and the whole
            network's are on all images.
        layers: In the order of the data's flow.
        batch_norms: How many BatchNorm had their statistics corrected.
        center: The network with centre taps, before.
        calibrated: The network as it is now.
        rerun_images: On how many images the networks ran anew for each layer, to keep the memory bound. For the others
            one forward pass of each network was enough.
        held_bytes: Activations held at most, as measured on the first images, of all images that are held at once.
        seconds: In all.
        warnings: What a user should know, a line each.
    """

    images: int
    held_out: int
    layers: tuple[LayerCalibration, ...]
    batch_norms: int
    center: Agreement
    calibrated: Agreement
    rerun_images: int
    held_bytes: int
    seconds: float
    warnings: tuple[str, ...] = ()
