"""Augmentations that suit reconstruction: what the model must rebuild is augmented, so targets stay true; only the blur is of the input.

Geometry (flip, crop, scale, rotation, shift) is one affine map, so an image is resampled once; masks move with it, and what comes in
from outside is black and no content. An image's draw is a function of (seed, step, place in the batch), so a resumed run sees the
same. numpy and Pillow alone: a page previews what a training will see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from PIL import Image, ImageFilter

_SALT = 0xA06
"""Keeps these draws apart from those of the order of images, which start from the same seed."""


@dataclass(frozen=True)
class Augmented:
    """One image after its draw, all `(S, S)`."""

    target: np.ndarray
    """uint8 `(S, S, 3)`: what the model must rebuild."""
    seen: np.ndarray
    """uint8 `(S, S, 3)`: what the model is given; the target itself where nothing is blurred."""
    content: np.ndarray
    """bool: not padding."""
    moving: np.ndarray
    """bool: foreground."""


@dataclass(frozen=True)
class Augment:
    """How strongly; 0 everywhere changes nothing."""

    flip: float = 0.0
    """Chance of a mirror image, [0, 1]."""
    crop: float = 0.0
    """Largest share of the side that a crop cuts away, [0, 0.9]; what is left fills the square again."""
    scale: float = 0.0
    """Largest zoom about the centre, in or out: by 1 - scale to 1 + scale."""
    rotate: float = 0.0
    """Largest rotation, degrees."""
    shift: float = 0.0
    """Largest shift each way, as a share of the side."""
    jitter: float = 0.0
    """Largest relative change of brightness, contrast and saturation, [0, 1]."""
    blur: float = 0.0
    """Largest radius of a Gaussian blur of the input, px."""

    @property
    def any(self) -> bool:
        """Whether it changes anything."""
        return any(getattr(self, field.name) > 0 for field in fields(self))

    def __call__(
        self, image: np.ndarray, content: np.ndarray, moving: np.ndarray, *, seed: int, step: int, place: int
    ) -> Augmented:
        """uint8 `(S, S, 3)` and bool masks `(S, S)` of the image at `place` in the batch of a step (from 0)."""
        chance = np.random.default_rng([seed, step, place, _SALT])
        draw = chance.uniform(-1.0, 1.0, size=8)  # all at once: one strength does not move the draws of another
        mirrored, cut, jitter, radius = chance.random() < self.flip, chance.random(3), chance.uniform(-1, 1, 3), chance.random()
        map_ = self._affine(image.shape[0], draw, cut, mirrored)
        if map_ is not None:
            size = image.shape[1::-1]
            image = np.asarray(Image.fromarray(image).transform(size, Image.Transform.AFFINE, map_, Image.Resampling.BICUBIC))
            content, moving = (self._moved(mask, map_) for mask in (content, moving))
        if self.jitter > 0:
            image = self._jittered(image, content, jitter * self.jitter)
        seen = image
        if self.blur > 0:
            seen = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius * self.blur)))
        return Augmented(image, seen, content, moving)

    def _affine(
        self, side: int, draw: np.ndarray, cut: np.ndarray, mirrored: bool
    ) -> tuple[float, float, float, float, float, float] | None:
        """From the pixels of the result to those of the image, as Pillow takes it; None where nothing moves."""
        if not mirrored and max(self.crop, self.scale, self.rotate, self.shift) == 0:
            return None
        # The crop: a window of this share of the side, anywhere in the image.
        left = cut[0] * self.crop
        window, x0, y0 = 1.0 - left, cut[1] * left * side, cut[2] * left * side
        angle = math.radians(draw[0] * self.rotate)
        zoom = window / (1.0 + draw[1] * self.scale)
        a, b = zoom * math.cos(angle), zoom * math.sin(angle)
        d, e = -b, a
        if mirrored:
            a, d = -a, -d
        # The middle of the result comes from the middle of the window, moved by the shift.
        middle = side / 2
        x = x0 + window * middle - draw[2] * self.shift * side
        y = y0 + window * middle - draw[3] * self.shift * side
        return (a, b, x - (a + b) * middle, d, e, y - (d + e) * middle)

    @staticmethod
    def _moved(mask: np.ndarray, map_: tuple[float, float, float, float, float, float]) -> np.ndarray:
        picture = Image.fromarray(mask.astype(np.uint8) * 255)
        return np.asarray(picture.transform(picture.size, Image.Transform.AFFINE, map_, Image.Resampling.NEAREST)) > 127

    @staticmethod
    def _jittered(image: np.ndarray, content: np.ndarray, by: np.ndarray) -> np.ndarray:
        """Brightness, then contrast about the mean, then saturation about the grey; padding stays black."""
        values = image.astype(np.float32) * (1.0 + by[0])
        mean = values[content].mean() if content.any() else 0.0
        values = mean + (values - mean) * (1.0 + by[1])
        grey = values @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        values = grey[..., None] + (values - grey[..., None]) * (1.0 + by[2])
        values[~content] = 0.0
        return np.clip(np.rint(values), 0, 255).astype(np.uint8)
