"""What a request and a chunk cost: ours with its meter and without, a bare relay as the limit, and other gateways.

Interleaved rounds in one run; CPU is utime + stime of all processes of a role, Redis included. `request`: whole
answers of 1 KB in an open loop, 500 a second. `busy_request`: the same as fast as 32 connections get them.
`chunk`: streams side by side, 100 chunks each, one per 20 ms, a hundredth of a request in every chunk. Added latency
is against the direct call: streams of ten chunks in an open loop at 50 a second, and the gaps of the streams side by
side. Last, ours, the relay and vllm-router with 10 and with 2,000 streams at the same 10,000 chunks a second: memory,
and what a chunk costs without its share of a request. `--quick` is for a look while working.

Bifrost, agentgateway and one-api do not come as packages and are not here; Portkey's streams fail on this
Node and count for whole answers alone.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from bench.gateway.install import PLACE, install  # noqa: E402  # needs the path set above
from bench.gateway.peers import MODEL, Peer, started  # noqa: E402

ROUNDS, QUICK_ROUNDS = 5, 2
REQUEST_S, QUICK_REQUEST_S = 1.5, 0.6
REQUEST_RPS = 500
STREAMS, CHUNKS, PACE_MS = 200, 100, 20
FIRST_RPS = 50
FEW, MANY = (10, "2000/1"), (2000, "100/200")  # streams, CHUNKS/PACE_MS: 10,000 chunks a second both times
CROWDED = ("ours", "limit", "vllm_router")
MAX_TOKENS = 2048
TICKS = os.sysconf("SC_CLK_TCK")
PROMPT = "Write a short text about the sea and about the mountains, please."

Sample = dict[str, float]


def main() -> None:
    quick = "--quick" in sys.argv
    install()
    with tempfile.TemporaryDirectory(prefix="moorage-bench-") as folder, started(Path(folder), quick=quick) as peers:
        for peer in peers:
            warm(peer)
        samples: dict[str, list[Sample]] = {peer.name: [] for peer in peers}
        for number in range(QUICK_ROUNDS if quick else ROUNDS):
            order = peers[number % len(peers) :] + peers[: number % len(peers)]
            for peer in order if number % 2 else reversed(order):
                samples[peer.name].append(measure(peer, quick=quick))
            print(f"round {number + 1}", file=sys.stderr)
        crowds = {p.name: [crowd(p, *size) for size in (FEW, MANY)] for p in peers if p.name in CROWDED}
    direct = summary(samples.pop("direct"), {})
    told = {name: summary(rounds, direct) for name, rounds in samples.items()}
    for name, (few, many) in crowds.items():
        told[name] |= crowded(few, many, told[name]["cpu_us_per_request"]["median"])
    for name, figures in told.items():
        print(name, json.dumps(figures), file=sys.stderr)
    ours, unmetered, limit = (told.pop(name) for name in ("ours", "unmetered", "limit"))
    result = {
        "bench": "gateway",
        "machine": {"cores": os.cpu_count(), "load": os.getloadavg()[1]},
        "ours": ours,
        "ours_unmetered": unmetered,
        "limit": limit,
        "peers": {"direct": direct, **told},
        "ratio": {"cpu_per_chunk_2000_vs_10": ours["chunk_2000_vs_10"]}
        | ratios(ours, {"unmetered": unmetered, "limit": limit, **told}),
    }
    print(json.dumps(result))


def warm(peer: Peer) -> None:
    """Connections, caches, compiled routes: not a part of any figure."""
    load(peer, stream="", c=max(2, int(32 * peer.share)), length_s=QUICK_REQUEST_S)
    if peer.streams:
        load(peer, stream=f"10/{PACE_MS}", c=max(2, int(STREAMS * peer.share)))


def measure(peer: Peer, *, quick: bool) -> Sample:
    """One slot of one round."""
    length = QUICK_REQUEST_S if quick else REQUEST_S
    before = cpu_s(peer)
    paced = load(peer, stream="", rps=REQUEST_RPS * peer.share, length_s=2 * length)
    between = cpu_s(peer)
    busy = load(peer, stream="", c=max(2, int(32 * peer.share)), length_s=length)
    sample = {
        "cpu_us_per_request": (between - before) / paced["requests"] * 1e6,
        "cpu_us_per_busy_request": (cpu_s(peer) - between) / busy["requests"] * 1e6,
        "requests_per_s": busy["requests"] / busy["seconds"],
    }
    if peer.streams:
        before = cpu_s(peer)
        streams = load(peer, stream=f"{CHUNKS}/{PACE_MS}", c=max(2, int(STREAMS * peer.share)))
        sample["cpu_us_per_chunk"] = (cpu_s(peer) - before) / streams["events"] * 1e6
        first = load(peer, stream=f"10/{PACE_MS}", rps=FIRST_RPS * min(1, peer.share * 4), length_s=length)
        for name, spread in (("first", first["first"]), ("gap", streams["gap"])):
            sample |= {f"{name}_{point}_ms": spread[point] for point in ("p50", "p99")}
    sample["rss_mib"] = rss_mib(peer)
    return sample


def crowd(peer: Peer, streams: int, stream: str) -> Sample:
    """The cost of a chunk among so many streams, and the most memory meanwhile."""
    before, most = cpu_s(peer), 0.0
    with ThreadPoolExecutor(1) as pool:
        loaded = pool.submit(load, peer, stream=stream, c=streams)
        while not loaded.done():
            most = max(most, rss_mib(peer))
            time.sleep(0.5)
    seen = loaded.result()
    us = (cpu_s(peer) - before) / seen["events"] * 1e6
    return {"cpu_us_per_chunk": us, "requests_per_chunk": seen["requests"] / seen["events"], "rss_mib": most}


def crowded(few: Sample, many: Sample, cpu_us_per_request: float) -> Sample:
    """What a chunk costs by itself among 10 and among 2,000 streams, by how much that differs, and the most memory."""
    own = [sample["cpu_us_per_chunk"] - sample["requests_per_chunk"] * cpu_us_per_request for sample in (few, many)]
    return {
        "cpu_us_per_chunk_10_streams": round(own[0], 2),
        "cpu_us_per_chunk_2000_streams": round(own[1], 2),
        "chunk_2000_vs_10": round(own[1] / own[0], 3),
        "rss_mb_2000_streams": round(many["rss_mib"] * 1.048576, 1),
    }


def load(peer: Peer, *, stream: str, c: int = 0, rps: float = 0, length_s: float = 0) -> dict[str, Any]:
    """What the load generator saw. AssertionError where anything failed."""
    body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": MAX_TOKENS}
    if stream:
        body |= {"stream": True, "user": stream}
    argv = [f"{PLACE}/bin/load", f"-addr=127.0.0.1:{peer.port}", f"-body={json.dumps(body, separators=(',', ':'))}"]
    argv += [f"-c={c}", f"-rps={rps}", f"-for={length_s}s", *(f"-H={header}" for header in peer.headers)]
    told: dict[str, Any] = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
    assert not told["failed"], f"{peer.name}: {told['failed']} failed: {told['failure']}"
    return told


def tree(peer: Peer) -> list[list[str]]:
    """/proc's stat fields from the third on, of every process of a peer; the second is a name."""
    stats = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            stats[int(path.parent.name)] = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
    pids = list(peer.pids)
    for pid in pids:  # grows while it is walked
        pids += [child for child, fields in stats.items() if int(fields[1]) == pid and child not in pids]
    return [stats[pid] for pid in pids if pid in stats]


def cpu_s(peer: Peer) -> float:
    """User and system time so far."""
    return sum(int(fields[11]) + int(fields[12]) for fields in tree(peer)) / TICKS


def rss_mib(peer: Peer) -> float:
    """Resident memory now."""
    return sum(int(fields[21]) for fields in tree(peer)) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def summary(rounds: list[Sample], direct: dict[str, Any]) -> dict[str, Any]:
    """Median and quartiles of each figure; `added_…` is the median above the direct call's."""
    told: dict[str, Any] = {}
    for name in rounds[0]:
        values = [sample[name] for sample in rounds]
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        told[name] = {"median": round(middle, 2), "iqr": [round(low, 2), round(high, 2)]}
        if name in direct and name.endswith("_ms"):
            told[f"added_{name}"] = round(middle - direct[name]["median"], 2)
    return told


def ratios(ours: dict[str, Any], others: dict[str, Any]) -> dict[str, float]:
    """Our cost by theirs: below 1 is cheaper."""
    return {
        f"{figure.replace('cpu_us', 'cpu')}_vs_{name}": round(ours[figure]["median"] / told[figure]["median"], 3)
        for name, told in others.items()
        for figure in ("cpu_us_per_request", "cpu_us_per_busy_request", "cpu_us_per_chunk")
        if figure in told
    }


if __name__ == "__main__":
    main()
