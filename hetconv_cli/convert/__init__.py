"""Trace a network, plan, rewrite it with its weights, save and load the result.

Importing anything from here makes this package the attribute `convert` of `hetconv_cli`, where users look for the
function of that name. So the package can be called, and is that function.
"""

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from hetconv_cli.convert.conversion import convert

        return convert(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
