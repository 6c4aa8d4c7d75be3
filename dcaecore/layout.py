"""Which units of a config a model keeps: its layout, free of torch.

A *site* is a place where whole units can be removed and nothing else changes shape (reference: torch-pruning's
dependency groups, Fang et al., arXiv 2301.12900):

    mid      one middle channel of a ResBlock: conv1's row and bias, conv2's column
    hidden   one GLU pair (i, i + h): two rows of the inverted and depthwise convolutions, one point-convolution column
    heads    one attention head: 3 * head_dim rows of qkv (and of each further scale), head_dim columns of proj a scale
    stream   one residual channel through a whole stage: its blocks' norms and outer convolution ends, both resampling layers
             and their shortcuts; four adjacent channels where a pixel-unshuffle makes them

A layout names kept units in the *original* coordinates (those of the config), so prunings compose and a unit keeps its
name for life. A site that is not named keeps all its units: the empty layout is the dense model.

A stream's units may also be *held*: they are there, and at zero. Masks hold what has weights; the shortcuts have none, so the model
leaves held channels out of them, and a held stream computes what a cut one does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any, Literal

from dcaecore.config import CoderConfig, DCAEConfig
from dcaecore.errors import ConfigError

SiteKind = Literal["mid", "hidden", "heads", "stream"]
INTERNAL_KINDS: tuple[SiteKind, ...] = ("mid", "hidden", "heads")


@dataclass(frozen=True)
class Site:
    """A place where units can be removed; `total` counts them before any pruning."""

    name: str
    kind: SiteKind
    total: int
    coder: str
    stage: int
    block: int
    """-1 for a stream."""
    channels: int = 1
    """Channels of a unit (streams: 4 behind a pixel-unshuffle)."""


@lru_cache(maxsize=64)
def sites(config: DCAEConfig) -> Mapping[str, Site]:
    """All sites of a config by name: encoder, then decoder, each from its finest stage to its deepest."""
    found: dict[str, Site] = {}
    for coder_name in ("encoder", "decoder"):
        coder = config.coder(coder_name)
        for stage in range(coder.num_stages):
            if stage >= coder.first_stage:
                name, unit = (
                    stream_name(coder_name, stage),
                    4 if coder.resample == "unshuffle" and _is_unshuffled(coder, stage) else 1,
                )
                found[name] = Site(name, "stream", coder.widths[stage] // unit, coder_name, stage, -1, unit)
            for block in range(coder.depths[stage]):
                prefix = f"{coder_name}.stages.{stage}.blocks.{block}"
                kinds: tuple[tuple[SiteKind, int], ...]
                if coder.blocks[stage] == "resblock":
                    kinds = (("mid", coder.widths[stage]),)
                else:
                    kinds = (("heads", coder.heads(stage)), ("hidden", coder.hidden(stage)))
                for kind, total in kinds:
                    found[f"{prefix}.{kind}"] = Site(f"{prefix}.{kind}", kind, total, coder_name, stage, block)
    return MappingProxyType(found)


def in_flow(config: DCAEConfig) -> tuple[str, ...]:
    """The sites' names in the order in which data flows: the encoder from its finest stage, the decoder from its deepest."""
    places = {name: (s.coder == "decoder", s.stage if s.coder == "encoder" else -s.stage) for name, s in sites(config).items()}
    return tuple(sorted(places, key=places.__getitem__))


def stream_name(coder: str, stage: int) -> str:
    """The site of a stage's residual stream."""
    return f"{coder}.stages.{stage}.stream"


def _is_unshuffled(coder: CoderConfig, stage: int) -> bool:
    """Whether a pixel-unshuffle makes a stage's channels: all but those of a plain first convolution."""
    return stage > coder.first_stage or coder.first_stage > 0


@dataclass(frozen=True)
class Layout:
    """Kept units of each pruned site, ascending, in original coordinates."""

    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    held: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Units of a stream that are there and held at zero."""

    def width(self, site: Site) -> int:
        """Units that a site still has."""
        kept = self.kept.get(site.name)
        return site.total if kept is None else len(kept)

    def units(self, site: Site) -> tuple[int, ...]:
        """Original indices of the units that a site still has."""
        kept = self.kept.get(site.name)
        return tuple(range(site.total)) if kept is None else kept

    def stream(self, config: DCAEConfig, coder: str, stage: int) -> tuple[int, ...]:
        """Original channels that a stage's residual stream still has, ascending."""
        kept = self.kept.get(stream_name(coder, stage))
        if kept is None:
            return tuple(range(config.coder(coder).widths[stage]))
        return _channels(sites(config)[stream_name(coder, stage)], kept)

    def held_channels(self, config: DCAEConfig, coder: str, stage: int) -> tuple[int, ...]:
        """Original channels of a stage's residual stream that are held at zero, ascending."""
        held = self.held.get(stream_name(coder, stage), ())
        return _channels(sites(config)[stream_name(coder, stage)], held) if held else ()

    def validate(self, config: DCAEConfig) -> None:
        """Raises ConfigError for an unknown site, an empty one, indices that are not ascending and in range, or held units that
        are not a stream's own."""
        known = sites(config)
        for name, kept in self.kept.items():
            if name not in known:
                raise ConfigError(f"This config has no site {name!r}.", code="unknown_site", given=name, legal=sorted(known)[:8])
            _check_indices(name, kept, known[name].total)
        for name, held in self.held.items():
            if name not in known or known[name].kind != "stream" or not set(held) < set(self.units(known[name])):
                raise ConfigError(
                    f"{name} cannot hold these units at zero.",
                    code="bad_held",
                    given=list(held)[:8],
                    legal="some units of a stream",
                )

    def compose(self, config: DCAEConfig, keep: Mapping[str, Sequence[int]]) -> Layout:
        """This layout with only `keep` (indices in *current* coordinates) of the named sites; held units that go are held no more.

        Raises ConfigError as `validate` does.
        """
        known = sites(config)
        kept, held = dict(self.kept), dict(self.held)
        for name, indices in keep.items():
            if name not in known:
                raise ConfigError(f"This config has no site {name!r}.", code="unknown_site", given=name, legal=sorted(known)[:8])
            units = self.units(known[name])
            _check_indices(name, indices, len(units))
            if len(indices) < len(units):
                kept[name] = tuple(units[i] for i in indices)
                held[name] = tuple(sorted({*held.get(name, ())} & {*kept[name]}))
        return Layout(kept, {name: units for name, units in held.items() if units})

    def hold(self, config: DCAEConfig, keep: Mapping[str, Sequence[int]]) -> Layout:
        """This layout with the units that `keep` leaves out of the named streams held at zero; other sites stay as they are.

        Raises ConfigError as `compose` does.
        """
        after, held = self.compose(config, keep), dict(self.held)
        for name in keep:
            site = sites(config)[name]
            gone = {*self.units(site)} - {*after.units(site)}
            if site.kind == "stream" and gone:
                held[name] = tuple(sorted({*held.get(name, ())} | gone))
        return Layout(self.kept, held)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back. `held`, and version 2, stand only where something is."""
        parts = {"kept": self.kept, **({"held": self.held} if self.held else {})}
        return {
            "version": 2 if self.held else 1,
            **{part: {name: list(units) for name, units in sorted(parts[part].items())} for part in parts},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Layout:
        """Reads `to_json`'s values; raises ConfigError for another version."""
        if not data:
            return cls()
        if data.get("version") not in (1, 2):
            raise ConfigError("This layout was made by another version.", given=data.get("version"), legal=(1, 2))
        try:
            parts = (data["kept"], data.get("held", {}))
            return cls(*({str(name): tuple(int(i) for i in units) for name, units in part.items()} for part in parts))
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            message = f"This is no layout: {error!r}."
            raise ConfigError(message, code="bad_layout", legal="site names to indices") from error

    @cached_property
    def _digest(self) -> str:
        text = json.dumps(Layout(self.kept).to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def digest(self) -> str:
        """sha256 of the canonical JSON of what is kept: a plan names the layout that it was made for by it.

        Held units are left out: they change no coordinate, so the plan that a model was masked by cuts it too.
        """
        return self._digest


def _channels(site: Site, units: Sequence[int]) -> tuple[int, ...]:
    """The original channels of a stream's units."""
    return tuple(site.channels * unit + offset for unit in units for offset in range(site.channels))


def _check_indices(name: str, indices: Sequence[int], total: int) -> None:
    if len(indices) == 0:
        raise ConfigError(f"{name} would lose its last unit.", code="empty_site", given=0, legal=f"1 to {total} units")
    if indices[0] < 0 or indices[-1] >= total or any(a >= b for a, b in zip(indices[:-1], indices[1:], strict=True)):
        raise ConfigError(
            f"Kept units of {name} must be ascending and below {total}.",
            code="bad_indices",
            given=list(indices)[:8],
            legal=f"ascending, 0 to {total - 1}",
        )
