"""What is known of how long things take, and whose turn follows from it."""

from loophil.pace import REMEMBERED, Pace


def test_the_pace_of_rating_is_the_median_of_the_last_few() -> None:
    pace = Pace()
    assert pace.rating == 2.5  # nobody has rated twice
    pace.rated(100.0)
    assert pace.rating == 2.5
    for gap in (50.0, *[1.0] * (REMEMBERED // 2), 60.0):
        pace.rated(pace._rated_at[-1] + gap)
    assert pace.rating == 1.0
    for _ in range(REMEMBERED):
        pace.rated(pace._rated_at[-1] + 4.0)
    assert pace.rating == 4.0


def test_after_a_drawing_the_learner_has_as_much_time_as_a_group_takes_it_and_no_more() -> None:
    pace = Pace()
    pace.drew(1.0)
    assert pace.owed == pace.update == 3.0
    pace.drew(1.0)
    assert pace.owed == 3.0
    pace.learned(1.0)
    assert pace.owed == 2.0
    pace.learned(100.0)
    assert pace.owed == -pace.draw  # the drawing is not owed more than one either


def test_a_drawing_that_takes_longer_than_an_update_gives_the_learner_as_long() -> None:
    pace = Pace()
    pace.drew(20.0)
    assert pace.owed == 20.0


def test_expectations_follow_what_is_measured() -> None:
    pace = Pace()
    for _ in range(30):
        pace.drew(7.0)
        pace.updated(9.0)
    assert (round(pace.draw, 2), round(pace.update, 2)) == (7.0, 9.0)
