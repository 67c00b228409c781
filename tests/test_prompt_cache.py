"""Prompt embeddings on disk: what comes back, what does not, and how much of it there may be."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from loophil.prompt_cache import Halves, NoPromptCache, PromptCache, digest_of

KEY = ("float32", "a red circle", "")


def embeddings(fill: float = 1.0, size: int = 64) -> Halves:
    positive = {"encoder_hidden_states": torch.full((1, 4, size), fill), "pooled_projections": torch.full((1, 3), -fill, dtype=torch.bfloat16)}
    return positive, {name: 2 * tensor for name, tensor in positive.items()}


def same(one: Halves | None, two: Halves) -> bool:
    return one is not None and all(
        mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) and mine[name].dtype == theirs[name].dtype for name in mine)
        for mine, theirs in zip(one, two, strict=True)
    )


def test_what_was_written_comes_back_to_the_last_bit_also_to_another_process_s_cache(tmp_path: Path) -> None:
    PromptCache(tmp_path / "new", 10**6, ["sd15", "abc"]).write(KEY, embeddings())
    assert same(PromptCache(tmp_path / "new", 10**6, ["sd15", "abc"]).read(KEY), embeddings())
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".safetensors"]


@pytest.mark.parametrize(
    ("model", "key"),
    [
        (("sd15", "abd"), KEY),  # another revision
        (("sd2", "abc"), KEY),
        (("sd15", "abc"), ("float16", *KEY[1:])),
        (("sd15", "abc"), (*KEY[:2], "blue")),
        (("sd15", "abc"), ("float32", "a red", " circle")),
    ],
)
def test_anything_else_is_another_entry(model: tuple[str, str], key: tuple[str, ...], tmp_path: Path) -> None:
    PromptCache(tmp_path, 10**6, ["sd15", "abc"]).write(KEY, embeddings())
    assert PromptCache(tmp_path, 10**6, model).read(key) is None


def test_a_family_without_a_negative_half_keeps_one(tmp_path: Path) -> None:
    half = embeddings()[0]
    cache = PromptCache(tmp_path, 10**6)
    cache.write(KEY, (half, half))
    kept = cache.read(KEY)
    assert same(kept, (half, half))
    assert kept is not None
    assert kept[0] is kept[1]


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"{}", None])
def test_a_damaged_file_is_nothing_and_is_written_anew(content: bytes | None, tmp_path: Path) -> None:
    cache = PromptCache(tmp_path, 10**6)
    cache.write(KEY, embeddings())
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-9] if content is None else content)
    assert cache.read(KEY) is None
    cache.write(KEY, embeddings(3.0))
    assert same(cache.read(KEY), embeddings(3.0))


def test_a_file_of_something_else_is_nothing(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path, 10**6)
    cache.write(KEY, ({"other": torch.ones(1)}, {}))
    assert cache.read(KEY) is None


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path, 10**6)
    cache.write(KEY, embeddings())
    (file,) = tmp_path.iterdir()
    cache.limit = int(2.5 * file.stat().st_size)
    keys = [(name,) for name in "abc"]
    file.unlink()
    for age, key in enumerate(keys[:2]):
        cache.write(key, embeddings())
        os.utime(cache._path(key), (1000 + age, 1000 + age))
    assert cache.read(keys[0]) is not None  # used: younger than b from now on
    cache.write(keys[2], embeddings())
    assert [cache.read(key) is not None for key in keys] == [True, False, True]


def test_a_disk_that_takes_nothing_is_said_and_borne(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    PromptCache(tmp_path / "file", 10**6).write(KEY, embeddings())
    assert "Prompt embeddings were not kept" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_nothing_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    PromptCache(tmp_path, 10**6).write(KEY, embeddings())
    assert list(tmp_path.iterdir()) == []


def test_no_cache_keeps_nothing() -> None:
    cache = NoPromptCache()
    cache.write(KEY, embeddings())
    assert cache.read(KEY) is None


def test_text_encoders_are_told_apart_by_every_weight() -> None:
    def encoders() -> list[nn.Module]:
        torch.manual_seed(0)
        return [nn.Linear(3, 2), nn.Embedding(5, 2)]

    first, other = encoders(), encoders()
    assert digest_of(first) == digest_of(other)
    with torch.no_grad():
        next(other[1].parameters())[0, 0] += 1
    assert len({digest_of(first), digest_of(other), digest_of(first[:1]), digest_of([each.half() for each in encoders()])}) == 4
