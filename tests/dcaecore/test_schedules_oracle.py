"""Every schedule against torch's own schedulers, and every optimizer against a training of 20 seeded steps."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.optim import lr_scheduler as torch_schedules

from dcaecore import SCHEDULES, learning_rate
from dcaecore.plateau import Plateau

INIT, WARM, LEAST, STEPS, WARMUP = 1e-3, 1e-5, 1e-6, 40, 8
SPAN = STEPS - WARMUP


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=INIT)


def rates_of(make, steps: int) -> list[float]:
    sgd = optimizer()
    schedule, found = make(sgd), []
    for _ in range(steps):
        found.append(sgd.param_groups[0]["lr"])
        sgd.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SequentialLR passes a step that torch itself deprecates
            schedule.step()
    return found


def after_warm_up(make):
    """The user's warm-up by torch: LinearLR, then the schedule."""

    def chained(sgd):
        first = torch_schedules.LinearLR(sgd, start_factor=WARM / INIT, end_factor=1.0, total_iters=WARMUP)
        return torch_schedules.SequentialLR(sgd, [first, make(sgd)], milestones=[WARMUP])

    return chained


ORACLES = {
    "cosine": after_warm_up(lambda sgd: torch_schedules.CosineAnnealingLR(sgd, T_max=SPAN, eta_min=LEAST)),
    "linear": after_warm_up(lambda sgd: torch_schedules.LinearLR(sgd, 1.0, LEAST / INIT, total_iters=SPAN)),
    "step": after_warm_up(lambda sgd: torch_schedules.StepLR(sgd, step_size=5, gamma=0.3)),
    "exponential": after_warm_up(lambda sgd: torch_schedules.ExponentialLR(sgd, gamma=0.3 ** (1 / SPAN))),
    "constant": after_warm_up(lambda sgd: torch_schedules.ConstantLR(sgd, factor=1.0)),
    # torch's one-cycle reaches its ends at `pct_start * total - 1` and `total - 1`; ours at the warm-up's and the run's.
    "onecycle": lambda sgd: torch_schedules.OneCycleLR(
        sgd, max_lr=INIT, total_steps=STEPS + 1, pct_start=(WARMUP + 1) / (STEPS + 1), div_factor=INIT / WARM,
        final_div_factor=WARM / LEAST, cycle_momentum=False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ORACLES)
def test_the_schedule_is_torchs(name):
    ours = [
        learning_rate(
            step, name=name, init_lr=INIT, total_steps=STEPS, warmup_steps=WARMUP, warmup_lr=WARM, min_lr=LEAST, gamma=0.3,
            step_size=5,
        )
        for step in range(STEPS)
    ]  # fmt: skip
    assert ours == pytest.approx(rates_of(ORACLES[name], STEPS), rel=1e-9)
    assert len(set(ours)) > 2


def test_every_schedule_has_an_oracle():
    assert set(SCHEDULES) == {*ORACLES, "plateau"}


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_the_plateau_is_torchs(higher_is_better):
    values = [20.0, 21.0, 21.05, 21.2, 21.2, 21.1, 21.15, 23.0, 23.0, 23.0, 23.0, 23.0, 23.0, 22.0, 22.0, 22.0, 22.0]
    if not higher_is_better:
        values = [-value for value in values]
    sgd = optimizer()
    schedule = torch_schedules.ReduceLROnPlateau(
        sgd, mode="max" if higher_is_better else "min", factor=0.3, patience=1, threshold=0.1, threshold_mode="abs", min_lr=LEAST
    )
    ours = Plateau(gamma=0.3, patience=1, min_gain=0.1, sign=1 if higher_is_better else -1)
    seen = set()
    for value in values:
        schedule.step(value)
        ours.observe(value)
        rate = max(LEAST, INIT * ours.factor)
        assert rate == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-9)
        seen.add(round(rate, 12))
    assert len(seen) >= 4
