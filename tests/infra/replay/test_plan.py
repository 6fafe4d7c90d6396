"""The plan of a demo's replay: a delta as often as two cores hold, and words that say how old the models are."""

from __future__ import annotations

import pytest

from infra.replay.plan import DAY_MS, Plan, duration
from streaming.declaration import Declaration, Feature
from streaming.source import Exposure

HOUR_MS = DAY_MS // 24


class Shop:
    """Three days of history and seven live ones, an impression an hour."""

    declaration = Declaration("shop", (Feature("shopper", "id"),), ("buy",), "buy", window_ms=HOUR_MS)

    def history(self):
        return (Exposure(f"h{k}", 1, 2, DAY_MS * 10 + k * HOUR_MS, {}, {}) for k in range(72))

    def live(self):
        return (Exposure(f"l{k}", 1, 2, DAY_MS * 13 + k * HOUR_MS, {}, {}) for k in range(168))


@pytest.mark.parametrize(("wall_s", "sync_every_s"), [(420, 1.0), (3600, 3.6), (7 * 86_400, 60.0)])
def test_a_delta_is_ten_minutes_of_event_time_within_bounds(wall_s: float, sync_every_s: float) -> None:
    plan = Plan.of(Shop(), wall_s)
    assert plan.exposures == 168 and plan.speed == pytest.approx(7 * 86_400 / wall_s)
    assert plan.sync_every_s == sync_every_s


def test_the_words_say_what_is_compared() -> None:
    plan = Plan.of(Shop(), 420)
    assert plan.text(1.0) == (
        "168 impressions of 7 days in 7 minutes, at 1,440 times their pace: a delta each 1 s is one each 24 minutes"
        " of event time. The frozen copy is a retrain's: at the end it is 7 days old."
    )
    assert plan.figures(1.0) == {"speed": 1440.0, "event_s_per_sync": 1440.0, "frozen_age_days": 7.0}
    assert [duration(s) for s in (90, 7200, 119.6 * 60, 172_800)] == ["90 s", "2 hours", "120 minutes", "2 days"]


def test_the_last_day_is_what_came_within_a_day_of_the_last() -> None:
    last_day = Plan.of(Shop(), 420).last_day
    assert [last_day[0].impression_id, last_day[-1].impression_id, len(last_day)] == ["h47", "h71", 25]


def test_a_source_without_live_exposures_is_refused() -> None:
    class Empty(Shop):
        def live(self):
            return iter(())

    with pytest.raises(ValueError, match="has no live exposure"):
        Plan.of(Empty(), 420)
