"""Drawing on a tiny pipeline: equal to the stock one, stored transitions that score as they were drawn, and who draws what."""

import math
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from loophil.config import Lora
from loophil.errors import LearningError
from loophil.policy import LEARNER, Policy
from loophil.sampler import Sampler
from loophil.scheduler import DDIM, FlowMatching, step_with_log_prob
from loophil.types import Drawing, DrawSettings
from tests.tiny import tiny_pipeline

SETTINGS = DrawSettings(4, 3.0, 1.0, "blue")
SEEDS = (11, 12, 13)


def sampler(timestep_fraction: float = 0.5, dtype: torch.dtype = torch.float32, **scheduler: Any) -> Sampler:
    pipeline = tiny_pipeline(**scheduler)
    policy = Policy(pipeline if dtype == torch.float32 else pipeline.to(dtype), Lora(rank=4, alpha=8))
    return Sampler(policy, DDIM.from_config(policy.pipeline.scheduler.config), timestep_fraction=timestep_fraction)


@pytest.fixture(scope="module")
def shared() -> Sampler:
    """For tests that only draw."""
    return sampler()


def noise_weights(policy: Policy, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: 0.1 * torch.randn(value.shape, generator=generator) for key, value in policy.weights().items()}


def score(sampler: Sampler, drawing: Drawing, step: int) -> torch.Tensor:
    """(k,) log-probs of one stored step under the published policy, in the batch in which it was drawn."""
    settings, trajectory = drawing.settings, drawing.trajectory
    x_t, x_prev, t = trajectory.latents[:, step], trajectory.latents[:, step + 1], trajectory.timesteps[step]
    with torch.no_grad():
        output = sampler.policy.predict(x_t, t, sampler.policy.encode_prompt(drawing.prompt, settings.negative_prompt), settings.guidance_scale)
    steps, eta = settings.num_inference_steps, settings.eta
    return step_with_log_prob(sampler.schedule, output, t, x_t, num_inference_steps=steps, eta=eta, prev_sample=x_prev)[1]


# ---- equal to the stock pipeline ----

STOCK = [
    ({}, SETTINGS),
    ({"set_alpha_to_one": True}, SETTINGS),
    ({"timestep_spacing": "trailing", "prediction_type": "v_prediction"}, SETTINGS),
    ({"timestep_spacing": "linspace", "prediction_type": "sample"}, SETTINGS),
    ({"clip_sample": True, "prediction_type": "v_prediction"}, SETTINGS),
    ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}, SETTINGS),
    ({}, DrawSettings(5, 1.0, 1.0)),
    ({}, DrawSettings(3, 7.5, 0.0)),
]


def test_whoever_watches_is_told_after_each_step_what_is_predicted_and_changes_nothing() -> None:
    drawer, told = sampler(prediction_type="v_prediction"), []
    watched = drawer.draw("a red circle", SETTINGS, SEEDS, watch=lambda step, steps, x0: told.append((step, steps, x0())))
    assert [(step, steps) for step, steps, _ in told] == [(i, 4) for i in range(1, 5)]
    assert torch.equal(watched.trajectory.clean_latents, drawer.draw("a red circle", SETTINGS, SEEDS).trajectory.clean_latents)
    far = [float((clean - watched.trajectory.clean_latents).abs().mean()) for _, _, clean in told]
    assert far[-1] < far[0] / 10


@pytest.mark.parametrize(("scheduler", "settings"), STOCK)
def test_a_rollout_is_that_of_the_stock_pipeline(scheduler: dict[str, Any], settings: DrawSettings) -> None:
    stock = tiny_pipeline(**scheduler)
    ours = sampler(**scheduler).draw("a red circle", settings, SEEDS)
    asked = {
        "prompt": "a red circle",
        "negative_prompt": settings.negative_prompt,
        "num_inference_steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        "eta": settings.eta,
        "num_images_per_prompt": len(SEEDS),
    }
    latents = stock(**asked, generator=[torch.Generator().manual_seed(seed) for seed in SEEDS], output_type="latent").images
    assert torch.equal(ours.trajectory.clean_latents, latents)
    pictures = stock(**asked, generator=[torch.Generator().manual_seed(seed) for seed in SEEDS]).images
    assert [np.asarray(image).tolist() for image in ours.images] == [np.asarray(image).tolist() for image in pictures]


# ---- seeds ----


def test_an_image_depends_on_its_own_seed_and_not_on_its_siblings(shared: Sampler) -> None:
    first, second = shared.draw("a red circle", SETTINGS, (1, 2, 3)), shared.draw("a red circle", SETTINGS, (7, 2, 9))
    assert torch.equal(first.trajectory.clean_latents[1], second.trajectory.clean_latents[1])
    assert torch.equal(first.trajectory.log_probs[1], second.trajectory.log_probs[1])
    assert not torch.allclose(first.trajectory.clean_latents[0], second.trajectory.clean_latents[0], atol=0.1)


def test_an_image_is_the_same_alone(shared: Sampler) -> None:
    together, alone = shared.draw("a red circle", SETTINGS, (1, 2, 3)), shared.draw("a red circle", SETTINGS, (2,))
    torch.testing.assert_close(together.trajectory.clean_latents[1:2], alone.trajectory.clean_latents, atol=1e-4, rtol=1e-4)


def test_the_same_seeds_give_the_same_group_and_leave_torch_s_own_noise_alone(shared: Sampler) -> None:
    state = torch.get_rng_state()
    one, again = (shared.draw("a red circle", SETTINGS, SEEDS) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.trajectory.latents, again.trajectory.latents)
    assert torch.equal(one.trajectory.log_probs, again.trajectory.log_probs)


def test_a_drawing_says_how_it_came_about(shared: Sampler) -> None:
    drawing = shared.draw("a red circle", SETTINGS, SEEDS)
    assert (drawing.prompt, drawing.settings, drawing.seeds, drawing.policy_version) == ("a red circle", SETTINGS, SEEDS, 0)
    assert [image.size for image in drawing.images] == [(16, 16)] * 3


def test_prompt_and_negative_prompt_both_count(shared: Sampler) -> None:
    drawn = [
        shared.draw(prompt, DrawSettings(2, 3.0, 1.0, negative), (1,)).trajectory.clean_latents
        for prompt, negative in [("a red circle", ""), ("two stars", ""), ("a red circle", "blue")]
    ]
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


# ---- what is stored ----


@pytest.mark.parametrize(
    ("fraction", "scheduler", "settings", "trained"),
    [
        (0.5, {}, DrawSettings(12, 1.0, 1.0), 6),
        (0.01, {}, DrawSettings(12, 1.0, 1.0), 1),  # at least one
        (1.0, {}, DrawSettings(12, 1.0, 1.0), 11),  # never the last, almost noiseless one
        (1.0, {"set_alpha_to_one": True}, DrawSettings(12, 1.0, 1.0), 11),  # its sigma is 0
        (1.0, {"timestep_spacing": "linspace"}, DrawSettings(12, 1.0, 1.0), 11),  # as here
        (1.0, {}, DrawSettings(2, 1.0, 1.0), 1),
        (1.0, {}, DrawSettings(1, 1.0, 1.0), 0),
        (1.0, {}, DrawSettings(12, 1.0, 0.5), 11),
        (0.5, {}, DrawSettings(12, 1.0, 0.0), 0),  # no noise, no density
    ],
)
def test_the_early_steps_that_have_a_density_are_trained(
    fraction: float, scheduler: dict[str, Any], settings: DrawSettings, trained: int, shared: Sampler
) -> None:
    schedule = DDIM.from_config(tiny_pipeline(**scheduler).scheduler.config)
    assert Sampler(shared.policy, schedule, timestep_fraction=fraction).trained_steps(settings) == trained


def test_nothing_after_the_first_step_without_a_density_is_trained(shared: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loophil.sampler.trainable", lambda *args: torch.tensor([True, True, False, True, True]))
    assert Sampler(shared.policy, shared.schedule, timestep_fraction=1.0).trained_steps(DrawSettings(5, 1.0, 1.0)) == 2


def test_a_chain_with_almost_no_noise_is_not_trained(shared: Sampler) -> None:
    # flow matching in two steps: the second time is 1/1000, and the first step's noise is that of it
    schedule = FlowMatching(1000)
    assert float(schedule.std(torch.tensor(1000.0), num_inference_steps=2, eta=0.9)) == pytest.approx(0.9 * math.sqrt(0.001), rel=0.01)
    few = Sampler(shared.policy, schedule, timestep_fraction=1.0)
    assert [few.trained_steps(DrawSettings(steps, 1.0, 0.9)) for steps in (1, 2, 3)] == [0, 0, 2]


def test_with_a_window_only_the_trained_steps_have_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    drawer = sampler(timestep_fraction=0.5)
    windowed = Sampler(drawer.policy, drawer.schedule, timestep_fraction=0.5, window=True)
    monkeypatch.setattr("loophil.sampler.step_with_log_prob", spy := Mock(wraps=step_with_log_prob))
    all_noise, window = drawer.draw("a red circle", SETTINGS, SEEDS), windowed.draw("a red circle", SETTINGS, SEEDS)
    assert [call.kwargs["eta"] for call in spy.call_args_list] == [1.0] * 4 + [1.0, 1.0, 0.0, 0.0]
    assert torch.equal(all_noise.trajectory.latents, window.trajectory.latents)  # the trained steps are the same, and score the same
    assert not torch.equal(all_noise.trajectory.clean_latents, window.trajectory.clean_latents)
    assert (drawer.process, windowed.process) == ("DDIM", "DDIM, noise window")
    assert Sampler(drawer.policy, FlowMatching(1000), timestep_fraction=0.5).process == "flow matching, noise window"


def test_only_trained_steps_are_stored(shared: Sampler) -> None:
    trajectory = shared.draw("a red circle", DrawSettings(6, 3.0, 1.0), SEEDS).trajectory
    assert trajectory.latents.shape == (3, 4, 4, 8, 8)  # before each of 3 steps and after the last
    assert trajectory.log_probs.shape == (3, 3)
    assert trajectory.clean_latents.shape == (3, 4, 8, 8)
    assert trajectory.timesteps.tolist() == shared.schedule.timesteps(6)[:3].tolist()


def test_the_stored_chain_starts_at_the_seeds_noise(shared: Sampler) -> None:
    trajectory = shared.draw("a red circle", SETTINGS, SEEDS).trajectory
    noise = [torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS]
    assert torch.equal(trajectory.latents[:, 0], torch.stack(noise))


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_stored_transitions_score_exactly_as_they_were_drawn(guidance_scale: float) -> None:
    drawer = sampler(timestep_fraction=1.0)
    drawer.policy.load_weights(noise_weights(drawer.policy), 1)
    drawing = drawer.draw("a red circle", DrawSettings(4, guidance_scale, 1.0), SEEDS)
    for step in range(3):
        assert torch.equal(score(drawer, drawing, step), drawing.trajectory.log_probs[:, step])


def test_stored_transitions_score_exactly_in_half_precision_too() -> None:
    drawer = sampler(timestep_fraction=1.0, dtype=torch.bfloat16)
    drawing = drawer.draw("a red circle", SETTINGS, SEEDS)
    assert drawing.trajectory.latents.dtype == torch.bfloat16
    assert drawing.trajectory.log_probs.dtype == torch.float32
    for step in range(3):
        assert torch.equal(score(drawer, drawing, step), drawing.trajectory.log_probs[:, step])


def test_log_probs_are_the_mean_over_the_dimensions_of_a_gaussian_s() -> None:
    # the mean of -z^2/2 over 256 draws is near -1/2, whatever sigma: log-prob near -(1 + log(2 pi)) / 2 - log sigma
    drawer = sampler(timestep_fraction=1.0)
    trajectory = drawer.draw("a red circle", SETTINGS, SEEDS).trajectory
    sigma = drawer.schedule.std(trajectory.timesteps, num_inference_steps=4, eta=1.0)
    expected = -(1 + math.log(2 * math.pi)) / 2 - sigma.log()
    torch.testing.assert_close(trajectory.log_probs, expected.expand(3, -1), atol=0.2, rtol=0)


def test_without_noise_a_group_is_drawn_and_nothing_is_trained(shared: Sampler) -> None:
    trajectory = shared.draw("a red circle", DrawSettings(4, 1.0, 0.0), SEEDS).trajectory
    assert trajectory.log_probs.shape == (3, 0)
    assert trajectory.latents.shape == (3, 1, 4, 8, 8)
    assert trajectory.timesteps.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_trajectory_comes_back_from_disk_to_the_last_bit(dtype: torch.dtype, eta: float, tmp_path: Path) -> None:
    drawer, path = sampler(dtype=dtype), tmp_path / "g.safetensors"
    trajectory = drawer.draw("a red circle", DrawSettings(4, 1.0, eta), SEEDS).trajectory
    drawer.write(trajectory, path)
    assert set(load_file(path)) == {"latents", "log_probs", "timesteps", "clean_latents"}
    again = drawer.read(path)
    assert all(torch.equal(value, getattr(again, name)) and value.dtype == getattr(again, name).dtype for name, value in vars(trajectory).items())


def test_clean_latents_alone_take_no_room_for_the_rest(shared: Sampler) -> None:
    trajectory = shared.draw("a red circle", DrawSettings(10, 1.0, 1.0), SEEDS).trajectory
    clean = shared.clean_only(trajectory)
    assert torch.equal(clean.clean_latents, trajectory.clean_latents)
    assert (clean.latents.shape[1], clean.log_probs.shape, clean.timesteps.shape) == (1, (3, 0), (0,))
    assert sum(tensor.untyped_storage().nbytes() for tensor in vars(clean).values()) == 2 * 3 * 4 * 8 * 8 * 4


# ---- who draws ----


def test_a_refresh_and_only_a_refresh_changes_what_is_drawn() -> None:
    drawer = sampler()
    policy = drawer.policy
    first = drawer.draw("a red circle", SETTINGS, SEEDS)
    policy.train_from(noise_weights(policy))  # the learner has learned; nothing is published yet
    assert torch.equal(drawer.draw("a red circle", SETTINGS, SEEDS).trajectory.latents, first.trajectory.latents)
    policy.refresh(policy.next_weights(), 1)
    after = drawer.draw("a red circle", SETTINGS, SEEDS)
    assert after.policy_version == 1
    assert not torch.equal(after.trajectory.clean_latents, first.trajectory.clean_latents)


def test_base_published_and_learner_can_be_drawn() -> None:
    drawer = sampler()
    policy = drawer.policy
    version_0 = drawer.draw("a red circle", SETTINGS, SEEDS)
    policy.load_weights(noise_weights(policy), 3)
    policy.train_from(noise_weights(policy, seed=2))
    base, published, learner = (drawer.draw("a red circle", SETTINGS, SEEDS, who=who) for who in ("base", "published", LEARNER))
    assert torch.equal(base.trajectory.clean_latents, version_0.trajectory.clean_latents)
    assert (base.policy_version, published.policy_version) == (0, 3)
    assert not torch.equal(published.trajectory.clean_latents, base.trajectory.clean_latents)
    assert not torch.equal(learner.trajectory.clean_latents, published.trajectory.clean_latents)


def test_pictures_are_those_of_the_drawing(shared: Sampler) -> None:
    drawn, pictures = shared.draw("a red circle", SETTINGS, SEEDS), shared.pictures("a red circle", SETTINGS, SEEDS, who="base")
    assert [np.asarray(image).tolist() for image in pictures] == [np.asarray(image).tolist() for image in drawn.images]


def test_a_drawing_that_is_not_finite_is_refused() -> None:
    drawer = sampler()
    weights = noise_weights(drawer.policy)
    weights[sorted(weights)[0]].fill_(math.nan)
    drawer.policy.load_weights(weights, 2)
    with pytest.raises(LearningError, match=r"published model \(version 2\) drew numbers that are not finite: roll back"):
        drawer.draw("a red circle", SETTINGS, SEEDS)
    assert drawer.draw("a red circle", SETTINGS, SEEDS, who="base").policy_version == 0
