"""The independent check of the bill: every engine's own token counters, read where its pods listen."""

import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import redis
from urllib3 import PoolManager
from urllib3.exceptions import HTTPError
from urllib3.util import Timeout

from billing.core.counters import GENERATION, PROMPT, CounterSample
from billing.counters import engine_counters_record
from kernel import wire
from kernel.clock import utcnow

log = logging.getLogger(__name__)
AT_ONCE = 16
MAX_BYTES = 4_000_000
# vLLM's names; it exports one series per engine core of a pod.
METERS = {"vllm:prompt_tokens_total": PROMPT, "vllm:generation_tokens_total": GENERATION}
_SERIES = re.compile(rf"^({'|'.join(METERS)})(?:\{{[^\n]*\}})? ([0-9.eE+]+)$", re.MULTILINE)
_http = PoolManager(timeout=Timeout(connect=2, read=3), retries=False, maxsize=AT_ONCE)


def engines_scrape(client: redis.Redis) -> int:
    """Record the counters of every pod that is published for the gateways; how many pods answered.

    A pod that does not answer leaves a gap in its samples and none in its counters: the next scrape goes on.
    """
    pods = list(_pods(client))
    with ThreadPoolExecutor(AT_ONCE) as readers:
        read = list(readers.map(_samples, pods))
    engine_counters_record(sample for samples in read for sample in samples)
    return sum(bool(samples) for samples in read)


def totals(exposition: str) -> dict[str, int]:
    """Meter → tokens in an engine's Prometheus text; a meter that it does not export is left out."""
    found: dict[str, int] = {}
    for name, value in _SERIES.findall(exposition):
        found[METERS[name]] = found.get(METERS[name], 0) + int(float(value))
    return found


def _pods(client: redis.Redis) -> Iterator[wire.PodRecord]:
    for name in client.scan_iter(match=wire.pods("*"), count=1000):
        yield from map(wire.load_pod, client.hvals(name))


def _samples(pod: wire.PodRecord) -> list[CounterSample]:
    at = utcnow()
    try:
        answer = _http.request("GET", f"http://{pod.address}/metrics", redirect=False, preload_content=False)
        text = answer.read(MAX_BYTES).decode() if answer.status == 200 else ""
        answer.release_conn()
    except (HTTPError, UnicodeDecodeError) as error:
        log.warning("no counters of pod %s: %s", pod.pod_uid, error)
        return []
    return [CounterSample(UUID(pod.pod_uid), meter, at, value) for meter, value in totals(text).items()]
