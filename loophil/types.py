"""The records that travel through the loop: frozen, one per stage, each with the policy version it belongs to.

Shapes: k images of a group, S trained denoising steps, (C, H, W) one latent. Torch is imported for its names only.

    DrawSettings -> Drawing (worker only: pictures and Trajectory) -> Group (ids and files) -> Act (what a person did)
    -> Lesson (a Trajectory with its advantages) -> UpdateStats -> Status (what the page shows)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL import Image

RATINGS_MIN, RATINGS_MAX = 1.0, 5.0
HUMAN = "human:"  # before a rater's name, where sources are named
MAX_PROMPT = 1000
MAX_SEED = 2**53


@dataclass(frozen=True)
class DrawSettings:
    """How a group is drawn; replay needs the very same. `eta` is DDIM's, 1 = as much noise as DDPM, or flow matching's noise level."""

    num_inference_steps: int
    guidance_scale: float
    eta: float
    negative_prompt: str = ""

    @classmethod
    def of(cls, knobs: Any) -> DrawSettings:
        """The settings that the `draw` knobs of config.py ask for."""
        return cls(knobs.num_inference_steps, knobs.guidance_scale, knobs.eta, knobs.negative_prompt)


@dataclass(frozen=True)
class Trajectory:
    """The stored part of k denoising chains: the first S steps (the trained ones) and the end.

    latents        (k, S+1, C, H, W)  x_t before each trained step and after the last of them, in storage dtype
    log_probs      (k, S)             log-density of each step under the drawing policy, MEAN over latent dimensions
    timesteps      (S,)               the scheduler's timesteps of the trained steps
    clean_latents  (k, C, H, W)       x_0, what was decoded
    """

    latents: torch.Tensor
    log_probs: torch.Tensor
    timesteps: torch.Tensor
    clean_latents: torch.Tensor


@dataclass(frozen=True)
class Drawing:
    """What the sampler returns: k pictures of one prompt, how they came about, and by which policy version."""

    prompt: str
    settings: DrawSettings
    seeds: tuple[int, ...]
    policy_version: int
    images: tuple[Image.Image, ...]
    trajectory: Trajectory


@dataclass(frozen=True)
class ImageRef:
    """One stored picture of a group: `file` is its name in the run's images/ folder."""

    id: str
    seed: int
    file: str


@dataclass(frozen=True)
class Group:
    """k stored pictures of one prompt. `kind`: "person" to be rated by someone, "auto" drawn for an automatic round."""

    id: str
    prompt: str
    settings: DrawSettings
    policy_version: int
    images: tuple[ImageRef, ...]
    kind: str = "person"
    created: float = 0.0


@dataclass(frozen=True)
class Act:
    """What a person did with a group, raw, and the stars that it means.

    stars      k entries 1..5, None = not rated
    kind       "stars", "best", "tie", "good", "bad", "skip" or "undo" (undo takes the rater's act on this group back)
    order      the positions in the order in which they were shown
    """

    group: str
    rater: str
    stars: tuple[float | None, ...]
    kind: str = "stars"
    best: int | None = None
    worst: int | None = None
    order: tuple[int, ...] = ()
    milliseconds: int | None = None
    key: str = ""


@dataclass(frozen=True)
class Receipt:
    """The store's durable answer to an act. `rated` counts the images it rated; `act` is its row number."""

    act: int
    rated: int
    policy_version: int
    pending: int


@dataclass(frozen=True)
class Entry:
    """One line of the history: the act of a rater on a group that counts now, raw and with its stars.

    `act_id` is its row number; taught: versions that learned from it, oldest first, damaged ones left out.
    """

    group: Group
    act: Act
    created: float
    act_id: int
    taught: tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """A blind comparison of one prompt and seed drawn by two versions: `version` is the tuned side, `against` the other, 0 = base.

    `choice`: "tuned", "base" (the side of `against`) or "tie"; `left_is_tuned`: whether the tuned side was shown on the left.
    """

    prompt: str
    seed: int
    version: int
    against: int
    rater: str
    choice: str
    left_is_tuned: bool
    milliseconds: int | None = None
    key: str = ""


@dataclass(frozen=True)
class Tally:
    """How a version did in its blind comparisons with the base: so many answers for each side, and ties."""

    version: int
    tuned: int
    base: int
    tie: int

    @property
    def n(self) -> int:
        """How many comparisons."""
        return self.tuned + self.base + self.tie

    @property
    def share(self) -> float | None:
        """The part that the tuned side won, 0..1, a tie counting half; None without comparisons."""
        return (self.tuned + self.tie / 2) / self.n if self.n else None


class Licence(NamedTuple):
    """What the Hub states of a model, "" = nothing. `id`: one of the Hub's, "other" for those that only `name` and `link`, an address, tell apart."""

    id: str = ""
    name: str = ""
    link: str = ""


@dataclass(frozen=True)
class Label:
    """What a person wants on an exported file; "" and () = what the run and its base say.

    name: of the file;  trigger: the phrase that calls the LoRA up;  covers: up to four prompts, drawn before and after
    licence_name, licence_link: of a base under a licence of its own, as the Hub states them
    """

    name: str = ""
    trigger: str = ""
    licence: str = ""
    covers: tuple[str, ...] = ()
    licence_name: str = ""
    licence_link: str = ""


@dataclass(frozen=True)
class Mean:
    """The mean of one source ("stars" = all people's, else a reward model) over the n images by one version that it knows."""

    version: int
    source: str
    mean: float
    n: int


@dataclass(frozen=True)
class Look:
    """Who draws in a comparison: a version (0 = base) with its LoRA at this strength, 1 = as it was learned."""

    version: int
    strength: float = 1.0


@dataclass(frozen=True)
class SourceValues:
    """What one source (a rater or a reward model) says about one group's k images; NaN = nothing.

    source   "human:<rater>" or the reward's name;  values (k,);  weight >= 0;  scale: the source's nominal spread
    """

    source: str
    values: NDArray[np.float64]
    weight: float
    scale: float


@dataclass(frozen=True)
class Lesson:
    """One group ready to be learned from: advantages (k,), finite, 0 = says nothing; `age` in published versions.

    `acts` are the store's row numbers of the ratings in it; `fresh` says that no version has learned from them yet.
    """

    group: Group
    advantages: NDArray[np.float64]
    shares: dict[str, float]
    age: int
    acts: tuple[int, ...] = ()
    fresh: bool = True


@dataclass(frozen=True)
class UpdateStats:
    """What one update did; every number is explained with its formula in the README.

    ratio_mean, ratio_std, clipfrac_pos (A > 0), clipfrac_neg (A < 0), approx_kl in nats per step, grad_norm before clipping,
    kept: share of the transitions of what is new that were used, shares: part of each source in sum |weighted advantage|, seconds of work,
    taught: {objective: ids of the groups that it learned from}.
    NaN where an objective has no such number.
    """

    loss: float
    ratio_mean: float
    ratio_std: float
    clipfrac_pos: float
    clipfrac_neg: float
    approx_kl: float
    grad_norm: float
    kept: float
    images: int
    no_signal: int
    seconds: float
    shares: dict[str, float] = field(default_factory=dict)
    taught: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Version:
    """A published adapter. Version 0 is the base: no LoRA. `kind`: "base", "update" or "rollback"."""

    number: int
    parent: int | None
    kind: str
    created: float
    ratings: int
    sha256: str


RETRY, GO_ON = "retry", "go on"


@dataclass(frozen=True)
class Status:
    """A snapshot of everything the page and /status show; replaced whole, never changed. Times are Unix seconds.

    raters    people whose pages ask for groups just now
    memory    (bytes in use, bytes in all) of the GPU, None without one
    remedies  what may help against `last_error`: RETRY, or GO_ON with automatic rounds that an alarm has stopped
    note      what should be known of this model and machine, e.g. that there is no noise for trajectories to learn from, or that the disk forgets
    """

    run: str
    model: str
    device: str
    policy_version: int = 0
    version_created: float = 0.0
    updates: int = 0
    ratings: int = 0
    groups: int = 0
    ready: int = 0
    pending: int = 0
    worker: str = "starting"
    paused: bool = False
    freshness: float | None = None
    agreement: float | None = None
    no_signal: int = 0
    last_error: str | None = None
    remedies: tuple[str, ...] = ()
    missing_rewards: dict[str, str] = field(default_factory=dict)
    last_update: dict[str, Any] = field(default_factory=dict)
    seconds_per_group: float | None = None
    raters: int = 0
    memory: tuple[int, int] | None = None
    note: str | None = None
    time: float = 0.0
