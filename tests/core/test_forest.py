"""Search expressions, the forest's figures, the focus around a model."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as some

import store as st
from core.errors import CoreError
from core.expressions import Subject, parse
from core.model_manager import ModelManager
from tests.many_models import fill
from tests.store.builders import new_model

FIGURES = ("psnr_db", "decode_ms", "parameters", "sparsity")
SUBJECT = Subject(
    {"name": ("dcae_half",), "id": ("m_0123456789abcdef",), "kind": ("pruned",), "method": ("l2_structured",),
     "note": ("Looks fine",), "tag": ("small", "Keep Me"), "alias": (), "created": ("2026-02-14T15:30:00",)},
    {"psnr_db": 31.5, "decode_ms": 4.0, "parameters": 3e6, "sparsity": 0.5},
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("", True), ("  ", True), ("half", True), ("HALF fine", True), ("half nothing", False), ('"looks fine"', True),
        ("psnr_db > 30 and decode_ms < 5", True), ("psnr_db>30 and decode_ms>=5", False), ("psnr_db > 32 or decode_ms < 5", True),
        ("not psnr_db > 32", True), ("not (psnr_db > 30 and half)", False), ("psnr_db > 30 decode_ms < 5 half", True),
        ("psnr_db > 40 and half or decode_ms = 4", True), ("psnr_db > 40 and (half or decode_ms = 4)", False),
        ("parameters <= 3M", True), ("parameters < 2999k", False), ("sparsity >= 50%", True), ("sparsity != 0.5", False),
        ("psnr_db > 3.1e1", True), ("tag = small", True), ('tag = "keep me"', True), ("tag != small", False), ("tag = smal", False),
        ("kind = pruned and method = l2_structured", True), ("alias = best", False), ("alias != best", True),
        ("created > 2026-02-01", True), ("created >= 2026-02-14", True), ("created > 2026-02-14", False), ("created < 2026", False),
        ("decode_ms == 4", True), ("psnr_db > -5", True),
    ],
)  # fmt: skip
def test_expressions(text, fits):
    assert parse(text, FIGURES)(SUBJECT) is fits


def test_a_figure_that_is_not_there_fits_no_test():
    bare = Subject({"name": ("x",)}, {})
    assert not parse("psnr_db > 0", FIGURES)(bare) and not parse("psnr_db != 0", FIGURES)(bare)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pnsr_db > 30", "no figure 'pnsr_db' .at character 1"), ("psnr_db >", "no value after psnr_db >"),
        ("psnr_db > good", "'good' is no number"), ("and half", "something is missing .at character 1"), ("half and", "missing"),
        ("(half", "a bracket is not closed"), ("half)", "'.' is not expected here .at character 5"), ("> 3", "without a name"),
        ('"half', "quotation mark is not closed"), ("psnr_db > 3 > 4", "without a name"), ("!x", "no sign of an expression"),
        ("kind > pruned", "kind is a text"), ("()", "missing"), ("not", "missing"), ("__import__ = 1", "no figure '__import__'"),
        ("psnr_db > nan", "no number"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told(text, words):
    with pytest.raises(CoreError, match=words) as caught:
        parse(text, FIGURES)
    assert caught.value.code == "bad_search" and caught.value.given == text and caught.value.legal


def test_a_typo_is_answered_with_the_nearest_name():
    with pytest.raises(CoreError) as caught:
        parse("pnsr_db > 30", FIGURES)
    assert caught.value.next == "Did you mean psnr_db?"


@given(some.text(alphabet='psnr_db><=!()" andort0123.%M-', max_size=40))
def test_any_text_is_a_test_or_one_clear_error(text):
    try:
        assert parse(text, FIGURES)(SUBJECT) in (True, False)
    except CoreError as error:
        assert error.code == "bad_search" and "\n" not in error.message


@pytest.fixture
def manager(tmp_path):
    made = ModelManager(tmp_path / "home")
    yield made
    made.store.close()


def test_the_forest_has_the_figures_that_compare_shows(manager):
    ids = fill(manager.store, 60)
    assert st.verify(manager.store) == [], "what fills a store for tests is a store"
    forest = manager.forest()
    assert [leaf.id for leaf in forest.models] == [row.id for row in manager.list_models()] and forest.left_out == 0
    for ref in ids[::7]:
        told = {key: value for key, value in manager.get_model_metrics(ref).items() if value is not None}
        assert told.items() <= forest.figures[ref].items()
    assert {leaf.id for leaf in forest.find("method = structured")} == {
        row.id for row in manager.list_models() if row.spec.get("method") == "structured"
    }
    assert manager.forest().figures is forest.figures, "read once"
    st.delete_model(manager.store, forest.models[0].id)
    assert len(manager.forest().models) == 59 and forest.models[0].id not in manager.forest().figures


def test_other_images_are_left_out_and_counted(manager):
    ids = fill(manager.store, 10)
    with manager.store.write() as session:
        st.scores.put_scores(session, ids[3], {"images_sha256": "other"}, "test", {"psnr_db": 99.0})
    forest = manager.forest()
    assert forest.left_out == 1 and "psnr_db" not in forest.figures[ids[3]] and "psnr_db" in forest.figures[ids[4]]


def test_milliseconds_of_another_device_are_never_beside_these(manager):
    ids = fill(manager.store, 30)
    before = manager.forest()
    other = {"device": "cuda:0", "device_name": "fast", "dtype": "float32", "image_size": 128, "batch_size": 1, "threads": 2}
    run = {**other, "models": [{"model_id": ids[3], "decode_ms": 0.01}, {"model_id": ids[4], "decode_ms": 0.02}]}
    st.scores.put_measurement(manager.store, run)
    forest = manager.forest()
    assert forest is not before and forest.cost_left_out == 0
    assert {ref: forest.figures[ref]["decode_ms"] for ref in ids} == {ref: before.figures[ref]["decode_ms"] for ref in ids}
    extra = st.add_model(manager.store, new_model(manager.store, "measured elsewhere")).id
    st.scores.put_measurement(manager.store, {**other, "models": [{"model_id": extra, "decode_ms": 0.01}]})
    forest = manager.forest()
    assert forest.cost_left_out == 1 and "decode_ms" not in forest.figures[extra] and "parameters" in forest.figures[extra]


def test_a_forest_is_read_once_until_anything_changes(manager):
    ids = fill(manager.store, 10)
    first = manager.forest()
    assert manager.forest() is first
    manager.annotate(ids[2], tag="seen")
    second = manager.forest()
    assert second is not first and second.find("tag = seen")[0].id == ids[2]
    other = st.open_store(manager.store.root)
    st.set_note(other, ids[3], "from elsewhere")
    other.close()
    assert manager.forest().find('note = "from elsewhere"')[0].id == ids[3]


def test_focus_is_ancestors_and_nearest_descendants(manager):
    ids = fill(manager.store, 80)
    forest = manager.forest()
    for ref in (ids[0], ids[20], ids[-1]):
        shown, beyond = forest.around(ref)
        wanted = {
            ref,
            *(row.id for row in st.ancestors(manager.store, ref)),
            *(row.id for row in st.descendants(manager.store, ref)),
        }
        assert {leaf.id for leaf in shown} == wanted and beyond == 0
    shown, beyond = forest.around(ids[0], limit=5)
    nearest = [row.id for row in st.children(manager.store, ids[0])]
    assert len(shown) == 5 and beyond == 75 and ids[0] in {leaf.id for leaf in shown}
    assert len({leaf.id for leaf in shown} & set(nearest)) == min(4, len(nearest))


def test_a_large_forest_is_read_searched_and_drawn(manager):
    from pages.ui.forest import draw

    fill(manager.store, 3000)
    forest = manager.forest()
    found = forest.find("psnr_db > 25 and decode_ms < 10")
    drawing = draw(forest, forest.models, chosen=forest.models[7].id, colour="psnr_db", fits={leaf.id for leaf in found})
    assert sum(len(refs) for refs in drawing.series.values()) == 3000


@pytest.mark.parametrize("number", [30, 200, 500, 1500])
def test_each_model_of_a_drawing_has_its_name_to_hover(manager, number):
    from pages.ui.forest import draw

    fill(manager.store, number)
    forest = manager.forest()
    names = {leaf.id: leaf.name for leaf in forest.models}
    drawing = draw(forest, forest.models, chosen=forest.models[0].id)
    assert drawing.options["tooltip"]["formatter"] == "{b}" and drawing.options["tooltip"].get("show", True)
    for series, refs in drawing.series.items():
        one = drawing.options["series"][series]
        shown = [point["name"] if isinstance(point, dict) else point[one["encode"]["itemName"]] for point in one["data"]]
        assert shown == [names[ref] for ref in refs]
        assert isinstance(one["data"][0], dict) or one["dimensions"][one["encode"]["itemName"]]["type"] == "ordinal"


def test_every_edge_is_drawn_from_the_parent_to_the_child(manager):
    from pages.ui.forest import ACROSS, draw

    fill(manager.store, 120)
    forest = manager.forest()
    drawing = draw(forest, forest.models, chosen=forest.models[0].id)
    place = {
        ref: tuple(one["value"][:2])
        for number, refs in drawing.series.items()
        for ref, one in zip(refs, drawing.options["series"][number]["data"], strict=True)
    }
    flat, drawn = list(drawing.options["series"][0]["data"]), set()
    while flat:
        count, flat = flat[0], flat[1:]
        points, flat = list(zip(flat[0 : 2 * count : 2], flat[1 : 2 * count : 2], strict=True)), flat[2 * count :]
        for (x, y), (to_x, to_y) in itertools.pairwise(points):
            assert x == to_x or y == to_y, "only level and upright lines"
            drawn |= {(a, b) for a in range(min(x, to_x), max(x, to_x) + 1) for b in range(min(y, to_y), max(y, to_y) + 1)}
    for leaf in forest.models:
        if leaf.parent_id is not None:
            (x, y), (to_x, to_y) = place[leaf.parent_id], place[leaf.id]
            middle = x + ACROSS // 2
            upright = {(middle, at) for at in range(min(y, to_y), max(y, to_y) + 1)}
            assert {(x, y), (middle, y), (middle, to_y), (to_x, to_y), *upright} <= drawn


@pytest.mark.parametrize("rows", [1, 5, 15, 25, 40])
def test_a_symbol_with_its_label_stays_within_its_row(rows):
    from pages.ui.tree import LABEL_PIXELS, SMALLEST_SYMBOL, chart_height, symbol_room

    pixels = (chart_height(rows, 40) - 60) / rows
    room = symbol_room(pixels, 40)
    assert room + LABEL_PIXELS <= pixels and room >= SMALLEST_SYMBOL


def test_a_label_fits_its_column_and_keeps_its_value():
    from pages.ui.tree import short_label

    name = "dcae_l2structured_0.50_20260214-153000"
    assert short_label(name, "4.39 M", 2) == f"{name}  4.39 M"
    cut = short_label(name, "4.39 M", 8)
    assert len(cut) <= 1000 / 8 / 6 and cut.startswith("dca") and cut.endswith("0  4.39 M") and "…" in cut
    assert short_label("tiny", "", 40) == "tiny"


def test_a_click_means_the_model_that_stands_there(manager):
    from pages.ui.forest import draw

    fill(manager.store, 30)
    forest = manager.forest()
    for colour in ("operation", "psnr_db", "peak_memory_bytes"):
        drawing = draw(forest, forest.models, chosen=forest.models[0].id, colour=colour, fits={forest.models[1].id})
        for number, refs in drawing.series.items():
            assert len(refs) == len(drawing.options["series"][number]["data"])
            event = {"selection": {"selected": [{"series_index": number, "data_indices": [len(refs) - 1]}]}}
            assert drawing.clicked(event) == refs[-1]
        assert {ref for refs in drawing.series.values() for ref in refs} == {leaf.id for leaf in forest.models}
    assert drawing.clicked({"selection": {"selected": []}}) is None
    both = {"selection": {"selected": [{"series_index": n, "data_indices": [0]} for n in drawing.series]}}
    first, second, *_ = sorted(drawing.series)
    assert drawing.clicked(both, {(first, 0)}) == drawing.series[second][0], "the series clicked before keeps its mark"


def test_a_card_tells_widths_jobs_and_copies(tmp_path, data_dir):
    from core.settings import Settings
    from tests.core.in_process import InProcess

    bench = InProcess(Settings(home=tmp_path / "home2", data_dir=data_dir, device="cpu"))
    tiny = bench.add()
    job = bench.run("prune", tiny.id, rate=0.4)
    manager = ModelManager(settings=bench.settings)
    changes = manager.width_changes(job.model_id)
    assert changes and all(change.after < change.before for change in changes)
    assert manager.width_changes(tiny.id) == [] and manager.making_job(tiny.id) is None
    assert manager.making_job(job.model_id).id == job.id and manager.copies(job.model_id) == []
    st.set_mirrored(bench.store, "wandb-offline:mirror", job.id, "wandb/offline-run-1", {"state": "sent"})
    assert manager.copies(job.model_id) == ["offline run in mirror: wandb/offline-run-1"]
    made_by = manager.setting_changes(job.model_id)
    assert made_by.since is None and [(one.name, one.before, one.after) for one in made_by.changes] == [("rate", 0.5, 0.4)]
    again = bench.run("prune", job.model_id, rate=0.3, method="structured", score="l2", compensate=False)
    made_by = manager.setting_changes(again.model_id)
    assert made_by.since.id == job.model_id
    assert {one.name: (one.before, one.after) for one in made_by.changes}["rate"] == (0.4, 0.3)
    card = manager.card(again.model_id)
    assert [step["id"] for step in card["chain"]] == [tiny.id, job.model_id, again.model_id]
    assert (
        card["settings"]["since"] == job.model_id and card["widths"] and card["job"]["log"] and "cores" in card["job"]["machine"]
    )
    assert card["figures"]["parameters"]["against_baseline"] < card["figures"]["parameters"]["against_parent"] < 0
    assert manager.card(job.model_id)["mirrored"] == ["offline run in mirror: wandb/offline-run-1"]
    assert manager.card(tiny.id)["job"] is None and manager.card(tiny.id)["widths"] == []
    manager.store.close()
    bench.store.close()
