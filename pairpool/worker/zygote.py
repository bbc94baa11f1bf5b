"""The zygote: a process with one thread that forks the workers, and the three ways to have one.

    master ── control pair ──► zygote ── fork ──► worker
       ▲                          │
       └── pid, near end, far end, pidfd (SCM_RIGHTS) ──┘

What the kernel does, and what follows:

- with SIGCHLD ignored children leave no zombie and no status (sigaction(2)): the zygote ignores it, so that the
  caller need not;
- a pidfd can be opened only while its process is there, so a new worker does nothing until its master has sent it a
  packet;
- PDEATHSIG fires when the *thread* that forked ends: the zygote has one thread, and it is the process;
- every fork copies every descriptor, so pairs are made where no other pair is open: the zygote passes its ends on
  and closes them;
- orphans of killed workers become children of the nearest subreaper: the zygote is one, and ends them with the worker.

`fork_worker` serves all start methods: "fork" (the zygote is a fork of the program), "forkserver" (a fresh
interpreter), "direct" (no zygote: the master forks and ignores SIGCHLD itself).
"""

from __future__ import annotations

import errno
import gc
import itertools
import os
import select
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from pairpool.linux import descriptors, forking, pidfds, process_tree, signals
from pairpool.transport.channel import Channel, Lost
from pairpool.transport.protocol import (
    HelloPacket,
    Packet,
    ReapedPacket,
    SparePacket,
    SpareRequestPacket,
    SpawnedPacket,
    SpawnFailedPacket,
    SpawnPacket,
)
from pairpool.transport.wire import ProtocolError

__all__ = [
    "Body",
    "DirectZygote",
    "ForkedZygote",
    "FreshZygote",
    "SpawnFailed",
    "Spawned",
    "Zygote",
    "default_signals",
    "fork_worker",
    "ignore_interrupts",
]


class Body(Protocol):
    """What a worker runs, with its channel, slot and serial number, in the new process; returns the exit status."""

    def __call__(self, channel: Channel, slot: int, serial: int, /) -> int: ...


_SIGNALS = signal.valid_signals()

LATELY = 64
"""Workers that may have ended so lately that the kernel still lists them among the children."""

_serials = itertools.count(1)
"""One count for all zygotes of a process: a report about the worker of an old one must not mean one of the new."""


class Spawned(NamedTuple):
    """A new worker as its master gets it; the master owns the three descriptors."""

    slot: int
    serial: int
    pid: int
    near: Channel
    far: Channel
    pidfd: descriptors.Descriptor


class SpawnFailed(NamedTuple):
    """A fork that failed, with the error."""

    slot: int
    error: OSError


class Zygote(Protocol):
    """Where workers come from."""

    was_ready: bool
    """Whether it has been able to fork."""

    main_names: frozenset[str] | None
    """Names that the workers' `__main__` has, where it was imported anew; None where it is inherited."""

    @property
    def is_gone(self) -> bool:
        """Whether it has ended, and its workers with it."""

    def request(self, slot: int) -> None:
        """Ask for a worker; it comes out of `receive` later, with a serial number that no other has."""

    def receive(self) -> Spawned | SpawnFailed | None:
        """The next answer to a request, if one is there. Raises `Lost` if the zygote is gone."""

    def flush(self) -> bool:
        """Send it what there was no room for; False if something still waits."""

    def wait(self, timeout: float | None) -> None:
        """Wait until `receive` has something or the zygote has ended."""

    def reaped(self, serial: int) -> None:
        """Tell that a worker has ended, so that what it left running is ended too."""

    def want_spare(self) -> None:
        """Have it keep another ready that can take its place."""

    def take_spare(self) -> Zygote | None:
        """The other, if there is one."""

    def watched(self) -> list[int]:
        """Descriptors that become readable when there is something to receive or the zygote has ended."""

    def close(self, patience: float = 10.0) -> None:
        """End the zygote and all that is below it, and let go of everything."""


# --- in the child -----------------------------------------------------------------------------------


def _ignore_interrupt(_number: int, _frame: Any) -> None:
    """SIGINT is the master's business; a no-op and not SIG_IGN, which programs that a task starts would inherit."""


def ignore_interrupts() -> None:
    """Leave SIGINT to the master, and let it in where it was held back while this process started."""
    signal.signal(signal.SIGINT, _ignore_interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def default_signals() -> None:
    """Undo what the program has set."""
    signal.set_wakeup_fd(-1)
    for number in _SIGNALS:
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, _ignore_interrupt)
    DirectZygote.forget_parents()


def _close_stdin() -> None:
    """Tasks read nothing from the program's terminal, as in multiprocessing."""
    null = os.open(os.devnull, os.O_RDONLY)
    if null != 0:
        os.dup2(null, 0)
        os.close(null)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  # lives as long as the process


def _flush_output() -> None:
    """What waits in a buffer while a process forks is written twice, and what waits when it exits, never."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            pass  # closed or full: that is for its owner to notice when it writes


def _run_child(body: Callable[[], int], *before: Callable[[], object]) -> None:
    """Run `body` in a freshly forked child, after what comes before, and end the process, whatever happens."""
    status = 1
    try:
        for step in before:
            step()
        status = body()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        try:
            _flush_output()
        finally:
            os._exit(status)


def _fork_with(body: Callable[[], int]) -> int:
    """Fork a child that runs `body` from clean signals on; signals wait while it is between two worlds."""
    mask = signals.hold_signals(_SIGNALS)
    try:
        pid = forking.fork()
        if pid == 0:
            _run_child(body, default_signals, _close_stdin, lambda: signals.set_signal_mask(signal.SIG_SETMASK, mask))
    finally:
        signals.set_signal_mask(signal.SIG_SETMASK, mask)
    return pid


def _fork_off_zygote(body: Callable[[], int]) -> int:
    """`_fork_with` for a process that has no stdin and no thread, and the signals that a worker is to have.

    All but SIGCHLD: to look at and to hold back each of the others is half of what a start takes.
    """
    pid = os.fork()
    if pid == 0:
        _run_child(body, lambda: signal.signal(signal.SIGCHLD, signal.SIG_DFL))
    return pid


def fork_worker(body: Body, slot: int, serial: int, *, own_group: bool = False, by_zygote: bool = False) -> Spawned:
    """Make a pair, fork a child that runs `body` on the far end, and return the master's side of it.

    With `own_group` the child leads a process group of its own, by which its children can be found when it has ended.
    `by_zygote`: this process is one.

    The child is killed when its parent ends, if the forking thread is the parent's main thread. Raises `OSError` if the
    kernel refuses a descriptor or a process; nothing is left behind then.
    """
    near, far = Channel.pair()
    parent = os.getpid()
    in_main_thread = threading.current_thread() is threading.main_thread()

    def child() -> int:
        near.close()
        if own_group:
            os.setpgid(0, 0)
        if in_main_thread:
            process_tree.die_with_parent(parent)
        return body(far, slot, serial)

    pid = 0
    try:
        pid = _fork_off_zygote(child) if by_zygote else _fork_with(child)
        pidfd = descriptors.Descriptor(os.pidfd_open(pid))
    except BaseException:
        near.close()
        far.close()
        if pid:
            _give_up(pid)
        raise
    return Spawned(slot, serial, pid, near, far, pidfd)


def _give_up(pid: int) -> None:
    """End a child that cannot be watched."""
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass  # it has ended by itself, or the kernel has reaped it


def serve(control: Channel, body: Body, master: int, names: bytes = b"") -> int:
    """The zygote's life: fork when asked, end what workers leave behind, and end all when the master is gone.

    Args:
        control: the pair to the master.
        body: what workers run.
        master: a pidfd of the master.
        names: what the master gets to know in the first packet.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.freeze()
    process_tree.adopt_orphans()
    descriptors.own(control)
    workers: dict[int, int] = {}
    spares: set[int] = set()
    poller = select.poll()
    poller.register(control.fileno(), select.POLLIN)
    poller.register(master, select.POLLIN)
    try:
        control.send(HelloPacket(), names)
        is_untidy = False
        while True:
            events = poller.poll(0 if is_untidy else None)
            if not events:  # of many deaths at once, the last has it looked for what they all have left
                process_tree.kill_children(keep=spares | set(workers.values()))
                is_untidy = False
                continue
            if master in [fd for fd, _events in events]:
                break
            packet = control.receive()[0]
            if isinstance(packet, SpawnPacket):
                _spawn_for(control, body, packet, workers)
            elif isinstance(packet, ReapedPacket):
                workers.pop(packet.serial, None)
                is_untidy = True
            elif isinstance(packet, SpareRequestPacket):
                spares = {_spare_for(control, body, master, names)}
            else:
                raise ProtocolError(f"the master has sent {packet} to the zygote")
    except Lost:
        pass  # the master has closed the pool, or died: either way this is the end
    process_tree.kill_children(keep=set())
    return 0


def _spare_for(control: Channel, body: Body, master: int, names: bytes) -> int:
    """Fork a zygote that takes this one's place if it is killed; returns its pid, 0 if it cannot be made.

    The master could fork one by itself then; but it may have threads by then, and one of them may hold a lock at that
    moment, which nobody would ever release in the child: all workers would wait for it.
    """
    near, far = Channel.pair()

    def child() -> int:
        near.close()
        return serve(far, body, master, names)

    pid = 0
    try:
        pid = _fork_with(child)
        pidfd = os.pidfd_open(pid)
        try:
            control.send(SparePacket(pid), fds=(near.fileno(), pidfd))
        finally:
            os.close(pidfd)
    except OSError:
        if pid:
            _give_up(pid)
        control.send(SparePacket())
        pid = 0
    finally:
        near.close()
        far.close()
    return pid


def _spawn_for(control: Channel, body: Body, packet: SpawnPacket, workers: dict[int, int]) -> None:
    slot, serial = packet.slot, packet.serial
    try:
        new = fork_worker(body, slot, serial, by_zygote=True)
    except OSError as error:
        number = error.errno or errno.EAGAIN
        control.send(SpawnFailedPacket(slot, number), (error.strerror or str(error)).encode())
        return
    workers[serial] = new.pid
    fds = (new.near.fileno(), new.far.fileno(), new.pidfd.fileno())
    try:
        control.send(SpawnedPacket(serial, slot, new.pid), fds=fds)
    finally:
        new.near.close()
        new.far.close()
        new.pidfd.close()


# --- in the master ----------------------------------------------------------------------------------


class _ZygoteProcess:
    """The master's side of a zygote that is a process of its own."""

    is_fresh = False

    def __init__(self, control: Channel, pid: int, pidfd: int = -1) -> None:
        self._control = control
        self.pid = pid
        self._spare: _ZygoteProcess | None = None
        self._is_spare_due = False
        self._outbox: deque[Packet] = deque()
        try:
            self.pidfd = descriptors.Descriptor(os.pidfd_open(pid) if pidfd < 0 else pidfd)
        except BaseException:
            control.close()
            _give_up(pid)
            raise
        self.main_names: frozenset[str] | None = None
        self.was_ready = False
        descriptors.own(control)
        descriptors.own(self.pidfd)

    @property
    def is_gone(self) -> bool:
        return self.pidfd.fileno() < 0 or pidfds.has_ended(self.pidfd.fileno())

    def request(self, slot: int) -> None:
        self._post(SpawnPacket(next(_serials), slot))

    def reaped(self, serial: int) -> None:
        try:
            self._post(ReapedPacket(serial))
        except Lost:
            pass  # it died with its workers, and `receive` will say so
        except OSError:
            pass  # no memory for a packet: what the worker left is ended with the next one's

    def _post(self, packet: Packet) -> None:
        """Send a packet, or keep it until there is room: it may be waiting for the master to read its answers."""
        if self._outbox or not self._control.send(packet, wait=False):
            self._outbox.append(packet)

    def flush(self) -> bool:
        try:
            while self._outbox and self._control.send(self._outbox[0], wait=False):
                self._outbox.popleft()
        except (Lost, OSError):
            pass  # `receive` will say that it is gone; or there is no memory now
        return not self._outbox

    def want_spare(self) -> None:
        """Have it fork a spare of itself, unless there is one, or one is on its way."""
        if self._spare is not None and self._spare.is_gone:
            self._spare.close()
            self._spare = None
        if self._spare is None and not self._is_spare_due and self.was_ready:
            try:
                self._post(SpareRequestPacket())
            except (Lost, OSError):
                return  # it is gone, and so `receive` will say; or there is no memory now, and a later call will do
            self._is_spare_due = True

    def take_spare(self) -> Zygote | None:
        """The spare, which is the caller's from now on, if there is one."""
        spare, self._spare = self._spare, None
        if spare is not None and spare.is_gone:
            spare.close()
            return None
        return spare

    def receive(self) -> Spawned | SpawnFailed | None:
        if self._outbox:
            self.flush()
        while True:
            try:
                packet, payload, fds = self._control.receive(wait=False)
            except BlockingIOError:
                return None
            if isinstance(packet, SpawnedPacket):
                near, far = Channel.from_fd(fds[0]), Channel.from_fd(fds[1])
                return Spawned(packet.slot, packet.serial, packet.pid, near, far, descriptors.Descriptor(fds[2]))
            if isinstance(packet, SpawnFailedPacket):
                return SpawnFailed(packet.slot, OSError(packet.errno, bytes(payload).decode()))
            if isinstance(packet, SparePacket):
                self._is_spare_due = False
                if fds:
                    self._spare = _ZygoteProcess(Channel.from_fd(fds[0]), packet.pid, fds[1])
                    self._spare.main_names = self.main_names
            elif isinstance(packet, HelloPacket):
                self.was_ready = True
                if self.is_fresh:
                    self.main_names = frozenset(bytes(payload).decode().split())
            else:
                raise ProtocolError(f"the zygote has sent {packet}")

    def wait(self, timeout: float | None) -> None:
        poller = select.poll()
        for fd in self.watched():
            poller.register(fd, select.POLLIN)
        poller.poll(None if timeout is None else timeout * 1000)

    def watched(self) -> list[int]:
        return [self._control.fileno(), self.pidfd.fileno()]

    def close(self, patience: float = 10.0) -> None:
        descriptors.disown(self._control)
        descriptors.disown(self.pidfd)
        if self.pidfd.fileno() < 0:
            return
        if self._spare is not None:
            self._spare.close(patience)
            self._spare = None
        self._control.close()
        if not pidfds.wait_ended(self.pidfd.fileno(), patience):
            pidfds.send_signal(self.pidfd.fileno(), signal.SIGKILL)
        _wait_for_child(self.pid)
        self.pidfd.close()


def _wait_for_child(pid: int) -> None:
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # the caller ignores SIGCHLD, or has waited for all its children


class ForkedZygote(_ZygoteProcess):
    """`start_method="fork"`: the zygote is a fork of this process as it is now."""

    def __init__(self, body: Body, keep: Sequence[descriptors.Closable] = ()) -> None:
        """Fork; `keep` names what is closed in other children of this process, but not in this one."""
        near, far = Channel.pair()
        try:
            master = os.pidfd_open(os.getpid())
        except BaseException:
            near.close()
            far.close()
            raise

        def child() -> int:
            near.close()
            return serve(far, body, master)

        try:
            _flush_output()
            for thing in keep:
                descriptors.disown(thing)
            pid = _fork_with(child)
        except BaseException:
            near.close()
            raise
        finally:
            for thing in keep:
                descriptors.own(thing)
            far.close()
            os.close(master)
        super().__init__(near, pid)


class FreshZygote(_ZygoteProcess):
    """`start_method="forkserver"`: the zygote is a fresh interpreter that imports the program's main module.

    Args:
        factory: importable name `module:function` of what makes the worker's body from `fds` and `setup`.
        fds: descriptors that the body needs.
        setup: its pickled setup.
    """

    is_fresh = True

    def __init__(self, factory: str, fds: list[int], setup: bytes) -> None:
        import subprocess

        from pairpool.worker import bootstrap

        near, far = Channel.pair()
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from pairpool.worker.bootstrap import run_fresh_zygote; "
            f"run_fresh_zygote({far.fileno()}, {os.getpid()}, {factory!r}, {fds!r})"
        )
        mask = signals.hold_signals({signal.SIGINT})
        try:
            process = subprocess.Popen(
                [sys.executable, *bootstrap.interpreter_flags(), "-c", code],
                pass_fds=[far.fileno(), *fds],
                stdin=subprocess.DEVNULL,
            )
        except BaseException:
            near.close()
            raise
        finally:
            signals.set_signal_mask(signal.SIG_SETMASK, mask)
            far.close()
        process.returncode = 0  # it is waited for by its pid: a copy of this object in a forked child must not complain
        super().__init__(near, process.pid)
        try:
            bootstrap.send_preparation(near, setup)
        except Lost:
            pass  # it could not start; `receive` will say so


class DirectZygote:
    """`start_method="direct"`: no zygote. The master forks the workers, and ignores SIGCHLD while any such pool is
    open.

    The price: `subprocess.run(["false"]).returncode` is 0 in the master meanwhile; a worker that is replaced is
    forked from the program as it is then, with its threads; without a subreaper, what a task has started is found by
    its worker's process group: a program in a session of its own outlives a worker that is killed, and whatever a task
    has started outlives a master that is killed by SIGKILL. SIGCHLD can be set from the main thread alone
    (signal(7)).
    """

    was_ready = True
    is_gone = False
    main_names: frozenset[str] | None = None
    _open = 0
    _ignoring = False
    _before: Any = None

    def __init__(self, body: Body, keep: Sequence[descriptors.Closable] = ()) -> None:
        """`keep` names what is closed in other children of this process, but not in workers."""
        self._body = body
        self._keep = keep
        self._answers: list[Spawned | SpawnFailed] = []
        self._children: dict[int, tuple[int, descriptors.Descriptor]] = {}
        self._ended: deque[int] = deque(maxlen=LATELY)
        self._closed = False
        if not DirectZygote._ignoring:
            DirectZygote._before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            DirectZygote._ignoring = True
        DirectZygote._open += 1

    def request(self, slot: int) -> None:
        _flush_output()
        for thing in self._keep:
            descriptors.disown(thing)
        try:
            new = fork_worker(self._body, slot, next(_serials), own_group=True)
            handle = descriptors.Descriptor(os.dup(new.pidfd.fileno()))
            descriptors.own(handle)
            self._children[new.serial] = new.pid, handle
            self._answers.append(new)
        except OSError as error:
            self._answers.append(SpawnFailed(slot, error))
        finally:
            for thing in self._keep:
                descriptors.own(thing)

    def receive(self) -> Spawned | SpawnFailed | None:
        return self._answers.pop(0) if self._answers else None

    def flush(self) -> bool:
        return True

    def wait(self, timeout: float | None) -> None:
        """Requests are answered at once."""

    def reaped(self, serial: int) -> None:
        """End what it left running, which is in its process group."""
        pid, handle = self._children.pop(serial, (0, None))
        if handle is not None:
            pidfds.kill_group(pid, handle.fileno())
            self._ended.append(pid)
            descriptors.disown(handle)
            handle.close()

    def want_spare(self) -> None:
        """It cannot be lost."""

    def take_spare(self) -> Zygote | None:
        return None

    def watched(self) -> list[int]:
        return []

    def close(self, patience: float = 10.0) -> None:
        if not self._closed:
            self._closed = True
            for serial in list(self._children):
                self.reaped(serial)
            for pid in self._ended:
                pidfds.wait_released(pid)
            DirectZygote._open -= 1
            if threading.current_thread() is threading.main_thread():
                DirectZygote.restore_sigchld()
            else:
                _have_main_thread_restore_sigchld()

    @classmethod
    def restore_sigchld(cls) -> None:
        """Give the old disposition back if no such pool is open; in the main thread."""
        if cls._open == 0 and cls._ignoring:
            cls._ignoring = False
            signal.signal(signal.SIGCHLD, cls._before)

    @classmethod
    def forget_parents(cls) -> None:
        """In a forked child: the pools that are open are the parent's."""
        cls._open = 0
        cls._ignoring = False


def _have_main_thread_restore_sigchld() -> None:
    """Only the main thread can set a disposition; a pending call reaches it at its next step in Python."""
    import ctypes

    def restore(_argument: Any) -> int:
        _pending.pop(id(callback), None)
        DirectZygote.restore_sigchld()
        return 0

    callback = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(restore)
    _pending[id(callback)] = callback
    ctypes.pythonapi.Py_AddPendingCall(callback, None)


_pending: dict[int, Any] = {}
"""Callbacks that the interpreter has not made yet; it keeps no reference of its own."""
