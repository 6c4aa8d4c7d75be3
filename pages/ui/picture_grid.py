"""Images of a comparison: a grid with what got worse first, and a close look at any two of them.

Pictures go to the browser as PNG: by itself Streamlit makes JPEGs of them, whose errors would look like the model's.
"""

from __future__ import annotations

import streamlit as st

from core.compare import Comparison
from core.model_manager import ModelManager
from core.quality import reference_of
from core.seeing import ImageLine, image_lines, reconstruction, split_picture, zoomed
from core.specs import MOST_RECONSTRUCTING
from core.views import blank_like, png_difference
from pages.ui.boot import guarded

ORIGINAL = "original"
MOST_ROWS, MOST_PICTURES = 8, 27
"""Shown at first, three rows at least: 64 images of eight models would be 576 pictures, each a request of its own."""


def images_section(manager: ModelManager, comparison: Comparison) -> None:
    """Rows are images, columns models."""
    st.subheader("Images")
    names = {model.id: model.name for model in comparison.models}
    reference = reference_of(comparison)
    lines = image_lines(manager.store, comparison, reference)
    if not lines:
        st.caption("No model shown has reconstructions yet: *Validate*, below, makes them.")
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        errors = st.toggle("Error maps", help="Absolute difference from the original, times four.")
        rows = max(3, min(MOST_ROWS, MOST_PICTURES // (1 + len(names))))
        every = len(lines) > rows and st.toggle(f"All {len(lines)} images")
    if any(line.regression_db is not None for line in lines):
        st.caption(f"Sorted by the most that any model loses against {names[reference]}; PSNR of each image below it.")
    _columns(manager, lines if every else lines[:rows], names, errors=errors)
    _closer(manager, lines, names)


def _columns(manager: ModelManager, lines: list[ImageLine], names: dict[str, str], *, errors: bool) -> None:
    """The original and each model, one element a column: a browser takes longer over many. Captions are one line, so rows stay level."""
    originals = [manager.store.blobs.read(line.original) for line in lines]
    places = st.columns(max(4, 1 + len(names)), vertical_alignment="bottom")  # two alone would fill a screen each
    places[0].caption(ORIGINAL)
    places[0].image(originals, [f"image {line.index}" for line in lines], width="stretch", output_format="PNG")
    for place, (ref, name) in zip(places[1:], names.items(), strict=False):
        pictures, told = [], []
        for line, original in zip(lines, originals, strict=True):
            made = manager.store.blobs.read(line.made[ref]) if ref in line.made else None
            pictures.append(blank_like(original) if made is None else png_difference(original, made) if errors else made)
            told.append("not evaluated" if made is None else f"{line.psnr_db[ref]:.2f} dB" if ref in line.psnr_db else " ")
        place.caption(name)
        place.image(pictures, told, width="stretch", output_format="PNG")


@st.fragment
def _closer(_manager: ModelManager, lines: list[ImageLine], names: dict[str, str]) -> None:
    """Any two of an image's pictures, one laid over the other up to where the slider stands, as large as pixels get."""
    st.markdown("**A closer look**")
    by_index = {line.index: line for line in lines}
    controls, shown = st.columns([1, 2])
    with controls:
        index = st.selectbox("Image", list(by_index), format_func=lambda i: f"image {i}", key="closer-image")
        line = by_index[index]
        sides = [ORIGINAL, *(ref for ref in names if ref in line.made)]

        def said(ref: str) -> str:
            return names.get(ref, ORIGINAL)

        left = st.selectbox("Left", sides, index=0, format_func=said, key="closer-left")
        right = st.selectbox("Right", sides, index=len(sides) - 1, format_func=said, key="closer-right")
        share = st.slider("Divide at", 0, 100, 50, format="%d %%", key="closer-share")
        zoom = st.select_slider("Zoom", [1, 2, 4, 8], value=1, key="closer-zoom")
        across = down = 0.5
        if zoom > 1:
            across = st.slider("Across", 0.0, 1.0, 0.5, 0.05, key="closer-across")
            down = st.slider("Down", 0.0, 1.0, 0.5, 0.05, key="closer-down")
    pngs = [_manager.store.blobs.read(line.original if ref == ORIGINAL else line.made[ref]) for ref in (left, right)]
    parts = [zoomed(png, zoom, across, down) for png in pngs]
    shown.image(split_picture(*parts, share / 100), caption=f"{said(left)} | {said(right)}", width=512, output_format="PNG")


def upload_section(manager: ModelManager, comparison: Comparison) -> None:
    """One picture of the user's through up to four of the models, with their latent channels."""
    st.subheader("Your own picture")
    ids = [model.id for model in comparison.models][:MOST_RECONSTRUCTING]
    given = st.file_uploader("A picture", type=["png", "jpg", "jpeg", "webp", "bmp", "gif", "tiff"], label_visibility="collapsed")
    place = st.columns([1, 3])
    size = int(manager.evaluation_for(ids[-1])["image_size"])
    size = int(place[0].number_input("image size (px)", 16, 4096, size, step=16, key="upload-size"))
    if len(comparison.models) > len(ids):
        st.caption(f"Through the first {len(ids)} of the models above.")
    if given is not None and st.button("Reconstruct", type="primary", key="upload-run"):
        with guarded():
            st.session_state["reconstruct-job"] = manager.reconstruct(ids, given.getvalue(), image_size=size, name=given.name).id
    job = st.session_state.get("reconstruct-job")
    if job is not None:
        _reconstructed(manager, job, {model.id: model.name for model in manager.list_models()})


@st.fragment(run_every=0.5)
def _reconstructed(_manager: ModelManager, job: str, names: dict[str, str]) -> None:
    """The pictures, once they are there."""
    with guarded():
        found = reconstruction(_manager.store, job)
        if found is None:
            st.caption("Being reconstructed…")
            return
        places = st.columns(max(4, 1 + len(found.models)))
        places[0].image(zoomed(found.original, 1), caption=ORIGINAL, width="stretch", output_format="PNG")
        for place, (ref, psnr, made, latents) in zip(places[1:], found.models, strict=False):
            place.image(zoomed(made, 1), caption=f"{names.get(ref, ref)} · {psnr:.2f} dB", width="stretch", output_format="PNG")
            place.image(
                zoomed(latents, 1),
                caption="latent channels, each from its least to its largest",
                width="stretch",
                output_format="PNG",
            )
