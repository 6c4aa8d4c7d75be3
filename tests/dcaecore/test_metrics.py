"""Figures against independent implementations, and what they leave out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from dcaecore import ConfigError, ReconstructionLoss, learning_rate, schedule_warning, to_uint8
from dcaecore.metrics import accuracy, psnr_db, ssim


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 256, (3, 40, 48, 3), dtype=np.uint8)
    noise = rng.integers(-20, 21, target.shape)
    return np.clip(target.astype(int) + noise, 0, 255).astype(np.uint8), target


def test_psnr_and_ssim_equal_torchmetrics(images):
    output, target = images
    full = np.ones(target.shape[:3], dtype=bool)
    x, y = (torch.from_numpy(a).permute(0, 3, 1, 2).double() for a in images)
    for i in range(3):
        theirs = peak_signal_noise_ratio(x[i], y[i], data_range=255.0)
        assert psnr_db(output, target, full)[i] == pytest.approx(float(theirs), abs=1e-4)
    inner = np.zeros_like(full)
    inner[:, 5:-5, 5:-5] = True
    theirs = structural_similarity_index_measure(
        x, y, data_range=255.0, gaussian_kernel=True, sigma=1.5, kernel_size=11, reduction="none"
    )
    assert ssim(output, target, inner) == pytest.approx(theirs.numpy(), abs=2e-3)
    assert ssim(target, target, full) == pytest.approx(np.ones(3))


def test_padding_counts_for_nothing(images):
    output, target = images
    content = np.ones(target.shape[:3], dtype=bool)
    content[:, :10] = False
    plain = psnr_db(output, target, content)
    spoiled = output.copy()
    spoiled[:, :10] = 0
    assert np.array_equal(plain, psnr_db(spoiled, target, content))
    assert psnr_db(target, target, content).max() == 100.0
    assert np.isnan(psnr_db(output, target, content & False)).all()
    assert accuracy(target, target, content) == pytest.approx(np.ones(3))
    off = target.astype(int) + 9 * (target < 100) - 9 * (target >= 100)
    assert accuracy(off.astype(np.uint8), target, content).max() == 0.0


def test_outputs_are_clamped_and_rounded():
    x = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert to_uint8(x)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_the_foreground_weight_moves_the_loss_to_where_things_move():
    target = torch.zeros(1, 3, 8, 8)
    output = torch.zeros(1, 3, 8, 8)
    output[..., 0, 0] = 1.0
    moving = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    moving[..., 0, 0] = True
    plain = ReconstructionLoss("l1")(output, target, moving)[0]
    heavy = ReconstructionLoss("l1", foreground_weight=21.0)(output, target, moving)[0]
    assert float(plain) == pytest.approx(1 / 64) and float(heavy) == pytest.approx(21 / 84)
    total, parts, _ = ReconstructionLoss("l1+mse")(output, target, moving)
    assert float(total) == pytest.approx(sum(float(p) for p in parts.values()))
    with pytest.raises(ConfigError, match="perceptual"):
        ReconstructionLoss("l1", perceptual_weight=1.0)
    with pytest.raises(ConfigError, match="no reconstruction loss"):
        ReconstructionLoss("huber")


@pytest.mark.parametrize("name", ["cosine", "linear", "exponential", "step"])
def test_schedules_equal_torchs_own(name):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    schedulers = torch.optim.lr_scheduler
    theirs = {
        "cosine": lambda: schedulers.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.001),
        "linear": lambda: schedulers.LinearLR(optimizer, 1.0, 0.01, total_iters=50),
        "exponential": lambda: schedulers.ExponentialLR(optimizer, 0.1 ** (1 / 50)),
        "step": lambda: schedulers.StepLR(optimizer, 10, 0.1),
    }[name]()
    for step in range(50):
        ours = learning_rate(step, name=name, init_lr=0.1, total_steps=50, min_lr=0.001, gamma=0.1, step_size=10)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        theirs.step()


def test_the_users_own_schedule_is_warned_about():
    rates = [learning_rate(s, name="cosine", init_lr=1e-4, total_steps=100, warmup_steps=500, warmup_lr=1e-6) for s in range(100)]
    warning = schedule_warning(warmup_steps=500, total_steps=100, init_lr=1e-4, warmup_lr=1e-6)
    assert warning is not None and f"{rates[-1]:.3g}" in warning
    assert schedule_warning(warmup_steps=10, total_steps=100, init_lr=1e-4, warmup_lr=1e-6) is None
    with pytest.raises(ConfigError, match="no schedule"):
        learning_rate(0, name="zigzag", init_lr=1.0, total_steps=1)
