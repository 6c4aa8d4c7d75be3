"""The sender seen from the mirror: its environment, its time limit, its end."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.mirror.modes import Target
from store import Store

ROOT = Path(__file__).resolve().parents[2]
LOG_NAME = "mirror.log"
SLOWEST_BYTES_PER_S = 250_000
"""A line slower than this counts as broken."""
_PASSED_ON = (
    "WANDB_API_KEY",
    "WANDB_IDENTITY_TOKEN_FILE",
    "WANDB_CREDENTIALS_FILE",
    "WANDB_BASE_URL",
    "WANDB_ENTITY",
    "WANDB_CONFIG_DIR",
    "WANDB_X_EXTRA_HTTP_HEADERS",
)
"""W&B variables that the user may mean for the mirror. Others (a sweep, a run id, `disabled`) would bend the replay."""


def sender_environment(target: Target) -> dict[str, str]:
    """The sender's environment: wandb's files within the mirror's folder, and no key where nothing is to leave."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    if target.sends == "online":
        kept |= {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    else:
        kept["WANDB_CONFIG_DIR"] = str(target.folder / "config")
    return {
        **kept,
        "WANDB_MODE": target.sends or "disabled",
        "WANDB_DIR": str(target.folder),
        "WANDB_DATA_DIR": str(target.folder / "data"),
        "WANDB_CACHE_DIR": str(target.folder / "cache"),
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        # wandb's generated modules warn on import; what matters of its warnings is in its own log.
        "PYTHONWARNINGS": "ignore",
    }


class SenderProcess:
    """A sender that is asked for one run at a time, and ended when an answer takes too long."""

    def __init__(self, store: Store, target: Target, run_limit_s: float) -> None:
        self.is_gone = False
        self._limit_s = run_limit_s
        self._log = target.folder / LOG_NAME
        self._answers: queue.Queue[str | None] = queue.Queue()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "core.mirror.sender"],
                cwd=target.folder,
                env=sender_environment(target),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        where = {
            "home": str(store.root),
            "folder": str(target.folder),
            "mode": target.sends,
            "project": target.project,
            "init_limit_s": min(60.0, run_limit_s / 4),
        }
        self._tell(where)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _tell(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died: the missing answer says so, with the end of its log

    def ask(self, request: Mapping[str, Any], *, num_bytes: int = 0) -> dict[str, Any]:
        """The sender's answer, or an error in its place when it dies or takes longer than a run may.

        `num_bytes` of weights go with the run: they have their own time, at `SLOWEST_BYTES_PER_S`.
        """
        job_id, limit_s = str(request["job"]), self._limit_s + num_bytes / SLOWEST_BYTES_PER_S
        self._tell(dict(request))
        try:
            line = self._answers.get(timeout=limit_s)
        except queue.Empty:
            self._end()
            return self._failure(job_id, "mirror_timeout", f"W&B took longer than {limit_s:g} s for one run.")
        if line is None:
            self._end()
            said = self._log.read_text(errors="replace").strip().splitlines()
            last = said[-1] if said else "it left no word"
            return self._failure(job_id, "mirror_failed", f"The mirror's process ended: {last}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def kill(self) -> None:
        """Ends the sender at once, whatever it has in hand: W&B is asked where its runs stand before they go on."""
        if not self.is_gone:
            self._end()

    def _failure(self, job_id: str, code: str, message: str) -> dict[str, Any]:
        next_step = f"Nothing is lost: the run waits in the store. Look at {self._log}, then sync again."
        return {"ok": False, "error": {"code": code, "message": message, "given": job_id, "legal": None, "next": next_step}}

    def _end(self) -> None:
        self.is_gone = True
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()

    def __enter__(self) -> SenderProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the sender; what it has in hand may be finished first."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._end()
        self._reader.join(timeout=5)
        self._process.stdout.close()
