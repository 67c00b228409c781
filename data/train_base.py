"""Trains the embedded model (`data/base/`) and the small CLIP (`data/clip/`) on the picture world, from nothing.

    python -m data.train_base vae | unet | clip [--minutes M]     one stage, resumed where it stopped
    python -m data.train_base write [--preview]                  the folders, from the averaged weights so far
    python -m data.train_base sheet                              a sample sheet of the folder as it is

Every stage is seeded, keeps an exponential moving average of its weights (so it may be stopped at any time without a
learning-rate decay), and saves a checkpoint of safetensors to `.training/` every few minutes. It is a script for us and for
whoever wants another world; the program never runs it.
"""

import argparse
import json
import math
import multiprocessing
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

# Before torch is imported: without these, page faults and spinning threads take half of a small step on a CPU.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from data.scenes import Scene, caption, render, sample_scene, sample_style
from data.shapes import BACKGROUNDS, COLORS, MAX_COUNT, RELATIONS, SHAPES, SIZES, TEXTURES

HERE = Path(__file__).parent
WORK = HERE.parent / ".training"
BASE, CLIP = HERE / "base", HERE / "clip"
TEXT_LENGTH, TEXT_WIDTH = 32, 192
PICTURES = 32_768
LATENT_PICTURES = 20_480
BATCH = {"vae": 20, "unet": 64, "clip": 96}
LEARNING_RATE = {"vae": (0.02, 2e-3), "unet": (0.01, 1e-3), "clip": (0.01, 1e-3)}  # of the matrices (Muon), of the rest (AdamW)
AVERAGE = {"vae": 0.99, "unet": 0.998, "clip": 0.99}
LATENT_CHANNELS, LATENT_NOISE = 12, 0.1


def held_out(stated: Scene) -> bool:
    """Whether what a caption states is kept from training: one in twelve, chosen by its text, for the figures."""
    return crc32(repr(stated).encode()) % 12 == 0


# ---- pictures ----


def _scene(index: int) -> tuple[Scene, np.random.Generator]:
    rng = np.random.default_rng((2026, index))
    return sample_scene(rng), rng


def _pixels(index: int) -> NDArray[np.uint8]:
    scene, rng = _scene(index)
    return np.asarray(render(scene, sample_style(rng), rng))


def pictures() -> NDArray[np.uint8]:
    """(PICTURES, 64, 64, 3) uint8, rendered once and kept in the work folder."""
    path = WORK / "pictures.npy"
    if not path.exists():
        print(f"rendering {PICTURES} pictures", flush=True)
        with multiprocessing.get_context("spawn").Pool() as pool:
            made = np.stack(pool.map(_pixels, range(PICTURES), chunksize=256))
        WORK.mkdir(exist_ok=True)
        np.save(path, made)
    return np.load(path, mmap_mode="r")


def training_caption(index: int, rng: np.random.Generator) -> str:
    """A fresh caption for picture `index`; never one whose statement is held out."""
    scene, _ = _scene(index)
    while True:
        text, stated = caption(scene, rng, keep=float(rng.choice((0.5, 0.75, 0.95))))
        if not held_out(stated):
            return text


def _to_tensor(pixels: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """(n, 64, 64, 3) uint8 -> (n, 3, 64, 64) float32 in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


# ---- a stage: model, optimizer, moving average, checkpoint ----


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal by a Newton-Schulz iteration (Jordan et al. 2024), convolutions as matrices.

    On these small networks it needs about a fifth of AdamW's steps; torch's own takes two-dimensional parameters only.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                average.lerp_(p.grad, 1 - group["momentum"])
                p.add_(_orthogonal(p.grad.lerp(average, group["momentum"])), alpha=-group["lr"])


def _orthogonal(gradient: torch.Tensor) -> torch.Tensor:
    """The nearest matrix with all singular values near 1, scaled so that its entries do not depend on its shape."""
    matrix = gradient.flatten(1)
    tall = matrix.shape[0] > matrix.shape[1]
    u = matrix.T if tall else matrix
    u = u / (u.norm() + 1e-7)
    for _ in range(5):
        gram = u @ u.T
        u = 3.4445 * u + (-4.7750 * gram + 2.0315 * gram @ gram) @ u
    u = u.T if tall else u
    return (u * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5).reshape(gradient.shape)


@dataclass
class Stage:
    """One model in training: weights, optimizers and average, saved together and resumed exactly."""

    name: str
    model: torch.nn.Module
    optimizers: list[torch.optim.Optimizer]
    average: dict[str, torch.Tensor]
    step: int = 0

    @classmethod
    def open(cls, name: str, model: torch.nn.Module, device: torch.device) -> "Stage":
        model.to(device, memory_format=torch.channels_last)
        inner = [p for n, p in model.named_parameters() if p.ndim in (2, 4) and not re.search(r"embedding|conv_in|conv_out|positional", n)]
        inside = {id(p) for p in inner}
        outer = [p for p in model.parameters() if id(p) not in inside]
        adam = torch.optim.AdamW(outer, lr=LEARNING_RATE[name][1], betas=(0.9, 0.98), weight_decay=0.0)
        average = {k: v.detach().clone() for k, v in model.state_dict().items()}
        stage = cls(name, model, [Muon(inner, LEARNING_RATE[name][0]), adam], average)
        if stage.path.exists():
            stage._load()
        return stage

    @property
    def path(self) -> Path:
        return WORK / f"{self.name}.safetensors"

    def _load(self) -> None:
        kept = load_file(self.path)
        self.step = int(kept["step"])
        self.model.load_state_dict({k[6:]: v for k, v in kept.items() if k.startswith("model.")})
        self.average = {k: kept[f"average.{k}"].to(v.device) for k, v in self.average.items()}
        for number, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, torch.Tensor]] = {}
            for key, value in kept.items():
                if key.startswith(f"optimizer{number}."):
                    _, index, slot = key.split(".")
                    state.setdefault(int(index), {})[slot] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

    def save(self) -> None:
        """Writes model, average and optimizers to one file; readers never see half of it."""
        kept = {f"model.{k}": v for k, v in self.model.state_dict().items()} | {f"average.{k}": v for k, v in self.average.items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, slots in optimizer.state_dict()["state"].items():
                kept |= {f"optimizer{number}.{index}.{slot}": torch.as_tensor(value) for slot, value in slots.items()}
        kept["step"] = torch.tensor(self.step)
        WORK.mkdir(exist_ok=True)
        save_file({k: v.contiguous().clone() for k, v in kept.items()}, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").replace(self.path)

    def advance(self, loss: torch.Tensor, pace: float) -> None:
        """One optimizer step at `pace` times the learning rates, with gradient clipping and the moving average."""
        self.step += 1
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, error_if_nonfinite=True)
        for optimizer, rate in zip(self.optimizers, LEARNING_RATE[self.name], strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * pace * min(1.0, self.step / 50)
            optimizer.step()
        decay = min(AVERAGE[self.name], (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                self.average[key].lerp_(value, 1 - decay) if value.is_floating_point() else self.average[key].copy_(value)

    def averaged(self) -> torch.nn.Module:
        """The model with its averaged weights (in place: for writing, not for training on)."""
        self.model.load_state_dict(self.average)
        return self.model.eval()


def _timed(stage: Stage, minutes: float) -> Iterator[tuple[torch.Generator, float]]:
    """(a generator seeded by the step, pace) until the time is up; the last third cools down. Prints progress, saves."""
    start = saved = time.monotonic()
    first = stage.step
    while (elapsed := (time.monotonic() - start) / 60) < minutes:
        yield torch.Generator().manual_seed(1_000_003 * stage.step + 7), min(1.0, 0.03 + 3 * (1 - elapsed / minutes))
        if stage.step % 25 == 0:
            print(
                f"{stage.name} step {stage.step}  {(stage.step - first) / elapsed if elapsed else 0:.1f} steps/min  {minutes - elapsed:.0f} min left",
                flush=True,
            )
        if time.monotonic() - saved > 240:
            stage.save()
            saved = time.monotonic()
    stage.save()


# ---- the autoencoder ----


def new_vae() -> AutoencoderKL:
    """The autoencoder, started as a nearly linear code: orthogonal trunk, silent residual branches. It learns several times faster so."""
    torch.manual_seed(0)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.orthogonal_(module.weight)
            torch.nn.init.zeros_(module.bias)
            if name.endswith("conv2"):
                torch.nn.init.zeros_(module.weight)
    return model


def _edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def vae_loss(model: AutoencoderKL, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Reconstruction under a little latent noise: absolute and squared error, that of the edges for crisp shapes, that of the colours."""
    latents = model.encode(x).latent_dist.mean
    latents = latents + LATENT_NOISE * torch.randn(latents.shape, generator=generator).to(x.device)
    y = model.decode(latents).sample
    edges = sum((a - b).abs().mean() for a, b in zip(_edges(y), _edges(x), strict=True))
    error = y - x
    # Red against green is rare and faint in the mean error, and is learned last or never unless it is asked for.
    opponent = torch.stack([error[:, 0] - error[:, 1], error[:, 1] - error[:, 2]])
    return error.abs().mean() + 3 * error.square().mean() + 3 * opponent.square().mean() + edges + 1e-4 * latents.square().mean()


def train_vae(minutes: float, device: torch.device) -> None:
    stage = Stage.open("vae", new_vae(), device)
    data = pictures()
    for generator, pace in _timed(stage, minutes):
        rows = torch.randint(PICTURES, (BATCH["vae"],), generator=generator).sort().values.numpy()
        loss = vae_loss(stage.model, _to_tensor(data[rows], device).to(memory_format=torch.channels_last), generator)
        stage.advance(loss, pace)
        if stage.step % 25 == 0:
            print(f"  loss {loss.item():.4f}", flush=True)


def _picture_grid(pixels: NDArray[np.uint8], columns: int) -> Image.Image:
    """Tiles (n, 64, 64, 3) pictures, doubled in size."""
    n, size = len(pixels), 2 * pixels.shape[1] + 4
    sheet = Image.new("RGB", (columns * size, math.ceil(n / columns) * size), "white")
    for i, picture in enumerate(pixels):
        tile = Image.fromarray(picture).resize((size - 4, size - 4), Image.Resampling.BICUBIC)
        sheet.paste(tile, (i % columns * size, i // columns * size))
    return sheet


def _to_pixels(x: torch.Tensor) -> NDArray[np.uint8]:
    """(n, 3, 64, 64) in -1..1 -> (n, 64, 64, 3) uint8."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


@torch.no_grad()
def reconstruct(device: torch.device) -> None:
    """Writes `.training/vae.png`: pictures that were not trained on and their reconstructions, row by row."""
    model = Stage.open("vae", new_vae(), device).averaged()
    pixels = np.stack([_pixels(PICTURES + i) for i in range(40)])
    x = _to_tensor(pixels, device)
    y = model.decode(model.encode(x).latent_dist.mean).sample
    rows = np.concatenate([np.concatenate([pixels[i : i + 10], _to_pixels(y)[i : i + 10]]) for i in range(0, 40, 10)])
    _picture_grid(rows, 10).save(WORK / "vae.png")
    print(f"mean absolute error {(x - y).abs().mean().item() * 127.5:.2f} of 255")


# ---- words ----


def new_tokenizer() -> CLIPTokenizer:
    """A byte-level CLIP tokenizer whose merges come from this world's captions: any text has tokens, its words are short."""
    from tokenizers.trainers import BpeTrainer

    rng = np.random.default_rng(0)
    corpus = [caption(sample_scene(rng), rng)[0] for _ in range(20_000)]
    blank = CLIPTokenizer()
    alphabet = sorted(set(bytes_to_letters().values()))
    trainer = BpeTrainer(vocab_size=1024, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False)
    blank.backend_tokenizer.train_from_iterator(corpus, trainer)
    merges = [tuple(m) for m in json.loads(blank.backend_tokenizer.to_str())["model"]["merges"]]
    words = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(m) for m in merges), "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TEXT_LENGTH)


def bytes_to_letters() -> dict[int, str]:
    """The printable letter that byte-level BPE writes for each byte: itself where printable, else one from U+0100 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {b: chr(b) for b in plain}
    return letters | {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in letters)}


def _tokens(tokenizer: CLIPTokenizer, texts: list[str], device: torch.device) -> torch.Tensor:
    """(n, TEXT_LENGTH) token ids."""
    made = tokenizer(texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt")
    return made.input_ids.to(device)


# ---- the denoiser ----


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        projection_dim=TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def new_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(128, 256),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
        norm_num_groups=16,
    )


def new_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False
    )


@torch.no_grad()
def latents(device: torch.device) -> tuple[torch.Tensor, float]:
    """((LATENT_PICTURES, C, 8, 8) latents of unit standard deviation, the scaling factor), encoded once and kept."""
    path = WORK / "latents.safetensors"
    if not path.exists():
        model = Stage.open("vae", new_vae(), device).averaged()
        data = pictures()
        parts = []
        for i in range(0, LATENT_PICTURES, 128):
            parts.append(model.encode(_to_tensor(data[i : i + 128], device)).latent_dist.mean.cpu())
            if i % 4096 == 0:
                print(f"encoded {i} of {LATENT_PICTURES}", flush=True)
        raw = torch.cat(parts)
        save_file({"latents": (raw / raw.std()).half().contiguous(), "scale": 1 / raw.std()}, path)
    kept = load_file(path)
    return kept["latents"], float(kept["scale"])


class Denoiser(torch.nn.Module):
    """Text encoder and UNet, trained together on the v-prediction error (Salimans & Ho, 2202.00512)."""

    def __init__(self, text: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text, self.unet = text, unet

    def loss(self, x0: torch.Tensor, tokens: torch.Tensor, alphas: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Mean squared error of v = sqrt(a) noise - sqrt(1 - a) x0 at random times; x0 (n, 8, 8, 8), tokens (n, L)."""
        n = len(x0)
        # Stratified times: every batch covers the whole chain, which quietens the gradient.
        t = ((torch.rand(1, generator=generator) + torch.arange(n)) / n % 1.0 * 1000).long().clamp(0, 999)[torch.randperm(n, generator=generator)]
        a = alphas[t].to(x0.device)[:, None, None, None]
        noise = torch.randn(x0.shape, generator=generator).to(x0.device)
        words = self.text(tokens).last_hidden_state
        v = self.unet((a.sqrt() * x0 + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last), t.to(x0.device), words).sample
        return F.mse_loss(v, a.sqrt() * noise - (1 - a).sqrt() * x0)


def new_denoiser() -> tuple[Denoiser, CLIPTokenizer]:
    tokenizer = new_tokenizer()
    torch.manual_seed(0)
    return Denoiser(new_text_encoder(tokenizer), new_unet()), tokenizer


def train_unet(minutes: float, device: torch.device) -> None:
    model, tokenizer = new_denoiser()
    x0, _ = latents(device)
    stage = Stage.open("unet", model, device)
    alphas = new_scheduler().alphas_cumprod
    for generator, pace in _timed(stage, minutes):
        rows = torch.randint(LATENT_PICTURES, (BATCH["unet"],), generator=generator)
        rng = np.random.default_rng(stage.step)
        texts = ["" if rng.random() < 0.1 else training_caption(int(i), rng) for i in rows]
        loss = model.loss(x0[rows].float().to(device), _tokens(tokenizer, texts, device), alphas, generator)
        stage.advance(loss, pace)
        if stage.step % 25 == 0:
            print(f"  loss {loss.item():.4f}", flush=True)


# ---- the small CLIP ----


def one_changed(stated: Scene, rng: np.random.Generator) -> Scene:
    """The statement with one of its attributes changed to another value."""
    places: list[tuple[int, str]] = [
        (i, name) for i, t in enumerate(stated.things) for name in ("shape", "color", "texture", "size") if getattr(t, name)
    ]
    places += [(-1, name) for name in ("relation", "background") if getattr(stated, name)]
    places += [(0, "count")] if len(stated.things) == 1 else []
    i, name = places[int(rng.integers(len(places)))]
    values = {
        "shape": SHAPES,
        "color": COLORS,
        "texture": TEXTURES,
        "size": SIZES,
        "relation": RELATIONS,
        "background": BACKGROUNDS,
        "count": range(1, MAX_COUNT + 1),
    }[name]
    owner = stated if i < 0 else stated.things[i]
    value = rng.choice([v for v in values if v != getattr(owner, name)])
    if i < 0:
        return replace(stated, **{name: str(value)})
    thing = replace(stated.things[i], **{name: int(value) if name == "count" else str(value)})
    return replace(stated, things=tuple(thing if j == i else t for j, t in enumerate(stated.things)))


def clip_config(tokenizer: CLIPTokenizer) -> dict[str, object]:
    """open_clip's configuration; the tokenizer is the one beside it."""
    return {
        "model_cfg": {
            "embed_dim": 128,
            "vision_cfg": {"image_size": 64, "layers": 4, "width": 192, "patch_size": 8, "head_width": 32},
            "text_cfg": {
                "context_length": TEXT_LENGTH,
                "vocab_size": len(tokenizer),
                "width": 192,
                "heads": 6,
                "layers": 3,
                "hf_tokenizer_name": "clip",
            },
        },
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "squash"},
    }


def new_clip(tokenizer: CLIPTokenizer) -> torch.nn.Module:
    from open_clip import CLIP as OpenClip

    torch.manual_seed(0)
    config = clip_config(tokenizer)["model_cfg"]
    assert isinstance(config, dict)
    text = {k: v for k, v in config["text_cfg"].items()}
    return OpenClip(embed_dim=config["embed_dim"], vision_cfg=config["vision_cfg"], text_cfg=text)


def clip_loss(model: torch.nn.Module, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Contrastive loss over the batch, and over each picture's own captions with one attribute changed.

    x (n, 3, 64, 64); tokens (n, 1 + m, L): the right caption first.
    """
    n, m = tokens.shape[:2]
    images = F.normalize(model.encode_image(x), dim=-1)
    texts = F.normalize(model.encode_text(tokens.flatten(0, 1)), dim=-1).view(n, m, -1)
    scale = model.logit_scale.exp().clamp(max=100)
    among = scale * images @ texts[:, 0].T
    own = scale * torch.einsum("nd,nmd->nm", images, texts)
    target = torch.arange(n, device=x.device)
    return 0.5 * F.cross_entropy(among, target) + 0.5 * F.cross_entropy(among.T, target) + F.cross_entropy(own, torch.zeros_like(target))


def train_clip(minutes: float, device: torch.device) -> None:
    tokenizer = new_tokenizer()
    stage = Stage.open("clip", new_clip(tokenizer), device)
    data = pictures()
    for generator, pace in _timed(stage, minutes):
        rows = torch.randint(PICTURES, (BATCH["clip"],), generator=generator).sort().values
        rng = np.random.default_rng((1, stage.step))
        texts = [text for i in rows for text in _captions_with_changes(int(i), rng, 3)]
        tokens = _tokens(tokenizer, texts, device).view(len(rows), 4, -1)
        loss = clip_loss(stage.model, _to_tensor(data[rows.numpy()], device), tokens)
        stage.advance(loss, pace)
        if stage.step % 25 == 0:
            print(f"  loss {loss.item():.4f}", flush=True)


def _captions_with_changes(index: int, rng: np.random.Generator, changes: int) -> list[str]:
    """A caption of picture `index`, then captions that each state one attribute wrongly."""
    scene, _ = _scene(index)
    while True:
        text, stated = caption(scene, rng, keep=0.85)
        if not held_out(stated):
            return [text, *(caption(one_changed(stated, rng), rng, keep=1.0)[0] for _ in range(changes))]


# ---- the folders ----


def write(device: torch.device) -> None:
    """Writes data/base and data/clip in half precision from the averaged weights of the stages that exist."""
    model, tokenizer = new_denoiser()
    if (WORK / "unet.safetensors").exists():
        Stage.open("unet", model, device).averaged()
        vae = Stage.open("vae", new_vae(), device).averaged()
        vae.register_to_config(scaling_factor=latents(device)[1])
        pipeline = StableDiffusionPipeline(
            vae=vae, text_encoder=model.text, tokenizer=tokenizer, unet=model.unet, scheduler=new_scheduler(),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        pipeline.to(torch.float16).save_pretrained(BASE, safe_serialization=True)
    if (WORK / "clip.safetensors").exists():
        CLIP.mkdir(exist_ok=True)
        average = Stage.open("clip", new_clip(tokenizer), device).average
        save_file({k: v.half().contiguous() for k, v in average.items()}, CLIP / "open_clip_model.safetensors")
        (CLIP / "open_clip_config.json").write_text(json.dumps(clip_config(tokenizer), indent=2) + "\n")
        tokenizer.save_pretrained(CLIP)


def sheet(device: torch.device) -> None:
    """Writes `.training/sheet.png`: four pictures for each of twelve prompts, from data/base."""
    pipeline = StableDiffusionPipeline.from_pretrained(BASE, torch_dtype=torch.float32, safety_checker=None).to(device)
    pipeline.set_progress_bar_config(disable=True)
    prompts = (
        "a red circle", "a large blue star", "a small green heart", "a striped purple square", "a dotted yellow diamond", "a gray moon at night",
        "a red circle to the left of a blue star", "a green triangle above a pink heart", "three yellow hearts on a dark background",
        "four cyan circles", "a big orange cross on a gradient background", "a brown square below a cyan diamond",
    )  # fmt: skip
    drawn = []
    for i, prompt in enumerate(prompts):
        generator = torch.Generator().manual_seed(i)
        made = pipeline(
            prompt, num_images_per_prompt=4, num_inference_steps=12, guidance_scale=3.0, eta=1.0, height=64, width=64, generator=generator
        )
        drawn += [np.asarray(picture) for picture in made.images]
    _picture_grid(np.stack(drawn), 12).save(WORK / "sheet.png")


def main() -> None:
    stages = {"vae": train_vae, "unet": train_unet, "clip": train_clip}
    others = {"reconstruct": reconstruct, "write": write, "sheet": sheet}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=(*stages, *others))
    parser.add_argument("--minutes", type=float, default=60)
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if given.stage in stages:
        stages[given.stage](given.minutes, device)
    else:
        others[given.stage](device)


if __name__ == "__main__":
    main()
