"""State-dict keys: the original ones (efficientvit), diffusers' and ours, in both directions; and the config that they tell.

Pure functions on names, shapes and tensors.

Our names follow the model's structure (see `model.py`). The mapping needs the config, because diffusers puts a stage's resampling
layer among its blocks, and because both formats split or name attention differently:

    original   context_module.main.qkv.conv.weight  (3C, C, 1, 1), rows interleaved by head
    diffusers  attn.to_q / to_k / to_v.weight       row thirds of that same matrix (not q, k and v)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dcaecore.config import CoderConfig, DCAEConfig
from dcaecore.errors import ConfigError

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
        first = coder.first_stage
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


_ITEM = re.compile(r"(encoder|decoder)\.(?:stages|down_blocks|up_blocks)\.(\d+)\.(?:op_list\.|blocks\.)?(\w+)\.(.+)")
_SCALE = re.compile(r"(?:multiscale|aggreg)\.\d+\.(depthwise|proj_in|0|pointwise|proj_out|1)\.weight$")
DEFAULT_HEAD_DIM = 32

Shape = tuple[int, ...]


def infer_config(shapes: Mapping[str, Shape]) -> DCAEConfig | None:
    """The config of a dense DC-AE by its keys and shapes, in any of the three formats; None where they are of no such model.

    What tensors cannot tell is assumed as published: ReLU beside BatchNorm and SiLU beside RMS norms, a last ReLU (SiLU for
    a decoder of RMS-normed ResBlocks alone, as in DC-AE-Lite), heads of 32 channels without a further scale.
    """
    try:
        first = r"\.(?:conv_in|project_in)(?:\.main)?(?:\.conv)*\.weight"
        return DCAEConfig(
            _infer_coder("encoder", shapes),
            _infer_coder("decoder", shapes),
            in_channels=_first(shapes, "encoder" + first)[1],
            latent_channels=_first(shapes, "decoder" + first)[1],
        )
    except (LookupError, StopIteration, ValueError, ZeroDivisionError, ConfigError):
        return None


def _first(shapes: Mapping[str, Shape], pattern: str) -> Shape:
    return next((tuple(shape) for key, shape in shapes.items() if re.fullmatch(pattern, key)), ())


def _infer_coder(name: str, shapes: Mapping[str, Shape]) -> CoderConfig:
    """One half of `infer_config`; raises LookupError where a stage after the first has no block to tell its width by."""
    stages: dict[int, dict[str, dict[str, Shape]]] = {}
    for key, shape in shapes.items():
        match = _ITEM.fullmatch(key)
        if match is not None and match[1] == name:
            stages.setdefault(int(match[2]), {}).setdefault(match[3], {})[match[4]] = tuple(shape)
    blocks = {
        stage: [leaves for leaves in items.values() if any("norm." in leaf for leaf in leaves)] for stage, items in stages.items()
    }
    count = max(stages) + 1
    first = 0 if blocks.get(0) else 1
    facts = [_infer_stage(blocks[stage][0]) for stage in range(first, count)]
    # Nothing is stored of an empty first stage: it takes the next one's facts.
    facts = [*([facts[0]] * first), *facts]
    widths, kinds, scales, norms, expands, head_dims = zip(*facts, strict=True)
    resample, shortcut = "", True
    original = any(".op_list." in key for key in shapes)
    for stage in range(first, count - 1):
        leaves = next(leaves for leaves in stages[stage].values() if leaves not in blocks[stage])
        key = next(key for key in leaves if key.endswith("weight"))
        if name == "encoder":
            resample = {4: "unshuffle", 1: "conv"}[widths[stage + 1] // leaves[key][0]]
        else:
            resample = {4: "shuffle", 1: "interpolate"}[leaves[key][0] // widths[stage]]
        shortcut = shortcut and (not original or key.startswith("main."))
    plain = set(kinds) == {"resblock"} and set(norms) == {"trms2d"}
    batch_norm = bool(_first(shapes, r"decoder\.(?:norm_out|project_out\.op_list\.0)\.running_mean"))
    return CoderConfig(
        widths=widths,
        depths=tuple(len(blocks.get(stage, ())) for stage in range(count)),
        blocks=kinds,
        scales=scales,
        norms=norms,
        acts=tuple("relu" if norm == "bn2d" else "silu" for norm in norms),
        resample=resample,  # type: ignore[arg-type]
        shortcut=shortcut,
        out_norm="bn2d" if name == "decoder" and batch_norm else "trms2d",
        out_act="silu" if name == "decoder" and plain else "relu",
        head_dim=next((dim for dim in head_dims if dim), DEFAULT_HEAD_DIM),
        expand=next((expand for expand in expands if expand), 4),
    )


def _infer_stage(leaves: Mapping[str, Shape]) -> tuple[int, str, Shape, str, int, int]:
    """(width, kind of block, scales, norm, expand or 0, head_dim or 0) of a stage, by one of its blocks."""
    width = next(shape[0] for leaf, shape in leaves.items() if re.search(r"norm(?:_out)?\.weight$", leaf))
    norm = "bn2d" if any(leaf.endswith("running_mean") for leaf in leaves) else "trms2d"
    if any("conv1" in leaf for leaf in leaves):
        return width, "resblock", (), norm, 0, 0
    inverted = next(shape[0] for leaf, shape in leaves.items() if "inverted" in leaf and leaf.endswith("weight"))
    scale_shapes = [(match[1], shape) for leaf, shape in leaves.items() if (match := _SCALE.search(leaf))]
    kernels = tuple(shape[-1] for part, shape in scale_shapes if part in ("depthwise", "proj_in", "0"))
    head_dim = next((shape[1] for part, shape in scale_shapes if part in ("pointwise", "proj_out", "1")), 0)
    return width, "evit", kernels, norm, inverted // (2 * width), head_dim


def config_of_diffusers(data: Mapping[str, Any]) -> DCAEConfig:
    """The config in the `config.json` of an `AutoencoderDC`; raises ConfigError for one that we cannot express."""
    for field in ("encoder_out_shortcut", "decoder_in_shortcut"):
        if data.get(field, True) is not True:
            raise ConfigError(f"config.json: {field} is off, which is not supported.", given=data[field], legal=True)
    kinds = {"ResBlock": "resblock", "EfficientViTBlock": "evit"}
    norms = {"rms_norm": "trms2d", "batch_norm": "bn2d"}
    resamples = {"pixel_shuffle": "shuffle", "interpolate": "interpolate", "pixel_unshuffle": "unshuffle", "Conv": "conv"}

    def each(field: str, names: Mapping[str, str], count: int, default: str) -> tuple[Any, ...]:
        value = data.get(field, default)
        return tuple(names[one] for one in ([value] * count if isinstance(value, str) else value))

    def coder(name: str) -> CoderConfig:
        widths = tuple(data[f"{name}_block_out_channels"])
        count, decoder = len(widths), name == "decoder"
        acts = {"silu": "silu", "relu": "relu"}
        resample = (
            data.get("upsample_block_type", "pixel_shuffle") if decoder else data.get("downsample_block_type", "pixel_unshuffle")
        )
        return CoderConfig(
            widths=widths,
            depths=tuple(data[f"{name}_layers_per_block"]),
            blocks=each(f"{name}_block_types", kinds, count, "ResBlock"),
            scales=tuple(tuple(scale) for scale in data[f"{name}_qkv_multiscales"]),
            norms=each("decoder_norm_types" if decoder else "", norms, count, "rms_norm"),
            acts=each("decoder_act_fns" if decoder else "", acts, count, "silu"),
            resample=resamples[resample],  # type: ignore[arg-type]
            out_act=acts[data.get("decoder_conv_act_fn", "relu")] if decoder else "relu",  # type: ignore[arg-type]
            head_dim=data.get("attention_head_dim", DEFAULT_HEAD_DIM),
        )

    try:
        return DCAEConfig(
            coder("encoder"),
            coder("decoder"),
            in_channels=data.get("in_channels", 3),
            latent_channels=data.get("latent_channels", 32),
            scaling_factor=data.get("scaling_factor") or 1.0,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"config.json is not that of an AutoencoderDC: {error!r}.", code="bad_config") from error


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
