"""Objects as files: one JSON file per object, replaced by rename, under one lock and one rising version.

    ROOT/objects/KIND.NAMESPACE.NAME.json   an object; metadata.resourceVersion is the version of its last write
    ROOT/gone/VERSION.json                  an object that was removed at that version (the last 512 of them)
    ROOT/version                            the version of the last write

Any number of processes may read and write; a reader sees one version whole.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from k8s.cluster import Change, Object, Ref

_GONE_KEPT = 512


class BrokenFileError(Exception):
    """A file under ROOT is not the JSON that it should be; the message names it."""


class Transaction:
    """One writer's turn. `items` is the present; `put` and `drop` change it and the files at once."""

    def __init__(self, store: "Store", items: dict[Ref, Object], version: int) -> None:
        self.items = items
        self.version = version
        self._store = store

    def put(self, item: Object) -> None:
        """Write an object; it is stored with the next resourceVersion."""
        self.version += 1
        meta = {**item["metadata"], "resourceVersion": str(self.version)}
        ref = Ref.of(item)
        stored = {**item, "metadata": meta}
        self._store.write_object(ref, stored)
        self.items[ref] = stored

    def drop(self, ref: Ref) -> None:
        """Remove an object; absent ones are fine."""
        item = self.items.get(ref)
        if item is None:
            return
        self.version += 1
        self._store.write_gone(self.version, item)
        self._store.remove_object(ref)
        del self.items[ref]


class Store:
    """The files of one ROOT. OSError where the disk refuses, BrokenFileError where a file makes no sense.

    Objects that come out are shared with the cache: copy before you change one.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._objects = root / "objects"
        self._gone = root / "gone"
        self._version = root / "version"
        self._lock = root / "write.lock"
        self._cache: dict[str, tuple[tuple[int, int, int], Object]] = {}
        for folder in (self._objects, self._gone):
            folder.mkdir(parents=True, exist_ok=True)

    def version(self) -> int:
        """The version of the last write, 0 before the first."""
        try:
            return int(self._version.read_text())
        except FileNotFoundError:
            return 0
        except ValueError as error:
            raise BrokenFileError(f"{self._version} holds no number: remove it") from error

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """The only way to write. Readers learn of it at the end, by the version."""
        with self._locked(fcntl.LOCK_EX):
            before = self.version()
            turn = Transaction(self, self._load(), before)
            try:
                yield turn
            finally:
                if turn.version != before:
                    _replace(self._version, str(turn.version).encode())

    def snapshot(self) -> tuple[dict[Ref, Object], int]:
        """All objects and the version at which they are so."""
        with self._locked(fcntl.LOCK_SH):
            return self._load(), self.version()

    def since(self, version: int) -> list[Change] | None:
        """What was written or removed after `version`, oldest first; None where that is no longer known."""
        with self._locked(fcntl.LOCK_SH):
            gone = sorted(int(path.stem) for path in self._gone.glob("*.json"))
            forgotten = len(gone) >= _GONE_KEPT and version < gone[0]
            if forgotten or version > self.version():
                return None
            changes = [
                Change(item, gone=False, version=item["metadata"]["resourceVersion"])
                for item in self._load().values()
                if int(item["metadata"]["resourceVersion"]) > version
            ]
            changes += [
                Change(_read(self._gone / f"{number}.json"), gone=True, version=str(number))
                for number in gone
                if number > version
            ]
        return sorted(changes, key=lambda change: int(change.version))

    def write_object(self, ref: Ref, item: Object) -> None:
        """Put an object's file in place. For Transaction alone."""
        _replace(self._objects / _file_name(ref), json.dumps(item, indent=1).encode())

    def remove_object(self, ref: Ref) -> None:
        """Take an object's file away. For Transaction alone."""
        (self._objects / _file_name(ref)).unlink(missing_ok=True)

    def write_gone(self, version: int, item: Object) -> None:
        """Remember what was removed, and forget the oldest. For Transaction alone."""
        _replace(self._gone / f"{version}.json", json.dumps(item).encode())
        numbers = sorted(int(path.stem) for path in self._gone.glob("*.json"))
        for number in numbers[:-_GONE_KEPT]:
            (self._gone / f"{number}.json").unlink(missing_ok=True)

    @contextmanager
    def _locked(self, mode: int) -> Iterator[None]:
        with self._lock.open("ab") as file:
            fcntl.flock(file, mode)
            yield

    def _load(self) -> dict[Ref, Object]:
        """Every object; a file is read again only when it was replaced."""
        fresh: dict[str, tuple[tuple[int, int, int], Object]] = {}
        with os.scandir(self._objects) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                stat = entry.stat()
                stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
                known = self._cache.get(entry.name)
                fresh[entry.name] = known if known and known[0] == stamp else (stamp, _read(Path(entry.path)))
        self._cache = fresh
        return {Ref.of(item): item for _, item in fresh.values()}


def _file_name(ref: Ref) -> str:
    return f"{ref.kind}.{ref.namespace}.{ref.name}.json"


def _read(path: Path) -> Object:
    try:
        item: Object = json.loads(path.read_bytes())
    except ValueError as error:
        raise BrokenFileError(f"{path} is not JSON: restore or remove it") from error
    return item


def _replace(path: Path, content: bytes) -> None:
    """Whole or not at all, also after a power cut."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
