"""Why a base could not be loaded: one sentence with the remedy, from whatever diffusers and huggingface_hub raised. Loads nothing itself.

diffusers puts its own words in front of the Hub's errors, so the reason is looked for in the whole chain. No token ever stands in a sentence.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence

from huggingface_hub import errors

TOKEN = re.compile(r"hf_\w{8,}")
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
# What the Hub's client raises when nobody answers: httpx's, httpx2's or requests', by the release of huggingface_hub.
HTTPError: type[Exception] = next(kind for kind in errors.HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
# RuntimeError is what the Hub's newer transport (Xet) raises for everything, and torch for what does not fit.
FAILURES = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    RuntimeError,
    MemoryError,
    HTTPError,
    errors.EntryNotFoundError,
    errors.RevisionResolutionError,
    errors.StrictDataclassError,
)
FULL = re.compile(r"no space left|os error 28|quota exceeded", re.IGNORECASE)
TRANSPORT = re.compile(r"task error|cas client|xet", re.IGNORECASE)
MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory", re.IGNORECASE)
GIVE = "Give a diffusers folder, a .safetensors checkpoint or a Hub id by --model."


def why(error: BaseException, model: str, revision: str | None = None) -> str:
    """The reason and what helps, of an error that loading this model raised."""
    chain = list(_chain(error))
    return _here(error, chain) or _there(error, chain, model, revision) or f"{_first_line(error).rstrip('.')}. {GIVE}"


def _here(error: BaseException, chain: Sequence[BaseException]) -> str:
    """What this machine lacks, "" = nothing that is known."""

    def says(words: re.Pattern[str]) -> bool:
        return any(isinstance(each, RuntimeError) and words.search(str(each)) for each in chain)

    if says(FULL) or any(isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT) for each in chain):
        return "the disk is full. Free some of it, or set HF_HOME to a folder on another disk."
    if says(MEMORY) or any(isinstance(each, MemoryError) for each in chain):
        return "there is not enough memory for it. Close other programs, or choose a smaller model."
    if says(TRANSPORT):
        return f"its download broke off ({_first_line(error)}). Check the network, and try again: what is there already is kept."
    return ""


def _there(error: BaseException, chain: Sequence[BaseException], model: str, revision: str | None) -> str:
    """What the Hub says, or that it says nothing."""
    page = f"https://huggingface.co/{model}"

    def is_one(*kinds: type[BaseException]) -> bool:
        return any(isinstance(each, kinds) for each in chain)

    if is_one(errors.GatedRepoError):
        return f"it is gated. Accept its terms at {page}, and set HF_TOKEN to a token of that account."
    if is_one(errors.RevisionNotFoundError):
        return f"it has no revision '{revision}'. Choose one of {page}/commits/main by --revision."
    if is_one(errors.RepositoryNotFoundError):
        return "the Hub has no such model, or it is private. Check the name, or set HF_TOKEN to a token that may read it."
    if is_one(errors.OfflineModeIsEnabled):
        return "it was not downloaded yet, and HF_HUB_OFFLINE forbids it. Start once without HF_HUB_OFFLINE, or give a folder by --model."
    if any(isinstance(each, errors.EntryNotFoundError) and not isinstance(each, errors.LocalEntryNotFoundError) for each in chain):
        return f"a file of a diffusers pipeline in .safetensors is missing from it ({_first_line(error)}). {GIVE}"
    if answers := [each.response.status_code for each in chain if isinstance(each, errors.HfHubHTTPError)]:
        remedy = "Set HF_TOKEN to a token that may read it." if answers[0] in (401, 403) else "Try again later."
        return f"the Hub answered {answers[0]}. {remedy}"
    if is_one(errors.LocalEntryNotFoundError, errors.RevisionResolutionError, HTTPError):
        return "it was not downloaded yet, and the Hub cannot be reached. Check the network, or give a folder by --model."
    if is_one(errors.HFValidationError):
        return f"there is no such folder or file, and it is not a Hub id. {GIVE}"
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    """What it says, in one line and without any token."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    for token in filter(None, map(os.environ.get, TOKENS)):
        line = line.replace(token, "***")
    return TOKEN.sub("***", line)
