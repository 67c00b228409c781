"""The page put together: the unseen endpoints, a bar, five tabs, the settings at the side, one timer. The browser's part is in static/.

Each component is a gr.HTML whose template never holds a user's text: its JavaScript writes texts by `textContent`, because Gradio runs templates
as JavaScript and inserts values as HTML. Light events go past the queue (`queue=False`) and any number runs at once: nobody waits for another.
No event may have a name of Gradio's own (`change`, `click`, ...): it would be fired by every new value, without end.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.utils import get_space

from loophil.space import has_accounts
from loophil.ui.access import Access
from loophil.ui.board import Board
from loophil.ui.compare import Compare
from loophil.ui.contracts import AT_ONCE, Contracts
from loophil.ui.export import Export
from loophil.ui.history import History
from loophil.ui.progress import Progress
from loophil.ui.runs import RunsPanel
from loophil.ui.settings import SettingsPanel

if TYPE_CHECKING:
    from loophil.runs import Runs

ASSETS = Path(__file__).parent / "static"
MOST_CARDS = 8  # the largest k
TICK = 1.5  # seconds between two looks at the loop's snapshot
WAITING = 64  # jobs in the queue of those that wait for the worker
UNSEEN: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
LIGHT = UNSEEN | {"queue": False, "concurrency_limit": None, "trigger_mode": "multiple"}
SLOW = UNSEEN | {"concurrency_limit": AT_ONCE, "trigger_mode": "multiple"}


class Page(gr.Blocks):  # type: ignore[misc]  # gradio is not read by the type checker
    """gr.Blocks in which plain HTTP may leave off optional inputs at the end, as Gradio's own clients may."""

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        """Fills in the components' own values; a handler refuses those it cannot do without."""
        inputs += [block.value for block in block_fn.inputs[len(inputs) :]]


def page(runs: "Runs", access: Access) -> gr.Blocks:
    """The widgets and their events over whichever run is open."""
    board, compare, past = Board(runs, access), Compare(runs, access), History(runs, access)
    with Page(title="LoopHIL", analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
        Contracts(runs, access).attach()
        bar = component("bar")
        if hub_sign_in():
            gr.LoginButton(elem_classes="lh-account", size="sm")
        with gr.Tabs(elem_classes="lh-tabs"):
            with gr.Tab("Rate"):
                rating = component("board", "keys", "zoom", cards=cards(MOST_CARDS))
            with gr.Tab("Progress"):
                progress = component("progress")
            with gr.Tab("Compare"):
                pair = component("compare")
            with gr.Tab("History"):
                history = component("history")
            with gr.Tab("Export"):
                export = component("export")
        with gr.Sidebar(open=False, position="right", width=340, elem_classes="lh-side-panel"):
            panel = component("settings")
            picker = component("runs")
        knobs, shelf, way_out = SettingsPanel(runs, access), RunsPanel(runs, access), Export(runs, access)
        picker.look(shelf.look, None, picker, **LIGHT)
        for name in ("open", "begin", "alter", "rename", "remove"):
            getattr(picker, name)(getattr(shelf, name), None, picker, **SLOW)
        panel.look(knobs.look, None, panel, **LIGHT)
        panel.turn(knobs.turn, None, panel, **SLOW)
        bar.hold(board.hold, None, bar, **LIGHT)
        bar.mend(board.mend, None, bar, **SLOW)
        rating.sync(board.sync, None, [rating, bar], **LIGHT)
        rating.ask(board.ask, None, rating, **LIGHT)
        progress.look(Progress(runs, access).look, None, progress, **LIGHT)
        for name in ("versions", "answer"):
            getattr(pair, name)(getattr(compare, name), None, pair, **LIGHT)
        for name in ("draw", "ask"):
            getattr(pair, name)(getattr(compare, name), None, pair, **SLOW)
        for name in ("look", "group", "go_back", "rename", "take", "bring", "forget"):
            getattr(history, name)(getattr(past, name), None, history, **LIGHT)
        for name in ("make", "push"):
            getattr(export, name)(getattr(way_out, name), None, export, **SLOW)
        gr.Timer(TICK).tick(board.bar, None, bar, **(LIGHT | {"trigger_mode": "once"}))
    return blocks.queue(max_size=WAITING, api_open=False)


def hub_sign_in() -> bool:
    """Whether this is a Space that lets people sign in with their Hugging Face account (`hf_oauth: true`, and the packages of gradio[oauth])."""
    return get_space() is not None and has_accounts() and all(find_spec(package) for package in ("authlib", "itsdangerous"))


def component(name: str, *parts: str, **slots: str) -> gr.HTML:
    """static/NAME.html with its {slots} filled from our own text, and static/NAME.js after what all share and its own parts. Starts empty."""
    template = (ASSETS / f"{name}.html").read_text("utf-8")
    for slot, content in slots.items():
        template = template.replace(f"[[{slot}]]", content)
    script = "".join((ASSETS / f"{part}.js").read_text("utf-8") for part in ("common", *parts, name))
    return gr.HTML({}, html_template=template, js_on_load=script, apply_default_css=False, elem_classes="lh")


def cards(n: int) -> str:
    """So many empty cards for the board."""
    card = (ASSETS / "card.html").read_text("utf-8")
    return "".join(card.replace("[[n]]", str(i + 1)) for i in range(n))


def theme() -> gr.themes.Base:
    """Calm greys, one accent, the system's fonts (nothing is fetched from elsewhere)."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.zinc,
        radius_size=gr.themes.sizes.radius_lg,
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
    ).set(
        body_background_fill="#fafaf9",
        body_background_fill_dark="#131316",
        block_background_fill="#ffffff",
        block_background_fill_dark="#1c1c21",
        body_text_color="#1c1c21",
        body_text_color_dark="#ececf1",
        body_text_color_subdued="#5c5c66",
        body_text_color_subdued_dark="#a6a6b3",
    )
