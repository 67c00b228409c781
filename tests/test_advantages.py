"""Advantages: the vectors of DESIGN section 4, what NaN means, and the baselines of REINFORCE and PPO."""

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loophil.advantages import Moments, leave_one_out, minus_mean, standardize

NAN = float("nan")
PATIENT = settings(deadline=None)  # a busy machine is no fault of the code
REWARDS = st.lists(st.one_of(st.floats(-100, 100), st.just(NAN)), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([1, 2, 3, 4], [-2, -2 / 3, 2 / 3, 2]),  # 1 - (2+3+4)/3 = -2;  2 - (1+3+4)/3 = -2/3; ...
        ([2, 0, 0, 0], [2, -2 / 3, -2 / 3, -2 / 3]),
        ([4, NAN, 2, NAN], [2, 0, -2, 0]),  # two rated: 4 - 2, 2 - 4
        ([1, 2, NAN, 3], [-1.5, 0, 0, 1.5]),  # 1 - (2+3)/2
        ([1, 2], [-1, 1]),
    ],
)
def test_each_image_stands_against_the_mean_of_its_rated_siblings(rewards: list[float], expected: list[float]) -> None:
    assert leave_one_out(rewards) == pytest.approx(expected)


def test_whole_number_ratings_are_not_truncated() -> None:
    advantages = leave_one_out(np.array([1, 2, 3, 4], dtype=np.int64))
    assert advantages.dtype == np.float64
    assert advantages[1] == pytest.approx(-2 / 3)


@pytest.mark.parametrize("rewards", [[3], [NAN, 5, NAN, NAN], [NAN] * 4, [0.1] * 3, [0.1, NAN, 0.1, 0.1], [1e-9] * 7])
def test_one_rating_alone_none_and_ties_are_exactly_zero(rewards: list[float]) -> None:
    assert not leave_one_out(rewards).any()


def test_an_unrated_image_gets_zero_and_is_left_out_of_the_baseline() -> None:
    assert leave_one_out([5, NAN, 1, 1])[1] == 0
    assert leave_one_out([5, NAN, 1, 1])[[0, 2, 3]] == pytest.approx(leave_one_out([5, 1, 1]))


def test_a_reward_that_is_not_finite_counts_as_unrated() -> None:
    assert leave_one_out([4, np.inf, 2, -np.inf]) == pytest.approx([2, 0, -2, 0])


def test_the_input_is_left_as_it_was() -> None:
    rewards = np.array([1.0, NAN, 3.0])
    leave_one_out(rewards)
    assert np.array_equal(rewards, [1.0, NAN, 3.0], equal_nan=True)


@PATIENT
@given(REWARDS)
def test_advantages_sum_to_zero_and_are_the_definition(rewards: list[float]) -> None:
    advantages = leave_one_out(rewards)
    rated = [i for i, r in enumerate(rewards) if np.isfinite(r)]
    assert advantages.sum() == pytest.approx(0, abs=1e-9)
    for i in rated if len(rated) > 1 else []:
        siblings = [rewards[j] for j in rated if j != i]
        assert advantages[i] == pytest.approx(rewards[i] - sum(siblings) / len(siblings), abs=1e-9)


@PATIENT
@given(REWARDS, st.randoms())
def test_the_order_of_the_images_does_not_matter(rewards: list[float], random: Random) -> None:
    order = list(range(len(rewards)))
    random.shuffle(order)
    assert leave_one_out([rewards[i] for i in order]) == pytest.approx(leave_one_out(rewards)[order], abs=1e-9)


@PATIENT
@given(st.lists(REWARDS, max_size=5))
def test_moments_are_those_of_all_rewards_so_far(groups: list[list[float]]) -> None:
    moments = Moments()
    for group in groups:
        moments = moments.add(group)
    rated = [r for group in groups for r in group if np.isfinite(r)]
    assert moments.count == len(rated)
    assert moments.mean == pytest.approx(np.mean(rated) if rated else 0, abs=1e-9)
    assert moments.std == pytest.approx(np.std(rated) if rated else 0, abs=1e-6)


def test_reinforce_takes_the_past_mean_off() -> None:
    past = Moments().add([1, 3])
    assert minus_mean([5, NAN, 1, np.inf], past) == pytest.approx([3, 0, -1, 0])
    assert minus_mean([5, 1], Moments()) == pytest.approx([5, 1])  # without a past: A = r


def test_ppo_standardizes_with_the_statistics_of_the_prompt() -> None:
    moments = Moments().add([1, 3]).add([2, 2])  # mean 2, std sqrt(2/4)
    assert standardize([2, 3, NAN, np.inf], moments) == pytest.approx([0, np.sqrt(2), 0, 0])


def test_ppo_learns_nothing_where_the_prompt_has_no_spread() -> None:
    assert not standardize([0.1, 0.1, 0.1], Moments().add([0.1, 0.1, 0.1])).any()
    assert not standardize([3], Moments()).any()
