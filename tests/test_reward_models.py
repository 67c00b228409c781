"""The reward models that people expect, each on a tiny model of the very same architecture and file layout, against a computation of the test's own.

Nothing is downloaded. The head of `aesthetic` is checked on its published weights where they lie beside the repository.
"""

import json
import math
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForQuestionAnswering,
    BlipImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
)

from rewards import Reward, RewardError, hpsv2, hub_clip, imagereward, load, score_safely, vqa, weights
from rewards.aesthetic import HEAD, Aesthetic
from rewards.head import LinearHead
from rewards.hpsv2 import HPSv2
from rewards.imagereward import ImageReward
from rewards.pickscore import PickScore
from rewards.questions import questions
from rewards.vqa import VQA
from rewards.weights import Pickled, Source
from tests.tiny import TOKENS, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED_HEAD = ROOT.parent / "shared" / "data" / "aesthetic_sac_logos_ava1_l14_linear.pth"
SIDE = 32  # pixels that the tiny models see
MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yes", "no", "a", "red", "blue", "dog", "cat", "and", "?", "[DEC]", "[ENC]"]


def picture(seed: int) -> Image.Image:
    """Of the size that the models see, so that nothing is resized."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


PICTURES = [picture(seed) for seed in range(5)]
PROMPTS = ["a red dog", "a blue cat and a dog", "a red dog", "a cat", "a blue dog and a red cat"]


def pixels(images: Sequence[Image.Image]) -> Tensor:
    """(n, 3, H, W), normalised by CLIP's numbers."""
    array = (np.stack([np.asarray(image) for image in images]) / 255 - MEAN) / STD
    return torch.from_numpy(array).permute(0, 3, 1, 2).float()


def assert_close(made: Any, expected: Any) -> None:
    """Equal but for float32 in another order."""
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-5)


def seeded(make: Callable[[], Any]) -> Any:
    """A model with random weights, the same each time, that are large enough to tell inputs apart."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval().requires_grad_(False)
        for name, weight in model.named_parameters():
            if "norm" not in name.lower():
                weight.copy_(torch.randn_like(weight) * 0.2)
        return model


def write_pickle(tensors: object, file: Path) -> Path:
    torch.save(tensors, file)
    return file


def head_weights(width: int) -> dict[str, Tensor]:
    """The layout of the published head: dropouts stand between the numbers."""
    sizes = {0: (width, 24), 2: (24, 12), 4: (12, 8), 6: (8, 4), 7: (4, 1)}
    generator = torch.Generator().manual_seed(1)
    made = {}
    for number, (inside, outside) in sizes.items():
        made[f"layers.{number}.weight"] = torch.randn(outside, inside, generator=generator) / inside**0.5
        made[f"layers.{number}.bias"] = torch.randn(outside, generator=generator)
    return made


def through_head(features: Tensor, made: Mapping[str, Tensor]) -> NDArray[np.float64]:
    for number in (0, 2, 4, 6, 7):
        features = features @ made[f"layers.{number}.weight"].T + made[f"layers.{number}.bias"]
    return features[:, 0].double().numpy()


# ---- the same for all ----


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIPModel with its processor files, as a Hub folder holds them."""
    folder, tokenizer = tmp_path_factory.mktemp("clip"), tiny_tokenizer()
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = CLIPConfig(
        text_config=tower | ends | {"vocab_size": len(tokenizer), "max_position_embeddings": TOKENS},
        vision_config=tower | {"image_size": SIDE, "patch_size": 8},
        projection_dim=16,
    )
    seeded(lambda: CLIPModel(config)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, model_max_length=64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def blip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BlipForQuestionAnswering with its processor files; [DEC] and [ENC] are the last two words, as in BLIP."""
    folder = tmp_path_factory.mktemp("blip")
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {"vocab_size": len(WORDS), "bos_token_id": len(WORDS) - 2, "sep_token_id": 3, "pad_token_id": 0, "eos_token_id": 3}
    config = BlipConfig(
        text_config=size | words | {"encoder_hidden_size": 32, "max_position_embeddings": 40},
        vision_config=size | {"image_size": SIDE, "patch_size": 8},
    )
    seeded(lambda: BlipForQuestionAnswering(config)).save_pretrained(folder)
    BlipImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, model_max_length=64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def hps_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint like HPS_v2.1_compressed.pt of an open_clip architecture that is called tiny-hps here."""
    folder = tmp_path_factory.mktemp("hps")
    architecture: dict[str, Any] = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": SIDE, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    (folder / "tiny-hps.json").write_text(json.dumps(architecture))
    open_clip.add_model_config(folder / "tiny-hps.json")
    model = seeded(lambda: open_clip.CLIP(**architecture))
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()}
    write_pickle({"epoch": 3, "state_dict": half}, folder / "HPS_v2.1_compressed.pt")
    return folder


@pytest.fixture
def models(clip_folder: Path, bert_folder: Path, blip_folder: Path, hps_folder: Path, tmp_path: Path) -> dict[str, Reward]:
    """Every reward on its tiny model, not loaded yet."""
    write_pickle(head_weights(16), tmp_path / "aesthetic-model.pth")
    write_pickle(imagereward_weights(), tmp_path / "ImageReward.pt")
    here, cache = Source(str(tmp_path)), tmp_path / "cache"
    clip = Source(str(clip_folder))
    return {
        "aesthetic": Aesthetic(clip, Pickled(here, "aesthetic-model.pth", cache=cache)),
        "hpsv2": HPSv2(Pickled(Source(str(hps_folder)), "HPS_v2.1_compressed.pt", part="state_dict", cache=cache), "tiny-hps"),
        "imagereward": ImageReward(Pickled(here, "ImageReward.pt", cache=cache), Source(str(bert_folder))),
        "pickscore": PickScore(clip, clip),
        "vqa": VQA(Source(str(blip_folder))),
    }


NAMES = ["aesthetic", "hpsv2", "imagereward", "pickscore", "vqa"]
each_model = pytest.mark.parametrize("name", NAMES)


@each_model
def test_scores_do_not_depend_on_the_batch(models: dict[str, Reward], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    together = models[name].score(PICTURES, PROMPTS).value
    for module in (hub_clip, hpsv2, vqa, imagereward):
        monkeypatch.setattr(module, "BATCH", 2)
    assert_close(models[name].score(PICTURES, PROMPTS).value, together)
    alone = [models[name].score([image], [prompt]).value[0] for image, prompt in zip(PICTURES, PROMPTS, strict=True)]
    assert_close(alone, together)
    assert np.ptp(together) > 1e-3


@each_model
def test_pictures_of_any_mode_and_shape_are_scored(models: dict[str, Reward], name: str) -> None:
    odd = [Image.new(mode, size) for mode, size in (("L", (40, 24)), ("RGBA", (24, 40)), ("P", (50, 50)))]
    assert np.isfinite(models[name].score(odd, PROMPTS[:3]).value).all()


@each_model
def test_weights_are_float32_on_a_cpu_and_half_on_a_gpu(models: dict[str, Reward], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no GPU here: the half-precision path runs on the CPU, and must be near the float32 one."""
    assert (weights.precision("cpu"), weights.precision("cuda:1"), weights.precision("mps")) == (torch.float32, torch.float16, torch.float16)
    full = models[name].score(PICTURES, PROMPTS).value
    for module in (weights, hpsv2, imagereward):
        monkeypatch.setattr(module, "precision", lambda device: torch.float16)
    half = replace(models[name]).score(PICTURES, PROMPTS).value  # type: ignore[type-var]
    assert 0 < np.abs(half - full).max() < 0.05 * np.abs(full).max()


@each_model
def test_a_model_that_is_not_there_is_missing_with_its_reason(models: dict[str, Reward], name: str) -> None:
    """The registry's own, without a connection and with an empty cache."""
    scores, reason = score_safely(load(name), PICTURES, PROMPTS)
    assert np.isnan(scores.value).all()
    assert reason is not None
    assert "cannot be loaded" in reason
    assert "needs a connection to the Hugging Face Hub" in reason


def test_nothing_is_loaded_before_the_first_score() -> None:
    code = f"""
import sys
from rewards import load
made = [load(name) for name in {NAMES}]
assert all(reward.scale > 0 for reward in made)
sys.exit(bool({{"torch", "transformers", "open_clip", "huggingface_hub"}} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("name", ["aesthetic", "pickscore", "vqa"])
def test_a_model_is_read_once(models: dict[str, Reward], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = models[name].score(PICTURES, PROMPTS).value
    monkeypatch.setattr(Source, "pretrained", None)
    np.testing.assert_array_equal(models[name].score(PICTURES, PROMPTS).value, first)


@each_model
def test_revisions_are_commits_or_the_file_is_held_to_its_digest(name: str) -> None:
    reward = load(name)
    for part in vars(reward).values():
        pickle = part if isinstance(part, Pickled) else None
        source = pickle.source if pickle else part
        if isinstance(source, Source):
            pinned = len(source.revision) == 40 and set(source.revision) <= set("0123456789abcdef")
            assert pinned or (pickle and len(pickle.sha256 or "") == 64)


# ---- aesthetic and pickscore ----


def features(folder: Path) -> tuple[Tensor, Tensor, float]:
    """Unit features of PICTURES and PROMPTS by the stock forward pass of CLIPModel, and exp(logit scale)."""
    model = CLIPModel.from_pretrained(folder).eval()
    tokens = tiny_tokenizer()(PROMPTS, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
    with torch.no_grad():
        made = model(pixel_values=pixels(PICTURES), **tokens)
    return made.image_embeds, made.text_embeds, float(model.logit_scale.detach().exp())


def test_aesthetic_is_the_head_on_unit_image_features(models: dict[str, Reward], clip_folder: Path) -> None:
    seen, _, _ = features(clip_folder)
    assert_close(models["aesthetic"].score(PICTURES, PROMPTS).value, through_head(seen, head_weights(16)))


def test_published_aesthetic_head_gives_the_known_values(tmp_path: Path) -> None:
    if not PUBLISHED_HEAD.exists():
        pytest.skip("the published weights are not beside this repository")
    (tmp_path / HEAD.file).write_bytes(PUBLISHED_HEAD.read_bytes())
    pickled = replace(HEAD, source=Source(str(tmp_path)), cache=tmp_path / "cache")
    head = LinearHead(pickled.tensors(), "cpu")
    e_0 = torch.zeros(768)
    e_0[0] = 1
    made = head(torch.stack([torch.zeros(768), torch.full((768,), 768**-0.5), e_0]))
    np.testing.assert_allclose(made, [5.236646, 4.883285, 4.545052], rtol=1e-6)


def test_a_head_that_is_none_is_refused() -> None:
    with pytest.raises(RewardError, match=r"not the weights of linear layers: layers\.0\.weight, other"):
        LinearHead({"layers.0.weight": torch.zeros(1, 2), "other": torch.zeros(1)}, "cpu")
    with pytest.raises(RewardError, match="not the weights of linear layers"):
        LinearHead({}, "cpu")


def test_pickscore_is_the_scaled_cosine(models: dict[str, Reward], clip_folder: Path) -> None:
    seen, meant, scale = features(clip_folder)
    assert_close(models["pickscore"].score(PICTURES, PROMPTS).value, scale * (seen * meant).sum(-1).numpy())


def test_long_prompts_are_cut(models: dict[str, Reward], clip_folder: Path) -> None:
    long = "a red dog " * 50
    value = models["pickscore"].score(PICTURES[:2], [long, long + "and a cat"]).value
    same = models["pickscore"].score([PICTURES[0]] * 2, [long, long + "and a cat"]).value
    assert np.isfinite(value).all()
    assert same[0] == pytest.approx(same[1])


# ---- hpsv2 ----


def test_hpsv2_is_the_cosine_of_open_clip(models: dict[str, Reward], hps_folder: Path) -> None:
    model = open_clip.create_model("tiny-hps").eval()
    model.load_state_dict(torch_weights(hps_folder / "HPS_v2.1_compressed.pt")["state_dict"])
    with torch.no_grad():
        seen, meant = model.encode_image(pixels(PICTURES)), model.encode_text(open_clip.get_tokenizer("tiny-hps")(PROMPTS))
    assert_close(models["hpsv2"].score(PICTURES, PROMPTS).value, functional.cosine_similarity(seen, meant).numpy())


def test_hpsv2_fits_pictures_with_black_borders(models: dict[str, Reward]) -> None:
    wide = picture(7).crop((0, 8, SIDE, SIDE - 8))
    bordered = Image.new("RGB", (SIDE, SIDE))
    bordered.paste(wide, (0, 8))
    value = models["hpsv2"].score([wide, bordered], ["a dog"] * 2).value
    assert value[0] == pytest.approx(value[1], abs=1e-5)


# ---- vqa ----


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a green bench and a red car", ["a green bench?", "a red car?"]),
        ("a photo of a red ball on the left of two green cubes, at night", ["a red ball?", "two green cubes?", "night?"]),
        ("The red ball is on the blue table.", ["the red ball?", "the blue table?"]),
        ("a bear behind the sofa on the right side of the desk", ["a bear?", "the sofa?", "the desk?"]),
        ("a dog chasing a dog", ["a dog chasing?", "a dog?"]),
        ("a dog and a dog", ["a dog?"]),
        ("fluffy clouds", ["fluffy clouds?"]),
        ("a t-shirt of Anna's", ["a t-shirt?", "anna's?"]),
        (", ".join(f"thing{i}" for i in range(20)), [f"thing{i}?" for i in range(8)]),
        ("the left, an image, the", []),
        ("", []),
        ("!?", []),
    ],
)
def test_a_prompt_becomes_a_question_for_each_noun_phrase(prompt: str, expected: list[str]) -> None:
    assert questions(prompt) == expected


def test_vqa_is_the_product_of_the_probabilities_of_yes(models: dict[str, Reward], blip_folder: Path) -> None:
    """By the model's own generation, one question at a time, which gives the logits of the answer's first word."""
    model = BlipForQuestionAnswering.from_pretrained(blip_folder).eval()

    def yes(image: Image.Image, question: str) -> float:
        ids = [WORDS.index(word) for word in ("[ENC]", *question.replace("?", " ?").split(), "[SEP]")]
        given = {"output_logits": True, "return_dict_in_generate": True, "max_new_tokens": 1}
        made = model.generate(input_ids=torch.tensor([ids]), pixel_values=pixels([image]), **given)
        logits = made.logits[0][0].double()
        return 1 / (1 + math.exp(logits[WORDS.index("no")] - logits[WORDS.index("yes")]))

    expected = [math.prod(yes(image, question) for question in questions(prompt)) for image, prompt in zip(PICTURES, PROMPTS, strict=True)]
    assert len(questions(PROMPTS[1])) == 2
    assert_close(models["vqa"].score(PICTURES, PROMPTS).value, expected)


def test_vqa_has_no_score_where_there_is_nothing_to_ask(models: dict[str, Reward]) -> None:
    value = models["vqa"].score(PICTURES[:3], ["a dog", "", "a dog"]).value
    assert np.isnan(value).tolist() == [False, True, False]


# ---- imagereward ----

WIDTH, TEXT_WIDTH, INNER, LAYERS, PATCH, HEADS = 128, 64, 32, 2, 16, 64


def imagereward_weights() -> dict[str, Tensor]:
    """The names and shapes of ImageReward.pt, small: BLIP's ViT and BERT, two projections that are not used, and the head."""
    shapes: dict[str, tuple[int, ...]] = {
        "visual_encoder.cls_token": (1, 1, WIDTH),
        "visual_encoder.pos_embed": (1, 1 + (SIDE // PATCH) ** 2, WIDTH),
        "visual_encoder.patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "visual_encoder.patch_embed.proj.bias": (WIDTH,),
        "visual_encoder.norm.weight": (WIDTH,),
        "visual_encoder.norm.bias": (WIDTH,),
        "text_encoder.embeddings.word_embeddings.weight": (len(WORDS), TEXT_WIDTH),
        "text_encoder.embeddings.position_embeddings.weight": (40, TEXT_WIDTH),
        "text_encoder.embeddings.LayerNorm.weight": (TEXT_WIDTH,),
        "text_encoder.embeddings.LayerNorm.bias": (TEXT_WIDTH,),
        "vision_proj.weight": (8, WIDTH),
        "text_proj.weight": (8, TEXT_WIDTH),
    }
    for n in range(LAYERS):
        block, layer = f"visual_encoder.blocks.{n}", f"text_encoder.encoder.layer.{n}"
        sizes = {f"{block}.attn.qkv": (3 * WIDTH, WIDTH), f"{block}.attn.proj": (WIDTH, WIDTH)}
        sizes |= {f"{block}.mlp.fc1": (INNER, WIDTH), f"{block}.mlp.fc2": (WIDTH, INNER)}
        for kind, inside in (("attention", TEXT_WIDTH), ("crossattention", WIDTH)):
            sizes |= {f"{layer}.{kind}.self.query": (TEXT_WIDTH, TEXT_WIDTH), f"{layer}.{kind}.output.dense": (TEXT_WIDTH, TEXT_WIDTH)}
            sizes |= {f"{layer}.{kind}.self.{part}": (TEXT_WIDTH, inside) for part in ("key", "value")}
        sizes |= {f"{layer}.intermediate.dense": (INNER, TEXT_WIDTH), f"{layer}.output.dense": (TEXT_WIDTH, INNER)}
        for name, size in sizes.items():
            shapes |= {f"{name}.weight": size, f"{name}.bias": size[:1]}
        norms = {f"{block}.norm{i}": WIDTH for i in (1, 2)}
        norms |= {f"{layer}.{part}.LayerNorm": TEXT_WIDTH for part in ("attention.output", "crossattention.output", "output")}
        for name, width in norms.items():
            shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    generator = torch.Generator().manual_seed(2)
    made = {f"blip.{name}": torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    for name in made:
        if "norm" in name.lower() and name.endswith("weight"):
            made[name] += 1
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"):
        made[f"blip.visual_encoder.{name}"] *= 0.003  # so small that the epsilon of the layer norms matters
    made["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    return made | {f"mlp.{name}": tensor for name, tensor in head_weights(TEXT_WIDTH).items()}


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of one picture or text, (n, d) and (m, d), with heads of 64."""
    heads = range(0, query.shape[1], HEADS)
    return torch.cat([(query[:, h : h + HEADS] @ key[:, h : h + HEADS].T / HEADS**0.5).softmax(-1) @ value[:, h : h + HEADS] for h in heads], dim=-1)


def by_hand(image: Image.Image, words: Sequence[str]) -> float:
    """ImageReward of one picture and prompt, written from BLIP's definition and the checkpoint's own names."""
    w = imagereward_weights()

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"blip.{name}.weight"].T + w[f"blip.{name}.bias"]

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        scaled = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
        return scaled * w[f"blip.{name}.weight"] + w[f"blip.{name}.bias"]

    patches = pixels([image])[0].unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1)
    kernel = w["blip.visual_encoder.patch_embed.proj.weight"].flatten(1)
    seen = patches @ kernel.T + w["blip.visual_encoder.patch_embed.proj.bias"]
    x = torch.cat([w["blip.visual_encoder.cls_token"][0], seen]) + w["blip.visual_encoder.pos_embed"][0]
    for n in range(LAYERS):
        at = f"visual_encoder.blocks.{n}"
        query, key, value = linear(norm(x, f"{at}.norm1", 1e-6), f"{at}.attn.qkv").split(WIDTH, dim=-1)
        x = x + linear(attend(query, key, value), f"{at}.attn.proj")
        x = x + linear(functional.gelu(linear(norm(x, f"{at}.norm2", 1e-6), f"{at}.mlp.fc1")), f"{at}.mlp.fc2")
    seen = norm(x, "visual_encoder.norm", 1e-6)

    ids = [WORDS.index(word) for word in ("[CLS]", *words, "[SEP]")]
    embedded = (
        w["blip.text_encoder.embeddings.word_embeddings.weight"][ids] + w["blip.text_encoder.embeddings.position_embeddings.weight"][: len(ids)]
    )
    x = norm(embedded, "text_encoder.embeddings.LayerNorm", 1e-12)
    for n in range(LAYERS):
        for kind in ("attention", "crossattention"):
            at = f"text_encoder.encoder.layer.{n}.{kind}"
            source = x if kind == "attention" else seen
            looked = attend(linear(x, f"{at}.self.query"), linear(source, f"{at}.self.key"), linear(source, f"{at}.self.value"))
            x = norm(linear(looked, f"{at}.output.dense") + x, f"{at}.output.LayerNorm", 1e-12)
        at = f"text_encoder.encoder.layer.{n}"
        x = norm(linear(functional.gelu(linear(x, f"{at}.intermediate.dense")), f"{at}.output.dense") + x, f"{at}.output.LayerNorm", 1e-12)
    head = {name.removeprefix("mlp."): tensor for name, tensor in w.items() if name.startswith("mlp.")}
    return (float(through_head(x[:1], head)[0]) - 0.16717362830052426) / 1.0333394966054072


def test_imagereward_is_blip_and_head_as_they_were_published(models: dict[str, Reward]) -> None:
    expected = [by_hand(image, prompt.split()) for image, prompt in zip(PICTURES, PROMPTS, strict=True)]
    assert_close(models["imagereward"].score(PICTURES, PROMPTS).value, expected)


def test_imagereward_takes_the_middle_of_a_wide_picture(models: dict[str, Reward]) -> None:
    wide = Image.new("RGB", (2 * SIDE, SIDE))
    wide.paste(PICTURES[0], (SIDE // 2, 0))
    value = models["imagereward"].score([wide, PICTURES[0]], ["a dog"] * 2).value
    assert value[0] == pytest.approx(value[1], abs=1e-5)


def test_another_checkpoint_is_not_taken_for_imagereward(tmp_path: Path, bert_folder: Path) -> None:
    write_pickle(head_weights(16), tmp_path / "ImageReward.pt")
    other = ImageReward(Pickled(Source(str(tmp_path)), "ImageReward.pt", cache=tmp_path), Source(str(bert_folder)))
    with pytest.raises(RewardError, match=r"not ImageReward's checkpoint: it has nothing called blip\.visual_encoder\."):
        other.score(PICTURES, PROMPTS)


# ---- pickles ----


def torch_weights(file: Path) -> Any:
    with zipfile.ZipFile(file):  # torch's format of today
        return torch.load(file, weights_only=True)


def test_a_pickle_is_read_once_and_kept_as_safetensors(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(2)}
    tensors["c"] = tensors["b"]  # safetensors refuses tensors that share memory
    file = write_pickle({"epoch": 1, "state_dict": tensors}, tmp_path / "model.pt")
    digest = weights._sha256(file)
    pickled = Pickled(Source(str(tmp_path)), "model.pt", sha256=digest, part="state_dict", cache=tmp_path / "cache")
    made = pickled.tensors()
    assert {name: tensor.tolist() for name, tensor in made.items()} == {name: tensor.tolist() for name, tensor in tensors.items()}
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"model-{digest[:16]}.safetensors"]
    file.unlink()
    assert set(pickled.tensors()) == {"a", "b", "c"}


def test_a_pickle_of_other_content_is_another_file(tmp_path: Path) -> None:
    pickled = Pickled(Source(str(tmp_path)), "model.pt", cache=tmp_path)
    for number in (1.0, 2.0):
        write_pickle({"a": torch.tensor([number])}, tmp_path / "model.pt")
        assert pickled.tensors()["a"].tolist() == [number]


@pytest.mark.parametrize("old_format", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, old_format: bool) -> None:
    trap = b"cposix\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR."
    file = tmp_path / "model.pt"
    if old_format:
        file.write_bytes(trap)
    else:
        good = write_pickle({"a": torch.ones(1)}, tmp_path / "good.pt")
        with zipfile.ZipFile(good) as source, zipfile.ZipFile(file, "w") as target:
            for item in source.namelist():
                target.writestr(item, trap if item.endswith("data.pkl") else source.read(item))
    with pytest.raises(RewardError, match=r"model\.pt of .* holds more than weights, and is not opened"):
        Pickled(Source(str(tmp_path)), "model.pt", cache=tmp_path / "cache").tensors()
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "cache").exists()


def test_a_file_that_is_not_the_published_one_is_refused_unopened(tmp_path: Path) -> None:
    write_pickle({"a": torch.ones(1)}, tmp_path / "model.pt")
    with pytest.raises(RewardError, match=r"another file than the one published: SHA-256 \w{64}, not 000"):
        Pickled(Source(str(tmp_path)), "model.pt", sha256="0" * 64, cache=tmp_path).tensors()


@pytest.mark.parametrize(("content", "part"), [([torch.ones(1)], ""), ({"a": 1}, ""), ({"a": torch.ones(1)}, "state_dict")])
def test_a_pickle_without_weights_says_so(tmp_path: Path, content: object, part: str) -> None:
    write_pickle(content, tmp_path / "model.pt")
    with pytest.raises(RewardError, match=r"model\.pt of .* holds no weights"):
        Pickled(Source(str(tmp_path)), "model.pt", part=part, cache=tmp_path).tensors()


def test_a_folder_without_the_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"has no file model\.pt"):
        Source(str(tmp_path)).file("model.pt")


def test_a_folder_with_a_pickle_in_place_of_safetensors_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    for file in clip_folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    with pytest.raises(RewardError, match=r"cannot be loaded: .*safetensors"):
        PickScore(Source(str(tmp_path)), Source(str(clip_folder))).score(PICTURES, PROMPTS)


def test_weights_of_another_model_are_refused_and_not_made_up(clip_folder: Path, tmp_path: Path) -> None:
    """transformers fills what a file lacks with random numbers."""
    for file in clip_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file({"nothing": torch.ones(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RewardError, match=r"has no weights for [\w.]+ and \d+ more"):
        PickScore(Source(str(tmp_path)), Source(str(clip_folder))).score(PICTURES, PROMPTS)
