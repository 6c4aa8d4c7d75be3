"""The solver's predictions beside what is measured: plans that the latency table was not fitted on, and prunings for targets."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.fresh import service
from benchmarks.results import machine, table, write_section
from core.model_manager import ModelManager
from core.planning import Proposal
from core.solver.search import CostName
from core.stored_weights import StoredWeights
from store.scores import measurements

BATCH = 8
TARGETS: tuple[tuple[CostName, float], ...] = (
    ("decode_ms", 0.5), ("decode_ms", 0.9), ("decode_macs", 0.9), ("parameters", 0.6), ("weight_bytes", 0.8),
)  # fmt: skip
"""A cost, and how far towards the least that can be reached."""
LOSSES_DB = (1.0, 3.0)
EXACT = ("parameters", "decode_macs", "encode_macs")
CHECKED = 12


def main() -> None:
    """Sensitivity and latency of the demo model's decoder, each target's pruning, then one evaluation and benchmark of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, help="Where the store stays; else it goes with the run.")
    with service(parser.parse_args().home) as manager:
        dense = manager.initialize_model("demo", name="demo").id
        how = {"method": "structured", "score": "obs", "part": "decoder", "kinds": ["mid", "hidden", "heads"]}
        manager.wait(manager.measure_sensitivity(dense, {"prune": how}).id)
        profiles = {}
        for streams in (True, False):
            spec = {"part": "decoder", "batch_size": BATCH, "streams": streams, "check_models": CHECKED}
            manager.wait(manager.profile_latency(dense, spec).id)
            found = manager.latency(dense)
            assert found is not None
            profiles["with residual streams" if streams else "inner widths"] = found
        asked: dict[str, Proposal] = {}
        for cost, way in TARGETS:
            least, now = manager.reach(dense, cost)
            target = now - way * (now - least)
            asked[f"{cost} at most {target / now:.1%}"] = manager.propose(dense, cost=cost, at_most=target)
        for loss in LOSSES_DB:
            asked[f"lose at most {loss:g} dB"] = manager.propose(dense, cost="decode_ms", loss_db=loss)
        made = {title: _made(manager, dense, proposal) for title, proposal in asked.items()}
        manager.wait(manager.benchmark_models([dense, *made.values()], {"batch_size": BATCH, "repeats": 20}).id)
        rows = [_row(manager, dense, title, proposal, made[title]) for title, proposal in asked.items()]
    errors = []
    for title, profile in profiles.items():
        off = sorted(abs(check["predicted_ms"] / check["measured_ms"] - 1) for check in profile.checks)
        errors.append([title, str(len(off)), f"{profile.error('decoder'):.1%}", f"{off[-1]:.1%}"])
    write_section(
        "The solver: predicted and achieved",
        [
            f"`.venv/bin/python -m benchmarks.solver` on {machine()}. Demo model's decoder, 128 px, batch {BATCH}, float32.",
            "",
            "Latency of plans that the table was not fitted on (a profile's own check: widths at random, whole models, interleaved):",
            "",
            *table(["widths varied", "plans", "mean error", "largest"], errors),
            "",
            "Targets: predicted -> achieved. Parameters, MACs and the bytes of all tensors are exact, or this benchmark fails. "
            "PSNR is predicted in one "
            "shot from 32 validation images and achieved on 64 test images, as a change; nothing was retrained. Milliseconds are "
            "those of the profile and of one interleaved benchmark, each against its own dense model.",
            "",
            *table(["target", "parameters", "decode MACs", "decode ms of dense", "PSNR"], rows),
        ],
    )


def _made(manager: ModelManager, dense: str, proposal: Proposal) -> str:
    """The pruned and evaluated model."""
    job = manager.wait(manager.prune_model(dense, proposal.spec).id)
    assert job.model_id is not None, job.error
    for ref in (dense, job.model_id):
        manager.wait(manager.evaluate_model(ref).id)
    return job.model_id


def _row(manager: ModelManager, dense: str, title: str, proposal: Proposal, ref: str) -> list[str]:
    before, after = proposal.solution.before, proposal.solution.after
    made = manager.get_model(ref)
    facts = made.facts
    assert made.blob_digest is not None
    found = {
        **{key: facts[key] for key in EXACT},
        "weight_bytes": StoredWeights(manager.store.blobs.path(made.blob_digest)).tensor_bytes,
    }
    for key, value in found.items():
        if value != after[key]:
            raise RuntimeError(f"{title}: {key} was predicted as {after[key]}, and is {value}")
    (timed,) = measurements(manager.store, dense, limit=1)
    share = timed.models[ref]["decode_ms"] / timed.models[dense]["decode_ms"]
    lost = [manager.get_model_metrics(one)["psnr_db"] for one in (ref, dense)]
    assert lost[0] is not None and lost[1] is not None
    return [
        title,
        f"{facts['parameters'] / before['parameters'] - 1:+.1%}",
        f"{facts['decode_macs'] / before['decode_macs'] - 1:+.1%}",
        f"{after['decode_ms'] / before['decode_ms']:.1%} -> {share:.1%}",
        f"{after['psnr_db'] - before['psnr_db']:+.2f} -> {lost[0] - lost[1]:+.2f} dB",
    ]


if __name__ == "__main__":
    main()
