"""The figures of a report for programs: CSV with a row a model, JSON with everything."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from core.compare import METRICS
from core.quality import verdict
from core.report.content import AXES, Findings

REPORT_VERSION = 1


def to_csv(found: Findings) -> bytes:
    """A row a model; plain numbers in the units of the columns' names, empty where there is none. UTF-8.

    A name or note that begins like a formula is quoted, so that no spreadsheet computes it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = [key for key in METRICS if any(found.comparison.figures[m.id][key].value is not None for m in found.comparison.models)]
    judged = [key for key in keys if METRICS[key].source == "scores"]
    header = ["id", "name", "kind", "parent", "created", *keys, *(f"{key}_change_ratio" for key in keys)]
    for key in judged:
        header += [f"{key}_low", f"{key}_high", f"{key}_difference", f"{key}_p", f"{key}_effect_size", f"{key}_verdict"]
    writer.writerow(header)
    for model in found.comparison.models:
        figures = found.comparison.figures[model.id]
        row: list[Any] = [model.id, _safe(model.name), model.kind, model.parent_id or "", model.created]
        row += [figures[key].value for key in keys] + [figures[key].against_baseline for key in keys]
        for key in judged:
            own = found.quality.intervals.get(model.id, {}).get(key)
            away = found.quality.differences.get(model.id, {}).get(key)
            row += [None, None] if own is None else [own.low, own.high]
            row += [None] * 4 if away is None else [away.mean, away.p_value, away.effect_size, verdict(METRICS[key], away)]
        writer.writerow(["" if value is None else value for value in row])
    return text.getvalue().encode()


def _safe(text: str) -> str:
    return f"'{text}" if text[:1] in "=+-@" else text


def to_json(found: Findings, date: str) -> bytes:
    """Everything that the report says, as one sorted object; `date` is the only field that is not of the store."""
    models = [
        {"id": m.id, "name": m.name, "kind": m.kind, "parents": [list(p) for p in m.parents], "created": m.created, "job": m.job_id,
         "weights_digest": m.weights_digest, "tags": list(m.tags), "note": m.note, "spec": m.spec, "facts": m.facts}
        for m in found.comparison.models
    ]  # fmt: skip
    content = {
        "version": REPORT_VERSION,
        "title": found.title,
        "date": date,
        "models": models,
        "comparison": found.comparison.to_json(),
        "quality": found.quality.to_json(),
        "front": {
            "over": list(AXES),
            "best": list(found.front.best),
            "beaten_by": dict(found.front.beaten_by),
            "left_out": list(found.front.left_out),
        },
    }
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
