"""The part of `ModelManager` that helps to choose: intervals and paired differences, the Pareto front, a weighted ranking. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from core.checks import weights_path
from core.choice import Front, Ranking, pareto_front, ranking
from core.compare import METRICS, Comparison, benchmark_runs, compare, conditions_of, run_title
from core.errors import CoreError
from core.learned_figures import LEARNED, why_off
from core.quality import Quality, quality
from core.settings import Settings
from dcaecore.config import DCAEConfig
from dcaecore.errors import ConfigError
from store import Store, get_model


class Comparing:
    """Reads what was measured; every verb takes a comparison that was made, or references to make one of."""

    store: Store
    settings: Settings

    def _comparison_of(self, models: Comparison | Sequence[str]) -> Comparison:
        """The comparison itself, or one of the models named."""
        return models if isinstance(models, Comparison) else compare(self.store, models)

    def quality(self, models: Comparison | Sequence[str], reference: str | None = None) -> Quality:
        """Quality with intervals and differences paired by image; see `core.quality`."""
        chosen = None if reference is None else get_model(self.store, reference).id
        return quality(self.store, self._comparison_of(models), chosen)

    def benchmark_runs(self, refs: Sequence[str]) -> dict[int, str]:
        """Benchmark runs of some models by number, with their conditions in words; first those that hold most of the models."""
        ids = [get_model(self.store, ref).id for ref in refs]
        found = {}
        for run in benchmark_runs(self.store, ids):
            count = sum(ref in run.models for ref in ids)
            when = run.created[:16].replace("T", " ")
            found[run.id] = f"{run_title(conditions_of(run))}; {count} of {len(ids)} models; {when} UTC"
        return found

    def _check_sizes(self, refs: Sequence[str | Mapping[str, str]], sizes: Sequence[int]) -> None:
        """Raises CoreError for the first model that cannot take one of the sizes, or has no weights any more.

        What a job has yet to make is looked at when it is there.
        """
        for ref in refs:
            if not isinstance(ref, str):
                continue
            row = get_model(self.store, ref)
            config = DCAEConfig.from_json(row.config)
            for size in sizes:
                try:
                    config.check_image_size(size, size)
                except ConfigError as error:
                    raise CoreError(
                        f"{row.name}: {error.message}", code=error.code, given=error.given, legal=error.legal, next=error.next
                    ) from error
            weights_path(self.store, row)

    def figures_off(self) -> dict[str, str]:
        """Quality figures that need published weights and are not measured here, each with the reason; empty where all are."""
        return {LEARNED[key][0]: reason for key, reason in why_off(self.settings.weights_dir).items()}

    def pareto(self, models: Comparison | Sequence[str], first: str = "decode_ms", second: str = "psnr_db") -> Front:
        """The front over two figures; only those of one protocol and one benchmark run are looked at.

        Raises CoreError for a figure that there is not, or of which neither more nor less is better.
        """
        comparison = self._comparison_of(models)
        directions = [_direction(key) for key in (first, second)]
        points = {m.id: [comparison.figures[m.id][key].value for key in (first, second)] for m in comparison.models}
        return pareto_front(points, directions)

    def rank(self, models: Comparison | Sequence[str], weights: Mapping[str, float]) -> Ranking:
        """Models by the weighted mean of their normalised figures; what lacks one is left out, and named."""
        comparison = self._comparison_of(models)
        figures = {m.id: {key: figure.value for key, figure in comparison.figures[m.id].items()} for m in comparison.models}
        return ranking(figures, {key: metric.higher_is_better for key, metric in METRICS.items()}, weights)


def _direction(key: str) -> bool:
    judged = [name for name, metric in METRICS.items() if metric.higher_is_better is not None]
    if key not in METRICS:
        raise CoreError(f"There is no figure {key!r}.", code="metric", given=key, legal=judged)
    direction = METRICS[key].higher_is_better
    if direction is None:
        raise CoreError(
            f"There is no front over {key}: neither more nor less of it is better.", code="metric", given=key, legal=judged
        )
    return direction
