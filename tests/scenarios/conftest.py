"""The whole product, started as a person starts it, once per run: real PostgreSQL, Redis, Celery, vLLM."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import urllib3

from controlplane.database import django_config
from controlplane.embedded import environment
from controlplane.embedded.environment import ROOT
from kernel.ids import new_id
from tests.services import free_port, wait_until

ENGINE_WITHIN_S = 600
READY_WITHIN_S = 120
STOPPED_WITHIN_S = 180


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, its JSON parsed where it is JSON."""

    status: int
    headers: urllib3.HTTPHeaderDict
    body: Any


@dataclass(frozen=True, slots=True)
class Moorage:
    """A running installation, seen from outside; `state` is its state folder."""

    state: Path
    environ: dict[str, str]
    up: list[subprocess.Popen[bytes]]
    web: str
    gateway: str
    key: str
    username: str
    password: str
    http: urllib3.PoolManager

    def call(self, method: str, path: str, body: Any = None, *, key: str | None = None, **headers: str) -> Answer:
        """One call of the provisioning API; POST gets a fresh Idempotency-Key unless one is given."""
        if method == "POST":
            headers = {"Idempotency-Key": str(new_id()), **headers}
        return self._send(method, f"{self.web}/api/v1{path}", body, key or self.key, headers)

    def infer(self, path: str, body: Any, *, key: str | None = None) -> Answer:
        """One unary call of the gateway."""
        return self._send("POST", f"{self.gateway}{path}", body, key or self.key, {})

    def chat(self, model: str, *, key: str | None = None, **more: Any) -> Answer:
        """A short unary chat completion."""
        body = {"model": model, "messages": [{"role": "user", "content": "Hello harbour"}], "max_tokens": 8}
        return self.infer("/v1/chat/completions", body | more, key=key)

    def serves(self, model: str) -> bool:
        """Whether a completion succeeds now."""
        try:
            return self.chat(model).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def _send(self, method: str, url: str, body: Any, key: str, headers: dict[str, str]) -> Answer:
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        response = self.http.request(
            method,
            url,
            body=raw,
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json", **headers},
        )
        text = response.data.decode()
        parsed = json.loads(text) if "json" in response.headers.get("Content-Type", "") else text
        return Answer(response.status, response.headers, parsed)

    def stream(self, model: str, *, key: str | None = None, **more: Any) -> urllib3.BaseHTTPResponse:
        """A streamed chat completion, unread."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "Hello harbour"}],
            "max_tokens": 64,
            "stream": True,
        }
        return self.http.request(
            "POST",
            f"{self.gateway}/v1/chat/completions",
            body=json.dumps(body | more),
            headers={"Authorization": f"Bearer {key or self.key}", "Content-Type": "application/json"},
            preload_content=False,
        )

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command of manage.py beside the running installation."""
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
        )

    def shell(self, code: str) -> Any:
        """Run code as the operator would in `manage.py shell`; what it prints, as JSON."""
        done = self.manage("shell", "--no-imports", "-c", f"import json\n{code}")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows, read as the auditor."""
        config = django_config(self.environ["DATABASE_URL"], "auditor", self.environ["MOORAGE_SECRET_KEY"])
        with psycopg.connect(
            host=config["HOST"],
            port=config["PORT"],
            dbname=config["NAME"],
            user=config["USER"],
            password=config["PASSWORD"],
        ) as connection:
            return connection.execute(sql, values).fetchall()

    def assert_books(self) -> None:
        """Every invariant of the books holds."""
        done = self.manage("check_books")
        assert done.returncode == 0, done.stdout + done.stderr

    def pid(self, part: str) -> int:
        """The process of one part, as the supervisor's status file says."""
        parts = json.loads((self.state / "parts.json").read_text())
        return int(parts[part]["pid"])

    def kill(self, part: str) -> None:
        """kill -9 of one part, and wait until the supervisor has put another in its place."""
        before = self.pid(part)
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: self.pid(part) not in (before, 0), f"a new {part}")

    def restart(self) -> None:
        """Stop everything, engines last, and start it again."""
        stop(self.up[0])
        assert self.engines() == {}
        self.up[0] = start(self.state, self.environ)

    def engines(self) -> dict[str, int]:
        """The process that each running pod began with, by pod uid."""
        found = {}
        for record in (self.state / "cluster" / "pods").glob("*/process"):
            pid = int(record.read_text().split("\n")[1].split()[0])
            if Path(f"/proc/{pid}").exists():
                found[record.parent.name] = pid
        return found

    def event_of(self, request_id: str) -> dict[str, Any]:
        """The usage event of a gateway request, once it is rated and posted."""
        found: list[dict[str, Any]] = []

        def is_there() -> bool:
            events = self.call("GET", "/usage?limit=500").body["events"]
            found[:] = [event for event in events if event["request_id"] == request_id]
            return bool(found)

        wait_until(is_there, f"usage event of {request_id}", 60)
        return found[0]

    def until_phase(self, endpoint_id: str, phase: str, within_s: float = ENGINE_WITHIN_S) -> dict[str, Any]:
        """The endpoint once it is in this phase."""
        found: list[dict[str, Any]] = []

        def is_there() -> bool:
            answer = self.call("GET", f"/endpoints/{endpoint_id}")
            if phase == "deleted":
                return answer.status == 404
            found[:] = [answer.body]
            assert answer.body["phase"] != "failed", answer.body
            return bool(answer.body["phase"] == phase)

        wait_until(is_there, f"{endpoint_id} {phase}", within_s)
        return found[0] if found else {}


def start(state: Path, environ: dict[str, str]) -> subprocess.Popen[bytes]:
    """`manage.py up`, once it says that it is ready."""
    log = state / "up.log"
    with log.open("wb") as output:
        up = subprocess.Popen([sys.executable, "manage.py", "up"], cwd=ROOT, env=environ, stdout=output, stderr=output)

    def is_ready() -> bool:
        assert up.poll() is None, log.read_text()
        return "Moorage is ready" in log.read_text()

    wait_until(is_ready, "`manage.py up`", READY_WITHIN_S)
    return up


def stop(up: subprocess.Popen[bytes]) -> None:
    """End it as `make stop` does; engines go last."""
    up.send_signal(signal.SIGTERM)
    up.wait(STOPPED_WITHIN_S)


@contextmanager
def installed(state: Path, engines: Path) -> Iterator[Moorage]:
    """An installation on free ports with a state folder of its own, for the length of a block."""
    web, gateway, internal = free_port(), free_port(), free_port()
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("MOORAGE_", "DJANGO_"))},
        "MOORAGE_STATE_DIR": str(state),
        "MOORAGE_WEIGHTS": str(ROOT / ".moorage" / "weights"),
        "MOORAGE_ENGINES": str(engines),
        "WEB_LISTEN": f"127.0.0.1:{web}",
        "GATEWAY_LISTEN": f"127.0.0.1:{gateway}",
        "GATEWAY_INTERNAL_LISTEN": f"127.0.0.1:{internal}",
    }
    up = [start(state, environ)]
    try:
        demo = json.loads((state / "demo.json").read_text())
        environment.complete(environ, create=False)
        yield Moorage(
            state=state,
            environ=environ,
            up=up,
            web=f"http://127.0.0.1:{web}",
            gateway=f"http://127.0.0.1:{gateway}",
            key=demo["api_key"],
            username=demo["username"],
            password=demo["password"],
            http=urllib3.PoolManager(timeout=urllib3.Timeout(connect=5, read=120), retries=False, maxsize=256),
        )
    finally:
        stop(up[0])


@pytest.fixture(scope="session")
def moorage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moorage]:
    """The installation of the scenarios, with real engines."""
    with installed(tmp_path_factory.mktemp("moorage"), ROOT / ".engines") as moorage:
        yield moorage


@pytest.fixture(scope="session")
def shared(moorage: Moorage) -> str:
    """The operator's shared endpoint, once its engine serves: what clients put in `model`."""
    wait_until(lambda: moorage.serves("tiny-deepseek"), "the shared endpoint", ENGINE_WITHIN_S)
    return "tiny-deepseek"


@pytest.fixture(autouse=True)
def books_hold(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every invariant of the books holds after every scenario."""
    yield
    if "moorage" in request.fixturenames:
        request.getfixturevalue("moorage").assert_books()
