"""Layouts: which units are kept, in original coordinates; compositions, digests, refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcaecore import DCAE, VARIANTS, ConfigError, Layout, sites

TINY = VARIANTS["tiny"]
KNOWN = sites(TINY)
MID = "encoder.stages.1.blocks.0.mid"


def keeps(totals: dict[str, int]) -> st.SearchStrategy[dict[str, tuple[int, ...]]]:
    """Any non-empty ascending choice of units at each of some sites."""
    one = {
        name: st.sets(st.integers(0, total - 1), min_size=1, max_size=min(total, 6)).map(lambda s: tuple(sorted(s)))
        for name, total in totals.items()
    }
    return st.fixed_dictionaries({}, optional=one)


def test_sites_of_a_resblock_and_of_an_evit_stage():
    assert KNOWN[MID].total == 16 and KNOWN[MID].kind == "mid" and (KNOWN[MID].stage, KNOWN[MID].block) == (1, 0)
    assert KNOWN["decoder.stages.3.blocks.0.heads"].total == 2
    assert KNOWN["decoder.stages.3.blocks.0.hidden"].total == 128
    assert not any(".stages.0." in name for name in KNOWN)
    published = sites(VARIANTS["dc-ae-f32c32-sana-1.0"])
    assert published["encoder.stages.5.blocks.2.heads"].total == 32
    assert published["encoder.stages.5.blocks.2.hidden"].total == 4096
    assert [site.name for site in published.values()] == list(published)


@settings(max_examples=25, deadline=None)
@given(keeps({name: site.total for name, site in KNOWN.items()}))
def test_two_prunings_are_their_composition(first):
    layout = Layout().compose(TINY, first)
    layout.validate(TINY)
    evens = {name: tuple(range(0, layout.width(KNOWN[name]), 2)) for name in first}
    twice = layout.compose(TINY, evens)
    once = Layout().compose(TINY, {name: first[name][::2] for name in first})
    assert twice == once and twice.digest() == once.digest()
    for name, kept in first.items():
        assert twice.units(KNOWN[name]) == kept[::2] and twice.width(KNOWN[name]) == len(kept[::2])
    assert Layout.from_json(json.loads(json.dumps(twice.to_json()))) == twice


def test_keeping_everything_is_no_pruning():
    everything = {name: tuple(range(site.total)) for name, site in KNOWN.items()}
    assert Layout().compose(TINY, everything) == Layout() == Layout.from_json({})
    assert Layout().compose(TINY, everything).digest() == Layout().digest()


def test_the_digest_knows_no_order_of_sites():
    a, b = {MID: (0, 3), "decoder.stages.3.blocks.0.heads": (1,)}, {"decoder.stages.3.blocks.0.heads": (1,), MID: (0, 3)}
    assert Layout(a).digest() == Layout(b).digest() != Layout({MID: (0, 3)}).digest()
    assert len(Layout(a).digest()) == 64


@pytest.mark.parametrize("kept", [(), (3, 1), (1, 1), (-1, 2), (0, 16)])
def test_illegal_units_are_refused_with_the_site(kept):
    for attempt in (
        lambda: Layout({MID: kept}).validate(TINY),
        lambda: Layout().compose(TINY, {MID: kept}),
        lambda: DCAE(TINY, Layout({MID: kept})),
    ):
        with pytest.raises(ConfigError, match="stages.1.blocks.0.mid"):
            attempt()


def test_units_are_counted_as_they_are_now():
    layout = Layout().compose(TINY, {MID: (1, 5, 9)})
    with pytest.raises(ConfigError, match="below 3"):
        layout.compose(TINY, {MID: (0, 3)})
    with pytest.raises(ConfigError, match="no site 'encoder.stages.7"):
        layout.compose(TINY, {"encoder.stages.7.blocks.0.mid": (0,)})
    deeper = replace(TINY, encoder=replace(TINY.encoder, depths=(0, 0, 1, 1)))
    with pytest.raises(ConfigError, match="no site"):
        layout.validate(deeper)


def test_a_damaged_layout_says_so():
    for broken in ({"version": 1}, {"version": 1, "kept": [1]}, {"version": 1, "kept": {MID: ["a"]}}):
        with pytest.raises(ConfigError, match="no layout"):
            Layout.from_json(broken)
    with pytest.raises(ConfigError, match="another version"):
        Layout.from_json({"version": 9, "kept": {}})
