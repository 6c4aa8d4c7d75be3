"""Figures of published weights in an evaluation: off with the reason, or measured and named in the protocol."""

from __future__ import annotations

import pytest
import torch

import store as st
from core.learned_figures import LPIPS_FILES, why_off
from core.model_manager import ModelManager
from core.settings import Settings
from dcaecore import CheckpointError
from dcaecore.lpips import Lpips
from tests.core.in_process import InProcess

FIELDS = {"image_size": 96, "num_images": 3, "num_save_images": 0}


@pytest.fixture(scope="module")
def bench(tmp_path_factory, data_dir):
    home = tmp_path_factory.mktemp("learned")
    made = InProcess(Settings(home=home / "store", data_dir=data_dir, weights_dir=home / "weights", device="cpu"))
    yield made
    made.store.close()


def test_lpips_is_measured_once_its_weights_are_there(bench):
    base, folder = bench.add().id, bench.settings.weights_dir
    job = bench.run("evaluate", base, **FIELDS)
    before = st.scores.score_rows(bench.store, [base])[base]
    assert "lpips" not in before.means and "weights" not in before.protocol
    said = [line["message"] for line in bench.log(job)]
    assert all(reason in said for reason in why_off(folder).values()) and len(why_off(folder)) == 2

    manager = ModelManager(settings=bench.settings)
    assert LPIPS_FILES[0] in manager.figures_off()["LPIPS"] and set(manager.figures_off()) == {"LPIPS", "rFID"}
    manager.store.close()

    folder.mkdir()
    torch.manual_seed(0)
    state = {key: torch.rand_like(value) / 50 for key, value in Lpips().state_dict().items()}
    torch.save({key: value for key, value in state.items() if "features" in key}, folder / LPIPS_FILES[0])
    torch.save({f"lin{i}.model.1.weight": state[f"linear.{i}"] for i in range(5)}, folder / LPIPS_FILES[1])
    assert set(why_off(folder)) == {"rfid"}
    bench.run("evaluate", base, **FIELDS)
    after = st.scores.score_rows(bench.store, [base])[base]
    assert after.means["lpips"] > 0 and after.means["psnr_db"] == before.means["psnr_db"]
    assert after.protocol["weights"]["lpips"] == Lpips.from_folder(folder).digest and after.protocol_id != before.protocol_id
    row = st.scores.image_scores(bench.store, base)
    assert len(row.values["lpips"]) == 3 and sum(row.values["lpips"]) / 3 == pytest.approx(after.means["lpips"])

    (folder / LPIPS_FILES[0]).write_bytes(b"cut short")
    with pytest.raises(CheckpointError, match="cannot be read"):
        bench.run("evaluate", base, **FIELDS)
