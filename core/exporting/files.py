"""Weight files: a model as safetensors with a config, in our keys or (dense shapes only) in the published ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.errors import CoreError
from core.operations.models import Loaded
from dcaecore import DCAEConfig, save_model
from dcaecore.keys import to_format

WEIGHT_NAMES = {
    "offshoot": "model.safetensors",
    "diffusers": "diffusion_pytorch_model.safetensors",
    "original": "model.safetensors",
}


def write_weights(subject: Loaded, form: str, dtype: torch.dtype, folder: Path) -> list[Path]:
    """Writes the weights, and a `config.json` beside them, in a precision; raises CoreError for a shape that a format cannot hold."""
    config, layout = subject.model.config, subject.model.layout
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in subject.model.state_dict().items()}
    path, described = folder / WEIGHT_NAMES[form], folder / "config.json"
    if form == "offshoot":
        save_model(path, state, config=config, layout=layout, masks=subject.masks)
        content: dict[str, Any] = {"family": "dcae", "config": config.to_json(), "layout": layout.to_json()}
    else:
        _check_dense(subject, form)
        _save(path, to_format(state, config, form))
        content = diffusers_config(config) if form == "diffusers" else config.to_json()
    described.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    return [path, described]


def _check_dense(subject: Loaded, form: str) -> None:
    """The published formats have one width a stage and know no shortcuts of chosen channels."""
    layout = subject.model.layout
    if layout.kept or layout.held:
        raise CoreError(
            f"{subject.row.name} was cut at {len(layout.kept) or len(layout.held)} places, and the {form} format knows only whole stages.",
            code="shape", given=form, legal=["onnx", "torch_export", "offshoot"], next="Export it as ONNX, torch.export or Offshoot's own.",
        )  # fmt: skip


def _save(path: Path, state: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, path, metadata={"format": "pt"})


def diffusers_config(config: DCAEConfig) -> dict[str, Any]:
    """The `config.json` of diffusers' AutoencoderDC; raises CoreError for a config that it cannot express."""
    encoder, decoder = config.encoder, config.decoder
    if not (encoder.shortcut and decoder.shortcut):
        raise CoreError(
            "diffusers' AutoencoderDC always has the shortcuts that this model lacks.", code="shape", given="diffusers"
        )
    plain_encoder = set(encoder.norms) == {"trms2d"} and set(encoder.acts) == {"silu"}
    heads = {coder.head_dim for coder in (encoder, decoder)}
    if not plain_encoder or len(heads) > 1 or {encoder.expand, decoder.expand} != {4} or "bn2d" in decoder.out_norm:
        raise CoreError("diffusers' AutoencoderDC cannot express this model's encoder or heads.", code="shape", given="diffusers")
    kinds = {"resblock": "ResBlock", "evit": "EfficientViTBlock"}
    norms = {"trms2d": "rms_norm", "bn2d": "batch_norm"}
    found = {
        "_class_name": "AutoencoderDC",
        "in_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "attention_head_dim": heads.pop(),
        "scaling_factor": config.scaling_factor,
        "downsample_block_type": "Conv" if encoder.resample == "conv" else "pixel_unshuffle",
        "upsample_block_type": "interpolate" if decoder.resample == "interpolate" else "pixel_shuffle",
        "decoder_norm_types": [norms[name] for name in decoder.norms],
        "decoder_act_fns": list(decoder.acts),
    }
    if decoder.out_act != "relu":
        found["decoder_conv_act_fn"] = decoder.out_act
    for name, coder in (("encoder", encoder), ("decoder", decoder)):
        found[f"{name}_block_types"] = [kinds[kind] for kind in coder.blocks]
        found[f"{name}_block_out_channels"] = list(coder.widths)
        found[f"{name}_layers_per_block"] = list(coder.depths)
        found[f"{name}_qkv_multiscales"] = [list(scales) for scales in coder.scales]
    return found
