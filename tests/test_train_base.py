"""The training script: what it must not get wrong where nobody looks. The figures of what it made are in the README."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer

from data import examples, train_base
from data.examples import held_out, one_changed, training_caption
from data.networks import cell_weights, new_tokenizer
from data.scenes import caption, sample_scene
from data.stages import Muon, Stage

KEPT = Path(__file__).parent.parent / "data" / "base" / "tokenizer"


def kept_tokenizer() -> CLIPTokenizer:
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(KEPT)
    return tokenizer


def test_no_training_caption_states_what_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    stated = []

    def listening(scene: object) -> bool:
        stated.append(scene)
        return held_out(scene)  # type: ignore[arg-type]

    monkeypatch.setattr(examples, "held_out", listening)
    for index in range(200):
        training_caption(index, np.random.default_rng(index))
        assert not held_out(stated[-1])  # type: ignore[arg-type]
    assert len(stated) > 200  # some were held out and drawn again


def test_about_one_statement_in_twelve_is_held_out() -> None:
    rng = np.random.default_rng(0)
    share = np.mean([held_out(caption(sample_scene(rng), rng)[1]) for _ in range(2000)])
    assert 0.06 < share < 0.11  # 1/12 = 0.083, standard error 0.006


def test_one_changed_differs_in_exactly_one_attribute() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        _, stated = caption(sample_scene(rng), rng)
        other = one_changed(stated, rng)
        differences = [stated.relation != other.relation, stated.background != other.background]
        for a, b in zip(stated.things, other.things, strict=True):
            differences += [getattr(a, name) != getattr(b, name) for name in ("shape", "color", "texture", "size", "count")]
        assert sum(differences) == 1


@pytest.mark.parametrize("make", [pytest.param(new_tokenizer, id="new", marks=pytest.mark.slow), pytest.param(kept_tokenizer, id="kept")])
def test_the_tokenizer_takes_any_text_and_knows_this_worlds_words(make: Callable[[], CLIPTokenizer]) -> None:
    tokenizer = make()
    words = ["a", "striped", "red", "circle", "to", "the", "left", "of", "a", "small", "blue", "star"]
    assert len(tokenizer(" ".join(words)).input_ids) == len(words) + 2  # one token a word, begin and end
    assert tokenizer.unk_token_id not in tokenizer("Zürich 日本 №1 🙂").input_ids[1:-1]


def test_cells_of_things_count_more_once_the_noise_lets_them_be_seen() -> None:
    """One cell of 64 differs from an empty picture: 1 + 2 * min(3, mean squared difference) there at no noise, 1 elsewhere and in pure noise."""
    x0 = torch.full((1, 12, 8, 8), 0.5)
    x0[0, :, 2, 3] = 1.5
    weight = cell_weights(x0, torch.ones(1, 1, 1, 1))
    assert weight.shape == (1, 1, 8, 8)
    assert weight[0, 0, 2, 3] == 3
    assert weight.sum() == 63 + 3
    assert cell_weights(3 * x0, torch.ones(1, 1, 1, 1))[0, 0, 2, 3] == 7
    assert cell_weights(x0, torch.zeros(1, 1, 1, 1)).unique().tolist() == [1]


def test_pictures_of_thin_shapes_come_twice_as_often() -> None:
    chances = examples.difficulty(300)
    thin = [any(thing.shape in ("star", "cross", "moon") for thing in examples.scene_of(i)[0].things) for i in range(300)]
    assert 50 < sum(thin) < 250
    assert chances.tolist() == [2.0 if t else 1.0 for t in thin]


def test_muon_moves_every_direction_alike() -> None:
    weight = torch.nn.Parameter(torch.zeros(8, 32))
    torch.manual_seed(0)
    weight.grad = torch.randn(8, 32) * torch.logspace(0, -2, 8)[:, None]  # two orders of magnitude between the rows
    Muon([weight], lr=1.0).step()
    singular = torch.linalg.svdvals(weight.detach())
    assert singular.min() > 0.5
    assert singular.max() < 1.3


@pytest.mark.slow
def test_another_seed_makes_another_model_in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (examples, train_base):
        monkeypatch.setattr(module, "WORK", tmp_path)
        monkeypatch.setattr(module, "PICTURES", 128)
    monkeypatch.setitem(train_base.BATCH, "unet", 8)
    cpu = torch.device("cpu")
    train_base.train_unet(0.02, cpu, seed=1)
    train_base.write(cpu, seed=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.json", "latents.safetensors", "pictures.npy", "seed-1"]
    made = StableDiffusionPipeline.from_pretrained(tmp_path / "seed-1")
    ours = StableDiffusionPipeline.from_pretrained(train_base.BASE)
    assert torch.equal(made.vae.decoder.conv_in.weight, ours.vae.decoder.conv_in.weight)
    assert not torch.equal(made.unet.conv_in.weight, ours.unet.conv_in.weight)


def test_a_stage_resumes_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(16, 6), torch.randn(16, 3)

    def fresh() -> Stage:
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        return Stage.open(tmp_path / "kept.safetensors", model, torch.device("cpu"), rates=(0.02, 1e-3), decay=0.9)

    def train(stage: Stage, steps: int) -> Stage:
        for _ in range(steps):
            stage.advance((stage.model(x) - y).square().mean(), 1.0)
        return stage

    through = train(fresh(), 6)
    train(fresh(), 3).save()
    resumed = train(fresh(), 3)  # opens what was saved
    assert resumed.step == through.step == 6
    for key, value in through.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[key], value)
        torch.testing.assert_close(resumed.average[key], through.average[key])
