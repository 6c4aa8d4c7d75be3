"""Bad luck on the disk: a file altered by one bit, a store cut short; one clear line, and the record whole."""

from __future__ import annotations

import pytest

import store as st
from core.mirror.runs import read_run
from core.mirror.writing import Writer
from core.model_manager import ModelManager
from core.settings import Settings
from core.terminal import app as terminal
from store import StoreError
from tests.many_models import fill
from tests.pages.driving import drive
from tests.pages.test_pages import LOOK


def test_weights_altered_by_one_bit_are_given_to_nobody(bench, tmp_path):
    """Not to a job, a file, an archive or a mirror; the record stays whole and says what to do."""
    imported = bench.run("import", source="tiny", random_seed=77)
    row = st.get_model(bench.store, imported.model_id)
    path = bench.store.blobs.path(row.blob_digest)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    service = ModelManager(settings=bench.settings)
    record = read_run(bench.store, imported.id).makes
    try:
        for ask in (
            lambda: bench.run("prune", row.id, rate=0.3),
            lambda: service.weights(row.id),
            lambda: service.export_branch(row.id, tmp_path / "branch.zip"),
            lambda: Writer(bench.store, tmp_path, "offline", 1.0)._weights(record),
        ):
            with pytest.raises(StoreError) as caught:
                ask()
            assert caught.value.code == "broken_blob" and "\n" not in caught.value.message and caught.value.next
        assert not (tmp_path / "branch.zip").exists()
        assert [problem.code for problem in service.verify(row.id)] == ["broken_blob"]
        again = bench.run("reproduce", row.id)
        assert again.result["identical"] is True and again.result["steps"][0]["operation"] == "import", "made anew, not copied"
    finally:
        service.store.close()
        data[-5] ^= 1
        path.write_bytes(data)
    assert st.verify(bench.store, row.id) == []


def test_a_store_cut_short_is_one_line_on_a_terminal_and_one_box_on_a_page(tmp_path, data_dir, capsys):
    home = tmp_path / "cut"
    made = st.open_store(home)
    fill(made, 40)
    made.close()
    file = home / "offshoot.sqlite"
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 3)
    before = file.read_bytes()
    with pytest.raises(SystemExit) as end:
        terminal.main(["--store", str(home), "lineage"])
    said = capsys.readouterr().err.strip()
    assert end.value.code == 2 and "Traceback" not in said and "not a readable database" in said, said
    said = drive(Settings(home=home, data_dir=data_dir), "pages/5_Lineage.py", steps=LOOK)
    assert said.count("not a readable database") == 1 and "BUTTONS []" in said, said
    assert file.read_bytes() == before
