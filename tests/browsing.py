"""Fixtures and helpers of the tests in a real Chromium (test_browser.py, test_tabs.py); pyproject.toml makes pytest know them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Page, expect, sync_playwright

from loophil.config import Settings
from tests.fake_session import FakeSession
from tests.serving import serving

PATIENCE = 60_000  # milliseconds; the machine may be busy
FIRST_PIXEL = """image => {
    const pen = document.createElement('canvas').getContext('2d');
    pen.drawImage(image, 0, 0);
    return [...pen.getImageData(0, 0, 1, 1).data];
}"""
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def window(browser: Browser) -> Iterator[Page]:
    """A page that goes from test to test: a new one would compile the whole of Gradio's script again."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    yield context.new_page()
    context.close()


@pytest.fixture
def context(window: Page) -> Iterator[BrowserContext]:
    """The window's context; afterwards nothing of the test is left in it."""
    context = window.context
    context.set_default_timeout(PATIENCE)
    yield context
    context.set_offline(False)
    for page in context.pages:
        if page is not window:
            page.close()
    for key in ("c", "z"):  # those that show something while they are held
        window.keyboard.up(key)
    window.unroute_all()
    window.emulate_media(reduced_motion="null")
    origin = window.evaluate("location.origin")
    window.goto("about:blank")
    if origin != "null":
        devtools = context.new_cdp_session(window)
        devtools.send("Storage.clearDataForOrigin", {"origin": origin, "storageTypes": "all"})
        devtools.detach()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeSession, str]]:
    session = FakeSession(tmp_path_factory.mktemp("served"))
    with serving(session, Settings.read(None, runs=Path("unused"))) as url:
        yield session, url


@pytest.fixture
def desk(served: tuple[FakeSession, str], window: Page, context: BrowserContext) -> Iterator[tuple[FakeSession, Page]]:
    """A fresh session and a page that shows its first group; at the end, nothing may have gone wrong in the browser."""
    session, url = served
    session.reset()
    complaints: list[str] = []

    def complain(error: Error) -> None:
        complaints.append(str(error))

    window.on("pageerror", complain)
    open_board(window, url)
    yield session, window
    window.remove_listener("pageerror", complain)
    assert complaints == []


def open_board(page: Page, url: str) -> None:
    page.goto(url)
    page.wait_for_selector(".lh-board[data-state=rating] .frame img")


def prompt_shown(page: Page) -> str:
    return page.inner_text(".lh-prompt")


def group_shown(page: Page) -> str:
    """The id of the group on the board; the fake's prompts carry it."""
    return prompt_shown(page).rpartition(" ")[2]


def wait_for_acts(session: FakeSession, page: Page, n: int) -> None:
    for _ in range(PATIENCE // 50):
        if len(session.acts) == n:
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{len(session.acts)} acts, not {n}: {session.acts}")


def skip(page: Page) -> None:
    shown = prompt_shown(page)
    press(page, "s")
    page.wait_for_function("shown => !['', '\u00a0', shown].includes(document.querySelector('.lh-prompt').textContent)", arg=shown)


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)
