"""How many usage events a second are rated and posted on two cores, against a bare COPY of the same rows.

Two meters pull a gateway boot each, as they do in production but for the HTTP call: pages of 4,000 records of
eight tenants become events, draws, entries, rated lines and leaves, every batch committed with fsync. The limit
copies the rows that a round left into tables of the same columns without an index, a key or a trigger, from two
connections as well. Rounds of both alternate on one server. After them the tables are filled up and ours is
measured again at each size, for as long as three minutes last; with MOORAGE_SOAK=1 up to ten million events,
which takes a quarter of an hour and 30 GB.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

import orjson  # noqa: E402  # needs the path set above
import psycopg  # noqa: E402

METERS, TENANTS, PAGE, PAGES = 2, 8, 4000, 2
ROUNDS, REPEATS = 5, 3
SOAK = "MOORAGE_SOAK" in os.environ
SIZES = (100_000, 300_000, 1_000_000, *((10_000_000,) if SOAK else ()))
BUDGET_S = 870.0 if SOAK else 170.0
MONEY = 10**18
TICKS = os.sysconf("SC_CLK_TCK")
GATEWAY = "gw-bench"
# Every row that a boot's events left; the key says which of them belong to it.
ROWS = {
    "usage_event": "SELECT t.* FROM usage_event t WHERE {these}",
    "rated_line": "SELECT t.* FROM rated_line t JOIN usage_event u USING (event_id) WHERE {these}",
    "receipt_leaf": "SELECT t.* FROM receipt_leaf t JOIN usage_event u USING (event_id) WHERE {these}",
}
# Filler looks like what ingest writes: ids in order of time, three rows beside each event.
MADE = """(lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - 86400000 + n), 12, '0') || '7'
  || substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 4, 15))::uuid"""
FILL = {
    "usage_event": """INSERT INTO usage_event ({columns}) SELECT {values}
      FROM generate_series(%(first)s::int, %(last)s::int) n, (SELECT * FROM usage_event LIMIT 1) one""",
    "rated_line": """INSERT INTO rated_line (event_id, meter, quantity, num_pico, den, amount, tx_id)
      SELECT {made}, meter, quantity, num_pico, den, amount, tx_id
      FROM generate_series(%(first)s::int, %(last)s::int) n, (SELECT meter, quantity, num_pico, den, amount, tx_id
        FROM rated_line WHERE event_id = (SELECT event_id FROM rated_line LIMIT 1)) l""",
    "receipt_leaf": """INSERT INTO receipt_leaf (tree_id, idx, event_id, body, hash)
      SELECT %(tree)s::uuid, n, {made}, body, hash FROM generate_series(%(first)s::int, %(last)s::int) n,
      (SELECT body, hash FROM receipt_leaf WHERE event_id IS NOT NULL LIMIT 1) l""",
}
# What differs from one event to the next; the rest is taken from one that was ingested.
OWN = {"event_id": MADE, "subject_id": "gen_random_uuid()", "boot_id": "%(boot)s::uuid", "journal_seq": "n"}


@dataclass(slots=True)
class Boot:
    """One meter's gateway boot: pages of journal records as JSON, numbered on from round to round."""

    gateway_id: str
    boot_id: UUID = field(default_factory=uuid4)
    head: int = 0
    pages: dict[int, bytes] = field(default_factory=dict)

    def get(self, path: str) -> Any:
        """What the gateway's internal listener answers."""
        if path == "/internal/journal":
            boot = {"boot_id": str(self.boot_id), "head": self.head, "closed": False}
            return {"gateway_id": self.gateway_id, "boots": [boot], "low": 0, "run_id": "bench"}
        first = int(parse_qs(urlsplit(path).query)["from"][0])
        return orjson.loads(self.pages.get(first, b'{"events": []}'))


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one side; CPU in microseconds, of both meters and their server processes."""

    events_per_s: float
    cpu_us: float


def main() -> None:
    deadline = time.monotonic() + BUDGET_S
    with tempfile.TemporaryDirectory(prefix="moorage-ingest-") as folder, database(Path(folder)) as admin:
        from tests.billing.harbour import harbour

        berths = [harbour(money=MONEY) for _ in range(TENANTS)]
        for berth in berths:
            berth.hold(MONEY // 2)
        for table in ROWS:
            admin.execute(f"CREATE TABLE plain_{table} (LIKE {table})")
            admin.execute(f"GRANT INSERT ON plain_{table} TO moorage_system")
        boots = [Boot(f"{GATEWAY}-{number}") for number in range(METERS)]
        ours: list[Sample] = []
        limit: list[Sample] = []
        with ProcessPoolExecutor(METERS, get_context("spawn"), connect) as pool:
            list(pool.map(abs, range(METERS)))
            journal(boots, berths)
            timed(pool, pull, boots)
            for number in range(ROUNDS):
                before = [boot.head for boot in boots]
                journal(boots, berths)
                ours.append(timed(pool, pull, boots))
                copies = [rows_of(admin, boot, since) for boot, since in zip(boots, before, strict=True)]
                limit.append(timed(pool, copy, copies))
                note(f"round {number + 1}: ours {ours[-1]}, copy {limit[-1]}")
            growth = list(grown(admin, pool, boots, berths, deadline))
    result = {
        "bench": "ingest",
        "machine": {"cores": os.cpu_count()},
        "ours": summary(ours),
        "limit": summary(limit),
        "peers": {},
        "ratio": {"vs_copy": round(summary(ours)["events_per_s"] / summary(limit)["events_per_s"], 3)},
        "growth": growth,
    }
    print(json.dumps(result))


@contextmanager
def database(folder: Path) -> Iterator["psycopg.Connection[Any]"]:
    """A server of our own, migrated; this process and its children are its system role from here on."""
    from tests.services import postgres_server

    with postgres_server(folder) as dsn:
        info = psycopg.conninfo.conninfo_to_dict(dsn)
        os.environ |= {
            "MOORAGE_SECRET_KEY": "bench",
            "DATABASE_URL": f"postgres://{info['host']}:{info['port']}/bench",
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "LOG_LEVEL": "WARNING",
        }
        from controlplane.database import bootstrap

        bootstrap(dsn, "bench", "bench")
        migrate = [sys.executable, str(ROOT / "manage.py"), "migrate", "--verbosity", "0"]
        subprocess.run(migrate, check=True, env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}"})
        connect()
        with psycopg.connect(dsn, dbname="bench", autocommit=True) as admin:
            yield admin


def connect() -> None:
    """This process's Django speaks to the server as the meter does."""
    os.environ["MOORAGE_ROLE"] = "system"
    import django

    django.setup()


def journal(boots: Iterable[Boot], berths: list[Any]) -> None:
    """The next pages of every boot: one record of each tenant in turn."""
    for boot in boots:
        boot.pages = {}
        for _ in range(PAGES):
            first, events = boot.head + 1, []
            for place in range(PAGE):
                boot.head += 1
                events.append({"seq": boot.head, "event": berths[place % TENANTS].event().to_json()})
            boot.pages[first] = orjson.dumps({"events": events})


def pull(boot: Boot) -> tuple[int, float]:
    """One meter's work: how many events it booked, and seconds of CPU."""
    from billing import meter

    before = cpu_s()
    done = meter.gateway_pull(boot)  # type: ignore[arg-type]  # answers as a gateway does, without the HTTP
    return done.booked, cpu_s() - before


def copy(rows: dict[str, bytes]) -> tuple[int, float]:
    """Copy rows into the plain tables in one transaction: how many events they are of, and seconds of CPU."""
    from django.db import connection, transaction

    before = cpu_s()
    with transaction.atomic(), connection.cursor() as cursor:
        for table, lines in rows.items():
            with cursor.copy(f"COPY plain_{table} FROM STDIN") as into:
                into.write(lines)
    return PAGE * PAGES, cpu_s() - before


def cpu_s() -> float:
    """CPU that this process and its server process have used."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        pid = cursor.fetchone()[0]
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return time.process_time() + sum(map(int, ticks)) / TICKS


def rows_of(admin: "psycopg.Connection[Any]", boot: Boot, since: int) -> dict[str, bytes]:
    """Table → the rows that this round's events left there, as COPY writes them."""
    found = {}
    for table, query in ROWS.items():
        alias = "t" if table == "usage_event" else "u"
        these = f"{alias}.boot_id = '{boot.boot_id}' AND {alias}.journal_seq > {since}"
        with admin.cursor() as cursor, cursor.copy(f"COPY ({query.format(these=these)}) TO STDOUT") as out:
            found[table] = b"".join(out)
    return found


def grown(
    admin: "psycopg.Connection[Any]", pool: ProcessPoolExecutor, boots: list[Boot], berths: list[Any], deadline: float
) -> Iterator[dict[str, int]]:
    """Fill the tables up step by step and measure ours at each size, as far as the time reaches."""
    there, fill_s = METERS * PAGE * PAGES * (ROUNDS + 1), 0.0
    for size in SIZES:
        missing = size - there
        if time.monotonic() + fill_s * missing > deadline:
            note(f"no time left to fill up to {size} events")
            return
        began = time.monotonic()
        with admin.transaction():
            admin.execute("SET LOCAL session_replication_role = replica")
            fill(admin, there + 1, size)
        # What the filling left to write is not ingest's work.
        admin.execute("VACUUM (ANALYZE) usage_event, rated_line, receipt_leaf")
        admin.execute("CHECKPOINT")
        fill_s = (time.monotonic() - began) / missing
        samples = []
        for _ in range(REPEATS):
            journal(boots, berths)
            samples.append(timed(pool, pull, boots))
        there = size + REPEATS * METERS * PAGE * PAGES
        yield {"events_before": size, **summary(samples), "bytes_per_event": bytes_of(admin) // there}
        note(f"at {size} events: {samples}")


def bytes_of(admin: "psycopg.Connection[Any]") -> int:
    """What the tables of events take on the disk, indexes included."""
    sizes = [f"pg_total_relation_size('{table}')" for table in ROWS]
    return int(next(iter(admin.execute(f"SELECT {' + '.join(sizes)}")))[0])


def fill(admin: "psycopg.Connection[Any]", first: int, last: int) -> None:
    """Events `first` to `last` with their lines and leaves, past triggers and foreign keys."""
    found = admin.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'usage_event'::regclass AND attnum > 0 AND NOT attisdropped"
    )
    columns = [name for (name,) in found]
    values = ", ".join(OWN.get(name, f"one.{name}") for name in columns)
    parameters = {"first": first, "last": last, "boot": uuid4(), "tree": uuid4()}
    for statement in FILL.values():
        admin.execute(statement.format(made=MADE, columns=", ".join(columns), values=values), parameters)


def timed(pool: ProcessPoolExecutor, work: Callable[[Any], tuple[int, float]], parts: list[Any]) -> Sample:
    """Both meters at once: events a second of wall clock, and CPU of each event."""
    began = time.monotonic()
    done = list(pool.map(work, parts))
    seconds = time.monotonic() - began
    events = sum(count for count, _ in done)
    assert events == METERS * PAGE * PAGES
    return Sample(events / seconds, sum(cpu for _, cpu in done) / events * 1e6)


def summary(samples: list[Sample]) -> dict[str, int]:
    """Medians of rounds, and how far they lie apart."""
    rates = sorted(sample.events_per_s for sample in samples)
    return {
        "events_per_s": round(statistics.median(rates)),
        "lowest": round(rates[0]),
        "highest": round(rates[-1]),
        "cpu_us_per_event": round(statistics.median(sample.cpu_us for sample in samples)),
    }


def note(line: str) -> None:
    """A line for people: standard output ends with the result."""
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
