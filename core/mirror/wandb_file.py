"""Reads the `.wandb` file of an offline run: what `mirror verify` and the tests hold against the store. wandb ships no reader.

The format: a header of 7 bytes (`:W&B`, a magic number, a version), then LevelDB log blocks of 32 KiB. Each chunk in a
block has a header of 7 bytes (masked CRC-32C, length, type: 1 whole, 2 first, 3 middle, 4 last) and a part of one
protobuf `Record`. The checksum is not looked at: a chunk that is cut short or out of order is an error all the same, and values
are compared with the store's.

The generated protobuf modules warn when imported, so wandb is imported here with its warnings caught.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import CoreError

HEADER_BYTES = 7
BLOCK_BYTES = 32 * 1024
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class WandbArtifact:
    """An artifact of a run: one that it made, or an input that it `uses`. `files` maps names to where their bytes lie."""

    name: str
    type: str
    digest: str
    metadata: dict[str, Any]
    aliases: list[str]
    uses: bool
    files: dict[str, str]


@dataclass
class WandbRun:
    """What W&B, or one `.wandb` file, holds of a run. `history` holds one dict a row, its keys as logged."""

    id: str = ""
    name: str = ""
    group: str = ""
    project: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    notes: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    step_metrics: dict[str, str] = field(default_factory=dict)
    artifacts: list[WandbArtifact] = field(default_factory=list)
    exit_code: int | None = None

    def curve(self, key: str) -> list[tuple[int, Any]]:
        """(step, value) of one metric."""
        return [(row["_step"], row[key]) for row in self.history if key in row]


def payloads(data: bytes) -> Iterator[bytes]:
    """The records' bytes, joined from their chunks. Raises CoreError(wandb_file)."""
    if data[:4] != b":W&B":
        raise _damaged(f"begins with {data[:8]!r}")
    at = HEADER_BYTES
    parts: bytes | None = None  # an open record may have no bytes yet: a first chunk of length 0 closes a block
    while at < len(data):
        left = BLOCK_BYTES - at % BLOCK_BYTES
        if left < HEADER_BYTES:
            at += left
            continue
        head = data[at : at + HEADER_BYTES].ljust(HEADER_BYTES, b"\0")  # of a file that ends within it: a kind that there is not
        size, kind = int.from_bytes(head[4:6], "little"), head[6]
        chunk = data[at + HEADER_BYTES : at + HEADER_BYTES + size]
        if len(chunk) != size or not WHOLE <= kind <= LAST:
            raise _damaged(f"is cut short or damaged at byte {at}")
        if (kind in (WHOLE, FIRST)) != (parts is None):
            raise _damaged(f"has a chunk out of order at byte {at}")
        at += HEADER_BYTES + size
        parts = (parts or b"") + chunk
        if kind in (WHOLE, LAST):
            yield parts
            parts = None
    if parts is not None:
        raise _damaged("ends within a record")


def _damaged(what: str) -> CoreError:
    return CoreError(
        f"The offline run's file {what}.",
        code="wandb_file",
        next="Delete the run's folder and send the run again (`mirror sync`).",
    )


def _key(item: Any) -> str:
    return ".".join(item.nested_key) if item.nested_key else item.key


def read_run(path: Path) -> WandbRun:
    """All of a run's file that stands in the store too. Raises CoreError(wandb_file) for one that is no whole file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pb: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    run = WandbRun()
    for payload in payloads(path.read_bytes()):
        record = pb.Record()
        record.ParseFromString(payload)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            said = record.run
            run.id, run.name, run.group = said.run_id, said.display_name, said.run_group
            run.project, run.job_type, run.tags, run.notes = said.project, said.job_type, list(said.tags), said.notes
            run.config |= {_key(item): json.loads(item.value_json) for item in said.config.update}
        elif kind == "config":
            run.config |= {_key(item): json.loads(item.value_json) for item in record.config.update}
        elif kind == "history":
            row = {_key(item): json.loads(item.value_json) for item in record.history.item}
            run.history.append({"_step": record.history.step.num, **row})
        elif kind == "summary":
            run.summary |= {_key(item): json.loads(item.value_json) for item in record.summary.update}
        elif kind == "metric":
            said = record.metric
            run.step_metrics[said.glob_name or said.name] = said.step_metric
        elif kind == "artifact":
            said = record.artifact
            files = {entry.path: entry.local_path for entry in said.manifest.contents}
            run.artifacts.append(
                WandbArtifact(
                    name=said.name,
                    type=said.type,
                    digest=said.digest,
                    metadata=json.loads(said.metadata or "{}"),
                    aliases=list(said.aliases),
                    uses=said.use_after_commit,
                    files=files,
                )
            )
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    if run.exit_code is None:  # a file may also be cut between two records
        raise _damaged("is cut short: it has no record of the run's end")
    return run


def run_files(folder: Path) -> list[Path]:
    """Every run's file under a mirror's folder; `latest-run` is a link to one of them and is not counted twice."""
    return sorted(folder.glob("**/offline-run-*/run-*.wandb"))
