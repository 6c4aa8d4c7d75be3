"""The part of `ModelManager` that makes reports: of a comparison, or of a branch of the lineage, in any format. No torch."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import store as st
from core.compare import compare
from core.comparing import Comparing
from core.errors import CoreError
from core.report.content import Findings, document, findings
from core.report.data import to_csv, to_json
from core.report.html import to_html
from core.report.markdown import to_markdown
from core.report.pdf import to_pdf
from core.views import Views

FORMATS: dict[str, str] = {"html": "html", "pdf": "pdf", "markdown": "zip", "csv": "csv", "json": "json", "all": "zip"}
"""Format to a file's ending; Markdown comes with its pictures in one archive, `all` is every format in one."""
MOST_MODELS = 40
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


class Reporting(Views, Comparing):
    """Reports are read from the store alone: made again they are the same bytes but for their date."""

    def report(
        self,
        models: Sequence[str],
        form: str = "html",
        *,
        reference: str | None = None,
        title: str | None = None,
        date: str | None = None,
        run: int | None = None,
    ) -> bytes:
        """A comparison as a file's bytes. `date` stands under the title (None: now, UTC); costs are of benchmark run `run`.

        Raises CoreError for a format that there is not, no model, more than `MOST_MODELS`, or a run that none of them was in.
        """
        _ending(form)
        found = self._findings(models, reference, title, run)
        when = date if date is not None else datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        if form == "csv":
            return to_csv(found)
        if form == "json":
            return to_json(found, when)
        made = document(self.store, found, when)
        if form == "html":
            return to_html(made)
        if form == "pdf":
            return to_pdf(made)
        if form == "markdown":
            return _zipped(to_markdown(made))
        return _zipped(
            {
                "report.html": to_html(made),
                "report.pdf": to_pdf(made),
                **to_markdown(made),
                "report.csv": to_csv(found),
                "report.json": to_json(found, when),
            }
        )

    def lineage_branch(self, ref: str) -> list[str]:
        """A model's ancestors, itself and its descendants, as far as they are still there."""
        row = st.get_model(self.store, ref)
        below = sorted(st.descendants(self.store, row.id), key=lambda found: found.created)
        return [found.id for found in (*self.ancestry(row.id), *below) if found.deleted is None]

    def report_branch(self, ref: str, form: str = "html", *, title: str | None = None, date: str | None = None) -> bytes:
        """The report of a lineage branch; raises as `report` does."""
        row = st.get_model(self.store, ref)
        return self.report(self.lineage_branch(row.id), form, title=title or f"The branch of {row.name}", date=date)

    def report_name(self, models: Sequence[str], form: str) -> str:
        """A file name for a report. Raises CoreError for a format that there is not."""
        newest = st.get_model(self.store, models[-1]).name
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", newest).strip("-.") or "models"
        return f"report-{stem}{'-markdown' if form == 'markdown' else ''}.{_ending(form)}"

    def save_report(
        self, models: Sequence[str], target: Path | str, form: str = "html", *, branch: bool = False, run: int | None = None
    ) -> Path:
        """Writes a report to `target` (a file or a folder); never overwrites. `branch`: of the one model's lineage branch."""
        path = Path(target).expanduser()
        path = path / self.report_name(models, form) if path.is_dir() else path
        if path.exists():
            raise CoreError(f"{path} is there already.", code="exists", given=str(path), next="Choose another name.")
        made = self.report_branch(models[0], form) if branch else self.report(models, form, run=run)
        try:
            path.write_bytes(made)
        except OSError as error:
            raise CoreError(f"{path} could not be written: {error}", code="write", given=str(path)) from error
        return path

    def _findings(self, models: Sequence[str], reference: str | None, title: str | None, run: int | None) -> Findings:
        if not 1 <= len(models) <= MOST_MODELS:
            raise CoreError(
                f"A report is of 1 to {MOST_MODELS} models, not {len(models)}.",
                code="models",
                given=len(models),
                legal=f"1 to {MOST_MODELS}",
            )
        comparison = compare(self.store, models, run)
        names = [m.name for m in comparison.models]
        said = title or ("Comparison of " + ", ".join(names) if len(names) < 4 else f"Comparison of {len(names)} models")
        lines = {m.id: self.spec_line(m.id) for m in comparison.models}
        return findings(self.store, said, comparison, self.quality(comparison, reference), lines)


def _zipped(files: dict[str, bytes]) -> bytes:
    """An archive whose bytes hang on its files alone."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _ZIP_TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return out.getvalue()


def _ending(form: str) -> str:
    if form not in FORMATS:
        raise CoreError(f"There is no report format {form!r}.", code="format", given=form, legal=list(FORMATS))
    return FORMATS[form]
