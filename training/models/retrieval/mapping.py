"""The mapping step: chooses J paths for each item by coordinate descent over the items.

It raises

    sum_v N_v log sum_j s[v, c_vj]  -  alpha sum_c f(|c|)        f(n) = n^4 / 4

(Gao et al., Deep Retrieval, arXiv 2007.07203, sections 3.3 and 3.4) for the streaming scores s, the positives N_v, and
|c| items at path c. An item takes its paths one after the other, each the one of largest

    N_v [log(A + s[v, c]) - log A]  -  alpha [f(|c| + 1) - f(|c|)]         A: the sum of those it has taken

A path never holds more than `cap` items. An item that has J paths moves only if the objective rises by more than
`margin`. So its turn never lowers the objective, and items do not move to and fro between paths of equal worth.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.models.retrieval.scores import Paths, PathScores, Scores

_FLOOR = 1e-12
"""The least score of a path: an item without positives has a logarithm, too."""


class Penalty(NamedTuple):
    """The price of paths with many items: `alpha` f(|c|), and the most items of a path."""

    alpha: float
    cap: int

    @classmethod
    def of_size(cls, items: float, positives: float, cap: int) -> Penalty:
        """Derives alpha from the wanted items a path, for items with so many positives in the mean.

        A further path gains about a tenth of N_v. At the wanted size n that is the price alpha n^3 of one more item.
        """
        return cls(0.1 * max(positives, 1.0) / items**3, cap)

    def marginal(self, sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns alpha [f(|c| + 1) - f(|c|)] for the sizes |c|; infinite at the cap."""
        n = sizes.astype(np.float64)
        price = self.alpha * ((n + 1) ** 4 - n**4) / 4
        return np.where(sizes >= self.cap, np.inf, price)


class Step(NamedTuple):
    """The paths after a mapping step int64[v, J], -1 for none, and how many items have changed theirs."""

    paths: Paths
    moved: int


def mapping_step(
    lists: PathScores, present: Paths, sizes: NDArray[np.int64], penalty: Penalty, *, sweeps: int = 3,
    margin: float = 0.0, most: int | None = None,
) -> Step:  # fmt: skip
    """Chooses the paths of the items of `lists`; `present` has their present ones int64[v, J].

    `sizes` int64[paths] counts all items of each path, and is changed in place. Present paths are always among an
    item's candidates. Not more than `most` items change their paths in the step: those that come first.
    """
    paths, begun = present.copy(), present.copy()
    positives = lists.positives.astype(np.float64)
    candidates = [_candidates(lists.paths[v], lists.scores[v], present[v]) for v in range(len(present))]
    changed = np.zeros(len(present), bool)
    for _ in range(sweeps):
        before = paths.copy()
        for v, (choice, score) in enumerate(candidates):
            if len(choice) == 0 or (most is not None and not changed[v] and changed.sum() >= most):
                continue
            paths[v] = _choose(choice, score, paths[v], positives[v], sizes, penalty, margin)
            changed[v] = not np.array_equal(np.sort(paths[v]), np.sort(begun[v]))
        if np.array_equal(before, paths):
            break
    return Step(paths, int(changed.sum()))


def objective(lists: PathScores, paths: Paths, sizes: NDArray[np.int64], penalty: Penalty) -> float:
    """Returns the penalised objective of the items' paths int64[v, J]."""
    total = 0.0
    for v, chosen in enumerate(paths):
        score = [max(float(lists.scores[v][lists.paths[v] == c].sum()), _FLOOR) for c in chosen if c >= 0]
        total += float(lists.positives[v]) * np.log(sum(score)) if score else 0.0
    return total - penalty.alpha * float((sizes.astype(np.float64) ** 4).sum()) / 4


def _candidates(paths: Paths, scores: Scores, present: Paths) -> tuple[Paths, NDArray[np.float64]]:
    """Returns an item's candidate paths and their scores: those of its list, and its present ones."""
    listed = paths >= 0
    extra = [c for c in present if c >= 0 and c not in paths]
    choice = np.concatenate([paths[listed], np.array(extra, np.int64)])
    return choice, np.maximum(np.concatenate([scores[listed], np.zeros(len(extra))]), _FLOOR)


def _choose(
    choice: Paths, score: NDArray[np.float64], present: Paths, positives: float, sizes: NDArray[np.int64],
    penalty: Penalty, margin: float,
) -> Paths:  # fmt: skip
    """Returns the item's paths after its turn, and keeps `sizes` true."""
    has = present[present >= 0]
    sizes[has] -= 1
    price = penalty.marginal(sizes[choice])
    taken: list[int] = []
    total = 0.0
    for _ in range(min(len(present), len(choice))):
        gain = positives * (np.log(total + score) - (np.log(total) if taken else 0.0)) - price
        gain[taken] = -np.inf
        best = int(gain.argmax())
        if not np.isfinite(gain[best]):
            break
        taken.append(best)
        total += float(score[best])
    chosen = np.full(len(present), -1, np.int64)
    chosen[: len(taken)] = choice[taken]
    if len(has) and len(has) >= len(taken):
        kept = np.flatnonzero(np.isin(choice, has))
        rise = positives * (np.log(total) - np.log(score[kept].sum())) - price[taken].sum() + price[kept].sum()
        if not taken or rise <= margin:
            chosen = present
    sizes[chosen[chosen >= 0]] += 1
    return chosen
