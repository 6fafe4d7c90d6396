"""The losses of tasks of both kinds, from logits.

Keeping negatives with probability pi multiplies the odds by 1 / pi. So g = f - log pi is the logit among the kept
examples, and f the logit among all (Wang et al., NeurIPS 2021, arXiv 2110.13048, section 4).

A binary task learns whether an action happened, with label y:

    -y log sigmoid(g) - (1 - y) log(1 - sigmoid(g))

A value task learns the expected value of the action, such as seconds of watching, which is 0 where nothing happened.
With T >= 0 the value, in the unit of the action's `value`:

    -T log sigmoid(g) - n log(1 - sigmoid(g)),     n = pi where y = 1, else 1

This is weighted logistic regression (Covington et al., Deep Neural Networks for YouTube Recommendations, RecSys 2016,
section 4.2), in which each impression is one negative, too. There a positive counts T and is no negative, so that the
odds are E[T] / (1 - p). Here they are E[T]: the expectation of the gradient over the kept examples is
-E[T] (1 - sigmoid(g)) + pi sigmoid(g), which is 0 where exp(g) = E[T] / pi, so where exp(f) = E[T].
The score as served is sigmoid(f) = E[T] / (1 + E[T]): a number in [0, 1) for every kind of task.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def binary(labels: Any, logits: Any) -> Any:
    """The loss float32[n] of a binary task; `logits` are g."""
    return tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)


def value(labels: Any, values: Any, logits: Any, pi: Any) -> Any:
    """The loss float32[n] of a value task; `logits` are g, `values` count where the label is 1."""
    happened = labels > 0
    negatives = tf.where(happened, pi, tf.ones_like(pi))
    return tf.where(happened, values, 0.0) * tf.nn.softplus(-logits) + negatives * tf.nn.softplus(logits)
