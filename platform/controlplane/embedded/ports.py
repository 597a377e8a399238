"""Ports: private ones are chosen once and kept, public ones are fixed; one that is taken gets a sentence."""

import json
import socket
from collections.abc import Iterable
from pathlib import Path


class PortTaken(Exception):
    """Another process listens where we must; the text says which and what to do."""


def keep(path: Path, names: Iterable[str]) -> dict[str, int]:
    """A free loopback port per name, chosen at the first call and read from `path` ever after."""
    kept: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
    missing = [name for name in names if name not in kept]
    if not missing:
        return kept
    # All are held open together, so that no two names get the same port.
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in missing]
    kept |= {name: int(listener.getsockname()[1]) for name, listener in zip(missing, listeners, strict=True)}
    for listener in listeners:
        listener.close()
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(kept, indent=1) + "\n")
    partial.replace(path)
    return kept


def split(listen: str) -> tuple[str, int]:
    """The host and the port of `host:port` or `[v6]:port`. ValueError for anything else."""
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)


def require_free(listen: str, way_out: str) -> None:
    """PortTaken when nothing can listen on `host:port`; `way_out` ends its sentence."""
    host, port = split(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            holder = holder_of(listen)
            taken = f"is taken by {holder}" if holder else f"cannot be used ({error.strerror})"
            raise PortTaken(f"port {port} {taken}: {way_out}") from error


def holder_of(listen: str) -> str | None:
    """Who listens on `host:port`, as `command line (pid 12)`; None when nobody does."""
    inodes = _listening_inodes(*split(listen))
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(fd.readlink()) in wanted for fd in (process / "fd").iterdir()):
                return f"{_command_line(process)} (pid {process.name})"
        except OSError:
            continue  # ended meanwhile, or another user's
    return "a process of another user"


def _command_line(process: Path) -> str:
    """What a person would recognise the process by, in 60 characters."""
    program, *arguments = (process / "cmdline").read_text().rstrip("\0").split("\0")
    return " ".join((Path(program).name, *arguments))[:60]


def _listening_inodes(host: str, port: int) -> set[str]:
    """The inodes of the sockets that listen there, in the columns of proc(5)'s net/tcp.

    Engines listen on the same port as the console, each on a loopback address of its own.
    """
    listen_state, wildcards = "0A", {"0" * 8, "0" * 32}
    ours = _address_in_proc(host)
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        path = Path(table)
        rows = path.read_text().splitlines()[1:] if path.exists() else []
        for row in (line.split() for line in rows):
            address, _, number = row[1].rpartition(":")
            meets = ours in wildcards or address in wildcards or address == ours
            if row[3] == listen_state and int(number, 16) == port and meets:
                inodes.add(row[9])
    return inodes


def _address_in_proc(host: str) -> str:
    """An address as net/tcp spells it: words of four bytes, each the other way round, in hex."""
    family, _, _, _, at = socket.getaddrinfo(host, None)[0]
    packed = socket.inet_pton(family, str(at[0]))
    return "".join(packed[first : first + 4][::-1].hex() for first in range(0, len(packed), 4)).upper()
