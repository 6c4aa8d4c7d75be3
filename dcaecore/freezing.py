"""Parts of a DC-AE that can be held while the rest trains: a coder, or any of its stages by name. Names are free of torch.

Also the three phases of the paper's training recipe (DC-AE, arXiv 2410.10733, section 3.3) as sets of parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dcaecore.config import DCAEConfig
from dcaecore.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

CODERS = ("encoder", "decoder")


def part_names(config: DCAEConfig) -> tuple[str, ...]:
    """Every part that can be held, from the image to the latents and back.

    `decoder.conv_out` includes the norm before it. Stages without blocks are left out.
    """
    coders = {coder: config.coder(coder) for coder in CODERS}
    stages = {name: range(coder.first_stage, coder.num_stages) for name, coder in coders.items()}
    encoder = ["encoder.conv_in", *(f"encoder.stages.{i}" for i in stages["encoder"]), "encoder.conv_out"]
    decoder = ["decoder.conv_in", *(f"decoder.stages.{i}" for i in reversed(stages["decoder"])), "decoder.conv_out"]
    return (*encoder, *decoder)


def check_parts(config: DCAEConfig, held: Sequence[str]) -> None:
    """Raises ConfigError for a part that the model has not, and where nothing would be left to train."""
    legal = part_names(config)
    for name in held:
        if name not in legal:
            raise ConfigError(f"The model has no part {name!r}.", code="part", given=name, legal=list(legal))
    if set(held) >= set(legal):
        raise ConfigError("Every part is held: nothing would train.", code="part", given=list(held))


def held_prefixes(frozen_part: str, frozen_stages: Sequence[str]) -> tuple[str, ...]:
    """Prefixes of the names of modules and parameters that are held."""
    held = [] if frozen_part == "none" else [f"{frozen_part}."]
    for name in frozen_stages:
        held += [f"{name}.", *(["decoder.norm_out."] if name == "decoder.conv_out" else [])]
    return tuple(held)


def freeze(model: nn.Module, held: tuple[str, ...]) -> None:
    """Holds the parameters under these prefixes; raises ConfigError where none is left."""
    for name, parameter in model.named_parameters():
        if held and name.startswith(held):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("Every part is held: nothing would train.", code="part", given=list(held))


def phase_parts(config: DCAEConfig, phase: int) -> tuple[str, ...]:
    """What is held in phase 1, 2 or 3 of the paper.

    1: nothing, at low resolution. 2: latent adaptation at high resolution, where only the encoder's head (its last stage and
    projection) and the decoder's input (its projection and first stage) train. 3: local refinement at low resolution, where only
    the decoder's head (its last stage and projection) trains; the paper adds a GAN loss there, and we do not.
    """
    names = part_names(config)
    if phase == 1:
        return ()
    last = config.encoder.num_stages - 1
    first = config.decoder.first_stage
    trained = {
        2: (f"encoder.stages.{last}", "encoder.conv_out", "decoder.conv_in", f"decoder.stages.{last}"),
        3: (f"decoder.stages.{first}", "decoder.conv_out"),
    }
    if phase not in trained:
        raise ConfigError(f"There is no phase {phase}.", given=phase, legal=[1, 2, 3])
    return tuple(name for name in names if name not in trained[phase])
