from __future__ import annotations

import json
import os
import pickle
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store import (
    Store,
    StoreError,
    add_model,
    add_tag,
    aliases,
    ancestors,
    baseline_of,
    children,
    clean,
    cleanable,
    delete_model,
    deleted_models,
    descendants,
    edges,
    get_model,
    get_models,
    list_models,
    open_store,
    orphans,
    parents,
    preview_delete,
    remove_alias,
    remove_tag,
    rename_model,
    restore,
    set_alias,
    set_note,
    verify,
)
from store.db import connect
from store.references import sweep
from store.scores import put_image, put_scores
from store.scores import scores as score_means
from tests.store.builders import PROTOCOL, model, new_model, running_job


def test_a_model_comes_back_as_it_was_stored(store: Store) -> None:
    base = model(store, "base", dataset_identity={"source": "mspacman", "seed": 0})
    made = model(store, "child", base, note="first try")
    found = get_model(store, made.id)
    assert found == made
    assert (found.name, found.kind, found.note) == ("child", "pruned", "first try")
    assert found.config == {"widths": [16, 32]}
    assert found.layout == {"kept": {"encoder.stages.0.blocks.0.mid": [0, 1]}}
    assert found.spec == {"operation": "prune", "seed": "child"}
    assert found.parents == (("parent", base.id),)
    assert found.parent_id == base.id
    assert base.dataset == {"source": "mspacman", "seed": 0}
    assert found.facts == {"parameters": 1000.0, "sparsity": 0.0}
    assert json.loads(json.dumps(found.to_json()))["layout"] == found.layout
    (listed,) = [row for row in list_models(store) if row.id == made.id]
    assert listed == found
    assert pickle.loads(pickle.dumps(listed)).config == found.config


def test_the_same_identity_is_one_model(store: Store) -> None:
    first = model(store, "one")
    second = add_model(store, new_model(store, "one", spec={"operation": "import", "seed": "one"}, note="again"))
    assert second == first
    assert len(list_models(store)) == 1


def test_names_of_living_models_stay_apart(store: Store) -> None:
    model(store, "twin")
    other = model(store, "twin", spec={"other": 1})
    assert other.name == "twin-2"
    with pytest.raises(StoreError) as caught:
        rename_model(store, other.id, "twin")
    assert caught.value.code == "name_taken"
    assert rename_model(store, other.id, "twin-3").name == "twin-3"


@pytest.mark.parametrize("name", ["", "  ", "x" * 161, "a\nb", "m_123456"])
def test_unusable_names_are_refused(store: Store, name: str) -> None:
    with pytest.raises(StoreError):
        model(store, name)
    assert list_models(store) == []


def test_a_model_is_found_by_id_prefix_alias_or_name(store: Store) -> None:
    made = model(store, "base")
    set_alias(store, "current", made.id)
    for ref in (made.id, made.id[:8], made.id[2:8], "current", "base", f" {made.id} "):
        assert get_model(store, ref).id == made.id


def test_unknown_and_ambiguous_names_say_what_is_legal(store: Store) -> None:
    with pytest.raises(StoreError) as caught:
        get_model(store, "base")
    assert caught.value.code == "unknown_model"
    assert "empty" in str(caught.value.next)
    made = model(store, "baseline")
    with pytest.raises(StoreError) as caught:
        get_model(store, "baselin")
    assert caught.value.given == "baselin"
    assert "baseline" in str(caught.value.next)
    with pytest.raises(StoreError, match="No model"):
        get_model(store, made.id[:7])  # five digits are too few
    # Two ids that share six digits cannot be searched for here; a row is forged.
    with store.write() as session:
        session.connection().exec_driver_sql(
            "INSERT INTO model (id, digest, name, kind, family, weights_digest, bytes, note, facts, created)"
            " SELECT substr(id, 1, 12) || '000000', 'other', 'other', kind, family, weights_digest, bytes, note, facts,"
            " created FROM model"
        )
    with pytest.raises(StoreError) as caught:
        get_model(store, made.id[:10])
    assert caught.value.code == "ambiguous"
    assert made.id in caught.value.legal


def test_parents_must_be_in_the_store(store: Store) -> None:
    with pytest.raises(StoreError) as caught:
        add_model(store, new_model(store, "orphan", ("m_0123456789abcdef",)))
    assert caught.value.code == "unknown_model"
    base = model(store, "base")
    with pytest.raises(StoreError, match="role"):
        add_model(store, new_model(store, "odd", pairs=(("aunt", base.id),)))
    assert [row.name for row in list_models(store)] == ["base"]


def test_weights_must_be_there_before_the_model(store: Store) -> None:
    with pytest.raises(StoreError) as caught:
        add_model(store, new_model(store, "base", blob_digest="0" * 64))
    assert caught.value.code == "missing_blob"
    with pytest.raises(StoreError) as caught:
        add_model(store, new_model(store, "base", bytes=3))
    assert caught.value.code == "broken_blob"
    assert list_models(store) == []


def test_the_tree_is_walked_in_both_directions(store: Store) -> None:
    base = model(store, "base")
    left, right = model(store, "left", base), model(store, "right", base)
    merged = add_model(store, new_model(store, "merged", pairs=(("parent", left.id), ("teacher", right.id)), kind="retrained"))
    leaf = model(store, "leaf", merged)
    assert [row.name for row in parents(store, merged.id)] == ["left", "right"]
    assert [row.name for row in children(store, base.id)] == ["left", "right"]
    assert {row.name for row in ancestors(store, leaf.id)} == {"merged", "left", "right", "base"}
    assert [row.name for row in ancestors(store, leaf.id)][0] == "merged"
    assert [row.name for row in descendants(store, base.id)][-1] == "leaf"
    assert baseline_of(store, leaf.id).id == base.id
    assert baseline_of(store, base.id).id == base.id
    assert {(edge.child, edge.role) for edge in edges(store) if edge.parent == right.id} == {(merged.id, "teacher")}
    assert list(get_models(store, [leaf.id, base.id, "m_none"])) == [leaf.id, base.id]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.integers(0, 30), max_size=3), min_size=1, max_size=9))
def test_no_cycle_can_be_made_and_every_identity_verifies(shape: list[list[int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        made: list[str] = []
        for number, wanted in enumerate(shape):
            chosen = tuple(dict.fromkeys(made[index % len(made)] for index in wanted)) if made else ()
            made.append(add_model(store, new_model(store, f"model {number}", chosen)).id)
            # Adding any earlier model again, whatever was built on it, changes nothing.
        before = edges(store)
        for model_id in made:
            assert model_id not in {row.id for row in ancestors(store, model_id)}
            for ancestor in ancestors(store, model_id):
                assert model_id in {row.id for row in descendants(store, ancestor.id)}
        again = get_model(store, made[0])
        add_model(store, new_model(store, "model 0", tuple(parent for _, parent in again.parents)))
        assert edges(store) == before
        assert verify(store) == []
        store.close()


def test_words_on_models(store: Store) -> None:
    base, other = model(store, "base"), model(store, "other")
    set_alias(store, "best", base.id)
    set_alias(store, "best", "other")
    assert aliases(store) == {"best": other.id}
    assert get_model(store, "best").aliases == ("best",)
    with pytest.raises(StoreError, match="called"):
        set_alias(store, "base", other.id)
    add_tag(store, "base", "small")
    assert add_tag(store, "base", " small ").tags == ("small",)
    assert [row.name for row in list_models(store, text="SMALL")] == ["base"]
    assert [row.name for row in list_models(store, text="best")] == ["other"]
    assert list_models(store, text="100%") == []
    assert remove_tag(store, "base", "small").tags == ()
    assert set_note(store, "base", "seen").note == "seen"
    assert [row.name for row in list_models(store, limit=1)] == ["other"]
    remove_alias(store, "best")
    assert aliases(store) == {}
    for bad in ("", "a,b", "x" * 41):
        with pytest.raises(StoreError):
            add_tag(store, "base", bad)
    assert verify(store) == []  # none of it is part of an identity


def test_deleting_leaves_a_tombstone(store: Store) -> None:
    base = model(store, "base", data=b"b" * 1000)
    middle = model(store, "middle", base, data=b"m" * 500)
    leaf = model(store, "leaf", middle, data=b"m" * 500)  # shares its file with its parent
    set_alias(store, "current", middle.id)
    preview = preview_delete(store, "middle")
    assert [row.name for row in preview.descendants] == ["leaf"]
    assert (preview.bytes_freed, preview.bytes_freed_with_descendants) == (0, 500)
    assert preview.aliases == ("current",)
    with pytest.raises(StoreError) as caught:
        delete_model(store, "middle")
    assert caught.value.code == "has_descendants"
    assert delete_model(store, "middle", keep_descendants=True) == (middle.id,)
    assert store.blobs.exists(str(leaf.blob_digest))
    assert [row.name for row in list_models(store)] == ["leaf", "base"]
    assert [row.id for row in ancestors(store, leaf.id)] == [middle.id, base.id]
    assert baseline_of(store, leaf.id).id == base.id
    assert aliases(store) == {}
    assert verify(store) == []
    with pytest.raises(StoreError) as caught:
        get_model(store, middle.id)
    assert caught.value.code == "deleted"
    assert get_model(store, middle.id, deleted=True).deleted is not None
    assert set(delete_model(store, "base", descendants=True)) == {base.id, leaf.id}
    assert len(list(store.blobs.digests())) == 2, "until the clean-up"
    found = clean(store)
    assert set(found.models) == {base.id, middle.id, leaf.id} and found.bytes_freed == found.bytes_before - found.bytes_after
    assert list(store.blobs.digests()) == [] and verify(store) == []


def test_a_deletion_is_undone_until_the_clean_up(store: Store) -> None:
    base = model(store, "base", data=b"b" * 1000)
    middle = model(store, "middle", base, data=b"m" * 500)
    leaf, other = model(store, "leaf", middle, data=b"l" * 70), model(store, "other", data=b"m" * 500)
    set_alias(store, "current", leaf.id)
    add_tag(store, leaf.id, "small")
    put_image(store, leaf.id, _scored(store, leaf.id), 0, b"png of leaf")
    before = {ref: get_model(store, ref) for ref in (middle.id, leaf.id)}
    delete_model(store, other.id)
    assert preview_delete(store, middle.id).bytes_freed_with_descendants == 500 + 70 + len(b"png of leaf"), (
        "with what other shares"
    )
    delete_model(store, middle.id, descendants=True)
    assert [row.name for row in deleted_models(store)] == ["middle", "leaf", "other"] and aliases(store) == {}
    assert cleanable(store) == (3, 581) and verify(store) == []
    rename_model(store, base.id, "leaf")
    assert set(restore(store, "middle")) == {middle.id, leaf.id}
    back = get_model(store, leaf.id)
    assert back.name == "leaf-2", "its name was taken meanwhile"
    assert get_model(store, middle.id) == before[middle.id]
    assert (back.tags, back.aliases, aliases(store)) == (("small",), ("current",), {"current": leaf.id})
    assert score_means(store, leaf.id) == {"psnr_db": 30.0} and verify(store) == []
    with pytest.raises(StoreError, match="not deleted") as caught:
        restore(store, middle.id)
    assert caught.value.legal == [other.id]
    clean(store)
    with pytest.raises(StoreError, match="cleaned away"):
        restore(store, other.id)
    assert store.blobs.exists(str(middle.blob_digest)), "its living owner needs it still"


def _scored(store: Store, ref: str) -> str:
    with store.write() as session:
        return put_scores(session, ref, PROTOCOL, "test", {"psnr_db": 30.0})


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_random_forests_stay_whole_through_branches_merges_deletes_and_restores(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        made: list[str] = []
        for number in range(data.draw(st.integers(3, 14))):
            action = data.draw(st.sampled_from(["add", "add", "add", "delete", "alone", "restore", "clean"]))
            living = [row.id for row in list_models(store)]
            gone = [row.id for row in deleted_models(store)]
            if action == "add":
                chosen = data.draw(st.lists(st.sampled_from(living), max_size=3, unique=True)) if living else []
                made.append(add_model(store, new_model(store, f"model {number}", tuple(chosen))).id)
            elif action in ("delete", "alone") and living:
                alone = action == "alone"
                delete_model(store, data.draw(st.sampled_from(living)), descendants=not alone, keep_descendants=alone)
            elif action == "restore" and gone:
                restore(store, data.draw(st.sampled_from(gone)))
            elif action == "clean":
                clean(store)
            assert verify(store) == []
            names = [row.name for row in list_models(store)]
            assert len(names) == len(set(names))
            for ref in made:
                assert ref not in {row.id for row in ancestors(store, ref)}
        needed = {row.blob_digest for row in list_models(store)} | {row.blob_digest for row in deleted_models(store)}
        assert needed <= set(store.blobs.digests())
        store.close()


def test_a_deleted_model_made_again_is_itself(store: Store) -> None:
    base = model(store, "base")
    delete_model(store, base.id)
    again = model(store, "base")
    assert again.id == base.id
    assert again.deleted is None
    assert verify(store) == []


def test_a_model_that_a_job_needs_is_kept(store: Store) -> None:
    base = model(store, "base")
    job = running_job(store, parent=base.id)
    with pytest.raises(StoreError) as caught:
        delete_model(store, "base")
    assert caught.value.legal == [job.id]
    assert preview_delete(store, "base").jobs_in_the_way == (job.id,)
    assert get_model(store, "base").deleted is None


def test_the_clean_up_spares_what_is_needed_and_what_is_young(store: Store) -> None:
    base = model(store, "base")
    stray = store.blobs.put_bytes(b"stray")
    (store.root / "jobs" / "j_0123").mkdir(parents=True)
    (store.root / "jobs" / "j_0123" / "log.jsonl").write_text("left over")
    assert orphans(store) == [] and verify(store) == [] and clean(store).bytes_freed == 0
    hour = time.time() - 7200
    for path in (store.blobs.path(stray), store.root / "jobs" / "j_0123"):
        os.utime(path, (hour, hour))
    assert [(left.bytes, left.path.name) for left in orphans(store)] == [(5, stray[2:]), (9, "j_0123")]
    assert [problem.code for problem in verify(store)] == ["orphan", "orphan"]
    os.utime(store.blobs.path(stray))
    assert clean(store).bytes_freed == 9 and not (store.root / "jobs" / "j_0123").exists()
    assert sweep(store) == 0
    assert store.blobs.exists(stray)
    assert sweep(store, strays_older_than_s=-1.0) == 5
    assert store.blobs.exists(str(base.blob_digest))


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("UPDATE model_text SET canonical=x'7b7d'", "identity"),
        ("UPDATE model SET kind='baseline' WHERE name='child'", "changed"),
        ("UPDATE model_text SET spec='{}' WHERE model=(SELECT id FROM model WHERE name='child')", "changed"),
        ("DELETE FROM edge", "edges"),
        ("UPDATE edge SET role='teacher'", "edges"),
        ("UPDATE model SET dataset_digest=NULL", "dataset"),
        ("UPDATE model SET blob_digest=NULL WHERE name='child'", "no_weights"),
    ],
)
def test_verify_finds_what_was_tampered_with(store: Store, sql: str, code: str) -> None:
    base = model(store, "base", dataset_identity={"source": "x"})
    model(store, "child", base)
    assert verify(store) == []
    connection = connect(store.path, mode="rw")
    connection.execute(sql)
    connection.close()
    assert code in {problem.code for problem in verify(store)}


def test_verify_finds_damaged_files(store: Store) -> None:
    base = model(store, "base")
    path: Path = store.blobs.path(str(base.blob_digest))
    data = path.read_bytes()
    path.write_bytes(data[::-1])
    assert [problem.code for problem in verify(store, "base")] == ["broken_blob"]
    assert verify(store, "base", files=False) == []
    path.write_bytes(data[1:])
    assert [problem.code for problem in verify(store)] == ["broken_blob"]
    path.unlink()
    assert [problem.code for problem in verify(store)] == ["missing_blob"]


def test_verify_looks_at_pictures_and_at_the_database_itself(store: Store) -> None:
    base = model(store, "base")
    digest = put_image(store, base.id, _scored(store, base.id), 0, b"a picture")
    assert verify(store) == []
    store.blobs.path(digest).write_bytes(b"b picture")
    assert [(problem.code, problem.model_id) for problem in verify(store)] == [("broken_blob", base.id)]
    assert verify(store, "base") == [], "a model's own check is of its identity and weights"
    store.blobs.path(digest).unlink()
    assert [problem.code for problem in verify(store)] == ["missing_blob"]
    with store.write() as session:
        session.connection().exec_driver_sql("DELETE FROM model_text")
    assert {problem.code for problem in verify(store)} == {"no_text", "missing_blob"}


def test_a_database_cut_short_is_told_in_one_line(store: Store) -> None:
    for number in range(60):
        model(store, f"model {number}", layout={"kept": {"x": list(range(500))}})
    store.close()
    size = store.path.stat().st_size
    with open(store.path, "r+b") as file:
        file.truncate(size // 2 // 4096 * 4096)
    with pytest.raises(StoreError) as caught:
        verify(open_store(store.root, read_only=True))
    assert caught.value.code == "not_a_database" and "\n" not in caught.value.message
