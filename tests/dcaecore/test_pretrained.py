"""Weights from elsewhere: the shape is found in either published format, from config.json, or from the tensors alone."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from dcaecore import DCAE, HUB_IDS, VARIANTS, CheckpointError, ConfigError, DCAEConfig, Layout, from_pretrained, save_model
from dcaecore.keys import config_of_diffusers, from_format, infer_config, to_format, unwrap
from dcaecore.pretrained import _told_by_tensors
from dcaecore.zoo import variant_of_release

# The shapes that differ in their tensors: `mix` is shaped as `in`, sana 1.1 as 1.0.
PUBLISHED = [name for name in VARIANTS if name.startswith("dc-ae") and not name.endswith(("-mix", "-1.1"))]
FORMATS = ["original", "diffusers", "offshoot"]


def narrow(name: str) -> DCAEConfig:
    """A published variant with widths cut to 64 at most and two blocks a stage at most."""

    def cut(coder):
        widths = tuple(32 if stage < 3 else 64 for stage in range(coder.num_stages))
        return replace(coder, widths=widths, depths=tuple(min(depth, 2) for depth in coder.depths))

    config = VARIANTS[name]
    return replace(config, encoder=cut(config.encoder), decoder=cut(config.decoder), latent_channels=32)


def in_format(state: dict[str, torch.Tensor], config: DCAEConfig, fmt: str) -> dict[str, torch.Tensor]:
    found = state if fmt == "offshoot" else to_format(state, config, fmt)
    return {key: value.contiguous() for key, value in found.items()}


def random_model(config: DCAEConfig) -> DCAE:
    torch.manual_seed(0)
    return DCAE(config).eval()


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_and_shapes_tell_the_published_config(name, fmt):
    config = VARIANTS[name]
    with torch.device("meta"):
        state = in_format(DCAE(config).state_dict(), config, fmt)
    inferred = infer_config({key: tuple(value.shape) for key, value in state.items()})
    assert inferred is not None
    assert _told_by_tensors(inferred) == _told_by_tensors(config)
    assert inferred.decoder.acts[1:] == config.decoder.acts[1:] and inferred.decoder.out_act == config.decoder.out_act
    assert inferred.encoder.acts == config.encoder.acts


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", ["dc-ae-f32c32-in", "dc-ae-f32c32-sana-1.1", "dc-ae-lite-f32c32"])
def test_a_shape_of_its_own_is_read_from_the_tensors(tmp_path, name, fmt):
    config = narrow(name)
    model = random_model(config)
    save_file(in_format(model.state_dict(), config, fmt), tmp_path / "own.safetensors")
    found = from_pretrained(tmp_path / "own.safetensors")
    assert found.variant is None and found.key_format == fmt
    assert any("shape of its own" in note for note in found.notes)
    side = config.spatial_compression
    x_BCHW = torch.rand(1, 3, side, side) * 2 - 1
    with torch.no_grad():
        assert torch.equal(found.model(x_BCHW), model(x_BCHW))


def test_original_keys_of_lite_agree_with_diffusers_own_conversion():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers.loaders.single_file_utils import convert_autoencoder_dc_checkpoint_to_diffusers

    config = narrow("dc-ae-lite-f32c32")
    state = random_model(config).state_dict()
    converted = convert_autoencoder_dc_checkpoint_to_diffusers(
        {key: value.clone() for key, value in to_format(state, config, "original").items()}
    )
    # Their converter takes the last convolution's kind from the first one's, and Lite mixes sana's encoder with another end.
    for leaf in ("weight", "bias"):
        converted[f"decoder.conv_out.conv.{leaf}"] = converted.pop(f"decoder.conv_out.{leaf}")
    back = from_format(converted, config, "diffusers")
    assert set(back) == set(state) and all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_go_in_both_directions(name):
    config = narrow(name)
    state = random_model(config).state_dict()
    for fmt in FORMATS[:2]:
        theirs = to_format(state, config, fmt)
        assert not set(theirs) & {key for key in state if ".blocks." in key}
        back = from_format(theirs, config, fmt)
        assert list(sorted(back)) == sorted(state) and all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize(("name", "original", "diffusers"), [("f32c32-in", 338, 362), ("f32c32-sana-1.0", 339, 375)])
def test_key_counts_are_those_of_the_releases(name, original, diffusers):
    config = VARIANTS[f"dc-ae-{name}"]
    with torch.device("meta"):
        state = DCAE(config).state_dict()
    assert len(to_format(state, config, "original")) == original
    assert len(to_format(state, config, "diffusers")) == diffusers


@pytest.mark.parametrize("name", ["dc-ae-f32c32-in", "dc-ae-f32c32-sana-1.0", "dc-ae-lite-f32c32"])
def test_a_folder_that_diffusers_saved(tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import AutoencoderDC

    config = narrow(name)
    kinds = {"resblock": "ResBlock", "evit": "EfficientViTBlock"}
    norms = {"trms2d": "rms_norm", "bn2d": "batch_norm"}
    encoder, decoder = config.encoder, config.decoder
    theirs = AutoencoderDC(
        encoder_block_types=tuple(kinds[kind] for kind in encoder.blocks),
        decoder_block_types=tuple(kinds[kind] for kind in decoder.blocks),
        encoder_block_out_channels=encoder.widths,
        decoder_block_out_channels=decoder.widths,
        encoder_layers_per_block=encoder.depths,
        decoder_layers_per_block=decoder.depths,
        encoder_qkv_multiscales=encoder.scales,
        decoder_qkv_multiscales=decoder.scales,
        upsample_block_type="interpolate" if decoder.resample == "interpolate" else "pixel_shuffle",
        downsample_block_type="Conv" if encoder.resample == "conv" else "pixel_unshuffle",
        decoder_norm_types=tuple(norms[norm] for norm in decoder.norms),
        decoder_act_fns=decoder.acts,
        decoder_conv_act_fn=decoder.out_act,
        scaling_factor=config.scaling_factor,
    ).eval()
    theirs.save_pretrained(tmp_path)
    found = from_pretrained(tmp_path)
    assert found.model.config == config and found.variant is None
    assert "shape read from config.json" in found.notes
    side = config.spatial_compression
    x_BCHW = torch.rand(1, 3, 2 * side, 2 * side) * 2 - 1
    with torch.no_grad():
        assert torch.allclose(found.model(x_BCHW), theirs(x_BCHW).sample, atol=1e-4)
    data = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(ConfigError, match="encoder_out_shortcut"):
        config_of_diffusers({**data, "encoder_out_shortcut": False})
    with pytest.raises(ConfigError, match="AutoencoderDC"):
        config_of_diffusers({**data, "encoder_block_types": "Conv3d"})
    (tmp_path / "config.json").write_text("{")
    assert any("could not be read" in note for note in from_pretrained(tmp_path).notes)


def test_release_names():
    for variant, (original, diffusers) in HUB_IDS.items():
        assert variant_of_release(original) == variant_of_release(diffusers) == variant
    assert HUB_IDS["dc-ae-f64c128-mix"][0] == "mit-han-lab/dc-ae-f64c128-mix-1.0"
    assert HUB_IDS["dc-ae-f32c32-sana-1.1"][1] == "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers"
    assert variant_of_release("tiny") is None


@pytest.mark.parametrize("name", ["dc-ae-f32c32-mix", "mit-han-lab/dc-ae-f32c32-mix-1.0"])
def test_a_hub_id_names_the_variant_and_the_hub_is_asked_for_it(tmp_path, monkeypatch, name):
    small = replace(narrow("dc-ae-f32c32-mix"), scaling_factor=0.5)
    monkeypatch.setitem(VARIANTS, "dc-ae-f32c32-mix", small)
    save_file(in_format(random_model(small).state_dict(), small, "original"), tmp_path / "model.safetensors")
    asked = []

    def download(repo_id, *, revision, allow_patterns):
        asked.append((repo_id, revision))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = from_pretrained(name, revision="abc")
    assert asked == [("mit-han-lab/dc-ae-f32c32-mix-1.0", "abc")]
    assert found.variant == "dc-ae-f32c32-mix" and found.model.config.scaling_factor == 0.5
    assert not any("revision" in note for note in found.notes)


def test_the_original_releases_config_names_the_variant(tmp_path, monkeypatch):
    small = replace(narrow("dc-ae-f32c32-mix"), scaling_factor=0.5)
    for variant, scaling in (("in", 1.0), ("mix", 0.5)):
        monkeypatch.setitem(VARIANTS, f"dc-ae-f32c32-{variant}", replace(small, scaling_factor=scaling))
    save_file(in_format(random_model(small).state_dict(), small, "original"), tmp_path / "model.safetensors")
    found = from_pretrained(tmp_path)
    assert found.variant == "dc-ae-f32c32-in"
    assert any("same tensors as dc-ae-f32c32-mix" in note for note in found.notes)
    (tmp_path / "config.json").write_text(json.dumps({"model_name": "dc-ae-f32c32-mix-1.0"}))
    assert from_pretrained(tmp_path).variant == "dc-ae-f32c32-mix"
    assert from_pretrained(tmp_path, variant="dc-ae-f32c32-in").model.config.scaling_factor == 1.0


def test_a_hub_that_is_away_says_so(monkeypatch):
    def download(*_args, **_kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(CheckpointError, match="no route to host") as caught:
        from_pretrained("someone/some-model")
    assert caught.value.code == "hub" and caught.value.given == "someone/some-model"


def test_nothing_that_was_asked_is_ignored(tmp_path):
    model = random_model(VARIANTS["tiny"])
    path = tmp_path / "tiny.safetensors"
    save_model(path, model.state_dict(), config=model.config, layout=Layout())
    assert any("revision 'main'" in note for note in from_pretrained(path, revision="main").notes)
    assert from_pretrained(path, variant="tiny").variant == "tiny"
    with pytest.raises(CheckpointError, match="another shape") as caught:
        from_pretrained(path, variant="demo-f32c32")
    assert caught.value.legal == "tiny"
    with pytest.raises(CheckpointError, match="no variant 'huge'") as caught:
        from_pretrained(path, variant="huge")
    assert "tiny" in caught.value.legal
    save_file(in_format(model.state_dict(), model.config, "diffusers"), path)
    with pytest.raises(CheckpointError) as caught:
        from_pretrained(path, variant="demo-f32c32")
    assert caught.value.code in ("wrong_keys", "wrong_shape")
    own = replace(VARIANTS["tiny"], scaling_factor=2.0)
    assert from_pretrained(path, config=own).model.config == own


@pytest.mark.parametrize("wrap", ["none", "state_dict", "model.module", "halves", "mixed"])
def test_nested_state_dicts(tmp_path, wrap):
    model = random_model(VARIANTS["tiny"])
    state = in_format(model.state_dict(), model.config, "original")
    halves = {
        half: {key.removeprefix(f"{half}."): value for key, value in state.items() if key.startswith(half)}
        for half in ("encoder", "decoder")
    }
    nested = {
        "none": state,
        "state_dict": {"epoch": 3, "state_dict": state, "optimizer": {"lr": 1.0}},
        "model.module": {"model": {"state_dict": {f"module.{key}": value for key, value in state.items()}}},
        "halves": halves,
        "mixed": {**state, "step": 12},
    }[wrap]
    for legacy in (False, True):
        torch.save(nested, tmp_path / "weights.pt", _use_new_zipfile_serialization=not legacy)
        found = from_pretrained(tmp_path / "weights.pt")
        assert all(torch.equal(value, found.model.state_dict()[key]) for key, value in model.state_dict().items())
    assert any("step" in note for note in found.notes) == (wrap == "mixed")
    assert any("weights taken from" in note for note in found.notes) == (wrap in ("state_dict", "model.module"))


class Attack:
    def __reduce__(self):
        return __import__, ("attacked_by_a_test",)


def test_damaged_and_dangerous_torch_files(tmp_path):
    state = {"encoder.conv_in.weight": torch.zeros(2000)}
    zipped, legacy = tmp_path / "zip.pt", tmp_path / "legacy.pt"
    torch.save(state, zipped)
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    for path in (zipped, legacy):
        path.write_bytes(path.read_bytes()[:3000])
        with pytest.raises(CheckpointError, match="no whole PyTorch checkpoint") as caught:
            from_pretrained(path)
        assert caught.value.code == "not_a_checkpoint"
    (tmp_path / "empty.pt").touch()
    with pytest.raises(CheckpointError, match="neither a zip"):
        from_pretrained(tmp_path / "empty.pt")
    for legacy_format in (False, True):
        torch.save({"model": state, "x": Attack()}, tmp_path / "code.pt", _use_new_zipfile_serialization=not legacy_format)
        with pytest.raises(CheckpointError, match="not executed") as caught:
            from_pretrained(tmp_path / "code.pt")
        assert caught.value.code == "unsafe_pickle" and caught.value.given.endswith("__import__")
    torch.save([1, 2, 3], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="no state dict"):
        from_pretrained(tmp_path / "list.pt")


def test_masks_without_orig_are_folded():
    notes: list[str] = []
    found = unwrap({"a.weight": torch.ones(4), "a.weight_mask": torch.tensor([1.0, 0, 1, 0])}, notes.append)
    assert found["a.weight"].tolist() == [1, 0, 1, 0] and set(found) == {"a.weight"} and len(notes) == 1
