"""Reward models: found by name or in a file, missing when they fail, and each measures what it says.

open_clip is the real one, with a model of a few thousand random weights in a folder like `data/clip/`.
"""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from data.scenes import Scene, Style, Thing, render
from rewards import REWARDS, RewardError, Scores, features, load, scale_of, score_safely
from rewards.clip_score import ClipScore
from rewards.features import PIXEL_STATISTICS, Features, pixel_statistics, shared_features
from rewards.jpeg import Jpeg
from rewards.scene_check import SceneCheck
from tests.tiny import TOKENS, tiny_tokenizer

GREY = Image.new("RGB", (512, 512), (128, 128, 128))
RED_CIRCLE = render(Scene((Thing("circle", "red", "solid"),), None, "light"), Style(), np.random.default_rng(0))


def noise(side: int = 512) -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (side, side, 3), dtype=np.uint8))


# ---- by name ----


def test_unknown_reward_names_the_known_ones_sorted() -> None:
    with pytest.raises(RewardError, match=r"Unknown reward 'pick'. Choose from: aesthetic, clip_score, hpsv2, .*, vqa; .*FILE.py:FUNCTION"):
        load("pick")
    assert list(REWARDS) == sorted(REWARDS)


@pytest.mark.parametrize("name", REWARDS)
def test_rewards_carry_the_name_they_are_loaded_by_and_a_scale(name: str) -> None:
    assert load(name).name == name
    assert scale_of(name) == load(name).scale > 0


def test_names_and_scales_are_known_without_torch() -> None:
    code = "import sys, rewards; [rewards.scale_of(n) for n in rewards.REWARDS]; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_function_in_a_file_is_a_reward(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def widths(images, prompts):\n    return [i.width if p else None for i, p in zip(images, prompts)]\nwidths.scale = 8\n")
    reward = load(f"{file}:widths")
    assert (reward.name, reward.scale) == (f"{file}:widths", 8.0)
    np.testing.assert_equal(reward.score([GREY, RED_CIRCLE, GREY], ["a", "b", ""]).value, [512, 64, np.nan])


def test_a_function_without_a_scale_has_scale_1_and_its_file_may_hold_dataclasses(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n@dataclass\nclass One:\n    x: int\n\n"
        "def ones(images, prompts):\n    return [One(1).x for _ in images]\n"
    )
    reward = load(f"{file}:ones")
    assert reward.scale == 1.0
    assert reward.score([GREY], ["a"]).value.tolist() == [1.0]


@pytest.mark.parametrize(
    ("text", "function", "message"),
    [
        (None, "f", "There is no file .*mine.py"),
        ("x = 1\n", "f", "mine.py has no function 'f'"),
        ("x = 1\n", "x", "mine.py has no function 'x'"),
        ("x = = 1\n", "f", "mine.py cannot be imported: SyntaxError"),
        ("def f(i, p): ...\nf.scale = 0\n", "f", "The scale of .* is 0: it must be a number above 0"),
        ("def f(i, p): ...\nf.scale = 'wide'\n", "f", "The scale of .* is 'wide'"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, text: str | None, function: str, message: str) -> None:
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    with pytest.raises(RewardError, match=message):
        load(f"{tmp_path / 'mine.py'}:{function}")


def test_a_folder_called_like_a_file_is_no_reward(tmp_path: Path) -> None:
    (tmp_path / "mine.py").mkdir()
    with pytest.raises(RewardError, match="There is no file"):
        load(f"{tmp_path / 'mine.py'}:f")


# ---- missing, never 0 ----


@dataclass(frozen=True)
class Fake:
    """A reward that answers what it is told to, or raises it."""

    answer: Scores | Exception
    name: str = "fake"
    scale: float = 1.0

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Scores:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "expected", "reason"),
    [
        (Scores(np.array([1.0, 2.0])), [1, 2], None),
        (RuntimeError("out of memory"), [math.nan, math.nan], "'fake' failed: RuntimeError: out of memory"),
        (Scores(np.array([1.0])), [math.nan, math.nan], "'fake' gave 1 scores for 2 pictures."),
        (Scores(np.array([math.nan, 2.0])), [math.nan, 2], "'fake' has no score for 1 of 2 pictures."),
        (Scores(np.array([math.inf, -math.inf])), [math.nan, math.nan], "'fake' has no score for 2 of 2 pictures."),
    ],
)
def test_what_goes_wrong_is_missing_with_a_reason(answer: Scores | Exception, expected: list[float], reason: str | None) -> None:
    scores, why = score_safely(Fake(answer), [GREY, GREY], ["a", "a"])
    np.testing.assert_equal(scores.value, expected)
    assert why == reason


def test_a_missing_score_has_no_std_and_the_rewards_own_arrays_stay_as_they_are() -> None:
    given = Scores(np.array([math.inf, 2.0]), np.array([0.1, 0.2]))
    scores, _ = score_safely(Fake(given), [GREY, GREY], ["a", "a"])
    assert scores.std is not None
    np.testing.assert_equal(scores.std, [math.nan, 0.2])
    assert given.value.tolist() == [math.inf, 2.0]


def test_a_function_that_returns_nonsense_is_missing(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f(images, prompts):\n    return None\n\ndef g(images, prompts):\n    return ['high']\n")
    for function in "fg":
        scores, why = score_safely(load(f"{tmp_path / 'mine.py'}:{function}"), [GREY], ["a"])
        assert np.isnan(scores.value).tolist() == [True]
        assert why is not None
        assert "failed" in why


def test_as_many_prompts_as_pictures_are_needed() -> None:
    with pytest.raises(ValueError, match="2 pictures came with 1 prompts"):
        score_safely(Jpeg(), [GREY, GREY], ["a"])


def test_scores_are_one_number_for_each_picture() -> None:
    with pytest.raises(ValueError, match="one number for each picture"):
        Scores(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="one number for each picture"):
        Scores(np.zeros(2), np.zeros(3))


# ---- jpeg ----


def test_jpeg_is_minus_kilobytes_at_quality_95() -> None:
    """Sizes measured once with Pillow 12.3: flat grey 4.721 kB, noise 308.2 kB; within 1%."""
    value = Jpeg().score([GREY, noise()], ["", ""]).value
    np.testing.assert_allclose(value, [-4.721, -308.2], rtol=0.01)
    np.testing.assert_array_equal(Jpeg(sign=1).score([GREY, noise()], ["", ""]).value, -value)


def test_jpeg_incompressible_is_the_size_itself() -> None:
    np.testing.assert_array_equal(load("jpeg_incompressible").score([noise()], [""]).value, -load("jpeg").score([noise()], [""]).value)


def test_jpeg_takes_any_mode() -> None:
    modes = [GREY.convert(mode) for mode in ("L", "RGBA", "P", "1")]
    assert np.isfinite(Jpeg().score(modes, [""] * 4).value).all()


# ---- scene_check ----


def test_scene_check_is_the_share_of_stated_attributes_that_show() -> None:
    """A red circle on light ground. Stated: count, shape, colour, texture, background."""
    prompts = ["a solid red circle on a light background", "a red square", "two blue hearts at night", "a photo of a cat"]
    value = SceneCheck().score([RED_CIRCLE] * 4, prompts).value
    np.testing.assert_allclose(value, [1, 2 / 3, 0, math.nan])


# ---- open_clip ----


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like `data/clip/`: configuration, safetensors and tokenizer of a CLIP that sees 16 x 16 pixels."""
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    tokenizer = tiny_tokenizer()
    model_cfg: dict[str, Any] = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
        "text_cfg": {"context_length": TOKENS, "vocab_size": len(tokenizer), "width": 32, "heads": 2, "layers": 1, "hf_tokenizer_name": "clip"},
    }
    config = {"model_cfg": model_cfg, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(open_clip.CLIP(**model_cfg).state_dict(), folder / "open_clip_model.safetensors")
    tokenizer.save_pretrained(folder)
    return folder


def test_features_have_length_1_and_do_not_depend_on_the_batch(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "BATCH", 2)
    model = Features(str(clip))
    pictures = [GREY, RED_CIRCLE, noise(64)]
    rows = model.images(pictures)
    assert rows.shape == (3, 16)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(rows[2], model.images(pictures[2:])[0], rtol=1e-4, atol=1e-6)
    assert np.abs(rows[0] - rows[1]).max() > 1e-3


def test_equal_prompts_have_equal_features_in_the_order_given(clip: Path) -> None:
    rows = Features(str(clip)).texts(["a star", "a moon", "a star"])
    np.testing.assert_array_equal(rows[0], rows[2])
    assert np.abs(rows[0] - rows[1]).max() > 1e-3


def test_pixel_statistics_say_what_their_names_say() -> None:
    """Red on the left quarter of black: its centre is 3/8 left of the middle, half of the columns differ from their mirror image."""
    pixels = np.zeros((128, 128, 3), dtype=np.uint8)
    pixels[:, :32, 0] = 255
    grey, picture = (dict(zip(PIXEL_STATISTICS, row, strict=True)) for row in pixel_statistics([GREY, Image.fromarray(pixels)]))
    light = 0.299
    assert (picture["red"], picture["green"], picture["saturation"]) == pytest.approx((0.25, 0, 0.25))
    assert picture["contrast"] == pytest.approx(light * math.sqrt(0.25 * 0.75))
    assert picture["edges"] == pytest.approx(light / 63)
    assert (picture["centre_x"], picture["centre_y"], picture["off_centre"]) == pytest.approx((-3 / 8, 0, 3 / 8), abs=1e-6)
    assert (picture["left_right_asymmetry"], picture["up_down_asymmetry"]) == pytest.approx((light / 2, 0))
    assert (grey["red"], grey["contrast"], grey["off_centre"]) == pytest.approx((128 / 255, 0, 0), abs=1e-9)
    assert pixel_statistics([]).shape == (0, len(PIXEL_STATISTICS))


def test_nothing_has_no_features(clip: Path) -> None:
    assert Features(str(clip)).images([]).shape[0] == 0


def test_clip_score_is_the_cosine_of_picture_and_prompt(clip: Path) -> None:
    model = shared_features(str(clip))
    pictures, prompts = [RED_CIRCLE, GREY], ["a red circle", "grey"]
    reward = ClipScore(str(clip))
    np.testing.assert_allclose(reward.score(pictures, prompts).value, np.diag(model.images(pictures) @ model.texts(prompts).T), rtol=1e-4, atol=1e-6)


def test_rewards_share_one_model(clip: Path) -> None:
    assert shared_features(str(clip)) is shared_features(str(clip), device="cpu")


def test_clip_score_of_the_registry_reads_the_embedded_folder(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path(features.EMBEDDED).parts[-2:] == ("data", "clip")
    monkeypatch.setattr(features, "EMBEDDED", str(clip))
    assert np.isfinite(load("clip_score").score([GREY], ["grey"]).value).all()


def test_clip_score_without_its_weights_is_missing_with_a_reason(tmp_path: Path) -> None:
    scores, why = score_safely(ClipScore(str(tmp_path)), [GREY], ["grey"])
    assert np.isnan(scores.value).all()
    assert why is not None
    assert "has no safetensors file" in why


def test_local_dir_prefix_is_open_clips_own(clip: Path) -> None:
    np.testing.assert_array_equal(Features(f"local-dir:{clip}").texts(["a"]), Features(str(clip)).texts(["a"]))


def test_a_folder_with_a_pickle_alone_is_refused(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_bytes((clip / "open_clip_config.json").read_bytes())
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(RewardError, match=r"cannot be loaded: .* has no safetensors file\. Give a folder"):
        Features(str(tmp_path))


def test_a_checkpoint_from_elsewhere_that_is_a_pickle_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from open_clip import pretrained

    monkeypatch.setattr(pretrained, "download_pretrained", lambda _cfg: "/cache/ViT-B-32.pt")
    monkeypatch.setattr(pretrained, "download_pretrained_from_hf", lambda _id: "/cache/open_clip_pytorch_model.bin")
    with pytest.raises(RewardError, match=r"its weights come as 'ViT-B-32\.pt', not as safetensors"):
        Features("ViT-B-32:openai")
    with pytest.raises(RewardError, match=r"its weights come as 'open_clip_pytorch_model\.bin'"):
        Features("hf-hub:someone/clip")


@pytest.mark.parametrize("model", ["/nowhere/clip", "ViT-B-32:no-such-tag", "no-such-architecture:openai"])
def test_a_model_that_is_not_there_says_what_would_do(model: str) -> None:
    with pytest.raises(RewardError, match=rf"The CLIP model '{model}' cannot be loaded: .*ARCHITECTURE:TAG"):
        Features(model)
