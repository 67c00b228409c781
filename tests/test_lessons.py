"""What the store knows becomes advantages: vectors of DESIGN section 4 worked by hand, sources, weights, ages, baselines."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from loophil.config import Learn
from loophil.lessons import lessons_of
from loophil.store import Taught
from loophil.types import DrawSettings, Group, ImageRef, Lesson

NONE = math.nan
LOOSE = 100.0  # an advantage clip that clips nothing


def array(values: Sequence[float]) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)


def taught(
    ratings: Mapping[str, Sequence[float]],
    scores: Mapping[str, Sequence[float]] | None = None,
    *,
    prompt: str = "a red circle",
    version: int = 0,
    fresh: bool = True,
    k: int = 4,
) -> Taught:
    images = tuple(ImageRef(f"i{n}", n, f"{n}.png") for n in range(k))
    group = Group("g", prompt, DrawSettings(4, 1.0, 1.0), version, images)
    rated, scored = ({name: array(values) for name, values in given.items()} for given in (ratings, scores or {}))
    return Taught(group, rated, scored, (7, 8), fresh)


def lessons(
    *groups: Taught, rewards: Mapping[str, float] | None = None, scales: Mapping[str, float] | None = None, version: int = 0, **learn: Any
) -> list[Lesson]:
    knobs = Learn(**{"advantage_clip": LOOSE, **learn})
    return lessons_of(groups, learn=knobs, rewards=rewards or {}, scales=scales or dict.fromkeys(rewards or {}, 1.0), version=version)


def in_stds(values: Sequence[float], *groups: Sequence[float], nominal: float = 1.0) -> list[float]:
    """`values` over the pooled standard deviation of full groups of 4: d = 3 each, prior 2 * 3 degrees at the nominal scale."""
    squares = sum(float(np.var(g)) * 4 for g in groups)
    std = math.sqrt((squares + 6 * nominal**2) / (3 * len(groups) + 6))
    return [value / std for value in values]


def test_stars_become_leave_one_out_advantages_in_standard_deviations() -> None:
    # SS of [1, 2, 3, 4] is 5: std = sqrt((5 + 6) / 9)
    (lesson,) = lessons(taught({"me": [1, 2, 3, 4]}))
    assert lesson.advantages.tolist() == pytest.approx([a / math.sqrt(11 / 9) for a in (-2, -2 / 3, 2 / 3, 2)])
    assert lesson.shares == {"human:me": 1.0}


def test_unrated_images_say_nothing() -> None:
    # n = 2: d = 1, SS = 2, prior 2 * 1: std = sqrt((2 + 2) / 3)
    (lesson,) = lessons(taught({"me": [4, NONE, 2, NONE]}))
    assert lesson.advantages.tolist() == pytest.approx([2 / math.sqrt(4 / 3), 0, -2 / math.sqrt(4 / 3), 0])


@pytest.mark.parametrize("stars", [[3, 3, 3, 3], [NONE, 5, NONE, NONE], [NONE] * 4])
def test_ties_and_single_ratings_have_no_signal_and_no_share(stars: list[float]) -> None:
    (lesson,) = lessons(taught({"me": stars}))
    assert lesson.advantages.tolist() == [0, 0, 0, 0]
    assert lesson.shares == {"human:me": 0.0}


def test_a_skipped_group_still_teaches_what_the_rewards_say() -> None:
    (lesson,) = lessons(taught({}, {"jpeg": [2, 0, 0, 0]}), rewards={"jpeg": 0.5})
    assert lesson.advantages.tolist() == pytest.approx(in_stds([1, -1 / 3, -1 / 3, -1 / 3], [2, 0, 0, 0]))
    assert lesson.shares == {"jpeg": 1.0}


def test_a_tied_group_still_teaches_what_the_rewards_say() -> None:
    (lesson,) = lessons(taught({"me": [2, 2, 2, 2]}, {"jpeg": [2, 0, 0, 0]}), rewards={"jpeg": 1})
    assert lesson.advantages.tolist() == pytest.approx(in_stds([2, -2 / 3, -2 / 3, -2 / 3], [2, 0, 0, 0]))
    assert lesson.shares == {"human:me": 0.0, "jpeg": 1.0}


def test_a_group_that_nothing_is_known_of_is_a_lesson_without_signal() -> None:
    (lesson,) = lessons(taught({}))
    assert lesson.advantages.tolist() == [0, 0, 0, 0]
    assert lesson.shares == {}


def test_sources_add_up_by_weight_each_in_its_own_units() -> None:
    stars, kilobytes = [1, 2, 3, 4], [40, 10, 10, 10]
    (lesson,) = lessons(taught({"me": stars}, {"jpeg": kilobytes}), rewards={"jpeg": 0.5}, scales={"jpeg": 10.0}, human_weight=2)
    human = in_stds([-4, -4 / 3, 4 / 3, 4], stars)
    jpeg = in_stds([15, -5, -5, -5], kilobytes, nominal=10)
    assert lesson.advantages.tolist() == pytest.approx([a + b for a, b in zip(human, jpeg, strict=True)])
    said = sum(map(abs, human)), sum(map(abs, jpeg))
    assert lesson.shares == pytest.approx({"human:me": said[0] / sum(said), "jpeg": said[1] / sum(said)})


def test_ten_times_the_reward_changes_nothing() -> None:
    one, ten = (
        lessons(taught({}, {"jpeg": [scale * v for v in (4, 1, 2, 1)]}), rewards={"jpeg": 1}, scales={"jpeg": scale})[0] for scale in (1.0, 10.0)
    )
    assert one.advantages == pytest.approx(ten.advantages)


def test_a_source_that_misses_an_image_neither_raises_nor_lowers_it() -> None:
    group = taught({"me": [3, 3, 3, 3]}, {"jpeg": [NONE, 1, 2, 3]})
    (lesson,) = lessons(group, rewards={"jpeg": 1})
    assert lesson.advantages[0] == 0
    assert lesson.advantages.sum() == pytest.approx(0)


def test_a_weight_of_0_leaves_a_source_out() -> None:
    group = taught({"me": [1, 2, 3, 4]}, {"jpeg": [9, 1, 1, 1], "clip_score": [1, 1, 1, 2]})
    (machines,) = lessons(group, rewards={"jpeg": 1, "clip_score": 0}, human_weight=0)
    assert list(machines.shares) == ["jpeg"]
    (people,) = lessons(group, rewards={"jpeg": 0, "clip_score": 0})
    assert list(people.shares) == ["human:me"]


def test_scores_of_a_reward_that_is_not_asked_for_are_left_out() -> None:
    (lesson,) = lessons(taught({"me": [1, 2, 3, 4]}, {"jpeg": [9, 1, 1, 1]}), rewards={"clip_score": 1})
    assert list(lesson.shares) == ["human:me"]


def test_raters_of_a_group_share_the_human_weight() -> None:
    (alone,) = lessons(taught({"anna": [1, 2, 3, 4]}))
    (agreed,) = lessons(taught({"anna": [1, 2, 3, 4], "bert": [1, 2, 3, 4]}))
    (opposed,) = lessons(taught({"anna": [1, 2, 3, 4], "bert": [4, 3, 2, 1]}))
    assert agreed.advantages == pytest.approx(alone.advantages)
    assert opposed.advantages == pytest.approx(np.zeros(4))
    assert opposed.shares == pytest.approx({"human:anna": 0.5, "human:bert": 0.5})


def test_each_rater_is_measured_by_their_own_spread() -> None:
    # bert uses the whole scale, anna half of it: in the next group one star of hers says more
    cautious, bold = [2, 3, 3, 4], [1, 3, 3, 5]
    *_, last = lessons(taught({"anna": cautious, "bert": bold}), taught({"anna": [2, 3, NONE, NONE], "bert": [NONE, NONE, 2, 3]}))
    assert abs(last.advantages[0]) > abs(last.advantages[2]) > 0


def test_spread_is_pooled_over_all_groups() -> None:
    first, second = [1, 2, 3, 4], [5, 1, 1, 1]
    one, two = lessons(taught({"me": first}), taught({"me": second}))
    assert one.advantages.tolist() == pytest.approx(in_stds([-2, -2 / 3, 2 / 3, 2], first, second))
    assert two.advantages.tolist() == pytest.approx(in_stds([4, -4 / 3, -4 / 3, -4 / 3], first, second))


def test_advantages_are_clipped_per_source_before_the_weight() -> None:
    (lesson,) = lessons(taught({"me": [1, 2, 3, 4]}), advantage_clip=1.0, human_weight=3)
    inner = 2 / 3 / math.sqrt(11 / 9)
    assert lesson.advantages.tolist() == pytest.approx([-3, -3 * inner, 3 * inner, 3])


def test_age_is_counted_in_versions_and_the_rest_is_handed_on() -> None:
    old, new = taught({"me": [1, 2, 3, 4]}, version=2, fresh=False), taught({"me": [1, 2, 3, 4]}, version=5)
    first, second = lessons(old, new, version=6)
    assert (first.age, first.fresh, second.age, second.fresh) == (4, False, 1, True)
    assert first.group is old.group
    assert first.acts == (7, 8)


def test_groups_may_differ_in_size() -> None:
    small, large = lessons(taught({"me": [1, 2]}, k=2), taught({"me": [1, 2, 3, 4, 5]}, k=5))
    assert (small.advantages.shape, large.advantages.shape) == ((2,), (5,))


@pytest.mark.parametrize("objective", ["loop", "rloo"])
def test_loop_and_rloo_share_a_baseline(objective: str) -> None:
    (lesson,) = lessons(taught({"me": [2, 0, 0, 0]}), objective=objective)
    assert lesson.advantages.tolist() == pytest.approx(in_stds([2, -2 / 3, -2 / 3, -2 / 3], [2, 0, 0, 0]))


def test_reinforce_subtracts_the_mean_of_the_groups_before() -> None:
    # before the first group the mean is 0, before the second 2.5, before the third (10 + 12) / 8 = 2.75; whatever the prompt
    groups: list[list[float]] = [[1, 2, 3, 4], [3, 3, 3, 3], [NONE, 5, 5, 5]]
    first, second, third = lessons(*(taught({"me": g}, prompt=p) for g, p in zip(groups, "aba", strict=True)), objective="reinforce")
    # d = (3 + 3 + 2) / 3, SS = 5
    std = math.sqrt((5 + 2 * 8 / 3) / (8 + 2 * 8 / 3))
    assert first.advantages.tolist() == pytest.approx([r / std for r in (1, 2, 3, 4)])
    assert second.advantages.tolist() == pytest.approx([0.5 / std] * 4)
    assert third.advantages.tolist() == pytest.approx([0, *[2.25 / std] * 3])


def test_ppo_standardizes_by_the_prompt_s_own_past() -> None:
    # prompt a: first [1, 3, 1, 3], mean 2, std 1; then with [4, 4, 4, 4] mean 3,
    # deviations -2, 0, -2, 0, 1, 1, 1, 1 -> sum of squares 12 -> sqrt(1.5). Prompt b starts anew.
    groups = [("a", [1, 3, 1, 3]), ("b", [2, 4, 2, 4]), ("a", [4, 4, 4, 4])]
    first, other, second = lessons(*(taught({"me": stars}, prompt=prompt) for prompt, stars in groups), objective="ppo")
    assert first.advantages.tolist() == pytest.approx([-1, 1, -1, 1])
    assert other.advantages.tolist() == pytest.approx([-1, 1, -1, 1])
    assert second.advantages.tolist() == pytest.approx([1 / math.sqrt(1.5)] * 4)


def test_ppo_s_ties_have_no_signal() -> None:
    (lesson,) = lessons(taught({"me": [3, 3, 3, 3]}), objective="ppo")
    assert lesson.advantages.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("objective", ["reinforce", "ppo"])
def test_running_baselines_are_kept_apart_by_source(objective: str) -> None:
    alone = lessons(taught({}, {"jpeg": [1, 2, 3, 4]}), taught({}, {"jpeg": [4, 4, 4, 6]}), rewards={"jpeg": 1}, objective=objective)
    beside = lessons(
        taught({"me": [5, 5, 5, 5]}, {"jpeg": [1, 2, 3, 4]}),
        taught({"me": [NONE] * 4}, {"jpeg": [4, 4, 4, 6]}),
        rewards={"jpeg": 1},
        objective=objective,
    )
    assert beside[1].advantages == pytest.approx(alone[1].advantages)


def test_the_baselines_start_anew_with_every_call() -> None:
    groups = [taught({"me": [1, 2, 3, 4]}), taught({"me": [2, 2, 3, 5]})]
    once, again = (lessons(*groups, objective="reinforce") for _ in range(2))
    assert [lesson.advantages.tolist() for lesson in once] == [lesson.advantages.tolist() for lesson in again]
