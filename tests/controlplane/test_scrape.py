"""Engines' counters: read over HTTP where pods are published, kept as windows beside the bill."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import uuid4

import pytest
import redis

from billing.core.counters import GENERATION, PROMPT
from billing.models import EngineCounter
from controlplane.scrape import engines_scrape, totals
from kernel import wire
from tests.services import redis_server

# As vLLM 0.20 writes it, two engine cores in one pod.
EXPOSITION = """\
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="tiny"} 1.048576e+06
vllm:prompt_tokens_total{engine="1",model_name="tiny"} 24.0
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="tiny"} 512.0
vllm:generation_tokens_created{engine="0",model_name="tiny"} 1.7e+09
vllm:request_prompt_tokens_sum{engine="0",model_name="tiny"} 99.0
"""


class Engine(BaseHTTPRequestHandler):
    """Answers /metrics with what an engine exports."""

    def do_GET(self) -> None:
        status = 200 if self.path == "/metrics" else 404
        self.send_response(status)
        self.end_headers()
        self.wfile.write(EXPOSITION.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
        """Quiet."""


@pytest.fixture
def engine() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def projected(tmp_path: object) -> Iterator["redis.Redis"]:
    with redis_server(tmp_path) as server:  # type: ignore[arg-type]
        client = redis.Redis.from_url(server.url(0))
        yield client
        client.close()


def test_the_cores_of_a_pod_are_summed_and_other_series_are_not_counted() -> None:
    assert totals(EXPOSITION) == {PROMPT: 1_048_600, GENERATION: 512}
    assert totals("") == {}


def test_every_published_pod_is_read_and_a_silent_one_stops_no_other(
    database: None, projected: "redis.Redis", engine: str
) -> None:
    loud, silent = str(uuid4()), str(uuid4())
    for uid, address in ((loud, engine), (silent, "127.0.0.1:9")):
        record = wire.PodRecord(uid, address, wire.SERVING)
        projected.hset(wire.pods(str(uuid4())), uid, wire.dumps(record))
    assert engines_scrape(projected) == 1
    assert engines_scrape(projected) == 1
    kept = EngineCounter.objects.filter(pod_uid__in=(loud, silent)).order_by("meter")
    assert [(str(row.pod_uid), row.meter, row.value) for row in kept] == [
        (loud, GENERATION, 512),
        (loud, PROMPT, 1_048_600),
    ]
