"""The policy on a pipeline small enough for a test: adapters, weights in and out, prediction against the stock parts."""

import contextlib
import math
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file

from loophil import policy as module
from loophil.config import Lora, Memory
from loophil.errors import ConfigError
from loophil.families import Embeddings, join
from loophil.lora_file import LoraFile, read_lora
from loophil.memory import Gauge
from loophil.policy import BASE, LEARNER, ORIGIN, PUBLISHED, Policy
from loophil.prompt_cache import PromptCache
from tests.tiny import WIDTH, tiny_flux, tiny_pipeline, tiny_sd3, tiny_sdxl

CPU = torch.device("cpu")
LORA = Lora(rank=4, alpha=8)


@pytest.fixture
def policy() -> Policy:
    return Policy(tiny_pipeline(), LORA)


def other(weights: dict[str, torch.Tensor], seed: int = 1) -> dict[str, torch.Tensor]:
    """Random weights of the same shapes."""
    generator = torch.Generator().manual_seed(seed)
    return {key: 0.1 * torch.randn(value.shape, generator=generator) for key, value in weights.items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def latents(n: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def predicted(policy: Policy, who: str) -> torch.Tensor:
    with policy.acting(who):
        return policy.predict(latents(), torch.tensor(500), policy.encode_prompt("a red circle"), 3.0)


@pytest.mark.parametrize("targets", ["to_z", "mid_block", ",", "norm1"])
def test_targets_that_cannot_carry_a_lora_are_refused(targets: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{targets}' cannot carry a LoRA in this model\. Use --lora\.targets to_q,to_k,to_v,to_out\.0\."):
        Policy(tiny_pipeline(), Lora(targets=targets))


@pytest.mark.parametrize(("size", "side"), [(0, 8), (32, 16), (8, 4)])
def test_pictures_have_the_size_that_was_asked_for(size: int, side: int) -> None:
    policy = Policy(tiny_pipeline(), LORA, size=size)
    assert policy.latent_shape == (4, side, side)
    latents = torch.zeros(2, *policy.latent_shape)
    assert {picture.size for picture in policy.decode(latents)} == {(2 * side, 2 * side)}
    assert policy.predict(latents, torch.tensor(5), policy.encode_prompt("a cat", ""), 1.0).shape == latents.shape


def test_size_that_does_not_fit_the_latents_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"in steps of 2 pixels: draw\.size must be a multiple of 2, not 9"):
        Policy(tiny_pipeline(), LORA, size=9)


def test_building_a_policy_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        Policy(tiny_pipeline(), LORA)


# ---- what it predicts ----


def test_base_equals_disabled_adapters_equals_version_0(policy: Policy) -> None:
    bare = tiny_pipeline()
    embeddings = policy.encode_prompt("a red circle")
    with torch.no_grad():
        plain = bare.unet(latents(), torch.tensor(500), encoder_hidden_states=embeddings.positive["encoder_hidden_states"].expand(2, -1, -1)).sample
        for who in (BASE, PUBLISHED, LEARNER):
            with policy.acting(who):
                assert torch.equal(policy.predict(latents(), torch.tensor(500), embeddings, 1.0), plain)
    assert policy.version == 0


def test_base_stays_the_base_whatever_is_published(policy: Policy) -> None:
    before = predicted(policy, BASE)
    policy.load_weights(other(policy.weights()), 3)
    assert torch.equal(predicted(policy, BASE), before)
    assert not torch.equal(predicted(policy, PUBLISHED), before)
    assert torch.equal(predicted(policy, PUBLISHED), predicted(policy, LEARNER))


def test_guidance_moves_from_the_negative_prompt_towards_the_prompt(policy: Policy) -> None:
    positive, negative = embeddings = policy.encode_prompt("a red circle", "blue")
    with torch.no_grad():
        guided = policy.predict(latents(), torch.tensor(500), embeddings, 3.0)
        towards, away = (policy.predict(latents(), torch.tensor(500), Embeddings(e, e), 1.0) for e in (positive, negative))
    torch.testing.assert_close(guided, away + 3 * (towards - away))
    assert not torch.allclose(towards, away)


@pytest.mark.parametrize(("guidance_scale", "rows"), [(1.0, 2), (1.5, 4)])
def test_guidance_is_one_batch_and_none_costs_nothing(policy: Policy, guidance_scale: float, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy.denoiser, "forward", spy := Mock(wraps=policy.denoiser.forward))
    with torch.no_grad():
        policy.predict(latents(), torch.tensor(500), policy.encode_prompt("a red circle"), guidance_scale)
    assert [len(call.args[0]) for call in spy.call_args_list] == [rows]


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_each_image_may_have_its_own_timestep_and_prompt(policy: Policy, guidance_scale: float) -> None:
    one, two = policy.encode_prompt("a red circle"), policy.encode_prompt("two stars", "blue")
    both = Embeddings(join([one.positive, two.positive]), join([one.negative, two.negative]))
    with torch.no_grad():
        together = policy.predict(latents(), torch.tensor([900, 20]), both, guidance_scale)
        apart = [policy.predict(latents()[i : i + 1], torch.tensor(t), e, guidance_scale) for i, (t, e) in enumerate([(900, one), (20, two)])]
    torch.testing.assert_close(together, torch.cat(apart))


def test_prompts_are_encoded_as_the_stock_pipeline_does(policy: Policy) -> None:
    positive, negative = policy.encode_prompt("a red circle", "blue")
    for mine, theirs in zip((positive, negative), tiny_pipeline().encode_prompt("a red circle", CPU, 1, True, "blue")[:2], strict=True):
        assert torch.equal(mine["encoder_hidden_states"], theirs)
    assert positive["encoder_hidden_states"].shape == (1, 16, WIDTH)


def test_prompts_are_encoded_once(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy.pipeline, "encode_prompt", spy := Mock(wraps=policy.pipeline.encode_prompt))
    for _ in range(2):
        policy.encode_prompt("a red circle")
    assert spy.call_count == 1
    policy.encode_prompt("a red circle", "blue")  # another negative prompt is another entry
    assert spy.call_count == 2


def test_the_prompts_used_last_are_the_ones_that_are_kept(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHED_PROMPTS", 2)
    monkeypatch.setattr(policy.pipeline, "encode_prompt", spy := Mock(wraps=policy.pipeline.encode_prompt))
    for prompt in ("a", "b", "a", "c", "a", "b"):  # c drives b out, b is encoded again
        policy.encode_prompt(prompt)
    assert [call.args[0] for call in spy.call_args_list] == ["a", "b", "c", "b"]


def test_latents_become_the_pictures_of_the_stock_pipeline(policy: Policy) -> None:
    stock = tiny_pipeline()
    with torch.no_grad():
        pixels = stock.vae.decode(latents() / stock.vae.config.scaling_factor).sample
    theirs = stock.image_processor.postprocess(pixels, output_type="pil")
    assert [np.asarray(image).tolist() for image in policy.decode(latents())] == [np.asarray(image).tolist() for image in theirs]


@pytest.mark.parametrize(("size", "shape"), [(8, (4, 8, 8)), ((8, 16), (4, 8, 16))])
def test_latents_have_the_model_s_own_size(size: Any, shape: tuple[int, int, int]) -> None:
    pipeline = tiny_pipeline()
    pipeline.unet.register_to_config(sample_size=size)
    policy = Policy(pipeline, LORA)
    assert policy.latent_shape == shape
    assert policy.dimensions == math.prod(shape)


# ---- who acts, and what learns ----


def test_acting_restores_who_acted_before_also_after_an_error(policy: Policy) -> None:
    policy.refresh(other(policy.weights()), 1)
    published, learner = predicted(policy, PUBLISHED), predicted(policy, LEARNER)

    def now() -> torch.Tensor:
        with torch.no_grad():
            return policy.predict(latents(), torch.tensor(500), policy.encode_prompt("a red circle"), 3.0)

    with policy.acting(LEARNER):
        with pytest.raises(KeyError), policy.acting(BASE):
            raise KeyError
        assert torch.equal(now(), learner)
    assert torch.equal(now(), published)


def test_wearing_draws_with_other_weights_at_any_strength_and_gives_its_own_back(policy: Policy) -> None:
    own, theirs = other(policy.weights(), seed=1), other(policy.weights(), seed=2)
    policy.load_weights(own, 3)
    before, base = predicted(policy, PUBLISHED), predicted(policy, BASE)
    twin = Policy(tiny_pipeline(), LORA)
    twin.load_weights(theirs, 1)
    with policy.wearing(theirs):
        assert torch.equal(predicted(policy, PUBLISHED), predicted(twin, PUBLISHED))
    with policy.wearing(theirs, strength=0.0):
        torch.testing.assert_close(predicted(policy, PUBLISHED), base)
    with policy.wearing(theirs, strength=0.5):
        assert not torch.equal(predicted(policy, PUBLISHED), predicted(twin, PUBLISHED))
    with pytest.raises(KeyError), policy.wearing(theirs):
        raise KeyError
    assert torch.equal(predicted(policy, PUBLISHED), before)
    assert same(policy.weights(), own)
    assert same(policy.weights(LEARNER), own)
    assert policy.version == 3


def test_only_the_learner_learns(policy: Policy) -> None:
    policy.load_weights(other(policy.weights()), 1)
    with policy.acting(LEARNER):
        output = policy.predict(latents(), torch.tensor(500), policy.encode_prompt("a red circle"), 3.0)
    output.square().mean().backward()  # outside the block: who acts by now makes no difference
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in policy.parameters())
    mine = set(map(id, policy.parameters()))
    parts = (policy.denoiser, policy.pipeline.vae, policy.pipeline.text_encoder)
    assert [name for part in parts for name, p in part.named_parameters() if p.grad is not None and id(p) not in mine] == []


def test_nothing_is_left_in_training_mode() -> None:
    pipeline = tiny_pipeline()
    pipeline.unet.train().requires_grad_(True)
    policy = Policy(pipeline, LORA)
    assert not any(part.training for part in policy.denoiser.modules())
    assert {name.split(".")[-3] for name, p in policy.denoiser.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}


# ---- a LoRA that was brought ----


def test_the_origin_draws_what_was_brought_and_changes_nobody_else(policy: Policy) -> None:
    theirs = other(policy.weights(), seed=3)
    before = {who: predicted(policy, who) for who in (PUBLISHED, LEARNER, BASE)}  # who drew last comes first
    twin = Policy(tiny_pipeline(), LORA)
    twin.load_weights(theirs, 1)
    for _ in range(2):  # loading may be tried again
        policy.begin_from(theirs)
        assert all(torch.equal(predicted(policy, who), was) for who, was in before.items())
        assert torch.equal(predicted(policy, ORIGIN), predicted(twin, PUBLISHED))
    assert same(policy.weights(ORIGIN), theirs)
    assert policy.version == 0


def test_only_the_learner_learns_also_beside_an_origin(policy: Policy) -> None:
    policy.begin_from(other(policy.weights()))
    with torch.no_grad(), policy.acting(ORIGIN):
        policy.predict(latents(), torch.tensor(500), policy.encode_prompt("a red circle"), 1.0)
    with policy.acting(LEARNER):
        policy.predict(latents(), torch.tensor(500), policy.encode_prompt("a red circle"), 1.0).square().mean().backward()
    mine = set(map(id, policy.parameters()))
    assert all(parameter.grad is not None for parameter in policy.parameters())
    assert [name for name, p in policy.denoiser.named_parameters() if p.grad is not None and id(p) not in mine] == []


def test_the_reference_is_the_base_unless_there_is_an_origin_and_it_is_asked_for(policy: Policy) -> None:
    said = [policy.reference]
    for brought in (False, True):
        if brought:
            policy.begin_from(policy.weights())
        for to_origin in (True, False):
            policy.refer(to_origin)
            said.append(policy.reference)
    assert said == [BASE, BASE, BASE, ORIGIN, BASE]


def test_a_lora_is_taken_by_the_names_of_the_adapter(policy: Policy) -> None:
    weights = other(policy.weights())
    flat = {key.partition(".lora_")[0].replace(".", "_") + ".lora_" + key.partition(".lora_")[2]: value.numpy() for key, value in weights.items()}
    assert same(policy.take(LoraFile("mine.zip", flat, True, "unet", 4, 8.0, "")), weights)
    with pytest.raises(ConfigError, match=r"The LoRA mine\.zip does not fit: this model has no"):
        policy.take(LoraFile("mine.zip", {f"x.{key}": value for key, value in flat.items()}, True, "unet", 4, 8.0, ""))


def tuned(policy: Policy) -> dict[str, torch.Tensor]:
    """Weights of another policy that are in its published adapter."""
    weights = other(policy.weights(), seed=4)
    policy.load_weights(weights, 1)
    return weights


def test_what_diffusers_itself_writes_is_taken(policy: Policy, tmp_path: Path) -> None:
    twin = Policy(tiny_pipeline(), LORA)
    weights = tuned(twin)
    config = twin.denoiser.peft_config[PUBLISHED].to_dict()
    type(twin.pipeline).save_lora_weights(tmp_path, unet_lora_layers=weights, unet_lora_adapter_metadata=config)
    lora = read_lora(tmp_path)
    assert (lora.rank, lora.alpha) == (4, 8)
    assert same(policy.take(lora), weights)


def test_what_peft_itself_writes_is_taken(policy: Policy, tmp_path: Path) -> None:
    bare = get_peft_model(tiny_pipeline().unet, LoraConfig(r=4, lora_alpha=8, target_modules=list(policy.targets)))
    for name, parameter in bare.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.5)
    bare.save_pretrained(tmp_path, save_embedding_layers=False)
    lora = read_lora(tmp_path)
    assert (lora.rank, lora.alpha) == (4, 8)
    assert same(policy.take(lora), {key: value.detach() for key, value in get_peft_model_state_dict(bare.base_model.model).items()})


def test_stability_s_names_in_a_kohya_file_of_sdxl_mean_the_layers_that_diffusers_takes_them_for(tmp_path: Path) -> None:
    policy, stock = Policy(tiny_sdxl(), LORA), tiny_sdxl()
    names = {"down_blocks_0_attentions_0": "input_blocks_1_1", "mid_block_attentions_0": "middle_block_1"}
    names |= {f"up_blocks_1_attentions_{i}": f"output_blocks_{2 + i}_1" for i in range(2)}
    theirs: dict[str, torch.Tensor] = {}
    for key, value in other(policy.weights()).items():
        module, _, half = key.removesuffix(".weight").partition(".lora_")
        flat = module.replace(".", "_")
        block = next(block for block in names if flat.startswith(block))
        flat = f"lora_unet_{flat.replace(block, names[block])}"
        theirs |= {f"{flat}.lora_{'down' if half == 'A' else 'up'}.weight": value, f"{flat}.alpha": torch.tensor(8.0)}
    save_file(theirs, tmp_path / "kohya.safetensors")
    stock.load_lora_weights(tmp_path / "kohya.safetensors")
    read = {key.replace(".default_0.", "."): value for key, value in stock.unet.state_dict().items() if ".lora_" in key}
    assert same(policy.take(read_lora(tmp_path / "kohya.safetensors")), read)


# ---- weights ----


def test_weights_have_bare_peft_keys_in_float32(policy: Policy) -> None:
    weights = policy.weights()
    key = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
    assert weights[key].shape == (4, 32)
    assert weights[key.replace("lora_A", "lora_B")].shape == (32, 4)
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert len(weights) == len(policy.parameters())
    assert {name.rpartition(".lora_")[0].split(".attn")[1][2:] for name in weights} == {"to_q", "to_k", "to_v", "to_out.0"}


def test_targets_and_rank_are_what_was_asked_for() -> None:
    policy = Policy(tiny_pipeline(), Lora(rank=3, alpha=6, targets=" to_q , conv1"))
    assert policy.targets == ["to_q", "conv1"]
    assert {name.rpartition(".lora_")[0].rpartition(".")[2] for name in policy.weights()} == {"to_q", "conv1"}
    assert {value.shape[0] for name, value in policy.weights().items() if "lora_A" in name} == {3}


def test_alpha_scales_what_the_weights_do() -> None:
    # with alpha = rank the LoRA acts with weight 1: doubling alpha is doubling lora_B
    one, two = Policy(tiny_pipeline(), Lora(rank=4, alpha=4)), Policy(tiny_pipeline(), Lora(rank=4, alpha=8))
    weights = other(one.weights())
    two.load_weights(weights, 1)
    one.load_weights({key: value * 2 if "lora_B" in key else value for key, value in weights.items()}, 1)
    torch.testing.assert_close(predicted(one, PUBLISHED), predicted(two, PUBLISHED))


def test_a_half_precision_base_keeps_a_float32_lora() -> None:
    policy = Policy(tiny_pipeline().to(torch.bfloat16), LORA)
    assert policy.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}
    fine = {key: value + 1e-5 for key, value in other(policy.weights()).items()}
    policy.load_weights(fine, 1)
    assert same(policy.weights(), fine)
    assert predicted(policy, PUBLISHED).dtype == torch.bfloat16


def test_weights_come_back_from_disk_to_the_last_bit(policy: Policy, tmp_path: Path) -> None:
    policy.load_weights(other(policy.weights()), 4)
    policy.write(policy.weights(), tmp_path / "adapter.safetensors")
    again = Policy(tiny_pipeline(), LORA, seed=9)
    again.load_weights(again.read(tmp_path / "adapter.safetensors"), 4)
    assert again.version == 4
    assert same(again.weights(), policy.weights())
    assert same(again.weights(LEARNER), policy.weights())
    assert again.fingerprint() == policy.fingerprint()
    assert torch.equal(predicted(again, PUBLISHED), predicted(policy, PUBLISHED))


@pytest.fixture(params=["missing", "unknown", "shape", "empty"])
def wrong(request: pytest.FixtureRequest, policy: Policy) -> dict[str, torch.Tensor]:
    weights = other(policy.weights())
    key = sorted(weights)[3]
    match request.param:
        case "missing":
            del weights[key]
        case "unknown":
            weights["conv_in.lora_A.weight"] = torch.zeros(4, 32)
        case "shape":
            weights[key] = weights[key][:2]
        case "empty":
            weights = {}
    return weights


@pytest.mark.parametrize("how", ["load", "refresh", "train"])
def test_weights_that_do_not_fit_are_refused_and_change_nothing(policy: Policy, wrong: dict[str, torch.Tensor], how: str) -> None:
    before = {who: policy.weights(who) for who in (PUBLISHED, LEARNER)}
    take = {"load": lambda: policy.load_weights(wrong, 5), "refresh": lambda: policy.refresh(wrong, 5), "train": lambda: policy.train_from(wrong)}
    with pytest.raises(ConfigError, match=r"The LoRA does not fit this model and these settings: '.+'"):
        take[how]()
    assert policy.version == 0
    assert all(same(policy.weights(who), weights) for who, weights in before.items())


def test_what_weights_returns_is_a_copy(policy: Policy) -> None:
    before = predicted(policy, PUBLISHED)
    for value in policy.weights().values():
        value.fill_(7)
    assert torch.equal(predicted(policy, PUBLISHED), before)


def test_a_refresh_publishes_and_leaves_the_learner(policy: Policy) -> None:
    learner, new = policy.weights(LEARNER), other(policy.weights())
    policy.refresh(new, 8)
    assert policy.version == 8
    assert same(policy.weights(PUBLISHED), new)
    assert same(policy.weights(LEARNER), learner)


def test_training_on_leaves_what_draws(policy: Policy) -> None:
    published, new = policy.weights(PUBLISHED), other(policy.weights())
    policy.train_from(new)
    assert same(policy.weights(LEARNER), new)
    assert same(policy.weights(PUBLISHED), published)
    policy.discard()
    assert same(policy.weights(LEARNER), published)


def test_next_weights_are_the_learner_s_or_a_part_of_the_way_there(policy: Policy) -> None:
    policy.load_weights(other(policy.weights(), seed=1), 1)
    published = policy.weights()
    learner = other(published, seed=2)
    policy.train_from(learner)
    assert same(policy.next_weights(), learner)  # to the last bit: the ratio is 1 at the first step
    for key, value in policy.next_weights(0.75).items():
        torch.testing.assert_close(value, 0.75 * published[key] + 0.25 * learner[key])


def test_a_reset_is_the_base_again(policy: Policy) -> None:
    first, base = policy.weights(), predicted(policy, BASE)
    policy.load_weights(other(first), 2)
    policy.reset(3)
    assert policy.version == 3
    assert same(policy.weights(), first)
    assert same(policy.weights(LEARNER), first)
    assert torch.equal(predicted(policy, PUBLISHED), base)


def test_first_weights_follow_from_the_seed_and_leave_torch_s_alone() -> None:
    state = torch.get_rng_state()
    one, again, different = (Policy(tiny_pipeline(), LORA, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(one.weights(), again.weights())
    assert not same(one.weights(), different.weights())


def test_the_fingerprint_is_of_the_published_weights(policy: Policy) -> None:
    before = policy.fingerprint()
    policy.train_from(other(policy.weights()))
    assert policy.fingerprint() == before
    weights = policy.weights()
    weights[sorted(weights)[-1]][0, 0] += 1e-6
    policy.refresh(weights, 1)
    assert policy.fingerprint() != before


# ---- memory ----


def learned(policy: Policy) -> list[torch.Tensor]:
    """Gradients of a backward pass for which another adapter has become active."""
    with policy.acting(LEARNER):
        output = policy.predict(latents(), torch.tensor(500), policy.encode_prompt("a red circle"), 3.0)
    with policy.acting(BASE):
        output.square().mean().backward()
    return [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("build", [tiny_pipeline, tiny_sdxl, tiny_sd3, tiny_flux])
def test_recomputed_activations_give_the_same_gradient_to_the_last_bit(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients, computed = [], []
    for choice in ("off", "on"):
        policy = Policy(build(), LORA, size=16, memory=Memory(checkpointing=choice))
        policy.train_from(other(policy.weights()))
        spy = Mock(wraps=torch.utils.checkpoint.checkpoint)
        monkeypatch.setattr("loophil.policy.checkpoint", spy)
        predicted(policy, PUBLISHED)
        assert spy.call_count == 0  # whoever draws keeps nothing anyway
        gradients.append(learned(policy))
        computed.append(spy.call_count > 0)
        assert policy.checkpointing is (choice == "on")
    assert computed == [False, True]
    assert len(gradients[0]) == len(gradients[1]) == len(policy.parameters())
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


@pytest.mark.parametrize(("choice", "did", "ends"), [("auto", True, True), ("off", False, False), ("on", False, True)])
def test_memory_is_spared_once_and_only_if_that_is_left_open(choice: Any, did: bool, ends: bool) -> None:
    policy = Policy(tiny_pipeline(), LORA, memory=Memory(checkpointing=choice))
    assert (policy.spare(), policy.spare()) == (did, False)
    assert policy.checkpointing is ends


def test_a_rehearsal_teaches_nothing(policy: Policy) -> None:
    before, state = policy.weights(LEARNER), torch.get_rng_state()
    policy.rehearse(policy.encode_prompt("a red circle"), 3.0)
    assert same(policy.weights(LEARNER), before)
    assert [parameter.grad for parameter in policy.parameters() if parameter.grad is not None] == []
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("build", [tiny_pipeline, tiny_flux])
def test_a_known_prompt_needs_no_text_encoder_in_the_next_process(build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    for _ in range(2):
        policy = Policy(build(), LORA, size=16, cache=PromptCache(tmp_path, 10**6, ("tiny",)))
        monkeypatch.setattr(policy.pipeline, "encode_prompt", spy := Mock(wraps=policy.pipeline.encode_prompt))
        encoded.append((policy.encode_prompt("a red circle", "blue"), spy.call_count))
    (first, calls), (second, none) = encoded
    assert (calls, none) == (1, 0)
    assert all(torch.equal(first.positive[name], second.positive[name]) for name in first.positive)
    assert all(torch.equal(first.negative[name], second.negative[name]) for name in first.negative)
    assert (second.positive is second.negative) is (build is tiny_flux)


def test_other_text_encoders_under_the_same_name_have_other_embeddings(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path, 10**6, ("tiny",))
    one, two = (Policy(tiny_pipeline(seed=seed), LORA, cache=cache).encode_prompt("a red circle") for seed in (0, 1))
    assert not torch.equal(one.positive["encoder_hidden_states"], two.positive["encoder_hidden_states"])
    assert len(list(tmp_path.iterdir())) == 2


class Moves:
    """Where parts were moved to."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[list[Any], str]] = []

        def visiting(parts: list[Any], device: torch.device) -> Any:
            self.seen.append((list(parts), device.type))
            return contextlib.nullcontext()

        patch.setattr(module, "visiting", visiting)


@pytest.mark.parametrize(("free", "where"), [(10**9, "meta"), (10, "cpu")])
def test_text_encoders_come_in_for_a_new_prompt_unless_they_do_not_fit(
    free: int, where: str, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves = Moves(monkeypatch)
    policy.device, policy.gauge = torch.device("meta"), Mock(spec=Gauge, free=lambda: free)
    for _ in range(2):
        policy.encode_prompt("a red circle")
    assert moves.seen == [([policy.pipeline.text_encoder], where)]


def test_on_a_gpu_the_autoencoder_comes_in_and_decodes_a_large_group_in_parts(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    moves = Moves(monkeypatch)
    whole = policy.decode(latents())
    assert (policy.pipeline.vae.use_slicing, policy.pipeline.vae.use_tiling) == (False, False)
    monkeypatch.setattr(module, "in_parts", lambda n, pixels: (n * pixels == 2 * 16 * 16, False))
    policy.device, policy.gauge = torch.device("cuda"), Mock(spec=Gauge)
    parts = policy.decode(latents())
    assert (policy.pipeline.vae.use_slicing, policy.pipeline.vae.use_tiling) == (True, False)
    assert moves.seen == [([policy.pipeline.vae], "cpu"), ([policy.pipeline.vae], "cuda")]
    assert max(np.abs(np.asarray(one, int) - np.asarray(two, int)).max() for one, two in zip(whole, parts, strict=True)) <= 1


@pytest.mark.parametrize(("offload", "meta"), [("none", {"unet", "vae", "text_encoder"}), ("model", {"unet"}), ("group", {"unet"})])
def test_what_is_offloaded_does_not_lie_on_the_device(offload: Any, meta: set[str], policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, policy.offload, policy.device = policy.pipeline, offload, torch.device("meta")
    monkeypatch.setattr(policy, "_add_adapters", Mock())
    policy._place(seed=0)
    parts = {name: getattr(pipeline, name) for name in ("unet", "vae", "text_encoder")}
    assert {name for name, part in parts.items() if any(p.device.type == "meta" for p in part.parameters())} == meta


def test_embeddings_wait_beside_the_text_encoders_and_go_where_the_denoiser_works(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy.family, "device", torch.device("meta"))
    monkeypatch.setattr(policy.family, "denoise", denoise := Mock(return_value=torch.zeros(4, 4, 8, 8)))
    embeddings = policy.encode_prompt("a red circle")
    policy.predict(latents(), torch.tensor(500), embeddings, 3.0)
    assert embeddings.positive["encoder_hidden_states"].device == CPU
    assert denoise.call_args.args[2]["encoder_hidden_states"].device.type == "meta"


# ---- compiled ----


def test_a_denoiser_that_does_not_fit_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "offload_of", lambda *args: "group")
    with pytest.raises(ConfigError, match=r"too large for this GPU to be compiled: leave --memory\.compile off"):
        Policy(tiny_pipeline(), LORA, memory=Memory(compile=True))


@pytest.mark.slow
def test_a_compiled_denoiser_follows_the_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(module, "COMPILER", {"backend": backend, "dynamic": True})
    torch._dynamo.reset()
    plain, compiled = (Policy(tiny_flux(), LORA, size=16, memory=Memory(compile=choice)) for choice in (False, True))
    assert not compiled.spare()
    for policy in (plain, compiled):
        policy.refresh(other(policy.weights(), seed=1), 1)
        policy.train_from(other(policy.weights(), seed=2))
    for who in (PUBLISHED, BASE, PUBLISHED):
        torch.testing.assert_close(predicted(compiled, who), predicted(plain, who))
    made = len(graphs)
    for who in (BASE, PUBLISHED):
        predicted(compiled, who)
    assert len(graphs) == made > 0  # nothing is compiled twice
    for one, two in zip(learned(compiled), learned(plain), strict=True):
        torch.testing.assert_close(one, two)
    torch._dynamo.reset()
