"""The verbs on a terminal: one JSON object, exit codes, every verb there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from typer.main import get_command

from core.terminal import app as terminal
from core.terminal.options import common_first

ROOT = Path(__file__).resolve().parents[2]
VERBS = [
    "import",
    "prune",
    "prune-in-rounds",
    "retrain",
    "image-losses",
    "tag-images",
    "slices",
    "evaluate",
    "benchmark",
    "compare",
    "lineage",
    "jobs",
    "verify",
    "demo",
    "worker",
    "sensitivity",
    "profile",
    "solve",
    "checkpoints",
    "branch",
    "train-on",
    "retrain-in-phases",
    "inspect",
    "rewrite",
    "reset",
    "report",
    "export",
    "reproduce",
    "script",
    "annotate",
    "delete",
    "undelete",
    "gc",
    "export-branch",
    "import-branch",
    "mirror",
    "test-run",
    "infer",
    "diff",
    "layers",
    "activations",
]


@pytest.fixture
def call(settings, monkeypatch, capsys):
    monkeypatch.setenv("OFFSHOOT_DATA_DIR", str(settings.data_folder))
    monkeypatch.setenv("OFFSHOOT_NUM_THREADS", "1")
    monkeypatch.setenv("OFFSHOOT_WORKER_IDLE_S", "60")

    def run(*arguments):
        code = 0
        try:
            terminal.main(["--store", str(settings.home), "--device", "cpu", "--json", *arguments])
        except SystemExit as end:
            code = end.code
        return code, json.loads(capsys.readouterr().out.strip().splitlines()[-1])

    return run


def test_common_options_may_stand_anywhere(settings, monkeypatch, capsys):
    monkeypatch.setenv("OFFSHOOT_HOME", "elsewhere")
    terminal.main(["lineage", "--json", f"--store={settings.home}", "--device", "cpu"])
    assert json.loads(capsys.readouterr().out) == {"v": 1, "ok": True, "data": []}
    assert terminal.state.settings.home == settings.home and terminal.state.settings.device == "cpu"
    assert common_first(["prune", "m", "--name", "x", "--", "--json"]) == ["prune", "m", "--name", "x", "--", "--json"]
    with pytest.raises(SystemExit):
        terminal.main(["lineage", "--store"])
    assert "--store needs a value" in capsys.readouterr().err


def test_the_quick_demo_and_every_verb(call, tmp_path):
    code, found = call("demo", "--quick")
    assert code == 0 and found["ok"] and len(found["data"]["models"]) == 2
    names = [row["name"] for row in call("lineage")[1]["data"]]
    assert names[0] == "dcae_tiny" and len(names) == 3
    spec = tmp_path / "spec.toml"
    spec.write_text("rate = 0.2\nmethod = 'l1_unstructured'\n")
    code, made = call("prune", "dcae_tiny", "--spec", str(spec), "--rate", "0.3", "--name", "sparse")
    assert code == 0 and made["data"]["model"]["spec"]["rate"] == 0.3 and made["data"]["model"]["name"] == "sparse"
    code, made = call("prune", "dcae_tiny", "--method", "global_magnitude", "--threshold", "0.01")
    assert code == 0 and made["data"]["model"]["spec"]["rate"] is None
    code, made = call("retrain", "sparse", "--n-epochs", "1", "--steps-per-epoch", "2", "--image-size", "32", "--val-steps", "4")
    assert code == 0 and made["data"]["model"]["kind"] == "retrained"
    training = (
        "--retrain-n-epochs",
        "1",
        "--retrain-steps-per-epoch",
        "2",
        "--retrain-image-size",
        "32",
        "--retrain-val-steps",
        "4",
    )
    code, made = call("prune-in-rounds", "dcae_tiny", "--schedule", "iterative", "--rounds", "2", "--rate", "0.4", *training)
    assert code == 0 and [len(row["name"].split("iterative")) for row in made["data"]["models"]] == [1, 2, 2, 2, 2]
    code, answer = call("prune-in-rounds", "dcae_tiny", "--schedule", "linear", "--rate", "0.2")
    assert code == 2 and answer["error"]["legal"] == "2 rounds, or one-shot"
    assert call("evaluate", "sparse", "--image-size", "32", "--num-images", "4")[0] == 0
    timed = ("--image-size", "32", "--repeats", "3", "--starts", "0", "--batch-sizes", "[1, 2]")
    assert call("benchmark", "sparse", "dcae_tiny", *timed)[0] == 0
    code, table = call("compare", "sparse", "dcae_tiny")
    assert table["data"]["models"][0]["figures"]["decode_ms"]["value"] > 0
    assert set(table["data"]["models"][0]["cost"]["sweep"]) == {"32x1", "32x2"}
    assert call("compare", "sparse", "--run", "999")[1]["error"]["code"] == "run"
    assert set(table["data"]["front"]["left_out"]) == {row["id"] for row in table["data"]["models"] if row["name"] != "sparse"}
    code, ranked = call("compare", "sparse", "dcae_tiny", "--weights", '{"decode_ms": 1}')
    assert code == 0 and len(ranked["data"]["ranking"]["ranked"]) == 2
    assert call("compare", "sparse", "--weights", "much")[1]["error"]["code"] == "weight"
    assert call("compare", "sparse", "--front", "decode_ms")[1]["error"]["code"] == "metric"
    code, made = call("report", "sparse", "dcae_tiny", "--format", "json", "--out", str(tmp_path))
    assert code == 0 and len(json.loads(Path(made["data"]["path"]).read_text())["models"]) == 2
    assert call("report", "sparse", "--format", "docx")[1]["error"]["legal"][0] == "html"
    brief = ("--image-size", "32", "--num-images", "2", "--repeats", "3")
    code, made = call("export", "sparse", "--format", "offshoot", "--out", str(tmp_path / "out"), *brief)
    assert code == 0 and made["data"]["good"] and (tmp_path / "out" / "run.py").exists()
    rows = call("jobs")[1]["data"]
    assert {row["operation"] for row in rows} == {"import", "prune", "retrain", "evaluate", "benchmark", "export"}
    assert call("jobs", rows[0]["id"])[1]["data"]["log"]
    assert call("verify") == (0, {"v": 1, "ok": True, "data": []})


def test_a_target_from_the_terminal(call):
    assert call("import", "tiny", "--random-seed", "0")[0] == 0
    assert call("solve", "--cost", "parameters", "--loss-db", "1")[1]["error"]["code"] == "no_sensitivity"
    how = '{"method": "structured", "score": "l2", "compensate": false, "part": "decoder"}'
    size = ("--image-size", "32")
    assert call("sensitivity", "--prune", how, "--granularity", "stage", "--rates", "[0.5]", "--num-images", "4", *size)[0] == 0
    assert call("solve", "--at-most", "1")[1]["error"]["code"] == "no_profile"
    brief = ("--rates", "[0.5]", "--repeats", "3", "--fit-models", "2", "--check-models", "2", "--part", "decoder")
    assert call("profile", *brief, *size)[0] == 0
    code, found = call("solve", "--cost", "parameters", "--loss-db", "3")
    assert code == 0 and found["data"]["predicted"]["parameters"] < found["data"]["before"]["parameters"]
    assert "decoder" in found["data"]["latency"]["errors"] and "decode_ms" in found["data"]["predicted"]
    code, made = call("solve", "--cost", "parameters", "--loss-db", "3", "--run")
    assert code == 0 and made["data"]["model"]["facts"]["parameters"] == found["data"]["predicted"]["parameters"]
    predicted, achieved = made["data"]["predicted"], made["data"]["achieved"]
    before, after = found["data"]["before"], found["data"]["predicted"]
    assert set(achieved) >= set(predicted) == set(after)
    assert all(predicted[key] == pytest.approx([before[key], after[key]], rel=1e-12) for key in after)
    assert all(achieved[key] == predicted[key] for key in ("parameters", "encode_macs", "decode_macs", "weight_bytes"))
    assert 0 < achieved["decode_ms"][0] and achieved["psnr_db"][0] != achieved["psnr_db"][1], "measured of both"
    assert call("solve", "--cost", "beauty", "--loss-db", "1")[1]["error"]["code"] == "cost"
    assert call("solve", "--cost", "parameters", "--loss-db", "3", "--lock", "decoder")[1]["error"]["code"] == "unknown_site"


def test_mistakes_exit_with_two_and_say_what_is_legal(call):
    code, answer = call("prune", "nothing")
    assert code == 2 and answer["ok"] is False and answer["error"]["next"]
    assert call("import", "no-such-file.pth")[0] == 2
    code, answer = call("retrain", "nothing", "--batch-size", "many")
    assert code == 2 and "batch-size" in answer["error"]["message"]


def test_a_verb_that_finds_something_broken_ends_with_one(call, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "cut.pth").write_bytes(b"PK\x03\x04cut")
    code, answer = call("rewrite", str(tmp_path / "old"), str(tmp_path / "new"))
    assert code == 1 and answer["data"][0]["target"] is None
    assert call("lineage")[0] == 0


def test_help_tells_defaults_and_what_stands_in_brackets():
    told = " ".join(CliRunner().invoke(get_command(terminal.app), ["retrain", "--help"], env={"COLUMNS": "400"}).output.split())
    assert "[default: cosine]" in told and "[row id, how many times as often]" in told


def test_every_verb_is_there_with_help():
    command = get_command(terminal.app)  # once: a runner of typer's makes all verbs anew for each call

    def told(*arguments):
        done = CliRunner().invoke(command, [*arguments, "--help"], env={"COLUMNS": "200"})
        assert done.exit_code == 0, arguments
        return done.output

    listed = told()
    assert [verb for verb in VERBS if verb not in listed] == []
    for verb in VERBS:
        told(verb)
    from core.specs import RetrainSpec, ScheduleSpec

    together = told("prune-in-rounds")
    assert all(f"--{name}" in together for name in (*ScheduleSpec.model_fields, "rate", "retrain-n-epochs", "retrain-spec"))
    options = told("retrain")
    assert all(f"--{name.replace('_', '-')}" in options for name in RetrainSpec.model_fields)


def test_the_module_runs():
    done = subprocess.run([sys.executable, "-m", "core", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "lineage" in done.stdout
