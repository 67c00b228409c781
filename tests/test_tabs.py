"""The tabs beside the board, and the settings at the side, in a real Chromium."""

import dataclasses
import hashlib
import re
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from loophil.config import BOLDNESS, Settings
from loophil.taste import Agreement
from loophil.types import Act, Label, Mean, Pair
from tests.browsing import FIRST_PIXEL, open_board, press, wait_for_acts
from tests.fake_session import FakeSession
from tests.serving import serving


def test_progress_says_whether_it_learns_and_shows_every_version(desk: tuple[FakeSession, Page]) -> None:
    session, page = desk
    page.get_by_role("tab", name="Progress").click()
    expect(page.locator(".verdict")).to_have_text("Nothing was learned yet.")
    expect(page.get_by_role("button", name="Take the blind test")).to_be_hidden()
    page.get_by_role("tab", name="Rate").click()
    for n in (1, 2):
        press(page, "g")
        wait_for_acts(session, page, n)
    session.agreed, session.understood, session.between = (0.83, 4), Agreement(0.78, 0.69, 0.85, 40), 0.62
    session.pairs = {f"p{i}": Pair("a", i, 2, 0, "ann", "tuned" if i < 13 else "base", True) for i in range(20)}
    page.get_by_role("tab", name="Progress").click()
    expect(page.locator(".verdict")).to_have_text("v2 wins 13 of 20 blind pairs against the base: 65% (43 to 82).")
    expect(page.locator(".taste")).to_have_text(
        "Understands your taste: foretells 78% (69 to 85) of the pairs in the last 40 choices. "
        "Shown 4 groups twice, you put 83% of the pairs in the same order. "
        "On the same pictures, raters agree with each other: 0.62 (Krippendorff's alpha; 1 fully, 0 by chance). "
        "Automatic rounds go on by themselves while nobody waits."
    )
    expect(page.locator(".lh-grid tbody th")).to_have_text(["v2", "v1", "base"])
    expect(page.locator(".lh-grid thead th")).to_have_text(["", *session.prompts[:2]])
    expect(page.locator(".lh-grid td img")).to_have_count(6)
    expect(page.locator(".lh-chart figcaption")).to_have_text(["Stars, from people", "jpeg"])
    expect(page.locator(".lh-scale").first).to_have_text("base: 3.003.00 to 3.20v2: 3.20")
    expect(page.locator(".lh-shares")).to_have_text("people75%jpeg25%")
    expect(page.locator(".lh-log li").first).to_contain_text("v2 from 4 images, 2.5 s, KL 0.020 nats a step, 100% young enough for LOOP")


def test_progress_draws_nothing_twice_and_nothing_while_it_is_out_of_sight(desk: tuple[FakeSession, Page]) -> None:
    session, page = desk
    press(page, "g")
    wait_for_acts(session, page, 1)
    page.get_by_role("tab", name="Progress").click()
    expect(page.locator(".lh-grid td img")).to_have_count(4)
    page.evaluate("document.querySelector('.lh-grid td img').dataset.mine = 'kept'")
    page.get_by_role("tab", name="Rate").click()
    press(page, "g")
    wait_for_acts(session, page, 2)
    page.wait_for_timeout(2500)
    assert page.locator(".lh-grid tbody tr").count() == 2
    page.get_by_role("tab", name="Progress").click()
    expect(page.locator(".lh-grid tbody th")).to_have_text(["v2", "v1", "base"])


def test_progress_asks_again_while_a_picture_is_due_and_no_longer(desk: tuple[FakeSession, Page], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two prompts the base has the first and lacks the second: due, then drawn by nobody any more."""
    session, page = desk
    row, asked = {0: session.picture(1000), 1: ""}, []

    def strip() -> tuple[list[str], dict[int, dict[int, str]]]:
        asked.append(len(row))
        return ["a red circle", "two blue stars"], {0: row}

    monkeypatch.setattr(session, "strip", strip)
    page.get_by_role("tab", name="Progress").click()
    expect(page.locator(".lh-grid td img")).to_have_count(1)
    expect(page.locator(".lh-grid td")).to_have_count(2)
    page.wait_for_timeout(5000)
    assert len(asked) > 1
    del row[1]
    page.wait_for_timeout(5000)
    asked.clear()
    page.wait_for_timeout(7000)
    assert asked == []


def test_progress_with_5000_versions_leaves_the_page_free(desk: tuple[FakeSession, Page], monkeypatch: pytest.MonkeyPatch) -> None:
    """The main thread's share while a version comes every second, with two curves of 5,000 points in the store."""
    session, page = desk
    means = [Mean(number, source, 3 + number % 7 / 10, 4) for number in range(5000) for source in ("jpeg", "stars")]
    monkeypatch.setattr(session, "curves", lambda: means)
    page.get_by_role("tab", name="Progress").click()
    page.wait_for_selector(".lh-chart polyline")
    lines = page.locator(".lh-chart polyline").evaluate_all("lines => lines.map(line => line.getAttribute('points'))")
    assert [100 < line.count(",") <= 200 for line in lines] == [True, True]
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable")

    def busy() -> float:
        return next(float(m["value"]) for m in devtools.send("Performance.getMetrics")["metrics"] if m["name"] == "TaskDuration")

    began, spent = time.monotonic(), busy()
    for i in range(10):
        session.rate(Act(session.draw().id, "bob", (3.0,) * 4, kind="tie", key=f"k{i}"))
        page.wait_for_timeout(1000)
    share = (busy() - spent) / (time.monotonic() - began)
    print(f"main thread busy for {share:.0%} of the time")
    assert share < 0.3


@pytest.fixture
def rated(desk: tuple[FakeSession, Page]) -> tuple[FakeSession, Page]:
    """Three groups rated, best and worst, all good, skipped; the History tab is open."""
    session, page = desk
    for n, keys in enumerate((("2", "4"), ("g",), ("s",)), 1):
        page.wait_for_selector(".lh-board[data-state=rating]")
        press(page, *keys)
        wait_for_acts(session, page, n)
    page.get_by_role("tab", name="History").click()
    expect(page.locator(".lh-entry")).to_have_count(3)
    return session, page


def test_history_shows_what_was_rated_and_filters_it(rated: tuple[FakeSession, Page]) -> None:
    session, page = rated
    newest = page.locator(".lh-entry").first
    expect(newest).to_contain_text(session.groups[session.acts[2].group].prompt)
    expect(newest).to_contain_text("skipped · by you · drawn by base")
    expect(page.locator(".lh-entry").last.locator("figcaption")).to_have_text(["★" * int(n or 0) for n in session.acts[0].stars])
    page.locator(".kind").select_option("best")
    expect(page.locator(".lh-entry")).to_have_count(1)
    page.locator(".kind").select_option("")
    page.locator(".filters .version").select_option("0")
    expect(page.locator(".lh-entry")).to_have_count(3)
    session.acts[1] = dataclasses.replace(session.acts[1], rater="bob")
    page.locator(".mine").check()
    expect(page.locator(".lh-entry")).to_have_count(2)


def test_history_goes_on_page_by_page(desk: tuple[FakeSession, Page]) -> None:
    session, page = desk
    for i in range(45):
        session.rate(Act(session.draw().id, "bob", (3.0,) * 4, kind="tie", key=f"k{i}"))
    page.get_by_role("tab", name="History").click()
    for n in (20, 40, 45):
        expect(page.locator(".lh-entry")).to_have_count(n)
        if n < 45:
            page.get_by_role("button", name="Older").click()
    expect(page.get_by_role("button", name="Older")).to_be_hidden()
    assert len(set(page.locator(".lh-said p:first-child").all_inner_texts())) == 45


def test_a_rating_is_changed_on_the_board(rated: tuple[FakeSession, Page]) -> None:
    session, page = rated
    group = session.acts[0].group
    page.locator(".lh-entry").last.get_by_role("button", name="Rate again").click()
    expect(page.locator(".lh-board .lh-prompt")).to_have_text(session.groups[group].prompt)
    expect(page.locator(".last")).to_contain_text("Rated before")
    press(page, "b")
    page.wait_for_function("() => !document.querySelector('.ahead').textContent.includes('to send')")
    wait_for_acts(session, page, 3)
    assert [(act.kind, act.stars) for act in session.acts if act.group == group] == [("bad", (1.0,) * 4)]


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_ratings_are_taken_away_as_a_file(rated: tuple[FakeSession, Page], format: str) -> None:
    session, page = rated
    with page.expect_download() as download:
        page.locator(f"[data-take={format}]").click()
    assert download.value.suggested_filename == f"first-ratings.{format}"
    assert Path(download.value.path()).read_text().split() == [act.group for act in session.acts]


def test_my_ratings_are_deleted_on_the_second_press_and_do_not_come_back(rated: tuple[FakeSession, Page]) -> None:
    session, page = rated
    session.fault = OSError("not now")
    page.get_by_role("tab", name="Rate").click()
    press(page, "t")
    page.wait_for_timeout(300)
    page.get_by_role("tab", name="History").click()
    page.get_by_role("button", name="Delete my ratings").click()
    page.wait_for_timeout(300)
    assert len(session.acts) == 3
    page.get_by_role("button", name="Press again").click()
    expect(page.locator(".done")).to_contain_text("3 rated groups deleted for ever.")
    session.fault = None
    page.wait_for_timeout(4000)
    assert session.acts == []
    expect(page.locator(".lh-entry")).to_have_count(0)


def test_a_version_gets_a_name(rated: tuple[FakeSession, Page]) -> None:
    session, page = rated
    page.get_by_label("name of v1").fill("warm <b>")
    page.get_by_label("name of v1").press("Enter")
    page.wait_for_function("() => document.querySelector('.filters .version').textContent.includes('v1 warm <b>')")
    assert session.version_titles == {1: "warm <b>"}
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("select.right option")).to_have_text(["in use", "v2", "v1 warm <b>", "base"])


def test_history_rolls_back_on_the_second_press(desk: tuple[FakeSession, Page]) -> None:
    session, page = desk
    press(page, "g")
    wait_for_acts(session, page, 1)
    page.get_by_role("tab", name="History").click()
    button = page.get_by_role("button", name="Use this version")
    expect(button).to_have_count(1)
    button.click()
    page.get_by_role("button", name="Press again to go back").wait_for()
    assert len(session.published) == 2
    page.get_by_role("button", name="Press again to go back").click()
    expect(page.locator(".lh-table tbody tr").first.locator("td").first).to_have_text("v2")
    assert (session.published[-1].kind, session.published[-1].parent) == ("rollback", 0)


def test_compare_draws_both_and_says_what_is_wrong(desk: tuple[FakeSession, Page]) -> None:
    _, page = desk
    page.get_by_role("tab", name="Compare").click()
    page.fill(".lh-panel .prompt", "a star")
    page.fill(".lh-panel .seed", "200")
    page.get_by_role("button", name="Draw both").click()
    for side in (".one", ".two"):
        page.wait_for_selector(f"{side} img")
        assert page.eval_on_selector(f"{side} img", FIRST_PIXEL) == [200, 0, 100, 255]
    page.evaluate("document.querySelector('.lh-panel .prompt').removeAttribute('maxlength')")
    page.fill(".lh-panel .prompt", "x" * 5000)
    page.get_by_role("button", name="Draw both").click()
    expect(page.locator(".lh-panel:has(.lh-pair) .error")).to_contain_text("1000 characters")


def test_compare_draws_any_two_versions_at_any_strength_and_swaps_them(desk: tuple[FakeSession, Page]) -> None:
    session, page = desk
    for n in (1, 2):
        press(page, "g")
        wait_for_acts(session, page, n)
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("select.left option")).to_have_text(["base", "v2", "v1"])
    page.fill(".lh-panel .prompt", "a star")
    page.locator("select.left").select_option("1")
    page.locator(".strength").fill("0.5")
    page.get_by_role("button", name="Draw both").click()
    expect(page.locator(".one-name")).to_have_text("v1 at strength 0.50")
    expect(page.locator(".two-name")).to_have_text("v2 at strength 0.50")

    def sides() -> list[Any]:
        return [page.eval_on_selector(f"{side} img", FIRST_PIXEL)[1] for side in (".one", ".two")]

    assert sides() == [10, 20]
    page.locator(".two-name").click()
    page.keyboard.down("c")
    assert sides() == [20, 10]
    page.keyboard.up("c")
    assert sides() == [10, 20]
    page.locator(".swap").hover()
    page.mouse.down()
    expect(page.locator(".one-name")).to_have_text("v2 at strength 0.50")
    page.mouse.up()
    expect(page.locator(".one-name")).to_have_text("v1 at strength 0.50")


def test_the_blind_test_is_twenty_pairs_that_count(desk: tuple[FakeSession, Page]) -> None:
    session, page = desk
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="Start the blind test").click()
    expect(page.locator(".lh-panel:visible .error")).to_contain_text("Nothing was learned yet")
    page.get_by_role("tab", name="Rate").click()
    press(page, "g")
    wait_for_acts(session, page, 1)
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="Start the blind test").click()
    for n in range(1, 21):
        expect(page.locator(".which")).to_have_text(f"Pair {n} of 20")
        assert not re.search("tuned|base|v1", page.inner_text(".lh-trial .lh-pair") + page.inner_text(".asked"))
        press(page, "ArrowRight" if n > 13 else "ArrowDown" if n == 13 else "ArrowLeft")
    expect(page.locator(".lh-trial")).to_be_hidden()
    expect(page.locator(".lh-verdicts li")).to_have_text("v1 wins 12.5 of 20 blind pairs against the base: 63% (41 to 80)")
    assert len(session.pairs) == 20
    assert session.asked[-20:] == [None, *[1] * 19]
    assert all(pair.milliseconds is not None and pair.rater for pair in session.pairs.values())
    expect(page.locator(".lh-bar")).to_contain_text("63%")
    assert len(session.acts) == 1


def test_blind_answers_by_mouse_say_who_was_who_and_stop_stops(desk: tuple[FakeSession, Page]) -> None:
    session, page = desk
    press(page, "g")
    wait_for_acts(session, page, 1)
    page.get_by_role("tab", name="Progress").click()
    page.get_by_role("button", name="Take the blind test").click()
    expect(page.locator(".which")).to_have_text("Pair 1 of 20")
    page.locator(".lh-side").first.click()
    expect(page.locator(".told")).to_have_text("The last pair: you chose tuned, v1.")
    expect(page.locator(".which")).to_have_text("Pair 2 of 20")
    page.get_by_role("button", name="About the same").click()
    expect(page.locator(".told")).to_have_text("The last pair: tuned was the left one.")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".lh-trial")).to_be_hidden()
    press(page, "ArrowLeft")
    page.wait_for_timeout(300)
    assert len(session.pairs) == 2


def test_export_gives_this_versions_file_with_one_click(desk: tuple[FakeSession, Page], tmp_path: Path) -> None:
    session, page = desk
    for version in (1, 2):
        page.get_by_role("tab", name="Rate").click()
        page.wait_for_selector(".lh-board[data-state=rating]")
        press(page, "g")
        wait_for_acts(session, page, version)
        page.get_by_role("tab", name="Export").click()
        page.get_by_text("for ComfyUI and A1111").click()
        with page.expect_download() as download:
            page.get_by_role("button", name="Make file").click()
        assert download.value.suggested_filename == f"kohya-v{version}.zip"
        with zipfile.ZipFile(download.value.path()) as archive:
            assert archive.read("README.md") == f"version {version}".encode()
    expect(page.locator(".learned")).to_have_text("v2, learned from 8 rated images in 2 updates.")
    expect(page.locator(".sha256")).to_have_text(hashlib.sha256((session.folder / "kohya-v2.zip").read_bytes()).hexdigest())
    expect(page.locator(".load")).to_contain_text("<lora:kohya-v2:1>")


def test_what_stands_on_the_file_is_the_persons_to_say(desk: tuple[FakeSession, Page]) -> None:
    session, page = desk
    page.get_by_role("tab", name="Export").click()
    page.get_by_label("Name of the file").fill("warm-shapes")
    page.get_by_label("Trigger phrase").fill("in my style")
    page.get_by_label("Licence").fill("mit")
    page.get_by_label("Cover pictures").fill("a red circle\n\n two stars ")
    page.get_by_role("button", name="Make file").click()
    expect(page.locator(".load")).to_contain_text('pipe.load_lora_weights("diffusers-v0")')
    assert session.label == Label("warm-shapes", "in my style", "mit", ("a red circle", "two stars"))
    page.get_by_label("Name of the file").fill("Not A Name")
    page.get_by_role("button", name="Make file").click()
    assert page.eval_on_selector(".name", "input => !input.validity.valid")
    assert session.label == Label("warm-shapes", "in my style", "mit", ("a red circle", "two stars"))


def test_settings_change_what_may_change_and_show_the_rest(desk: tuple[FakeSession, Page]) -> None:
    session, page = desk
    page.get_by_role("button", name="Toggle Sidebar").click()
    panel = page.locator(".lh-settings")
    expect(panel.get_by_role("radio", name="Normal")).to_be_checked()
    panel.get_by_text("Bold", exact=True).click()
    page.wait_for_function("() => document.querySelector('.bold input[value=bold]').checked")
    for _ in range(100):
        if session.knobs.learn.beta == BOLDNESS["bold"]["learn.beta"]:
            break
        page.wait_for_timeout(50)
    assert {name: session.knobs.value(name) for name in BOLDNESS["bold"]} == BOLDNESS["bold"]
    panel.get_by_label("weight of jpeg").fill("1.25")
    panel.get_by_label("What not to draw").fill("blue <b>")
    panel.get_by_label("What not to draw").press("Tab")
    panel.get_by_text("All knobs").click()
    expect(panel.locator("dd", has_text="jpeg=1.25")).to_be_visible()
    expect(panel.locator("dd", has_text="blue <b>")).to_be_visible()
    assert session.knobs.rewards == {"jpeg": 1.25}
    press(page, "g")
    page.wait_for_timeout(500)
    panel.get_by_label("Your name beside your ratings").fill("ann 1234")
    panel.get_by_label("Your name beside your ratings").press("Tab")
    page.locator(".lh-board .lh-prompt").click()
    press(page, "b")
    wait_for_acts(session, page, 2)
    assert [act.rater for act in session.acts] == ["me", "ann 1234"]


def test_runs_are_picked_begun_renamed_and_deleted(desk: tuple[FakeSession, Page]) -> None:
    session, page = desk
    page.get_by_role("button", name="Toggle Sidebar").click()
    expect(page.locator(".lh-runs li")).to_have_count(2)
    expect(page.locator(".lh-runs li").first).to_contain_text("firstfake · base · 0 rated")
    press(page, "g")
    expect(page.locator(".lh-runs li").first).to_contain_text("firstfake · v1 · 4 rated")
    page.get_by_role("button", name="Rename").first.click()
    page.get_by_label("new name of first").fill("renamed")
    page.get_by_label("new name of first").press("Enter")
    expect(page.locator(".opening")).to_be_hidden()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Press again: for ever").click()
    expect(page.get_by_role("button", name="Delete", exact=True)).to_be_visible()
    page.get_by_role("button", name="Open", exact=True).click()
    expect(page.locator(".opening")).to_be_hidden()
    page.get_by_text("New run, or other prompts").click()
    page.get_by_label("Name of the new run").fill("cats")
    page.get_by_label("Prompts").select_option("my own")
    page.get_by_label("One prompt a line").fill("a cat\na {red|blue} cat")
    page.get_by_label("Images in a group").fill("3")
    page.get_by_label("Width and height in pixels").fill("96")
    page.get_by_role("button", name="Begin a new run").click()
    for _ in range(100):
        if len(session.switched) == 4:
            break
        page.wait_for_timeout(50)
    assert session.switched[:3] == [("rename", "first", "renamed"), ("delete", "other"), ("open", "other")]
    kind, name, changes, prompts = session.switched[3]
    assert (kind, name, prompts) == ("new", "cats", "a cat\na {red|blue} cat")
    assert (changes["draw.num_images_per_prompt"], changes["draw.size"], changes["rewards"]) == (3, 96, "jpeg=0.5")


def test_when_another_run_is_opened_every_page_begins_anew_with_it(desk: tuple[FakeSession, Page]) -> None:
    session, page = desk
    session.fault = OSError("not now")
    press(page, "g")
    page.wait_for_timeout(300)
    page.evaluate("window.before = true")
    session.run = "second"
    page.wait_for_function("() => !window.before && document.querySelector('.lh-board')?.dataset.run === 'second'")
    session.fault = None
    page.wait_for_timeout(3500)
    assert session.acts == []
    session.run = "first"
    wait_for_acts(session, page, 1)


def test_a_run_may_have_another_number_of_images(tmp_path: Path, context: BrowserContext) -> None:
    session = FakeSession(tmp_path, k=6)
    with serving(session, Settings.read(None, runs=Path("unused"))) as url:
        page = context.new_page()
        open_board(page, url)
        expect(page.locator(".lh-card:visible")).to_have_count(6)
        expect(page.locator(".most")).to_have_text("6")
        press(page, "5", "6")
        wait_for_acts(session, page, 1)
        assert sorted(stars or 0 for stars in session.acts[0].stars) == [1, 3, 3, 3, 3, 5]
