"""Publishing an exported LoRA on the Hugging Face Hub: a repository, and everything in it by one commit, under the person's own token.

Not the making of the files and their card (export.py), and nothing is fetched here to be used. A token is handed to huggingface_hub and to nobody
else: it is kept in no file, and no sentence quotes it. Whatever goes wrong is said in a sentence of our own, because that library's messages may
hold addresses and whatever a server answered.
"""

import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, ModelInfo, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but its __init__ does not say so to type checkers

from loophil.errors import InvalidInput, LoopHILError
from loophil.model_card import TAG, WEIGHTS, hub_id
from loophil.types import Licence

TOKEN = re.compile(r"[!-~]{1,500}")  # what may stand in an HTTP header, without blanks
TOKENS = "https://huggingface.co/settings/tokens"
ONE_COMMIT = "the repository holds all of this push or nothing of it, so push again"
OURS = re.compile(  # what the formats of export.py are made of
    rf"{re.escape(WEIGHTS)}|adapter_model\.safetensors|adapter_config\.json|[a-z0-9][a-z0-9_-]*-v\d+-kohya\.safetensors|images/(base|tuned)_\d+\.png"
)
LONGEST_ANSWER = 300  # characters of what the Hub says that are passed on


@dataclass(frozen=True)
class PushStep:
    """What a push is doing now, in words; `address`: of the repository, once all of it is there."""

    doing: str
    address: str = ""


class Repository:
    """A model repository on the Hub, there or to be made, and the token under which it is used.

    Raises InvalidInput for what the person can put right (name, token, rights), LoopHILError for the network and the Hub.
    """

    def __init__(self, name: str, token: str = "") -> None:
        """`name` is USER/REPO; `token` "" = HF_TOKEN, else what `hf auth login` stored. Nothing is asked of the Hub yet."""
        self.name = name.strip()
        try:
            validate_repo_id(self.name)
            valid = self.name.count("/") == 1
        except HFValidationError:
            valid = False
        if not valid:  # not quoted: it may be a token that was put into the wrong field
            raise InvalidInput("A repository is named USER/REPO, with letters, digits, '-', '_' and '.' alone, at most 96 of them: correct its name.")
        self._token = token.strip() or _token_of_this_machine()
        if not TOKEN.fullmatch(self._token):
            raise InvalidInput(f"What was given as the token is none: copy it anew from {TOKENS}.")
        self._api = HfApi(token=self._token)

    def sign_in(self) -> None:
        """Asks the Hub whose token it is: what cannot work is then known before anything is drawn."""
        with self._telling("The Hub cannot be reached at {endpoint}: check the network, then push again."):
            try:
                self._api.whoami()
            except HfHubHTTPError as error:
                if error.response.status_code == 403:
                    raise self._refused() from None
                raise

    def licence_of(self, base: str) -> Licence:
        """The licence that the Hub states of a base model, with nothing in it where it states none or where the base is not from there."""
        if not hub_id(base):
            return Licence()
        try:
            card = self._api.model_info(base).card_data
        except Exception:  # not on the Hub, closed to this person, no answer: the card then claims nothing
            return Licence()
        stated = (getattr(card, fact, None) for fact in ("license", "license_name", "license_link"))
        id, name, link = (fact if isinstance(fact, str) and fact.isprintable() else "" for fact in stated)
        if link and not link.startswith(("https://", "http://")):  # a file beside the base's card, which ours does not lie beside
            link = f"{self._api.endpoint}/{base}/blob/main/{link}"
        return Licence(id, name, link)

    def push(self, files: Mapping[str, bytes], message: str, *, private: bool = False) -> str:
        """Makes the repository if need be, and one commit of all files; its address. `files` hold a README.md, the card.

        What an earlier push left there and this one lacks goes by the same commit: programs would load it instead.
        """
        with self._telling(f"The connection broke off during the upload: {ONE_COMMIT}."):
            self._check_card(files["README.md"].decode())
            made = self._api.create_repo(self.name, private=private or None, exist_ok=True)
            there = self._api.model_info(self.name)
            if private and not there.private:
                raise InvalidInput(f"{self.name} is there already, and public: make it private at {made}/settings, or choose another name.")
            additions = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=content) for path, content in sorted(files.items())]
            deletions = [CommitOperationDelete(path) for path in _left_by_pushes(there) if path not in files]
            self._api.create_commit(self.name, [*additions, *deletions], commit_message=message)
        return str(made)

    def _check_card(self, card: str) -> None:
        """Before anything is made: the Hub takes no card with, for example, a licence that it does not know."""
        try:
            ModelCard(card).validate()
        except HfHubHTTPError:
            raise
        except ValueError as error:
            faults = self._plain(_messages(str(error)))
            raise InvalidInput(f"The Hub does not take this card ({faults}): correct the licence, the trigger phrase or the prompts.") from None

    @contextmanager
    def _telling(self, broken: str) -> Iterator[None]:
        """Whatever goes wrong inside becomes one sentence; `broken` is the one where no answer came. Causes are dropped: they may quote anything."""
        try:
            yield
        except LoopHILError:
            raise
        except HfHubHTTPError as error:
            raise self._answered(error) from None
        except OfflineModeIsEnabled:
            raise LoopHILError("This machine is told to stay offline: unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE, then push again.") from None
        except Exception:
            raise LoopHILError(broken.format(endpoint=self._api.endpoint)) from None

    def _answered(self, error: HfHubHTTPError) -> LoopHILError:
        status = error.response.status_code
        if status == 401:
            return self._refused()
        if status in (403, 404):  # 404: a repository of somebody else's that this person may not even see
            return InvalidInput(
                f"This token may not write to {self.name}: choose a name under your own account, or make a token with the right to write at {TOKENS}."
            )
        said = self._plain(error.server_message or "")
        return LoopHILError(f"The Hub answered {status}{f' ({said})' if said else ''}: {ONE_COMMIT} later.")

    def _refused(self) -> InvalidInput:
        return InvalidInput(f"The Hub refused the token: make one with the right to write at {TOKENS}.")

    def _plain(self, text: str) -> str:
        """What the Hub said as it may stand in a sentence: one short line, and without the token, should it have been sent back."""
        line = " ".join(text.replace(self._token, "...").split()).rstrip(".")
        return line if len(line) <= LONGEST_ANSWER else f"{line[:LONGEST_ANSWER]} ..."


def exported_files(path: Path) -> tuple[str, dict[str, bytes]]:
    """The export's name and all of its files with their contents, of the one file that `export` gave."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return path.stem, {name: archive.read(name) for name in archive.namelist()}
    files = (file for file in path.parent.rglob("*") if file.is_file())
    return path.stem, {file.relative_to(path.parent).as_posix(): file.read_bytes() for file in files}


def _left_by_pushes(there: ModelInfo) -> list[str]:
    """The files of a repository that LoopHIL has written, but its card; none where the card is another program's."""
    tags = there.card_data.tags if there.card_data else None
    if not isinstance(tags, list) or TAG not in tags:
        return []
    return [file.rfilename for file in there.siblings or () if OURS.fullmatch(file.rfilename)]


def _token_of_this_machine() -> str:
    try:
        token = get_token()
    except Exception:  # a stored sign-in that has run out and cannot be renewed
        raise InvalidInput("The Hugging Face token of this machine cannot be read: run `hf auth login` again, or set HF_TOKEN.") from None
    if not token:
        raise InvalidInput(f"There is no Hugging Face token: make one with the right to write at {TOKENS}, then set HF_TOKEN or run `hf auth login`.")
    return token


def _messages(answer: str) -> str:
    """What the Hub says of a card: {"errors": [{"message": ...}]}, or text."""
    try:
        return "; ".join(fault["message"] for fault in json.loads(answer)["errors"])
    except (ValueError, KeyError, TypeError):
        return answer
