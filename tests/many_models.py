"""A store with many models, as quickly as SQLite takes them: `python -m tests.many_models FOLDER [NUMBER]`.

Families of random shape (a few baselines, each with a tree under it), all with figures; the files are one blob of no consequence.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from dcaecore.layout import Layout
from dcaecore.zoo import VARIANTS
from store import NewModel, Store, open_store, set_alias
from store.identity import canonical_bytes, model_identity, now
from store.references import need_blob
from store.scores import put_measurement_in, put_protocol

PROTOCOL = {"images_sha256": "many", "num_images": 64, "image_size": 128, "dtype": "float32", "source": "sample:mspacman"}
METHODS = ("l2_structured", "structured", "global_magnitude")


def fill(store: Store, number: int, *, seed: int = 0) -> list[str]:
    """Adds `number` models to an empty store; returns their ids, oldest first. A row at a time would take ten times as long."""
    draw = random.Random(seed)
    data = b"no weights, but a file"
    digest = store.blobs.put_bytes(data)
    config, layout = (canonical_bytes(part).decode() for part in (VARIANTS["tiny"].to_json(), Layout().to_json()))
    made: list[str] = []
    sizes: list[float] = []
    models, texts, edges, sets, scores = [], [], [], [], []
    for count in range(number):
        root = count < max(1, number // 1000)
        place = 0 if root else draw.randrange(max(0, count - 400) if draw.random() < 0.7 else 0, count)
        kind = "baseline" if root else draw.choice(("pruned", "retrained"))
        parameters = 250_000.0 if root else sizes[place] * (draw.uniform(0.6, 0.95) if kind == "pruned" else 1.0)
        spec = {"operation": {"baseline": "import", "pruned": "prune", "retrained": "retrain"}[kind], "seed": count}
        if kind == "pruned":
            spec["method"] = draw.choice(METHODS)
        facts = {"parameters": parameters, "nonzero_parameters": parameters, "sparsity": 0.0, "weight_bytes": parameters * 4,
                 "encode_macs": parameters * 90, "decode_macs": parameters * 180}  # fmt: skip
        parents = [] if root else [("parent", made[place])]
        weights = f"{count:064x}"
        own = model_identity(kind, "dcae", spec, parents, weights, None, spec_version=NewModel.spec_version)
        made.append(own.id)
        sizes.append(parameters)
        models.append(
            (own.id, own.digest, f"model {count:05d}", kind, "dcae", weights, digest, len(data), json.dumps(facts), now())
        )
        texts.append((own.id, own.canonical, canonical_bytes(spec).decode(), config, layout))
        edges += [(own.id, *pair) for pair in parents]
        sets.append((own.id, f"2026-01-01T00:00:{count:012d}"))
        values = {"psnr_db": 20 + parameters / 20_000 + draw.random(), "ssim": draw.random(), "loss": draw.random()}
        scores += [(own.id, metric, value) for metric, value in values.items()]
    with store.write() as session:
        protocol = put_protocol(session, PROTOCOL)
        need_blob(store, session, digest, "weights", "model", made[0], "weights", size=len(data))
        many = session.connection().exec_driver_sql
        many(
            "INSERT INTO model (id, digest, name, kind, family, weights_digest, blob_digest, bytes, facts, created, note)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '')",
            models,
        )
        many("INSERT INTO model_text (model, canonical, spec, config, layout) VALUES (?, ?, ?, ?, ?)", texts)
        many("INSERT INTO edge (child, role, parent) VALUES (?, ?, ?)", edges)
        many(
            f"INSERT OR IGNORE INTO artifact_reference (digest, owner_kind, owner, role) VALUES ('{digest}', 'model', ?, 'weights')",
            [(ref,) for ref in made],
        )
        many(
            f"INSERT INTO score_set (model, protocol, split, row_ids, job_id, created) VALUES (?, '{protocol}', 'test', '[]', NULL, ?)",
            sets,
        )
        many(f"INSERT INTO score (model, protocol, split, metric, value) VALUES (?, '{protocol}', 'test', ?, ?)", scores)
        settings = {"image_size": 128, "batch_size": 1, "threads": 2, "repeats": 20}
        for start in range(0, number, 20):
            rows = [
                {"model_id": made[at], "decode_ms": sizes[at] / 20_000, "encode_ms": sizes[at] / 40_000}
                for at in range(start, min(start + 20, number))
            ]
            put_measurement_in(session, {"device": "cpu", "dtype": "float32", **settings, "models": rows})
    set_alias(store, "current", made[number // 2])
    return made


def main() -> None:
    store = open_store(Path(sys.argv[1]))
    fill(store, int(sys.argv[2]) if len(sys.argv) > 2 else 10_000)
    store.close()


if __name__ == "__main__":
    main()
