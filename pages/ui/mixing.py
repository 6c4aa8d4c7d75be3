"""What a training draws from: shares of its data sets, and its validation by slice."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.model_manager import ModelManager
from pages.ui.chain import line_chart
from store import JobRow


def slice_table(manager: ModelManager, job: JobRow) -> None:
    """The last validation by slice: thirds of the images by contrast, and each data set where there are several."""
    found = manager.slice_table(job.id)
    if not found:
        st.caption("Nothing was validated yet.")
        return
    columns = {
        "psnr_db": st.column_config.NumberColumn("PSNR (dB)", format="%.2f"),
        "loss": st.column_config.NumberColumn("loss", format="%.4f"),
    }
    st.dataframe(found, hide_index=True, column_config=columns, key=f"slices-{job.id}")


def share_chart(manager: ModelManager, values: dict[str, Any]) -> None:
    """How each batch is shared between the data sets, over the training; nothing for one set."""
    if not values["more_data"]:
        return
    steps, curves = manager.share_curve(values)
    if not curves:
        st.caption("Each batch is shared between the data sets by their numbers of training images.")
        return
    st.caption("Shares of the data sets in a batch")
    st.echarts_chart(line_chart({name: (steps, shares) for name, shares in curves.items()}, "step"), height=180, key="share-plot")
