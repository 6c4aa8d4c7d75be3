"""Presets, the paper's phases, the preview of images, and what curves say."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from core.augmentations import AUGMENTATIONS, augment_of
from core.curve_hints import curve_hints
from core.errors import CoreError
from core.retrain_presets import RETRAIN_PRESETS, phases, preset_values
from core.specs import RetrainSpec
from dcaecore.augment import Augment
from dcaecore.freezing import phase_parts
from dcaecore.zoo import VARIANTS


@pytest.mark.parametrize("name", RETRAIN_PRESETS)
def test_a_preset_is_a_legal_spec(name):
    spec = RetrainSpec.model_validate(preset_values(name))
    assert str(spec.total_steps) in RETRAIN_PRESETS[name].help.replace(",", "")
    with pytest.raises(CoreError, match="no preset"):
        preset_values("huge")


def test_the_phases_share_the_steps_and_the_second_is_larger():
    spec = RetrainSpec.model_validate({**preset_values("quick"), "image_size": 64})
    with pytest.raises(CoreError, match="say themselves"):
        phases(VARIANTS["tiny"], spec.model_copy(update={"frozen_part": "encoder"}))
    found = phases(VARIANTS["tiny"], spec)
    assert sum(one.total_steps for one in found) == 200 and [one.image_size for one in found] == [64, 128, 64]
    assert [one.frozen_stages for one in found] == [phase_parts(VARIANTS["tiny"], n) for n in (1, 2, 3)]
    assert [one.image_size for one in phases(VARIANTS["tiny"], spec, 256)] == [64, 256, 64]


def test_a_preset_holds_the_encoder_where_only_the_decoder_was_pruned(manager):
    tiny = manager.initialize_model("tiny", random_seed=0)
    assert manager.preset_start(tiny.id, "quick")["frozen_part"] == "none"
    cut = manager.wait(manager.prune_model(tiny.id, {"rate": 0.5, "part": "decoder"}).id, 60)
    assert manager.preset_start(cut.model_id, "quick")["frozen_part"] == "encoder"
    chain = manager.retrain_in_phases(tiny.id, {"image_size": 32, "val_steps": 4}, preset="smoke")
    for job in reversed(chain):
        manager.control(job.id, "cancel")
    assert [job.spec["image_size"] for job in chain] == [32, 64, 32] and chain[1].parent_job_id == chain[0].id
    assert sum(RetrainSpec.model_validate(job.spec).total_steps for job in chain) == 20


def test_the_fields_of_the_form_are_those_of_the_augmentations():
    spec = RetrainSpec(augment_flip=0.5, augment_blur=2.0)
    assert augment_of(spec) == Augment(flip=0.5, blur=2.0) and not augment_of(RetrainSpec()).any
    assert set(AUGMENTATIONS) == {name for name in RetrainSpec.model_fields if name.startswith("augment_")}


def test_the_preview_shows_frames_of_the_data_as_the_training_will_see_them(manager):
    plain = manager.preview_images({"image_size": 32})
    assert len(plain) == 3 and all(draw == (one.plain, one.plain) for one in plain for draw in one.draws)
    seen = manager.preview_images({"image_size": 32, "augment_flip": 1.0, "augment_blur": 2.0})
    pixels = [np.asarray(Image.open(io.BytesIO(raw))) for raw in (seen[0].plain, *seen[0].draws[0])]
    assert np.array_equal(pixels[1], pixels[0][:, ::-1]) and not np.array_equal(pixels[2], pixels[1])
    sharp = manager.preview_images({"image_size": 32, "resize_method": "nearest"})
    assert sharp[0].plain != plain[0].plain
    assert manager.preview_images({"data": {"kind": "hub", "location": "some/set"}}) == []


def falling(count: int) -> list[float]:
    return [1.0 / (1 + step / 20) for step in range(count)]


def test_curves_that_are_well_or_short_say_nothing():
    assert curve_hints(falling(10), [20.0, 21.0]) == []
    assert curve_hints(falling(300), [20 + 0.5 * i for i in range(12)]) == []


def test_over_fitting_a_plateau_and_a_rising_loss_are_flagged():
    (worse,) = curve_hints(falling(300), [20, 22, 24, 25, 24.8, 24.6, 24.5, 24.3])
    assert worse.flag == "over-fitting" and "0.70 dB" in worse.text and "4 validations ago" in worse.text
    (flat,) = curve_hints(falling(300), [20, 22, 24, 24.5, 24.5, 24.51, 24.5, 24.51, 24.52])
    assert flat.flag == "plateau"
    (rising,) = curve_hints([*falling(200), *([0.9] * 100)], [])
    assert rising.flag == "rising loss"
    # The same fall in validation while the loss stands still is no over-fitting.
    assert [hint.flag for hint in curve_hints([0.5] * 300, [20, 22, 24, 25, 24.8, 24.6, 24.5, 24.3])] == ["plateau"]
