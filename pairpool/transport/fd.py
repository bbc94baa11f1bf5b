"""`Fd`: a descriptor as an argument or a result, for objects whose class cannot be pickled."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from pairpool.linux import descriptors
from pairpool.transport import received_fds

if TYPE_CHECKING:
    from pairpool.transport.fd_passing import ChildFds, OutgoingFds

__all__ = ["Fd"]


class Fd:
    """A descriptor on its way to a worker or back. The receiver gets an `Fd` that owns a descriptor of its own.

    Args:
        fd: number of an open descriptor.
        close: whether the descriptor belongs to this object. Then it is closed here as soon as a worker is about to run
            the item that it travelled with, or with the last reference to this object. With `retries=` it is closed
            once the item has ended. Such an item is alone in its batch, so that a worker that dies takes no descriptor
            of another item with it. A forked child does not get the descriptor. Without `close`, the number belongs to
            the caller, and must stay open until the item has ended.

    Raises:
        TypeError: `fd` is not a number.
        ValueError: it is negative.

    Example:
        >>> connection, _address = listener.accept()
        >>> pool.apply_async(serve, (Fd(connection.detach(), close=True),))

        >>> def serve(fd):
        ...     with socket.socket(fileno=fd.detach()) as connection:
        ...         ...
    """

    __slots__ = ("__weakref__", "_held", "_owns")

    def __init__(self, fd: int, *, close: bool = False) -> None:
        self._owns = False
        if isinstance(fd, bool) or not hasattr(fd, "__index__"):
            raise TypeError(
                f"Fd() takes the number of a descriptor, not {type(fd).__name__}: give its fileno(), or its detach() "
                "with close=True"
            )
        number = operator.index(fd)
        if number < 0:
            raise ValueError(f"Fd() takes the number of an open descriptor, not {number}")
        self._held = descriptors.Descriptor(number)
        self._owns = close
        if close:
            descriptors.own(self._held)

    @property
    def closed(self) -> bool:
        """Whether the descriptor was closed, detached, or handed over to another process."""
        return self._held.fd < 0

    def fileno(self) -> int:
        """Return the number. Raise `ValueError` if the descriptor was closed, detached or handed over."""
        if self.closed:
            raise ValueError("this Fd was closed, detached, or handed over to another process already")
        return self._held.fd

    def detach(self) -> int:
        """Return the number. From now on, the caller has to close it."""
        number = self.fileno()
        descriptors.disown(self._held)
        self._held.detach()
        return number

    def close(self) -> None:
        """Close the descriptor if it belongs to this object; otherwise only forget it. A second call does nothing."""
        descriptors.disown(self._held)
        if self._owns:
            self._held.close()
        else:
            self._held.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def __del__(self, _disown: Callable[[Any], None] = descriptors.disown) -> None:
        if self._owns:
            _disown(self._held)
            self._held.close()

    def travel(self, fds: OutgoingFds | ChildFds) -> tuple[Any, tuple[int]]:
        """Return the reduced form of this object for a pickle, and add its descriptor to `fds`."""
        place = fds.add(self.fileno(), self)
        if self._owns:
            fds.give_away(place, self)
        return arrive, (place,)

    def __reduce_ex__(self, _protocol: Any) -> Any:
        context: Any = sys.modules.get("multiprocessing.context")
        spawning = context and context.get_spawning_popen()
        if spawning:  # an argument of the initializer, for workers of a fresh interpreter
            return _arrive_inherited, (spawning.DupFd(spawning.duplicate_for_child(self.fileno())),)
        raise TypeError(
            "an Fd is understood by the tasks of a pairpool.Pool, as an argument, a result, or in a function; it "
            "cannot be part of any other pickle"
        )

    def _owned(self) -> Self:
        """Close the descriptor with this object. Unlike with `close=True`, a child that this process forks keeps it."""
        self._owns = True
        return self

    def __repr__(self) -> str:
        if self.closed:
            return "<pairpool.Fd, closed>"
        return f"<pairpool.Fd {self._held.fd}{', to be closed' if self._owns else ''}>"


def arrive(place: int) -> Fd:
    """Return the `Fd` over a descriptor that has arrived."""
    return received_fds.take(place, _owning)


def _arrive_inherited(duplicate: Any) -> Fd:
    return _owning(duplicate.detach())


def _owning(number: int) -> Fd:
    return Fd(number)._owned()
