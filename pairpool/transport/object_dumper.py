"""Pickle one object: by name as far as the other side knows its functions and classes, else by value.

object ─► by name (NamingPickler, WorkerPickler) ─► UnknownName, PicklingError, ...? ─► by value (ByValuePickler)
"""

from __future__ import annotations

import io
import pickle
from typing import Any, NamedTuple

from pairpool.transport import fd_reducers
from pairpool.transport.fd_passing import ChildFds, OutgoingFds
from pairpool.transport.inherited_names import InheritedNames, ResolvableNames
from pairpool.transport.picklers import (
    NEEDS_VALUE,
    UNPICKLABLE,
    FdPickler,
    LargeNames,
    NamingPickler,
    OutOfBand,
    SharingPickler,
    WorkerPickler,
    dump_to_memory,
)

__all__ = ["Dumped", "ObjectDumper"]


class Dumped(NamedTuple):
    """The pickle of one object."""

    data: bytes
    by_value: bool  # whether a part of the object travels by value
    pickler: Any  # its memo knows the pickled objects


class ObjectDumper:
    """Pickle single objects for the other side.

    Args:
        names: the names that the workers know; None in a worker, because its master knows every name.
    """

    def __init__(self, names: InheritedNames | None) -> None:
        self._names = names

    def out_of_band(self, large: LargeNames | None = None) -> OutOfBand:
        """Return an empty `OutOfBand` for one object.

        A worker copies descriptors at once, because its task may close them.
        """
        fd_reducers.refresh_kinds()
        if self._names is None:
            fd_reducers.refuse_plain_connections()
            return OutOfBand(OutgoingFds(), large)
        return OutOfBand(ChildFds(), large)

    def dump(self, item: Any, out_of_band: OutOfBand, *, may_go_by_value: bool = True) -> Dumped:
        """Pickle an object by name if possible, else by value. Fill `out_of_band`."""
        try:
            return self._dump_by_name(item, out_of_band)
        except NEEDS_VALUE:
            if not may_go_by_value:
                raise
        out_of_band.restart()
        return self.dump_by_value(item, out_of_band)

    def _dump_by_name(self, item: Any, out_of_band: OutOfBand) -> Dumped:
        """Pickle an object with names for every function and class. Raise `UnknownName` if the workers lack one."""
        names = self._names
        if names is not None:
            kind = NamingPickler if out_of_band.large is None else SharingPickler
            data, pickler = dump_to_memory(out_of_band, item, lambda file, keep: kind(file, names, out_of_band, keep))
            return Dumped(data, False, pickler)
        try:
            data, pickler = dump_to_memory(out_of_band, item, WorkerPickler)
            return Dumped(data, False, pickler)
        except UNPICKLABLE:
            if out_of_band.fds is None:
                raise
        fds = out_of_band.fds
        out_of_band.restart()
        data, pickler = dump_to_memory(out_of_band, item, lambda file, keep: FdPickler(file, keep, fds))
        return Dumped(data, False, pickler)

    def dump_by_value(self, item: Any, out_of_band: OutOfBand) -> Dumped:
        """Pickle an object together with the functions and classes that the other side does not know."""
        from pairpool.transport.by_value_pickler import ByValuePickler, SharingByValuePickler

        kind = ByValuePickler if out_of_band.large is None else SharingByValuePickler
        known = self._names or ResolvableNames()
        is_master = self._names is not None
        data, pickler = dump_to_memory(
            out_of_band, item, lambda file, keep: kind(file, known, out_of_band, keep, allows_handles=is_master)
        )
        return Dumped(data, True, pickler)

    def dump_alone(self, item: Any) -> bytes:
        """Return one self-contained pickle: a plain one if possible, else by value."""
        try:
            return pickle.dumps(item, 5)
        except UNPICKLABLE:
            from pairpool.transport.by_value_pickler import ByValuePickler

            file = io.BytesIO()
            known = self._names or ResolvableNames()
            ByValuePickler(file, known, OutOfBand(), None, allows_handles=False).dump(item)
            return file.getvalue()
