"""The seam: a step is diffusers' step, a rollout is the stock pipeline's, and what was drawn scores the same when it is replayed."""

import inspect
import math
from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Generator, Tensor

from loophil.errors import ConfigError
from loophil.scheduler import (
    BETAS,
    DDIM,
    DEFAULTS,
    PREDICTION_TYPES,
    SPACINGS,
    FlowMatching,
    Schedule,
    randn,
    schedule_of,
    step_with_log_prob,
    trainable,
)
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
@pytest.mark.parametrize(
    ("made", "eta"), [(lambda: ddim(prediction_type="v_prediction", set_alpha_to_one=False), 1.0), (lambda: FlowMatching.from_config(FLOWS[1]), 0.7)]
)
def test_what_was_drawn_scores_exactly_the_same_in_a_batch_of_mixed_steps(made: Callable[[], Schedule], eta: float, dtype: torch.dtype) -> None:
    schedule, steps = made(), 6
    timesteps, latents, log_probs = schedule.timesteps(steps), [torch.randn(SHAPE, generator=seeded(1)).to(dtype)], []
    generator = seeded(2)
    for t in timesteps:
        x, log_prob = step_with_log_prob(schedule, latents[-1].tanh(), t, latents[-1], num_inference_steps=steps, eta=eta, generator=generator)
        latents.append(x)
        log_probs.append(log_prob)
        assert x.dtype == dtype
        assert log_prob.dtype == torch.float32
    before, after = (torch.cat(part) for part in zip(*pairwise(latents), strict=True))
    mixed = timesteps.repeat_interleave(SHAPE[0])
    _, replayed = step_with_log_prob(schedule, before.tanh(), mixed, before, num_inference_steps=steps, eta=eta, prev_sample=after)
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
    for found, true in zip((*schedule.denoise(output, x_t, t), schedule.predict_x0(output, x_t, t)), (x0, noise, x0), strict=True):
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


# ---- flow matching ----

FLOWS: list[dict[str, Any]] = [
    {},
    {"shift": 3.0},  # SD3
    {"use_dynamic_shifting": True, "image_seq_len": 1024},  # SD3.5 with dynamic shifting
    {"shift": 1.0, "from_one": True},  # FLUX.1-schnell
    {"use_dynamic_shifting": True, "from_one": True, "image_seq_len": 4096},  # FLUX.1-dev at 1024 pixels
    {"use_dynamic_shifting": True, "from_one": True, "image_seq_len": 4096, "shift_terminal": 0.02},  # Qwen-Image
    {"use_dynamic_shifting": True, "image_seq_len": 1024, "time_shift_type": "linear"},
    {"num_train_timesteps": 500, "shift": 2.0},
]


def stock_flow(config: dict[str, Any], num_inference_steps: int) -> FlowMatchEulerDiscreteScheduler:
    """Diffusers' scheduler, set up as a pipeline does."""
    stock = FlowMatchEulerDiscreteScheduler(**{name: value for name, value in config.items() if name not in ("image_seq_len", "from_one")})
    told: dict[str, Any] = {}
    if config.get("use_dynamic_shifting"):
        told["mu"] = calculate_shift(config["image_seq_len"], 256, 4096, 0.5, 1.15)
    if config.get("from_one"):
        told["sigmas"] = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
    stock.set_timesteps(num_inference_steps, **told)
    return stock


@pytest.mark.parametrize("config", FLOWS)
@pytest.mark.parametrize("num_inference_steps", [2, 4, 7, 28])
def test_without_noise_every_flow_step_is_that_of_diffusers(config: dict[str, Any], num_inference_steps: int) -> None:
    stock, schedule = stock_flow(config, num_inference_steps), FlowMatching.from_config(config)
    assert torch.equal(schedule.timesteps(num_inference_steps), stock.timesteps)
    theirs = ours = torch.randn(SHAPE, generator=seeded(1))
    for t in stock.timesteps:
        theirs = stock.step(theirs.tanh(), t, theirs, return_dict=False)[0]
        ours, log_prob = step_with_log_prob(schedule, ours.tanh(), t, ours, num_inference_steps=num_inference_steps, eta=0.0)
        assert torch.equal(theirs, ours)
        assert not log_prob.any()
    assert not trainable(schedule, num_inference_steps, 0.0).any()


def test_a_flow_step_is_flow_grpo_s() -> None:
    # times 1, 1/2, 0; a = 0.5.  At t = 1/2: sigma = 0.5 * sqrt(1) = 0.5, dt = -1/2, std = 0.5 * sqrt(1/2) = 0.353553
    #   mean = x (1 - 0.25 / (2 * 0.5) * 0.5) + v (1 + 0.25 * 0.5 / (2 * 0.5)) * -0.5 = 0.875 x - 0.5625 v
    # At t = 1 sigma is that of the second time: 0.5 too.  mean = x (1 - 0.25 / 2 * 0.5) + v * -0.5 = 0.9375 x - 0.5 v
    schedule, x, v = FlowMatching(1000, from_one=True), torch.full((1, 1, 2, 2), 2.0), torch.full((1, 1, 2, 2), 4.0)
    assert schedule.timesteps(2).tolist() == [1000, 500]
    for t, mean in ((1000.0, 0.9375 * 2 - 0.5 * 4), (500.0, 0.875 * 2 - 0.5625 * 4)):
        prev, log_prob = step_with_log_prob(schedule, v, torch.tensor(t), x, num_inference_steps=2, eta=0.5, noise=torch.ones_like(x))
        assert prev.flatten().tolist() == pytest.approx([mean + 0.353553] * 4, abs=1e-5)
        # one std off: -1/2 - ln 0.353553 - ln(2 pi) / 2 = -0.379218
        assert log_prob.tolist() == pytest.approx([-0.379218], abs=1e-5)


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_the_stochastic_flow_has_the_marginals_of_the_deterministic_one(eta: float) -> None:
    # pictures of one point, 2: the true velocity is v = (x_t - 2) / t, and whatever the noise, x_t has mean 2 (1 - t) and spread t
    schedule, steps = FlowMatching(1000, from_one=True), 200
    generator, x = seeded(3), torch.randn(1, 1, 100, 100, generator=seeded(1))
    for number, t in enumerate(schedule.timesteps(steps)):
        time = float(t) / 1000
        if number in (40, 100, 160):
            assert float(x.mean()) == pytest.approx(2 * (1 - time), abs=0.03)
            assert float(x.std()) == pytest.approx(time, rel=0.05)
        x, _ = step_with_log_prob(schedule, (x - 2) / time, t, x, num_inference_steps=steps, eta=eta, generator=generator)


def test_noise_and_velocity_of_the_flow_are_those_of_its_straight_line() -> None:
    # x_t = (1 - t) x_0 + t noise; its slope in t is noise - x_0, and x_t - t v is x_0 again
    schedule, x0, noise = FlowMatching(1000), torch.randn(SHAPE, generator=seeded(1)), torch.randn(SHAPE, generator=seeded(2))
    t = torch.tensor([0, 250, 1000])
    x_t, v = schedule.add_noise(x0, noise, t), schedule.velocity(x0, noise, t)
    assert torch.equal(x_t[0], x0[0])
    assert torch.equal(x_t[2], noise[2])
    torch.testing.assert_close(x_t[1], 0.75 * x0[1] + 0.25 * noise[1])
    torch.testing.assert_close(schedule.predict_x0(v, x_t, t), x0)
    half = v.half()
    assert schedule.to_velocity(half, x_t, t).dtype == schedule.add_noise(half, half, t).dtype == torch.float32


def test_the_only_step_of_a_flow_has_no_density() -> None:
    assert trainable(FlowMatching(1000, from_one=True), 1, 0.7).tolist() == [False]
    with pytest.raises(ConfigError, match="0 denoising steps are impossible"):
        FlowMatching(1000).timesteps(0)


def test_a_flow_that_cannot_be_used_is_refused_with_all_its_faults() -> None:
    with pytest.raises(
        ConfigError, match=r"(?s)stochastic_sampling is not supported.*use_beta_sigmas is not.*time_shift_type 'square' is not one of"
    ):
        FlowMatching.from_config({"stochastic_sampling": True, "use_beta_sigmas": True, "time_shift_type": "square"})


def test_the_kind_of_schedule_follows_from_the_scheduler_s_class() -> None:
    assert isinstance(schedule_of({"_class_name": "FlowMatchEulerDiscreteScheduler"}), FlowMatching)
    assert isinstance(schedule_of({"_class_name": "PNDMScheduler", **STABLE_DIFFUSION}), DDIM)
    assert isinstance(schedule_of(STABLE_DIFFUSION), DDIM)


def test_a_schedule_of_another_noise_is_refused() -> None:
    with pytest.raises(ConfigError, match="An EDMEulerScheduler has other noise than DDIM"):
        schedule_of({"_class_name": "EDMEulerScheduler", "sigma_data": 0.5})


@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [4, 12])
def test_other_schedulers_than_ddim_s_leave_no_noise_behind(kind: str, spacing: str, steps: int) -> None:
    # pictures of one point, 2: the true noise is eps = (x_t - 2 sqrt(a_t)) / sqrt(1 - a_t); each step's latents have the spread of the next timestep
    schedule = schedule_of(STABLE_DIFFUSION | {"_class_name": kind, "timestep_spacing": spacing})
    assert isinstance(schedule, DDIM)
    timesteps, x = schedule.timesteps(steps).tolist(), torch.randn(1, 1, 200, 200, generator=seeded(1))
    for t, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        a_t = schedule.alphas_cumprod[t]
        said = (x - 2 * a_t.sqrt()) / (1 - a_t).sqrt()
        x, _ = step_with_log_prob(schedule, said, t, x, num_inference_steps=steps, eta=1.0, generator=seeded(t))
        spread = 0.0 if following is None else float((1 - schedule.alphas_cumprod[following]).sqrt())
        assert float(x.std()) == pytest.approx(spread, rel=0.08, abs=1e-4)
    assert float(x.mean()) == pytest.approx(2, abs=1e-3)


def test_the_first_step_of_a_flow_has_no_more_noise_than_its_schedule_says() -> None:
    # sigma sqrt(-dt) of the second time, at most; some shifts put the first time 6e-8 below 1, where sigma would be thousands
    for shift in np.arange(1.0, 20.0, 0.01):
        schedule = FlowMatching(1000, shift=float(shift))
        times = schedule.timesteps(12) / 1000
        std = schedule.std(schedule.timesteps(12)[0], num_inference_steps=12, eta=1.0)
        expected = (times[1] / (1 - times[1]) * (times[0] - times[1])).sqrt()
        assert float(std) == pytest.approx(float(expected), rel=1e-4), shift
