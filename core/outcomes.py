"""What became of the solver's prunings: predicted figures beside achieved ones. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import store as st
import store.scores as scores
from core.checks import fields_of, weights_path
from core.compare import compare, conditions_of
from core.errors import CoreError
from core.planning import Planning, Proposal, change_text
from core.pruning.plans import predicted_layout
from core.solver.latency import LatencyTable
from core.solver.search import CODERS, predict
from core.solver.sensitivity import METRICS as QUALITY
from core.specs import EvaluateSpec, PruneSpec
from core.stored_weights import StoredWeights
from dcaecore.cost import estimate
from dcaecore.layout import Layout
from store import JobRow, ModelRow

Pair = tuple[float, float]
"""A figure of the parent and of the model."""
CHOSEN = ("rate", "site_rates")
"""What the solver itself puts into a pruning."""
MACS = ("encode_macs", "decode_macs")


@dataclass(frozen=True)
class Outcome:
    """A model that was pruned as the solver prunes, by figure: what is predicted of what was asked for, and what is there."""

    model: ModelRow
    predicted: Mapping[str, Pair]
    achieved: Mapping[str, Pair]
    """Parameters, MACs and bytes are counted; milliseconds are of one run that held both models under the profile's conditions, quality
    of both on the same test images. What was not measured is missing."""
    retrained: Mapping[str, Pair] = field(default_factory=dict)
    """Quality of its newest retrained child, in the place of its own."""

    def changes(self, key: str) -> tuple[str, str]:
        """Predicted and achieved, each as a change from the parent."""
        said = [change_text(key, *pairs[key]) if key in pairs else "–" for pairs in (self.predicted, self.achieved)]
        return said[0], said[1]


class Outcomes(Planning):
    """The part of `ModelManager` that prunes by a proposal, measures what came out, and remembers."""

    prune_model: Callable[..., JobRow]
    evaluate_model: Callable[..., JobRow]
    benchmark_models: Callable[..., JobRow]
    _evaluated: Callable[[str, EvaluateSpec], bool]

    def prune_as_proposed(self, ref: str, proposal: Proposal, *, device: str | None = None) -> list[JobRow]:
        """Submits the pruning, the evaluation of the model (of its parent too, where it has none) and a benchmark of both, under the
        conditions of the prediction; `outcomes` has the figures then. Returns the jobs in order."""
        row = st.get_model(self.store, ref)
        seen, timed = self.conditions(row.id, device)
        chain = [self.prune_model(row.id, proposal.spec, device=device)]
        made = {"job": chain[0].id}
        if not self._evaluated(row.id, seen):
            chain.append(self.evaluate_model(row.id, seen, device=device))
        chain.append(self.evaluate_model(made, seen, device=device))
        beside = timed.model_copy(update={"models": (row.id,)})
        return [*chain, self.benchmark_models(made, beside, device=device)]

    def outcomes(self, ref: str, *, limit: int = 8, device: str | None = None) -> list[Outcome]:
        """The newest prunings of a model that choose and fit units as its sensitivity was measured; none where it never was.

        They are predicted by the model's newest sensitivity and the device's newest profile, whatever was known when they were made.
        """
        row = st.get_model(self.store, ref)
        if self.sensitivity_job(row.id) is None:
            return []
        config, base, table, how = self._measured(row.id)
        latency, way = self.latency(row.id, device), _way(how.model_dump(mode="json"))
        size = self._size(config, row.id, latency)

        def predicted(layout: Layout) -> dict[str, float]:
            return predict(config, base, table, layout, latency=latency, image_size=size)

        before, found = predicted(base), []
        made = [child for child in self._made_of(row, "pruned") if _way(child.spec) == way]
        for child in made[: -limit - 1 : -1]:
            asked = predicted_layout(config, base, PruneSpec.model_validate(fields_of(child.spec)))
            assert asked is not None, "the solver prunes each site by its own rate"
            counted = [estimate(config, layout, image_size=size) for layout in (base, Layout.from_json(child.layout))]
            achieved: dict[str, Pair] = {"parameters": (row.facts["parameters"], child.facts["parameters"])}
            achieved |= {key: (getattr(counted[0], key), getattr(counted[1], key)) for key in MACS}
            achieved |= self._bytes(row, child) | self._milliseconds(row, child, latency)
            own, retrained = self._quality(row, child)
            pairs = {key: (before[key], value) for key, value in predicted(asked).items()}
            found.append(Outcome(child, pairs, achieved | own, retrained))
        return found

    def _made_of(self, row: ModelRow, kind: str) -> list[ModelRow]:
        """Models of a kind that were made from this one, oldest first; not those that only learnt from it."""
        return [child for child in st.children(self.store, row.id) if child.kind == kind and child.parent_id == row.id]

    def _bytes(self, row: ModelRow, child: ModelRow) -> dict[str, Pair]:
        """Of the tensors in both files; nothing where one was cleaned away."""
        try:
            first, second = (StoredWeights(weights_path(self.store, model)).tensor_bytes for model in (row, child))
        except CoreError:
            return {}
        return {"weight_bytes": (first, second)}

    def _milliseconds(self, row: ModelRow, child: ModelRow, latency: LatencyTable | None) -> dict[str, Pair]:
        """Of the newest run that held both under the profile's conditions."""
        if latency is None:
            return {}
        p = latency.protocol
        for run in scores.measurements(self.store, child.id, limit=20):
            under = conditions_of(run)
            same = all(under.get(key) == p.get(key) for key in ("device", "dtype", "image_size", "batch_size"))
            if same and row.id in run.models and not under.get("sparse_kernels"):
                both = run.models[row.id], run.models[child.id]
                return {key: (both[0][key], both[1][key]) for key, coder in CODERS.items() if coder in latency.coders}
        return {}

    def _quality(self, row: ModelRow, child: ModelRow) -> tuple[dict[str, Pair], dict[str, Pair]]:
        """Of the model and of its newest retrained child, on the test images that both and the parent were last evaluated on."""
        found: list[dict[str, Pair]] = []
        after = self._made_of(child, "retrained")
        for model in (child, *after[-1:]):
            figures = compare(self.store, [row.id, model.id]).figures
            pairs = {key: (figures[row.id][key].value, figures[model.id][key].value) for key in QUALITY}
            found.append({key: (a, b) for key, (a, b) in pairs.items() if a is not None and b is not None})
        return found[0], found[1] if after else {}


def _way(spec: Mapping[str, object]) -> dict[str, object]:
    """All of a pruning but what the solver itself puts into it; fields that older specs lack are at their defaults."""
    known = PruneSpec.model_validate(fields_of(spec)).model_dump(mode="json")
    return {key: value for key, value in known.items() if key not in CHOSEN}
