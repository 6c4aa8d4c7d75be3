"""Muon: against torch's own on matrices, kernels as matrices, what goes by AdamW, masks that hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from dcaecore import DCAE, VARIANTS, NullCallbacks, TrainSettings, train
from dcaecore.muon import Muon, is_hidden_matrix, orthogonalize
from dcaecore.optim import make_optimizer
from tests.dcaecore.test_trainer_resume import SETTINGS, setting_up


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (32, 32)])
def test_singular_values_come_near_to_one(shape):
    made = orthogonalize(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    values = torch.linalg.svdvals(made)
    assert made.shape == shape and 0.5 < values.min() and values.max() < 1.3


def test_matrices_move_as_by_torchs_own():
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(48, 32)), nn.Parameter(torch.empty(48, 32))
    theirs.data.copy_(ours.data)
    start, options = ours.detach().clone(), {"lr": 0.02, "weight_decay": 0.1}
    mine = Muon([{"params": [ours], "muon": True}], **options)
    reference = torch.optim.Muon([theirs], momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw", **options)
    for _ in range(5):
        ours.grad = torch.randn(48, 32)
        theirs.grad = ours.grad.clone()
        mine.step()
        reference.step()
    moved = (ours.detach() - start).norm()
    assert (ours - theirs).detach().norm() < 0.02 * moved, "theirs works in bfloat16"


def test_a_kernel_moves_as_the_matrix_that_it_is():
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(16, 4, 3, 3).contiguous(memory_format=torch.channels_last))
    matrix = nn.Parameter(kernel.detach().reshape(16, 36).clone())
    kernel.grad = torch.randn(16, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    matrix.grad = kernel.grad.reshape(16, 36)
    for weight in (kernel, matrix):
        Muon([{"params": [weight], "muon": True}], lr=0.1).step()
    assert torch.allclose(kernel.reshape(16, 36), matrix, atol=1e-6)


def test_ends_depthwise_kernels_vectors_and_large_matrices_go_by_adamw():
    model = DCAE(VARIANTS["tiny"])
    settings = TrainSettings(optimizer_name="muon", weight_decay=0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = make_optimizer(model, settings).param_groups
    by_muon = {names[id(p)] for group in groups if group["muon"] for p in group["params"]}
    by_adamw = {names[id(p)] for group in groups if not group["muon"] for p in group["params"]}
    assert by_muon | by_adamw == set(names.values()) and not by_muon & by_adamw
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert all(shapes[name][1] > 1 and "conv_in" not in name and "conv_out" not in name for name in by_muon)
    assert {"decoder.conv_in.conv.weight", "decoder.conv_out.conv.weight"} & set(names.values()) <= by_adamw
    assert {group["weight_decay"] for group in groups if group["muon"]} == {0.1}
    kernel = torch.empty(64, 8, 3, 3)
    assert is_hidden_matrix("decoder.stages.0.conv1.weight", kernel, 64)
    assert not is_hidden_matrix("decoder.stages.0.conv1.weight", kernel, 63)
    narrow = make_optimizer(model, replace(settings, muon_max_side=1)).param_groups
    assert not any(group["muon"] for group in narrow)


def test_masked_weights_stay_zero_after_every_step(data_dir):
    """An update mixes a matrix, so masked gradients alone would not do."""
    model, stream, pinned = setting_up(data_dir)
    masks = {name: torch.rand_like(p) > 0.5 for name, p in model.named_parameters() if p.ndim > 1}

    class Watch(NullCallbacks):
        steps = 0

        def on_step(self, step, metrics):
            self.steps += 1
            assert not any(p.detach()[~masks[name]].any() for name, p in model.named_parameters() if name in masks)

    watch = Watch()
    train(model, replace(SETTINGS, optimizer_name="muon"), stream, pinned, masks=masks, callbacks=watch)
    assert watch.steps == SETTINGS.total_steps
