"""The simulator's truth at fixed seeds: what it says is what happens."""

import numpy as np
import pytest

from common.auc import auc
from streaming.sources.simulator import GROUPS, WINDOW_MS, configure, declaration


@pytest.fixture(scope="module")
def run():
    source = configure(seed=3, minutes=10, history_minutes=5, rate=60)
    shown = [*source.history(), *source.live()]
    labels = np.array([[task in e.outcomes for task in declaration.tasks] for e in shown])
    return source, shown, labels, source.truth(shown)


def test_the_truth_is_calibrated_everywhere(run):
    _, shown, labels, truth = run
    assert len(shown) > 50_000
    for task in range(2):
        for tenth in np.array_split(np.argsort(truth[:, task]), 10):
            p, n = truth[tenth, task], len(tenth)
            # The sum of n independent draws lies within 4 standard deviations of its mean.
            assert abs(labels[tenth, task].sum() - p.sum()) < 4 * np.sqrt((p * (1 - p)).sum() + n * 1e-6)


def test_the_tasks_are_correlated_beyond_the_features(run):
    _, _, labels, truth = run
    residual = (labels - truth) / np.sqrt(truth * (1 - truth))
    assert np.corrcoef(residual.T)[0, 1] > 0.15


def test_taste_drifts(run):
    source, shown, _, truth = run
    first, last = shown[:5000], shown[-5000:]
    at = last[-1].ts_ms
    later = source.truth([e._replace(ts_ms=at) for e in first])[:, 0]
    assert np.corrcoef(later, truth[:5000, 0])[0, 1] < 0.8
    still = configure(seed=3, minutes=1, history_minutes=5, rate=20, drift=0)
    calm = list(still.history())
    assert np.array_equal(still.truth(calm), still.truth([e._replace(ts_ms=at) for e in calm]))


def test_it_can_be_learned(run):
    _, _, labels, truth = run
    assert 0.74 < auc(labels[:, 0], truth[:, 0]) < 0.86
    assert 0.3 < labels[:, 0].mean() < 0.5 and 0.03 < labels[:, 1].mean() < 0.12


def test_events_are_in_order_unique_and_inside_the_window(run):
    source, shown, _, _ = run
    ts = [e.ts_ms for e in shown]
    assert ts == sorted(ts) and len({e.impression_id for e in shown}) == len(shown)
    assert all(0 < t - e.ts_ms < WINDOW_MS for e in shown for t in e.outcomes.values())
    assert max(e.ts_ms for e in source.history()) < min(e.ts_ms for e in source.live())
    assert {e.features["party"] for e in shown} == set(range(1, GROUPS + 1))


def test_new_clips_come_and_ids_use_all_64_bits(run):
    source, _, _, _ = run
    before, after = ({e.item_id for e in part} for part in (source.history(), source.live()))
    assert len(after - before) > 100
    assert min(after) < -(2**62) and max(after) > 2**62


def test_power_law(run):
    _, shown, _, _ = run
    for ids in ([e.user_id for e in shown], [e.item_id for e in shown]):
        count = np.sort(np.unique(ids, return_counts=True)[1])[::-1]
        assert count[: len(count) // 10].sum() > 0.35 * count.sum()


def test_the_same_seed_gives_the_same_and_a_longer_run_begins_with_the_shorter(run):
    short, again, other = (
        list(configure(seed=s, minutes=m, history_minutes=1, rate=10).live()) for s, m in ((3, 1), (3, 2), (4, 1))
    )
    assert again[: len(short)] == short and other != short


def test_a_chosen_share_is_late():
    shown = list(configure(minutes=3, history_minutes=0, late=0.2).live())
    delays = [t - e.ts_ms for e in shown for t in e.outcomes.values()]
    assert abs(np.mean(np.array(delays) > WINDOW_MS) - 0.2) < 0.02
    assert abs(np.median([d for d in delays if d < WINDOW_MS]) - 8000 * np.log(2)) < 400
