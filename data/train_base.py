"""Trains the embedded model (`data/base/`) and the small CLIP (`data/clip/`) on the picture world, from nothing.

    python -m data.train_base vae | unet | clip [--minutes M]     one stage, resumed where it stopped
    python -m data.train_base write                               the folders, from the averaged weights so far
    python -m data.train_base sheet | reconstruct                 pictures to look at, in .training/; also made while training
    python -m data.train_base unet | write | sheet --seed 1       another denoiser for the same autoencoder, in .training/seed-1/

Every stage is seeded, keeps an exponential moving average of its weights (so it may be stopped at any time), cools down in the
last third of its minutes, and saves a checkpoint of safetensors to `.training/` every few minutes. Without one it starts from
the weights in data/base and data/clip, if they are there; with another seed than 0, from nothing. It is a script for us and for
whoever wants another world; the program never runs it. In order: vae, unet, clip, write. On a CPU a few hours, on a large GPU
two minutes for the UNet.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Before torch is imported: without it, spinning threads take half of a small step on a CPU.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel

from data.examples import CAPTIONS, PICTURES, WORK, captions, captions_with_changes, difficulty, grid, pictures, pixels_of, to_pixels, to_tensor
from data.networks import clip_config, clip_loss, new_clip, new_denoiser, new_scheduler, new_tokenizer, new_vae, tokens_of, vae_loss
from data.stages import Stage, timed

HERE = Path(__file__).parent
BASE, CLIP = HERE / "base", HERE / "clip"
LOOK_EVERY = 500  # steps, for pictures on the way
BATCH = {"vae": 48, "unet": 64, "clip": 64}
GPU_BATCH = 512  # of the UNet: a large GPU takes as long for 128
RATES = {"vae": (0.02, 2e-3), "unet": (0.01, 1e-3), "clip": (0.01, 1e-3)}  # of the matrices (Muon), of the rest (AdamW)
GPU_PACE = 1.5  # times the UNet's rates, for the larger batch
DECAY = {"vae": 0.99, "unet": 0.998, "clip": 0.995}


@contextmanager
def quickly(device: torch.device) -> Iterator[None]:
    """Matrix products in bfloat16 where the hardware has them (weights stay float32), and on a CPU the attention whose gradient is quick there."""
    mixed = device.type == "cuda" or torch.cpu.get_capabilities().get("amx_bf16", False)
    fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION] if device.type == "cuda" else []
    with torch.autocast(device.type, torch.bfloat16, enabled=mixed), sdpa_kernel([*fused, SDPBackend.MATH]):
        yield


def open_stage(name: str, model: torch.nn.Module, device: torch.device, seed: int = 0) -> Stage:
    """A stage with its settings; without a checkpoint it starts from the committed weights, if there are any, or with a seed from nothing."""
    path = _work(seed) / f"{name}.safetensors"
    if not path.exists() and not seed:
        _warm_start(name, model)
    return Stage.open(path, model, device, rates=RATES[name], decay=DECAY[name])


def _work(seed: int) -> Path:
    return WORK / f"seed-{seed}" if seed else WORK


def _warm_start(name: str, model: torch.nn.Module) -> None:
    folder = CLIP if name == "clip" else BASE
    if not folder.exists():
        return
    if name == "clip":
        kept = load_file(CLIP / "open_clip_model.safetensors")
    elif name == "vae":
        kept = AutoencoderKL.from_pretrained(BASE / "vae").state_dict()
    else:
        text, unet = CLIPTextModel.from_pretrained(BASE / "text_encoder"), UNet2DConditionModel.from_pretrained(BASE / "unet")
        kept = {f"text.{k}": v for k, v in text.state_dict().items()} | {f"unet.{k}": v for k, v in unet.state_dict().items()}
    model.load_state_dict({k: v.float() for k, v in kept.items()})


def train_vae(minutes: float, device: torch.device) -> None:
    stage = open_stage("vae", new_vae(), device)
    data = pictures()
    for generator, pace in timed(stage, minutes):
        rows = torch.randint(PICTURES, (BATCH["vae"],), generator=generator).sort().values.numpy()
        with quickly(device):
            loss = vae_loss(stage.model, to_tensor(data[rows], device).to(memory_format=torch.channels_last), generator)
        stage.advance(loss, pace)
        if stage.step % 25 == 0:
            print(f"  loss {loss.item():.4f}", flush=True)
        if stage.step % LOOK_EVERY == 0:
            stage.save()
            reconstruct(device)


@torch.no_grad()
def reconstruct(device: torch.device) -> None:
    """Writes `.training/vae.png`: pictures that were not trained on and their reconstructions, row by row."""
    model = open_stage("vae", new_vae(), device).averaged()
    pixels = np.stack([pixels_of(PICTURES + i) for i in range(40)])
    x = to_tensor(pixels, device)
    y = model.decode(model.encode(x).latent_dist.mean).sample
    rows = np.concatenate([np.concatenate([pixels[i : i + 10], to_pixels(y)[i : i + 10]]) for i in range(0, 40, 10)])
    grid(rows, 10).save(WORK / "vae.png")
    print(f"mean absolute error {(x - y).abs().mean().item() * 127.5:.2f} of 255")


@torch.no_grad()
def latents(device: torch.device) -> tuple[torch.Tensor, float]:
    """((PICTURES, C, 8, 8) latents of unit standard deviation, the scaling factor), encoded once and kept."""
    path = WORK / "latents.safetensors"
    if not path.exists():
        model = open_stage("vae", new_vae(), device).averaged()
        data = pictures()
        parts = []
        for i in range(0, PICTURES, 128):
            parts.append(model.encode(to_tensor(data[i : i + 128], device)).latent_dist.mean.cpu())
            if i % 4096 == 0:
                print(f"encoded {i} of {PICTURES}", flush=True)
        raw = torch.cat(parts)
        save_file({"latents": (raw / raw.std()).half().contiguous(), "scale": 1 / raw.std()}, path)
    kept = load_file(path)
    return kept["latents"], float(kept["scale"])


def train_unet(minutes: float, device: torch.device, seed: int = 0) -> None:
    model, tokenizer = new_denoiser(seed)
    x0, _ = latents(device)
    told = tokens_of(tokenizer, [text for texts in captions() for text in texts], device).view(PICTURES, CAPTIONS, -1)
    nothing = tokens_of(tokenizer, [""], device)
    stage = open_stage("unet", model, device, seed)
    alphas, chances = new_scheduler().alphas_cumprod, difficulty(PICTURES)
    batch, hurry = (GPU_BATCH, GPU_PACE) if device.type == "cuda" else (BATCH["unet"], 1.0)
    for generator, pace in timed(stage, minutes):
        rows = torch.multinomial(chances, batch, generator=generator)
        tokens = told[rows.to(device), torch.randint(CAPTIONS, (batch,), generator=generator).to(device)]
        untold = (torch.rand(batch, 1, generator=generator) < 0.1).to(device)
        with quickly(device):
            loss = model.loss(x0[rows].float().to(device), torch.where(untold, nothing, tokens), alphas, generator)
        stage.advance(loss, hurry * pace)
        if stage.step % 25 == 0:
            print(f"  loss {loss.item():.4f}", flush=True)
        if stage.step % LOOK_EVERY == 0:
            stage.save()
            sheet(device, seed)


def train_clip(minutes: float, device: torch.device) -> None:
    tokenizer = new_tokenizer()
    stage = open_stage("clip", new_clip(tokenizer), device)
    data = pictures()
    for generator, pace in timed(stage, minutes):
        rows = torch.randint(PICTURES, (BATCH["clip"],), generator=generator).sort().values
        rng = np.random.default_rng((1, stage.step))
        texts = [text for i in rows for text in captions_with_changes(int(i), rng, 4)]
        tokens = tokens_of(tokenizer, texts, device).view(len(rows), 4, -1)
        with quickly(device):
            loss = clip_loss(stage.model, to_tensor(data[rows.numpy()], device), tokens)
        stage.advance(loss, pace)
        if stage.step % 25 == 0:
            print(f"  loss {loss.item():.4f}", flush=True)


def assembled(device: torch.device, seed: int = 0) -> StableDiffusionPipeline:
    """The stock pipeline of the averaged weights so far, float32."""
    model, tokenizer = new_denoiser(seed)
    open_stage("unet", model, device, seed).averaged()
    vae = open_stage("vae", new_vae(), device).averaged()
    vae.register_to_config(scaling_factor=latents(device)[1])
    return StableDiffusionPipeline(
        vae=vae, text_encoder=model.text, tokenizer=tokenizer, unet=model.unet, scheduler=new_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def write(device: torch.device, seed: int = 0) -> None:
    """Writes data/base and data/clip (another seed's: its folder) in half precision from the averaged weights of the stages that exist."""
    if (_work(seed) / "unet.safetensors").exists():
        assembled(device, seed).to(torch.float16).save_pretrained(_work(seed) if seed else BASE, safe_serialization=True)
    if (WORK / "clip.safetensors").exists() and not seed:
        CLIP.mkdir(exist_ok=True)
        tokenizer = new_tokenizer()
        average = open_stage("clip", new_clip(tokenizer), device).average
        save_file({k: v.half().contiguous() for k, v in average.items()}, CLIP / "open_clip_model.safetensors")
        (CLIP / "open_clip_config.json").write_text(json.dumps(clip_config(tokenizer), indent=2) + "\n")
        tokenizer.save_pretrained(CLIP)


def sheet(device: torch.device, seed: int = 0) -> None:
    """Writes `.training/sheet.png`: four pictures for each of twelve prompts, by the averaged weights so far, else by data/base."""
    if (_work(seed) / "unet.safetensors").exists():
        pipeline = assembled(device, seed)
    else:
        pipeline = StableDiffusionPipeline.from_pretrained(BASE, dtype=torch.float32, safety_checker=None).to(device)
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
    grid(np.stack(drawn), 12).save(_work(seed) / "sheet.png")


def main() -> None:
    stages: dict[str, Callable[..., None]] = {"vae": train_vae, "unet": train_unet, "clip": train_clip}
    others: dict[str, Callable[..., None]] = {"reconstruct": reconstruct, "write": write, "sheet": sheet}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=(*stages, *others))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of another UNet than the embedded model's")
    given = parser.parse_args()
    seeded = {"seed": given.seed} if given.stage in ("unet", "write", "sheet") else {}
    if given.seed and not seeded:
        parser.error("--seed is for unet, write and sheet: the autoencoder and the small CLIP are the same for all.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if given.stage in stages:
        stages[given.stage](given.minutes, device, **seeded)
    else:
        others[given.stage](device, **seeded)


if __name__ == "__main__":
    main()
