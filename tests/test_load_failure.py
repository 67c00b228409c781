"""Why a base could not be loaded: the sentence and the remedy, for what the Hub's client really raises. Only its HTTP transport is replaced."""

import errno
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import constants
from huggingface_hub.utils._http import default_client_factory

from loophil.errors import ConfigError
from loophil.load_failure import HTTPError, why
from loophil.pipeline import load_pipeline
from tests.tiny import tiny_pipeline

http: Any = importlib.import_module(HTTPError.__module__.partition(".")[0])  # httpx or httpx2, whichever the Hub's client uses
SECRET = "hf_" + "s3cret" * 5
FULL, SAME_FULL = OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Disk quota exceeded")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty cache, the network allowed, and the usual client afterwards."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its tries
    yield
    huggingface_hub.set_client_factory(default_client_factory)
    huggingface_hub.close_session()


def answer(code: int = 200, said: str = "", error: Exception | None = None) -> None:
    """All that the Hub does from now on."""

    def handle(request: Any) -> Any:
        if error:
            raise error
        return http.Response(code, headers={"X-Error-Code": said} if said else {}, request=request)

    huggingface_hub.set_client_factory(lambda: http.Client(transport=http.MockTransport(handle)))
    huggingface_hub.close_session()


@pytest.mark.parametrize(
    ("hub", "sentence"),
    [
        ({"code": 403, "said": "GatedRepo"}, "it is gated. Accept its terms at https://huggingface.co/some/model, and set HF_TOKEN to a token"),
        ({"code": 401, "said": "RepoNotFound"}, "the Hub has no such model, or it is private. Check the name, or set HF_TOKEN"),
        ({"code": 404, "said": "RevisionNotFound"}, "it has no revision 'abc'. Choose one of https://huggingface.co/some/model/commits/main by"),
        ({"code": 404, "said": "EntryNotFound"}, "a file of a diffusers pipeline in .safetensors is missing from it"),
        ({"code": 403}, "the Hub answered 403. Set HF_TOKEN to a token that may read it."),
        ({"code": 400}, "the Hub answered 400. Try again later."),
        ({"error": http.ConnectError("no route")}, "it was not downloaded yet, and the Hub cannot be reached. Check the network, or give a folder"),
        ({"error": http.ReadTimeout("slow")}, "it was not downloaded yet, and the Hub cannot be reached"),
        ({"error": FULL}, "the disk is full. Free some of it, or set HF_HOME to a folder on another disk."),
        ({"error": SAME_FULL}, "the disk is full"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
@pytest.mark.usefixtures("cache")
def test_what_the_hub_says_becomes_a_sentence_with_the_remedy(hub: dict[str, Any], sentence: str, caplog: pytest.LogCaptureFixture) -> None:
    answer(**hub)
    with pytest.raises(ConfigError) as told:
        load_pipeline("some/model", "abc", torch.device("cpu"))
    assert str(told.value).startswith(f"The model 'some/model' cannot be loaded: {sentence}")
    assert SECRET not in str(told.value) + caplog.text


@pytest.mark.usefixtures("cache")
def test_a_model_that_was_not_downloaded_before_going_offline_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="not downloaded yet, and HF_HUB_OFFLINE forbids it"):
        load_pipeline("some/model", None, torch.device("cpu"))


def test_what_is_neither_folder_nor_id_is_told() -> None:
    with pytest.raises(ConfigError, match=r"there is no such folder or file, and it is not a Hub id\. Give a diffusers folder"):
        load_pipeline("/no/such/folder", None, torch.device("cpu"))


def test_a_token_is_in_no_sentence_whatever_its_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "of-another-form")
    said = why(ValueError(f"Bearer {SECRET} and of-another-form\nwere refused"), "some/model")
    assert said.startswith("Bearer *** and ***. Give a diffusers folder")


def test_an_error_without_words_is_told_by_its_name() -> None:
    assert why(ValueError(), "some/model").startswith("ValueError. Give")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RuntimeError("Task error: File reconstruction error: IO Error: No space left on device (os error 28)"), "the disk is full"),
        (RuntimeError("Task error: CAS Client Error: 403 Forbidden"), "its download broke off (Task error: CAS Client Error: 403 Forbidden)."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), "there is not enough memory for it."),
        (MemoryError(), "there is not enough memory for it."),
        (KeyError("scaling_factor"), "'scaling_factor'. Give a diffusers folder"),
    ],
    ids=str,
)
def test_what_the_transport_and_torch_raise_becomes_a_sentence_too(
    error: Exception, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **more: Any) -> Any:
        raise error

    tiny_pipeline().save_pretrained(tmp_path)
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", fails)
    with pytest.raises(ConfigError) as told:
        load_pipeline(str(tmp_path), None, torch.device("cpu"))
    assert str(told.value).startswith(f"The model '{tmp_path}' cannot be loaded: {sentence}")
