"""Asks the sender for a comparison report and a workspace view: files beside the offline runs, saved to W&B where it can be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.errors import CoreError
from core.mirror.modes import check_folder, resolve_target
from core.mirror.process import SenderProcess
from store import Store, digest_of, get_model, mirrored, set_mirrored

VIEW_LIMIT_S = 120.0
FOLDER_NAME = "views"


@dataclass(frozen=True)
class ViewsReport:
    """`files` hold the report and the view as W&B stores them; `urls` are where they were saved, empty where they were not."""

    target: str
    files: dict[str, str]
    urls: dict[str, str]
    message: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def show_models(
    store: Store,
    refs: Sequence[str],
    mode: str,
    folder: Path | str | None = None,
    *,
    project: str = "offshoot",
    limit_s: float = VIEW_LIMIT_S,
) -> ViewsReport:
    """Writes the report and the view of some models; saving the same comparison again replaces it.

    Raises StoreError for an unknown model, CoreError as `sync` does, and with W&B's own reason where saving fails.
    """
    models = list(dict.fromkeys(get_model(store, ref).id for ref in refs))
    if not models:
        raise CoreError("There is no model to compare.", code="no_models", given=[], legal="one model or more")
    target = resolve_target(store, mode, folder, project)
    if target.problem is not None:
        raise target.problem
    check_folder(target.folder)
    subjects = {"report": f"view:report:{digest_of({'models': sorted(models)})[:16]}", "workspace": "view:workspace"}
    rows = mirrored(store, target.name)
    known = {kind: rows[subject].progress for kind, subject in subjects.items() if subject in rows}
    with SenderProcess(store, target, limit_s) as sender:
        answer = sender.ask({"job": "views", "show": models, "known": known})
    if not answer["ok"]:
        raise CoreError(**answer["error"])
    place = target.folder / FOLDER_NAME
    place.mkdir(exist_ok=True)
    files, urls = {}, {}
    for kind, subject in subjects.items():
        path = place / f"{subject.replace(':', '-')}.json"
        path.write_text(json.dumps(answer["sent"]["specs"][kind], indent=1))
        files[kind] = str(path)
        saved = answer["sent"]["saved"].get(kind)
        if saved is not None:
            set_mirrored(store, target.name, subject, saved["url"], {"state": "view", **saved})
            urls[kind] = saved["url"]
    message = "Saved to W&B." if urls else f"Not saved to W&B: {target.why}"
    return ViewsReport(target.name, files, urls, message)
