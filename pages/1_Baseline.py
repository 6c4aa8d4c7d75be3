"""Baseline: choose or import a model; what it is, costs and reconstructs."""

from pages.ui.boot import boot, chosen_model, guarded

manager = boot("Baseline")

import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

import plotly.graph_objects as go  # noqa: E402
import streamlit as st  # noqa: E402

from dcaecore.zoo import HUB_IDS  # noqa: E402
from pages.ui.figures import HEADLINE, MEMORY, headline, pictures, validate_and_save  # noqa: E402

SUFFIXES = (".safetensors", ".pt", ".pth")


def import_and_show(source: str) -> None:
    """Imports and makes the result this page's model."""
    with guarded(), st.spinner("Importing…"):
        job = manager.wait(manager.import_model(source).id)
        st.query_params["model"] = str(job.model_id)
        if notes := job.result.get("notes"):
            st.toast(f"Imported: {'; '.join(notes)}.", icon=":material/info:", duration="long")
        st.rerun()


st.title("Baseline")
with st.expander("Import a model", icon=":material/add:"):
    file_tab, upload_tab, hub_tab = st.tabs(["From a folder", "Upload", "Hugging Face"])
    with file_tab:
        folder = Path(
            st.text_input("Folder", str(manager.settings.weights_dir), help="A 1.2 GB file is no upload: put it in this folder.")
        )
        files = sorted(p for p in folder.rglob("*") if p.suffix in SUFFIXES) if folder.is_dir() else []
        if files:
            picked = st.selectbox(
                "File", files, format_func=lambda p: f"{p.relative_to(folder)} · {p.stat().st_size / 1e6:.1f} MB"
            )
            if st.button("Import this file"):
                import_and_show(str(picked))
        else:
            missing = f"No {', '.join(SUFFIXES)} files in" if folder.is_dir() else "There is no folder"
            st.caption(f"{missing} {folder.resolve()}.")
    with upload_tab:
        upload = st.file_uploader("A small checkpoint", type=[s[1:] for s in SUFFIXES])
        if upload is not None and st.button("Import the upload"):
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / upload.name
                path.write_bytes(upload.getvalue())
                import_and_show(str(path))
    with hub_tab:
        hub_id = st.selectbox("Model", [ref for pair in HUB_IDS.values() for ref in pair], accept_new_options=True)
        if st.button("Download and import") and hub_id:
            import_and_show(hub_id)

row = chosen_model(manager)
if st.button("Compress this model", type="primary", icon=":material/compress:"):
    manager.promote(row.id)
    st.switch_page("Home.py", query_params={"compress": "1"})
headline(manager, row, keys=(*HEADLINE, *MEMORY))
validate_and_save(manager, row, key="baseline")
cost = manager.cost(row.id)
st.caption(
    f"At 128 px: encode {cost.encode_macs / 1e9:.2f} G MACs, decode {cost.decode_macs / 1e9:.2f} G MACs, file {row.bytes / 1e6:.1f} MB; "
    f"training at batch 8 needs about {manager.cost(row.id, batch_size=8).training_bytes / 2**30:.2f} GiB."
)
with st.expander("Reconstructions", expanded=True):
    pictures(manager, row)
with st.expander("Per-layer table"):
    table = [
        {
            "layer": m.name,
            "kind": m.kind,
            "parameters": m.parameters,
            "MACs (M)": m.macs / 1e6,
            "units": m.units,
            "side (px)": m.side,
        }
        for m in cost.modules
    ]
    st.dataframe(table, hide_index=True, height=420)
with st.expander("Weight distribution"):
    with guarded():
        edges, counts, zeros = manager.weight_histogram(row.id)
        figure = go.Figure(go.Bar(x=edges[:-1], y=counts, marker_color="#4b9c68"))
        figure.update_layout(
            height=300, margin={"t": 10, "b": 10}, xaxis_title="weight", yaxis_title="count", yaxis_type="log", bargap=0
        )
        st.plotly_chart(figure)
        st.caption(f"{zeros:,} weights are exactly zero (not in the bars).")
with st.expander("Configuration"):
    st.json(row.config, expanded=1)
jobs = [job for job in manager.jobs(limit=20) if job.parent_model_id == row.id and job.state == "done"]
if jobs:
    st.caption(f"Last job on this model: {jobs[0].operation}, ended {str(jobs[0].ended)[:16].replace('T', ' ')} UTC")
