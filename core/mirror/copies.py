"""Where the copies of a model's runs are, in words."""

from __future__ import annotations

from store import MirroredRow


def describe_copy(row: MirroredRow) -> str:
    """`W&B: https://wandb.ai/entity/offshoot/runs/j_0123`, or the folder of an offline run."""
    if url := row.progress.get("url"):
        return f"W&B: {url}"
    kind, _, place = row.target.partition(":")
    return f"W&B {place}: {row.remote}" if kind == "wandb-online" else f"offline run in {place}: {row.remote}"
