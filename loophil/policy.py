"""The policy: a frozen base pipeline with its LoRA adapters: `learner` (being trained), `published` (draws), and `origin` where one was brought.

It predicts, encodes prompts, decodes latents, and moves weights in and out. It knows no scheduler step, no reward and no
rating. Everything here runs in the worker thread, the only owner of the device.
"""

import contextlib
import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from loophil.config import ALPHA, RANK, Lora
from loophil.errors import ConfigError
from loophil.families import Embeddings, Words, family_of, family_type
from loophil.load_failure import FAILURES, why
from loophil.lora_file import LoraFile
from loophil.lora_fit import fit

LEARNER, PUBLISHED, ORIGIN, BASE = "learner", "published", "origin", "base"
CACHED_PROMPTS = 256
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
# What a checkpoint's keys hold, and the pipeline that it is of.
CHECKPOINTS = {
    "joint_blocks.": "StableDiffusion3Pipeline",
    "double_blocks.": "FluxPipeline",
    "conditioner.embedders.1.": "StableDiffusionXLPipeline",
    "cond_stage_model.": "StableDiffusionPipeline",
}


def choose_device(name: str) -> torch.device:
    """ "auto" -> cuda, else mps, else cpu; a device that is not there is a ConfigError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present[device.type] or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(f"Device '{name}' is not there. Use --device auto or --device cpu.")
    return device


def device_memory(device: torch.device) -> tuple[int, int] | None:
    """(bytes in use by anybody, bytes in all) of a GPU; None where the device has no memory of its own."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return total - free, total


def load_pipeline(model: str, revision: str | None, device: torch.device) -> DiffusionPipeline:
    """The base pipeline, safetensors only; half precision on a GPU, float32 elsewhere. ConfigError says what went wrong.

    model: a folder in diffusers' format, a Hub id, or one .safetensors with everything in it. A kind that is not supported is refused before its
    weights are read.
    """
    if model.endswith(PICKLES):
        raise ConfigError(f"The model '{model}' is a pickle, which can run programs: give it as .safetensors, or as a folder in diffusers' format.")
    for logging in (diffusers_logging, transformers_logging):  # bars of files read from disk; those of downloads stay
        logging.disable_progress_bar()
    try:
        pipeline = _from_single_file(Path(model), device) if model.endswith(".safetensors") else _from_folder(model, revision, device)
    except (*FAILURES, SafetensorError) as error:
        raise ConfigError(f"The model '{model}' cannot be loaded: {why(error, model, revision)}") from error
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.to(memory_format=torch.channels_last)  # convolutions are an eighth faster so
    return pipeline.to(device)


def _from_folder(model: str, revision: str | None, device: torch.device) -> DiffusionPipeline:
    """A pipeline of a folder, or of the Hub."""
    kind = _kind_of(model, revision)
    return DiffusionPipeline.from_pretrained(model, revision=revision, use_safetensors=True, **_wanted(kind, device))


def _from_single_file(file: Path, device: torch.device) -> DiffusionPipeline:
    """A pipeline of one checkpoint. Its configs lie in a folder beside it, of its name or its own; else they are the Hub's for what its keys say."""
    with safe_open(file, framework="pt") as content:
        keys = content.keys()
    beside = next((folder for folder in (file.with_suffix(""), file.parent) if (folder / "model_index.json").is_file()), None)
    kind = _kind_of(str(beside)) if beside else next((kind for mark, kind in CHECKPOINTS.items() if any(mark in key for key in keys)), "")
    if not kind:
        raise ConfigError(f"'{file}' is no checkpoint of a whole model that can be tuned (Stable Diffusion, SDXL, SD3, FLUX).")
    wanted = _wanted(kind, device)
    try:
        given = {"config": str(beside), "local_files_only": True} if beside else {}
        pipeline: DiffusionPipeline = getattr(diffusers, kind).from_single_file(str(file), **given, **wanted)
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        place = file.with_suffix("")
        raise ConfigError(f"The configs of '{file}' are not here, and no Hub is reached: put its model's folder at {place}.") from error
    except SingleFileComponentError as error:
        raise ConfigError(f"'{file}' is no whole model: {error.message.splitlines()[0]} Give a checkpoint that is, or a folder.") from error
    except NotImplementedError as error:  # of torch: some layers have got no weights
        raise ConfigError(f"'{file}' has no weights for some layers: it is of another model than its configs, or damaged.") from error
    return pipeline


def _kind_of(model: str, revision: str | None = None) -> str:
    """The class of a pipeline, by its config alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")  # diffusers' own call
        return str(DiffusionPipeline.load_config(model, revision=revision)["_class_name"])


def _wanted(kind: str, device: torch.device) -> dict[str, Any]:
    """How a pipeline of this class is to be loaded; ConfigError for one that is not supported."""
    family = family_type(kind)
    return {"dtype": family.half if device.type == "cuda" else torch.float32, **dict.fromkeys(family.without)}


class Policy:
    """A base pipeline and its two adapters.

    pipeline    a diffusers text-to-image pipeline on its device; its weights are frozen here
    lora        rank, alpha and target modules of both adapters
    version     number of the published weights; 0 = the base
    reference   whom the learner is held to: the base, or the origin, see `refer`
    size        width and height of the pictures in pixels, 0 = what the model was made for; ConfigError where it does not fit the latents
    """

    def __init__(self, pipeline: Any, lora: Lora, *, seed: int = 0, size: int = 0) -> None:
        self.pipeline = pipeline
        self.lora = lora
        self.rank, self.alpha = lora.rank or RANK, lora.alpha or ALPHA
        self.version = 0
        self.reference = BASE
        self.family = family_of(pipeline, size)
        self.denoiser: Any = self.family.denoiser
        self.latent_shape = self.family.latent_shape
        self.device: torch.device = self.denoiser.device
        self._prompts: OrderedDict[tuple[str, str], Embeddings] = OrderedDict()
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False).eval()
        self._modules = [name for name, _ in self.denoiser.named_modules()]
        self._add_adapters((PUBLISHED, LEARNER), seed)
        self._copy(self._adapter(LEARNER), PUBLISHED)
        self._layers = [module for module in self.denoiser.modules() if isinstance(module, BaseTunerLayer)]
        self._initial = self.weights(PUBLISHED)
        self._learned = [parameter for _, parameter in sorted(self._adapter(LEARNER).items())]
        self._active = ""
        self._activate(PUBLISHED)

    def _add_adapters(self, names: Sequence[str], seed: int = 0) -> None:
        """Adapters in float32; lora_B is 0, so that they change nothing yet."""
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=self.targets, init_lora_weights=True)
        with _seeded(seed), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # two adapters are meant
            try:
                for name in names:
                    self.denoiser.add_adapter(config, adapter_name=name)
            except ValueError as error:  # peft: no module has such a name, or it is of a kind that takes no LoRA
                own = ",".join(self.family.targets)
                raise ConfigError(f"'{self.lora.targets}' cannot carry a LoRA in this model. Use --lora.targets {own}.") from error
        self.denoiser.eval()  # peft adds its layers in training mode
        for name in names:
            for parameter in self._adapter(name).values():
                parameter.data = parameter.data.float()

    @property
    def targets(self) -> list[str]:
        """Module name endings that carry the LoRA, in order; the family's own where the settings name none."""
        return [target.strip() for target in self.lora.targets.split(",") if target.strip()] if self.lora.targets else list(self.family.targets)

    @property
    def dtype(self) -> torch.dtype:
        """The denoiser's storage dtype; LoRA matrices are float32 whatever it is."""
        return self.family.dtype

    @property
    def dimensions(self) -> int:
        """D, the number of latent dimensions that a log-probability is the mean over."""
        channels, height, width = self.latent_shape
        return channels * height * width

    @contextlib.contextmanager
    def acting(self, who: str) -> Iterator[None]:
        """Within the block the denoiser is `learner`, `published`, `origin` or `base`; afterwards what it was before."""
        before = self._active
        self._activate(who)
        try:
            yield
        finally:
            self._activate(before)

    def _activate(self, who: str) -> None:
        if who == self._active:
            return
        for layer in self._layers:  # diffusers' own switch walks through the whole network, a quarter of a small update
            if who == BASE or self._active in ("", BASE):
                layer.enable_adapters(who != BASE)
            if who != BASE:
                layer.set_adapter(who)
        for parameter in self._learned:  # peft freezes an adapter that is not active, and its gradients would be lost with it
            parameter.requires_grad_(True)
        self._active = who

    def predict(self, latents: torch.Tensor, timestep: torch.Tensor, embeddings: Embeddings, guidance_scale: float) -> torch.Tensor:
        """The model's output (B, C, H, W) at latents (B, C, H, W), timestep () or (B,), as the stock pipeline would have it.

        `embeddings` are of one prompt or of B. guidance_scale 1 means no guidance.
        """
        return self.family.predict(latents, timestep, embeddings, guidance_scale)

    def unguided(self, embeddings: Embeddings, guidance_scale: float) -> Words:
        """What the model itself is told of a prompt, where guidance is left out: `predict` with these as both halves and a scale of 1."""
        return self.family.unguided(embeddings, guidance_scale)

    @torch.no_grad()
    def encode_prompt(self, prompt: str, negative_prompt: str = "") -> Embeddings:
        """What the denoiser is told of one prompt; the last few hundred are kept."""
        key = (prompt, negative_prompt)
        if key not in self._prompts:
            self._prompts[key] = self.family.encode(prompt, negative_prompt)
            while len(self._prompts) > CACHED_PROMPTS:
                self._prompts.popitem(last=False)
        self._prompts.move_to_end(key)
        return self._prompts[key]

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> list[Image.Image]:
        """Pictures of clean latents (B, C, H, W)."""
        return self.family.decode(latents)

    def parameters(self) -> list[torch.nn.Parameter]:
        """The learner's LoRA matrices, in a fixed order."""
        return list(self._learned)

    def weights(self, who: str = PUBLISHED) -> dict[str, torch.Tensor]:
        """A copy of an adapter: bare peft keys ("....to_q.lora_A.weight"), float32, on the CPU."""
        return {key: value.detach().float().cpu().clone() for key, value in self._adapter(who).items()}

    def load_weights(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """Makes these weights both the published and the learner's; keys and shapes must be exactly the adapter's."""
        self._copy(weights, PUBLISHED)
        self._copy(weights, LEARNER)
        self.version = version

    def reset(self, version: int = 0) -> None:
        """Back to an adapter that changes nothing."""
        self.load_weights(self._initial, version)

    def next_weights(self, ema: float = 0.0) -> dict[str, torch.Tensor]:
        """What a refresh would publish: the learner's weights (`ema` > 0: the published ones moved 1 - ema of the way there)."""
        learned, published = self.weights(LEARNER), self.weights(PUBLISHED)
        return {key: torch.lerp(published[key], learned[key], 1 - ema) for key in learned}

    def refresh(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """These weights draw from now on, as `version`. The learner's stay as they are."""
        self._copy(weights, PUBLISHED)
        self.version = version

    @contextlib.contextmanager
    def wearing(self, weights: Mapping[str, torch.Tensor], strength: float = 1.0) -> Iterator[None]:
        """Within the block `published` draws with these weights, at this LoRA strength (1 = as learned, 0 = the base)."""
        own = self.weights()
        try:
            self._copy({key: value * strength if ".lora_B." in key else value for key, value in weights.items()}, PUBLISHED)
            yield
        finally:
            self._copy(own, PUBLISHED)

    def train_from(self, weights: Mapping[str, torch.Tensor]) -> None:
        """The learner goes on from these weights; what draws stays."""
        self._copy(weights, LEARNER)

    def discard(self) -> None:
        """The learner goes back to the published weights: an update was thrown away."""
        self.train_from(self._adapter(PUBLISHED))

    def take(self, lora: LoraFile) -> dict[str, torch.Tensor]:
        """The weights of a LoRA that somebody brings, as `weights` has them; ConfigError unless they fit exactly."""
        layers = {key: tuple(value.shape) for key, value in self._adapter(LEARNER).items()}
        return {key: torch.from_numpy(array) for key, array in fit(lora, self.family.component, layers, self._modules).items()}

    def begin_from(self, weights: Mapping[str, torch.Tensor]) -> None:
        """These weights are the origin: the LoRA that the run goes on tuning. Who draws and who learns stays."""
        before = self._active
        if not self._adapter(ORIGIN):
            self._add_adapters([ORIGIN])
        self._copy(weights, ORIGIN)
        self._active = ""  # peft has made the new one active
        self._activate(before)

    def refer(self, to_origin: bool) -> None:
        """The reference is the origin, if there is one and it is asked for, else the base."""
        self.reference = ORIGIN if to_origin and self._adapter(ORIGIN) else BASE

    def write(self, weights: Mapping[str, torch.Tensor], path: Path) -> None:
        """Keeps an adapter's weights as safetensors."""
        save_file(dict(weights), path)

    def read(self, path: Path) -> dict[str, torch.Tensor]:
        """Weights that `write` kept."""
        return load_file(path)

    def fingerprint(self) -> str:
        """sha256 over the published weights, for tests and the record."""
        digest = hashlib.sha256()
        for key, value in sorted(self.weights().items()):
            digest.update(key.encode() + value.numpy().tobytes())
        return digest.hexdigest()

    def _adapter(self, name: str) -> dict[str, torch.nn.Parameter]:
        mark = f".{name}."
        return {key.replace(mark, "."): value for key, value in self.denoiser.named_parameters() if mark in key}

    def _copy(self, weights: Mapping[str, torch.Tensor], name: str) -> None:
        mine = self._adapter(name)
        wrong = sorted(set(mine) ^ set(weights)) or sorted(k for k in mine if mine[k].shape != weights[k].shape)
        if wrong:
            raise ConfigError(f"The LoRA does not fit this model and these settings: '{wrong[0]}' and {len(wrong) - 1} more differ.")
        with torch.no_grad():
            for key, value in mine.items():
                value.copy_(weights[key])


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Torch's global generator seeded within the block, restored after it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
