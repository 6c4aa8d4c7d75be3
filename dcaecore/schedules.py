"""The learning rate as a pure function of the step; free of torch, so a page can draw it.

A run takes `total_steps` steps in all, the warm-up among them. (The reference trainer of efficientvit appends its epochs to the
warm-up instead, which made the user's five warm-up epochs of a one-epoch run end at a fifth of the rate asked for.)
"""

from __future__ import annotations

import math

from dcaecore.errors import ConfigError

SCHEDULES = ("cosine", "constant", "linear", "step", "exponential", "onecycle", "plateau")


def learning_rate(
    step: int,
    *,
    name: str,
    init_lr: float,
    total_steps: int,
    warmup_steps: int = 0,
    warmup_lr: float = 0.0,
    min_lr: float = 0.0,
    gamma: float = 0.1,
    step_size: int = 1,
) -> float:
    """The rate of step `step` (from 0).

    Linear warm-up from `warmup_lr` to `init_lr`, then over the remaining D steps: cosine
    `min + (init - min) (1 + cos(pi s / D)) / 2`, linear to `min_lr`, step (times `gamma` each `step_size` steps), exponential
    (`gamma ** (s / D)`), constant, or one-cycle (Smith and Topin, arXiv 1708.07120: the warm-up and the fall are both cosine).
    `plateau` is constant here: its falls come from validations (`dcaecore.plateau`).
    """
    if name not in SCHEDULES:
        raise ConfigError(f"There is no schedule {name!r}.", given=name, legal=SCHEDULES)
    if step < warmup_steps:
        part = step / warmup_steps
        if name == "onecycle":
            part = (1 - math.cos(math.pi * part)) / 2
        return warmup_lr + (init_lr - warmup_lr) * part
    span = max(1, total_steps - warmup_steps)
    done = min(step - warmup_steps, span)
    if name in ("cosine", "onecycle"):
        return min_lr + (init_lr - min_lr) * 0.5 * (1 + math.cos(math.pi * done / span))
    if name == "linear":
        return init_lr + (min_lr - init_lr) * done / span
    if name == "step":
        return init_lr * gamma ** (done // step_size)
    if name == "exponential":
        return init_lr * gamma ** (done / span)
    return init_lr


def schedule_warning(*, warmup_steps: int, total_steps: int, init_lr: float, warmup_lr: float) -> str | None:
    """What to tell a user whose warm-up is longer than the training: the rate that it would end at."""
    if warmup_steps < total_steps or warmup_steps == 0:
        return None
    last = warmup_lr + (init_lr - warmup_lr) * (total_steps - 1) / warmup_steps
    return (
        f"The warm-up takes {warmup_steps} steps and the whole training {total_steps}: the learning rate ends at {last:.3g} "
        f"and never reaches {init_lr:.3g}. Shorten the warm-up or train longer."
    )
