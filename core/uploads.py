"""An image that a user brings: checked by its header before anything is decoded, and kept as plain 8-bit RGB. No torch.

What would have to be guessed is refused and said: which frame of an animation, what lies behind transparency, how 16 bits become 8.
"""

from __future__ import annotations

import io
import warnings

from PIL import Image, UnidentifiedImageError

from core.errors import CoreError

LEAST_SIDE, MOST_SIDE = 16, 8192
MOST_BYTES = 64 << 20
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_EIGHT_BITS = ("1", "L", "P", "RGB", "CMYK", "YCbCr")
_LEGAL = f"one still 8-bit picture without transparency, {LEAST_SIDE} to {MOST_SIDE} px a side"


def checked_upload(data: bytes, name: str = "the upload") -> bytes:
    """The picture as an RGB PNG; its EXIF orientation is not applied, as in data sets.

    Raises CoreError for what is no image, damaged, animated, transparent, of more than 8 bits, too small or too large.
    """
    if len(data) > MOST_BYTES:
        raise _refusal(f"{name} has {len(data) / 1e6:.0f} MB.", "too_large", len(data))
    with warnings.catch_warnings():
        # Pillow warns of, and then refuses, sizes that are refused here by their sides.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            opened = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise _refusal(f"{name} is too large: {error}.", "too_large", name) from error
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
            raise _refusal(f"{name} is no image that can be read.", "no_image", name) from error
    with opened:
        _check_header(opened, name)
        try:
            rgb = opened.convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise _refusal(f"{name} is damaged: {error}.", "no_image", name) from error
    out = io.BytesIO()
    rgb.save(out, "PNG")
    return out.getvalue()


def _check_header(opened: Image.Image, name: str) -> None:
    width, height = opened.size
    if min(width, height) < LEAST_SIDE:
        raise _refusal(f"{name} is too small: {width} x {height}.", "too_small", [width, height])
    if max(width, height) > MOST_SIDE:
        raise _refusal(f"{name} is too large: {width} x {height}.", "too_large", [width, height])
    if getattr(opened, "n_frames", 1) > 1:
        raise _refusal(f"{name} is animated.", "animated", opened.n_frames)  # type: ignore[attr-defined]
    if opened.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in opened.info:
        raise _refusal(f"{name} has transparency.", "alpha", opened.mode)
    if opened.mode not in _EIGHT_BITS or _png_depth(opened) > 8:
        raise _refusal(f"{name} has more than 8 bits a channel.", "depth", opened.mode)


def _png_depth(opened: Image.Image) -> int:
    """Bits a channel of a PNG: Pillow opens 16-bit colour as 8-bit RGB, so the header itself is asked."""
    stream = getattr(opened, "fp", None)
    if opened.format != "PNG" or stream is None:
        return 8
    place = stream.tell()
    stream.seek(24)  # after signature, chunk length, chunk type, width and height
    depth = stream.read(1)[0]
    stream.seek(place)
    return int(depth)


def _refusal(message: str, code: str, given: object) -> CoreError:
    return CoreError(message, code=code, given=given, legal=_LEGAL, next="Convert it first, or take another picture.")
