"""`make gpu`: the CUDA checks and figures of the small and the f32c32 shape, in one process, meant to take under 9 minutes.

Needs a CUDA device, torch, numpy, safetensors, pydantic and pillow alone. Each check is an assertion on this code: a cut equals its
mask on the device, masks survive training, bf16 stays near fp32. Speeds are medians over interleaved repeats. Writes
`benchmarks/RESULTS-gpu.json`.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from core.presets import PRESETS
from core.pruning.masks import apply_masks, prune_weights, two_four
from core.pruning.plans import make_plan
from core.pruning.scores import sliced_norm
from core.pruning.surgery import cut, zero
from core.specs import PruneSpec
from dcaecore import DCAE, VARIANTS, Layout, sites
from dcaecore.checkpoint import build
from dcaecore.layout import INTERNAL_KINDS
from dcaecore.two_four import pack

RESULTS = Path(__file__).with_name("RESULTS-gpu.json")
RATES = (0.3, 0.5, 0.7, 0.8)
PRUNINGS = {
    **{str(rate): PruneSpec(method="l2_structured", rate=rate) for rate in RATES},
    **{
        f"{rate}, streams too": PruneSpec(method="l2_structured", rate=rate, kinds=(*INTERNAL_KINDS, "stream"), round_to=16)
        for rate in RATES
    },
    **{name: PRESETS[name].prune for name in ("medium", "aggressive")},
}
"""Title -> what goes; units by their L2 norm in each. Where streams go too, widths are multiples of 16, which tensor cores like."""
COMPILED = ("0.5", "0.8, streams too")
PRODUCTS = ((4096, 1024, 4096), (1024, 2048, 4096), (8192, 1024, 1024))
"""Outputs, inputs and tokens of matrix products."""
DEVICE = "cuda"
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def median_ms(calls: dict[str, Any], repeats: int = 30, warmup: int = 5) -> dict[str, float]:
    """Median milliseconds of each call, interleaved, after some untimed rounds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(-warmup, repeats):
        for name, call in calls.items():
            torch.cuda.synchronize()
            started = time.perf_counter()
            call()
            torch.cuda.synchronize()
            if repeat >= 0:
                times[name].append((time.perf_counter() - started) * 1e3)
    return {name: sorted(values)[len(values) // 2] for name, values in times.items()}


@torch.inference_mode()
def shape(name: str, image_size: int, batch_size: int) -> dict[str, Any]:
    """Checks (in full float32) and decode speed (bf16) of one shape: L2 at four rates, residual streams whole or not, and two presets."""
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    config = VARIANTS[name]
    model = DCAE(config).to(DEVICE).eval()
    state = model.state_dict()
    scores = {n: sliced_norm(state, config, Layout(), s, 2) for n, s in sites(config).items()}
    x = torch.rand(batch_size, 3, image_size, image_size, device=DEVICE) * 2 - 1
    z = model.encode(x)
    found: dict[str, Any] = {
        "image_size": image_size,
        "batch_size": batch_size,
        "parameters": sum(v.numel() for v in state.values()),
    }
    models = {"dense": model}
    for title, spec in PRUNINGS.items():
        plan = make_plan(config, Layout(), scores, spec)
        result = cut(state, config, Layout(), plan.keep)
        models[title] = build(config, result.layout, result.state)
        if "stream" in spec.kinds:  # a mask of a stream is held in the layout as well: the property tests' matter
            continue
        masked = build(config, Layout(), zero(state, config, Layout(), plan.keep))
        error = float((masked(x[:1]) - models[title](x[:1])).norm() / masked(x[:1]).norm())
        assert error < 1e-3, f"{name} at {title}: a cut differs from its mask by {error}"
        found[f"cut_error_{title}"] = error
    halves = {key: value.to(torch.bfloat16) for key, value in models.items()}
    half_z = z.to(torch.bfloat16)
    torch.cuda.reset_peak_memory_stats()
    times = median_ms({key: (lambda m=value: m.decode(half_z)) for key, value in halves.items()})
    found["decode_ms_bfloat16"] = times
    found["decode_speed_up"] = {key: times["dense"] / value for key, value in times.items()}
    found["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
    return found


@torch.inference_mode()
def compiled(name: str, image_size: int) -> dict[str, Any]:
    """Decode in bf16, dense and cut, each eager and compiled, contiguous and channels-last: speed-ups within each way."""
    torch.manual_seed(0)
    config = VARIANTS[name]
    dense = DCAE(config).to(DEVICE).eval()
    state = dense.state_dict()
    scores = {n: sliced_norm(state, config, Layout(), s, 2) for n, s in sites(config).items()}
    models = {"dense": dense.bfloat16()}
    for title in COMPILED:
        result = cut(state, config, Layout(), make_plan(config, Layout(), scores, PRUNINGS[title]).keep)
        models[title] = build(config, result.layout, result.state).bfloat16()
    z = models["dense"].encode(torch.rand(1, 3, image_size, image_size, device=DEVICE, dtype=torch.bfloat16) * 2 - 1)
    found: dict[str, Any] = {}
    for layout, form in FORMATS.items():
        for model in models.values():
            model.to(memory_format=form)  # type: ignore[call-overload]
        ways: dict[str, dict[str, Any]] = {
            "eager": {key: model.decode for key, model in models.items()},
            "compiled": {key: torch.compile(model.decode) for key, model in models.items()},
        }
        for way, calls in ways.items():
            latent = z.to(memory_format=form)
            times = median_ms({key: partial(call, latent) for key, call in calls.items()})
            speed_up = {key: times["dense"] / value for key, value in times.items()}
            found[f"{way}, {layout}"] = {"decode_ms": times, "speed_up": speed_up}
    return found


@torch.inference_mode()
def sparse_model(name: str, image_size: int) -> dict[str, Any]:
    """Decode in bf16 with all that fits 2:4: by dense kernels, and with its 1x1 convolutions on sparse tensor cores; each memory format."""
    torch.manual_seed(0)
    model = DCAE(VARIANTS[name]).to(DEVICE).bfloat16().eval()
    state = model.state_dict()
    model.load_state_dict(apply_masks(state, two_four(state)))
    z = model.encode(torch.rand(1, 3, image_size, image_size, device=DEVICE, dtype=torch.bfloat16) * 2 - 1)
    found: dict[str, Any] = {}
    for title, form in FORMATS.items():
        model.to(memory_format=form)  # type: ignore[call-overload]
        packed, latent = copy.deepcopy(model), z.to(memory_format=form)
        found["layers"] = len(pack(packed.decoder))
        assert found["layers"], f"{name}: no layer was packed"
        expected, image = model.decode(latent).float(), packed.decode(latent).float()
        error = float((image - expected).norm() / expected.norm())
        assert error < 0.05, f"{name}: on 2:4 kernels the image differs by {error}"
        times = median_ms({"dense kernels": partial(model.decode, latent), "2:4": partial(packed.decode, latent)})
        found[title] = {**times, "speed_up": times["dense kernels"] / times["2:4"], "error": error}
    return found


@torch.inference_mode()
def sparse_products() -> dict[str, Any]:
    """2:4 against dense matrix products of this project's 1x1 convolutions, in bf16; tokens x inputs -> outputs."""
    found = {}
    for outputs, inputs, tokens in PRODUCTS:
        weight = torch.randn(outputs, inputs, device=DEVICE, dtype=torch.bfloat16) * 0.02
        weight = weight * two_four({"layer.weight": weight})["layer.weight"]
        packed = torch.sparse.to_sparse_semi_structured(weight)
        x = torch.randn(tokens, inputs, device=DEVICE, dtype=torch.bfloat16)
        expected, product = x @ weight.T, torch.nn.functional.linear(x, packed)
        error = float((product - expected).float().norm() / expected.float().norm())
        assert error < 1e-2, f"a 2:4 product differs from the dense one by {error}"
        times = median_ms({"dense": lambda x=x, w=weight: x @ w.T, "2:4": lambda x=x, w=packed: torch.nn.functional.linear(x, w)})
        found[f"{tokens} x {inputs} -> {outputs}"] = {**times, "speed_up": times["dense"] / times["2:4"], "error": error}
    return found


def training(name: str, image_size: int, steps: int = 50) -> dict[str, Any]:
    """Steps a second of retraining a half-sparse model, with zero leaks, in fp32 and bf16."""
    found: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        model = DCAE(VARIANTS[name]).to(DEVICE).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        masks = prune_weights(model.state_dict(), "global_magnitude", rate=0.5)
        model.load_state_dict(apply_masks(model.state_dict(), masks))
        parameters = dict(model.named_parameters())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        x = torch.rand(8, 3, image_size, image_size, device=DEVICE) * 2 - 1
        started = 0.0
        for step in range(steps + 5):
            if step == 5:
                torch.cuda.synchronize()
                started = time.perf_counter()
            with torch.autocast(DEVICE, dtype=dtype, enabled=dtype != torch.float32):
                loss = (model(x) - x).abs().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for key, mask in masks.items():
                    parameters[key].mul_(mask)
        torch.cuda.synchronize()
        leaks = sum(int((parameters[key][~mask] != 0).sum()) for key, mask in masks.items())
        assert leaks == 0 and torch.isfinite(loss)
        found[str(dtype).removeprefix("torch.")] = steps / (time.perf_counter() - started)
    return {"model": name, "batch_size": 8, "image_size": image_size, "steps_per_s": found}


def main() -> None:
    """Runs each part and writes what there is after it, so that a part that fails or runs out of time loses no other's figures."""
    if not torch.cuda.is_available():
        sys.exit("make gpu needs a CUDA device; none was found. Nothing was measured.")
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "demo-f32c32": partial(shape, "demo-f32c32", 128, 8),
        "dc-ae-f32c32-sana-1.0": partial(shape, "dc-ae-f32c32-sana-1.0", 512, 1),
        "two_four_products": sparse_products,
        "two_four_model": partial(sparse_model, "dc-ae-f32c32-sana-1.0", 512),
        "training": partial(training, "demo-f32c32", 128),
        "compiled": partial(compiled, "dc-ae-f32c32-sana-1.0", 512),
    }
    results: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    failed = measure(parts, results)
    sys.stdout.write(json.dumps(results, indent=2) + "\n")
    sys.exit(f"{', '.join(failed)} failed." if failed else 0)


def measure(parts: Mapping[str, Callable[[], dict[str, Any]]], results: dict[str, Any]) -> list[str]:
    """Adds each part's figures, or why there are none, to the results and their file; returns the parts that failed."""
    failed = []
    for name, part in parts.items():
        started = time.perf_counter()
        try:
            results[name] = part()
        except Exception as error:
            failed.append(name)
            results[name] = {"failed": f"{type(error).__name__}: {error}"}
        results[name]["seconds"] = time.perf_counter() - started
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    return failed


if __name__ == "__main__":
    main()
