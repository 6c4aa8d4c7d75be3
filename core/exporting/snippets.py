"""The lines that run an export elsewhere: a whole program that reads an image and writes its reconstruction."""

from __future__ import annotations

_HEAD = '''"""Reconstructs an image: python run.py image.png (made by Offshoot; needs {needs})."""

import sys

import numpy as np
{imports}from PIL import Image

SIDE = {side}
image = Image.open(sys.argv[1]).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
pixels = np.asarray(image)[None]
'''
_TAIL = 'Image.fromarray(y[0]).save("reconstruction.png")\n'
_TO_FLOAT = "x = (pixels.astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2)"
_TO_BYTES = "y = ((y.astype(np.float32).clip(-1, 1) + 1) * 127.5).round().astype(np.uint8).transpose(0, 2, 3, 1)\n"
_LATENT = 'np.save("latent.npy", z)\n'
_RUNTIMES = {
    "onnx": ("onnxruntime", 'onnxruntime.InferenceSession("{part}.onnx").run(None, {{"{name}": {value}}})[0]'),
    "openvino": (
        "openvino",
        'openvino.Core().compile_model("{part}.xml", "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})({value})[0]',
    ),
}
"""Package, and the expression that loads and calls a graph."""


def snippet(form: str, *, side: int, dtype: str, processing: bool, part: str, batch: int, dynamic: bool) -> str:
    """The program for one export; of a part alone, it goes as far as that part goes."""
    if form in _RUNTIMES:
        return _numpy(form, side, dtype, processing, part, batch, dynamic)
    if form == "torch_export":
        return _torch_export(side, dtype, processing, part, batch, dynamic)
    return _weights(form, side, dtype)


def _batched(batch: int, dynamic: bool) -> str:
    """A graph for one batch alone takes no other number of images."""
    return (
        ""
        if dynamic or batch == 1
        else f"pixels = np.repeat(pixels, {batch}, axis=0)  # this graph takes {batch} images at once\n"
    )


def _numpy(form: str, side: int, dtype: str, processing: bool, part: str, batch: int, dynamic: bool) -> str:
    """For a runtime that takes and gives arrays."""
    package, call = _RUNTIMES[form]
    numpy_type = {"float32": "np.float32", "float16": "np.float16"}[dtype]
    text = _HEAD.format(needs=f"{package}, numpy, pillow", imports=f"import {package}\n", side=side) + _batched(batch, dynamic)
    if part != "decoder":
        text += "x = pixels\n" if processing else f"{_TO_FLOAT}.astype({numpy_type})\n"
        text += f"z = {call.format(part='encoder', name='image', value='x')}\n"
    else:
        text += 'z = np.load("latent.npy")  # what the encoder made\n'
    if part == "encoder":
        return text + _LATENT
    return text + f"y = {call.format(part='decoder', name='latent', value='z')}\n" + ("" if processing else _TO_BYTES) + _TAIL


def _torch_export(side: int, dtype: str, processing: bool, part: str, batch: int, dynamic: bool) -> str:
    text = _HEAD.format(needs="torch, numpy, pillow", imports="import torch\n", side=side) + _batched(batch, dynamic)
    body = []
    if part != "decoder":
        body.append(
            "x = torch.from_numpy(pixels.copy())" if processing else f"{_TO_FLOAT}\nx = torch.from_numpy(x).to(torch.{dtype})"
        )
        body.append('with torch.no_grad():\n    z = torch.export.load("encoder.pt2").module()(x)')
    else:
        body.append(f'z = torch.from_numpy(np.load("latent.npy")).to(torch.{dtype})  # what the encoder made')
    if part == "encoder":
        return text + "\n".join(body) + "\nz = z.float().numpy()\n" + _LATENT
    body.append('with torch.no_grad():\n    y = torch.export.load("decoder.pt2").module()(z)')
    body.append("y = y.numpy()" if processing else "y = y.float().numpy()")
    return text + "\n".join(body) + "\n" + ("" if processing else _TO_BYTES) + _TAIL


def _weights(form: str, side: int, dtype: str) -> str:
    needs = "diffusers, torch, numpy, pillow" if form == "diffusers" else "this project's dcaecore, torch, numpy, pillow"
    head = (
        _HEAD.format(needs=needs, imports="import torch\n", side=side)
        + _TO_FLOAT
        + f"\nx = torch.from_numpy(x).to(torch.{dtype})\n"
    )
    if form == "diffusers":
        call = (
            "from diffusers import AutoencoderDC\n\n"
            f'model = AutoencoderDC.from_pretrained(".", torch_dtype=torch.{dtype}).eval()\n'
            "with torch.no_grad():\n    y = model(x).sample\n"
        )
    elif form == "offshoot":
        call = (
            "from pathlib import Path\n\nfrom dcaecore import load_model\n\n"
            f'model = load_model(Path("model.safetensors"), dtype=torch.{dtype}).model\n'
            "with torch.no_grad():\n    y = model(x)\n"
        )
    else:
        call = (
            "import json\n\nfrom dcaecore import DCAEConfig, from_pretrained\n\n"
            'config = DCAEConfig.from_json(json.load(open("config.json")))\n'
            f'model = from_pretrained("model.safetensors", config=config).model.to(torch.{dtype})\n'
            "with torch.no_grad():\n    y = model(x)\n"
        )
    return head + call + "y = y.float().numpy()\n" + _TO_BYTES + _TAIL
