"""The demo's login and key, kept in the state folder for its owner alone."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from django.conf import settings


@dataclass(frozen=True, slots=True)
class Demo:
    """What `make up` prints: a login of the console, a key of the API, the release to try, the operator's login."""

    username: str
    password: str
    api_key: str
    release: str
    operator_username: str = ""  # absent in what an older version wrote
    operator_password: str = ""


def demo_file() -> Path:
    """Where the demo's login lies, mode 600."""
    return Path(settings.STATE_DIR) / "demo.json"


def read_demo() -> Demo:
    """The demo's login. FileNotFoundError before `make up` has seeded it."""
    return Demo(**json.loads(demo_file().read_text()))


def write_demo(demo: Demo) -> None:
    """Keep the demo's login; readable by its owner alone."""
    path = demo_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps(asdict(demo), indent=1) + "\n")
