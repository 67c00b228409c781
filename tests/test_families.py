"""What is supported, what is said of what is not, and the whole way through each family on a tiny pipeline of the very same classes."""

import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler
from peft import PeftModel
from safetensors.torch import load_file

from loophil.build import load_engine, prompt_cache, warm_up
from loophil.config import Learn, Lora, Memory, Settings
from loophil.errors import ConfigError, InvalidInput
from loophil.export import export
from loophil.families import FAMILIES, drawing_of, family_of, family_type
from loophil.memory import Gauge
from loophil.model_card import Adapter
from loophil.pipeline import load_pipeline
from loophil.policy import Policy
from loophil.prompt_cache import PromptCache
from loophil.sampler import Sampler
from loophil.scheduler import DDIM, schedule_of
from loophil.trainer import Trainer
from loophil.types import Drawing, DrawSettings, Group, ImageRef, Lesson, UpdateStats
from loophil.ui.export import HOW_TO_LOAD
from tests.test_trainer import finish
from tests.tiny import tiny_flux, tiny_lcm, tiny_pipeline, tiny_sd3, tiny_sdxl, tiny_unet

SEEDS = (11, 12)
LORA = Lora(rank=4, alpha=8)
ARRAYS = {"output_type": "np"}
Pictures = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Kind:
    """A family under test. build: its tiny pipeline;  eta: at which the stock pipeline draws;  asked: what that is told besides.

    idle: a module that nothing the model draws depends on
    """

    build: Callable[[], Any]
    eta: float = 0.0
    asked: dict[str, Any] = field(default_factory=dict)
    kohya: bool = False
    idle: str = "none"

    @property
    def settings(self) -> DrawSettings:
        """Those of drawings that must equal the stock pipeline's."""
        return DrawSettings(3, 3.0, self.eta, self.asked.get("negative_prompt", ""))

    def stock(self, pipeline: Any, **more: Any) -> Any:
        """What the stock pipeline draws, latents (k, C, H, W) unless `more` says otherwise."""
        drawn = pipeline(
            "a red circle",
            num_inference_steps=3,
            guidance_scale=3.0,
            num_images_per_prompt=len(SEEDS),
            generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
            **({"output_type": "latent"} | self.asked | more),
        ).images
        packed = isinstance(drawn, torch.Tensor) and drawn.ndim == 3
        return pipeline._unpack_latents(drawn, 16, 16, pipeline.vae_scale_factor) if packed else drawn


DDIM_FAMILY: dict[str, Any] = {"eta": 1.0, "kohya": True}
KINDS = {
    "Stable Diffusion": Kind(tiny_pipeline, asked={"eta": 1.0, "negative_prompt": "blue"}, **DDIM_FAMILY),
    "SDXL": Kind(tiny_sdxl, asked={"eta": 1.0}, **DDIM_FAMILY),
    "SDXL, negative prompt": Kind(tiny_sdxl, asked={"eta": 1.0, "negative_prompt": "blue"}, **DDIM_FAMILY),
    "SD3": Kind(tiny_sd3, idle="transformer_blocks.1.attn.add_q_proj"),  # the last block's words go nowhere
    "SD3, negative prompt": Kind(tiny_sd3, asked={"negative_prompt": "blue"}),
    "SD3, without T5": Kind(partial(tiny_sd3, t5=False)),
    "SD3, dynamic shifting": Kind(partial(tiny_sd3, shift=1.0, use_dynamic_shifting=True)),
    "FLUX dev": Kind(tiny_flux, asked={"height": 16, "width": 16}),
    "FLUX schnell": Kind(partial(tiny_flux, guidance_embeds=False), asked={"height": 16, "width": 16, "max_sequence_length": 256}),
}
EACH = {name: kind for name, kind in KINDS.items() if "," not in name}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
each_family = pytest.mark.parametrize("kind", EACH.values(), ids=list(EACH))


class Bench:
    """A policy on a tiny pipeline with its sampler and trainer."""

    def __init__(
        self,
        kind: Kind,
        *,
        dtype: torch.dtype = torch.float32,
        size: int = 16,
        device: torch.device | None = None,
        memory: Memory | None = None,
        gauge: Gauge | None = None,
        **learn: Any,
    ) -> None:
        pipeline = kind.build()
        pipeline = pipeline if dtype == torch.float32 else pipeline.to(dtype)
        self.policy = Policy(pipeline, LORA, size=size, device=device, memory=memory, gauge=gauge)
        schedule = schedule_of(self.policy.family.noise)
        self.sampler = Sampler(self.policy, schedule, timestep_fraction=0.7)
        self.trainer = Trainer(self.policy, schedule, Learn(**{"micro_batch": 2, "forward_batch": 4, **learn}))

    def train(self, drawing: Drawing, log_probs: torch.Tensor | None = None) -> UpdateStats:
        """One update on a group whose first image is the better one."""
        images = tuple(ImageRef(f"i{seed}", seed, f"{seed}.png") for seed in drawing.seeds)
        group = Group("g", drawing.prompt, drawing.settings, drawing.policy_version, images)
        trajectory = drawing.trajectory if log_probs is None else replace(drawing.trajectory, log_probs=log_probs)
        steps = self.trainer.update([self.trainer.example(Lesson(group, np.array([1.0, -1.0]), {}, 0, (1,)), trajectory)])
        return finish(steps)

    def drawing(self, **changes: Any) -> Drawing:
        """A group to learn from."""
        return self.sampler.draw("a red circle", replace(DrawSettings(3, 3.0, 1.0), **changes), SEEDS)


def arrays(drawing: Drawing) -> Pictures:
    """(k, H, W, 3) in 0..1."""
    return np.stack([np.asarray(image) for image in drawing.images]) / 255


def adapter_of(policy: Policy) -> Adapter:
    """What is published, ready to be exported."""
    return Adapter(
        weights=policy.weights(),
        rank=policy.rank,
        alpha=policy.alpha,
        targets=tuple(policy.targets),
        base_model="some-org/tiny",
        revision=None,
        version=1,
        ratings=2,
        run="first",
        component=policy.family.component,
        architecture=policy.family.architecture,
    )


def unzipped(archive: Path) -> Path:
    with zipfile.ZipFile(archive) as content:
        content.extractall(archive.with_suffix(""))
    return archive.with_suffix("")


# ---- what is supported ----


@pytest.mark.parametrize(
    ("text_width", "prediction_type", "architecture"),
    [
        (768, "epsilon", "stable-diffusion-v1"),
        (1024, "epsilon", "stable-diffusion-v2-512"),
        (1024, "v_prediction", "stable-diffusion-v2-768-v"),
        (32, "v_prediction", "stable-diffusion-v1"),  # the embedded model: no other program knows it anyway
    ],
)
def test_generations_of_one_pipeline_are_told_apart_by_their_numbers(text_width: int, prediction_type: str, architecture: str) -> None:
    pipeline = tiny_pipeline(prediction_type=prediction_type)
    pipeline.unet.register_to_config(cross_attention_dim=text_width)
    assert family_of(pipeline).architecture == architecture


def test_an_unsupported_pipeline_is_refused_with_what_is_supported() -> None:
    with pytest.raises(ConfigError, match=rf"A KandinskyPipeline cannot be tuned yet\. Supported: {', '.join(sorted(FAMILIES))}\."):
        family_type("KandinskyPipeline")


def test_a_model_that_is_told_of_a_picture_as_well_is_refused() -> None:
    pipeline = tiny_pipeline()
    pipeline.unet = tiny_unet(in_channels=9)  # the noise, a mask and a picture: inpainting
    with pytest.raises(ConfigError, match="wants a picture or a mask besides the prompt"):
        family_of(pipeline)


def test_every_family_is_tested() -> None:
    assert {type(kind.build()).__name__ for kind in KINDS.values()} == set(FAMILIES) - {"LatentConsistencyModelPipeline"}  # which is below


# ---- equal to the stock pipeline ----


@each_kind
def test_a_rollout_is_that_of_the_stock_pipeline(kind: Kind) -> None:
    drawing = Bench(kind).sampler.draw("a red circle", kind.settings, SEEDS)
    assert torch.equal(drawing.trajectory.clean_latents, kind.stock(kind.build()))


@each_family
def test_pictures_are_those_of_the_stock_pipeline(kind: Kind) -> None:
    drawing = Bench(kind).sampler.draw("a red circle", kind.settings, SEEDS)
    assert [np.asarray(image).tolist() for image in drawing.images] == [np.asarray(i).tolist() for i in kind.stock(kind.build(), output_type="pil")]


@each_family
@pytest.mark.parametrize("size", [16, 32])
def test_pictures_have_the_size_that_was_asked_for(kind: Kind, size: int) -> None:
    bench = Bench(kind, size=size)
    drawing = bench.sampler.draw("a red circle", kind.settings, (1,))
    assert drawing.images[0].size == (size, size)
    assert drawing.trajectory.clean_latents.shape[1:] == bench.policy.latent_shape


@each_family
def test_a_size_that_does_not_fit_the_latents_is_refused(kind: Kind) -> None:
    with pytest.raises(ConfigError, match=r"This model draws in steps of \d pixels: draw\.size must be a multiple of \d, not 17"):
        Bench(kind, size=17)


# ---- it learns, and goes home ----


@each_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ratio_is_1_at_unchanged_weights(kind: Kind, dtype: torch.dtype) -> None:
    bench = Bench(kind, dtype=dtype, forward_passes=0)
    drawing = bench.drawing()
    stats = bench.train(drawing)
    assert drawing.trajectory.latents.dtype == dtype
    assert drawing.trajectory.log_probs.shape == (2, 2)
    assert (stats.ratio_mean, stats.ratio_std, stats.kept) == (1, 0, 1)


@each_family
@pytest.mark.parametrize("learn", [{"forward_passes": 0}, {"trajectory_passes": 0}], ids=["trajectories", "forward process"])
def test_each_objective_reaches_every_module(kind: Kind, learn: dict[str, Any]) -> None:
    bench = Bench(kind, **learn)
    bench.train(bench.drawing())
    moved = {key: not torch.equal(value, bench.policy.weights()[key]) for key, value in bench.policy.weights("learner").items()}
    idle = {key for key, changed in moved.items() if not changed and ".lora_B." in key}
    assert idle - {f"{kind.idle}.lora_B.weight"} == set()


@each_family
@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize(("nats", "clipped"), [(0.9, 0.0), (1.1, 1.0)])
def test_the_clip_is_in_nats_per_step_whatever_the_latent_size(kind: Kind, size: int, nats: float, clipped: float) -> None:
    bench = Bench(kind, size=size, forward_passes=0, clip_nats=1.0)
    drawing = bench.drawing()
    stats = bench.train(drawing, drawing.trajectory.log_probs - nats / bench.policy.dimensions)  # the policy is `nats` likelier than it was
    assert stats.clipfrac_pos == clipped
    assert stats.approx_kl == pytest.approx(nats**2 / 2, rel=0.01)


@each_family
def test_the_whole_way_ends_in_files_that_draw_the_same_pictures(kind: Kind, tmp_path: Path) -> None:
    bench = Bench(kind, learning_rate=0.05, forward_learning_rate=0.05)
    policy = bench.policy
    before = arrays(bench.sampler.draw("a red circle", kind.settings, SEEDS))
    assert set(bench.train(bench.drawing()).taught) == {"loop", "forward_process"}
    policy.refresh(policy.next_weights(), 1)
    tuned = bench.sampler.draw("a red circle", kind.settings, SEEDS)
    assert np.abs(arrays(tuned) - before).max() > 0.02  # else the comparisons below could not fail

    policy.write(policy.weights(), tmp_path / "version.safetensors")
    reopened = Bench(kind)
    reopened.policy.load_weights(reopened.policy.read(tmp_path / "version.safetensors"), 1)
    assert torch.equal(reopened.sampler.draw("a red circle", kind.settings, SEEDS).trajectory.clean_latents, tuned.trajectory.clean_latents)

    component, loaded = policy.family.component, {format: kind.build() for format in ("diffusers", "peft", "kohya")}
    adapter = adapter_of(policy)
    folder = unzipped(export(adapter, "diffusers", tmp_path))
    assert all(key.startswith(f"{component}.") for key in load_file(folder / "pytorch_lora_weights.safetensors"))
    loaded["diffusers"].load_lora_weights(folder, use_safetensors=True)
    wrapped = PeftModel.from_pretrained(getattr(loaded["peft"], component), unzipped(export(adapter, "peft", tmp_path)))
    setattr(loaded["peft"], component, wrapped)
    if kind.kohya:
        loaded["kohya"].load_lora_weights(export(adapter, "kohya", tmp_path))
    for format in ("diffusers", "peft", "kohya")[: 2 + kind.kohya]:
        np.testing.assert_allclose(kind.stock(loaded[format], **ARRAYS), arrays(tuned), rtol=0, atol=1 / 255, err_msg=format)


@pytest.mark.parametrize("format", ["diffusers", "peft"])
def test_the_program_that_the_export_tab_shows_draws(format: str, tmp_path: Path) -> None:
    """Of a base whose text encoder is kept in half precision, too, as the embedded one's is."""
    pipeline = tiny_pipeline()
    pipeline.text_encoder.half()
    pipeline.save_pretrained(tmp_path / "base")
    folder = unzipped(export(adapter_of(Policy(tiny_pipeline(), LORA)), format, tmp_path))
    names: dict[str, Any] = {}
    exec(HOW_TO_LOAD[format].format(file="", name=folder, model=tmp_path / "base"), names)
    assert names["pipe"]("a red circle", num_inference_steps=1).images[0].size == (16, 16)


@each_family
def test_a_folder_loads_to_the_same_model(kind: Kind, tmp_path: Path) -> None:
    kind.build().save_pretrained(tmp_path)
    pipeline: Any = load_pipeline(str(tmp_path), None, torch.device("cpu"))
    torch.testing.assert_close(kind.stock(pipeline), kind.stock(kind.build()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, PNDMScheduler, DPMSolverMultistepScheduler])
def test_latents_are_clipped_only_where_a_config_says_so(kind: Any, tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    pipeline.scheduler = kind(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    pipeline.save_pretrained(tmp_path)
    schedule = schedule_of(family_of(load_pipeline(str(tmp_path), None, torch.device("cpu"))).noise)
    assert isinstance(schedule, DDIM)
    assert schedule.clip_sample_range == math.inf


# ---- few steps ----


def test_a_model_of_one_step_is_taught_by_the_forward_process_alone_and_the_status_can_say_so(tmp_path: Path) -> None:
    tiny_pipeline(timestep_spacing="trailing").save_pretrained(tmp_path)
    settings = Settings.read(["--model", str(tmp_path), "--device", "cpu", "--draw.num-inference-steps", "1", "--draw.guidance-scale", "1"])
    engine = load_engine(settings)
    assert engine.note(settings) == (
        "1 denoising steps at eta 1 leave this model no noise for trajectories to learn from: only the forward process learns."
    )
    with pytest.raises(ConfigError, match=r"no noise for trajectories to learn from: choose more steps, or --learn\.forward-passes above 0"):
        engine.note(settings.changed({"learn.forward_passes": 0}))
    bench = Bench(KINDS["Stable Diffusion"])
    stats = bench.train(bench.drawing(num_inference_steps=1, guidance_scale=1.0))
    assert set(stats.taught) == {"forward_process"}


LCM = Kind(tiny_lcm, asked={"original_inference_steps": 50})


def test_a_latent_consistency_model_draws_what_the_stock_pipeline_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one step, where that has no noise either; it is told of guidance, and has no second half."""
    bench, stock, told = Bench(LCM), tiny_lcm(), []
    for pipeline in (stock, bench.policy.pipeline):
        spy = Mock(side_effect=pipeline.unet.forward)
        monkeypatch.setattr(pipeline.unet, "forward", spy)
        told.append(spy)
    drawing = bench.sampler.draw("a red circle", DrawSettings(1, 3.0, 1.0), SEEDS)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    asked: dict[str, Any] = {"num_inference_steps": 1, "guidance_scale": 3.0, "num_images_per_prompt": 2, "output_type": "latent"}
    theirs = stock("a red circle", generator=generators, **asked).images
    torch.testing.assert_close(drawing.trajectory.clean_latents, theirs, rtol=1e-5, atol=1e-5)
    said = [spy.call_args.kwargs["timestep_cond"].expand(2, -1) for spy in told]
    assert torch.equal(*said)
    for steps in (1, 2, 4, 8, 50):
        stock.scheduler.set_timesteps(steps)
        assert bench.sampler.schedule.timesteps(steps).tolist() == stock.scheduler.timesteps.tolist()
    with pytest.raises(ConfigError, match="51 denoising steps are impossible: this base was trained with 50"):
        bench.sampler.schedule.timesteps(51)


def test_a_latent_consistency_model_learns_from_its_few_steps(tmp_path: Path) -> None:
    bench = Bench(LCM, learning_rate=0.05, forward_learning_rate=0.05)
    drawing = bench.drawing(num_inference_steps=4)
    stats = bench.train(drawing)
    assert (stats.ratio_mean, stats.ratio_std, set(stats.taught)) == (1, 0, {"loop", "forward_process"})
    bench.policy.refresh(bench.policy.next_weights(), 1)
    tuned = bench.sampler.draw("a red circle", DrawSettings(1, 3.0, 1.0), SEEDS).trajectory.clean_latents
    stock, generators = tiny_lcm(), [torch.Generator().manual_seed(seed) for seed in SEEDS]
    asked: dict[str, Any] = {"num_inference_steps": 1, "guidance_scale": 3.0, "num_images_per_prompt": 2, "output_type": "latent"}
    assert not torch.allclose(stock("a red circle", generator=generators, **asked).images, tuned, atol=0.01)
    stock.load_lora_weights(unzipped(export(adapter_of(bench.policy), "diffusers", tmp_path)), use_safetensors=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    torch.testing.assert_close(stock("a red circle", generator=generators, **asked).images, tuned, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("build", "name", "steps", "scale", "eta"),
    [
        (tiny_pipeline, "stable-diffusion-v1-5/stable-diffusion-v1-5", 20, 5.0, 1.0),
        (tiny_sdxl, "stabilityai/sdxl-turbo", 4, 1.0, 1.0),
        (tiny_sdxl, "someone/hyperrealism-lcmx", 20, 5.0, 1.0),
        (tiny_sd3, "stabilityai/stable-diffusion-3.5-medium", 20, 4.5, 0.7),
        (tiny_flux, "black-forest-labs/FLUX.1-dev", 20, 3.5, 0.7),
        (partial(tiny_flux, guidance_embeds=False), "flux", 4, 1.0, 0.7),
        (tiny_lcm, "SimianLuo/LCM_Dreamshaper_v7", 4, 5.0, 1.0),
    ],
)
def test_a_model_has_its_own_way_of_being_drawn_where_nobody_says_otherwise(
    build: Callable[[], Any], name: str, steps: int, scale: float, eta: float
) -> None:
    own = drawing_of(family_of(build()), name)
    draw = Settings.read(["--model", name]).resumed(own).draw
    assert (draw.num_inference_steps, draw.guidance_scale, draw.eta) == (steps, scale, eta)
    said = Settings.read(["--draw.num-inference-steps", "12", "--draw.guidance-scale", "3"]).resumed(own).draw
    assert (said.num_inference_steps, said.guidance_scale, said.eta) == (12, 3.0, eta)


def test_a_model_that_nothing_could_teach_is_refused(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path)
    flags = ["--model", str(tmp_path), "--device", "cpu", "--draw.num-inference-steps", "1", "--learn.forward-passes", "0"]
    engine = load_engine(settings := Settings.read(flags))
    with pytest.raises(ConfigError, match=r"no noise for trajectories to learn from: choose more steps, or --learn\.forward-passes above 0"):
        engine.note(settings)


@pytest.mark.parametrize(("flag", "process"), [("auto", "DDIM"), ("off", "DDIM"), ("on", "DDIM, noise window")])
def test_the_noise_window_can_be_chosen_and_is_in_the_record(flag: str, process: str, tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path)
    engine = load_engine(settings := Settings.read(["--model", str(tmp_path), "--device", "cpu", "--draw.noise-window", flag]))
    assert (engine.scheduler, engine.sampler.window, engine.note(settings)) == (process, flag == "on", "")


# ---- memory and speed ----


def test_prompts_of_a_model_are_kept_for_all_runs_unless_nobody_wants_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny_pipeline().save_pretrained(tmp_path / "model")
    kept = []
    for megabytes in ("0", "1"):
        flags = ["--model", str(tmp_path / "model"), "--device", "cpu", "--memory.prompt-cache-mb", megabytes]
        load_engine(Settings.read(flags)).policy.encode_prompt("a red circle")
        kept.append(len(list((tmp_path / "cache").rglob("loophil/prompts/*.safetensors"))))
    assert kept == [0, 1]
    assert type(prompt_cache(Settings())).__name__ == "NoPromptCache"  # the embedded model's are made faster than read


def test_a_model_is_compiled_while_it_loads_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[Any] = []
    said: list[str] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr("loophil.policy.COMPILER", {"backend": backend})
    tiny_flux().save_pretrained(tmp_path)
    torch._dynamo.reset()
    load_engine(Settings.read(["--model", str(tmp_path), "--device", "cpu", "--memory.compile", "--draw.size", "16"]), said.append)
    torch._dynamo.reset()
    assert said[-1] == "4 of 4: compiling the model; the first time that takes minutes"
    assert graphs


def test_a_model_that_cannot_be_compiled_is_refused() -> None:
    failed = type("BackendCompilerFailed", (RuntimeError,), {"__module__": "torch._dynamo.exc"})
    sampler = Mock(pictures=Mock(side_effect=failed("backend='inductor' raised:\nRuntimeError: no compiler\n\nSet TORCHDYNAMO_VERBOSE=1")))
    with pytest.raises(ConfigError, match=r"here \(backend='inductor' raised: RuntimeError: no compiler\): leave --memory\.compile off\."):
        warm_up(sampler, Settings())


def test_other_errors_while_it_warms_up_are_told_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Mock(pictures=Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        warm_up(sampler, Settings())


@each_family
def test_words_of_every_family_may_come_from_disk(kind: Kind, tmp_path: Path) -> None:
    cache = PromptCache(tmp_path, 10**6, ("tiny",))
    drawn = []
    for _ in range(2):
        policy = Policy(kind.build(), LORA, size=16, cache=cache)
        sampler = Sampler(policy, schedule_of(policy.family.noise), timestep_fraction=0.7)
        drawn.append(sampler.draw("a red circle", kind.settings, SEEDS).trajectory.clean_latents)
    assert torch.equal(*drawn)
    assert len(list(tmp_path.iterdir())) == 1


# ---- flow matching ----


def test_flow_matching_has_noise_in_the_trained_steps_alone() -> None:
    sampler = Bench(KINDS["SD3"]).sampler
    assert (sampler.window, sampler.process) == (True, "flow matching, noise window")


def test_the_words_side_of_sd3_s_attention_carries_the_lora_too() -> None:
    endings = {key.rpartition(".lora_")[0].split(".attn.")[1] for key in Bench(KINDS["SD3"]).policy.weights()}
    assert endings == {"to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"}


def test_a_kohya_file_of_sd3_is_refused_since_diffusers_could_not_read_it(tmp_path: Path) -> None:
    policy = Bench(KINDS["SD3"]).policy
    with pytest.raises(InvalidInput, match=r"reads no kohya names: choose the diffusers format, which ComfyUI reads, too, at strength 2\."):
        export(adapter_of(policy), "kohya", tmp_path)


# ---- FLUX ----


def test_flux_has_the_size_of_the_stock_pipeline_where_nothing_is_asked() -> None:
    stock = tiny_flux()
    assert family_of(stock).latent_shape == (4, stock.default_sample_size, stock.default_sample_size)


def test_dev_and_schnell_are_told_apart() -> None:
    assert [family_of(tiny_flux(guidance_embeds=dev), 16).architecture for dev in (True, False)] == ["flux-1-dev", "flux-1-schnell"]


@pytest.mark.parametrize(("name", "differ"), [("FLUX dev", True), ("FLUX schnell", False)])
def test_guidance_is_a_condition_of_dev_and_nothing_to_schnell(name: str, differ: bool) -> None:
    sampler = Bench(KINDS[name]).sampler
    low, high = (sampler.draw("x", DrawSettings(2, guidance, 0.0), (1,)).trajectory.clean_latents for guidance in (1.0, 9.0))
    assert torch.equal(low, high) is not differ


def test_the_forward_process_of_dev_is_told_the_guidance_that_it_is_drawn_with(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(KINDS["FLUX dev"], trajectory_passes=0, forward_passes=1)
    drawing = bench.drawing(guidance_scale=3.5)
    monkeypatch.setattr(bench.policy.denoiser, "forward", spy := Mock(wraps=bench.policy.denoiser.forward))
    bench.train(drawing)
    assert [call.kwargs["guidance"].tolist() for call in spy.call_args_list] == [[3.5, 3.5]] * len(spy.call_args_list)
    assert spy.call_count >= 2


def test_flux_runs_once_a_step_whatever_the_guidance(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(KINDS["FLUX dev"])
    monkeypatch.setattr(bench.policy.denoiser, "forward", spy := Mock(wraps=bench.policy.denoiser.forward))
    bench.drawing()
    assert [len(call.kwargs["hidden_states"]) for call in spy.call_args_list] == [len(SEEDS)] * 3


# ---- SDXL ----


def test_sdxl_is_told_the_size_of_the_picture() -> None:
    words = Bench(KINDS["SDXL"], size=32).policy.encode_prompt("a red circle").positive
    assert words["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]]


def test_sdxl_without_a_negative_prompt_has_a_negative_half_of_zeros() -> None:
    policy = Bench(KINDS["SDXL"]).policy
    empty, blue = (policy.encode_prompt("a red circle", negative).negative for negative in ("", "blue"))
    assert not empty["encoder_hidden_states"].any()
    assert not empty["text_embeds"].any()
    assert blue["encoder_hidden_states"].any()


def test_sdxl_s_autoencoder_works_in_float32_where_half_precision_overflows() -> None:
    pipeline = tiny_sdxl().to(torch.float16)
    pipeline.vae.register_to_config(force_upcast=True)
    policy = Policy(pipeline, LORA)
    assert (policy.dtype, pipeline.vae.dtype) == (torch.float16, torch.float32)


def test_sdxl_s_relatives_say_the_mean_and_spread_of_their_latents() -> None:
    pipeline, stock = tiny_sdxl(), tiny_sdxl()
    for each in (pipeline, stock):
        each.vae.register_to_config(latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 1.5, 0.5, 2.0])
    kind = KINDS["SDXL"]
    drawing = Bench(replace(kind, build=lambda: pipeline)).sampler.draw("a red circle", kind.settings, SEEDS)
    np.testing.assert_allclose(arrays(drawing), kind.stock(stock, **ARRAYS), rtol=0, atol=1 / 255)
    assert not np.allclose(arrays(drawing), kind.stock(tiny_sdxl(), **ARRAYS), rtol=0, atol=0.02)


def test_a_scheduler_that_says_nothing_of_clipping_clips_no_latents() -> None:
    from diffusers import EulerDiscreteScheduler

    pipeline = tiny_sdxl()
    pipeline.scheduler = EulerDiscreteScheduler()
    schedule = schedule_of(family_of(pipeline).noise)
    assert isinstance(schedule, DDIM)
    assert schedule.clip_sample_range == float("inf")
