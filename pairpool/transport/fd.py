"""`Fd`: a descriptor as an argument or a result, for all that has no class of its own that travels."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from pairpool.linux import descriptors
from pairpool.transport import fd_passing

if TYPE_CHECKING:
    from pairpool.transport.fd_passing import ChildFds, OutgoingFds

__all__ = ["Fd"]


class Fd:
    """A descriptor on its way to a worker or back; what arrives is an `Fd` that owns a descriptor of its own.

    Args:
        fd: number of an open descriptor.
        close: whether it belongs to this object. Then it is closed here as soon as a worker is about to run the item
            that it went with (with `retries=`, once that has ended), and with the last reference. Such an item goes
            alone in its batch, so that a worker that dies takes no other's descriptor with it. A forked child does not
            get it. Without `close` the number stays its owner's, and has to be open until the item has ended.

    Raises:
        TypeError: `fd` is no number.
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
        """Whether there is no descriptor any more: it was closed, detached, or handed over."""
        return self._held.fd < 0

    def fileno(self) -> int:
        """The number. Raises `ValueError` if it was closed, detached or handed over."""
        if self.closed:
            raise ValueError("this Fd was closed, detached, or handed over to another process already")
        return self._held.fd

    def detach(self) -> int:
        """The number, which is the caller's to close from now on."""
        number = self.fileno()
        descriptors.disown(self._held)
        self._held.fd = -1
        return number

    def close(self) -> None:
        """Close the descriptor if it belongs to this object, else only forget it; twice does no harm."""
        descriptors.disown(self._held)
        if self._owns:
            self._held.close()
        else:
            self._held.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def __del__(self, _disown: Callable[[Any], None] = descriptors.disown) -> None:
        if self._owns:
            _disown(self._held)
            self._held.close()

    def travel(self, cargo: OutgoingFds | ChildFds) -> tuple[Any, tuple[int]]:
        """What a pickle says instead of it; its copy is put into `cargo`."""
        place = cargo.add(self.fileno(), self)
        if self._owns:
            cargo.move(place, self)
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

    def __repr__(self) -> str:
        if self.closed:
            return "<pairpool.Fd, closed>"
        return f"<pairpool.Fd {self._held.fd}{', to be closed' if self._owns else ''}>"


def arrive(place: int) -> Fd:
    """The `Fd` over a descriptor that has arrived."""
    return fd_passing.take(place, _owning)


def _arrive_inherited(duplicate: Any) -> Fd:
    return _owning(duplicate.detach())


def _owning(number: int) -> Fd:
    made = Fd(number)
    made._owns = True  # but a child that the receiver forks may keep it, like any other of its descriptors
    return made
