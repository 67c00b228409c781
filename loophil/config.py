"""The settings: one frozen model read from flags, `LOOPHIL_*` variables and defaults, in that order of precedence.

    python app.py --run watercolour --rewards clip_score=1,jpeg=0.2 --learn.learning-rate 1e-3
    LOOPHIL_RUNS=/data/runs LOOPHIL_REWARDS=clip_score=1 LOOPHIL_LEARN__BETA=0.5 python app.py

Every knob has one sentence with its unit and its neutral value. Nothing here imports torch.
"""

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from platformdirs import user_data_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, CliSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from loophil.errors import ConfigError

PREFIX = "LOOPHIL_"
RUN_NAME = r"^[a-z0-9][a-z0-9_-]{0,63}$"
RANK, ALPHA = 16, 32.0  # of a LoRA that nobody has said them of


# Knobs that may change while a run is open; the others shape what is loaded.
LIVE = frozenset(
    {"rewards", "draw.guidance_scale", "draw.negative_prompt"}
    | {f"learn.{knob}" for knob in ("objective", "learning_rate", "trajectory_passes", "max_staleness", "replay", "base_kl", "micro_batch")}
    | {f"learn.forward_{knob}" for knob in ("objective", "learning_rate", "passes", "batch", "fraction")}
    | {f"learn.{knob}" for knob in ("beta", "sft", "human_weight", "taste_weight", "taste_pooling")}
)
# Knobs that a model has its own value of, where nobody says otherwise (`Family.drawing`); the defaults are the embedded one's.
OWN = ("draw.num_inference_steps", "draw.guidance_scale", "draw.eta")
# How bold the learner is, in three words: how far a rating moves it, and how fast.
BOLDNESS: dict[str, dict[str, float]] = {
    "careful": {"learn.beta": 2.0, "learn.learning_rate": 1.5e-4, "learn.forward_learning_rate": 1.5e-4},
    "normal": {"learn.beta": 1.0, "learn.learning_rate": 3e-4, "learn.forward_learning_rate": 3e-4},
    "bold": {"learn.beta": 0.5, "learn.learning_rate": 6e-4, "learn.forward_learning_rate": 6e-4},
}


class Section(BaseModel):
    """A group of knobs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Draw(Section):
    """How groups are drawn."""

    num_images_per_prompt: int = Field(4, ge=2, le=8, description="Images of one prompt shown together, k in the formulae; 4 is LOOP's design point.")
    num_inference_steps: int = Field(
        12,
        ge=1,
        le=100,
        description="Denoising steps; more is finer and slower. Unless said, 20 for other models than the embedded, 4 for few-step ones.",
    )
    guidance_scale: float = Field(3.0, ge=1, le=20, description="Classifier-free guidance; 1 = none. Unless said, what suits the model's kind.")
    eta: float = Field(
        1.0, ge=0, le=1, description="Noise in a step; LOOP needs eta > 0, 1 is as much as DDPM. Unless said, 0.7 for flow matching (SD3, FLUX)."
    )
    noise_window: Literal["auto", "on", "off"] = Field(
        "auto", description="Noise in the trained steps alone, the rest deterministic; auto = on for flow matching (SD3, FLUX), off for DDIM."
    )
    negative_prompt: str = Field("", max_length=1000, description="What not to draw; empty = nothing.")
    size: int = Field(0, ge=0, le=2048, description="Width and height of a picture in pixels, the same for a whole run; 0 = the model's own.")
    prompts: str = Field("world", description="A list of prompts: a name in data/prompts or a text file with one prompt a line; wildcards allowed.")
    preview: str = Field("", description="A tiny autoencoder, madebyollin/taesd or a folder, shows who waits what is being drawn; empty = none.")


class Lora(Section):
    """The adapter. `rank` and `alpha` are None where nobody has said them."""

    file: str = Field("", description="A LoRA to begin a new run from, --lora for short: a .safetensors, a folder or an exported zip; empty = none.")
    rank: int | None = Field(None, ge=1, le=256, description=f"Rank of the LoRA matrices; empty = that of --lora, else {RANK}.")
    alpha: float | None = Field(None, gt=0, description=f"LoRA scale: weights act with alpha / rank; empty = that of --lora, else {ALPHA:g}.")
    targets: str = Field("", description="Module name endings that get a LoRA, comma-separated; empty = the attention of the model's kind.")


class Learn(Section):
    """What an update does."""

    objective: Literal["loop", "ppo", "reinforce", "rloo"] = Field("loop", description="The trajectory objective for groups young enough.")
    learning_rate: float = Field(3e-4, gt=0, le=1, description="AdamW step size of the trajectory objective.")
    forward_learning_rate: float = Field(3e-4, gt=0, le=1, description="AdamW step size of the forward-process objective.")
    clip_nats: float = Field(
        1.0, gt=0, description="PPO's clip range in nats per step, summed over the latent's dimensions (the ratio's epsilon is this / D)."
    )
    dropout_nats: float = Field(8.0, gt=0, description="Transitions whose log-ratio is further from 0 than this many nats per step are left out.")
    kl_cap_nats: float = Field(4.0, gt=0, description="An update stops once its approximate KL passes this many nats per step.")
    timestep_fraction: float = Field(0.34, gt=0, le=1, description="Share of the denoising steps that LOOP trains, the early, noisy ones first.")
    trajectory_passes: int = Field(1, ge=0, le=16, description="Optimizer steps of the trajectory objective in one update; 0 = none.")
    forward_passes: int = Field(4, ge=0, le=64, description="Optimizer steps of the forward-process objective in one update; 0 = pure LOOP.")
    forward_batch: int = Field(8, ge=4, le=1024, description="Noised images in one forward-process step.")
    forward_fraction: float = Field(
        0.6, gt=0, le=1, description="Share of the noise levels that the forward process trains, the noisiest first; 1 = all."
    )
    forward_objective: Literal["nft", "fpo"] = Field(
        "nft", description="The forward-process objective: DiffusionNFT's, or FPO's with the evidence lower bound as likelihood."
    )
    beta: float = Field(
        1.0, gt=0, le=10, description="Forward process: how far a rating moves the policy that drew is 1 / beta; larger is more careful."
    )
    max_staleness: int = Field(4, ge=0, le=1000, description="Groups up to this many versions old train the trajectory objective.")
    replay: bool = Field(False, description="Whether such a group trains it in every update until it is too old; off = in one.")
    advantage_clip: float = Field(3.0, gt=0, description="Advantages are clipped to +- this many standard deviations.")
    base_kl: float = Field(0.0, ge=0, description="Weight of the KL divergence from the base in the trajectory objective; 0 = none.")
    sft: float = Field(0.0, ge=0, description="Weight of the pull towards images with a positive advantage in the forward process; 0 = none.")
    grad_clip: float = Field(1.0, gt=0, description="Largest gradient norm of one optimizer step.")
    micro_batch: int = Field(
        0,
        ge=0,
        le=256,
        description="Images in one forward and backward, halved where memory runs out, the gradient is the same; 0 = as many as fit, at most 16; "
        "8 without CUDA.",
    )
    ema: float = Field(0.0, ge=0, lt=1, description="Moving average of the published adapter; 0 = off, the ratio is then 1 at the first step.")
    taste_weight: float = Field(
        1.0, ge=0, description="Weight in automatic rounds of what the ratings say of your taste, times how well it is understood."
    )
    taste_pooling: Literal["shared", "own"] = Field(
        "shared", description="Whether all raters have one taste, or each their own, whose opinions are averaged."
    )
    taste_clip: str = Field(
        "",
        description="The open_clip model (folder, hf-hub:ORG/NAME, ARCHITECTURE:TAG) by which your taste is learned, besides statistics of pixels; "
        "empty = data/clip for the embedded model, none for others.",
    )
    human_weight: float = Field(1.0, ge=0, description="Weight of the people's ratings in the advantage; 0 = reward models alone.")


class LoopKnobs(Section):
    """What the worker does when."""

    prefetch: int = Field(4, ge=1, le=16, description="Groups kept ready ahead of the person.")
    auto_rounds_per_rating: float = Field(
        0.0, ge=0, le=16, description="Most automatic rounds for each rated group, judged by your taste and the reward models; 0 = none."
    )
    drift_cap_nats: float = Field(
        0.5, gt=0, description="Automatic rounds stop once what they draw is so many nats a step from the base (KL divergence)."
    )
    diversity_floor: float = Field(
        0.7, ge=0, le=1, description="Automatic rounds stop once pictures of one prompt differ less than this share of the base's; 0 = never."
    )
    threaded: bool = Field(True, description="Work in a background thread; off = inside the call, whose caller waits, as the command line does.")


class Memory(Section):
    """What fits, and how fast it is. Nothing of it changes what is learned, save for the rounding of `compile` and `adam_8bit`."""

    checkpointing: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Gradient checkpointing: activations are computed again instead of kept, an update takes about a third longer, the gradient "
        "is the same; auto = where an update would not fit otherwise.",
    )
    offload: Literal["auto", "none", "model", "group"] = Field(
        "auto",
        description="What waits in the computer's memory and not in the GPU's: model = text encoders and VAE, group = the denoiser's layers too "
        "(slow); auto = on CUDA, group where the denoiser takes more than 60% of the GPU or leaves less than 4 GB, else model.",
    )
    prompt_cache_mb: int = Field(256, ge=0, description="Megabytes of prompt embeddings kept in the user's cache folder; 0 = none.")
    adam_8bit: bool = Field(False, description="Optimizer states of 8 bits instead of 32 (needs bitsandbytes and CUDA).")
    compile: bool = Field(
        False,
        description="torch.compile the denoiser: faster after minutes of warming up; the ratio at unchanged weights is then 1 to rounding only.",
    )


class Settings(BaseSettings):
    """Rate pictures, and a text-to-image model learns your taste, live. Each flag is also a variable: LOOPHIL_LEARN__BETA for --learn.beta."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, env_prefix=PREFIX, env_nested_delimiter="__")

    model: str = Field("embedded", description="The base: 'embedded', a Hub id, a folder in diffusers' format, or one .safetensors checkpoint.")
    revision: str | None = Field(None, description="The Hub revision of the base; empty = the newest. A run keeps the commit that it meant at first.")
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, mps, cuda or cuda:N.")
    run: str | None = Field(None, pattern=RUN_NAME, description="Name of the run; empty = the one opened last, else 'first'.")
    runs: Path = Field(default_factory=lambda: user_data_path("loophil", False) / "runs", description="The folder that holds all runs.")
    snapshots: str = Field(
        "",
        description="Where copies of the run are kept and come back from: hf://buckets/USER/BUCKET/PATH, hf://datasets/USER/NAME or a folder; "
        "empty = nowhere.",
    )
    host: str = Field("127.0.0.1", description="Address to listen on; anything but loopback is public.")
    port: int = Field(7860, ge=0, le=65535, description="Port to listen on; 0 = any free one.")
    public: bool = Field(False, description="Let everybody who can reach the page rate and change the run.")
    auth: str = Field("", description="Sign-in for a public page: name:password pairs, comma-separated; empty = none.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the run: prompts, noise and updates follow from it.")
    rewards: Annotated[dict[str, float], NoDecode] = Field(
        default_factory=dict, description="Reward models and weights: name=weight, comma-separated; empty = ratings alone."
    )
    draw: Draw = Draw()
    lora: Lora = Lora()
    learn: Learn = Learn()
    loop: LoopKnobs = LoopKnobs()
    memory: Memory = Memory()

    @field_validator("rewards", mode="before")
    @classmethod
    def _parse_rewards(cls, given: Any) -> Any:
        """`clip_score=1,jpeg=0.2` -> {"clip_score": 1.0, "jpeg": 0.2}."""
        if not isinstance(given, str):
            return given
        parsed = {}
        for part in filter(None, (p.strip() for p in given.split(","))):
            name, equals, weight = part.rpartition("=")
            if not equals or not name:
                raise ValueError(f"'{part}' is not name=weight, as in clip_score=1,jpeg=0.2")
            parsed[name.strip()] = weight
        return parsed

    @model_validator(mode="after")
    def _possible(self) -> "Settings":
        faults = []
        if any(weight < 0 for weight in self.rewards.values()):
            faults.append("reward weights must be 0 or more")
        if self.learn.trajectory_passes == 0 and self.learn.forward_passes == 0:
            faults.append("learn.trajectory-passes and learn.forward-passes are both 0: nothing would ever be learned")
        if self.draw.eta == 0 and self.learn.trajectory_passes > 0:
            faults.append("draw.eta 0 has no randomness to learn from: use eta 1 or learn.trajectory-passes 0")
        if self.memory.compile and (self.memory.offload == "group" or self.memory.checkpointing == "on"):
            faults.append("memory.compile goes neither with memory.offload group nor with memory.checkpointing on")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags and the environment only: no .env file, no secrets folder."""
        return init_settings, env_settings

    @classmethod
    def read(cls, argv: list[str] | None = None, **given: Any) -> "Settings":
        """The way in: from flags (None = no flags), then the environment; ConfigError has every fault. `--help` prints the knobs and exits."""
        faults = _unknown_variables(cls)
        try:
            if argv is None:
                settings = cls(**given)
            else:
                source: CliSettingsSource[Any] = CliSettingsSource(
                    cls,
                    cli_parse_args=[_long(flag) for flag in argv],
                    cli_kebab_case=True,
                    cli_exit_on_error=False,
                    cli_implicit_flags=True,
                    cli_avoid_json=True,
                    cli_prog_name="app.py",
                )
                settings = cls(_cli_settings_source=source, **given)
        except ValidationError as error:
            faults += [_sentence(fault) for fault in error.errors()]
        except SettingsError as error:  # an unknown flag, or one without its value
            faults.append(f"{str(error).removeprefix('error parsing CLI: ')}; --help lists the settings")
        if faults:
            raise ConfigError("\n".join(f"{fault}." for fault in faults))
        return settings

    def value(self, name: str) -> Any:
        """What a knob is set to: "seed", "learn.beta". KeyError for one that does not exist."""
        owner, knob = self._owner(name)
        if owner is None or knob not in type(owner).model_fields:
            raise KeyError(name)
        return getattr(owner, knob)

    def changed(self, changes: Mapping[str, Any]) -> "Settings":
        """With these knobs at other values, by the names that `value` knows. ConfigError with every fault in one message."""
        given = self.model_dump(exclude_unset=True)
        for name, value in changes.items():
            section, _, knob = name.rpartition(".")
            try:
                self.value(name)
            except KeyError:
                raise ConfigError(f"{name} is not a setting; `python app.py --help` lists them.") from None
            (given.setdefault(section, {}) if section else given)[knob] = value
        return Settings.read(None, **given)

    def of_run(self, name: str, kept: Mapping[str, Any]) -> "Settings":
        """For another run, with the knobs of its last opening; where it lies and who may come stays, --lora goes. What no longer fits is left out."""
        fixed = ("run", "runs", "snapshots", "device", "host", "port", "public", "auth", "lora.file")
        usual = by_name({"draw": Draw().model_dump()})
        known = {knob: value for knob, value in by_name(kept).items() if knob not in fixed and not (knob in OWN and value == usual[knob])}
        return self.changed({"run": name, "lora.file": ""})._taking(known)

    def said(self, name: str) -> bool:
        """Whether somebody has said what this knob is to be: by a flag, a variable or on the page."""
        owner, knob = self._owner(name)
        return owner is not None and knob in owner.model_fields_set

    def _owner(self, name: str) -> tuple[BaseModel | None, str]:
        """What has a knob of this name, None where there is no such section, and the knob's name there."""
        section, _, knob = name.rpartition(".")
        owner = getattr(self, section, None) if section else self
        return (owner if isinstance(owner, BaseModel) else None), knob

    def resumed(self, kept: Mapping[str, Any]) -> "Settings":
        """With these knobs where neither a flag nor a variable says otherwise. What no longer fits is left out."""
        return self._taking({name: value for name, value in kept.items() if not self.said(name)})

    def _taking(self, changes: Mapping[str, Any]) -> "Settings":
        """With all of these at once, since some go together only; if that cannot be, with each that can."""
        with contextlib.suppress(ConfigError):
            return self.changed(changes)
        settings = self
        for name, value in changes.items():
            with contextlib.suppress(ConfigError):
                settings = settings.changed({name: value})
        return settings


def by_name(dumped: Mapping[str, Any]) -> dict[str, Any]:
    """{knob: value} by the names that `value` knows, of settings as `model_dump` gives them or of what is in that form already."""
    named: dict[str, Any] = {}
    for field, value in dumped.items():
        section = isinstance(value, Mapping) and field != "rewards"
        named |= {f"{field}.{knob}": v for knob, v in value.items()} if section else {field: value}
    return named


def _long(flag: str) -> str:
    """`--lora FILE`, which would name the whole section, stands for `--lora.file FILE`."""
    return f"--lora.file{flag.removeprefix('--lora')}" if flag == "--lora" or flag.startswith("--lora=") else flag


def _sentence(fault: Any) -> str:
    where = ".".join(str(part) for part in fault["loc"])
    what = fault["msg"].removeprefix("Value error, ")
    return f"{where} = {fault['input']!r}: {what}" if where else what


def _unknown_variables(settings: type[Settings]) -> list[str]:
    """`LOOPHIL_` names in the environment that are no knob: a typo must not pass silently."""
    known = set()
    for name, info in settings.model_fields.items():
        section = info.annotation
        known.add(f"{PREFIX}{name}".upper())
        if isinstance(section, type) and issubclass(section, Section):
            known |= {f"{PREFIX}{name}__{knob}".upper() for knob in section.model_fields}
    unknown = sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known)
    return [f"{name} is not a setting; `python app.py --help` lists them" for name in unknown]


def knobs() -> list[tuple[str, str, str]]:
    """[(flag, default, sentence)] of every knob, for the README and its test."""
    rows = []
    for name, info in Settings.model_fields.items():
        section = info.annotation
        if isinstance(section, type) and issubclass(section, Section):
            rows += [_row(f"{name}.{k}", knob) for k, knob in section.model_fields.items()]
        else:
            rows.append(_row(name, info))
    return rows


def _row(name: str, info: FieldInfo) -> tuple[str, str, str]:
    default = "" if info.default_factory or info.default is None else str(info.default)
    return f"--{name}".replace("_", "-"), default, info.description or ""


def is_public(settings: Settings) -> bool:
    """Whether strangers may reach the page: another host than loopback, or a Space."""
    return settings.host not in ("127.0.0.1", "localhost", "::1") or "SPACE_ID" in os.environ


if __name__ == "__main__":
    print(Settings.read(sys.argv[1:]).model_dump_json(indent=1))
