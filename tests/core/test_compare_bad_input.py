"""What cannot be compared, or measured any more, says so in one line, on the terminal and in the service, and is no figure."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from core.errors import CoreError
from core.terminal.app import main
from dcaecore import VARIANTS, DCAEConfig

SIZE = {"image_size": 32}
PICTURE = io.BytesIO()
Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(PICTURE, "PNG")


@pytest.fixture(scope="module")
def models(bench):
    """By name: a baseline, another size's and another family's, one whose weights were cleaned away after it was judged."""
    other = DCAEConfig.from_json({**VARIANTS["tiny"].to_json(), "latent_channels": VARIANTS["tiny"].latent_channels * 2})
    made = {
        "base": bench.add(seed=1, name="base"), "wide": bench.add(seed=2, name="wide"),
        "family": bench.add(other, seed=3, name="family"), "lost": bench.add(seed=4, name="lost"),
    }  # fmt: skip
    for name, row in made.items():
        bench.run("evaluate", row.id, image_size=64 if name == "wide" else 32, num_images=10, num_save_images=1)
    bench.run("benchmark", made["lost"].id, image_size=32, repeats=3, warmup=1, starts=0)
    bench.store.blobs.remove(made["lost"].blob_digest)
    return {name: row.id for name, row in made.items()}


def refused(bench, capsys, *arguments: str) -> dict:
    """The error that a verb ends with: exit code 2, and one object on stdout."""
    with pytest.raises(SystemExit) as end:
        main(["--store", str(bench.settings.home), "--device", "cpu", "--json", *arguments])
    said = json.loads(capsys.readouterr().out)
    assert end.value.code == 2 and said["ok"] is False
    return said["error"]


CALLS = {
    "evaluate": lambda m, ref: m.evaluate_model(ref, SIZE),
    "benchmark": lambda m, ref: m.benchmark_models([ref], SIZE),
    "benchmark beside": lambda m, ref: m.benchmark_models([m.list_models()[-1].id, ref], SIZE),
    "test run": lambda m, ref: m.run_on_data([ref], SIZE),
    "reconstruct": lambda m, ref: m.reconstruct([ref], PICTURE.getvalue(), image_size=32),
    "export": lambda m, ref: m.export_model(ref, {"format": "offshoot", **SIZE}),
    "sensitivity": lambda m, ref: m.measure_sensitivity(ref, SIZE),
    "unit diff": lambda m, ref: m.unit_diff(m.list_models()[-1].id, ref),
    "layers": lambda m, ref: m.layers(ref),
    "histogram": lambda m, ref: m.weight_histogram(ref),
    "save": lambda m, ref: m.save_to_file(ref, "nowhere.safetensors"),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_model_without_weights_says_so_before_anything_starts(service, models, what):
    before = service.jobs()
    with pytest.raises(CoreError, match="The weights of lost are not in the store any more") as caught:
        CALLS[what](service, models["lost"])
    assert caught.value.code == "no_weights" and "still stand" in caught.value.next and service.jobs() == before


def test_its_figures_and_its_report_still_stand(service, models):
    comparison = service.compare([models["lost"], models["base"]])
    figures = comparison.figures[models["lost"]]
    assert figures["psnr_db"].value and figures["decode_ms"].value and service.pictures(models["lost"])
    assert b"lost" in service.report([models["lost"]], "html")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("evaluate", "lost", "--image-size", "32"), "no_weights"),
        (("benchmark", "base", "lost", "--image-size", "32"), "no_weights"),
        (("export", "lost", "--format", "offshoot", "--image-size", "32"), "no_weights"),
        (("diff", "base", "lost"), "no_weights"),
        (("diff", "base", "family"), "config"),
        (("layers", "lost"), "no_weights"),
        (("benchmark", "base", "--image-sizes", "[32, 36]"), "image_size"),
        (("benchmark", "base", "--batch-sizes", "[0]"), "bad_spec"),
        (("benchmark", "base", "--batch-sizes", "[1, 2"), "bad_input"),
        (("compare", "base", "--run", "999"), "run"),
        (("compare", "base", "--on", "nothing"), "run"),
        (("report", "base", "--format", "docx"), "format"),
    ],
)  # fmt: skip
def test_the_terminal_says_it_in_one_object(bench, service, models, capsys, arguments, code):
    before = service.jobs()
    error = refused(bench, capsys, *arguments)
    assert error["code"] == code and error["message"] and service.jobs() == before


def test_two_sizes_and_two_families_are_not_mixed(service, models):
    comparison = service.compare([models["base"], models["lost"], models["wide"]])
    figures = {name: comparison.figures[models[name]] for name in ("base", "lost", "wide")}
    assert comparison.protocol["image_size"] == 32 and figures["wide"]["psnr_db"].value is None, "its figure is of other images"
    assert any("evaluated on other images" in note for note in comparison.notes)
    ranked = service.rank(comparison, {"psnr_db": 1})
    assert models["wide"] in ranked.left_out and models["wide"] in service.pareto(comparison, "parameters", "psnr_db").left_out
    families = service.compare([models["base"], models["family"]])
    assert any("come from 2 baselines (base, family)" in note and "own baseline" in note for note in families.notes)
    assert families.figures[models["family"]]["psnr_db"].against_baseline is None
    with pytest.raises(CoreError, match="two configs"):
        service.unit_diff(models["base"], models["family"])


def test_few_images_have_a_mean_and_no_interval(bench, service, models):
    few = bench.add(seed=8, name="few").id
    bench.run("evaluate", few, image_size=32, num_images=4, num_save_images=0)
    found = service.quality([few])
    own = found.intervals[few]["psnr_db"]
    assert own.low is None and own.mean == service.compare([few]).figures[few]["psnr_db"].value and "4 of the 8" in found.notes[0]
    for key in ("ms_ssim", "rfid"):
        assert service.compare([few]).figures[few][key].value is None, "too small, too few: absent, and no 0"


def test_an_upload_that_is_no_picture_starts_nothing(service, models):
    before = service.jobs()
    with pytest.raises(CoreError, match="no image that can be read"):
        service.reconstruct([models["base"]], b"no picture", image_size=32)
    assert service.jobs() == before
