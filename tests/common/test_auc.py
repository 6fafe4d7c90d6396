"""AUC against all pairs, counted."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from common.auc import auc


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=40))
def test_equals_all_pairs(rows):
    positive = [s for label, s in rows if label]
    negative = [s for label, s in rows if not label]
    found = auc(np.array([r[0] for r in rows], float), np.array([r[1] for r in rows], float))
    if not positive or not negative:
        assert math.isnan(found)
    else:
        pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
        assert math.isclose(found, sum(pairs) / len(pairs))
