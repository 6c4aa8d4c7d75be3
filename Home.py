"""Home: the current model, what runs now, the family tree at a glance; three clicks from here to a smaller model."""

from pages.ui.boot import boot, clock, guarded

manager = boot("Home")

import streamlit as st  # noqa: E402 - every page begins with its boot

from core.presets import PRESETS  # noqa: E402
from core.specs import DataSpec  # noqa: E402
from pages.ui.chain import finished, start_chain, watch_chain  # noqa: E402
from pages.ui.figures import headline, pictures, validate_and_save  # noqa: E402
from pages.ui.forms import data_form  # noqa: E402
from pages.ui.mirror import mirror_line  # noqa: E402
from pages.ui.tree import tree_chart, tree_height  # noqa: E402


def in_url(**values: str | None) -> None:
    """Sets parameters of the page's URL; None takes one away. A button's callback: no rerun from elsewhere can swallow its click."""
    for name, value in values.items():
        if value is None:
            st.query_params.pop(name, None)
        else:
            st.query_params[name] = value


def compress_cards(parent: str) -> None:
    """Images, and presets as cards; choosing one shows Run."""
    last = manager.evaluation_for(parent)
    data, size = last.get("data", DataSpec().model_dump(mode="json")), last["image_size"]
    with st.expander(f"On {data['location']} at {size} px", icon=":material/image:"):
        data = data_form(data, "compress")
        size = int(st.number_input("image size (px)", 16, 4096, size, step=16, key="compress-size"))
    chosen = st.query_params.get("preset")
    for place, (name, preset) in zip(st.columns(len(PRESETS)), PRESETS.items(), strict=True):
        with place.container(border=True, height="stretch"):
            dense = manager.cost(parent)
            cost = manager.predict_pruning(parent, preset.prune) or dense
            seconds = manager.predicted_seconds(parent, name, image_size=size)
            st.markdown(f"**{preset.title}**  \n{preset.help}")
            st.caption(
                f"{preset.prune.rate:.0%} of the units · {preset.retrain.total_steps} steps of batch {preset.retrain.batch_size}  \n"
                f"{cost.parameters / 1e6:.2f} M parameters ({cost.parameters / dense.parameters - 1:+.0%}) · "
                f"decode MACs {cost.decode_macs / dense.decode_macs - 1:+.0%}  \nabout {clock(seconds)} of training"
            )
            kind = "primary" if chosen == name else "secondary"
            label = "Chosen" if chosen == name else "Choose"
            st.button(label, key=f"preset-{name}", type=kind, width="stretch", on_click=in_url, kwargs={"preset": name})
    with st.container(horizontal=True):
        run = chosen in PRESETS and st.button("Run", type="primary", icon=":material/play_arrow:", key="run-preset")
        st.button("Not now", type="tertiary", on_click=in_url, kwargs={"preset": None, "compress": None})
    if run:
        assert chosen is not None
        with guarded():
            jobs = manager.compress(parent, chosen, data=data, image_size=size)
            in_url(preset=None, compress=None)
            start_chain([job.id for job in jobs], parent)
            st.rerun()


chain = [ref for ref in st.query_params.get("chain", "").split(",") if ref]
if chain:
    with guarded():
        made = finished(manager, chain)
        if made is not None:
            origin = st.query_params.get("from", made)
            st.switch_page("pages/4_Compare.py", query_params={"models": ",".join(manager.family(made, [origin]))})
        st.subheader("Compressing")
        st.caption("You may close the browser: the job goes on. Compare opens here when it is done.")
        watch_chain(manager, chain)
        st.divider()

current = manager.current()
assert current is not None
st.title(current.name)
st.caption(f"The current model · {current.id} · {current.kind} · {current.created[:16].replace('T', ' ')} UTC")
if not chain:
    if st.query_params.get("compress") is None:
        st.button("Compress this model", type="primary", icon=":material/compress:", on_click=in_url, kwargs={"compress": "1"})
    else:
        compress_cards(current.id)
headline(manager, current)
validate_and_save(manager, current, key="home")
pictures(manager, current)
st.subheader("Family tree")
rows = manager.relatives(current.id)
st.echarts_chart(tree_chart(rows, chosen=current.id), height=tree_height(rows), key="home-tree")
st.page_link("pages/5_Lineage.py", label="Open the lineage", icon=":material/account_tree:")
mirror_line(manager)
