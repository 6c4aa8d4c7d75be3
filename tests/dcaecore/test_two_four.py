"""Packed 2:4 products: which layers take them, that the model computes the same, and what a device without the kernels says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dcaecore.two_four as two_four_kernels
from core.pruning.masks import apply_masks, two_four
from dcaecore import DCAE, VARIANTS
from dcaecore.errors import ConfigError
from dcaecore.two_four import TwoFourConv2d, is_two_four, pack, packable, packed_bytes


@pytest.fixture
def sparse():
    """A model of which all that can be is 2:4; its 1x1 convolutions have widths that the kernels take."""
    torch.manual_seed(0)
    model = DCAE(VARIANTS["tiny"]).eval()
    state = model.state_dict()
    model.load_state_dict(apply_masks(state, two_four(state)))
    return model


@pytest.fixture
def kernels(monkeypatch):
    """Stands for torch's packing, which needs a GPU: the matrix itself, of which half would be kept."""
    seen = []

    def to_sparse(weight):
        assert weight.ndim == 2 and weight.is_contiguous() and is_two_four(weight)
        seen.append(weight)
        return weight

    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", to_sparse)
    return seen


def test_a_weight_is_2_4_where_no_four_inputs_have_more_than_two():
    assert is_two_four(torch.tensor([[1.0, 0, 2, 0, 0, 0, 3, 4]])) and is_two_four(torch.zeros(2, 4, 1, 1))
    assert not is_two_four(torch.tensor([[0.0, 0, 0, 0, 1, 1, 1, 0]])), "half is zero, but three of the last four are not"
    assert not is_two_four(torch.zeros(2, 6)) and not is_two_four(torch.zeros(4))


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_a_packed_model_computes_what_the_masked_one_does(sparse, kernels, form):
    sparse = sparse.bfloat16().to(memory_format=form)
    x = (torch.rand(2, 3, 64, 32) * 2 - 1).bfloat16().to(memory_format=form)
    before, weights = sparse(x), {n: p.clone() for n, p in sparse.named_parameters()}
    names = pack(sparse)
    assert len(names) == len(kernels) == 8 and all(isinstance(sparse.get_submodule(name), TwoFourConv2d) for name in names)
    assert [tuple(w.shape) for w in kernels] == [tuple(weights[f"{name}.weight"].shape[:2]) for name in names]
    # Only the order of the products' sums differs.
    assert torch.allclose(sparse(x).float(), before.float(), atol=0.03) and not torch.equal(before, torch.zeros_like(before))
    assert packable(sparse) == [] and pack(sparse) == []


def test_dense_layers_grouped_ones_and_odd_widths_stay_as_they_are(sparse):
    assert packable(DCAE(VARIANTS["tiny"])) == []
    assert {name.rpartition(".")[2] for name in packable(sparse)} == {"qkv", "proj", "inverted", "pointwise"}
    for shape in ((48, 64), (32, 96), (31, 64)):
        layer = nn.Sequential(nn.Conv2d(shape[1], shape[0], 1))
        nn.init.zeros_(layer[0].weight)
        assert packable(layer) == [], shape
    three = nn.Sequential(nn.Conv2d(64, 32, 3))
    nn.init.zeros_(three[0].weight)
    assert packable(three) == []


def test_bytes_are_of_what_is_packed(sparse, monkeypatch):
    class Packed(torch.Tensor):
        """As torch's own: a tensor that holds what is left of the weight, and where it stands."""

    def to_sparse(weight):
        made = weight.as_subclass(Packed)
        made.packed, made.meta = weight[:, ::2], torch.zeros(weight.shape[0], weight.shape[1] // 16, dtype=torch.int16)
        return made

    assert packed_bytes(sparse) == 0
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", to_sparse)
    sparse.bfloat16()
    weights = {name: sparse.get_submodule(name).weight.numel() for name in packable(sparse)}
    before = sum(p.numel() for p in sparse.parameters())
    pack(sparse)
    assert packed_bytes(sparse) == sum(weights.values()) * (1 + 1 / 8)
    assert sum(p.numel() for p in sparse.parameters()) + sum(b.numel() for b in sparse.buffers() if b.is_floating_point()) == (
        before - sum(weights.values())
    )


def test_what_packs_but_cannot_multiply_is_found_out_at_once(sparse, kernels, monkeypatch):
    def linear(*_):
        raise RuntimeError("only supported on another architecture\nand a trace")

    monkeypatch.setattr(two_four_kernels.F, "linear", linear)
    with pytest.raises(ConfigError, match="no kernels for 2:4 weights on cpu: only supported on another architecture"):
        pack(sparse.bfloat16())
    assert len(packable(sparse)) == 8, "nothing was replaced"


def test_a_device_and_a_dtype_without_kernels_are_named(sparse):
    with pytest.raises(ConfigError, match="do not multiply float32") as caught:
        pack(sparse)
    assert caught.value.code == "no_sparse_kernels" and "bfloat16" in caught.value.legal
    with pytest.raises(ConfigError, match="no kernels for 2:4 weights on cpu.*CUDA"):
        pack(sparse.bfloat16())
    assert len(packable(sparse)) == 8, "nothing was replaced"
