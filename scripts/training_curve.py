"""The demo model's training as a picture for the README, from `dcaecore/demo/curve.csv`."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import plotly.graph_objects as go
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
TITLES = {"psnr_db": "PSNR", "foreground_psnr_db": "Foreground PSNR"}


def main() -> None:
    with (ROOT / "dcaecore" / "demo" / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    ends = [int(row["step"]) for row, then in zip(rows, rows[1:], strict=False) if row["phase"] != then["phase"]]
    chart = go.Figure()
    for key, title in TITLES.items():
        chart.add_scatter(x=[int(r["step"]) for r in rows], y=[float(r[key]) for r in rows], name=title, mode="lines+markers")
    for end in ends:
        chart.add_vline(x=end, line_dash="dot", line_color="grey")
    margin = {"t": 20, "r": 20}
    chart.update_layout(template="plotly_white", width=900, height=360, margin=margin, xaxis_title="step", yaxis_title="dB")
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=os.environ.get("OFFSHOOT_CHROMIUM") or shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 900, "height": 360})
        page.set_content(chart.to_html(include_plotlyjs=True, config={"staticPlot": True}))
        page.wait_for_selector(".main-svg")
        page.locator(".plotly-graph-div").screenshot(path=ROOT / "docs" / "pictures" / "training.png")
        browser.close()


if __name__ == "__main__":
    main()
