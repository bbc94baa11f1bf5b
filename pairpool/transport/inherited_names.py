"""What workers know by name: the functions and classes that they inherited, or that they import themselves."""

from __future__ import annotations

import os
import sys
from types import FunctionType, ModuleType
from typing import Any

__all__ = ["NAMEABLE", "InheritedNames", "Home", "resolve"]

NAMEABLE = (FunctionType, type)

_STDLIB = os.path.dirname(os.__file__) + os.sep


def resolve(thing: Any) -> object | None:
    """The module-level object under which a function or class is found by name; None if it is not found there."""
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
    """Whether an import of `module` elsewhere would find this there too: it came from the module's own file."""
    if getattr(module, "__spec__", None) is None:
        return False
    while hasattr(thing, "__wrapped__"):
        thing = thing.__wrapped__
    code = getattr(thing, "__code__", None)
    return code is None or code.co_filename in (getattr(module, "__file__", None), f"<frozen {module.__name__}>")


def _is_installed(module: ModuleType) -> bool:
    """Whether a module is part of Python or of a package that was installed: what it defines, nobody redefines.

    To look at every name of these would take longer than all else that opening a pool does.
    """
    origin = getattr(getattr(module, "__spec__", None), "origin", None)
    if module is sys.modules.get("__main__"):
        return False
    return isinstance(origin, str) and (
        origin in ("built-in", "frozen")
        or origin.startswith(_STDLIB)
        or "/site-packages/" in origin
        or "/dist-packages/" in origin
    )


class InheritedNames:
    """What the workers were born with: the functions and classes there were, by identity, when the zygote was forked.

    The objects themselves are kept, so that none of their identities can be used again while the pool lives.

    Args:
        main_names: names that the workers' `__main__` has, where it is not the fork of this process's; None for a fork.
    """

    def __init__(self, main_names: frozenset[str] | None = None) -> None:
        self.main_names = main_names
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

    def set_main_names(self, names: frozenset[str] | None) -> None:
        """Set the names of the workers' `__main__`, which a fresh interpreter tells when it is ready."""
        self.main_names = names

    def distrust(self, module_name: str) -> None:
        """Name nothing of this module any more: a worker did not find there what it should."""
        self._distrusted.add(module_name)

    def names(self, thing: Any) -> bool:
        """Whether every worker finds this very function or class under its name."""
        module_name = getattr(thing, "__module__", None)
        if module_name == "builtins":
            return True
        head = resolve(thing)
        if head is None or module_name in self._distrusted:
            return False
        if module_name not in self._modules:
            return _is_as_imported(head, sys.modules[thing.__module__])
        if module_name == "__main__" and self.main_names is not None:
            return thing.__qualname__.partition(".")[0] in self.main_names and id(head) in self._objects
        return id(head) in self._objects or not isinstance(head, NAMEABLE) or _is_installed(sys.modules[module_name])


class Home:
    """What a worker may name towards its master: all that it finds by name itself."""

    def names(self, thing: Any) -> bool:
        return getattr(thing, "__module__", None) == "builtins" or resolve(thing) is not None
