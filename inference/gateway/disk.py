"""Waiting for the disk without a thread: the kernel syncs by itself and says so through an eventfd.

A thread would wait for the interpreter's lock after every step and take it from the loop: that cost more than
all else a request does. One waits only where the kernel gives us no context for asynchronous I/O.
"""

import asyncio
import ctypes
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

log = logging.getLogger(__name__)

_SETUP, _DESTROY, _GETEVENTS, _SUBMIT = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}[os.uname().machine]
_FDATASYNC = 3  # IOCB_CMD_FDSYNC
_TELL_EVENTFD = 1  # IOCB_FLAG_RESFD

_libc = ctypes.CDLL(None, use_errno=True)


class _Order(ctypes.Structure):
    """Linux's struct iocb."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_int32),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("fd", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("eventfd", ctypes.c_uint32),
    )


class _Outcome(ctypes.Structure):
    """Linux's struct io_event; `result` is a negative errno, or not."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("order", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("result2", ctypes.c_int64),
    )


class Disk:
    """One write at a time; `on_durable` hears of its end, with what went wrong or None."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_durable: Callable[[OSError | None], None]) -> None:
        self._loop = loop
        self._on_durable = on_durable
        self._thread: ThreadPoolExecutor | None = None
        self._context = ctypes.c_ulong(0)
        try:
            _call(_SETUP, 1, ctypes.byref(self._context))
        except OSError as error:
            log.warning(
                "a thread waits for the journal's disk, which costs throughput: the kernel gives no context for "
                "asynchronous I/O (%s); raise `sysctl fs.aio-max-nr`, or allow io_setup in this sandbox",
                error.strerror,
            )
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="disk")
            return
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._order = _Order(opcode=_FDATASYNC, flags=_TELL_EVENTFD, eventfd=self._eventfd)
        self._orders = (ctypes.POINTER(_Order) * 1)(ctypes.pointer(self._order))
        self._outcome = _Outcome()
        loop.add_reader(self._eventfd, self._ended)

    def write(self, fd: int, data: bytes) -> None:
        """Hand everything to the kernel's cache now, and begin to wait for the disk. OSError where it is refused."""
        written = os.write(fd, data)
        while written < len(data):
            written += os.write(fd, data[written:])
        if self._thread is not None:
            self._loop.run_in_executor(self._thread, os.fdatasync, fd).add_done_callback(self._synced)
            return
        self._order.fd = fd
        _call(_SUBMIT, self._context, 1, self._orders)

    def close(self) -> None:
        """Let go of what the kernel keeps; no write may be under way."""
        if self._thread is not None:
            self._thread.shutdown()
            return
        self._loop.remove_reader(self._eventfd)
        _call(_DESTROY, self._context)
        os.close(self._eventfd)

    def _synced(self, sync: "asyncio.Future[None]") -> None:
        failure = sync.exception()
        self._on_durable(failure if failure is None or isinstance(failure, OSError) else OSError(str(failure)))

    def _ended(self) -> None:
        os.eventfd_read(self._eventfd)
        _call(_GETEVENTS, self._context, 1, 1, ctypes.byref(self._outcome), None)
        errno = -self._outcome.result
        self._on_durable(OSError(errno, os.strerror(errno)) if errno > 0 else None)


def _call(*call: object) -> None:
    if _libc.syscall(*call) < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
