"""Whether the fused kernel can run on a device, and if not, why. Imports no triton."""

import os
from importlib.util import find_spec

import torch

HAS_TRITON = find_spec("triton") is not None
# Triton reads this when a kernel is defined; like it, once.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
LEAST_CAPABILITY = (8, 0)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def why_not_triton(device: torch.device | None, dtype: torch.dtype | None) -> str | None:
    """One line that says what is missing, or None where the fused kernel runs.

    Args:
        device: Where the tensors are; None where that is not known.
        dtype: Of the product; None where that is not known.
    """
    if not HAS_TRITON:
        return "the package triton is not installed (pip install triton; Linux only)"
    if dtype is not None and dtype not in DTYPES:
        return f"it computes in float16, bfloat16 or float32, got {_name(dtype)}"
    if device is None:
        return None
    if device.type == "cpu" and INTERPRETED:
        return "Triton's interpreter cannot multiply bfloat16" if dtype == torch.bfloat16 else None
    if device.type != "cuda":
        return f"it needs an NVIDIA GPU, and the tensors are on {device.type}"
    if torch.version.hip is not None:
        return "it is made for NVIDIA GPUs, and this torch is built for AMD's"
    capability = capability_of(device.index)
    if capability < LEAST_CAPABILITY:
        return f"it needs compute capability 8.0 (Ampere) or newer, and this GPU has {capability[0]}.{capability[1]}"
    return None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def capability_of(index: int | None) -> tuple[int, int]:
    """Compute capability of a CUDA device; of the current one where `index` is None."""
    return torch.cuda.get_device_capability(index)


def architecture(device: torch.device) -> str:
    """The name that the measured table has for a CUDA device, such as 'sm_90'."""
    major, minor = capability_of(device.index)
    return f"sm_{major}{minor}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
