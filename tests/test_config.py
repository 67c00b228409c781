"""Settings: flags, variables and defaults; every fault in one message."""

import pytest

from loophil.config import BOLDNESS, LIVE, OWN, Settings, is_public, knobs
from loophil.errors import ConfigError


def test_rewards_parse_alike_from_flag_and_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    by_flag = Settings.read(["--rewards", "clip_score=1,jpeg=0.2"]).rewards
    monkeypatch.setenv("LOOPHIL_REWARDS", "clip_score=1,jpeg=0.2")
    assert Settings.read([]).rewards == by_flag == {"clip_score": 1.0, "jpeg": 0.2}


def test_a_reward_of_ones_own_keeps_its_colon() -> None:
    assert Settings.read(["--rewards", "mine.py:darkness=2"]).rewards == {"mine.py:darkness": 2.0}


@pytest.mark.parametrize("flags", [["--lora", "a b.zip"], ["--lora=a b.zip"], ["--lora.file", "a b.zip"]])
def test_a_lora_is_brought_by_its_short_flag_its_long_one_or_its_variable(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    by_flag = Settings.read([*flags, "--lora.targets", "to_q"]).lora
    assert (by_flag.file, by_flag.rank, by_flag.alpha, by_flag.targets) == ("a b.zip", None, None, "to_q")
    monkeypatch.setenv("LOOPHIL_LORA__FILE", "a b.zip")
    assert Settings.read(["--lora.targets", "to_q"]).lora == by_flag


def test_a_lora_flag_without_a_file_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lora\.file: expected one argument"):
        Settings.read(["--lora"])


def test_another_run_does_not_begin_from_the_lora_of_the_start() -> None:
    other = Settings.read(["--lora", "a.zip", "--lora.rank", "4"]).of_run("two", {"lora": {"rank": 8, "file": "b.zip"}})
    assert (other.lora.file, other.lora.rank) == ("", 8)


def test_a_flag_wins_over_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPHIL_LEARN__BETA", "0.25")
    assert Settings.read([]).learn.beta == 0.25
    assert Settings.read(["--learn.beta", "0.75"]).learn.beta == 0.75


def test_one_knob_of_a_section_leaves_the_others_at_their_defaults() -> None:
    settings = Settings.read(["--draw.guidance-scale", "2"])
    assert settings.draw.guidance_scale == 2.0
    assert settings.draw.num_images_per_prompt == 4


def test_an_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPHIL_REWARD", "jpeg=1")
    with pytest.raises(ConfigError, match="LOOPHIL_REWARD is not a setting"):
        Settings.read([])


def test_all_faults_are_told_together() -> None:
    with pytest.raises(ConfigError) as told:
        Settings.read(["--learn.beta", "99", "--port", "-1", "--rewards", "jpeg"])
    assert "learn.beta" in str(told.value)
    assert "port" in str(told.value)
    assert "'jpeg' is not name=weight" in str(told.value)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--rewards", "jpeg=-1"], "reward weights must be 0 or more"),
        (["--learn.trajectory-passes", "0", "--learn.forward-passes", "0"], "nothing would ever be learned"),
        (["--draw.eta", "0"], "no randomness to learn from"),
        (["--memory.compile", "--memory.offload", "group"], r"memory\.compile goes neither with memory\.offload group nor"),
        (["--memory.compile", "--memory.checkpointing", "on"], r"nor with memory\.checkpointing on"),
        (["--rewards", "jpeg=nan"], "finite"),
        (["--run", "../x"], "run"),
        (["--device", "gpu"], "device"),
    ],
)
def test_settings_that_cannot_work_are_refused(flags: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Settings.read(flags)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings.read([]).port = 1  # type: ignore[misc]


def test_every_knob_has_a_sentence() -> None:
    told = knobs()
    assert len(told) <= 60
    assert all(sentence.endswith(".") and len(sentence) > 10 for _, _, sentence in told)


def test_public_is_another_host_or_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_public(Settings.read([]))
    assert is_public(Settings.read(["--host", "0.0.0.0"]))
    monkeypatch.setenv("SPACE_ID", "someone/loophil")
    assert is_public(Settings.read([]))


@pytest.mark.parametrize("name", ["learn.betas", "nothing", "draw.beta.x", "learning.beta"])
def test_changing_what_is_no_knob_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        Settings().changed({name: 1})


def test_knobs_are_changed_together_or_not_at_all() -> None:
    before = Settings(rewards={"jpeg": 1.0})
    after = before.changed({"learn.beta": 0.75, "rewards": {"jpeg": 0.25}, "seed": 7})
    assert (after.learn.beta, after.rewards, after.seed) == (0.75, {"jpeg": 0.25}, 7)
    assert after.value("learn.beta") == 0.75
    assert (before.learn.beta, before.seed) == (1.0, 0)
    with pytest.raises(ConfigError, match=r"(?s)learn.clip_nats.*learn.beta"):
        before.changed({"learn.beta": -1, "learn.clip_nats": "x"})


def test_what_was_set_on_the_page_comes_back_unless_a_flag_says_otherwise() -> None:
    kept = {"learn.beta": 0.75, "draw.guidance_scale": 5.0, "learn.gone": 3, "gone.beta": 1, "seed.beta": 1, "seed": "text"}
    back = Settings.read(["--draw.guidance-scale", "2"]).resumed(kept)
    assert (back.learn.beta, back.draw.guidance_scale, back.seed) == (0.75, 2.0, 0)


def test_what_a_model_has_its_own_value_of_is_left_to_it_unless_a_run_was_opened_otherwise() -> None:
    kept = {"draw": {"num_inference_steps": 12, "guidance_scale": 7.0, "eta": 1.0, "size": 64}}
    other = Settings().of_run("two", kept)
    assert [name for name in OWN if other.said(name)] == ["draw.guidance_scale"]
    assert (other.said("draw.size"), other.draw.guidance_scale) == (True, 7.0)
    assert Settings.read(["--draw.eta", "1"]).said("draw.eta")


def test_normal_boldness_is_the_default_and_every_live_knob_exists() -> None:
    assert all(Settings().value(name) == value for name, value in BOLDNESS["normal"].items())
    assert all(set(preset) <= LIVE for preset in BOLDNESS.values())
    assert all(Settings().value(name) is not None for name in LIVE)


def test_knobs_of_a_run_that_go_together_only_are_taken_together() -> None:
    """eta 0 needs trajectory_passes 0: one by one, the first of them would be refused."""
    kept = {"draw": {"eta": 0.0}, "learn": {"trajectory_passes": 0, "gone": 1}, "host": "0.0.0.0", "rewards": {"jpeg": 0.5}}
    back = Settings().of_run("two", {**kept, "learn": {"trajectory_passes": 0}})
    assert (back.run, back.draw.eta, back.learn.trajectory_passes, back.host, back.rewards) == ("two", 0.0, 0, "127.0.0.1", {"jpeg": 0.5})
    assert Settings().of_run("two", kept).rewards == {"jpeg": 0.5}
