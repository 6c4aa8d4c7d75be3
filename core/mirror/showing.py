"""A comparison as a W&B Report, and a workspace view for comparing models: built without a server, saved where there is one.

Both show the runs of the compared models alone (by `job_id`), name no project in their run sets (wandb-workspaces would ask a server
for it) and so open in whichever project they are saved to. Panels are named by the keys that `core.mirror.writing` logs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from core.compare import MAIN_METRICS, Comparison
from core.mirror.writing import STEP

VIEW_NAME = "Offshoot: comparing models"
_CURVES = ("loss", "val_psnr_db", "val_foreground_psnr_db", "learning_rate")
_QUALITY = ("test/psnr_db", "test/foreground_psnr_db", "test/ssim")


def build_report(comparison: Comparison, job_ids: Sequence[str], project: str, entity: str = "") -> wr.Report:
    """The comparison's table in words and numbers, then its runs' curves, figures, pictures and differences."""
    names = ", ".join(model.name for model in comparison.models)
    runset = wr.Runset(name="The compared models", filters=_only(job_ids))
    blocks: list[Any] = [
        wr.H2("Figures"),
        wr.MarkdownBlock(comparison_markdown(comparison)),
        wr.H2("Training"),
        wr.PanelGrid(runsets=[runset], panels=_placed(_curve_panels())),
        wr.H2("Quality and cost"),
        wr.PanelGrid(runsets=[runset], panels=_placed(_figure_panels(comparison))),
        wr.H2("Reconstructions and settings"),
        wr.PanelGrid(runsets=[runset], panels=_placed(_picture_panels())),
    ]
    return wr.Report(
        project=project,
        entity=entity,
        title=f"Comparison: {names}"[:128],
        description="Written by Offshoot; every figure stands in its store.",
        blocks=blocks,
        width="fluid",
    )


def build_workspace(comparison: Comparison, job_ids: Sequence[str], project: str, entity: str = "") -> ws.Workspace:
    """A view of the project that shows these models' runs, in sections for quality and cost, training and pictures."""
    sections = [
        ws.Section(name="Quality and cost", panels=_placed(_figure_panels(comparison)), is_open=True),
        ws.Section(name="Training", panels=_placed(_curve_panels()), is_open=True),
        ws.Section(name="Reconstructions and settings", panels=_placed(_picture_panels()), is_open=True),
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=VIEW_NAME,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=STEP),
        runset_settings=ws.RunsetSettings(filters=_only(job_ids)),
    )


def plain(view: wr.Report | ws.Workspace) -> dict[str, Any]:
    """A report or view as W&B stores it: plain JSON values."""
    found: dict[str, Any] = view._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    return found


def save(view: wr.Report | ws.Workspace, known: dict[str, str]) -> dict[str, str]:
    """Saves to W&B, over the one that was saved before (`known`); returns its id, name and URL."""
    if isinstance(view, wr.Report):
        view.id = known.get("id", "")
        view.save()
        return {"id": view.id, "name": "", "url": view.url}
    view._internal_id, view._internal_name = known.get("id", ""), known.get("name", "")
    view.save()
    return {"id": view._internal_id, "name": view._internal_name, "url": view.url}


def comparison_markdown(comparison: Comparison) -> str:
    """The table that Compare shows: each figure with its change against the baseline; what could not be compared below it."""
    heads = ["Figure", *(f"{model.name} ({model.id})" for model in comparison.models)]
    lines = [f"| {' | '.join(_escaped(head) for head in heads)} |", f"|{'---|' * len(heads)}"]
    for key, metric in MAIN_METRICS.items():
        figures = [comparison.figures[model.id][key] for model in comparison.models]
        if all(figure.value is None for figure in figures):
            continue
        cells = [
            metric.text(figure.value)
            + ("" if figure.against_baseline is None else f" ({figure.change_text(figure.against_baseline)})")
            for figure in figures
        ]
        lines.append(f"| {_escaped(metric.title)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *comparison.notes])


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _only(job_ids: Sequence[str]) -> str:
    return f"Config('job_id') in {sorted(job_ids)!r}"


def _curve_panels() -> list[Any]:
    return [wr.LinePlot(title=name, x=STEP, y=[name], legend_template="${run:displayName}") for name in _CURVES]


def _figure_panels(comparison: Comparison) -> list[Any]:
    bars = [wr.BarPlot(title=name, metrics=[wr.SummaryMetric(name)]) for name in _QUALITY]
    latencies: list[Any] = [wr.SummaryMetric(f"benchmark/{model.id}/decode_ms") for model in comparison.models]
    return [
        *bars,
        wr.BarPlot(title="decode_ms, by model", metrics=latencies),
        wr.ScatterPlot(
            title="Quality against size", x=wr.SummaryMetric("model/parameters"), y=wr.SummaryMetric("test/psnr_db"), log_x=True
        ),
    ]


def _picture_panels() -> list[Any]:
    return [
        wr.MediaBrowser(title="Originals", media_keys=["originals"], num_columns=4),
        wr.MediaBrowser(title="Reconstructions", media_keys=["reconstructions"], num_columns=4),
        wr.RunComparer(diff_only=True),
    ]


def _placed(panels: list[Any]) -> list[Any]:
    """Three a row, 8 columns wide each, as W&B's grid has 24."""
    for place, panel in enumerate(panels):
        panel.layout = wr.Layout(x=8 * (place % 3), y=6 * (place // 3), w=8, h=6)
    return panels
