"""A branch of four jobs as the store holds it, for the mirror's tests; no key but the one that a test sets."""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import store.jobs as jobs
from core.specs import BenchmarkSpec, EvaluateSpec, ImportSpec, PruneSpec, RetrainSpec, Spec
from store import (
    JobRow,
    MetricWriter,
    NewImage,
    NewModel,
    NewScores,
    Store,
    open_store,
)

NUM_STEPS = 600
"""Enough for the largest run's file to span several blocks of 32 KiB."""
KEY = "0123456789" * 4
PROTOCOL = {"images_sha256": "abc", "num_images": 2, "image_size": 64, "dtype": "float32"}
ODD_VALUES = {3: math.nan, 4: math.inf, 5: -math.inf, 6: 5e-324, 7: 0.1 + 0.2, 8: -0.0, 9: 1e308}


def png(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, 255 - shade, 7)).save(out, format="PNG")
    return out.getvalue()


def new_model(store: Store, name: str, spec: Spec, kind: str, parents: tuple[str, ...] = (), **changes: Any) -> NewModel:
    weights = changes.pop("weights", f"weights of {name}".encode())
    fields: dict[str, Any] = {
        "name": name,
        "kind": kind,
        "family": "dcae",
        "config": {"widths": [16, 32], "latent_channels": 4},
        "layout": {"kept": {}},
        "spec": spec.identity_spec(),
        "parents": tuple(("parent", parent) for parent in parents),
        "weights_digest": hashlib.sha256(name.encode()).hexdigest(),
        "blob_digest": store.blobs.put_bytes(weights),
        "bytes": len(weights),
        "facts": {"parameters": 1000.0, "sparsity": 0.25},
    }
    return NewModel(**{**fields, **changes})


def start(store: Store, spec: Spec, parent: str | None = None, name: str | None = None) -> JobRow:
    jobs.submit(store, spec.operation, spec.model_dump(mode="json"), parent=parent, device="cpu", name=name)
    claimed = jobs.claim(store, "cpu", "test")
    assert claimed is not None
    return jobs.set_running(store, claimed, 4242, 1000.0)


def curve(step: int) -> dict[str, float]:
    values = {"loss": ODD_VALUES.get(step, 1.0 / step), "learning_rate": 1e-4 * math.cos(step / 100)}
    if step % 100 == 0:
        values["val_psnr_db"] = 20 + math.log(step)
    if step % 50 == 1:
        values |= {"system/process_cores": 1.5 + step / 1000, "system/gpu_memory_gib": 0.25}
    return values


def build_branch(store: Store, num_steps: int = 10) -> dict[str, JobRow]:
    """import -> prune -> retrain -> evaluate -> benchmark, as the demo's branch; returns the finished jobs."""
    done: dict[str, JobRow] = {}
    job = start(store, ImportSpec(source="tiny", random_seed=0), name="import")
    made = new_model(store, "dcae_tiny", ImportSpec(source="tiny", random_seed=0), "baseline")
    done["import"] = jobs.complete(store, job, model=made, result={"variant": "tiny", "notes": ["random weights"]})
    baseline = done["import"].model_id
    assert baseline is not None

    prune = PruneSpec(method="l2_structured", rate=0.5)
    job = start(store, prune, baseline, name="dcae_l2structured_0.50_20260214-153000")
    made = new_model(store, job.name, prune, "pruned", (baseline,))
    done["prune"] = jobs.complete(store, job, model=made, result={"achieved_rate": 0.48})
    pruned = done["prune"].model_id
    assert pruned is not None

    retrain = RetrainSpec(n_epochs=6, steps_per_epoch=100, warmup_epochs=0)
    job = start(store, retrain, pruned)
    with MetricWriter(store, job.id) as writer:
        for step in range(1, num_steps + 1):
            writer.log(step, curve(step))
    made = new_model(store, "dcae_retrained", retrain, "retrained", (pruned,), dataset_identity={"source": "sample:mspacman"})
    done["retrain"] = jobs.complete(store, job, model=made, result={"steps": num_steps, "best_value": 26.9})
    retrained = done["retrain"].model_id

    job = start(store, EvaluateSpec(), retrained)
    entry = NewScores(
        protocol=PROTOCOL,
        split="test",
        means={"psnr_db": 27.123456789, "foreground_psnr_db": None},
        per_image={"psnr_db": [27.0, 27.2]},
        row_ids=["a", "b"],
        images=[NewImage(0, png(10), "original"), NewImage(0, png(200)), NewImage(1, png(90), "original"), NewImage(1, png(40))],
    )
    done["evaluate"] = jobs.complete(store, job, scores=[entry])

    job = start(store, BenchmarkSpec(), retrained)
    rows = [{"model_id": retrained, "decode_ms": 3.5}, {"model_id": baseline, "decode_ms": 7.25}]
    measurement = {"device": "cpu", "dtype": "float32", "repeats": 5, "models": rows}
    done["benchmark"] = jobs.complete(store, job, measurements=[measurement])
    return done


def content(store: Store) -> list[Any]:
    """Every row of the store but the mirror's own memory."""
    tables = [name for (name,) in store.rows("SELECT name FROM sqlite_master WHERE type='table' ORDER BY name")]
    return [(name, store.rows(f'SELECT * FROM "{name}"')) for name in tables if name != "mirror"]


@pytest.fixture(autouse=True)
def no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("OFFSHOOT_MIRROR", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "home")
    yield opened
    opened.close()


def same(left: float, right: float) -> bool:
    return (math.isnan(left) and math.isnan(right)) or left == right


def one_job(store: Store) -> str:
    job = start(store, ImportSpec())
    jobs.complete(store, job, model=new_model(store, "base", ImportSpec(), "baseline"))
    return job.id
