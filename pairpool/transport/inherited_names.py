"""Which functions and classes the other side finds by name, because it inherited them or can import them."""

from __future__ import annotations

import os
import sys
from types import FunctionType, ModuleType
from typing import Any

__all__ = ["NAMEABLE", "InheritedNames", "ResolvableNames", "resolve"]

NAMEABLE = (FunctionType, type)

_STDLIB = os.path.dirname(os.__file__) + os.sep
_PAIRPOOL = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def resolve(thing: Any) -> object | None:
    """Return the module-level object through which a function or class is found by name, or None."""
    module = sys.modules.get(getattr(thing, "__module__", None) or "")
    qualname = getattr(thing, "__qualname__", None)
    if module is None or not isinstance(qualname, str):
        return None
    first, *rest = qualname.split(".")
    head = found = getattr(module, first, None)
    for name in rest:
        found = getattr(found, name, None)
    return head if found is thing else None


def _is_as_imported(thing: object, module: ModuleType) -> bool:
    """Return whether an object comes from the file of its module, so that another process can import it, too."""
    if getattr(module, "__spec__", None) is None:
        return False
    while hasattr(thing, "__wrapped__"):
        thing = thing.__wrapped__
    code = getattr(thing, "__code__", None)
    return code is None or code.co_filename in (getattr(module, "__file__", None), f"<frozen {module.__name__}>")


def _is_installed(module: ModuleType) -> bool:
    """Return whether a module belongs to Python, pairpool or an installed package, whose names nobody redefines.

    To record every name of these modules would take longer than all other steps of opening a pool.
    """
    origin = getattr(getattr(module, "__spec__", None), "origin", None)
    if module is sys.modules.get("__main__"):
        return False
    return isinstance(origin, str) and (
        origin in ("built-in", "frozen")
        or origin.startswith((_STDLIB, _PAIRPOOL))
        or "/site-packages/" in origin
        or "/dist-packages/" in origin
    )


class InheritedNames:
    """The functions and classes that existed when the zygote was forked, by identity.

    References to the objects are kept, so that no identity can be used again while the pool exists.

    Args:
        main_names: the names in the workers' `__main__` if it is not a fork of this process's; None for a fork.
    """

    def __init__(self, main_names: frozenset[str] | None = None) -> None:
        self._main_names = main_names
        self._distrusted: set[str] = set()
        self._modules = frozenset(sys.modules)
        self._objects: dict[int, object] = {}
        keep = self._objects
        for module in list(sys.modules.values()):
            if isinstance(module, ModuleType):
                if _is_installed(module):
                    continue
                for value in list(vars(module).values()):
                    if isinstance(value, NAMEABLE):
                        keep[id(value)] = value

    def set_main_names(self, main_names: frozenset[str] | None) -> None:
        """Set the names in the workers' `__main__`, which a fresh interpreter reports after it was started."""
        self._main_names = main_names

    def distrust(self, module_name: str) -> None:
        """Name nothing of this module any more, because a worker did not find a name in it."""
        self._distrusted.add(module_name)

    def names(self, thing: Any) -> bool:
        """Return whether every worker finds this very function or class by its name."""
        module_name = getattr(thing, "__module__", None)
        if module_name == "builtins":
            return True
        head = resolve(thing)
        if head is None or module_name in self._distrusted:
            return False
        if module_name not in self._modules:
            return _is_as_imported(head, sys.modules[thing.__module__])
        if module_name == "__main__" and self._main_names is not None:
            return thing.__qualname__.partition(".")[0] in self._main_names and id(head) in self._objects
        return id(head) in self._objects or not isinstance(head, NAMEABLE) or _is_installed(sys.modules[module_name])


class ResolvableNames:
    """The functions and classes that a worker may name in a pickle for its master: all that it finds by name itself."""

    def names(self, thing: Any) -> bool:
        """Return whether this process finds a function or class by its name."""
        return getattr(thing, "__module__", None) == "builtins" or resolve(thing) is not None
