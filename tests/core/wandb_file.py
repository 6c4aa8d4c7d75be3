"""Reads the `.wandb` file of an offline run: the independent witness of what the mirror wrote.

The format: a header of 7 bytes (`:W&B`, a magic number, a version), then LevelDB log blocks of 32 KiB. Each chunk in a
block has a header of 7 bytes (masked CRC-32C, length, type: 1 whole, 2 first, 3 middle, 4 last) and a part of one
protobuf `Record`. The checksum is not looked at: a chunk that is cut short or out of order is an error all the same.

The generated protobuf modules warn when imported, so wandb is imported here with its warnings caught.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEADER_BYTES = 7
BLOCK_BYTES = 32 * 1024
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class WandbArtifact:
    """An artifact record: `output` of the run, or an input that it `uses`."""

    name: str
    type: str
    digest: str
    metadata: dict[str, Any]
    aliases: list[str]
    uses: bool
    files: dict[str, str]


@dataclass
class WandbRun:
    """What one `.wandb` file says. `history` holds one dict a row, its keys as logged."""

    id: str = ""
    name: str = ""
    group: str = ""
    project: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
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
    """The records' bytes, joined from their chunks."""
    assert data[:4] == b":W&B", f"not a .wandb file: {data[:8]!r}"
    at = HEADER_BYTES
    parts: bytes | None = None  # an open record may have no bytes yet: a first chunk of length 0 closes a block
    while at < len(data):
        left = BLOCK_BYTES - at % BLOCK_BYTES
        if left < HEADER_BYTES:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        chunk = data[at + HEADER_BYTES : at + HEADER_BYTES + size]
        assert len(chunk) == size and WHOLE <= kind <= LAST, f"the file is cut short or damaged at byte {at}"
        assert (kind in (WHOLE, FIRST)) == (parts is None), f"a chunk out of order at byte {at}"
        at += HEADER_BYTES + size
        parts = (parts or b"") + chunk
        if kind in (WHOLE, LAST):
            yield parts
            parts = None
    assert parts is None, "the last record is incomplete"


def _key(item: Any) -> str:
    return ".".join(item.nested_key) if item.nested_key else item.key


def read_run(path: Path) -> WandbRun:
    """Everything that a test compares."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from wandb.proto import wandb_internal_pb2 as pb
    run = WandbRun()
    for payload in payloads(path.read_bytes()):
        record = pb.Record()
        record.ParseFromString(payload)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            said = record.run
            run.id, run.name, run.group = said.run_id, said.display_name, said.run_group
            run.project, run.job_type, run.tags = said.project, said.job_type, list(said.tags)
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
    return run


def run_files(folder: Path) -> list[Path]:
    """Every run's file under a mirror's folder; `latest-run` is a link to one of them and is not counted twice."""
    return sorted(folder.glob("**/offline-run-*/run-*.wandb"))
