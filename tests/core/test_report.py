"""Reports: every format from the store, the same bytes but for their date, with pictures, specs and ids in them."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile

import pypdfium2
import pytest

import store as st
from core.errors import CoreError
from core.model_manager import ModelManager
from core.report.chart import drawing, ticks
from core.report.document import Chart, Point
from core.reporting import FORMATS

DATE = "2026-01-02 03:04 UTC"
FIELDS = {"image_size": 32, "num_images": 16, "num_save_images": 3}


@pytest.fixture(scope="module")
def family(bench):
    """(service, ids): a baseline, a pruned and a sparse model of it, and one that was never evaluated."""
    base = bench.add(name="base | <b>bold</b> *x*").id
    pruned = bench.run("prune", base, rate=0.5).model_id
    sparse = bench.run("prune", pruned, method="l1_unstructured", rate=0.5).model_id
    for ref in (base, pruned, sparse):
        bench.run("evaluate", ref, **FIELDS)
    bench.run("benchmark", pruned, models=[base, sparse], image_size=32, repeats=3, starts=0, batch_sizes=[1, 2], sweep_repeats=3)
    untested = bench.run("prune", base, rate=0.2).model_id
    manager = ModelManager(settings=bench.settings)
    manager.annotate(pruned, note="=1+1 keep this", tag="good")
    yield manager, [base, pruned, sparse, untested]
    manager.store.close()


@pytest.mark.parametrize("form", FORMATS)
def test_made_again_it_is_the_same_but_for_its_date(family, form):
    manager, ids = family
    first = manager.report(ids, form, date=DATE)
    again = ModelManager(settings=manager.settings)
    assert again.report(ids, form, date=DATE) == first
    again.store.close()
    later = manager.report(ids, form, date="2027-05-06 07:08 UTC")
    if form in ("html", "json"):
        assert first.count(DATE.encode()) == 1 and later.replace(b"2027-05-06 07:08 UTC", DATE.encode()) == first
    if form == "csv":
        assert later == first


def test_html_holds_everything_and_fetches_nothing(family):
    manager, ids = family
    text = manager.report(ids, "html", date=DATE).decode()
    for ref in ids:
        row = manager.get_model(ref)
        assert ref in text and row.weights_digest in text and row.created in text
    assert text.count("data:image/png;base64,") == 3 * (1 + 3), "three images, the original and three evaluated models"
    assert "not evaluated" in text and "no difference shown" in text or "worse" in text
    assert "(p95 " in text and "not measured: only NVIDIA GPUs" in text and "32 px, batch 2" in text and "models in turn" in text
    assert "l1_unstructured" in text and "<svg" in text and "images_sha256" in text and "=1+1 keep this" in text
    assert "<b>bold</b>" not in text and "&lt;b&gt;bold" in text and "<script" not in text
    assert set(re.findall(r'(?:src|href)="([^"]{0,5})', text)) == {"data:"}


def test_markdown_names_only_files_that_come_with_it(family):
    manager, ids = family
    with zipfile.ZipFile(io.BytesIO(manager.report(ids, "markdown", date=DATE))) as archive:
        text = archive.read("report.md").decode()
        assert set(re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)) == set(archive.namelist()) - {"report.md"}
        assert archive.read("pictures/chart-1.svg").startswith(b"<svg")
    assert f"*{DATE}*" in text and "base \\| &lt;b>bold" in text
    widths = {line.count(" | ") for line in text.splitlines() if line.startswith("| PSNR") or line.startswith("| Parameters")}
    assert widths == {4}, "a name with a bar in it breaks no table"


def test_pdf_has_the_words_and_the_pictures(family):
    manager, ids = family
    made = pypdfium2.PdfDocument(manager.report(ids, "pdf", date=DATE))
    text = "".join(page.get_textpage().get_text_range() for page in made)
    for words in (*ids, DATE, "Is the difference real?", "Pareto front", "l1_unstructured"):
        assert words in text, words
    images = [o for page in made for o in page.get_objects() if o.type == pypdfium2.raw.FPDF_PAGEOBJ_IMAGE]
    assert len(images) == 3 * (1 + 3)
    made.close()


def test_csv_and_json_hold_the_stored_figures(family):
    manager, ids = family
    rows = list(csv.DictReader(io.StringIO(manager.report(ids, "csv").decode())))
    assert [row["id"] for row in rows] == ids
    for row in rows[:3]:
        stored = st.scores.scores(manager.store, row["id"])
        assert float(row["psnr_db"]) == stored["psnr_db"] and float(row["psnr_db_low"]) < stored["psnr_db"] < float(
            row["psnr_db_high"]
        )
    assert rows[0]["psnr_db_difference"] == "" and float(rows[1]["psnr_db_p"]) <= 1 and rows[3]["psnr_db"] == ""
    assert rows[1]["psnr_db_verdict"] in ("better", "worse", "no difference shown")
    data = json.loads(manager.report(ids, "json", date=DATE))
    assert (
        data["date"] == DATE
        and [m["id"] for m in data["models"]] == ids
        and data["models"][2]["spec"]["method"] == "l1_unstructured"
    )
    assert data["quality"]["differences"][ids[1]]["psnr_db"]["verdict"] == rows[1]["psnr_db_verdict"]


def test_all_of_them_come_in_one_archive(family):
    manager, ids = family
    with zipfile.ZipFile(io.BytesIO(manager.report(ids[:2], "all", date=DATE))) as archive:
        names = set(archive.namelist())
        assert {"report.html", "report.pdf", "report.md", "report.csv", "report.json"} <= names
        assert archive.read("report.html") == manager.report(ids[:2], "html", date=DATE)


def test_a_branch_is_ancestors_and_descendants(family, tmp_path):
    manager, (base, pruned, sparse, untested) = family
    assert manager.lineage_branch(pruned) == [base, pruned, sparse]
    assert set(manager.lineage_branch(base)) == {base, pruned, sparse, untested}
    text = manager.report_branch(pruned, date=DATE).decode()
    assert "The branch of" in text and sparse in text and untested not in text
    path = manager.save_report([pruned], tmp_path, "json", branch=True)
    assert path.name == manager.report_name([pruned], "json")
    with pytest.raises(CoreError, match="no report format 'docx'"):
        manager.report_name([pruned], "docx")
    assert len(json.loads(path.read_bytes())["models"]) == 3 and path.suffix == ".json"
    with pytest.raises(CoreError, match="there already"):
        manager.save_report([pruned], path, "json")


def test_one_model_without_figures_is_a_report_too(family):
    manager, ids = family
    text = manager.report([ids[3]], "html", date=DATE).decode()
    assert "Quality: not measured" in text or "images_sha256" in text
    assert manager.report([ids[3]], "pdf", date=DATE).startswith(b"%PDF")


@pytest.mark.parametrize(("models", "form", "code"), [(1, "docx", "format"), (0, "html", "models"), (41, "html", "models")])
def test_what_cannot_be_is_refused(family, models, form, code):
    manager, ids = family
    with pytest.raises(CoreError) as caught:
        manager.report(ids[:1] * models, form)
    assert caught.value.code == code and caught.value.legal


def test_ticks_are_round_and_few():
    assert ticks(0.0, 10.0) == [0, 2, 4, 6, 8, 10] and ticks(33.7, 36.6) == [34, 34.5, 35, 35.5, 36, 36.5]
    for low, high in ((0.001, 0.0023), (-5, 1e6), (7.0, 7.0 + 1e-6)):
        found = ticks(low, high)
        assert 1 <= len(found) <= 7 and all(low - 1e-9 <= value <= high + 1e-9 for value in found)
    one = drawing(Chart("ms", "dB", (Point("only", 5.0, 30.0, True),)))
    assert one.contents, "a chart of one point has an extent too"
