"""The page's server side: the contracts with gradio_client and over plain HTTP, who may do what, what the board sends, the door."""

import base64
import itertools
import json
import re
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from starlette.requests import Request

from loophil.config import Settings
from loophil.errors import ConfigError, InvalidInput, LoopHILError
from loophil.types import Act, Group, Label, Mean, Status
from loophil.ui import answers, board, compare, export, history, page, parse, progress, runs, settings
from loophil.ui.access import Access
from loophil.ui.layout import hub_sign_in
from loophil.ui.server import from_another_site, names_this_machine
from tests.fake_session import FakeSession
from tests.serving import call, run, serving
from tests.stand_in_hub import GOOD, StandInHub

ASSETS = Path(board.__file__).parent / "static"
CONTRACTS = {"/new_group", "/rate", "/status", "/compare", "/pause", "/resume", "/rollback", "/export"}
OWNER = ("ann", "open-sesame")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeSession, str]]:
    """A page on loopback: everybody may do everything."""
    session = FakeSession(tmp_path_factory.mktemp("own"))
    with serving(session, Settings.read(None, runs=Path("unused"))) as url:
        yield session, url
    assert session.closed


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeSession, str]]:
    """A page that strangers reach; ann may teach."""
    session = FakeSession(tmp_path_factory.mktemp("public"))
    with serving(session, Settings.read(None, runs=Path("unused"), host="0.0.0.0", auth=":".join(OWNER))) as url:
        yield session, url


@pytest.fixture(scope="module")
def client(own: tuple[FakeSession, str]) -> Client:
    return Client(own[1], verbose=False)


def trace(session: FakeSession) -> tuple[Any, ...]:
    """All that a refused request must leave as it was (with the stock filled up first, as looking does)."""
    session.upcoming("guest")
    taught = list(session.acts), dict(session.pairs), len(session.groups), list(session.published), dict(session.version_titles)
    return *taught, session.paused, list(session.wishes)


# --- parsing -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "number"), [(0, 0), (7, 7), (7.0, 7), (2**53 - 1, 2**53 - 1)])
def test_a_whole_number_may_come_as_a_float(value: Any, number: int) -> None:
    assert parse.whole_number(value, "seed") == number
    assert type(parse.whole_number(value, "seed")) is int


@pytest.mark.parametrize("value", [True, "7", "", None, [7], {}, -1, 1.5, 2**53, float("nan"), float("inf"), 10**400])
def test_what_is_no_whole_number_is_refused_by_name(value: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^seed must be a whole number from 0 to 9007199254740991, not .+\.$"):
        parse.whole_number(value, "seed")


def test_ratings_come_as_a_list_or_as_json_text() -> None:
    assert parse.ratings([5, None, 1, 2.5]) == parse.ratings("[5, null, 1, 2.5]") == (5.0, None, 1.0, 2.5)
    assert all(type(star) is float for star in parse.ratings([5, 1]))


@pytest.mark.parametrize("entry", [True, False, "5", [5], {}, float("nan"), float("inf"), 10**400])
def test_only_numbers_and_null_are_ratings(entry: Any) -> None:
    with pytest.raises(InvalidInput, match="A rating must be a number from 1 to 5, or null"):
        parse.ratings([3, entry])


@pytest.mark.parametrize("value", [None, 5, {}, "five", '{"a": 1}', "[" * 100_000])
def test_ratings_must_be_a_list(value: Any) -> None:
    with pytest.raises(InvalidInput, match="ratings must be a list"):
        parse.ratings(value)


@pytest.mark.parametrize(("value", "reason"), [(5, "must be text"), ("x" * 201, "201 characters"), ("a\ud800", "half a character")])
def test_names_are_short_whole_text(value: Any, reason: str) -> None:
    with pytest.raises(InvalidInput, match=f"^rater .*{reason}"):
        parse.text(value, "rater")
    assert parse.text(None, "rater") == ""
    assert parse.text("Ånn 🎯", "rater") == "Ånn 🎯"


def test_what_a_sentence_quotes_is_short_and_writable() -> None:
    assert parse.shown("\ud800\n") == "'\\ud800\\n'"
    assert len(parse.shown("x" * 100_000)) == 60


# --- who may do what -----------------------------------------------------------------------------------------------------------------------


def request(*, password: str | None = None, account: dict[str, Any] | None = None, address: str = "9.9.9.9", **headers: str) -> Request:
    """A request as a handler gets it: `password` is name:password by HTTP Basic, `account` Gradio's Hugging Face session."""
    if password is not None:
        headers["authorization"] = "Basic " + base64.b64encode(password.encode()).decode()
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": pairs, "client": (address, 1)}
    return Request(scope | ({"session": {"oauth_info": account}} if account else {}))


def account(name: str, expires_in: float = 60) -> dict[str, Any]:
    return {"expires_at": time.time() + expires_in, "userinfo": {"preferred_username": name}}


def test_on_loopback_everybody_may_do_everything() -> None:
    access = Access.of(Settings.read(None))
    assert access.teacher(request()) == "me"
    assert access.teacher(request(), "bob") == "bob"
    assert access.board_rater(request(), "browser-1") == "me"


def test_with_public_everybody_may_and_each_browser_is_somebody() -> None:
    access = Access.of(Settings.read(None, host="0.0.0.0", public=True))
    assert access.may_teach(request())
    assert access.board_rater(request(), "browser-1") == "browser-1"


def test_strangers_may_only_look() -> None:
    access = Access.of(Settings.read(None, host="0.0.0.0"))
    assert not access.may_teach(request())
    with pytest.raises(InvalidInput, match="sign in"):
        access.teacher(request())


@pytest.mark.parametrize("password", ["ann:wrong-sesame", "ann:", "bob:open-sesame", "", "ann"])
def test_a_wrong_password_is_no_sign_in(password: str) -> None:
    access = Access.of(Settings.read(None, auth="ann:open-sesame"))
    assert access.signed_in(request(password=password)) is None
    assert access.signed_in(request(authorization="Basic %%%")) is None
    assert access.signed_in(request(authorization="Bearer abc")) is None


def test_a_right_password_gives_the_name_and_no_other() -> None:
    access = Access.of(Settings.read(None, auth="ann:open-sesame, bob:with:colons:in"))
    assert access.teacher(request(password="ann:open-sesame")) == "ann"
    assert access.teacher(request(password="bob:with:colons:in"), "bob") == "bob"
    assert access.board_rater(request(password="ann:open-sesame"), "browser-1") == "ann"
    with pytest.raises(InvalidInput, match="signed in as ann"):
        access.teacher(request(password="ann:open-sesame"), "bob")


def test_an_address_that_guesses_has_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("loophil.ui.access.time.monotonic", lambda: now)
    access = Access.of(Settings.read(None, auth="ann:open-sesame"))
    for _ in range(10):
        access.signed_in(request(password="ann:guess"))
    assert access.signed_in(request(password="ann:open-sesame")) is None
    assert access.signed_in(request(password="ann:open-sesame", address="8.8.8.8")) == "ann"
    now += 61
    assert access.signed_in(request(password="ann:open-sesame")) == "ann"


def test_on_a_space_its_author_and_listed_accounts_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_ID", "ann/loop")
    monkeypatch.setenv("SPACE_AUTHOR_NAME", "ann")
    access = Access.of(Settings.read(None, auth="bob"))
    assert access.teacher(request(account=account("ann"))) == "ann"
    assert access.teacher(request(account=account("bob"))) == "bob"
    with pytest.raises(InvalidInput, match="'eve' is not on this run's list of raters; its owner can add the name to LOOPHIL_AUTH"):
        access.teacher(request(account=account("eve")))
    with pytest.raises(InvalidInput, match="sign in"):
        access.teacher(request(account=account("ann", expires_in=-1)))


def test_the_owner_is_whoever_is_there_the_first_name_or_the_spaces_author(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may publish under which token is nobody else's choice, whatever else they may do."""
    assert Access.of(Settings.read(None)).owner(request()) == "me"
    listed = Access.of(Settings.read(None, auth="ann:open-sesame,bob:open-barley"))
    assert listed.owner(request(password="ann:open-sesame")) == "ann"
    public = Access.of(Settings.read(None, host="0.0.0.0", public=True, auth="ann:open-sesame"))
    assert public.owner(request(password="ann:open-sesame")) == "ann"
    nobody = [Access.of(Settings.read(None, host=host, public=True)) for host in ("127.0.0.1", "0.0.0.0")]
    monkeypatch.setenv("SPACE_ID", "ann/loop")
    monkeypatch.setenv("SPACE_AUTHOR_NAME", "ann")
    space = Access.of(Settings.read(None, auth="bob,eve:open-barley"))
    assert space.owner(request(account=account("ann"))) == "ann"
    refused = [(listed, request(password="bob:open-barley")), (listed, request()), (public, request()), *((access, request()) for access in nobody)]
    refused += [(space, who) for who in (request(account=account("bob")), request(password="eve:open-barley"), request())]
    refused += [(space, request(account=account("ann", expires_in=-1)))]
    for access, who in refused:
        with pytest.raises(InvalidInput, match="Only the run's owner may do that: sign in as the owner, or use `python -m loophil`"):
            access.owner(who)
    assert [space.may_teach(who) for access, who in refused[5:8] if access is space] == [True, True, False]


@pytest.mark.parametrize("auth", ["ann", "ann:short", ":long-enough", "ann:open-sesame,bob"])
def test_a_sign_in_that_cannot_work_is_refused_at_start(auth: str) -> None:
    with pytest.raises(ConfigError, match="needs name:password with at least 8 characters"):
        Access.of(Settings.read(None, auth=auth))


def test_signing_in_with_hugging_face_is_offered_where_it_can_work(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL")
    space = dict.fromkeys(names, "x") | {"SYSTEM": "spaces", "SPACE_ID": "ann/loop"}
    for name, value in space.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("loophil.ui.layout.find_spec", lambda package: package)
    assert hub_sign_in()
    for name in (*names, "SYSTEM"):
        with monkeypatch.context() as without:
            without.delenv(name)
            assert not hub_sign_in(), name
    monkeypatch.setattr("loophil.ui.layout.find_spec", lambda package: None)
    assert not hub_sign_in()


# --- the contracts -------------------------------------------------------------------------------------------------------------------------


def test_exactly_the_contracts_are_published(client: Client) -> None:
    assert set(client.view_api(return_format="dict", print_info=False)["named_endpoints"]) == CONTRACTS


def test_new_group_gives_ids_seeds_and_pictures(own: tuple[FakeSession, str], client: Client) -> None:
    said, gallery = client.predict("a blue star", api_name="/new_group")
    group = own[0].groups[said["group"]]
    assert said == {
        "group": group.id,
        "prompt": "a blue star",
        "policy_version": group.policy_version,
        "k": 4,
        "images": [{"id": image.id, "seed": image.seed} for image in group.images],
    }
    pictures = [Image.open(entry["image"]).tobytes() for entry in gallery]
    assert pictures == [Image.open(own[0].images / image.file).tobytes() for image in group.images]


def test_an_empty_prompt_takes_the_next_of_the_list(own: tuple[FakeSession, str], client: Client) -> None:
    assert client.predict(api_name="/new_group")[0]["prompt"] == own[0].prompts[0]


def test_rate_files_the_stars_and_answers(own: tuple[FakeSession, str], client: Client) -> None:
    group = client.predict(api_name="/new_group")[0]["group"]
    said = client.predict(group, [5, None, 1, 2.5], "ann", "key-1", api_name="/rate")
    assert said == {"accepted": True, "rated": 3, "policy_version": own[0].published[-1].number, "pending": 0}
    assert own[0].acts[-1] == Act(group, "ann", (5.0, None, 1.0, 2.5), key="key-1")
    assert client.predict(group, [5, None, 1, 2.5], "ann", "key-1", api_name="/rate") == said
    with pytest.raises(AppError, match="used before with other content"):
        client.predict(group, [4, None, 1, 2.5], "ann", "key-1", api_name="/rate")


def test_rater_and_key_may_be_left_out_over_plain_http_too(own: tuple[FakeSession, str]) -> None:
    group = own[0].draw("x").id
    assert run(own[1], "rate", group, [1, 2, 3, 4])[0] == 200
    assert own[0].acts[-1] == Act(group, "me", (1.0, 2.0, 3.0, 4.0))
    event, data = call(own[1], "rate", group, [4, 3, 2, 1])
    assert (event, json.loads(data)[0]["rated"]) == ("complete", 4)


BAD_RATES = {
    "unknown group": ("nowhere", [1, 2, 3, 4]),
    "wrong count": ("?", [1, 2, 3]),
    "stars 0": ("?", [0, 2, 3, 4]),
    "stars 6": ("?", [1, 2, 3, 6]),
    "a boolean": ("?", [True, 2, 3, 4]),
    "a string": ("?", ["1", 2, 3, 4]),
    "no list": ("?", 5),
    "nothing": ("?", None),
    "a very long rater": ("?", [1, 2, 3, 4], "x" * 100_000),
    "text that is no list": ("?", "all good"),
}


@pytest.mark.parametrize("data", BAD_RATES.values(), ids=BAD_RATES)
def test_a_rating_that_cannot_be_gets_one_sentence_and_changes_nothing(own: tuple[FakeSession, str], data: tuple[Any, ...]) -> None:
    session, url = own
    group = session.draw("x").id
    data = tuple(group if value == "?" else value for value in data)
    before = trace(session)
    status, said = run(url, "rate", *data)
    assert status >= 400
    assert re.fullmatch(r"[^\n]{10,300}\.", said["error"])
    event, text = call(url, "rate", *data)
    assert (event, json.loads(text)["error"]) == ("error", said["error"])
    assert trace(session) == before


@pytest.mark.parametrize(
    "content",
    [
        '{"data": ["g1", [NaN, 2, 3, 4]]}',
        '{"data": ["g1", [1e999, 2, 3, 4]]}',
        r'{"data": ["g1\ud800", [1, 2, 3, 4]]}',
        r'{"data": ["g1", [1, 2, 3, 4], "\ud800"]}',
    ],
)
def test_nan_and_half_characters_get_their_sentence(own: tuple[FakeSession, str], content: str) -> None:
    own[0].draw("x")
    before = trace(own[0])
    status, said = run(own[1], "rate", content=content)
    assert status >= 400
    assert re.search(r"a number from 1 to 5|half a character", said["error"])
    event, text = call(own[1], "rate", content=content)
    assert (event, json.loads(text)["error"]) == ("error", said["error"])
    assert trace(own[0]) == before


@pytest.mark.parametrize("content", ["nonsense", "[]", '{"date": NaN}', '{"data": "\\ud800"}', '{"data": {"group": 1}}'])
def test_a_body_that_gradio_cannot_read_gets_a_sentence(own: tuple[FakeSession, str], content: str) -> None:
    status, said = run(own[1], "rate", content=content)
    assert (status, said["error"][:17]) == (422, "The body must be ")


@pytest.mark.parametrize("prompt", ["a" * 100_000, "half \ud800"])
def test_a_prompt_that_cannot_be_is_refused_before_anything_is_drawn(own: tuple[FakeSession, str], prompt: str) -> None:
    before = trace(own[0])
    event, text = call(own[1], "new_group", content=json.dumps({"data": [prompt]}))
    assert event == "error"
    assert "rompt" in json.loads(text)["error"]
    assert trace(own[0]) == before


def test_compare_gives_base_and_tuned_at_one_seed(client: Client) -> None:
    base, tuned = client.predict("a star", 200, api_name="/compare")
    assert Image.open(base).getpixel((0, 0)) == (200, 0, 100)
    assert Image.open(tuned).getpixel((0, 0)) == (200, 10 * client.predict(api_name="/status")["policy_version"], 100)


@pytest.mark.parametrize("seed", ["200", None, 2**53, -1, 1.5, True])
def test_a_seed_must_be_a_number(client: Client, seed: Any) -> None:
    with pytest.raises(AppError, match=r"^seed must be a whole number from 0 to 9007199254740991, not "):
        client.predict("a star", seed, api_name="/compare")


def test_pause_and_resume_say_so(client: Client) -> None:
    assert client.predict(api_name="/pause")["paused"] is True
    assert client.predict(api_name="/status")["paused"] is True
    assert client.predict(api_name="/resume")["paused"] is False


def test_rollback_publishes_and_refuses_what_is_not_there(own: tuple[FakeSession, str], client: Client) -> None:
    newest = own[0].published[-1].number
    assert client.predict(0, api_name="/rollback")["policy_version"] == newest + 1
    before = trace(own[0])
    for version, sentence in ((newest + 50, "has no version"), ("1", "whole number"), (None, "whole number"), (-1, "whole number")):
        with pytest.raises(AppError, match=sentence):
            client.predict(version, api_name="/rollback")
    assert trace(own[0]) == before


def test_export_is_a_file_and_an_unknown_format_a_sentence(client: Client) -> None:
    with zipfile.ZipFile(client.predict("peft", api_name="/export")) as archive:
        assert archive.namelist() == ["README.md"]
    with pytest.raises(AppError, match="Unknown format 'pickle'"):
        client.predict("pickle", api_name="/export")


# --- strangers -----------------------------------------------------------------------------------------------------------------------------

CHANGES = [("rate", "?", [1, 2, 3, 4]), ("pause",), ("resume",), ("rollback", 0)]


@pytest.mark.parametrize("data", CHANGES, ids=lambda data: data[0])
def test_a_stranger_may_not_change_the_run(public: tuple[FakeSession, str], data: tuple[Any, ...]) -> None:
    session, url = public
    data = tuple(session.draw("x").id if value == "?" else value for value in data)
    before = trace(session)
    status, said = run(url, *data)
    assert status >= 400
    assert "sign in" in said["error"]
    assert trace(session) == before
    assert run(url, *data, auth=OWNER)[0] == 200


@pytest.mark.parametrize("data", [("new_group", "anything"), ("export", "peft")], ids=lambda data: data[0])
def test_a_stranger_may_not_draw_or_take(public: tuple[FakeSession, str], data: tuple[Any, ...]) -> None:
    before = trace(public[0])
    event, text = call(public[1], *data)
    assert event == "error"
    assert "sign" in json.loads(text)["error"]
    assert trace(public[0]) == before
    assert call(public[1], *data, auth=OWNER)[0] == "complete"


def test_a_stranger_may_look_and_try_what_is_ready(public: tuple[FakeSession, str]) -> None:
    assert run(public[1], "status")[0] == 200
    shares = {"human:ann": 0.5, "human:bob": 0.25, "jpeg": 0.25}
    said = answers.status_answer(Status("first", "fake", "cpu", last_update={"loss": 1.0, "shares": shares}))
    assert said["last_update"] == {"loss": 1.0, "shares": {"people": 0.75, "jpeg": 0.25}}
    assert call(public[1], "compare", "a star", 3)[0] == "complete"
    event, text = call(public[1], "new_group", "")
    assert (event, json.loads(text)[0]["group"]) == ("complete", public[0].unrated("guest")[0].id)


SENT = {"undo": True, "prompt": "eve's", "pause": True, "number": 0, "name": "eve's"}
SENT |= {"question": "q", "choice": "left", "format": "peft", "rater": "eve"}


def test_no_light_handler_of_the_page_lets_a_stranger_change_the_run(public: tuple[FakeSession, str]) -> None:
    """Every handler that passes the queue by, over plain HTTP, with what its component sends: private is no protection."""
    session, url = public
    sent = SENT | {"batch": [entry("u1", session.upcoming("eve")[0].id)]}
    before = trace(session)
    private = [d for d in httpx.get(f"{url}/config").json()["dependencies"] if f"/{d['api_name']}" not in CONTRACTS and not d["queue"]]
    answers = [run(url, "any", fn_index=d["id"], event_data=sent, session_hash="eve") for d in private]
    assert [status for status, _ in answers] == [200] * 16
    assert trace(session) == before


@pytest.mark.parametrize(
    ("tab", "name", "format"),
    [
        (board.Board, "ask", ""),
        (board.Board, "hold", ""),
        (compare.Compare, "ask", ""),
        (compare.Compare, "answer", ""),
        (history.History, "group", ""),
        (history.History, "go_back", ""),
        (history.History, "rename", ""),
        (history.History, "take", "csv"),
        (history.History, "take", "parquet"),
        (history.History, "forget", ""),
        (export.Export, "make", "peft"),
        (settings.SettingsPanel, "turn", ""),
        (runs.RunsPanel, "open", ""),
        (runs.RunsPanel, "begin", ""),
        (runs.RunsPanel, "alter", ""),
        (runs.RunsPanel, "rename", ""),
        (runs.RunsPanel, "remove", ""),
    ],
)
def test_handlers_of_the_page_ask_who_is_there(tmp_path: Path, tab: Any, name: str, format: str) -> None:
    session = FakeSession(tmp_path)
    group = session.upcoming("ann")[0].id
    session.rate(Act(group, "ann", (3.0,) * 4, key="k"))
    handler = getattr(tab(session, Access(everybody=False, passwords=dict([OWNER]))), name)
    sent = SENT | {"format": format, "group": group, "rater": ""}
    before = trace(session)
    assert "sign in" in handler(request(), SimpleNamespace(_data=sent))["error"]
    assert trace(session) == before
    assert list(tmp_path.glob("*.zip")) == []
    assert "error" not in handler(request(password=":".join(OWNER)), SimpleNamespace(_data=sent))


PUSH = {"format": "peft", "name": "warm", "repository": "ann/warm", "private": True, "token": GOOD}


def push(session: FakeSession, access: Access, who: Request, **sent: Any) -> list[dict[str, Any]]:
    return list(export.Export(session, access).push(who, SimpleNamespace(_data=PUSH | sent)))  # type: ignore[arg-type]


def test_the_owner_pushes_with_the_token_that_was_typed_or_the_machines(tmp_path: Path, hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    session, access = FakeSession(tmp_path), Access.of(Settings.read(None, host="0.0.0.0", auth="ann:open-sesame,bob:open-barley"))
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_machine")
    said = push(session, access, request(password="ann:open-sesame"))
    assert [(a["of"], a["doing"], a["address"]) for a in said] == [
        ("push", "Making the files and their pictures", ""),
        ("push", "Published", "https://hub.example/ann/warm"),
    ]
    assert len({a["stamp"] for a in said}) == 2
    assert session.label == Label("warm")
    push(session, access, request(password="ann:open-sesame"), token="", private=False)
    assert session.pushes == [("ann/warm", GOOD, "peft", True), ("ann/warm", "hf_of_the_machine", "peft", False)]


@pytest.mark.parametrize("token", [GOOD, ""])
@pytest.mark.parametrize("who", [None, "bob:open-barley"])
def test_a_rater_or_a_stranger_pushes_nothing_with_any_token(who: str | None, token: str, tmp_path: Path, hub: StandInHub) -> None:
    session, access = FakeSession(tmp_path), Access.of(Settings.read(None, host="0.0.0.0", auth="ann:open-sesame,bob:open-barley"))
    [said] = push(session, access, request(password=who), token=token)
    assert said["error"].startswith("Only the run's owner may do that")
    assert (session.pushes, session.label, hub.requests) == ([], None, [])


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"token": [GOOD]}, "token must be text."),
        ({"token": f"{GOOD} {GOOD}"}, "What was given as the token is none"),
        ({"repository": GOOD}, "A repository is named USER/REPO"),
        ({"repository": 5}, "repository must be text"),
        ({"name": "x" * 201}, "name has 201 characters"),
    ],
)
def test_what_cannot_be_pushed_is_said_without_the_token(sent: dict[str, Any], message: str, tmp_path: Path, hub: StandInHub) -> None:
    session = FakeSession(tmp_path)
    [said] = push(session, Access(everybody=True, several=False), request(), **sent)
    assert (said["error"].startswith(message), said["of"], session.pushes) == (True, "push", [])
    assert GOOD not in str(said)


def test_a_push_that_stops_half_way_says_so_as_its_last_answer(tmp_path: Path, hub: StandInHub) -> None:
    session = FakeSession(tmp_path)
    session.fault = LoopHILError("The Hub refused the token.")
    said = push(session, Access(everybody=True, several=False), request())
    assert [a.get("error") for a in said] == [None, "The Hub refused the token."]


def test_a_push_reports_each_step_through_the_queue_and_never_the_token(
    own: tuple[FakeSession, str], hub: StandInHub, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(0)
    session, url = own
    config = httpx.get(f"{url}/config").json()
    pushing = next(d["id"] for d in config["dependencies"] if d["targets"][0][1] == "push")
    sent = {"fn_index": pushing, "data": [], "event_data": PUSH, "session_hash": "pusher"}
    assert httpx.post(f"{url}/gradio_api/queue/join", json=sent).status_code == 200
    stream = httpx.get(f"{url}/gradio_api/queue/data", params={"session_hash": "pusher"}, timeout=60).text
    told = [stream.find(text) for text in ("Making the files", "https://hub.example/ann/warm", "process_completed")]
    assert told == sorted(told)
    assert told[0] >= 0
    assert session.pushes[-1] == ("ann/warm", GOOD, "peft", True)
    assert GOOD not in stream + httpx.get(f"{url}/config").text + caplog.text + "".join(capfd.readouterr())
    assert GOOD not in str(run(url, "status"))


def test_the_pages_token_field_hides_what_is_typed_and_is_emptied() -> None:
    html, script = ((ASSETS / f"export.{kind}").read_text("utf-8") for kind in ("html", "js"))
    assert re.search(r'<input class="token" type="password"[^>]*autocomplete="new-password"', html)
    assert script.index("find('.token').value = ''") < script.index("trigger('push'")
    assert "storage" not in script


@pytest.mark.parametrize(
    ("name", "sent", "message"),
    [
        ("begin", {"run": "two", "rewards": "steal.py:all=1"}, "is a program"),
        ("begin", {"run": "two", "list": "/etc/passwd"}, "There is no prompt list"),
        ("begin", {"run": "two", "prompts": "x" * 200_001}, "at most 200,000"),
        ("begin", {"run": 5}, "must be text"),
        ("begin", {"run": "two", "model": "some/other"}, "the model is its owner's choice"),
        ("open", {"run": "x" * 300}, "300 characters"),
    ],
)
def test_what_a_run_cannot_be_begun_with_is_said(tmp_path: Path, name: str, sent: dict[str, Any], message: str) -> None:
    session = FakeSession(tmp_path)
    panel = runs.RunsPanel(session, Access(everybody=True))  # type: ignore[arg-type]
    assert message in getattr(panel, name)(request(), SimpleNamespace(_data=sent))["error"]
    assert session.switched == []


def test_a_run_on_another_model_is_opened_by_the_owner_alone(tmp_path: Path) -> None:
    session, access = FakeSession(tmp_path), Access.of(Settings.read(None, host="0.0.0.0", auth="ann:open-sesame,bob:open-barley"))
    panel, sent = runs.RunsPanel(session, access), SimpleNamespace(_data={"run": "other"})  # type: ignore[arg-type]
    assert "the model is its owner's choice" in panel.open(request(password="bob:open-barley"), sent)["error"]
    assert session.switched == []
    assert "error" not in panel.open(request(password="ann:open-sesame"), sent)
    assert session.switched == [("open", "other")]


def test_what_is_filled_in_for_a_run_becomes_knobs(tmp_path: Path) -> None:
    session = FakeSession(tmp_path)
    panel = runs.RunsPanel(session, Access(everybody=True, several=False))  # type: ignore[arg-type]
    sent = {
        "run": "two",
        "model": "a/b",
        "lora": "theirs.zip",
        "lora.file": "theirs.zip",
        "list": "single",
        "k": 3,
        "rewards": "jpeg=0.5",
        "prompts": "",
    }
    panel.begin(request(), SimpleNamespace(_data=sent))
    panel.alter(request(), SimpleNamespace(_data=sent | {"list": "", "prompts": "a dog"}))
    knobs = {"draw.num_images_per_prompt": 3, "rewards": "jpeg=0.5"}
    assert session.switched == [
        ("new", "two", {"model": "a/b", "draw.prompts": "single"} | knobs, ""),
        ("change", knobs, "a dog"),
    ]


def test_a_guest_sees_what_was_rated_and_not_by_whom(tmp_path: Path) -> None:
    session = FakeSession(tmp_path)
    session.rate(Act(session.upcoming("ann")[0].id, "ann", (3.0,) * 4, key="k"))
    tab = history.History(session, Access(everybody=False, passwords=dict([OWNER])))  # type: ignore[arg-type]
    row = tab.look(request(), SimpleNamespace(_data={}))["entries"][0]
    assert (row["rater"], row["mine"], row["stars"]) == ("", False, [3.0] * 4)
    row = tab.look(request(password=":".join(OWNER)), SimpleNamespace(_data={}))["entries"][0]
    assert (row["rater"], row["mine"]) == ("ann", True)


def test_a_guest_sees_no_names_of_people_no_paths_and_no_other_runs(tmp_path: Path) -> None:
    session, access = FakeSession(tmp_path), Access(everybody=False, passwords=dict([OWNER]))
    session.rate(Act(session.upcoming("ann")[0].id, "ann", (3.0,) * 4, key="k"))
    event, owner = SimpleNamespace(_data={}), request(password=":".join(OWNER))
    made: Any = (progress.Progress, settings.SettingsPanel, runs.RunsPanel)
    tabs = [tab(session, access) for tab in made]
    seen = [tab.look(request(), event) for tab in tabs]
    assert seen[0]["log"][-1]["shares"] == {"people": 0.75, "jpeg": 0.25}
    assert (seen[1]["rows"], seen[2]["runs"]) == ([], [])
    assert all(len(tab.look(owner, event)[name]) > 1 for tab, name in zip(tabs[1:], ("rows", "runs"), strict=True))


def test_curves_have_at_most_200_points_and_keep_the_mean() -> None:
    """401 versions of one picture each: bins of three, the last of two; the mean over all stays."""
    means = [Mean(number, source, float(number), 1) for number in range(401) for source in ("jpeg", "stars")]
    stars, jpeg = progress.curves(means)
    assert (stars["source"], jpeg["source"]) == ("stars", "jpeg")
    assert len(stars["points"]) == 134
    assert stars["points"][0] == [2, 1.0]
    assert stars["points"][-1] == [400, 399.5]
    assert sum(value * 3 for _, value in stars["points"][:-1]) + 2 * 399.5 == sum(range(401))
    assert progress.curves([Mean(0, "stars", 3.0, 4), Mean(1, "stars", 4.0, 8)])[0]["points"] == [[0, 3.0], [1, 4.0]]
    assert progress.curves([]) == []


# --- the board -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "stars"),
    [
        ({"kind": "best", "best": 2, "worst": 0}, (1, 3, 5, 3)),
        ({"kind": "best", "best": 1}, (3, 5, 3, 3)),
        ({"kind": "tie"}, (3, 3, 3, 3)),
        ({"kind": "good"}, (5, 5, 5, 5)),
        ({"kind": "bad"}, (1, 1, 1, 1)),
        ({"kind": "skip"}, (None,) * 4),
        ({"kind": "undo"}, (None,) * 4),
        ({"kind": "stars", "stars": [5, None, 2, 4]}, (5, None, 2, 4)),
    ],
)
def test_a_raw_act_stands_for_stars(act: dict[str, Any], stars: tuple[float | None, ...]) -> None:
    assert board.stars(act, 4) == stars


def test_the_raw_act_is_filed_with_its_order_and_time() -> None:
    sent = {"uid": "u1", "gid": "g1", "kind": "best", "best": 2, "worst": 0, "order": [2, 0, 1, 3], "ms": 1234, "at": 99}
    assert board.read_act(sent, "ann", 4) == Act("g1", "ann", (1, 3, 5, 3), "best", 2, 0, (2, 0, 1, 3), 1234, "u1")


@pytest.mark.parametrize(
    "sent", ["text", None, {"gid": 5}, {"gid": "g", "kind": "best", "best": "2"}, {"gid": "g", "kind": "tie", "order": 5}, {"kind": "tie", "ms": -1}]
)
def test_an_act_that_is_none_is_refused(sent: Any) -> None:
    with pytest.raises(InvalidInput):
        board.read_act(sent, "ann", 4)


@pytest.fixture
def desk(tmp_path: Path) -> tuple[FakeSession, Any]:
    """A fake session and `sync(**sent)`: what the board's handler answers on loopback."""
    session = FakeSession(tmp_path)
    handlers = board.Board(session, Access(everybody=True, several=False))  # type: ignore[arg-type]
    return session, lambda **sent: handlers.sync(request(), SimpleNamespace(_data=sent))[0]


def entry(uid: str, group: str, **act: Any) -> dict[str, Any]:
    return {"uid": uid, "gid": group, "kind": "good", **act}


def test_sync_files_a_batch_and_offers_what_is_left(desk: tuple[FakeSession, Any]) -> None:
    session, sync = desk
    first, second, third = (group["id"] for group in sync(hello=True)["groups"][:3])
    said = sync(batch=[entry("u1", first), entry("u2", second)])
    assert (said["ack"], said["refused"], said["notice"]) == (["u1", "u2"], [], None)
    assert [act.key for act in session.acts] == ["u1", "u2"]
    assert said["groups"][0]["id"] == third


def test_each_tab_asks_under_its_own_name(desk: tuple[FakeSession, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    session, sync = desk
    asked: list[str] = []

    def upcoming(rater: str, limit: int, page: str) -> list[Group]:
        asked.append(page)
        return []

    monkeypatch.setattr(session, "upcoming", upcoming)
    sync(rater="ann", tab="tab 1")
    sync(rater="ann", tab="tab 2")
    assert asked == ["tab 1", "tab 2"]


def test_who_waits_gets_sketches_and_who_has_something_to_rate_gets_none(desk: tuple[FakeSession, Any]) -> None:
    session, sync = desk
    session.drafts = [Image.new("RGB", (8, 8), "red")] * 4
    assert sync()["sketches"] == []
    session.full = session.stock = 0
    said = sync(batch=[entry(f"u{i}", group["id"]) for i, group in enumerate(sync()["groups"])])
    assert said["groups"] == []
    assert len(said["sketches"]) == 4
    assert all(url.startswith("data:image/jpeg;base64,") for url in said["sketches"])


def test_sync_shows_no_seeds_before_the_rating(desk: tuple[FakeSession, Any]) -> None:
    group = desk[1]()["groups"][0]
    assert set(group) == {"id", "prompt", "version", "pictures"}
    assert all(re.fullmatch(r"gradio_api/file=/.+\.png", url) for url in group["pictures"])


def test_what_can_never_be_filed_is_acknowledged_with_its_reason(desk: tuple[FakeSession, Any]) -> None:
    session, sync = desk
    group = sync()["groups"][0]["id"]
    said = sync(batch=[entry("u1", "nowhere"), "rubbish", entry("u2", group)])
    assert said["ack"] == ["u1", None, "u2"]
    assert [sentence[:20] for sentence in said["refused"]] == ["This run has no grou", "An act must be an ob"]
    assert [act.key for act in session.acts] == ["u2"]


def test_what_could_not_be_filed_now_stays_with_the_browser(desk: tuple[FakeSession, Any]) -> None:
    session, sync = desk
    group = sync()["groups"][0]["id"]
    session.fault = OSError("No space left on device")
    said = sync(batch=[entry("u1", group)])
    assert (said["ack"], said["notice"]) == ([], board.NOT_SAVED)
    session.fault = None
    assert sync(batch=[entry("u1", group)])["ack"] == ["u1"]
    assert len(session.acts) == 1


def test_the_same_act_twice_is_one_act(desk: tuple[FakeSession, Any]) -> None:
    session, sync = desk
    group = sync()["groups"][0]["id"]
    assert sync(batch=[entry("u1", group)] * 2)["ack"] == ["u1", "u1"]
    assert len(session.acts) == 1


def test_undo_brings_the_group_back(desk: tuple[FakeSession, Any]) -> None:
    session, sync = desk
    group = sync()["groups"][0]["id"]
    sync(batch=[entry("u1", group)])
    assert sync(undo=True)["back"]["id"] == group
    assert session.acts == []
    assert sync(undo=True)["notice"] == "There is nothing to undo."


def test_revisions_only_grow_even_when_the_clock_does_not(desk: tuple[FakeSession, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(2_000_000_000_000_000_000, -10_000_000)
    monkeypatch.setattr("loophil.ui.board.time.time_ns", lambda: next(clock))
    revisions = [desk[1]()["rev"] for _ in range(3)]
    assert revisions == sorted(set(revisions))


def test_a_batch_is_bounded(desk: tuple[FakeSession, Any]) -> None:
    group = desk[1]()["groups"][0]["id"]
    assert len(desk[1](batch=[entry(f"u{i}", group) for i in range(500)])["ack"]) == board.LARGEST_BATCH
    assert desk[1](batch="rubbish")["ack"] == []


def test_facts_of_a_group_come_with_the_answer_to_its_rating(desk: tuple[FakeSession, Any]) -> None:
    session, sync = desk
    session.scores = {"clip_score": (0.1, None, 0.3, 0.4)}
    first, second, third = (group["id"] for group in sync(hello=True)["groups"][:3])
    assert sync(batch=[])["facts"] == {}
    said = sync(batch=[entry("u1", first), entry("u2", second, kind="skip"), entry("u3", "nowhere")])
    seeds = [image.seed for image in session.groups[first].images]
    assert said["facts"][first] == {"version": 0, "seeds": seeds, "scores": {"clip_score": [0.1, None, 0.3, 0.4]}}
    assert set(said["facts"]) == {first, second}
    assert sync(batch=[entry("u4", first, kind="undo")])["facts"] == {}
    assert sync(batch=[entry("u5", third), entry("u6", third, kind="undo")])["facts"] == {}


def test_no_facts_where_nothing_was_filed(desk: tuple[FakeSession, Any]) -> None:
    session, sync = desk
    group = sync()["groups"][0]["id"]
    session.fault = OSError("No space left on device")
    assert sync(batch=[entry("u1", group)])["facts"] == {}


def test_facts_that_cannot_be_read_keep_no_rating_back(desk: tuple[FakeSession, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    session, sync = desk
    group = sync()["groups"][0]["id"]
    monkeypatch.setattr(session, "revealed", lambda group: 1 / 0)
    said = sync(batch=[entry("u1", group)])
    assert (said["ack"], said["notice"], said["facts"]) == (["u1"], None, {})


def test_a_guest_rates_for_show(tmp_path: Path) -> None:
    session = FakeSession(tmp_path)
    handlers = board.Board(session, Access(everybody=False))  # type: ignore[arg-type]
    group = session.upcoming("guest")[0].id
    said, bar = handlers.sync(request(), SimpleNamespace(_data={"batch": [entry("u1", group)], "rater": "browser-1"}))
    assert (said["ack"], said["guest"], bar["may_teach"]) == (["u1"], True, False)
    assert "facts" not in said
    assert session.acts == []
    assert said["signed_in"] is None
    said, _ = handlers.sync(request(account=account("eve")), SimpleNamespace(_data={"rater": "browser-1"}))
    assert said["signed_in"] == "eve"


# --- what the browser gets -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(ASSETS.glob("*.html")), ids=lambda path: path.name)
def test_templates_hold_nothing_that_gradio_would_run(path: Path) -> None:
    assert not re.search(r"\$\{|\{\{|<script|\son\w+=", path.read_text("utf-8"))


@pytest.mark.parametrize("path", sorted(ASSETS.glob("*.js")), ids=lambda path: path.name)
def test_scripts_write_text_and_never_html(path: Path) -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|setHTML", path.read_text("utf-8"))


def test_the_page_is_configured_to_keep_and_send_nothing(own: tuple[FakeSession, str]) -> None:
    config = httpx.get(f"{own[1]}/config").json()
    assert config["analytics_enabled"] is False
    assert not config.get("run_history")
    assert config["footer_links"] == ["api"]
    assert not re.search(r"https?://(?!127\.0\.0\.1)[^\"' )]+\.(js|css|woff2)", httpx.get(own[1]).text)


# --- the door ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/upload",
        "/monitoring/summary",
        "/gradio_api/proxy=http://example.org",
        "/gradio_api/file=http://example.org",
        "/gradio_api/runs",
        "/docs",
        "/gradio_api/token",
    ],
)
def test_what_nobody_needs_is_not_there(own: tuple[FakeSession, str], path: str) -> None:
    assert httpx.get(own[1] + path).status_code == 404
    assert httpx.post(own[1] + path).status_code == 404


def test_only_pictures_are_served_from_the_run(own: tuple[FakeSession, str]) -> None:
    session, url = own
    picture = session.images / session.draw("x").images[0].file
    (session.folder / "run.sqlite").write_text("secret")
    assert httpx.get(f"{url}/gradio_api/file={picture}").content == picture.read_bytes()
    assert httpx.get(f"{url}/gradio_api/file={session.folder / 'run.sqlite'}").status_code == 403
    assert httpx.get(f"{url}/gradio_api/file={session.images}/../run.sqlite").status_code in (403, 404)


def test_a_page_of_another_site_cannot_post(own: tuple[FakeSession, str]) -> None:
    before = trace(own[0])
    for headers in ({"origin": "http://evil.example"}, {"origin": own[1], "sec-fetch-site": "cross-site"}):
        assert httpx.post(f"{own[1]}/gradio_api/run/pause", json={"data": []}, headers=headers).status_code == 403
    assert trace(own[0]) == before


@pytest.mark.parametrize(
    ("headers", "foreign"),
    [
        ({"host": "a.example"}, False),
        ({"host": "a.example", "origin": "https://a.example"}, False),
        ({"host": "localhost:7860", "origin": "https://a.dev", "x_forwarded_host": "a.dev"}, False),
        ({"host": "a.example", "origin": "https://b.example", "sec_fetch_site": "same-origin"}, False),
        ({"host": "a.example", "origin": "https://b.example"}, True),
        ({"host": "a.example", "origin": "null"}, True),
        ({"host": "a.example", "sec_fetch_site": "cross-site"}, True),
    ],
)
def test_another_site_is_told_by_what_browsers_send(headers: dict[str, Any], foreign: bool) -> None:
    assert from_another_site(request(**headers)) is foreign


def test_on_loopback_only_names_of_this_machine_are_answered(own: tuple[FakeSession, str]) -> None:
    assert httpx.get(own[1], headers={"host": "evil.example"}).status_code == 421
    assert all(names_this_machine(name) for name in ("127.0.0.1", "127.8.8.8", "localhost", "::1", "run.localhost"))
    assert not any(names_this_machine(name) for name in ("evil.example", "192.168.1.5", "localhost.evil.example", "", None))


def test_a_body_that_no_prompt_needs_is_refused(own: tuple[FakeSession, str]) -> None:
    assert httpx.post(f"{own[1]}/gradio_api/run/rate", content=b"x" * (2 << 20)).status_code == 413


def test_sign_in_asks_until_it_is_right(public: tuple[FakeSession, str], own: tuple[FakeSession, str]) -> None:
    asked = httpx.get(f"{public[1]}/sign-in")
    assert (asked.status_code, asked.headers["www-authenticate"][:6]) == (401, "Basic ")
    assert httpx.get(f"{public[1]}/sign-in", auth=OWNER).headers["location"] == "./"
    assert httpx.get(f"{own[1]}/sign-in").headers["location"] == "./"


def test_answers_tell_browsers_not_to_guess_types(own: tuple[FakeSession, str]) -> None:
    assert httpx.get(own[1]).headers["x-content-type-options"] == "nosniff"


def test_while_another_run_is_opened_the_bar_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = FakeSession(tmp_path)

    def closed() -> list[Any]:
        raise LoopHILError("The run is closed.")

    monkeypatch.setattr(session, "tallies", closed)
    assert board.Board(session, Access(everybody=True)).bar(request())["better"] is None  # type: ignore[arg-type]


def test_the_bar_says_when_little_disk_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = board.Board(FakeSession(tmp_path), Access(everybody=True))  # type: ignore[arg-type]
    for free, said in ((4.9e9, 4.9e9), (5.1e9, None)):
        monkeypatch.setattr("loophil.ui.answers.shutil.disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        assert desk.bar(request())["disk"] == said


def test_no_event_has_a_name_of_gradios_own(tmp_path: Path) -> None:
    """`change` would be fired by each new value that the handler gives, without end."""
    blocks = page(FakeSession(tmp_path), Access(everybody=True))  # type: ignore[arg-type]
    html = {component["id"] for component in blocks.get_config_file()["components"] if component["type"] == "html"}
    events = {event for d in blocks.get_config_file()["dependencies"] for owner, event in d["targets"] if owner in html}
    assert len(events) > 15
    assert events & {str(event) for event in gr.HTML.EVENTS} == set()


def test_the_page_has_room_for_the_largest_group(tmp_path: Path) -> None:
    blocks = page(FakeSession(tmp_path), Access(everybody=True))  # type: ignore[arg-type]
    templates = [component["props"].get("html_template", "") for component in blocks.get_config_file()["components"]]
    assert sum(template.count('class="lh-card"') for template in templates) == 8
