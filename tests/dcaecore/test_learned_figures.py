"""LPIPS and rFID with random weights in the published format: read strictly, and the arithmetic against plain or scipy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn
from torch.nn import functional as F

from core.learned_figures import LPIPS_FILES, RFID_FILES
from dcaecore import CheckpointError
from dcaecore.inception import FEATURES, WEIGHTS, Inception, features, frechet_distance, rfid
from dcaecore.lpips import BACKBONE, CHANNELS, LEAST_SIDE, LINEAR, Lpips, lpips

CONVOLUTIONS = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files as torchvision and lpips publish them, with random weights."""
    where = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    backbone = {"classifier.1.weight": torch.zeros(4, 4)}
    for place, (outputs, inputs, kernel) in CONVOLUTIONS.items():
        backbone[f"features.{place}.weight"] = torch.randn(outputs, inputs, kernel, kernel) / (inputs * kernel**2) ** 0.5
        backbone[f"features.{place}.bias"] = torch.randn(outputs) / 10
    torch.save(backbone, where / BACKBONE)
    torch.save({f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate(CHANNELS)}, where / LINEAR)
    return where


@pytest.fixture
def images():
    draw = np.random.default_rng(0)
    return tuple(draw.integers(0, 256, (2, 96, 80, 3), dtype=np.uint8) for _ in range(2))


def by_hand(folder, x, y):
    """LPIPS as the paper writes it, layer by layer, from the files themselves and torch's own AlexNet layers."""
    backbone, linear = torch.load(folder / BACKBONE), torch.load(folder / LINEAR)
    layers = nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    )  # fmt: skip
    layers.load_state_dict({k.removeprefix("features."): v for k, v in backbone.items() if k.startswith("features.")})
    total = 0.0
    images = [
        (torch.from_numpy(a).permute(2, 0, 1)[None].float() / 127.5 - 1 - torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        / torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
        for a in (x, y)
    ]
    number = 0
    for layer in layers:
        images = [layer(image) for image in images]
        if isinstance(layer, nn.ReLU):
            a, b = (F.normalize(image, dim=1, eps=1e-10) for image in images)
            total += float(F.conv2d((a - b) ** 2, linear[f"lin{number}.model.1.weight"]).mean())
            number += 1
    return total


def test_lpips_is_the_sum_over_five_layers(folder, images):
    net, whole = Lpips.from_folder(folder), np.ones((2, 96, 80), dtype=bool)
    with torch.no_grad():
        found = lpips(net, *images, whole)
        for index in range(2):
            assert found[index] == pytest.approx(by_hand(folder, images[0][index], images[1][index]), rel=1e-4)
    assert lpips(net, images[0], images[0], whole).tolist() == [0.0, 0.0] and len(net.digest) == 12


def test_only_content_counts_for_lpips(folder, images):
    net, content = Lpips.from_folder(folder), np.zeros((2, 96, 80), dtype=bool)
    content[0, 10:90, 5:75] = True
    content[1, :, : LEAST_SIDE - 1] = True
    found = lpips(net, *images, content)
    with torch.no_grad():
        assert found[0] == pytest.approx(by_hand(folder, images[0][0, 10:90, 5:75], images[1][0, 10:90, 5:75]), rel=1e-4)
    assert np.isnan(found[1]), "too small"


def test_wrong_files_are_named(folder, tmp_path):
    (tmp_path / LINEAR).write_bytes((folder / LINEAR).read_bytes())
    (tmp_path / BACKBONE).write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Lpips.from_folder(tmp_path)
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / BACKBONE)
    with pytest.raises(CheckpointError, match="features.0.weight"):
        Lpips.from_folder(tmp_path)
    torch.save([1, 2], tmp_path / BACKBONE)
    with pytest.raises(CheckpointError, match="no weights"):
        Lpips.from_folder(tmp_path)


def test_the_frechet_distance_is_scipys():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(200, 6)) @ draw.normal(size=(6, 6)) + 1
    y = draw.normal(size=(150, 6)) @ draw.normal(size=(6, 6))
    covariances = [np.cov(rows, rowvar=False) for rows in (x, y)]
    root = np.real(sqrtm(covariances[0] @ covariances[1]))
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-8)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-8)
    one = draw.normal(2.0, 3.0, (100_000, 1))
    other = draw.normal(0.0, 1.0, (100_000, 1))
    assert frechet_distance(one, other) == pytest.approx(2**2 + (3 - 1) ** 2, rel=0.03), "the closed form of one dimension"


def test_inception_reads_the_published_format_and_gives_its_features(tmp_path):
    torch.manual_seed(0)
    net = Inception()
    state = net.state_dict()
    # Counted from the published file: 94 convolutions with five tensors of a norm each; the classifier is left aside.
    assert sum(key.endswith("conv.weight") for key in state) == 94 and sum(v.numel() for v in net.parameters()) == 21_785_568
    assert state["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)
    assert state["Mixed_6e.branch7x7dbl_2.conv.weight"].shape == (192, 192, 7, 1)
    saved = {key: value for key, value in state.items() if "num_batches" not in key}
    torch.save({**saved, "fc.weight": torch.zeros(1008, 2048)}, tmp_path / WEIGHTS)
    again = Inception.from_folder(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    found = features(again, images)
    assert found.shape == (2, FEATURES) and np.isfinite(found).all() and not np.allclose(found[0], found[1])
    assert np.allclose(found, features(net.eval(), images))
    torch.save({"Conv2d_1a_3x3.conv.weight": saved["Conv2d_1a_3x3.conv.weight"]}, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match="Conv2d_1a_3x3.bn.weight"):
        Inception.from_folder(tmp_path)
    with pytest.raises(ValueError, match="2048 images"):
        rfid(again, images, images)


def test_the_files_that_a_page_names_are_those_that_are_read():
    assert LPIPS_FILES == (BACKBONE, LINEAR) and RFID_FILES == (WEIGHTS,)
