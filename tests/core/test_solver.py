"""The solver: tables that interpolate, searches that reach their target at little loss, and targets that cannot be reached."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs

from core.errors import CoreError
from core.pruning.plans import kept_count
from core.solver.latency import LatencyTable, fit, group_of
from core.solver.search import _Search, predict, reach, solve
from core.solver.sensitivity import TOGETHER, Cell, SensitivityTable, decibels, squared_error
from dcaecore import VARIANTS, Layout, estimate, sites
from dcaecore.cost import module_costs

TINY = VARIANTS["tiny"]
INTERNAL = [name for name, site in sites(TINY).items() if site.kind != "stream"]
WHOLE = {"psnr_db": 36.0, "foreground_psnr_db": 24.0}


def sensitivity(knobs=None, harm=None) -> SensitivityTable:
    """Squared error grows with the square of the share, at each knob's own pace."""
    knobs = knobs or {name: (name,) for name in INTERNAL}
    cells = []
    for place, (knob, names) in enumerate(knobs.items()):
        pace = (harm or {}).get(knob, 1.0 + place)
        widths = [sites(TINY)[name].total for name in names]
        for rate in (0.25, 0.5, 0.75):
            share = 1 - sum(kept_count(width, rate) for width in widths) / sum(widths)
            figures = {m: decibels(squared_error(value) * (1 + pace * share**2)) for m, value in WHOLE.items()}
            cells.append(Cell(knob, rate, share, figures))
    return SensitivityTable("m_x", Layout().digest(), {}, knobs, WHOLE, tuple(cells))


def latency() -> LatencyTable:
    """A block costs a millisecond for each ten thousand MACs at full width, and half as much at none."""
    groups: dict[str, dict[tuple[int, ...], float]] = {}
    for rate in (0.0, 0.25, 0.5, 0.75):
        keep = {name: range(kept_count(sites(TINY)[name].total, rate)) for name in INTERNAL}
        for row in module_costs(TINY, Layout().compose(TINY, keep), 128):
            groups.setdefault(group_of(row), {})[row.widths] = 0.5 + row.macs * 1e-6
    return LatencyTable(
        {"image_size": 128}, TINY.to_json(), groups, {"encoder": 1.0, "decoder": 2.0}, {"encoder": 1.0, "decoder": 0.5}
    )


def test_a_latency_is_offset_and_scaled_sum_of_blocks():
    table = latency()
    rows = [row for row in module_costs(TINY, Layout(), 128) if row.name.startswith("decoder")]
    expected = 2.0 + 0.5 * sum(0.5 + row.macs * 1e-6 for row in rows)
    assert table.predict(TINY, Layout(), "decoder") == pytest.approx(expected, rel=1e-12)
    assert LatencyTable.from_json(table.to_json()) == table
    assert table.error("decoder") is None


@settings(max_examples=25, deadline=None)
@given(rate=hs.floats(0.0, 0.95))
def test_between_grid_points_a_latency_is_linear_and_beyond_the_edge_it_is_held(rate):
    """MACs of the blocks are linear in their units, so linear interpolation is exact up to the edge of the grid."""
    table, name = latency(), "decoder.stages.1.blocks.0.mid"
    keep = {name: range(kept_count(sites(TINY)[name].total, rate))}
    edge = {name: range(max(len(keep[name]), kept_count(sites(TINY)[name].total, 0.75)))}
    layout, held = Layout().compose(TINY, keep), Layout().compose(TINY, edge)
    expected = 2.0 + 0.5 * sum(0.5 + row.macs * 1e-6 for row in module_costs(TINY, held, 128) if row.name.startswith("decoder"))
    assert table.predict(TINY, layout, "decoder") == pytest.approx(expected, rel=1e-9)


def test_a_latency_table_of_something_else_is_refused():
    table = latency()
    with pytest.raises(CoreError, match="another architecture"):
        table.predict(VARIANTS["demo-f32c32"], Layout(), "decoder")
    only = LatencyTable(table.protocol, table.config, {g: t for g, t in table.groups.items() if g.startswith("encoder")})
    with pytest.raises(CoreError, match="no decoder"):
        only.predict(TINY, Layout(), "decoder")
    with pytest.raises(CoreError, match="another version"):
        LatencyTable.from_json({"version": 0})
    with pytest.raises(CoreError, match="another version"):
        SensitivityTable.from_json({"version": 0})


def test_a_profile_that_did_not_vary_the_streams_says_nothing_of_narrower_ones():
    layout = Layout().compose(TINY, {"decoder.stages.2.stream": range(16)})
    with pytest.raises(CoreError, match="did not vary the streams") as caught:
        latency().predict(TINY, layout, "decoder")
    assert caught.value.code == "profile_streams" and latency().predict(TINY, layout, "encoder") > 0


def test_the_error_is_that_of_the_checks():
    checks = (
        {"coder": "decoder", "predicted_ms": 11.0, "measured_ms": 10.0},
        {"coder": "decoder", "predicted_ms": 9.7, "measured_ms": 10.0},
    )
    table = LatencyTable({}, {}, {}, checks=checks)
    assert table.error("decoder") == pytest.approx(0.065) and table.error("encoder") is None


def test_offset_and_scale_are_fitted_and_never_negative():
    sums = np.array([10.0, 20.0, 35.0, 50.0])
    assert fit(sums, 3.0 + 0.7 * sums) == pytest.approx((3.0, 0.7), rel=1e-6)
    offset, scale = fit(sums, 0.9 * sums - 2.0)
    assert offset == 0.0 and scale > 0


def test_added_error_is_monotone_and_starts_at_nothing():
    table = sensitivity()
    noisy = table.cells[0].knob
    cells = tuple(
        Cell(c.knob, c.rate, c.share, {**c.figures, "psnr_db": 36.1}) if (c.knob, c.rate) == (noisy, 0.5) else c
        for c in table.cells
    )
    table = SensitivityTable(table.model, table.layout_digest, {}, table.knobs, WHOLE, cells)
    found = table.added_error(noisy, "psnr_db", np.linspace(0, 1, 41))
    assert found[0] == 0 and (np.diff(found) >= -1e-15).all() and found[-1] == found[-2] > 0
    assert SensitivityTable.from_json(table.to_json()) == table


def with_joint(ratio: float) -> SensitivityTable:
    """A table in which all knobs together add `ratio` times the sum of what each adds alone."""
    table = sensitivity()
    joint = []
    for rate in (0.25, 0.5, 0.75):
        own = [cell for cell in table.cells if cell.rate == rate]
        start = {m: squared_error(value) for m, value in WHOLE.items()}
        added = {m: ratio * sum(squared_error(c.figures[m]) - start[m] for c in own) for m in WHOLE}
        joint.append(Cell(TOGETHER, rate, own[0].share, {m: decibels(start[m] + added[m]) for m in WHOLE}))
    return replace(table, together=tuple(joint))


@pytest.mark.parametrize("ratio", [0.7, 1.0, 2.5])
def test_losses_of_several_sites_grow_on_each_other_as_was_measured(ratio):
    table = with_joint(ratio)
    assert SensitivityTable.from_json(table.to_json()) == table
    for joint in table.together:
        alone = [squared_error(c.figures["psnr_db"]) - squared_error(36.0) for c in table.cells if c.rate == joint.rate]
        measured = squared_error(joint.figures["psnr_db"]) - squared_error(36.0)
        assert table.joint_error("psnr_db", alone) == pytest.approx(measured, rel=1e-6)
        assert table.joint_error("psnr_db", [alone[0]]) == pytest.approx(alone[0], rel=1e-12), "one knob adds what it adds"
        assert sensitivity().joint_error("psnr_db", alone) == pytest.approx(sum(alone), rel=1e-12), "an older table"
        tiny = [own * 1e-6 for own in alone]
        assert table.joint_error("psnr_db", tiny) == pytest.approx(sum(tiny), rel=1e-9), "small losses add up"
    assert table.joint_error("psnr_db", []) == 0


def test_a_loss_of_so_many_decibels_counts_what_grows():
    careless, careful = (
        solve(TINY, Layout(), table, cost="parameters", loss_db=1.0) for table in (sensitivity(), with_joint(2.5))
    )
    assert careful.after["parameters"] > careless.after["parameters"]
    assert all(WHOLE[metric] - careful.after[metric] <= 1.0 for metric in WHOLE)


def test_a_dead_knob_costs_nothing():
    """A figure that gets better by pruning is no gain to be counted."""
    table = sensitivity(harm={INTERNAL[0]: -0.5})
    assert (table.added_error(INTERNAL[0], "psnr_db", [0.3, 0.7]) == 0).all()


@pytest.mark.parametrize("cost", ["parameters", "decode_macs", "encode_macs", "weight_bytes", "decode_ms", "encode_ms"])
@pytest.mark.parametrize("share", [0.9, 0.7])
def test_a_target_is_reached_and_predicted_exactly(cost, share):
    floor, before = reach(TINY, Layout(), sensitivity(), cost=cost, latency=latency())
    target = floor + share * (before - floor)
    found = solve(TINY, Layout(), sensitivity(), cost=cost, at_most=target, latency=latency())
    assert found.after[cost] <= target < found.before[cost]
    exact = estimate(TINY, found.layout, image_size=128)
    for name in ("parameters", "decode_macs", "encode_macs", "weight_bytes"):
        assert found.after[name] == getattr(exact, name)
    assert found.after["psnr_db"] < found.before["psnr_db"] == pytest.approx(36.0)
    wasted = "encoder" if cost.startswith("decode") else "decoder" if cost.startswith("encode") else "-"
    assert not any(rate for name, rate in found.rates.items() if name.startswith(wasted)), "the other half is left whole"


@settings(max_examples=12, deadline=None)
@given(paces=hs.lists(hs.floats(0.05, 20.0), min_size=3, max_size=3), share=hs.floats(0.15, 0.9))
def test_the_search_loses_hardly_more_than_the_best_of_all_choices(paces, share):
    names = ["decoder.stages.1.blocks.0.mid", "decoder.stages.3.blocks.0.hidden", "decoder.stages.2.blocks.0.mid"]
    names = [name for name in names if name in INTERNAL] or INTERNAL[:3]
    table = sensitivity({name: (name,) for name in names}, dict(zip(names, paces, strict=False)))
    search = _Search(TINY, Layout(), table, "parameters", None, 128)
    counts = [range(len(search.levels[name])) for name in names]
    everything = [dict(zip(names, levels, strict=True)) for levels in itertools.product(*counts)]
    costs = [search.cost(option) for option in everything]
    harms = [search.lost_db(option) for option in everything]
    target = min(costs) + share * (max(costs) - min(costs))
    best = min(harm for cost, harm in zip(costs, harms, strict=True) if cost <= target)
    found = solve(TINY, Layout(), table, cost="parameters", at_most=target)
    assert WHOLE["psnr_db"] - found.after["psnr_db"] <= 1.35 * best + 0.02


def test_the_least_cost_for_a_loss():
    found = solve(TINY, Layout(), sensitivity(), cost="parameters", loss_db=1.0)
    assert 0.5 < WHOLE["psnr_db"] - found.after["psnr_db"] <= 1.0
    more = solve(TINY, Layout(), sensitivity(), cost="parameters", loss_db=2.0)
    assert more.after["parameters"] < found.after["parameters"] < found.before["parameters"]


def test_what_cannot_be_reached_says_how_near_it_comes():
    with pytest.raises(CoreError, match="every measured rate at its highest") as caught:
        solve(TINY, Layout(), sensitivity(), cost="parameters", at_most=10.0)
    assert caught.value.code == "unreachable" and "at least" in caught.value.legal
    with pytest.raises(CoreError, match="within the target already"):
        solve(TINY, Layout(), sensitivity(), cost="parameters", at_most=1e9)
    with pytest.raises(CoreError, match="Nothing can go"):
        solve(TINY, Layout(), sensitivity(), cost="parameters", loss_db=1e-9)


def test_a_lock_holds_and_a_target_that_contradicts_it_says_so():
    found = solve(TINY, Layout(), sensitivity(), cost="parameters", loss_db=3.0, locked=("encoder.stages.3", "decoder.mid"))
    assert any(found.rates.values())
    assert not any(rate for name, rate in found.rates.items() if name.startswith("encoder.stages.3."))
    assert not any(rate for name, rate in found.rates.items() if name.startswith("decoder") and name.endswith("mid"))
    total = estimate(TINY, Layout()).parameters
    with pytest.raises(CoreError, match="Without the locks it could be"):
        solve(TINY, Layout(), sensitivity(), cost="parameters", at_most=0.6 * total, locked=("mid", "heads"))
    with pytest.raises(CoreError, match="no site, stage or kind"):
        solve(TINY, Layout(), sensitivity(), cost="parameters", loss_db=1.0, locked=("attic",))


def test_what_is_missing_or_of_another_model_is_said():
    other = Layout().compose(TINY, {INTERNAL[0]: (0, 1)})
    with pytest.raises(CoreError, match="measured on another model"):
        solve(TINY, other, sensitivity(), cost="parameters", loss_db=1.0)
    with pytest.raises(CoreError, match="needs this model's latency profile"):
        solve(TINY, Layout(), sensitivity(), cost="decode_ms", at_most=1.0)
    for both in ({}, {"at_most": 1.0, "loss_db": 1.0}):
        with pytest.raises(CoreError, match="either"):
            solve(TINY, Layout(), sensitivity(), cost="parameters", **both)


@pytest.mark.parametrize("table", [sensitivity(), with_joint(2.5), sensitivity({"all": tuple(INTERNAL)})])
def test_a_pruning_is_predicted_as_the_solver_predicts_it(table):
    found = solve(TINY, Layout(), table, cost="parameters", loss_db=1.0, latency=latency())
    assert predict(TINY, Layout(), table, found.layout, latency=latency()) == pytest.approx(dict(found.after), rel=1e-12)
    assert predict(TINY, Layout(), table, Layout(), latency=latency()) == pytest.approx(dict(found.before), rel=1e-12)


def test_beyond_what_was_measured_no_quality_is_predicted():
    name = INTERNAL[0]
    further = Layout().compose(TINY, {name: range(kept_count(sites(TINY)[name].total, 0.85))})
    assert "psnr_db" not in predict(TINY, Layout(), sensitivity(), further) and further.digest() != Layout().digest()
    within = Layout().compose(TINY, {name: range(kept_count(sites(TINY)[name].total, 0.6))})
    assert predict(TINY, Layout(), sensitivity(), within)["psnr_db"] < 36
    others = sensitivity({other: (other,) for other in INTERNAL[1:]})
    found = predict(TINY, Layout(), others, within)
    assert "psnr_db" not in found and found["parameters"] == estimate(TINY, within).parameters
