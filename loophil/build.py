"""Puts the parts together: settings -> a Session. The only module that knows both `loophil` and `rewards`.

Torch, diffusers and the rewards are imported in the worker, so that the page is there before them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from platformdirs import user_cache_path

from loophil.config import ALPHA, RANK, Lora, Settings
from loophil.errors import ConfigError, UnknownVersion
from loophil.jobs import ADAPTER, LORA, Engine, Learner, Scores, adopted
from loophil.loop import Loop
from loophil.lora_file import LoraFile, read_lora
from loophil.prompts import PromptSource, expand, held_out, load_prompts
from loophil.session import Session
from loophil.snapshots import NoSnapshots, Snapshots
from loophil.snapshots.places import place_of
from loophil.space import notes
from loophil.store import SET_ON_PAGE, Store, describe_runs, last_opened, open_run
from loophil.types import DrawSettings, Label

if TYPE_CHECKING:
    from loophil.prompt_cache import NoPromptCache
    from loophil.sampler import Sampler

EMBEDDED = Path(__file__).parent.parent / "data" / "base"
PICTURED_PROMPTS = 4
BASE = "2 of 3: the weights of the base"
SIZE = "draw.size"  # the note of a run's picture size
PICTURED_SEED = 42


def build(settings: Settings) -> Session:
    """An open session that begins to load its model in the background. Raises ConfigError or RunError."""
    prompts = load_prompts(settings.draw.prompts)
    scales = reward_scales(settings)
    lora = read_lora(Path(settings.lora.file).expanduser()) if settings.lora.file else None
    place = place_of(settings.snapshots) if settings.snapshots else None
    kept = settings.model_dump_json(exclude={"auth": True, "lora": {"file"}})
    store = open_run(settings.runs, settings.run, base_model=settings.model, revision=_revision(settings), settings_json=kept)
    _same_size(store, settings.draw.size)
    settings = settings.model_copy(update={"lora": _its_lora(store, settings.lora, lora)})
    settings = settings.resumed(
        {name: value for name, value in store.noted(SET_ON_PAGE, {}).items() if name != "rewards" or set(value) <= set(scales)}
    )
    trained, measured = held_out(prompts)
    source = PromptSource(trained, seed=settings.seed, position=int(store.noted("prompts.position", 0)))

    def load(say: Callable[[str], None]) -> Engine:
        pinned = settings if settings.model == "embedded" else settings.model_copy(update={"revision": store.revision()})
        engine = load_engine(pinned, say)
        if engine.commit:
            store.pin(engine.commit)
        if store.noted(LORA, {}).get("sha256"):
            _begin_from_lora(engine, loop.learner, lora)
            loop.settings = loop.settings.changed({"lora.file": ""})  # the run has it now, and can be opened again without
        return engine

    loop = Loop(store, settings, source, load, scales)
    loop.start()
    snapshots = Snapshots(place, store, lambda: loop.status) if place else NoSnapshots()
    snapshots.start()

    def export(engine: Engine, format: str, label: Label) -> Path:
        return export_adapter(engine, format, label, store=store, settings=loop.settings, prompts=source.prompts)

    return Session(loop, export, blind_prompts=measured, snapshots=snapshots, notes=notes(settings))


def open_store(settings: Settings) -> Store:
    """The run alone, for what needs no model: with the settings of its last opening, or new. Raises ConfigError or RunError."""
    name = settings.run or last_opened(settings.runs)
    for info in describe_runs(settings.runs):
        if info.name == name:
            settings = settings.of_run(name, info.settings)
    return open_run(
        settings.runs, settings.run, base_model=settings.model, revision=_revision(settings), settings_json=settings.model_dump_json(exclude={"auth"})
    )


def reward_scales(settings: Settings) -> dict[str, float]:
    """{reward: nominal spread} of the rewards asked for; ConfigError for one that does not exist."""
    from rewards import RewardError, scale_of

    try:
        return {name: scale_of(name) for name in settings.rewards}
    except RewardError as error:
        raise ConfigError(str(error)) from None


def load_rater(where: str) -> Callable[..., Any]:
    """The simulated person NAME of FILE.py, given as FILE.py:NAME; ConfigError where there is none."""
    from rewards import RewardError
    from rewards.function import Function

    try:
        return Function.load(where).function
    except RewardError as error:
        raise ConfigError(f"--rater {where}: {error}") from None


def follows(image: Image.Image, prompt: str) -> float | None:
    """Share of a prompt's stated attributes that a picture confirms; None where the picture world cannot read the prompt."""
    from rewards import load

    value = load("scene_check").score([image], [prompt]).value[0]
    return float(value) if np.isfinite(value) else None


def measured_prompts(settings: Settings) -> list[str]:
    """The 24 prompts of the run's list that it never trains on."""
    _, measured = held_out(load_prompts(settings.draw.prompts))
    return measured


def load_engine(settings: Settings, say: Callable[[str], None] = lambda part: None) -> Engine:
    """The model, its adapters, sampler, trainer and rewards, on the device. Called in the worker; says which part it is at."""
    say("1 of 3: torch and diffusers")
    from loophil.families import drawing_of
    from loophil.pipeline import choose_device, commit_of, load_pipeline
    from loophil.policy import Policy
    from loophil.preview import load_preview
    from loophil.sampler import Sampler
    from loophil.scheduler import schedule_of
    from loophil.trainer import Trainer

    device = choose_device(settings.device)
    say(BASE)
    model = str(EMBEDDED) if settings.model == "embedded" else settings.model
    commit = commit_of(model, settings.revision)
    settings = settings.model_copy(update={"revision": commit or settings.revision})
    pipeline: Any = load_pipeline(model, settings.revision, device, lambda part: say(f"{BASE}; {part}"))
    say("3 of 3: the LoRA")
    policy = Policy(
        pipeline, settings.lora, seed=settings.seed, size=settings.draw.size, device=device, memory=settings.memory, cache=prompt_cache(settings)
    )
    drawing = {} if settings.model == "embedded" else drawing_of(policy.family, settings.model)
    settings = settings.resumed(drawing)
    schedule = schedule_of(policy.family.noise)
    window = {"auto": None, "on": True, "off": False}[settings.draw.noise_window]
    sampler = Sampler(policy, schedule, timestep_fraction=settings.learn.timestep_fraction, window=window)
    if settings.memory.compile:
        say("4 of 4: compiling the model; the first time that takes minutes")
        warm_up(sampler, settings)
    return Engine(
        policy=policy,
        sampler=sampler,
        trainer=Trainer(policy, schedule, settings.learn, seed=settings.seed),
        score=scorer(settings, str(device)),
        describe=describer(settings, str(device)),
        scheduler=sampler.process,
        device=str(device),
        memory=lambda: policy.gauge.in_use() if policy.gauge else None,
        drawing=drawing,
        note=partial(_note, sampler),
        commit=commit,
        preview=load_preview(settings.draw.preview, policy.latent_shape[0], device, policy.dtype) if settings.draw.preview else None,
    )


def prompt_cache(settings: Settings) -> NoPromptCache:
    """Where embeddings of prompts are kept; the embedded model's are made faster than they are read."""
    from loophil.prompt_cache import NoPromptCache, PromptCache

    if settings.model == "embedded" or not settings.memory.prompt_cache_mb:
        return NoPromptCache()
    return PromptCache(user_cache_path("loophil") / "prompts", settings.memory.prompt_cache_mb * 2**20, (settings.model, settings.revision or ""))


def warm_up(sampler: Sampler, settings: Settings) -> None:
    """Draws a group that nobody sees, so that the denoiser is compiled; ConfigError where it cannot be."""
    draw = replace(DrawSettings.of(settings.draw), num_inference_steps=2)
    try:
        sampler.pictures("", draw, tuple(range(settings.draw.num_images_per_prompt)), who="published")
    except RuntimeError as error:
        if type(error).__module__.startswith("torch._"):  # of dynamo or inductor, and not of what is drawn
            reason = " ".join(str(error).split("\n\n")[0].split())
            raise ConfigError(f"torch.compile does not work here ({reason}): leave --memory.compile off.") from error
        raise


def _note(sampler: Sampler, settings: Settings) -> str:
    """What to say where a drawing has no steps that trajectories can be trained on; ConfigError where nothing else would learn."""
    draw = settings.draw
    if not settings.learn.trajectory_passes or sampler.trained_steps(DrawSettings.of(draw)):
        return ""
    few = f"{draw.num_inference_steps} denoising steps at eta {draw.eta:g} leave this model no noise for trajectories to learn from"
    if not settings.learn.forward_passes:
        raise ConfigError(f"{few}: choose more steps, or --learn.forward-passes above 0.")
    return f"{few}: only the forward process learns."


def scorer(settings: Settings, device: str) -> Callable[[Sequence[Image.Image], Sequence[str], Collection[str]], Scores]:
    """The rewards of the settings as one function, which asks those it is given the names of: each is loaded at its first use and guarded."""
    from rewards import Guard, load

    guards = {name: Guard(name, partial(load, name, device=device)) for name in settings.rewards}

    def score(images: Sequence[Image.Image], prompts: Sequence[str], names: Collection[str]) -> dict[str, tuple[NDArray[np.float64], str]]:
        made = {}
        for name in names:
            scores, reason = guards[name].score(images, prompts)
            made[name] = (scores.value, reason or "")
        return made

    return score


def describer(settings: Settings, device: str) -> Callable[[Sequence[Image.Image], Sequence[str]], Sequence[NDArray[np.float64]]]:
    """(images, prompts) -> what the taste model learns from: statistics of pixels, open_clip features of the pictures, their fit to the prompt.

    Nothing is downloaded that nobody asked for: of another model than the embedded one, the statistics alone, unless an open_clip model is named.
    """

    def describe(images: Sequence[Image.Image], prompts: Sequence[str]) -> Sequence[NDArray[np.float64]]:
        from rewards import features

        statistics = features.pixel_statistics(images)
        model = settings.learn.taste_clip or (features.EMBEDDED if settings.model == "embedded" else "")
        if not model:
            return (statistics,)
        clip = features.shared_features(model, device=device)
        seen, meant = clip.images(images), clip.texts(prompts)
        return statistics, seen, np.einsum("nd,nd->n", seen, meant)[:, None]

    return describe


def export_adapter(engine: Engine, format: str, label: Label, *, store: Store, settings: Settings, prompts: Sequence[str]) -> Path:
    """Writes the published adapter to the run's exports folder, with pictures before and after: of the label's covers, or of the first prompts."""
    from loophil.evaluation import wilson
    from loophil.export import export
    from loophil.model_card import Adapter, BeforeAfter

    policy, version, counts = engine.policy, store.current_version(), store.counts()
    draw = DrawSettings.of(settings.draw)
    pictures = []
    for prompt in label.covers or [expand(prompt, seed=PICTURED_SEED) for prompt in prompts[:PICTURED_PROMPTS]]:
        base, tuned = (engine.sampler.pictures(prompt, draw, (PICTURED_SEED,), who=who)[0] for who in ("base", "published"))
        pictures.append(BeforeAfter(prompt, PICTURED_SEED, base, tuned))
    blind = next((tally for tally in store.tallies() if tally.version == version.number), None)
    licence = "apache-2.0" if settings.model == "embedded" else "other"
    adapter = Adapter(
        weights=policy.weights(),
        rank=policy.rank,
        alpha=policy.alpha,
        targets=tuple(policy.targets),
        base_model="loophil-embedded" if settings.model == "embedded" else settings.model,
        revision=store.revision(),
        licence=label.licence or licence,
        licence_name=label.licence_name,
        licence_link=label.licence_link,
        trigger=label.trigger,
        version=version.number,
        ratings=version.ratings,
        run=label.name or store.name,
        resolution=pictures[0].base.width if pictures else 512,
        architecture="loophil-embedded" if settings.model == "embedded" else policy.family.architecture,
        created=version.created,
        updates=counts.updates,
        win_rate=(blind.share, *wilson(blind.share * blind.n, blind.n)) if blind and blind.share is not None else None,
        rewards={"human": settings.learn.human_weight, **settings.rewards},
        component=policy.family.component,
    )
    return export(adapter, format, store.path / "exports", pictures=pictures)


def _same_size(store: Store, size: int) -> None:
    """A run's pictures have one size: what is learned from must fit together. ConfigError where it was begun with another."""
    kept = store.noted(SIZE, 0) if store.counts().groups else size
    if kept != size:
        store.close()
        raise ConfigError(f"The run '{store.name}' has draw.size {kept}, not {size}, for all of its pictures: begin a new run for another size.")
    store.note(SIZE, size)


def _its_lora(store: Store, asked: Lora, brought: LoraFile | None) -> Lora:
    """Rank, alpha and targets of the run's LoRA: kept from its beginning, a new run's those of the LoRA that it begins from.

    ConfigError, and the run is closed, where something else is asked for. `file` stays as long as the run has not begun.
    """
    new = store.current_version().number == 0 and store.counts().groups == 0
    said = {"rank": asked.rank, "alpha": asked.alpha, "targets": asked.targets or None, "sha256": brought.sha256 if brought else None}
    if not new:
        its, whose = store.noted(LORA, {"sha256": ""}), f"the run '{store.name}'"
    elif brought:
        its, whose = {"rank": brought.rank, "alpha": brought.alpha or asked.alpha or brought.rank}, f"the LoRA {brought.name}"
    else:
        its, whose = {}, ""
    its = {"rank": asked.rank or RANK, "alpha": asked.alpha or ALPHA, "targets": asked.targets, "sha256": said["sha256"] or ""} | its
    for name, value in said.items():
        if value is not None and value != its[name]:
            store.close()
            if name == "sha256":
                raise ConfigError(f"The run '{store.name}' did not begin from {asked.file}: leave --lora out, or begin another run with --run NAME.")
            raise ConfigError(f"{whose[0].upper()}{whose[1:]} has lora.{name} {its[name]}, not {value}: leave --lora.{name} out.")
    if new:
        store.note(LORA, its)
    return asked.model_copy(update={"rank": its["rank"], "alpha": its["alpha"], "targets": its["targets"], "file": asked.file if new else ""})


def _begin_from_lora(engine: Engine, learner: Learner, brought: LoraFile | None) -> None:
    """The LoRA that the run began from becomes the origin, and, where nothing was published yet, a version."""
    policy, store = engine.policy, learner.store
    try:
        weights = policy.take(brought) if brought else policy.read(store.version_path(adopted(store)) / ADAPTER)
    except UnknownVersion as error:
        raise ConfigError(f"The LoRA that the run '{store.name}' began from is damaged or gone: give it once more by --lora FILE.") from error
    policy.begin_from(weights)
    if learner.current == 0:
        learner.adopt(engine, weights)


def _revision(settings: Settings) -> str | None:
    """What pins the base: the Hub revision, or for the embedded model a digest of its weights, since it changes with the program."""
    if settings.model != "embedded":
        return settings.revision
    weights = EMBEDDED / "unet" / "diffusion_pytorch_model.safetensors"
    if not weights.exists():
        raise ConfigError(f"The embedded model is missing ({weights} is not there). Fetch it with git, or give --model.")
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
