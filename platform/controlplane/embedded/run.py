"""One life of an installation: start it wave by wave, say where it is, end it when asked."""

import asyncio
import json
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from controlplane.database import bootstrap
from controlplane.demo import Demo, read_demo
from controlplane.embedded import environment, parts
from controlplane.embedded.environment import ROOT
from controlplane.embedded.supervisor import PartFailed, Supervisor, last_lines


class Run:
    """Runs what a completed environment asks for. `demo` makes a tenant, a login and a key to try it with."""

    def __init__(self, environ: Mapping[str, str], *, demo: bool) -> None:
        self._environ = environ
        self._children = environment.for_children(environ)
        self._demo = demo
        self._console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
        self._supervisor = Supervisor(environment.state_dir(environ), self._children, self._console.print)
        self._stop = asyncio.Event()
        self._credentials: Demo | None = None

    async def until_stopped(self) -> None:
        """Start everything, then wait for a signal. PartFailed when a part cannot start.

        However it ends, everything that was started is stopped.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays nohup
                loop.add_signal_handler(number, self._on_signal)
        start = asyncio.create_task(self._start())
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait((start, stop), return_when=asyncio.FIRST_COMPLETED)
            if start.done():
                await start
                self._console.print(greeting(self._environ, self._credentials))
                await stop
        finally:
            start.cancel()
            await self._supervisor.stop(lambda names: self._console.print(f"Stopping {names}"))

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._console.print("Hurrying: nobody gets time to finish any more")
            self._supervisor.hurry()
        self._stop.set()

    async def _start(self) -> None:
        steps: list[tuple[str, Callable[[], Coroutine[Any, Any, None]]]] = [
            ("node agent, PostgreSQL and Redis", self._start_agent_and_databases),
            ("tables", self._migrate),
            ("worker, timer, watcher, meter and lender", self._start_control),
            ("gateway and console", self._start_doors),
        ]
        columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task("", total=len(steps))
            for name, step in steps:
                progress.update(task, description=f"Starting {name}")
                if not self._console.is_terminal:
                    self._console.print(f"Starting {name}")
                await step()
                progress.advance(task)

    async def _start_agent_and_databases(self) -> None:
        # The agent's wave is the first, so it is the last to stop; engines load while the rest starts.
        await asyncio.gather(
            self._supervisor.start([parts.agent(self._environ)]),
            self._supervisor.start(parts.databases(self._environ)),
        )

    async def _migrate(self) -> None:
        admin_dsn = self._environ.get("DATABASE_ADMIN_URL", "")
        if environment.uses_embedded_postgres(self._environ):
            admin_dsn = environment.embedded_postgres(self._environ).admin_dsn
        if admin_dsn:
            database = urlsplit(self._environ["DATABASE_URL"]).path.strip("/")
            await asyncio.to_thread(bootstrap, admin_dsn, database, self._environ["MOORAGE_SECRET_KEY"])
        await self._manage("migrate", "--verbosity=0")
        if self._demo:
            await self._manage("seed_demo")
            self._credentials = read_demo()

    async def _start_control(self) -> None:
        await self._supervisor.start(parts.control(self._environ))

    async def _start_doors(self) -> None:
        await self._supervisor.start(parts.doors(self._environ))

    async def _manage(self, *arguments: str) -> None:
        """Run one command of manage.py under its own role. PartFailed with what it said."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(ROOT / "manage.py"),
            *arguments,
            env=self._children,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            _, errors = await process.communicate()
        except asyncio.CancelledError:
            process.kill()
            raise
        if process.returncode:
            said = last_lines(errors.decode(errors="replace"))
            raise PartFailed(f"manage.py {arguments[0]} failed; what it said ends with:\n{said}")


def greeting(environ: Mapping[str, str], demo: Demo | None) -> str:
    """What a newcomer needs: where, as whom, and a request to copy."""
    lines = ["", f"Moorage is ready: http://{environ['WEB_LISTEN']}"]
    if demo is not None:
        message = {"role": "user", "content": "Hello"}
        body = json.dumps({"model": demo.release, "stream": True, "messages": [message]})
        lines += [
            f"  sign in  {demo.username} with password {demo.password}",
            *(
                [f"  operator {demo.operator_username} with password {demo.operator_password}"]
                * bool(demo.operator_username)
            ),
            f"  API key  {demo.api_key}",
            f"  try      curl -N {environ['GATEWAY_URL']}/v1/chat/completions \\",
            f"             -H 'Authorization: Bearer {demo.api_key}' \\",
            f"             -H 'Content-Type: application/json' -d '{body}'",
            "  An engine needs one to two minutes on a CPU before it answers.",
        ]
    lines += [
        f"  logs     {environment.state_dir(environ) / 'log'}",
        "Ctrl-C stops everything, engines last.",
        "",
    ]
    return "\n".join(lines)
