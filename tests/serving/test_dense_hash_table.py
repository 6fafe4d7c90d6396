"""Why the served graph never calls DenseHashTable.remove, and why what it does instead is right."""

import numpy as np
import tensorflow as tf

from serving.graph import DELETED_KEY, EMPTY_KEY, GONE


def table() -> tf.lookup.experimental.DenseHashTable:
    return tf.lookup.experimental.DenseHashTable(tf.int64, tf.float32, tf.zeros([2]), EMPTY_KEY, DELETED_KEY, 4096)


def after(removes: bool) -> tuple[int, int]:
    """(distinct keys, keys exported) after 500 of 3000 keys went and 500 others were written again."""
    rng, t = np.random.default_rng(0), table()
    keys = rng.integers(-(2**62), 2**62, 3000)
    t.insert(tf.constant(keys), tf.ones([3000, 2]))
    if removes:
        t.remove(tf.constant(keys[:500]))
    else:
        t.insert(tf.constant(keys[:500]), tf.fill([500, 2], GONE))
    # Few enough: a call that could fill the table makes it grow first, and growing drops what remove left behind.
    t.insert(tf.constant(keys[-500:]), tf.ones([500, 2]))
    exported = t.export()[0].numpy().ravel()
    exported = exported[exported > DELETED_KEY]
    return len(set(exported.tolist())), len(exported)


def test_remove_lets_a_key_be_there_twice() -> None:
    distinct, exported = after(removes=True)
    assert exported > distinct == 2500  # the day this fails, `remove` may be used


def test_writing_the_gone_row_does_not() -> None:
    assert after(removes=False) == (3000, 3000)


def test_the_gone_row_reads_as_zeros() -> None:
    assert tf.reduce_all(tf.fill([3], GONE) == tf.zeros([3]))
    assert set(tf.bitcast(tf.fill([3], GONE), tf.int32).numpy().tolist()) == {-(2**31)}
