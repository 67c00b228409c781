"""Mixing: many sources of different scales and gaps, one advantage per image. Expected values worked by hand, promises by hypothesis."""

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from loophil.advantages import Moments, leave_one_out, minus_mean
from loophil.errors import ConfigError
from loophil.mixing import mix, pooled_std
from loophil.types import SourceValues

NAN = float("nan")
PATIENT = settings(deadline=None)  # a busy machine is no fault of the code
FAR = float("inf")
PAST = np.random.default_rng(0).normal(size=(2000, 4))
AS_BEFORE, TENFOLD = pooled_std(PAST, 1.0), pooled_std(10 * PAST, 1.0)
VALUE = st.one_of(st.integers(-50, 50).map(lambda n: n / 8), st.just(NAN))  # eighths: exact, so that a tie is one


def source(name: str, values: list[float], weight: float = 1.0, scale: float = 1.0) -> SourceValues:
    return SourceValues(name, np.array(values, dtype=np.float64), weight, scale)


def advantages_of(*sources: SourceValues, clip: float = FAR) -> NDArray[np.float64]:
    return mix(sources, {}, clip)[0]


@st.composite
def groups(draw: st.DrawFn, most: int = 4) -> list[SourceValues]:
    """Sources of one group of k images: up to `most` of them, raters and reward models."""
    k = draw(st.integers(2, 5))
    names = draw(st.lists(st.sampled_from(["human:a", "human:b", "human:c", "clip_score", "jpeg"]), min_size=1, max_size=most, unique=True))
    return [source(n, draw(st.lists(VALUE, min_size=k, max_size=k)), draw(st.floats(0, 4)), draw(st.floats(0.1, 10))) for n in names]


def test_one_source_is_its_leave_one_out_advantage_in_its_own_standard_deviations() -> None:
    mixed, shares = mix([source("human:a", [1, 2, 3, 4])], {"human:a": 2.0}, FAR)
    assert mixed == pytest.approx([-1, -1 / 3, 1 / 3, 1])
    assert shares == {"human:a": 1.0}


def test_sources_are_weighted_sums_and_shares_their_parts() -> None:
    # human: [2, -2] * 1;  jpeg: leave-one-out [-10, 10], /5 = [-2, 2], * 0.25 = [-0.5, 0.5];  parts 4 and 1
    mixed, shares = mix([source("human:a", [4, 2]), source("jpeg", [100, 110], 0.25)], {"human:a": 1, "jpeg": 5}, FAR)
    assert mixed == pytest.approx([1.5, -1.5])
    assert shares == pytest.approx({"human:a": 0.8, "jpeg": 0.2})


def test_a_source_without_a_past_stands_at_its_nominal_scale() -> None:
    assert advantages_of(source("jpeg", [100, 110], scale=5)) == pytest.approx([-2, 2])


def test_raters_share_the_human_weight_equally() -> None:
    one = source("human:a", [1, 2, 3, 4])
    assert advantages_of(one, source("human:b", [1, 2, 3, 4])) == pytest.approx(advantages_of(one))
    assert advantages_of(one, source("human:b", [4, 3, 2, 1])) == pytest.approx([0, 0, 0, 0])


def test_a_rater_who_compares_nothing_takes_no_weight_from_the_others_but_a_tie_does() -> None:
    one = source("human:a", [1, 2, 3, 4])
    assert advantages_of(one, source("human:b", [NAN, 5, NAN, NAN])) == pytest.approx(advantages_of(one))
    assert advantages_of(one, source("human:b", [3, 3, 3, 3])) == pytest.approx(advantages_of(one) / 2)


def test_reward_models_keep_their_weight_whatever_the_number_of_raters() -> None:
    jpeg = source("jpeg", [1, 2])
    tied = [source(f"human:{name}", [3, 3]) for name in "abc"]
    assert advantages_of(jpeg, *tied) == pytest.approx(advantages_of(jpeg))


def test_advantages_are_clipped_in_standard_deviations_of_their_source() -> None:
    # leave-one-out [4, -4/3, -4/3, -4/3], std 1, clip 3, then the weight 0.5
    assert advantages_of(source("jpeg", [5, 1, 1, 1], 0.5), clip=3) == pytest.approx([1.5, -2 / 3, -2 / 3, -2 / 3])


def test_another_baseline_can_be_asked_for() -> None:
    past = Moments().add([2, 2])
    mixed, _ = mix([source("jpeg", [3, 1, NAN])], {}, FAR, advantage=lambda s: minus_mean(s.values, past))
    assert mixed == pytest.approx([1, -1, 0])


def test_nothing_said_is_no_signal_and_no_share() -> None:
    mixed, shares = mix([source("human:a", [3, 3, 3]), source("jpeg", [NAN, 7, NAN])], {}, 3)
    assert not mixed.any()
    assert shares == {"human:a": 0.0, "jpeg": 0.0}


@PATIENT
@given(groups())
def test_mixed_advantages_sum_to_zero(sources: list[SourceValues]) -> None:
    assert advantages_of(*sources).sum() == pytest.approx(0, abs=1e-6)


@PATIENT
@given(groups())
def test_shares_are_parts_of_one(sources: list[SourceValues]) -> None:
    mixed, shares = mix(sources, {}, 3)
    assert all(0 <= share <= 1 for share in shares.values())
    assert sum(shares.values()) == pytest.approx(1) or (not any(shares.values()) and not mixed.any())


@PATIENT
@given(groups())
def test_ties_are_zero_in_every_mix(sources: list[SourceValues]) -> None:
    tied = [source(s.source, [0.1 if np.isfinite(v) else NAN for v in s.values], s.weight) for s in sources]
    assert not advantages_of(*tied).any()


@PATIENT
@given(groups(), st.randoms())
def test_the_order_of_the_images_does_not_matter(sources: list[SourceValues], random: Random) -> None:
    order = list(range(len(sources[0].values)))
    random.shuffle(order)
    shuffled = [SourceValues(s.source, s.values[order], s.weight, s.scale) for s in sources]
    assert mix(shuffled, {}, 3)[0] == pytest.approx(mix(sources, {}, 3)[0][order], abs=1e-9)


@PATIENT
@given(groups(), st.floats(1e-3, 1e3))
def test_a_reward_in_other_units_changes_nothing_when_its_nominal_scale_goes_along(sources: list[SourceValues], unit: float) -> None:
    past = np.array([[1, 2, 4], [0, NAN, 3]])
    before = {s.source: pooled_std(past, s.scale) for s in sources}
    after = {s.source: pooled_std(past * unit, s.scale * unit) for s in sources}
    rescaled = [SourceValues(s.source, s.values * unit, s.weight, s.scale * unit) for s in sources]
    assert mix(rescaled, after, 3)[0] == pytest.approx(mix(sources, before, 3)[0], abs=1e-6)


def test_ten_times_a_reward_changes_nothing_after_enough_groups() -> None:
    past = np.random.default_rng(0).normal(size=(400, 4))
    plain = mix([source("jpeg", [1, 2, 3, 4])], {"jpeg": pooled_std(past, 1.0)}, FAR)[0]
    tenfold = mix([source("jpeg", [10, 20, 30, 40])], {"jpeg": pooled_std(10 * past, 1.0)}, FAR)[0]
    assert tenfold == pytest.approx(plain, rel=0.01)  # the prior is 2 groups of 402


@PATIENT
@given(groups(), st.integers(0, 3))
def test_ten_times_a_source_changes_nothing_whatever_is_mixed_with_it(sources: list[SourceValues], which: int) -> None:
    """The running spread follows, though the source still states its old scale: of 2000 groups the prior's 2 are a thousandth."""
    which %= len(sources)
    stds = {s.source: AS_BEFORE for s in sources}
    tenfold = [SourceValues(s.source, s.values * 10, s.weight, s.scale) if n == which else s for n, s in enumerate(sources)]
    after = stds | {sources[which].source: TENFOLD}
    (mixed, shares), (before, shares_before) = mix(tenfold, after, 3), mix(sources, stds, 3)
    assert mixed == pytest.approx(before, rel=1e-3, abs=0.05)
    assert shares == pytest.approx(shares_before, abs=1e-3)


@PATIENT
@given(groups(most=3), st.lists(VALUE, min_size=5, max_size=5))
def test_a_source_missing_for_an_image_neither_raises_nor_lowers_it(sources: list[SourceValues], values: list[float]) -> None:
    k = len(sources[0].values)
    partial = source("vqa", values[:k])
    missing, without, together = ~np.isfinite(partial.values), advantages_of(*sources), advantages_of(*sources, partial)
    assert together[missing] == pytest.approx(without[missing])
    assert (together - without)[~missing].sum() == pytest.approx(0, abs=1e-6)  # its siblings stand around it, not above or below


def test_pooled_std_is_the_nominal_scale_before_the_first_comparison() -> None:
    assert pooled_std([], 1.5) == 1.5
    assert pooled_std([[3, NAN], [NAN, NAN]], 1.5) == 1.5


def test_pooled_std_pools_within_groups_with_a_prior_worth_two() -> None:
    # SS = 2 around 2 and 2 around 102 (the groups' levels do not count), 2 degrees of freedom each; prior 2 * 2 at 2^2: (2 + 2 + 16) / (4 + 4)
    assert pooled_std([[1, 2, 3], [101, 102, 103]], 2.0) == pytest.approx(np.sqrt(20 / 8))


def test_pooled_std_weighs_a_group_by_its_rated_images() -> None:
    # SS = 2 with 1 degree of freedom, 8 with 2; prior 2 * 1.5 at 1: (2 + 8 + 3) / (3 + 3)
    assert pooled_std([[1, NAN, 3], [0, 2, 4]], 1.0) == pytest.approx(np.sqrt(13 / 6))


def test_whole_numbers_are_read_as_they_are() -> None:
    assert pooled_std([np.array([1, 2, 4])], 1.0) == pooled_std([[1.0, 2.0, 4.0]], 1.0)


def test_a_run_of_ties_leaves_a_yardstick() -> None:
    std = pooled_std([[3, 3, 3, 3]] * 1000, 1.0)
    assert 0 < std == pytest.approx(np.sqrt(2 / 1002))


@pytest.mark.parametrize("nominal", [0.0, -1.0, NAN, FAR])
def test_a_scale_that_is_no_positive_number_is_refused(nominal: float) -> None:
    with pytest.raises(ConfigError, match=f"above 0, not {nominal}"):
        pooled_std([[1, 2]], nominal)


def test_mixing_reads_whole_number_ratings() -> None:
    stars = SourceValues("human:a", np.array([1, 2, 3, 4]), 1.0, 1.0)
    assert mix([stars], {}, FAR)[0] == pytest.approx(leave_one_out([1, 2, 3, 4]))
