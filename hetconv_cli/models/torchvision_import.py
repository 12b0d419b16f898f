"""Importing torchvision, with one clear line where the installed pair of torch and torchvision is broken."""

from importlib import metadata
from types import ModuleType

from hetconv_cli.errors import HetconvError
from hetconv_cli.models.one_line import one_line


def import_torchvision() -> ModuleType:
    """Import torchvision and return it.

    Raises:
        HetconvError: If torchvision is missing or does not fit the installed torch. A pair built for different
            back ends fails with "operator torchvision::nms does not exist", broken builds in other ways.
    """
    try:
        import torchvision
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "torchvision"):
            raise _mismatch(error) from error
        raise HetconvError(f"{error.name} is not installed: pip install -U torch torchvision") from error
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise _mismatch(error) from error
    module: ModuleType = torchvision
    return module


def _mismatch(error: Exception) -> HetconvError:
    return HetconvError(
        f"torch {_version('torch')} and torchvision {_version('torchvision')} do not fit together "
        f"({one_line(error)}): install a matching pair, e.g. pip install -U torch torchvision"
    )


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "(unknown version)"
