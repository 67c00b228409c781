"""The losses: pure functions of tensors that return (loss, stats). No model, no optimizer, no device.

    name        surrogate of a transition           whose advantages
    reinforce   l * A                               r minus a running mean            advantages.minus_mean
    rloo        l * A                               leave-one-out                     advantages.leave_one_out
    ppo         min(rho A, clip(rho) A)             per-prompt running statistics     advantages.standardize
    loop        min(rho A, clip(rho) A)             leave-one-out                     advantages.leave_one_out

l is the log-density of a step as scheduler.step_with_log_prob gives it, the MEAN over the latent's D dimensions, and rho = exp(l - l_old), so
thresholds depend on D: the knobs are in nats per step, summed over the dimensions, and `per_dimension` is where the two meet.
B images, S trained steps, latents (B, C, H, W).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


def per_dimension(nats: float, dims: int) -> float:
    """A threshold in nats per step -> the same for log-densities averaged over `dims` dimensions. DDPO's 1e-4 at 4x64x64 is 1.64 nats."""
    return nats / dims


def sample_dropout(log_probs: Tensor, old_log_probs: Tensor, max_log_ratio: float) -> Tensor:
    """Which transitions to keep, (B, S) bool: |l - l_old| <= max_log_ratio. What is further from the policy that drew it teaches mostly noise."""
    return (log_probs - old_log_probs).detach().abs() <= max_log_ratio


@dataclass(frozen=True, eq=False)
class ObjectiveStats:
    """The n kept of `transitions` transitions, without gradient; `+` joins the micro-batches of an update, `summary` gives the numbers to log.

    log_ratio (n,) = l - l_old;  advantages (n,);  clip_range: eps, infinite where nothing is clipped
    """

    log_ratio: Tensor
    advantages: Tensor
    transitions: int
    clip_range: float

    def __add__(self, other: ObjectiveStats) -> ObjectiveStats:
        log_ratio = torch.cat([self.log_ratio, other.log_ratio])
        advantages = torch.cat([self.advantages, other.advantages])
        return ObjectiveStats(log_ratio, advantages, self.transitions + other.transitions, self.clip_range)

    def summary(self, dims: int) -> dict[str, float]:
        """Over the kept transitions, NaN where there are none; `dims` is D.

        ratio_mean, ratio_std   of rho = exp(l - l_old)
        clipfrac_pos            share of those with A > 0 that the clip has cut off: rho > 1 + eps
        clipfrac_neg            share of those with A < 0 that the clip has cut off: rho < 1 - eps
        approx_kl               mean of (D (l - l_old))^2 / 2, DDPO's estimate of KL(old || new), in nats per step
        kept                    n / transitions
        """
        ratio = self.log_ratio.exp()
        return {
            "ratio_mean": float(ratio.mean()),
            "ratio_std": float((ratio - ratio.mean()).square().mean().sqrt()),
            "clipfrac_pos": float((ratio[self.advantages > 0] > 1 + self.clip_range).float().mean()),
            "clipfrac_neg": float((ratio[self.advantages < 0] < 1 - self.clip_range).float().mean()),
            "approx_kl": float((dims * self.log_ratio).square().mean() / 2),
            "kept": len(self.log_ratio) / self.transitions,
        }


class Objective(Protocol):
    """A trajectory objective, (loss to minimise, stats).

    log_probs       (B, S)  l under the policy that is trained
    old_log_probs   (B, S)  l under the policy that drew, stored then
    advantages      (B,)
    clip_range              eps for dimension-mean log-densities: per_dimension(nats, D)
    mask            (B, S)  bool, the transitions that sample dropout keeps; None = all. The others add nothing
    total                   transitions of the whole update, dropped ones too: the loss is its part of the mean over them, so that micro-batches
                            add up to the same gradient as one batch; None = B * S
    """

    def __call__(
        self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, clip_range: float, mask: Tensor | None = None, total: int | None = None
    ) -> tuple[Tensor, ObjectiveStats]: ...


def loop(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, clip_range: float, mask: Tensor | None = None, total: int | None = None
) -> tuple[Tensor, ObjectiveStats]:
    """LOOP, arXiv 2503.00897: J = mean over images i and steps t of min(rho_it A_i, clip(rho_it, 1 - eps, 1 + eps) A_i); loss = -J.

    At unchanged weights rho is 1 and the gradient is RLOO's. Arguments: see `Objective`.
    """
    keep = torch.ones_like(log_probs, dtype=torch.bool) if mask is None else mask
    log_ratio = torch.where(keep, log_probs - old_log_probs, 0.0)  # before exp: a dropped one may overflow, and 0 * inf is NaN
    ratio, A = log_ratio.exp(), advantages[:, None]
    surrogate = torch.minimum(ratio * A, ratio.clamp(1 - clip_range, 1 + clip_range) * A)
    return _minus_mean(surrogate, keep, total), _stats(log_ratio, advantages, keep, clip_range)


def rloo(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, clip_range: float, mask: Tensor | None = None, total: int | None = None
) -> tuple[Tensor, ObjectiveStats]:
    """RLOO, Kool et al. 2019: J = mean of l_it A_i; loss = -J. Nothing is clipped: `clip_range` has no effect. Arguments: see `Objective`."""
    keep = torch.ones_like(log_probs, dtype=torch.bool) if mask is None else mask
    log_ratio = torch.where(keep, log_probs - old_log_probs, 0.0)
    return _minus_mean(log_probs * advantages[:, None], keep, total), _stats(log_ratio, advantages, keep, math.inf)


# The same losses: what makes them other algorithms is the baseline in their advantages, see the table above.
ppo = loop
reinforce = rloo

OBJECTIVES: dict[str, Objective] = {"loop": loop, "ppo": ppo, "reinforce": reinforce, "rloo": rloo}


def forward_process(v_theta: Tensor, v_ref: Tensor, v: Tensor, advantages: Tensor, *, beta: float) -> tuple[Tensor, dict[str, Tensor]]:
    """DiffusionNFT, arXiv 2509.16117: learn from a clean latent and its advantage alone -> (loss (B,), stats).

        L = q |(1-beta) v_ref + beta v_theta - v|^2 + (1-q) |(1+beta) v_ref - beta v_theta - v|^2,      q = 1/2 + 1/2 clip(A / 2, -1, 1)

    mean over the dimensions. Its optimum is v_ref + E[(2q - 1) (v - v_ref) | x_t] / beta: the smaller beta, the further one rating moves the model.
    The caller takes the mean over all images of the update, as micro-batches need.

    v_theta, v_ref, v   (B, C, H, W)  velocities of the trained policy, of the reference (no gradient), and the target, at the same x_t
    advantages          (B,)          in standard deviations
    stats               q (B,), drift (B,): mean over dimensions of |v_theta - v_ref|^2
    """
    q = 0.5 + 0.5 * (advantages / 2).clamp(-1, 1)
    towards = ((1 - beta) * v_ref + beta * v_theta - v).square().flatten(1).mean(1)
    away = ((1 + beta) * v_ref - beta * v_theta - v).square().flatten(1).mean(1)
    drift = (v_theta - v_ref).detach().square().flatten(1).mean(1)
    return q * towards + (1 - q) * away, {"q": q, "drift": drift}


def fpo(v_theta: Tensor, v_ref: Tensor, v: Tensor, advantages: Tensor, *, clip_range: float = 0.05) -> tuple[Tensor, dict[str, Tensor]]:
    """FPO, arXiv 2507.21053: PPO with the evidence lower bound in place of the likelihood -> (loss (B,), stats).

        r = exp( |v_ref - v|^2 - |v_theta - v|^2 ),      L = -min( r A, clip(r, 1 - eps, 1 + eps) A )

    mean over the dimensions. What lies further from the reference than `clip_range` is not pushed on. Arguments: see `forward_process`.

    stats   ratio (B,): r, drift (B,)
    """
    gain = (v_ref - v).square().flatten(1).mean(1) - (v_theta - v).square().flatten(1).mean(1)
    ratio = gain.exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)
    drift = (v_theta - v_ref).detach().square().flatten(1).mean(1)
    return -surrogate, {"ratio": ratio.detach(), "drift": drift}


def sft(v_theta: Tensor, v: Tensor, advantages: Tensor) -> Tensor:
    """The pull towards what was picked, (B,): max(A, 0) |v_theta - v|^2, mean over the dimensions, as QVPO weights it (arXiv 2405.16173)."""
    return advantages.clamp(min=0) * (v_theta - v).square().flatten(1).mean(1)


def base_kl(mean: Tensor, base_mean: Tensor, std: Tensor) -> Tensor:
    """KL of one denoising step from the base's, (B,): |mu - mu_base|^2 / (2 sigma^2), MEAN over the dimensions like the log-densities.

    mean, base_mean   (B, C, H, W)  where each would step to from the same x_t
    std               (B,)          sigma_t of both; where it is 0 there is no density and no KL
    """
    variance = torch.where(std > 0, std, 1.0).square()
    return torch.where(std > 0, (mean - base_mean).square().flatten(1).mean(1) / (2 * variance), 0.0)


def _minus_mean(surrogate: Tensor, keep: Tensor, total: int | None) -> Tensor:
    """-J: the kept transitions' part of the mean over all `total`."""
    return -torch.where(keep, surrogate, 0.0).sum() / (surrogate.numel() if total is None else total)


def _stats(log_ratio: Tensor, advantages: Tensor, keep: Tensor, clip_range: float) -> ObjectiveStats:
    spread = advantages[:, None].expand_as(log_ratio)
    return ObjectiveStats(log_ratio.detach()[keep], spread[keep], keep.numel(), clip_range)
