"""A W&B server of the tests' own on 127.0.0.1: what the mirror sends online arrives here, and can be made to go wrong.

It answers what wandb 0.31 asks on its way (GraphQL, file stream, uploads) and keeps what it was told, as W&B does: history lines by
their offset, one artifact a (collection, digest), a use as a run's edge to an artifact. `faults` are looked at before each request;
each sees (method, path, operation, variables) and returns what is to happen instead, or None.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

KEY = "0123456789" * 4
ENTITY = "somebody"


@dataclass(frozen=True)
class Fault:
    """What happens instead of an answer: `drop` closes the connection, `after` lets the request take effect first."""

    status: int | None = None
    message: str = "a fault of the test's"
    drop: bool = False
    after: bool = False
    delay_s: float = 0.0
    then: Callable[[], None] | None = None
    """Done once the request has taken effect, before the answer."""


@dataclass
class ServedRun:
    """A run as the server has it."""

    id: str
    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    notes: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    output: dict[int, str] = field(default_factory=dict)
    events: dict[int, dict[str, Any]] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    made: list[str] = field(default_factory=list)
    used: list[str] = field(default_factory=list)
    exit_code: int | None = None
    state: str = "running"
    is_preempting: bool = False

    def curve(self, key: str) -> list[tuple[int, Any]]:
        """(step, value) in the order of the lines."""
        lines = [self.history[offset] for offset in sorted(self.history)]
        return [(line["_step"], line[key]) for line in lines if key in line]


@dataclass
class ServedArtifact:
    """An artifact as the server has it; `files` are the names that its manifest lists."""

    id: str
    collection: str
    digest: str
    type: str
    metadata: dict[str, Any]
    aliases: list[str]
    version: int
    state: str = "PENDING"
    files: list[str] = field(default_factory=list)


FaultRule = Callable[[str, str, str, dict[str, Any]], Fault | None]


class WandbServer:
    """`with WandbServer() as server`: `server.url`, `server.runs`, `server.artifacts`, `server.faults`."""

    def __init__(self, key: str = KEY) -> None:
        self.key = key
        self.projects: set[str] = set()
        self.runs: dict[str, ServedRun] = {}
        self.artifacts: dict[str, ServedArtifact] = {}
        self.blobs: dict[str, bytes] = {}
        self.views: dict[str, dict[str, Any]] = {}
        self.deleted: set[str] = set()
        self.faults: list[FaultRule] = []
        self.asked: list[str] = []
        self.lock = threading.RLock()
        server = self

        class Handler(_Handler):
            wandb = server

        self._http = _Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> WandbServer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def run(self, run_id: str) -> ServedRun:
        return self.runs[run_id]

    def delete(self, run_id: str) -> None:
        """As a user does on the site: the run is gone and its id cannot be used again."""
        with self.lock:
            del self.runs[run_id]
            self.deleted.add(run_id)

    def model_edges(self) -> list[tuple[str, str]]:
        """(made, used) pairs of collection names, through the runs."""
        with self.lock:
            return [
                (self.artifacts[made].collection, self.artifacts[used].collection)
                for run in self.runs.values()
                for made in run.made
                for used in run.used
                if self.artifacts[made].type == "model"
            ]


def fail_times(count: int, fault: Fault, *, operation: str = "", path: str = "") -> FaultRule:
    """A rule that strikes the first `count` requests of an operation, or of paths that hold a word."""
    left = [count]

    def rule(_method: str, asked_path: str, asked: str, _variables: dict[str, Any]) -> Fault | None:
        if left[0] <= 0 or (operation and asked != operation) or path not in asked_path:
            return None
        left[0] -= 1
        return fault

    return rule


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_given: Any) -> None:
        """A client that goes away is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    wandb: WandbServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_parts: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def _serve(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        asked: dict[str, Any] = json.loads(body) if method == "POST" and self.path.startswith("/graphql") else {}
        operation = _operation(asked.get("query", ""))
        variables = asked.get("variables") or {}
        with self.wandb.lock:
            self.wandb.asked.append(operation or f"{method} {urlsplit(self.path).path}")
            fault = next((f for rule in self.wandb.faults if (f := rule(method, self.path, operation, variables))), None)
        if fault is not None and not fault.after:
            if self._strike(fault):
                return
        answer = self._answer(method, body, operation, asked.get("query", ""), variables)
        if fault is not None and fault.then is not None:
            fault.then()
        if fault is not None and fault.after and self._strike(fault):
            return
        self._reply(*answer)

    def _strike(self, fault: Fault) -> bool:
        """True where the fault was the whole answer."""
        time.sleep(fault.delay_s)
        if fault.drop:
            self.close_connection = True
            return True
        if fault.status is not None:
            self._reply(fault.status, {"error": fault.message, "errors": [{"message": fault.message}]})
            return True
        return False

    def _reply(self, status: int, payload: Any) -> None:
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _is_known(self) -> bool:
        given = self.headers.get("Authorization", "")
        if given.startswith("Basic "):
            return base64.b64decode(given[6:]).decode().partition(":")[2] == self.wandb.key
        return given == f"Bearer {self.wandb.key}"

    def _answer(self, method: str, body: bytes, operation: str, query: str, variables: dict[str, Any]) -> tuple[int, Any]:
        parts = urlsplit(self.path)
        with self.wandb.lock:
            if parts.path.startswith("/upload/"):
                self.wandb.blobs[parse_qs(parts.query)["name"][0]] = body
                return 200, {}
            if method == "GET" and parts.path.startswith("/file/"):
                return 200, self.wandb.blobs[parse_qs(parts.query)["name"][0]]
            if not self._is_known():
                return 401, {"errors": [{"message": "user is not logged in"}]}
            if parts.path.startswith("/files/") and parts.path.endswith("/file_stream"):
                return self._file_stream(parts.path.split("/")[-2], json.loads(body))
            if parts.path.startswith("/graphql"):
                answer = getattr(self, f"_on_{operation}", None)
                if answer is None:
                    return 200, {"data": _nothing(query)}
                found = answer(variables)
                return (200, found) if "errors" in found else (200, {"data": found})
            return 404, {"error": "not found"}

    # File stream ----------------------------------------------------------------------------------------------------------

    def _file_stream(self, run_id: str, said: dict[str, Any]) -> tuple[int, Any]:
        if run_id not in self.wandb.runs:
            return 404, {"error": "run not found"}
        run = self.wandb.runs[run_id]
        for name, chunk in (said.get("files") or {}).items():
            for number, line in enumerate(chunk["content"]):
                offset = chunk["offset"] + number
                if name == "wandb-history.jsonl":
                    run.history[offset] = json.loads(line)
                elif name == "wandb-events.jsonl":
                    run.events[offset] = json.loads(line)
                elif name == "wandb-summary.json":
                    run.summary = json.loads(line)
                elif name == "output.log":
                    run.output[offset] = line
        run.files |= set(said.get("uploaded") or [])
        run.is_preempting |= bool(said.get("preempting"))
        if said.get("complete"):
            run.exit_code = said.get("exitcode")
            run.state = "preempted" if run.is_preempting else "finished" if not run.exit_code else "failed"
        return 200, {"limits": {}}

    # GraphQL --------------------------------------------------------------------------------------------------------------

    def _on_Viewer(self, _v: dict[str, Any]) -> dict[str, Any]:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        return {"viewer": {"id": "u1", "entity": ENTITY, "username": ENTITY, "email": "", "admin": False, "flags": "{}",
                           "capabilities": "{}", "teams": teams}}  # fmt: skip

    def _on_GetDefaultEntity(self, _v: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "u1", "entity": ENTITY}}

    def _on_GetProjects(self, _v: dict[str, Any]) -> dict[str, Any]:
        node = {"__typename": "Project", "id": "p1", "name": "offshoot", "entityName": ENTITY, "createdAt": "2026-01-01T00:00:00Z",
                "isBenchmark": False, "user": None}  # fmt: skip
        page = {"__typename": "PageInfo", "endCursor": "", "hasNextPage": False}
        return {"models": {"totalCount": 1, "pageInfo": page, "edges": [{"cursor": "c", "node": node}]}}

    def _save_view(self, v: dict[str, Any]) -> dict[str, Any]:
        known = v.get("id") or f"view{len(self.wandb.views)}"
        self.wandb.views[known] = v
        view = {"id": known, "type": v["type"], "name": v["name"], "displayName": v["displayName"], "description": "",
                "project": {"id": "p1", "name": v["projectName"], "entityName": v["entityName"]}, "spec": v["spec"],
                "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z"}  # fmt: skip
        return {"upsertView": {"view": view, "inserted": not v.get("id")}}

    _on_UpsertView2 = _on_upsertView = _on_UpsertView = _save_view

    def _on_UpsertBucket(self, v: dict[str, Any]) -> dict[str, Any]:
        run_id = v["name"]
        if run_id in self.wandb.deleted:
            return {"errors": [{"message": f"run {run_id} was previously created and deleted; try a new run name (409)"}]}
        inserted = run_id not in self.wandb.runs
        run = self.wandb.runs.setdefault(run_id, ServedRun(run_id))
        self.wandb.projects.add(v.get("project") or "")
        run.name, run.group = v.get("displayName") or run.name, v.get("groupName") or run.group
        run.job_type, run.notes = v.get("jobType") or run.job_type, v.get("notes") or run.notes
        run.tags = v.get("tags") or run.tags
        run.state = "running"
        if v.get("config"):
            run.config = {key: item["value"] for key, item in json.loads(v["config"]).items()}
        if v.get("summaryMetrics"):
            run.summary = json.loads(v["summaryMetrics"])
        project = {"id": "p1", "name": v.get("project"), "entity": {"id": "e1", "name": v.get("entity") or ENTITY}}
        bucket = {"id": f"bucket-{run_id}", "name": run_id, "displayName": run.name, "description": None, "config": None,
                  "sweepName": None, "project": project, "historyLineCount": len(run.history)}  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _on_RunResumeStatus(self, v: dict[str, Any]) -> dict[str, Any]:
        run = self.wandb.runs.get(v["name"])
        if run is None:
            return {"model": {"id": "p1", "name": v["project"], "entity": {"id": "e1", "name": ENTITY}, "bucket": None}}
        run.is_preempting = False
        last = run.history[max(run.history)] if run.history else None
        config = {key: {"value": value} for key, value in run.config.items()}
        bucket = {
            "id": f"bucket-{run.id}", "name": run.id, "displayName": run.name, "tags": run.tags,
            "summaryMetrics": json.dumps(run.summary), "config": json.dumps(config), "wandbConfig": json.dumps({"t": 1}),
            "historyLineCount": len(run.history), "logLineCount": len(run.output), "eventsLineCount": len(run.events),
            "historyTail": json.dumps([json.dumps(last)] if last else []), "eventsTail": "[]",
        }  # fmt: skip
        return {"model": {"id": "p1", "name": v["project"], "entity": {"id": "e1", "name": ENTITY}, "bucket": bucket}}

    def _on_Run(self, v: dict[str, Any]) -> dict[str, Any]:
        run = self.wandb.runs.get(v["name"])
        if run is None:
            return {"project": None}
        last = run.history[max(run.history)]["_step"] if run.history else -1
        user = {"name": ENTITY, "username": ENTITY}
        return {"project": {"run": {
            "projectId": 1, "id": f"bucket-{run.id}", "name": run.id, "displayName": run.name, "tags": run.tags, "state": run.state,
            "config": json.dumps({key: {"value": value} for key, value in run.config.items()}), "group": run.group,
            "jobType": run.job_type, "commit": None, "readOnly": False, "createdAt": "2026-01-01T00:00:00", "sweepName": None,
            "heartbeatAt": "2026-01-01T00:00:00", "description": None, "notes": run.notes, "systemMetrics": "{}",
            "summaryMetrics": json.dumps(run.summary), "historyLineCount": len(run.history), "user": user,
            "historyKeys": {"lastStep": last},
        }}}  # fmt: skip

    def _on_RunHistoryKeys(self, v: dict[str, Any]) -> dict[str, Any]:
        run = self.wandb.runs[v["name"]]
        last = run.history[max(run.history)]["_step"] if run.history else -1
        return {"project": {"run": {"historyKeys": {"lastStep": last}}}}

    def _on_RunParquetHistory(self, v: dict[str, Any]) -> dict[str, Any]:
        rows = _live_rows(self.wandb.runs[v["runName"]])
        return {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": [{"_step": r["_step"]} for r in rows]}}}}

    def _on_HistoryPage(self, v: dict[str, Any]) -> dict[str, Any]:
        rows = [row for row in _live_rows(self.wandb.runs[v["run"]]) if v["minStep"] <= row["_step"] < v["maxStep"]]
        return {"project": {"run": {"history": [json.dumps(row) for row in rows[: v["pageSize"]]]}}}

    def _on_RunOutputArtifacts(self, v: dict[str, Any]) -> dict[str, Any]:
        return self._artifacts_of(self.wandb.runs[v["run"]].made)

    def _on_RunInputArtifacts(self, v: dict[str, Any]) -> dict[str, Any]:
        return self._artifacts_of(self.wandb.runs[v["run"]].used)

    def _artifacts_of(self, ids: list[str]) -> dict[str, Any]:
        edges = [{"cursor": ref, "node": self._artifact(self.wandb.artifacts[ref])} for ref in ids]
        found = {"totalCount": len(ids), "pageInfo": {"endCursor": "", "hasNextPage": False}, "edges": edges}
        return {"project": {"run": {"artifacts": found}}}

    def _on_RunStoppedStatus(self, _v: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"run": {"stopped": False}}}

    def _on_CreateArtifact(self, v: dict[str, Any]) -> dict[str, Any]:
        given = v.get("input") or v
        collection = given["artifactCollectionName"]
        known = next(
            (a for a in self.wandb.artifacts.values() if (a.collection, a.digest) == (collection, given["digest"])), None
        )
        if known is None:
            version = sum(a.collection == collection for a in self.wandb.artifacts.values())
            made = json.loads(given.get("metadata") or "{}")
            aliases = [alias["alias"] for alias in given.get("aliases") or []]
            known = ServedArtifact(
                f"artifact-{uuid.uuid4().hex[:8]}", collection, given["digest"], given["artifactTypeName"], made, aliases, version
            )
            self.wandb.artifacts[known.id] = known
            self.wandb.runs[given["runName"]].made.append(known.id)
        latest = {"id": known.id, "versionIndex": known.version} if known.state == "COMMITTED" else None
        return {"createArtifact": {"artifact": {
            "id": known.id, "state": known.state, "digest": known.digest, "artifactSequence": {"id": known.collection,
            "latestArtifact": latest}}}}  # fmt: skip

    def _on_ArtifactByID(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"artifact": self._artifact(self.wandb.artifacts[v["id"]])}

    def _artifact(self, known: ServedArtifact) -> dict[str, Any]:
        project = {"id": "p1", "internalId": "UHJvamVjdEludGVybmFsSWQ6MQ==", "name": "offshoot", "entity": {"name": ENTITY}}
        collection = {"__typename": "ArtifactSequence", "name": known.collection, "project": project}
        aliases = [
            {"__typename": "ArtifactAlias", "id": f"alias-{alias}", "alias": alias, "artifactCollection": collection}
            for alias in known.aliases
        ]
        return {
            "__typename": "Artifact", "id": known.id, "artifactSequence": collection, "versionIndex": known.version,
            "artifactType": {"name": known.type}, "description": None, "metadata": json.dumps(known.metadata),
            "ttlDurationSeconds": -2, "ttlIsInherited": False, "tags": [], "historyStep": None, "state": known.state,
            "size": 1, "digest": known.digest, "commitHash": "c", "fileCount": len(known.files),
            "createdAt": "2026-01-01T00:00:00Z", "updatedAt": None, "aliases": aliases,
        }  # fmt: skip

    def _on_UseArtifact(self, v: dict[str, Any]) -> dict[str, Any]:
        given = v.get("input") or v
        run = self.wandb.runs[given["runName"]]
        if given["artifactID"] not in run.used:
            run.used.append(given["artifactID"])
        known = self.wandb.artifacts[given["artifactID"]]
        return {"useArtifact": {"artifact": {"id": known.id, "digest": known.digest, "description": "", "state": known.state,
                "createdAt": "2026-01-01T00:00:00", "metadata": json.dumps(known.metadata)}}}  # fmt: skip

    def _on_CreateArtifactManifest(self, v: dict[str, Any]) -> dict[str, Any]:
        given = v.get("input") or v
        return self._manifest("createArtifactManifest", given["artifactID"])

    def _on_UpdateArtifactManifest(self, v: dict[str, Any]) -> dict[str, Any]:
        given = v.get("input") or v
        return self._manifest("updateArtifactManifest", str(given["artifactManifestID"]).removeprefix("manifest-"))

    def _manifest(self, field_name: str, artifact_id: str) -> dict[str, Any]:
        url = f"{self._base()}/upload/x?name=manifest-{artifact_id}"
        file = {"id": "f1", "name": "wandb_manifest.json", "displayName": "wandb_manifest.json", "uploadUrl": url,
                "uploadHeaders": []}  # fmt: skip
        return {field_name: {"artifactManifest": {"id": f"manifest-{artifact_id}", "file": file}}}

    def _on_CreateArtifactFiles(self, v: dict[str, Any]) -> dict[str, Any]:
        given = v.get("input") or v
        edges = []
        for spec in given["artifactFiles"]:
            artifact = self.wandb.artifacts[spec["artifactID"]]
            if spec["name"] not in artifact.files:
                artifact.files.append(spec["name"])
            url = f"{self._base()}/upload/x?name={artifact.id}/{spec['name']}"
            node = {"id": uuid.uuid4().hex, "name": spec["name"], "displayName": spec["name"], "uploadUrl": url,
                    "uploadHeaders": [], "storagePath": f"x/{artifact.id}/{spec['name']}", "uploadMultipartUrls": None,
                    "artifact": {"id": artifact.id}}  # fmt: skip
            edges.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _on_CommitArtifact(self, v: dict[str, Any]) -> dict[str, Any]:
        artifact = self.wandb.artifacts[(v.get("input") or v)["artifactID"]]
        artifact.state = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.digest}}}

    def _on_CreateRunFiles(self, v: dict[str, Any]) -> dict[str, Any]:
        given = v.get("input") or v
        names = given.get("files") or []
        run = given.get("run") or given.get("runName")
        files = [{"name": name, "uploadUrl": f"{self._base()}/upload/x?name={run}/{name}"} for name in names]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}

    def _base(self) -> str:
        return f"http://{self.headers['Host']}"


def _operation(query: str) -> str:
    found = re.search(r"(?:query|mutation)\s+(\w+)", query)
    return found.group(1) if found else ""


def _live_rows(run: ServedRun) -> list[dict[str, Any]]:
    """History as W&B gives it back: what JSON has no number for is a string."""
    rows = [run.history[offset] for offset in sorted(run.history)]
    return [
        {
            key: ("NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity")
            if isinstance(value, float) and not math.isfinite(value)
            else value
            for key, value in row.items()
        }
        for row in rows
    ]


def _nothing(query: str) -> dict[str, Any]:
    """An answer of nulls for a question that tells nothing of what is mirrored (features, server version)."""
    found = re.search(r"\{\s*(?:\w+\s*:\s*)?(\w+)", query)
    return {found.group(1): None} if found else {}
