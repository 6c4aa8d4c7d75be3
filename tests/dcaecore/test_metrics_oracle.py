"""The figures that torchmetrics or a plain loop can check: L1, MSE, accuracy, latent drift, over content alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional import mean_absolute_error, mean_squared_error

from dcaecore import PinnedImages, latent_drift
from dcaecore.metrics import score_images


@pytest.fixture(scope="module")
def case():
    draw = np.random.default_rng(1)
    target = draw.integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)
    output = np.clip(target.astype(int) + draw.integers(-12, 13, target.shape), 0, 255).astype(np.uint8)
    content = np.zeros(target.shape[:3], dtype=bool)
    content[:, 3:17, 2:21] = True
    return output, PinnedImages(target, content, None, "", None, ("a", "b", "c"), (), "")


def test_l1_and_mse_are_those_of_torchmetrics_on_the_models_scale(case):
    output, pinned = case
    found = score_images(output, pinned)
    for index in range(3):
        x, y = (torch.from_numpy(a[index][pinned.content[index]] / 127.5 - 1) for a in (output, pinned.images))
        assert found["l1"][index] == pytest.approx(float(mean_absolute_error(x, y)), rel=1e-5)
        assert found["mse"][index] == pytest.approx(float(mean_squared_error(x, y)), rel=1e-5)


def test_accuracy_is_what_a_plain_loop_counts(case):
    output, pinned = case
    for index, found in enumerate(score_images(output, pinned)["accuracy"]):
        near = total = 0
        for row in range(20):
            for column in range(24):
                if pinned.content[index, row, column]:
                    total += 1
                    pair = zip(output[index, row, column].tolist(), pinned.images[index, row, column].tolist(), strict=True)
                    near += all(abs(a - b) <= 8 for a, b in pair)
        assert found == near / total and 0 < near < total


def test_latent_drift_is_the_ratio_of_lengths():
    draw = np.random.default_rng(2)
    z, reference = draw.normal(size=(2, 4, 3, 3)), draw.normal(size=(2, 4, 3, 3))
    found = latent_drift(torch.from_numpy(z), torch.from_numpy(reference))
    for index in range(2):
        expected = np.linalg.norm((z - reference)[index].ravel()) / np.linalg.norm(reference[index].ravel())
        assert float(found[index]) == pytest.approx(expected, rel=1e-6)
