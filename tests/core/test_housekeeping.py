"""Deleting with its undoing, cleaning up and moving branches, by the service and by the terminal's verbs."""

from __future__ import annotations

import json
from typing import Any

import pytest

import store as st
from core.model_manager import ModelManager
from core.terminal import app as terminal
from tests.core.in_process import InProcess


@pytest.fixture
def bench(settings):
    made = InProcess(settings)
    yield made
    made.store.close()


@pytest.fixture
def manager(bench):
    made = ModelManager(settings=bench.settings)
    yield made
    made.store.close()


@pytest.fixture
def line(bench) -> list[str]:
    """tiny -> half -> less."""
    tiny = bench.run("import", source="tiny", random_seed=0).model_id
    half = bench.run("prune", tiny, rate=0.5).model_id
    return [tiny, half, bench.run("prune", half, rate=0.5).model_id]


@pytest.fixture
def told(settings, capsys):
    def run(*arguments: str, code: int = 0) -> Any:
        ended = 0
        try:
            terminal.main(["--store", str(settings.home), "--device", "cpu", "--json", *arguments])
        except SystemExit as end:
            ended = end.code
        answer = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
        assert ended == code, answer
        return answer["data"] if answer["ok"] else answer["error"]

    return run


def test_delete_restore_clean_up(manager, line):
    before = st.store_bytes(manager.store)
    st.set_mirrored(manager.store, "wandb-online:host/team/p", manager.get_model(line[1]).job_id, "team/p/j_1", {"state": "sent"})
    going = manager.deletion(line[1])
    assert len(going.names) == 2 and going.left_behind == () and going.copies == ("W&B host/team/p: team/p/j_1",)
    alone = manager.deletion(line[1], alone=True)
    assert len(alone.names) == 1 and len(alone.left_behind) == 1 and alone.bytes < going.bytes
    assert set(manager.delete(line[1])) == set(line[1:]) and [row.id for row in manager.list_models()] == line[:1]
    assert {row.id for row in manager.deleted_models()} == set(line[1:]) and manager.cleanable()[0] == 2
    assert set(manager.restore(line[2])) == set(line[1:]) and manager.deleted_models() == []
    manager.delete(line[2])
    report = manager.clean_up()
    assert report.models == (line[2],) and report.bytes_before >= before > report.bytes_after > 0
    assert report.bytes_freed >= manager.get_model(line[1]).bytes // 4 and manager.verify() == []


def test_a_branch_moves(manager, line, tmp_path):
    written = manager.export_branch(line[1], tmp_path / "branch.zip", with_descendants=True)
    other = ModelManager(tmp_path / "other")
    assert set(other.import_archive(written.path).models) == set(line) == set(written.models)
    assert other.weights(line[2]) == manager.weights(line[2]) and other.verify() == []
    assert other.script(line[2]) == manager.script(line[2])
    other.store.close()


def test_the_verbs_on_a_terminal(told, line, tmp_path):
    assert told("annotate", line[0], "--tag", "seed", "--alias", "origin", "--name", "first", "--note", "begin")["tags"] == [
        "seed"
    ]
    assert told("annotate", "origin", "--untag", "seed")["tags"] == []
    assert told("annotate", line[1], "--name", "first", code=2)["code"] == "name_taken"
    assert [row["id"] for row in told("lineage", "--search", "kind = baseline or parameters < 1")] == line[:1]
    assert [row["id"] for row in told("lineage")] == line
    assert told("lineage", "--search", "paramters < 3M", code=2)["next"].startswith("Did you mean parameters")
    script = told("script", line[2], "--out", str(tmp_path / "make.py"))
    assert (tmp_path / "make.py").read_text() == script["script"] and "prune_model" in script["script"]
    assert told("script", line[2], "--out", str(tmp_path / "make.py"), code=2)["code"] == "exists"
    assert told("script", line[2], "--kind", "basic", code=2)["code"] == "script_kind"
    assert len(told("delete", line[1], "--dry-run")["names"]) == 2 and told("undelete") == []
    assert set(told("delete", line[1])["deleted"]) == set(line[1:])
    assert {row["id"] for row in told("undelete")} == set(line[1:])
    assert set(told("undelete", line[1])) == set(line[1:])
    assert told("undelete", line[1], code=2)["code"] == "not_deleted"
    assert told("delete", line[1], "--alone")["deleted"] == [line[1]]
    assert told("gc", "--dry-run")["models"] == 1
    report = told("gc")
    assert report["models"] == [line[1]] and report["bytes_before"] - report["bytes_after"] == report["bytes_freed"] > 0
    path = told("export-branch", line[2], "--out", str(tmp_path / "a.zip"))["path"]
    assert told("import-branch", path) == {"models": [], "known": [line[0], line[2]], "jobs": 0}
    assert told("import-branch", str(tmp_path / "make.py"), code=2)["code"] == "bad_archive"
    assert told("verify") == []


def test_a_card_on_a_terminal(told, line, settings, capsys):
    card = told("show", line[2])
    assert [step["id"] for step in card["chain"]] == line and card["job"]["operation"] == "prune" and card["widths"]
    assert told("show", "m_ffffffffffff", code=2)["code"] == "unknown_model"
    told("annotate", line[2], "--tag", "small")
    terminal.main(["--store", str(settings.home), "--device", "cpu", "show", line[2]])
    said = capsys.readouterr().out
    for words in (
        "How it came about",
        "Parameters",
        "against parent",
        "tags: small",
        "Widths that are not the parent's",
        "Made by prune",
    ):
        assert words in said, words


def test_reproduce_on_a_terminal(told, line):
    """A real worker: the job runs in its own process, on its own number of threads."""
    found = told("reproduce", line[2])
    assert found["identical"] is True and [step["made"] for step in found["steps"]] == line
