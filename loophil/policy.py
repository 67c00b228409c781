"""The policy: a frozen base pipeline with its LoRA adapters: `learner` (being trained), `published` (draws), and `origin` where one was brought.

It predicts, encodes prompts, decodes latents, moves weights in and out, and has on the device what must be there (offload.py). It knows no
scheduler step, no reward and no rating. Everything here runs in the worker thread, the only owner of the device.
"""

import contextlib
import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.checkpoint import checkpoint

from loophil.config import ALPHA, RANK, Lora, Memory
from loophil.errors import ConfigError
from loophil.families import Embeddings, Words, family_of
from loophil.lora_file import LoraFile
from loophil.lora_fit import fit
from loophil.memory import Gauge, gauge_of
from loophil.offload import in_parts, offload_of, park, size_of, visiting
from loophil.prompt_cache import NoPromptCache, digest_of

LEARNER, PUBLISHED, ORIGIN, BASE = "learner", "published", "origin", "base"
CACHED_PROMPTS = 256
ENCODING = 0.9  # of what is free on the device may be taken by text encoders: they need room to work, too
COMPILER: dict[str, Any] = {"backend": "inductor", "dynamic": True}  # dynamic: micro-batches and drawings differ in size
COMPILED_VARIANTS = 32  # of the denoiser: each adapter, with and without gradients


class Policy:
    """A base pipeline and its adapters.

    pipeline    a diffusers text-to-image pipeline; its weights are frozen here, and moved to the device as far as they are not offloaded
    lora        rank, alpha and target modules of both adapters
    version     number of the published weights; 0 = the base
    reference   whom the learner is held to: the base, or the origin, see `refer`
    size        width and height of the pictures in pixels, 0 = what the model was made for; ConfigError where it does not fit the latents
    device      where it works; None = where the pipeline is
    memory      what is offloaded, recomputed, compiled;  cache: prompts that were encoded before
    gauge       what says how much memory the device has, and is free; None = the device itself, if it is one that can
    """

    def __init__(
        self,
        pipeline: Any,
        lora: Lora,
        *,
        seed: int = 0,
        size: int = 0,
        device: torch.device | None = None,
        memory: Memory | None = None,
        cache: NoPromptCache | None = None,
        gauge: Gauge | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.lora = lora
        self.rank, self.alpha = lora.rank or RANK, lora.alpha or ALPHA
        self.memory = memory or Memory()
        self.version = 0
        self.reference = BASE
        self.family = family_of(pipeline, size, device)
        self.denoiser: Any = self.family.denoiser
        self.latent_shape = self.family.latent_shape
        self.device = self.family.device
        self.gauge = gauge or gauge_of(self.device)
        self.offload = offload_of(self.memory.offload, size_of(self.denoiser), self.gauge.in_use()[1] if self.gauge else None)
        if self.memory.compile and self.offload == "group":
            raise ConfigError("The denoiser is too large for this GPU to be compiled: leave --memory.compile off, or give --memory.offload model.")
        self._cache = cache or NoPromptCache()
        self._prompts: OrderedDict[tuple[str, str], Embeddings] = OrderedDict()
        self._place(seed)
        self._layers = [module for module in self.denoiser.modules() if isinstance(module, BaseTunerLayer)]
        self._initial = self.weights(PUBLISHED)
        self._learned = [parameter for _, parameter in sorted(self._adapter(LEARNER).items())]
        self._active = ""
        self._activate(PUBLISHED)
        self._recomputing = False
        if self.memory.checkpointing == "on":
            self._recompute()
        if self.memory.compile:
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_VARIANTS)
            self.denoiser.compile(**COMPILER)

    def _place(self, seed: int) -> None:
        """Everything frozen, the adapters added, and on the device what is to be there."""
        if self.device.type == "cuda":
            torch.backends.cuda.enable_cudnn_sdp(False)  # on an H200 its gradient of FLUX's attention was NaN (pytorch issue 196678)
        for part in self.pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False).eval()
                if self.offload == "none" or (part is self.denoiser and self.offload == "model"):
                    part.to(self.device)
        self._modules = [name for name, _ in self.denoiser.named_modules()]
        self._add_adapters((PUBLISHED, LEARNER), seed)
        self._copy(self._adapter(LEARNER), PUBLISHED)
        if self.offload == "group":
            park(self.denoiser, self.device)

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
        for name, module in self.denoiser.named_modules():
            if name.rpartition(".")[2] in names:
                module.to(self.device, torch.float32)  # its layer may be parked elsewhere

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

    @property
    def checkpointing(self) -> bool:
        """Whether activations are recomputed in a backward pass instead of kept."""
        return self._recomputing

    def spare(self) -> bool:
        """Takes less memory to train, if the settings leave that open; whether it did. A compiled graph keeps what it keeps."""
        if self._recomputing or self.memory.checkpointing != "auto" or self.memory.compile:
            return False
        self._recompute()
        return True

    def rehearse(self, embeddings: Embeddings, guidance_scale: float) -> None:
        """A forward and backward of one image that teaches nothing, to see what memory it takes."""
        latents = torch.zeros(1, *self.latent_shape, device=self.device, dtype=self.dtype)
        with self.acting(LEARNER):
            output = self.predict(latents, torch.tensor(500, device=self.device), embeddings, guidance_scale)
            output.float().square().mean().backward()
        for parameter in self._learned:
            parameter.grad = None

    def _recompute(self) -> None:
        self.denoiser.enable_gradient_checkpointing(self._checkpointed)
        self._recomputing = True

    def _checkpointed(self, module: Any, *args: Any) -> Any:
        """A block whose activations are recomputed by the adapter that computed them: by then another one may be active."""
        who = self._active
        now_and_then = lambda: (contextlib.nullcontext(), self.acting(who))  # noqa: E731
        return checkpoint(module, *args, use_reentrant=False, preserve_rng_state=False, context_fn=now_and_then)

    @torch.no_grad()
    def encode_prompt(self, prompt: str, negative_prompt: str = "") -> Embeddings:
        """What the denoiser is told of one prompt; the last few hundred are kept, beside the text encoders."""
        key = (prompt, negative_prompt)
        if key not in self._prompts:
            self._prompts[key] = self._encoded(prompt, negative_prompt)
            while len(self._prompts) > CACHED_PROMPTS:
                self._prompts.popitem(last=False)
        self._prompts.move_to_end(key)
        return self._prompts[key]

    def _encoded(self, prompt: str, negative_prompt: str) -> Embeddings:
        """From the cache, else by the text encoders: on the device, or where they wait if they do not fit there."""
        encoders, home = self.family.text_encoders, self.family.text_encoders[0].device
        key = (self._encoders_digest, str(self.dtype), str(self.latent_shape), prompt, negative_prompt)
        kept = self._cache.read(key)
        if kept is None:
            fits = self.gauge is None or size_of(*encoders) < ENCODING * self.gauge.free()
            with visiting(encoders, self.device if fits else home):
                kept = self.family.encode(prompt, negative_prompt)
            self._cache.write(key, kept)
        return Embeddings(*kept).to(home)

    @cached_property
    def _encoders_digest(self) -> str:
        return digest_of(self.family.text_encoders)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> list[Image.Image]:
        """Pictures of clean latents (B, C, H, W); on a GPU a large group one by one, and a large picture in tiles."""
        vae, side = self.pipeline.vae, self.pipeline.vae_scale_factor
        if self.gauge is not None:
            vae.use_slicing, vae.use_tiling = in_parts(len(latents), latents.shape[2] * latents.shape[3] * side**2)
        with visiting([vae], self.device):
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
