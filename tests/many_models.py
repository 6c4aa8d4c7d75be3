"""A store with many models, as quickly as SQLite takes them: `python -m tests.many_models FOLDER [NUMBER]`.

Families of random shape (a few baselines, each with a tree under it), all with figures; the files are one blob of no consequence.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from dcaecore.layout import Layout
from dcaecore.zoo import VARIANTS
from store import Store, open_store, set_alias
from store.ancestry import NewModel, add_model_in
from store.db import execute
from store.scores import put_measurement_in, put_protocol

PROTOCOL = {"images_sha256": "many", "num_images": 64, "image_size": 128, "dtype": "float32", "source": "sample:mspacman"}
METHODS = ("l2_structured", "structured", "global_magnitude")


def fill(store: Store, number: int, *, seed: int = 0) -> list[str]:
    """Adds `number` models; returns their ids, oldest first."""
    draw = random.Random(seed)
    data = b"no weights, but a file"
    digest = store.blobs.put_bytes(data)
    config, layout = VARIANTS["tiny"].to_json(), Layout().to_json()
    made: list[str] = []
    sizes: list[float] = []
    with store.write() as session:
        protocol = put_protocol(session, PROTOCOL)
        for count in range(number):
            root = count < max(1, number // 1000)
            place = (
                0
                if root
                else draw.randrange(max(0, len(made) - 400), len(made))
                if draw.random() < 0.7
                else draw.randrange(len(made))
            )
            kind = "baseline" if root else draw.choice(("pruned", "retrained"))
            parameters = 250_000.0 if root else sizes[place] * (draw.uniform(0.6, 0.95) if kind == "pruned" else 1.0)
            spec = {"operation": {"baseline": "import", "pruned": "prune", "retrained": "retrain"}[kind], "seed": count}
            if kind == "pruned":
                spec["method"] = draw.choice(METHODS)
            facts = {"parameters": parameters, "nonzero_parameters": parameters, "sparsity": 0.0, "weight_bytes": parameters * 4,
                     "encode_macs": parameters * 90, "decode_macs": parameters * 180}  # fmt: skip
            model = NewModel(
                name=f"model {count:05d}", kind=kind, family="dcae", config=config, layout=layout, spec=spec,
                weights_digest=f"{count:064x}", blob_digest=digest, bytes=len(data),
                parents=() if root else (("parent", made[place]),), facts=facts,
            )  # fmt: skip
            made.append(add_model_in(store, session, model))
            sizes.append(parameters)
            values = {"psnr_db": 20 + parameters / 20_000 + draw.random(), "ssim": draw.random(), "loss": draw.random()}
            execute(
                session, "INSERT INTO score_set (model, protocol, split, row_ids, job_id, created) VALUES (?, ?, 'test', '[]', NULL, ?)",
                (made[-1], protocol, f"2026-01-01T00:00:{count:012d}"),
            )  # fmt: skip
            session.connection().exec_driver_sql(
                "INSERT INTO score (model, protocol, split, metric, value) VALUES (?, ?, 'test', ?, ?)",
                [(made[-1], protocol, metric, value) for metric, value in values.items()],
            )
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
