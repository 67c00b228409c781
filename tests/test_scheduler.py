"""The seam: a step is diffusers' step, a rollout is the stock pipeline's, and what was drawn scores the same when it is replayed."""

import inspect
import math
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Generator, Tensor

from loophil.errors import ConfigError
from loophil.scheduler import BETAS, DDIM, DEFAULTS, PREDICTION_TYPES, SPACINGS, Schedule, randn, step_with_log_prob, trainable
from tests.tiny import tiny_pipeline

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1}
SHAPE = (3, 4, 8, 8)


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def ddim(**config: Any) -> DDIM:
    return DDIM.from_config(STABLE_DIFFUSION | config)


def two() -> DDIM:
    """A schedule to reckon with by hand: 2 steps of signal 3/4 and 1/4, ending at 1."""
    return DDIM(torch.tensor([0.75, 0.25]), 1.0, "epsilon", "leading", 0, math.inf)


def rollouts(config: dict[str, Any], num_inference_steps: int, eta: float) -> list[tuple[Tensor, Tensor]]:
    """The latents after each step, (diffusers', ours), of a stand-in model and equal generators."""
    stock = DDIMScheduler(**config)
    stock.set_timesteps(num_inference_steps)
    schedule: Schedule = DDIM.from_config(stock.config)
    theirs = ours = torch.randn(SHAPE, generator=seeded(1))
    generators, pairs = (seeded(2), seeded(2)), []
    assert torch.equal(schedule.timesteps(num_inference_steps), stock.timesteps)
    for t in stock.timesteps:
        theirs = stock.step(theirs.tanh(), t, theirs, eta=eta, generator=generators[0], return_dict=False)[0]
        ours, _ = step_with_log_prob(schedule, ours.tanh(), t, ours, num_inference_steps=num_inference_steps, eta=eta, generator=generators[1])
        pairs.append((theirs, ours))
    return pairs


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("set_alpha_to_one", [True, False])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_every_step_is_that_of_diffusers(prediction_type: str, spacing: str, set_alpha_to_one: bool, eta: float) -> None:
    config = STABLE_DIFFUSION | {"prediction_type": prediction_type, "timestep_spacing": spacing, "set_alpha_to_one": set_alpha_to_one}
    for num_inference_steps in (5, 7):
        for theirs, ours in rollouts(config, num_inference_steps, eta):
            assert theirs.isfinite().all()
            assert torch.equal(theirs, ours)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"num_train_timesteps": 100, "trained_betas": [0.001 * (i + 1) for i in range(100)]},
        STABLE_DIFFUSION | {"clip_sample": True, "clip_sample_range": 0.4},
        STABLE_DIFFUSION | {"steps_offset": 3},
        STABLE_DIFFUSION | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    ],
    ids=["defaults", "cosine", "given betas", "clipped", "offset", "zero terminal SNR"],
)
def test_the_rest_of_a_config_is_obeyed_as_diffusers_does(config: dict[str, Any]) -> None:
    for theirs, ours in rollouts(config, 6, eta=0.5):
        assert torch.equal(theirs, ours)


def test_names_that_a_config_lacks_have_diffusers_defaults() -> None:
    stock = {name: p.default for name, p in inspect.signature(DDIMScheduler).parameters.items()}
    thresholding = {"dynamic_thresholding_ratio", "sample_max_value"}
    assert {name: default for name, default in stock.items() if name not in thresholding} == DEFAULTS


def test_names_of_other_schedulers_are_passed_over() -> None:
    assert torch.equal(ddim(skip_prk_steps=True, solver_order=2).alphas_cumprod, ddim().alphas_cumprod)


def test_zero_terminal_snr_stays_finite() -> None:
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "linspace", "prediction_type": "sample"}
    for num_inference_steps in range(4, 12):  # on some processors diffusers takes the root of -6e-8 in the first step, and all is NaN
        _, ours = rollouts(STABLE_DIFFUSION | config, num_inference_steps, eta=1.0)[0]
        assert ours.isfinite().all()


@pytest.mark.parametrize(
    ("spacing", "set_alpha_to_one", "prediction_type"), [*product(SPACINGS, [True, False], ["epsilon"]), ("leading", False, "v_prediction")]
)
@torch.no_grad()
def test_a_rollout_is_that_of_the_stock_pipeline(spacing: str, set_alpha_to_one: bool, prediction_type: str) -> None:
    pipeline = tiny_pipeline(timestep_spacing=spacing, set_alpha_to_one=set_alpha_to_one, prediction_type=prediction_type)
    steps, guidance, k = 4, 3.0, 2
    stock = pipeline(
        "a red circle",
        num_inference_steps=steps,
        guidance_scale=guidance,
        eta=1.0,
        num_images_per_prompt=k,
        generator=seeded(5),
        output_type="latent",
    )

    schedule, generator = DDIM.from_config(pipeline.scheduler.config), seeded(5)
    embeds, negative = pipeline.encode_prompt("a red circle", torch.device("cpu"), k, True)
    latents = randn((k, 4, 8, 8), generator, torch.device("cpu"), torch.float32) * schedule.init_noise_sigma
    for t in schedule.timesteps(steps):
        uncond, cond = pipeline.unet(torch.cat([latents] * 2), t, encoder_hidden_states=torch.cat([negative, embeds])).sample.chunk(2)
        output = uncond + guidance * (cond - uncond)
        latents, _ = step_with_log_prob(schedule, output, t, latents, num_inference_steps=steps, eta=1.0, generator=generator)
    assert torch.equal(latents, stock.images)


def test_a_generator_for_each_image_draws_as_in_diffusers() -> None:
    stock, schedule = DDIMScheduler(**STABLE_DIFFUSION), ddim()
    stock.set_timesteps(5)
    t, x, output = stock.timesteps[1], torch.randn(SHAPE, generator=seeded(1)), torch.randn(SHAPE, generator=seeded(2))
    theirs = stock.step(output, t, x, eta=1.0, generator=[seeded(i) for i in range(3)], return_dict=False)[0]
    ours, _ = step_with_log_prob(schedule, output, t, x, num_inference_steps=5, eta=1.0, generator=[seeded(i) for i in range(3)])
    assert torch.equal(theirs, ours)
    alone, _ = step_with_log_prob(schedule, output[1:2], t, x[1:2], num_inference_steps=5, eta=1.0, generator=[seeded(1)])
    assert torch.equal(alone, ours[1:2])


def test_noise_can_be_given() -> None:
    noise = torch.randn(SHAPE, generator=seeded(3))
    x, output = torch.randn(SHAPE, generator=seeded(1)), torch.randn(SHAPE, generator=seeded(2))
    given, _ = step_with_log_prob(ddim(), output, 401, x, num_inference_steps=5, eta=1.0, noise=noise)
    drawn, _ = step_with_log_prob(ddim(), output, 401, x, num_inference_steps=5, eta=1.0, generator=seeded(3))
    assert torch.equal(given, drawn)


def test_a_generator_is_left_alone_at_eta_0() -> None:
    generator = seeded(3)
    before = generator.get_state()
    step_with_log_prob(ddim(), torch.ones(SHAPE), 401, torch.ones(SHAPE), num_inference_steps=5, eta=0.0, generator=generator)
    assert torch.equal(generator.get_state(), before)


def test_log_prob_is_the_mean_over_the_latent_dimensions() -> None:
    # t = 1: a_t = 1/4, a_prev = 3/4.  x_0 = 1 / sqrt(1/4) = 2, eps = 0, mean = sqrt(3/4) * 2 = 1.73205
    # sigma^2 = (1/4) / (3/4) * (1 - 1/3) = 2/9, sigma = 0.47140.  One sigma off: -1/2 - ln 0.47140 - ln(2 pi) / 2 = -0.66690
    prev, log_prob = step_with_log_prob(
        two(), torch.zeros(2, 1, 2, 2), 1, torch.ones(2, 1, 2, 2), num_inference_steps=2, eta=1.0, noise=torch.tensor([1.0, 0.0]).reshape(2, 1, 1, 1)
    )
    assert prev[:, 0, 0, 0].tolist() == pytest.approx([1.73205 + 0.47140, 1.73205], abs=1e-5)
    assert log_prob.tolist() == pytest.approx([-0.66690, -0.16690], abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_was_drawn_scores_exactly_the_same_in_a_batch_of_mixed_steps(dtype: torch.dtype) -> None:
    schedule, steps = ddim(prediction_type="v_prediction", set_alpha_to_one=False), 6
    timesteps, latents, log_probs = schedule.timesteps(steps), [torch.randn(SHAPE, generator=seeded(1)).to(dtype)], []
    generator = seeded(2)
    for t in timesteps:
        x, log_prob = step_with_log_prob(schedule, latents[-1].tanh(), int(t), latents[-1], num_inference_steps=steps, eta=1.0, generator=generator)
        latents.append(x)
        log_probs.append(log_prob)
        assert x.dtype == dtype
        assert log_prob.dtype == torch.float32
    before, after = (torch.cat(part) for part in zip(*pairwise(latents), strict=True))
    mixed = timesteps.repeat_interleave(SHAPE[0])
    _, replayed = step_with_log_prob(schedule, before.tanh(), mixed, before, num_inference_steps=steps, eta=1.0, prev_sample=after)
    assert torch.equal((replayed - torch.cat(log_probs)).exp(), torch.ones(len(mixed)))


def test_scoring_leaves_the_stored_latent_as_it_is_and_draws_nothing() -> None:
    generator, stored = seeded(2), torch.randn(SHAPE, generator=seeded(1))
    before = generator.get_state()
    prev, _ = step_with_log_prob(
        ddim(), torch.zeros(SHAPE), 401, torch.zeros(SHAPE), num_inference_steps=5, eta=1.0, generator=generator, prev_sample=stored
    )
    assert prev is stored
    assert torch.equal(generator.get_state(), before)


def test_the_gradient_moves_the_mean_towards_what_was_drawn() -> None:
    # d log_prob / d output = (x - mean) / sigma^2 / D * d mean / d output;  eps: d mean = -sqrt(3/4) * sqrt(3) + sqrt(1/4 - 2/9) = -4/3
    # one sigma up, D = 4:  1 / 0.47140 / 4 * -4/3 = -0.70711, the same drawn or scored
    output, x = torch.zeros(1, 1, 2, 2, requires_grad=True), torch.ones(1, 1, 2, 2)
    prev, drawn = step_with_log_prob(two(), output, 1, x, num_inference_steps=2, eta=1.0, noise=x)
    _, scored = step_with_log_prob(two(), output, 1, x, num_inference_steps=2, eta=1.0, prev_sample=prev.detach())
    for log_prob in (drawn, scored):
        (gradient,) = torch.autograd.grad(log_prob.sum(), output)
        assert gradient.flatten().tolist() == pytest.approx([-0.70711] * 4, abs=1e-4)


def test_a_step_without_noise_is_drawn_but_has_neither_log_prob_nor_gradient() -> None:
    output = torch.ones(1, 1, 2, 2, requires_grad=True)
    prev, log_prob = step_with_log_prob(two(), output, torch.tensor([0]), torch.ones(1, 1, 2, 2), num_inference_steps=2, eta=1.0, generator=seeded(1))
    assert prev.flatten().tolist() == pytest.approx([0.5 / math.sqrt(0.75)] * 4)  # x_0 = (1 - sqrt(1/4)) / sqrt(3/4)
    assert log_prob.tolist() == [0.0]
    log_prob.sum().backward()
    assert output.grad is not None
    assert not output.grad.any()


@pytest.mark.parametrize(
    ("config", "eta", "last"),
    [
        ({"set_alpha_to_one": True}, 1.0, False),  # a_prev = 1
        ({"set_alpha_to_one": False}, 1.0, True),  # from a_1 to a_0
        ({"set_alpha_to_one": False, "steps_offset": 0}, 1.0, False),  # from a_0 to a_0
        ({"set_alpha_to_one": False, "timestep_spacing": "linspace"}, 1.0, False),
        ({"set_alpha_to_one": False, "timestep_spacing": "trailing"}, 0.5, True),
    ],
)
def test_only_steps_that_add_noise_are_trainable(config: dict[str, Any], eta: float, last: bool) -> None:
    assert trainable(ddim(**config), 6, eta).tolist() == [True] * 5 + [last]
    assert not trainable(ddim(**config), 6, 0.0).any()


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_every_prediction_type_is_the_same_velocity(prediction_type: str) -> None:
    schedule, stock = ddim(prediction_type=prediction_type), DDIMScheduler(**STABLE_DIFFUSION)
    x0, noise, t = torch.randn(SHAPE, generator=seeded(1)), torch.randn(SHAPE, generator=seeded(2)), torch.tensor([1, 500, 998])
    x_t, v = schedule.add_noise(x0, noise, t), schedule.velocity(x0, noise, t)
    torch.testing.assert_close(x_t, stock.add_noise(x0, noise, t))
    torch.testing.assert_close(v, stock.get_velocity(x0, noise, t))
    output = {"epsilon": noise, "sample": x0, "v_prediction": v}[prediction_type]
    torch.testing.assert_close(schedule.to_velocity(output, x_t, t), v, rtol=1e-4, atol=1e-4)  # epsilon divides by sqrt(a_998) = 0.07
    for found, true in zip(schedule.denoise(output, x_t, t), (x0, noise), strict=True):
        torch.testing.assert_close(found, true, rtol=1e-4, atol=1e-4)


def test_noised_latents_and_velocities_are_float32_whatever_is_stored() -> None:
    x0 = torch.ones(1, 4, 8, 8, dtype=torch.float16)
    assert ddim().add_noise(x0, x0, 10).dtype == ddim().velocity(x0, x0, 10).dtype == ddim().to_velocity(x0, x0, 10).dtype == torch.float32


def test_trailing_keeps_to_the_number_of_steps_where_rounding_adds_one() -> None:
    timesteps = ddim(timestep_spacing="trailing").timesteps(61)
    assert len(timesteps) == 61
    assert timesteps[[0, -1]].tolist() == [999, 15]  # 1000/61 = 16.4


@pytest.mark.parametrize(("config", "steps"), [({}, 0), ({}, -3), ({}, 1001), ({"steps_offset": 1}, 1000), ({"steps_offset": -1}, 10)])
def test_an_impossible_number_of_steps_is_refused(config: dict[str, Any], steps: int) -> None:
    with pytest.raises(ConfigError, match=f"^{steps} denoising steps are impossible: this base was trained with 1000"):
        ddim(**config).timesteps(steps)


def test_a_config_that_cannot_be_used_is_refused_with_all_its_faults() -> None:
    with pytest.raises(ConfigError) as refused:
        ddim(prediction_type="flow", timestep_spacing="karras", beta_schedule="laplace", thresholding=True)
    message = str(refused.value)
    assert f"prediction_type 'flow' is not one of {', '.join(PREDICTION_TYPES)}" in message
    assert f"timestep_spacing 'karras' is not one of {', '.join(SPACINGS)}" in message
    assert f"beta_schedule 'laplace' is not one of {', '.join(BETAS)}" in message
    assert "thresholding" in message
    assert "scheduler_config.json" in message


def test_zero_terminal_snr_with_epsilon_is_refused() -> None:
    with pytest.raises(ConfigError, match="rescale_betas_zero_snr needs v_prediction or sample"):
        ddim(rescale_betas_zero_snr=True)
