"""What a model costs on this device: peak memory, seconds and image-steps, and the share of what the device's matrix products reach.

MODEL is `embedded`, a folder, a Hub id, or one of sd15, sdxl, sd35-medium, flux-dev: these are built here with random weights in the published
sizes, so nothing is downloaded; their text encoders are left out, and prompts are random numbers. Peak memory is that of the device on a GPU, and
that of the process elsewhere. A floating-point operation is counted as torch's FlopCounterMode does, for one denoiser call. With --card GB a large
GPU has no more memory than a smaller one: what does not fit fails, and what is offloaded and how much is learned at once is decided as there.
Where there is no GPU, --card counts: the same program runs without values, and the bytes of its tensors are added up (card.py); nothing is timed.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.card import ON_CARD, Card, card_of, load
from bench.random_models import PUBLISHED, random_pipeline
from bench.speed import rated
from loophil.build import EMBEDDED
from loophil.config import Settings
from loophil.families import Embeddings, Words
from loophil.pipeline import choose_device, load_pipeline
from loophil.policy import LEARNER, Policy
from loophil.sampler import Sampler
from loophil.scheduler import schedule_of
from loophil.trainer import Trainer
from loophil.types import DrawSettings

SQUARE = 4096  # rows and columns of the matrices that the device is measured with; a quarter of it on a CPU


def run(model: str, argv: list[str]) -> int:
    """Prints one line per figure."""
    parser = argparse.ArgumentParser(prog="python -m bench model MODEL", description=__doc__)
    parser.add_argument("--repeats", type=int, default=4, help="times that each is done; of more than one the first does not count")
    parser.add_argument("--card", type=float, metavar="GB", help="gigabytes (10^9) of a smaller GPU, without what CUDA itself takes")
    given, knobs = parser.parse_known_args(argv)
    settings = Settings.read(knobs)
    device, size, began = choose_device(settings.device), int((given.card or 0) * 1e9), time.monotonic()
    counted = size > 0 and device.type != "cuda"
    base = _loaded(model, settings, ON_CARD if counted else device)
    if counted:
        with card_of(size) as card:
            return _print(model, settings, _placed(*base, settings, ON_CARD, card), 2, card)  # only then an update has optimizers with a memory
    if size:
        _shrink(device, size)
    policy = _placed(*base, settings, device)
    print(f"{model} is there after {time.monotonic() - began:.0f} s", flush=True)
    return _print(model, settings, policy, given.repeats)


def _print(model: str, settings: Settings, policy: Policy, repeats: int, card: Card | None = None) -> int:
    """One by one, as they are there: what is cut short has said something. On a card that is only counted nothing takes time."""
    say, device = partial(print, flush=True), policy.device
    schedule = schedule_of(policy.family.noise)
    sampler = Sampler(policy, schedule, timestep_fraction=settings.learn.timestep_fraction)
    trainer = Trainer(policy, schedule, settings.learn, seed=0)
    draw, k = DrawSettings.of(settings.draw), settings.draw.num_images_per_prompt
    seeds = tuple(range(k))

    say(f"{model} on {_name(device)}, {str(policy.dtype).removeprefix('torch.')}, k = {k}, {draw.num_inference_steps} steps")
    size = sum(parameter.numel() for parameter in policy.denoiser.parameters())
    memory = f"; {policy.gauge.in_use()[1] / 1e9:.3g} GB of memory" if policy.gauge else ""
    say(f"weights of the denoiser and its adapters: {size / 1e6:.0f} M; offload: {policy.offload}{memory}")

    drawing, drawn, peak = _measured(lambda: sampler.draw("a red circle", draw, seeds), repeats, device, card)
    steps = k * draw.num_inference_steps
    pace = "" if card else f"{drawn:.2f} s; {k / drawn:.3g} images/s; {steps / drawn:.3g} image-steps/s; "
    say(f"draw a group: {pace}peak {peak / 1e9:.2f} GB")

    flops, share = _flops(policy, draw, k), ""
    if not card:
        most, rate = _matrix_rate(policy.dtype, device), flops * draw.num_inference_steps / drawn
        share = f"; drawing: {rate / 1e9:.0f} GFLOP/s, {rate / most:.0%} of matrix products' {most / 1e9:.0f}"
    say(f"one denoiser call: {flops / 1e9:.1f} GFLOP{share}")

    example = rated(trainer, drawing)
    _, trained, peak = _measured(lambda: sum(1 for _ in trainer.update([example])), repeats, device, card)
    pace = "" if card else f"{trained:.2f} s; "
    say(f"update on it: {pace}peak {peak / 1e9:.2f} GB; {trainer.room.size} images at a time; recomputed: {policy.checkpointing}")
    return 0


def _loaded(model: str, settings: Settings, device: torch.device) -> tuple[Any, Words | None]:
    """The pipeline, in the computer's memory, and the words of a prompt where it has no text encoders."""
    half = device.type == "cuda" or device == ON_CARD
    if model not in PUBLISHED:
        return load_pipeline(str(EMBEDDED) if model == "embedded" else model, settings.revision, torch.device("cuda") if half else device), None
    with device:  # a CPU takes minutes to draw twelve billion numbers
        pipeline, words = random_pipeline(model, half=half)
    for part in (part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)):
        load(part) if device == ON_CARD else part.to("cpu")
    return pipeline, words


def _placed(pipeline: Any, words: Words | None, settings: Settings, device: torch.device, card: Card | None = None) -> Policy:
    """What is to be on the device, there; `words` are those of any prompt."""
    policy = Policy(pipeline, settings.lora, size=settings.draw.size, device=device, memory=settings.memory, gauge=card)
    if words is not None:
        embeddings = Embeddings(words, words).to(device)
        policy.encode_prompt = lambda *prompts: embeddings  # type: ignore[method-assign]
    return policy


def _measured(work: Callable[[], Any], repeats: int, device: torch.device, card: Card | None) -> tuple[Any, float, int]:
    """(what it gives, median seconds, peak bytes) of it; of more than one time the first does not count."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    if card:
        card.most = card.used
    taken = []
    for _ in range(repeats):
        began = time.monotonic()
        made = work()
        _wait(device)
        taken.append(time.monotonic() - began)
    return made, statistics.median(taken[1:] or taken), card.most if card else _peak(device)


def _shrink(device: torch.device, size: int) -> None:
    """From now on this GPU has so many bytes."""
    torch.cuda.empty_cache()
    index = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.set_per_process_memory_fraction(size / torch.cuda.get_device_properties(index).total_memory, index)
    torch.cuda.mem_get_info = lambda device=None: (max(0, size - torch.cuda.memory_reserved(device)), size)


def _peak(device: torch.device) -> int:
    """Most bytes that were in use: on the GPU, or of the process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations a second of a large matrix product, the best of five."""
    side = SQUARE if device.type == "cuda" else SQUARE // 4
    one, other = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        _wait(device)
        began = time.monotonic()
        for _ in range(4):
            one @ other
        _wait(device)
        best = min(best, time.monotonic() - began)
    return 4 * 2 * side**3 / best


@torch.no_grad()
def _flops(policy: Policy, draw: DrawSettings, k: int) -> int:
    """Of one call of the denoiser for a group, guidance included."""
    latents = torch.zeros(k, *policy.latent_shape, dtype=policy.dtype, device=policy.device)
    embeddings = policy.encode_prompt("a red circle", "")
    with FlopCounterMode(display=False) as counter, policy.acting(LEARNER):
        policy.predict(latents, torch.tensor(500, device=policy.device), embeddings, draw.guidance_scale)
    counted: int = counter.get_total_flops()
    return counted


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _name(device: torch.device) -> str:
    if device == ON_CARD:
        return "a card that is only counted"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({torch.get_num_threads()} threads)"
