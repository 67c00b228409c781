"""Objectives: values and gradients worked by hand, micro-batches, dropout, and a toy run whose reward is known, for each of them."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from loophil.advantages import Moments, leave_one_out, minus_mean, standardize
from loophil.objectives import OBJECTIVES, ObjectiveStats, base_kl, forward_process, fpo, loop, per_dimension, rloo, sample_dropout, sft
from loophil.scheduler import DDIM, step_with_log_prob

EPS = 0.1


def at_ratios(*ratios: float) -> tuple[Tensor, Tensor]:
    """(log_probs, old_log_probs), each (B, 1), that have these ratios."""
    old = torch.full((len(ratios), 1), -1.0)
    return (old + torch.tensor(ratios).log()[:, None]).requires_grad_(), old


def gradient(loss: Tensor, log_probs: Tensor) -> list[float]:
    (found,) = torch.autograd.grad(loss, log_probs)
    values: list[float] = found.flatten().tolist()
    return values


def random_batch(B: int = 6, S: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    g = Generator().manual_seed(0)
    old = torch.randn(B, S, generator=g)
    return (old + 0.2 * torch.randn(B, S, generator=g)).requires_grad_(), old, torch.randn(B, generator=g)


def test_loop_is_the_mean_of_the_lesser_of_ratio_and_clipped_ratio() -> None:
    # A = 2: min(1.5 * 2, 1.1 * 2) = 2.2, min(0.5 * 2, 0.9 * 2) = 1;  A = -2: min(-3, -2.2) = -3, min(-1, -1.8) = -1.8;  J = -1.6 / 4
    log_probs, old = at_ratios(1.5, 0.5, 1.5, 0.5)
    loss, _ = loop(log_probs, old, torch.tensor([2.0, 2.0, -2.0, -2.0]), clip_range=EPS)
    assert loss.item() == pytest.approx(0.4)
    # Cut off where the ratio has gone far enough the right way; elsewhere d loss / d l = -rho A / 4
    assert gradient(loss, log_probs) == pytest.approx([0, -0.25, 0.75, 0])


def test_rloo_is_the_mean_log_prob_weighted_by_advantages() -> None:
    log_probs = torch.tensor([[-1.0, -3.0], [-2.0, 0.0]], requires_grad=True)
    loss, _ = rloo(log_probs, torch.zeros(2, 2), torch.tensor([1.0, -0.5]), clip_range=EPS)  # J = (-1 - 3 + 1 - 0) / 4
    assert loss.item() == pytest.approx(0.75)
    assert gradient(loss, log_probs) == pytest.approx([-0.25, -0.25, 0.125, 0.125])


def test_at_unchanged_weights_the_gradient_of_loop_is_that_of_rloo() -> None:
    log_probs, _, advantages = random_batch()
    old = log_probs.detach().clone()
    of_loop, of_rloo = (gradient(objective(log_probs, old, advantages, clip_range=1e-4)[0], log_probs) for objective in (loop, rloo))
    assert of_loop == of_rloo
    assert any(of_loop)


def test_after_a_step_the_gradients_of_loop_and_rloo_differ() -> None:
    log_probs, old, advantages = random_batch()
    losses = [objective(log_probs, old, advantages, clip_range=EPS)[0] for objective in (loop, rloo)]
    assert gradient(losses[0], log_probs) != pytest.approx(gradient(losses[1], log_probs))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_equal_rewards_change_nothing(name: str) -> None:
    log_probs, old, _ = random_batch()
    advantages = torch.from_numpy(leave_one_out([3] * 6)).float()
    loss, _ = OBJECTIVES[name](log_probs, old, advantages, clip_range=EPS)
    assert not any(gradient(loss, log_probs))


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_add_up_to_the_gradient_of_one_batch(name: str, size: int) -> None:
    log_probs, old, advantages = random_batch()
    mask = sample_dropout(log_probs, old, 0.25)
    assert 0 < mask.sum() < mask.numel()
    whole, stats = OBJECTIVES[name](log_probs, old, advantages, clip_range=EPS, mask=mask)
    parts = [
        OBJECTIVES[name](
            log_probs[i : i + size], old[i : i + size], advantages[i : i + size], clip_range=EPS, mask=mask[i : i + size], total=log_probs.numel()
        )
        for i in range(0, 6, size)
    ]
    loss = torch.stack([part for part, _ in parts]).sum()
    assert loss.item() == pytest.approx(whole.item())
    assert gradient(loss, log_probs) == pytest.approx(gradient(whole, log_probs))
    joined = parts[0][1]
    for _, part in parts[1:]:
        joined += part
    assert joined.summary(4) == pytest.approx(stats.summary(4))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_dropped_transitions_add_nothing_even_where_their_ratio_overflows(name: str) -> None:
    log_probs, old = torch.tensor([[1.0, 900.0], [2.0, -3.0]], requires_grad=True), torch.tensor([[1.0, 0.0], [2.0, -3.0]])
    advantages, mask = torch.tensor([-1.0, 1.0]), torch.tensor([[True, False], [True, True]])
    loss, stats = OBJECTIVES[name](log_probs, old, advantages, clip_range=EPS, mask=mask)
    assert gradient(loss, log_probs) == pytest.approx([0.25, 0, -0.25, -0.25])  # over all 4 transitions
    assert stats.summary(1)["ratio_mean"] == 1
    assert stats.summary(1)["kept"] == 0.75


def test_sample_dropout_keeps_what_is_near_the_policy_that_drew_it() -> None:
    log_probs, old = torch.tensor([[0.5, -0.5], [0.75, -0.75]], requires_grad=True), torch.zeros(2, 2)
    mask = sample_dropout(log_probs, old, per_dimension(8, 16))
    assert mask.tolist() == [[True, True], [False, False]]


def test_nats_per_step_become_the_field_s_own_numbers() -> None:
    assert per_dimension(1.6384, 4 * 64 * 64) == pytest.approx(1e-4)  # DDPO's clip range on Stable Diffusion


def test_stats_are_what_they_say() -> None:
    ratios = (1.5, 1.05, 0.5, 1.0, 0.5, 0.5)  # mean 5.05 / 6
    _, stats = loop(*at_ratios(*ratios), torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0]), clip_range=EPS)
    assert not stats.log_ratio.requires_grad
    assert stats.summary(dims=10) == pytest.approx(
        {
            "ratio_mean": 5.05 / 6,
            "ratio_std": math.sqrt(sum((r - 5.05 / 6) ** 2 for r in ratios) / 6),
            "clipfrac_pos": 1 / 3,  # 1.5 of 1.5, 1.05, 0.5
            "clipfrac_neg": 2 / 3,  # 0.5, 0.5 of 1, 0.5, 0.5
            "approx_kl": sum((10 * math.log(r)) ** 2 for r in ratios) / 6 / 2,
            "kept": 1.0,
        }
    )


def test_without_a_clip_nothing_is_cut_off() -> None:
    log_probs, old = at_ratios(1.5, 0.5)
    _, stats = rloo(log_probs, old, torch.tensor([1.0, -1.0]), clip_range=EPS)
    assert (stats.summary(1)["clipfrac_pos"], stats.summary(1)["clipfrac_neg"]) == (0, 0)


def test_stats_of_nothing_are_nan() -> None:
    log_probs, old = at_ratios(1.5, 0.5)
    loss, stats = loop(log_probs, old, torch.ones(2), clip_range=EPS, mask=torch.zeros(2, 1, dtype=torch.bool))
    assert loss.item() == 0
    logged = stats.summary(1)
    assert logged.pop("kept") == 0
    assert all(math.isnan(value) for value in logged.values())


def test_kl_estimate_is_that_of_two_gaussians() -> None:
    # KL of a mean moved by 0.2 standard deviations is 0.2^2 / 2 nats
    x = torch.randn(200_000, 1, generator=Generator().manual_seed(0))
    old, new = -0.5 * x**2, -0.5 * (x - 0.2) ** 2
    dims = 5
    stats = ObjectiveStats((new - old).flatten() / dims, torch.ones(len(x)), len(x), EPS)
    assert stats.summary(dims)["approx_kl"] == pytest.approx(0.02, rel=0.05)


def test_forward_process_weighs_towards_and_away_from_the_picture() -> None:
    # v_ref = 0, v_theta = 2, v = 1, beta = 1/2: towards |1 - 1|^2 = 0, away |-1 - 1|^2 = 4;  A = 1: q = 3/4, L = 1/4 * 4
    theta, ref, v = (torch.full((3, 1, 2, 2), value) for value in (2.0, 0.0, 1.0))
    loss, stats = forward_process(theta, ref, v, torch.tensor([1.0, -1.0, 9.0]), beta=0.5)
    assert loss.tolist() == pytest.approx([1, 3, 0])
    assert stats["q"].tolist() == pytest.approx([0.75, 0.25, 1])  # 9 standard deviations are as good as 2
    assert stats["drift"].tolist() == pytest.approx([4, 4, 4])


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("advantage", [-3.0, -0.5, 0.0, 1.0])
def test_forward_process_has_its_optimum_where_design_says(advantage: float, beta: float) -> None:
    g = Generator().manual_seed(0)
    ref, v = torch.randn(1, 4, 2, 2, generator=g), torch.randn(1, 4, 2, 2, generator=g)
    pull = max(-1.0, min(1.0, advantage / 2))  # 2q - 1
    theta = (ref + pull * (v - ref) / beta).requires_grad_()
    loss, _ = forward_process(theta, ref, v, torch.tensor([advantage]), beta=beta)
    assert gradient(loss.sum(), theta) == pytest.approx([0.0] * 16, abs=1e-5)


def test_forward_process_of_ties_holds_the_policy_where_it_is() -> None:
    ref, v = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    theta = ref.clone().requires_grad_()
    loss, stats = forward_process(theta, ref, v, torch.zeros(2), beta=0.5)
    assert gradient(loss.sum(), theta) == pytest.approx([0.0] * 512, abs=1e-6)
    assert not stats["drift"].any()


def test_fpo_is_rloo_on_the_lower_bound_at_first_and_clipped_far_away() -> None:
    ref, v = torch.randn(2, 2, 4, 4, 4, generator=Generator().manual_seed(3)).unbind()
    theta, advantages = ref.clone().requires_grad_(), torch.tensor([2.0, -1.0])
    loss, stats = fpo(theta, ref, v, advantages)
    assert stats["ratio"].tolist() == [1, 1]
    bound = -(ref.clone().requires_grad_(True) - v)  # d/dtheta of -|theta - v|^2, times the dimensions' mean, is 2 (v - theta) / D
    expected = -(2 * bound / 64) * advantages[:, None, None, None]
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), theta)[0], expected.detach())
    far = v.clone().requires_grad_()  # much better than the reference: what has A > 0 is pushed no further, what has A < 0 is taken back
    loss, stats = fpo(far, ref, v, torch.tensor([2.0, 2.0]))
    assert (stats["ratio"] > 1.05).all()
    assert not torch.autograd.grad(loss.sum(), far)[0].any()


def test_sft_pulls_only_towards_what_was_picked() -> None:
    theta, v = torch.zeros(3, 1, 2, 2, requires_grad=True), torch.ones(3, 1, 2, 2)
    loss = sft(theta, v, torch.tensor([2.0, 0.0, -3.0]))
    assert loss.tolist() == [2, 0, 0]
    assert torch.autograd.grad(loss.sum(), theta)[0][:, 0, 0, 0].tolist() == [-1, 0, 0]


def test_base_kl_is_torchs_and_0_where_there_is_no_density() -> None:
    mean, base = torch.randn(2, 3, 4, 2, 2, generator=Generator().manual_seed(4)).unbind()
    std = torch.tensor([0.5, 2.0, 0.0])
    kl = base_kl(mean, base, std)
    for i in (0, 1):
        normal = torch.distributions.Normal
        assert kl[i] == pytest.approx(float(torch.distributions.kl_divergence(normal(mean[i], std[i]), normal(base[i], std[i])).mean()))
    assert kl[2] == 0


STEPS, DIMS = 4, 4
TOY = DDIM.from_config(
    {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing", "prediction_type": "v_prediction", "clip_sample": False}
)


class Toy(nn.Module):
    """A linear velocity model of latents (B, 1, 2, 2) and time; before training it predicts 0."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(DIMS + 1, DIMS)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, latents: Tensor, timesteps: Tensor) -> Tensor:
        time = timesteps.expand(len(latents)).reshape(-1, 1) / 1000
        out: Tensor = self.linear(torch.cat([latents.flatten(1), time], dim=1))
        return out.reshape(latents.shape)


def draw(policy: Toy, k: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """A rollout: latents (k, STEPS+1, 1, 2, 2) and log_probs (k, STEPS)."""
    latents, log_probs = [torch.randn(k, 1, 2, 2, generator=generator)], []
    with torch.no_grad():
        for t in TOY.timesteps(STEPS):
            x, log_prob = step_with_log_prob(TOY, policy(latents[-1], t), t, latents[-1], num_inference_steps=STEPS, eta=1.0, generator=generator)
            latents.append(x)
            log_probs.append(log_prob)
    return torch.stack(latents, 1), torch.stack(log_probs, 1)


def reward(latents: Tensor) -> NDArray[np.float64]:
    """(k,): how near the clean latents are to 1, in the mean over pixels."""
    return -((latents[:, -1] - 1).square().flatten(1).mean(1)).double().numpy()


def trajectory_loss(name: str) -> Callable[[Toy, Tensor, Tensor, NDArray[np.float64]], Tensor]:
    """The loss of one group by a trajectory objective with its own baseline."""
    moments = Moments()

    def loss(policy: Toy, latents: Tensor, old_log_probs: Tensor, rewards: NDArray[np.float64]) -> Tensor:
        nonlocal moments
        past, moments = moments, moments.add(rewards)
        advantages = {"reinforce": minus_mean(rewards, past), "ppo": standardize(rewards, moments)}.get(name, leave_one_out(rewards))
        log_probs = [
            step_with_log_prob(TOY, policy(latents[:, i], t), t, latents[:, i], num_inference_steps=STEPS, eta=1.0, prev_sample=latents[:, i + 1])[1]
            for i, t in enumerate(TOY.timesteps(STEPS)[:-1])  # the last step adds no noise
        ]
        return OBJECTIVES[name](torch.stack(log_probs, 1), old_log_probs[:, :-1], torch.from_numpy(advantages).float(), clip_range=0.2)[0]

    return loss


def forward_loss(policy: Toy, latents: Tensor, old_log_probs: Tensor, rewards: NDArray[np.float64]) -> Tensor:
    """The forward-process loss of one group's clean latents; the reference is the policy as it is."""
    x0 = latents[:, -1].repeat(8, 1, 1, 1)
    noise, t = torch.randn(x0.shape, generator=Generator().manual_seed(len(x0))), torch.linspace(50, 950, len(x0)).long()
    velocity = policy(TOY.add_noise(x0, noise, t), t)
    advantages = torch.from_numpy(leave_one_out(rewards) / rewards.std()).float().repeat(8)
    return forward_process(velocity, velocity.detach(), TOY.velocity(x0, noise, t), advantages, beta=0.5)[0].mean()


@pytest.mark.parametrize("name", [*OBJECTIVES, "forward_process"])
def test_a_toy_policy_earns_more_by_every_objective(name: str) -> None:
    loss = forward_loss if name == "forward_process" else trajectory_loss(name)
    policy, generator = Toy(), Generator().manual_seed(0)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.02)
    before = reward(draw(policy, 512, Generator().manual_seed(1))[0]).mean()
    for _ in range(60):
        latents, log_probs = draw(policy, 8, generator)
        optimizer.zero_grad()
        loss(policy, latents, log_probs, reward(latents)).backward()
        optimizer.step()
    after = reward(draw(policy, 512, Generator().manual_seed(1))[0]).mean()
    assert after > before / 2
