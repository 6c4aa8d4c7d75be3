"""State-dict keys: the original ones (efficientvit), diffusers' and ours, in both directions. Pure functions on names and tensors.

Our names follow the model's structure (see `model.py`). The mapping needs the config, because diffusers puts a stage's resampling
layer among its blocks, and because both formats split or name attention differently:

    original   context_module.main.qkv.conv.weight  (3C, C, 1, 1), rows interleaved by head
    diffusers  attn.to_q / to_k / to_v.weight       row thirds of that same matrix (not q, k and v)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from dcaecore.config import DCAEConfig

Rename = tuple[str, str]

WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.", "autoencoder.", "ae.", "state_dict.", "network.")


def detect_format(keys: Mapping[str, object]) -> str | None:
    """`offshoot`, `original`, `diffusers`, or None for keys of another model."""
    if any(".op_list." in key for key in keys):
        return "original"
    if any(key.startswith(("encoder.down_blocks.", "decoder.up_blocks.")) for key in keys):
        return "diffusers"
    if any(".blocks." in key and key.startswith(("encoder.stages.", "decoder.stages.")) for key in keys):
        return "offshoot"
    return None


def _pairs(config: DCAEConfig, fmt: str) -> list[Rename]:
    """(our module prefix, its prefix in `fmt`) of each leaf module."""
    found: list[Rename] = []
    original = fmt == "original"
    for name in ("encoder", "decoder"):
        coder = config.coder(name)
        first = 0 if coder.depths[0] else 1
        stages = f"{name}.stages" if original else f"{name}.{'down' if name == 'encoder' else 'up'}_blocks"
        for stage in range(first, coder.num_stages):
            has_resample = stage < coder.num_stages - 1
            offset = 1 if has_resample and name == "decoder" else 0
            for block in range(coder.depths[stage]):
                place = block + offset
                there = f"{stages}.{stage}.op_list.{place}" if original else f"{stages}.{stage}.{place}"
                here = f"{name}.stages.{stage}.blocks.{block}"
                found += _block_pairs(here, there, coder.blocks[stage], len(coder.scales[stage]), original)
            if has_resample:
                place = coder.depths[stage] if name == "encoder" else 0
                here = f"{name}.stages.{stage}.{'down' if name == 'encoder' else 'up'}.conv"
                if not original:
                    found.append((here, f"{stages}.{stage}.{place}.conv"))
                    continue
                there = f"{stages}.{stage}.op_list.{place}" + (".main" if coder.shortcut else "")
                plain = name == "encoder" and coder.resample == "conv"
                found.append((here, f"{there}.conv" if plain else f"{there}.conv.conv"))
    found += _end_pairs(config, original)
    return found


def _end_pairs(config: DCAEConfig, original: bool) -> list[Rename]:
    encoder, decoder = config.encoder, config.decoder
    ends: list[Rename] = []
    if encoder.depths[0]:
        ends.append(("encoder.conv_in", "encoder.project_in.conv" if original else "encoder.conv_in"))
    else:
        there = "encoder.project_in.conv" if encoder.resample == "conv" else "encoder.project_in.conv.conv"
        ends.append(("encoder.conv_in.conv", there if original else "encoder.conv_in.conv"))
    out = "encoder.project_out." + ("main." if encoder.shortcut else "") + "op_list.0.conv"
    ends.append(("encoder.conv_out", out if original else "encoder.conv_out"))
    into = "decoder.project_in." + ("main." if decoder.shortcut else "") + "conv"
    ends.append(("decoder.conv_in", into if original else "decoder.conv_in"))
    ends.append(("decoder.norm_out", "decoder.project_out.op_list.0" if original else "decoder.norm_out"))
    if decoder.depths[0]:
        ends.append(("decoder.conv_out", "decoder.project_out.op_list.2.conv" if original else "decoder.conv_out"))
    else:
        there = "decoder.project_out.op_list.2.conv.conv"
        ends.append(("decoder.conv_out.conv", there if original else "decoder.conv_out.conv"))
    return ends


def _block_pairs(here: str, there: str, kind: str, scales: int, original: bool) -> list[Rename]:
    if kind == "resblock":
        if original:
            main = f"{there}.main"
            return [
                (f"{here}.conv1", f"{main}.conv1.conv"),
                (f"{here}.conv2", f"{main}.conv2.conv"),
                (f"{here}.norm", f"{main}.conv2.norm"),
            ]
        return [(f"{here}.{part}", f"{there}.{part}") for part in ("conv1", "conv2", "norm")]
    pairs: list[Rename] = []
    if original:
        attn, glu = f"{there}.context_module.main", f"{there}.local_module.main"
        pairs += [(f"{here}.attn.qkv", f"{attn}.qkv.conv"), (f"{here}.attn.proj", f"{attn}.proj.conv")]
        pairs.append((f"{here}.attn.norm", f"{attn}.proj.norm"))
        for scale in range(scales):
            pairs.append((f"{here}.attn.multiscale.{scale}.depthwise", f"{attn}.aggreg.{scale}.0"))
            pairs.append((f"{here}.attn.multiscale.{scale}.pointwise", f"{attn}.aggreg.{scale}.1"))
        pairs += [
            (f"{here}.glu.inverted", f"{glu}.inverted_conv.conv"),
            (f"{here}.glu.depthwise", f"{glu}.depth_conv.conv"),
            (f"{here}.glu.pointwise", f"{glu}.point_conv.conv"),
            (f"{here}.glu.norm", f"{glu}.point_conv.norm"),
        ]
        return pairs
    attn, glu = f"{there}.attn", f"{there}.conv_out"
    pairs += [(f"{here}.attn.proj", f"{attn}.to_out"), (f"{here}.attn.norm", f"{attn}.norm_out")]
    for scale in range(scales):
        pairs.append((f"{here}.attn.multiscale.{scale}.depthwise", f"{attn}.to_qkv_multiscale.{scale}.proj_in"))
        pairs.append((f"{here}.attn.multiscale.{scale}.pointwise", f"{attn}.to_qkv_multiscale.{scale}.proj_out"))
    pairs += [
        (f"{here}.glu.inverted", f"{glu}.conv_inverted"),
        (f"{here}.glu.depthwise", f"{glu}.conv_depth"),
        (f"{here}.glu.pointwise", f"{glu}.conv_point"),
        (f"{here}.glu.norm", f"{glu}.norm"),
    ]
    return pairs


def _by_module(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    grouped: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        module, _, leaf = key.rpartition(".")
        grouped.setdefault(module, {})[leaf] = value
    return grouped


def from_format(state: Mapping[str, Tensor], config: DCAEConfig, fmt: str) -> dict[str, Tensor]:
    """A state dict of `original` or `diffusers` keys in ours. Unknown keys are passed on under their own names."""
    groups = _by_module(state)
    found: dict[str, Tensor] = {}
    for here, there in _pairs(config, fmt):
        for leaf, value in groups.pop(there, {}).items():
            found[f"{here}.{leaf}"] = value[:, :, None, None] if here.endswith(".proj") and value.ndim == 2 else value
    if fmt == "diffusers":
        for module in [name for name in groups if name.endswith(".attn.to_q")]:
            stem = module.removesuffix(".to_q")
            parts = [groups.pop(f"{stem}.{part}", {}).get("weight") for part in ("to_q", "to_k", "to_v")]
            if all(part is not None for part in parts):
                qkv = torch.cat([part for part in parts if part is not None])[:, :, None, None]
                found[f"{_our_block(config, stem.removesuffix('.attn'))}.attn.qkv.weight"] = qkv
    for module, leaves in groups.items():
        found.update({f"{module}.{leaf}": value for leaf, value in leaves.items()})
    return found


def to_format(state: Mapping[str, Tensor], config: DCAEConfig, fmt: str) -> dict[str, Tensor]:
    """Our state dict in `original` or `diffusers` keys: the inverse of `from_format`, for dense models."""
    groups = _by_module(state)
    found: dict[str, Tensor] = {}
    for here, there in _pairs(config, fmt):
        for leaf, value in groups.pop(here, {}).items():
            linear = fmt == "diffusers" and here.endswith(".proj")
            found[f"{there}.{leaf}"] = value[:, :, 0, 0] if linear else value
    if fmt == "diffusers":
        for module in [name for name in groups if name.endswith(".attn.qkv")]:
            there = _their_block(config, module.removesuffix(".attn.qkv"))
            for part, value in zip(("to_q", "to_k", "to_v"), groups.pop(module)["weight"].chunk(3), strict=True):
                found[f"{there}.attn.{part}.weight"] = value[:, :, 0, 0].contiguous()
    assert not groups, f"keys without a place: {sorted(groups)[:3]}"
    return found


def _block_names(config: DCAEConfig) -> list[Rename]:
    suffix = ".glu.norm"
    return [
        (here.removesuffix(suffix), there.removesuffix(".conv_out.norm"))
        for here, there in _pairs(config, "diffusers")
        if here.endswith(suffix)
    ]


def _our_block(config: DCAEConfig, there: str) -> str:
    return next((ours for ours, theirs in _block_names(config) if theirs == there), there)


def _their_block(config: DCAEConfig, here: str) -> str:
    return next(theirs for ours, theirs in _block_names(config) if ours == here)


def unwrap(state: Mapping[str, Tensor], note: Callable[[str], None]) -> dict[str, Tensor]:
    """Strips `module.` and the like, and folds leftovers of `torch.nn.utils.prune` (`weight_orig` times `weight_mask`)."""
    found = dict(state)
    changed = True
    while changed and found:
        changed = False
        for prefix in WRAPPER_PREFIXES:
            if all(key.startswith(prefix) for key in found):
                found = {key[len(prefix) :]: value for key, value in found.items()}
                note(f"prefix {prefix!r} removed")
                changed = True
    folded = 0
    for key in [key for key in found if key.endswith("_orig")]:
        name = key.removesuffix("_orig")
        mask = found.pop(f"{name}_mask", None)
        weight = found.pop(key)
        found[name] = weight if mask is None else weight * mask
        folded += 1
    for key in [key for key in found if key.endswith("_mask") and key.removesuffix("_mask") in found]:
        found[key.removesuffix("_mask")] = found[key.removesuffix("_mask")] * found.pop(key)
        folded += 1
    if folded:
        note(f"{folded} pruning masks folded into their weights")
    return found
