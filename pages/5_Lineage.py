"""Lineage: the forest of models around the chosen one or as a whole; a click shows how one came about, and where to go from it."""

import time

from pages.ui.boot import boot, guarded

manager = boot("Lineage")

import streamlit as st  # noqa: E402
from streamlit.runtime.scriptrunner import get_script_run_ctx  # noqa: E402

from core.compare import METRICS  # noqa: E402
from pages.ui.card import again, delete_popover, housekeeping, story, words  # noqa: E402
from pages.ui.figures import headline, validate_and_save  # noqa: E402
from pages.ui.forest import LARGE, OPERATION, Drawing, draw, picks  # noqa: E402
from pages.ui.model_table import EXAMPLE, models_table  # noqa: E402

ROWS = 5000  # of the table: more are found by a search
# Seconds, when the page is opened: what a browser gets together it draws together, and the card would hold up thousands of models.
HEAD_START = 0.25
CLICK = "lineage-click"


def title_of(key: str) -> str:
    return METRICS[key].title if key in METRICS else key


def follow_click(drawing: Drawing, key: str) -> None:
    """Remembers a click on a model with what the URL held then."""
    event, memory = st.session_state[key], f"{key}-picks"
    clicked = drawing.clicked(event, st.session_state.get(memory))
    st.session_state[memory] = picks(event)
    if clicked:
        st.session_state[CLICK] = clicked, st.query_params.get("model")


def last_click() -> str | None:
    """The model clicked, until the URL that a browser sends has it or leads elsewhere.

    A wish that follows a click at once still brings the URL as it was before it, and would take the click back.
    """
    clicked, before = st.session_state.get(CLICK, (None, None))
    run = get_script_run_ctx()
    left_and_come_back = "view" not in st.session_state
    if left_and_come_back or st.query_params.get("model") != before or (run is not None and run.is_history_navigation):
        st.session_state.pop(CLICK, None)
        return None
    return clicked


if st.session_state.setdefault("lineage-visits", 0) == 0:
    # A browser fetches what draws charts, a megabyte, with the first one: so while the forest is read, not after.
    st.sidebar.echarts_chart({"series": []}, height=1)
st.session_state["lineage-visits"] += 1
st.title("Lineage")
forest = manager.forest()
current = manager.current()
assert current is not None
clicked = last_click()
if clicked is not None:
    st.query_params["model"] = clicked
chosen = st.query_params.get("model", current.id)
with guarded():
    chosen = chosen if chosen in forest.by_id else manager.get_model(chosen).id
if chosen not in forest.by_id:
    chosen = current.id
left, middle, right, last = st.columns([4, 2, 2, 2], vertical_alignment="bottom")
text = left.text_input("Search", placeholder=EXAMPLE, key="search", bind="query-params", help=EXAMPLE) or ""
view = middle.segmented_control(
    "Show", ["focus", "forest"], default="focus", required=True, key="view", bind="query-params",
    help="Focus: the chosen model's ancestors and descendants. Forest: every model.",
)  # fmt: skip
colour = right.selectbox("Colour", [OPERATION, *METRICS], format_func=title_of, key="colour", bind="query-params")
size = last.selectbox("Size", list(METRICS), format_func=title_of, key="size", bind="query-params")
found, fits = forest.models, None
with guarded():
    found = forest.find(text)
    fits = {leaf.id for leaf in found} if text.strip() else None
around, beyond = forest.around(chosen) if view == "focus" else (forest.models, 0)
drawing = draw(forest, around, chosen=chosen, colour=colour or OPERATION, size=size or "parameters", fits=fits)
key = f"lineage-{view}"
place = st.container()


def show_chart() -> None:
    place.echarts_chart(drawing.options, height=drawing.height, key=key, on_select=lambda: follow_click(drawing, key))


# After a click the card comes first: of ten thousand models, moving the ring takes a browser as long as all the rest.
if clicked is None:
    show_chart()
    if len(around) > LARGE and st.session_state["lineage-visits"] == 1:
        time.sleep(HEAD_START)
told = [f"{len(around)} of {len(forest.models)} models are drawn; a click on one shows it below."]
if beyond:
    told.append(f"{beyond} more descendants do not fit: choose one of those below, or see the forest.")
if fits is not None:
    told.append(f"{len(found)} models fit the search; the others are pale.")
if forest.left_out and METRICS.get(colour or "", METRICS["psnr_db"]).source == "scores":
    told.append(f"{forest.left_out} models were last evaluated on other images: their quality is not shown here.")
if forest.cost_left_out and "cost" in {METRICS[key].source for key in (colour, size) if key in METRICS}:
    told.append(
        f"{forest.cost_left_out} models were benchmarked on another device or at other sizes only: their cost is not shown here."
    )
st.caption(" ".join(told))
with st.expander(f"{len(found)} models as a table", expanded=fits is not None, on_change="rerun", key="table-open") as table:
    if table.open:
        selected = models_table(forest, found[:ROWS], mode="single-row", key="lineage-table")
        if selected and selected[0].id != chosen and st.button("Show the selected model"):
            st.query_params["model"] = selected[0].id
            st.rerun()
        if len(found) > ROWS:
            st.caption(f"The newest {ROWS} of {len(found)}; a search finds the others.")
with guarded():
    row = manager.get_model(chosen)
    st.subheader(row.name)
    about = [row.id, row.kind, f"{row.created[:19].replace('T', ' ')} UTC", *(f"★{alias}" for alias in row.aliases)]
    st.caption(" · ".join(about))
    headline(manager, row)
    validate_and_save(manager, row, key="lineage")
    go_on = st.columns(5, vertical_alignment="center")
    go_on[0].page_link("pages/2_Prune.py", label="Prune from here", icon=":material/content_cut:", query_params={"model": row.id})
    go_on[1].page_link(
        "pages/3_Retrain.py", label="Retrain from here", icon=":material/model_training:", query_params={"model": row.id}
    )
    go_on[2].page_link("pages/4_Compare.py", label="Compare", icon=":material/compare:", query_params={"models": row.id})
    already = "current" in row.aliases
    if go_on[3].button("Make current", disabled=already, help="It is the current model already." if already else None):
        manager.promote(row.id)
        st.rerun()
    with go_on[4]:
        delete_popover(manager, row)
    again(manager, row, has_offspring=row.id in forest.below)
    told_left, told_right = st.columns(2)
    with told_left:
        story(manager, row)
    with told_right:
        words(manager, row)
    housekeeping(manager)
if clicked is not None:
    show_chart()
