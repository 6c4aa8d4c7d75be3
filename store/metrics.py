"""Training curves: one packed row a job and step, each step its own transaction, past the ORM.

A killed process loses no step whose `log` returned. A resumed job rewrites the steps after its checkpoint; rows of a
later attempt are never overwritten by a process of an earlier one.

`latest` holds the last value of each metric, for lists. It is written at every 16th step only, which halves the pages that a
step writes; who reads it looks at the few steps after it too, in the same statement, so nobody ever sees less than was logged.
"""

from __future__ import annotations

import json
import sqlite3
import struct
import threading
import time
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from sys import byteorder

from store.db import Store, connect, translate
from store.errors import StoreError

_UPSERT = (
    "INSERT INTO metric (job, step, attempt, key_set, time, packed) VALUES (?1, ?2, ?3, ?4, ?5, ?6)"
    " ON CONFLICT (job, step) DO UPDATE SET attempt=?3, key_set=?4, time=?5, packed=?6 WHERE attempt<=?3"
)
_LATEST = (
    "INSERT INTO latest (job, step, attempt, key_set, time, packed) VALUES (?1, ?2, ?3, ?4, ?5, ?6)"
    " ON CONFLICT (job) DO UPDATE SET step=?2, attempt=?3, key_set=?4, time=?5, packed=?6 WHERE attempt<=?3"
)
_LAST_VALUES = (
    "SELECT l.job AS job, l.step AS step, k.names, l.packed FROM latest l JOIN metric_key_set k ON k.id=l.key_set WHERE l.job IN ({jobs})"
    " UNION ALL SELECT m.job, m.step, k.names, m.packed FROM latest l JOIN metric m ON m.job=l.job AND m.step>l.step AND"
    " m.attempt>=l.attempt JOIN metric_key_set k ON k.id=m.key_set WHERE l.job IN ({jobs}) ORDER BY job, step"
)
LAG = 16
"""So many logged steps may lie after the row in `latest`."""


def pack(values: Sequence[float] | array[float]) -> bytes:
    """Little-endian float64."""
    return struct.pack(f"<{len(values)}d", *values)


def unpack(packed: bytes) -> array[float]:
    """The numbers of `pack`."""
    numbers = array("d")
    numbers.frombytes(packed)
    if byteorder == "big":
        numbers.byteswap()
    return numbers


class MetricWriter:
    """Writes one job's metrics on its own connection; safe from several threads of the job's process.

    `resume_from`: steps after this one, left by an earlier attempt, are dropped first.
    """

    def __init__(self, store: Store, job_id: str, attempt: int = 1, *, resume_from: int | None = None) -> None:
        self.job_id = job_id
        self.attempt = attempt
        self._path = store.path
        self._lock = threading.Lock()
        self._connection = connect(store.path, mode="rw")
        # Two look-ups a step, a fifth of its time: the job is looked for here, key sets are put in below, neither is ever deleted.
        self._connection.execute("PRAGMA foreign_keys=OFF")
        self._key_sets: dict[tuple[str, ...], int] = {}
        self._step: int | None = None
        self._row: dict[str, float] = {}
        self._latest: dict[str, float] = {}
        self._latest_keys = -1
        self._written: int | None = None
        self._behind = LAG
        if not self._connection.execute("SELECT 1 FROM job WHERE id=?", (job_id,)).fetchone():
            self._connection.close()
            raise StoreError(f"There is no job {job_id}.", code="unknown_job", given=job_id, legal="the id of a job")
        for _, _, names, packed in self._connection.execute(_LAST_VALUES.format(jobs="?1"), (job_id,)):
            self._latest.update(zip(json.loads(names), unpack(packed), strict=True))
        if resume_from is not None:
            self._connection.execute("DELETE FROM metric WHERE job=? AND step>? AND attempt<?", (job_id, resume_from, attempt))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record metrics at `step`; durable on return. A second call for a step adds to it.

        Raises StoreError(bad_value, disk_full, read_only, busy).
        """
        if not values:
            return
        try:
            with self._lock:
                self._log(int(step), values)
        except (TypeError, ValueError) as error:
            raise StoreError(
                f"A metric at step {step} is no number.", given=repr(dict(values)), legal="a step and numbers"
            ) from error
        except sqlite3.Error as error:
            known = translate(error, self._path)
            if known is None:
                raise
            raise known from error

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        numbers = dict(zip(values, map(float, values.values()), strict=True))
        forward = self._step is None or step > self._step
        if not forward:
            numbers = {**(self._row if step == self._step else self._stored(step)), **numbers}
        # Key sets first, in transactions of their own: a rolled-back id must not stay in the cache.
        key_set = self._key_set(tuple(numbers))
        row = (self.job_id, step, self.attempt, key_set, time.time(), pack([*numbers.values()]))
        last = step if self._step is None else max(step, self._step)
        latest = self._latest
        grown = not latest.keys() >= numbers.keys()
        # Readers look at the steps after the one in `latest`: what they would miss there is written at once.
        if grown or not forward or self._behind >= LAG:
            latest = {**latest, **numbers} if step == last else {**numbers, **latest}
            if grown or self._latest_keys < 0:
                self._latest_keys = self._key_set(tuple(latest))
            self._write_latest(last, latest, row)
            self._latest = latest
        else:
            # One statement is a transaction of its own; like BEGIN IMMEDIATE it asks for the write lock first.
            self._connection.execute(_UPSERT, row)
            self._behind += 1
            latest.update(numbers)
        if step == last:
            self._step, self._row = step, numbers

    def _write_latest(self, step: int, latest: Mapping[str, float], row: tuple[object, ...] | None = None) -> None:
        """The last values, as of `step`; in one transaction with `row`."""
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            if row is not None:
                execute(_UPSERT, row)
            execute(_LATEST, (self.job_id, step, self.attempt, self._latest_keys, time.time(), pack(list(latest.values()))))
            execute("COMMIT")
        except sqlite3.Error:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise
        self._written, self._behind = step, 1

    def _stored(self, step: int) -> dict[str, float]:
        row = self._connection.execute(
            "SELECT k.names, m.packed FROM metric m JOIN metric_key_set k ON k.id=m.key_set"
            " WHERE m.job=? AND m.step=? AND m.attempt=?",
            (self.job_id, step, self.attempt),
        ).fetchone()
        return {} if row is None else dict(zip(json.loads(row[0]), unpack(row[1]), strict=True))

    def _key_set(self, names: tuple[str, ...]) -> int:
        known = self._key_sets.get(names)
        if known is not None:
            return known
        if "step" in names or not all(isinstance(name, str) and name for name in names):
            raise StoreError("A metric cannot be called that.", given=list(names), legal="any text but “step”")
        text = json.dumps(names)
        self._connection.execute("INSERT OR IGNORE INTO metric_key_set (names) VALUES (?)", (text,))
        (number,) = self._connection.execute("SELECT id FROM metric_key_set WHERE names=?", (text,)).fetchone()
        self._key_sets[names] = number
        return int(number)

    def close(self) -> None:
        """Close the connection; all that was logged is durable already."""
        with self._lock:
            if self._step is not None and self._step != self._written:
                # A convenience for lists, which find the same without it: a full disk or a lock must not fail the job here.
                with suppress(sqlite3.Error):
                    self._write_latest(self._step, self._latest)
            self._connection.close()

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def keys(store: Store, job_id: str) -> list[str]:
    """Names of the metrics that a job has logged, in order of first appearance."""
    found = store.rows(
        "SELECT k.names FROM latest l JOIN metric_key_set k ON k.id=l.key_set WHERE l.job=?"
        " UNION ALL SELECT names FROM metric_key_set WHERE id IN (SELECT DISTINCT key_set FROM metric WHERE job=?)",
        (job_id, job_id),
    )
    return list(dict.fromkeys(name for (names,) in found for name in json.loads(names)))


def series(
    store: Store, job_id: str, key: str, *, max_points: int | None = None, after_step: int = -1
) -> tuple[list[int], list[float]]:
    """(steps, values) of one metric, by rising step; empty when never logged.

    With `max_points`, the lowest and highest of each stretch are kept (peaks stay visible), and the first and last
    point.
    """
    parts: list[tuple[int, bytes]] = []
    sets = store.rows(
        "SELECT id, names FROM metric_key_set WHERE id IN (SELECT DISTINCT key_set FROM metric WHERE job=?)", (job_id,)
    )
    sources = 0
    for key_set, names in sets:
        listed = json.loads(names)
        if key in listed:
            sources += 1
            parts += store.rows(
                "SELECT step, substr(packed, ?, 8) FROM metric WHERE job=? AND key_set=? AND step>? ORDER BY step",
                (8 * listed.index(key) + 1, job_id, key_set, after_step),
            )
    if sources > 1:
        parts.sort(key=lambda part: part[0])
    steps = [step for step, _ in parts]
    values = unpack(b"".join([packed for _, packed in parts])).tolist()
    if max_points is not None and len(steps) > max(max_points, 4):
        return _thin(steps, values, max(max_points, 4))
    return steps, values


def _thin(steps: list[int], values: list[float], max_points: int) -> tuple[list[int], list[float]]:
    last = len(steps) - 1
    buckets = (max_points - 2) // 2
    kept = {0, last}
    for bucket in range(buckets):
        low = 1 + bucket * (last - 1) // buckets
        high = 1 + (bucket + 1) * (last - 1) // buckets
        stretch = range(low, high)
        if stretch:
            kept.add(min(stretch, key=values.__getitem__))
            kept.add(max(stretch, key=values.__getitem__))
    order = sorted(kept)
    return [steps[index] for index in order], [values[index] for index in order]


def latest(store: Store, job_ids: Sequence[str]) -> dict[str, dict[str, float]]:
    """The last value of each metric of each job, with the last `step` beside them; jobs without any are left out."""
    found: dict[str, dict[str, float]] = {}
    names: dict[str, list[str]] = {}
    ids = list(job_ids)
    for start in range(0, len(ids), 500):
        part = ids[start : start + 500]
        marks = ",".join([f"?{number}" for number in range(1, len(part) + 1)])
        for job, step, text, packed in store.rows(_LAST_VALUES.format(jobs=marks), part):
            if text not in names:
                names[text] = json.loads(text)
            own = found.setdefault(job, {})
            own["step"] = step
            own.update(zip(names[text], unpack(packed), strict=True))
    return found
