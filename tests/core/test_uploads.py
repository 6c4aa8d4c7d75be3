"""Uploads: what is no plain picture is refused by name; what is goes through up to four models."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from core.errors import CoreError
from core.model_manager import ModelManager
from core.operations.models import load
from core.operations.reconstruct import latent_picture
from core.seeing import reconstruction
from core.uploads import checked_upload

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)


def saved(image: Image.Image, form: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def huge_header(width: int, height: int, depth: int = 8) -> bytes:
    """A PNG that claims a size and has hardly a pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    row = b"\0" + b"\1\2" * 3 * (width if width < 100 else 1)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(row * min(height, 100)))
        + chunk(b"IEND", b"")
    )


RED, BLUE = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
BAD = {
    "no image": (b"not a picture at all", "no_image"),
    "empty": (b"", "no_image"),
    "cut short": (saved(Image.fromarray(PIXELS))[:200], "no_image"),
    "animated": (saved(RED, "GIF", save_all=True, append_images=[BLUE]), "animated"),
    "alpha": (saved(Image.new("RGBA", (32, 32))), "alpha"),
    "palette with transparency": (saved(RED.convert("P"), transparency=0), "alpha"),
    "16-bit grey": (saved(Image.fromarray(RNG.integers(0, 65535, (32, 32)).astype(np.uint16))), "depth"),
    "16-bit colour": (huge_header(32, 32, 16), "depth"),
    "1 x 1": (saved(Image.new("RGB", (1, 1))), "too_small"),
    "9,000 wide": (huge_header(9000, 100), "too_large"),
    "20,000 x 20,000": (huge_header(20_000, 20_000), "too_large"),
    "a document": (b"%PDF-1.4 not decoded here", "no_image"),
}


@pytest.mark.parametrize("which", BAD)
def test_what_is_no_plain_picture_is_refused_by_name(which):
    data, code = BAD[which]
    with pytest.raises(CoreError) as caught:
        checked_upload(data, "cat.png")
    assert caught.value.code == code and "cat.png" in caught.value.message and "8-bit" in caught.value.legal


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "GIF", "JPEG", "WEBP"])
def test_a_plain_picture_becomes_rgb(form):
    for mode in ("RGB", "L"):
        made = Image.open(io.BytesIO(checked_upload(saved(Image.fromarray(PIXELS).convert(mode), form))))
        assert made.mode == "RGB" and made.size == (50, 40) and made.format == "PNG"
    if form in ("PNG", "BMP", "TIFF"):
        back = Image.open(io.BytesIO(checked_upload(saved(Image.fromarray(PIXELS), form))))
        assert np.array_equal(np.asarray(back), PIXELS)


def test_an_upload_goes_through_the_models_and_shows_their_latents(bench):
    ids = [bench.add(seed=seed, name=f"m{seed}").id for seed in range(2)]
    digest = bench.store.blobs.put_bytes(checked_upload(saved(Image.fromarray(PIXELS))))
    job = bench.run("reconstruct", ids[0], image_digest=digest, image_size=32, models=[ids[1], ids[0]])
    found = reconstruction(bench.store, job.id)
    assert [one[0] for one in found.models] == ids
    seen = np.asarray(Image.open(io.BytesIO(found.original)))
    x = torch.from_numpy(seen.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    for ref, psnr, made, latents in found.models:
        with torch.no_grad():
            model = load(bench.store, ref).model
            z = model.encode(x)
            y = ((model.decode(z).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)[0].permute(1, 2, 0).numpy()
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(made))), y)
        inside = slice(4, 28)  # of a 50 x 40 picture in a 32 px square, by hand: rows 3.2 to 28.8
        error = np.square(y[inside].astype(float) - seen[inside].astype(float)).mean()
        assert psnr == pytest.approx(10 * np.log10(255**2 / error), abs=1e-3)
        assert Image.open(io.BytesIO(latents)).size == (8 * (z.shape[3] + 1) - 1, -(-z.shape[1] // 8) * (z.shape[2] + 1) - 1)
    assert latent_picture(np.zeros((3, 2, 2), np.float32)).shape == (2, 8, 3)


def test_what_cannot_be_reconstructed_is_refused(bench):
    service = ModelManager(settings=bench.settings)
    ref, picture = bench.add(seed=3, name="m3").id, saved(Image.fromarray(PIXELS))
    before = len(service.jobs())
    others = [bench.add(seed=4 + n, name=f"n{n}").id for n in range(4)]
    for refs, image, size, words in (
        ([ref], BAD["animated"][0], 32, "animated"),
        ([ref], picture, 36, "36"),
        ([ref, *others], picture, 32, "models"),
    ):
        with pytest.raises(Exception) as caught:
            service.reconstruct(refs, image, image_size=size)
        assert words in str(caught.value) and hasattr(caught.value, "legal")
    assert len(service.jobs()) == before, "nothing was submitted"
    with pytest.raises(CoreError, match="not in the store"):
        bench.run("reconstruct", ref, image_digest="a" * 64, image_size=32)
    with pytest.raises(CoreError, match="reconstructs nothing"):
        reconstruction(bench.store, bench.run("prune", ref, rate=0.5).id)
    failed = next(job for job in service.jobs(states=("failed",)) if job.operation == "reconstruct")
    with pytest.raises(CoreError, match="not in the store"):
        reconstruction(bench.store, failed.id)
    service.store.close()
