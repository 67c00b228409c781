"""Who may do what: one object asked inside every handler.

`api_visibility`, `gr.State` and `session_hash` are no protection in Gradio: every handler can be called over plain HTTP by anybody who reaches
the page. So a handler that teaches or changes something asks `Access.teacher` first. Identity comes from the request alone: the signed Hugging
Face session on a Space, or a name and password by HTTP Basic (a browser sends them with every request after /sign-in; a client sets the header).

On loopback, and with --public, everybody may do everything. With --auth, sign-in counts on loopback too: somebody put a proxy in front.
Two things are never a rater's, where others than the owner may come (`Access.owner`): what is published elsewhere, and under whose token; and what
ratings are brought from elsewhere.
"""

import base64
import binascii
import hmac
import os
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loophil.config import Settings, is_public
from loophil.errors import ConfigError, InvalidInput
from loophil.ui import parse

if TYPE_CHECKING:
    from loophil.runs import Runs
    from loophil.session import Session

SHORTEST_PASSWORD = 8
WRONG_PER_MINUTE = 10
GUEST = "guest"  # the rater whose groups somebody sees who may not teach; nothing is ever stored under it
SOMEBODY = "me"  # who rates where nobody has to sign in and no name was given


@dataclass(frozen=True)
class Access:
    """`everybody` may do everything; else only `members` (Hugging Face user names) and the names in `passwords`.

    several   more than one person may come, so each browser rates under a name of its own
    owners    of the members or passwords: who may publish. On a Space its author, elsewhere the first name in --auth
    """

    everybody: bool
    several: bool = True
    members: frozenset[str] = frozenset()
    passwords: Mapping[str, str] = field(default_factory=dict)
    owners: frozenset[str] = frozenset()
    _wrong: dict[str, deque[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings) -> "Access":
        """From the settings and, on a Space, its author; raises ConfigError for a list of names that cannot work."""
        on_space = "SPACE_ID" in os.environ
        author = {os.environ["SPACE_AUTHOR_NAME"]} if on_space and os.environ.get("SPACE_AUTHOR_NAME") else set()
        members = set(author)
        passwords = {}
        for pair in filter(None, (part.strip() for part in settings.auth.split(","))):
            name, colon, password = pair.partition(":")
            if not colon and on_space:
                members.add(name)  # a Hugging Face user who signs in there
            elif not name or len(password) < SHORTEST_PASSWORD:
                raise ConfigError(f"auth: '{name}' needs name:password with at least {SHORTEST_PASSWORD} characters in the password.")
            else:
                passwords[name] = password
        owners = frozenset(author if on_space else list(passwords)[:1])
        several = settings.public or is_public(settings) or bool(passwords)
        return cls(settings.public or not several, several, frozenset(members), passwords, owners)

    def signed_in(self, request: Any) -> str | None:
        """The name that a gr.Request or fastapi.Request proves, whether or not it is on the list; None = none."""
        request = getattr(request, "request", request)
        account = _hugging_face_account(request)
        return account or self._by_password(request)

    def teacher(self, request: Any, claimed: str = "") -> str:
        """The rater to record. Raises InvalidInput where this request may neither teach nor change the run, or claims another's name."""
        name = self.signed_in(request)
        if self.everybody:
            return claimed or name or SOMEBODY
        if name is None:
            raise InvalidInput("You may look and try a demo group; sign in to teach the model or to change the run.")
        if name not in self.members and name not in self.passwords:
            # only accounts are on no list, so this is a Space, which has variables and no flags
            raise InvalidInput(f"{parse.shown(name)} is not on this run's list of raters; its owner can add the name to LOOPHIL_AUTH.")
        if claimed not in ("", name):
            raise InvalidInput(f"You are signed in as {name}: send that as the rater, or nothing.")
        return name

    def owner(self, request: Any) -> str:
        """Who publishes. Raises InvalidInput for anybody but the run's owner; on a machine of one's own that is whoever is there."""
        if not self.is_owner(request):
            raise InvalidInput("Only the run's owner may do that: sign in as the owner, or use `python -m loophil` where the run lies.")
        return self.signed_in(request) or SOMEBODY

    def is_owner(self, request: Any) -> bool:
        """Whether `owner` would let them."""
        return not self.several or self.signed_in(request) in self.owners

    def board_rater(self, request: Any, browser: str, name: str = "") -> str:
        """Who the board's acts are filed under: the one who signed in, else the name that somebody gave themselves, else one for each browser.

        On a machine of one's own every browser without a name is the same person.
        """
        return self.teacher(request, self.signed_in(request) or name or (browser if self.several else ""))

    def may_teach(self, request: Any) -> bool:
        """Whether `teacher` would let this request through."""
        return self.everybody or self.signed_in(request) in self.members | set(self.passwords)

    def _by_password(self, request: Any) -> str | None:
        """The name in a right `Authorization: Basic` header. After 10 wrong ones in a minute an address has to wait."""
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic" or not self.passwords:
            return None
        try:
            name, _, password = base64.b64decode(credentials, validate=True).decode("utf-8").partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        wrong = self._wrong.setdefault(request.client.host if request.client else "", deque(maxlen=WRONG_PER_MINUTE))
        if len(wrong) == WRONG_PER_MINUTE and time.monotonic() - wrong[0] < 60:
            return None
        if hmac.compare_digest(self.passwords.get(name, "").encode(), password.encode()) and name in self.passwords:
            return name
        wrong.append(time.monotonic())
        return None


class Handlers:
    """What all handlers stand on: whichever run is open, and who may do what in it."""

    def __init__(self, runs: "Runs", access: Access) -> None:
        self.runs = runs
        self.access = access

    @property
    def session(self) -> "Session":
        """The open run."""
        return self.runs.session

    def rater(self, request: Any, sent: Mapping[str, Any]) -> str:
        """Under which name what this component sent is filed, GUEST for somebody who may not teach."""
        if not self.access.may_teach(request):
            return GUEST
        return self.access.board_rater(request, parse.text(sent.get("rater"), "rater"), parse.text(sent.get("who"), "name"))


def _hugging_face_account(request: Any) -> str | None:
    """The Hub user of Gradio's signed session cookie (set by its OAuth routes, on Spaces only), unless it has run out."""
    account = request.scope.get("session", {}).get("oauth_info") or {}
    if account.get("expires_at", 0) < time.time():
        return None
    name = account.get("userinfo", {}).get("preferred_username")
    return name if isinstance(name, str) else None
