"""docker-compose.yml against the Compose Specification's schema and against what the supervisor runs.

No container engine is at hand where these tests run. compose-spec.json is the schema that the
specification's own Go library carries (github.com/compose-spec/compose-go/v2 v2.16.2, Apache-2.0).
"""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from controlplane.embedded import environment, parts

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads(Path(__file__).with_name("compose-spec.json").read_text())


@pytest.fixture
def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return content


def test_it_fits_the_compose_specification(compose: dict[str, Any]) -> None:
    jsonschema.validate(compose, SCHEMA)


def test_the_schema_refuses_what_is_not_compose(compose: dict[str, Any]) -> None:
    compose["services"]["web"]["comand"] = ["python"]
    with pytest.raises(jsonschema.ValidationError, match="comand"):
        jsonschema.validate(compose, SCHEMA)


def test_it_runs_the_processes_that_the_supervisor_runs(compose: dict[str, Any], tmp_path: Path) -> None:
    environ = {"MOORAGE_STATE_DIR": str(tmp_path)}
    environment.complete(environ, create=True)
    ours = [parts.agent(environ), *parts.control(environ), *parts.doors(environ)]
    services = compose["services"]
    assert set(services) == {part.name for part in ours} | {"postgres", "redis", "setup"}
    for part in ours:
        # After the interpreter: -m module or manage.py command, before anything that names a place.
        argv = [argument.removeprefix(f"{ROOT}/") for argument in part.argv[part.argv.index("--") + 2 :]]
        command = services[part.name]["command"]
        assert command[0] == "python"
        assert command[1:3] == argv[:2]
        if "celery" in argv:
            assert command[3:6] == argv[2:5]


def test_every_stop_leaves_a_part_the_time_that_the_supervisor_would(compose: dict[str, Any], tmp_path: Path) -> None:
    environ = {"MOORAGE_STATE_DIR": str(tmp_path)}
    environment.complete(environ, create=True)
    agent = parts.agent(environ)
    assert compose["services"]["agent"]["stop_signal"] == agent.stop_signal.name
    assert compose["services"]["agent"]["stop_grace_period"] == f"{agent.grace_s / 60:g}m"
    graces = {part.name: part.grace_s for part in (*parts.control(environ), *parts.doors(environ))}
    for name in ("gateway", "worker"):
        assert compose["services"][name]["stop_grace_period"] == f"{graces[name]:g}s"


def test_every_image_is_pinned_and_nothing_but_the_doors_is_published(compose: dict[str, Any]) -> None:
    images = [service["image"] for service in compose["services"].values()]
    assert all(re.search(r":\d+\.\d+(\.\d+)?(-\w+)?$", image) for image in images)
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert sorted(published) == ["127.0.0.1:8000:8000", "127.0.0.1:8080:8080"]


def test_no_container_looks_for_another_one_on_its_own_loopback(compose: dict[str, Any]) -> None:
    environment_ = compose["x-environment"]
    asked = {name: value for name, value in environment_.items() if "://" in str(value)}
    del asked["GATEWAY_URL"]  # printed for people outside, opened by no container
    hosts = {re.search(r"://(?:[^@/]*@)?([^:/]+)", str(value))[1] for value in asked.values()}
    assert hosts <= set(compose["services"])
    assert environment_["GATEWAY_PRIVATE_URL"] == "http://agent:8080"


def test_whatever_talks_to_engines_shares_the_agents_network(compose: dict[str, Any]) -> None:
    sharing = {name for name, service in compose["services"].items() if service.get("network_mode") == "service:agent"}
    assert sharing == {"gateway", "worker"}


def test_the_console_tells_visitors_behind_a_proxy_on_the_host_apart(compose: dict[str, Any]) -> None:
    setting = compose["services"]["web"]["environment"]["FORWARDED_ALLOW_IPS"]
    trusted = setting.removeprefix("${FORWARDED_ALLOW_IPS:-").removesuffix("}")
    seen: list[str] = []

    async def console(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["client"][0])

    door = ProxyHeadersMiddleware(console, trusted_hosts=trusted)
    for peer in ("172.18.0.1", "192.168.16.1", "203.0.113.1"):
        scope = {"type": "http", "client": (peer, 1), "headers": [(b"x-forwarded-for", b"198.51.100.7")]}
        asyncio.run(door(scope, None, None))  # type: ignore[arg-type]
    assert seen == ["198.51.100.7", "198.51.100.7", "203.0.113.1"]
