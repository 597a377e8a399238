"""The doctor against parts that are well, away, or not ours: each finding says what to do."""

import os
import signal
import time
from pathlib import Path

import pytest
from django.conf import settings
from redis import Redis as Client

from billing import lag
from controlplane.database import bootstrap
from controlplane.embedded import doctor, environment
from inference import clusters
from inference.orphans import ClusterState
from k8s.cluster import Ref
from k8s.local.cluster import AGENT_LOCK
from kernel import wire
from tests.services import free_port, server

Environ = dict[str, str]


@pytest.fixture
def environ(tmp_path: Path) -> Environ:
    """A completed environment of its own, with nothing running."""
    environ = {"MOORAGE_STATE_DIR": str(tmp_path), "MOORAGE_ENGINES": str(tmp_path / "engines")}
    for name in ("WEB_LISTEN", "GATEWAY_LISTEN", "GATEWAY_INTERNAL_LISTEN"):
        environ[name] = f"127.0.0.1:{free_port()}"
    environment.complete(environ, create=True)
    return environ


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("engine", "run `make engine`"),
        ("supervisor", "run `make up`"),
        ("processes", "run `make up`"),
        ("agent", "never worked here"),
        ("database", "run `make up`"),
        ("redis", "run `make up`"),
        ("gateway", "read the log of the gateway"),
        ("meter", "read the log of the meter"),
        ("web", "read the log of web"),
        ("ports", "run `make up`"),
    ],
)
def test_a_part_that_is_away_gets_a_sentence_with_the_way_out(environ: Environ, name: str, way_out: str) -> None:
    with pytest.raises(doctor.Trouble, match=way_out):
        doctor.CHECKS[name](environ)


def test_the_meter_says_how_far_each_kind_of_usage_lies_behind(
    environ: Environ, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "INTERNAL_TOKEN", environ["MOORAGE_INTERNAL_TOKEN"])
    told = {'meter="tokens",gateway="gw-1"': 2.0, 'meter="accel"': 1800.4}
    monkeypatch.setattr(lag, "lags", lambda *, now: told)
    with lag.listener(environ["METER_METRICS_LISTEN"]):
        assert doctor.meter(environ) == "behind by: gw-1 2 s, accel 1800 s"
        told.clear()
        with pytest.raises(doctor.Trouble, match="tells no lag"):
            doctor.meter(environ)


def test_a_cluster_that_is_silent_or_holds_what_nobody_knows_is_told_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ref = Ref("apps/v1", "Deployment", "n", "left")
    states = {
        "well": ClusterState("well", 3, (), ""),
        "silent": ClusterState("silent", 0, (), "connection refused"),
        "crowded": ClusterState("crowded", 3, (ref,), ""),
    }
    monkeypatch.setattr(doctor, "cluster_state", states.__getitem__)
    for names, way_out in ((["silent"], "manage.py cluster add"), (["crowded"], "manage.py cluster orphans crowded")):
        monkeypatch.setattr(clusters, "names", lambda names=names: ["well", *names])
        with pytest.raises(doctor.Trouble, match=way_out):
            doctor.regions({})
    monkeypatch.setattr(clusters, "names", lambda: ["well"])
    assert doctor.regions({}) == "well 3 nodes"


def test_an_agent_that_hangs_is_found_by_its_silence(environ: Environ) -> None:
    beat = environment.state_dir(environ) / "cluster" / AGENT_LOCK
    beat.parent.mkdir()
    beat.touch()
    assert doctor.agent(environ) == "worked 0 s ago"
    os.utime(beat, (0, time.time() - 60))
    with pytest.raises(doctor.Trouble, match="silent for 60 s"):
        doctor.agent(environ)


def test_the_database_is_well_once_each_role_may_sign_in(environ: Environ) -> None:
    postgres = environment.embedded_postgres(environ)
    postgres.prepare()
    with server(postgres.command(), postgres.is_ready, signal.SIGINT):
        with pytest.raises(doctor.Trouble, match="does not let moorage_owner in"):
            doctor.database_roles(environ)
        bootstrap(postgres.admin_dsn, environment.DATABASE, environ["MOORAGE_SECRET_KEY"])
        assert doctor.database_roles(environ).startswith("PostgreSQL 18.")


def test_redis_is_well_only_when_it_is_the_one_that_money_was_lent_to(environ: Environ) -> None:
    redis = environment.embedded_redis(environ)
    redis.configure()
    with (
        server(redis.command(), redis.is_ready, signal.SIGINT),
        Client.from_url(environ["REDIS_GATEWAY_URL"], decode_responses=True) as client,
    ):
        client.set(wire.FLOAT_RUN, "the run of a server that was lost")
        with pytest.raises(doctor.Trouble, match="no money is lent to this Redis"):
            doctor.float_redis(environ)
        client.set(wire.FLOAT_RUN, client.info("server")["run_id"])
        assert doctor.float_redis(environ).endswith("floats are lent")
