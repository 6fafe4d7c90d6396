"""MMoE: experts that all tasks share, and a gate a task that mixes them.

With z = relu(W [v_1 .. v_m, x] + b) the shared layer (z is its input if `bottom` is 0), task t's deep part is

    e_k  = swish(layernorm(K_k z))                               expert k, of `units` numbers
    g_t  = softmax(G_t z)                                        the gate of task t: a weight for each expert
    deep_t = b_t + h_t . sum_k g_{t,k} e_k

(Ma et al., Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts, KDD 2018, section
4.2.) Experts and gates take the shared layer, not the raw inputs (Zhao et al., Recommending What Video to Watch Next,
RecSys 2019). The experts are normalised, with a smooth activation: experts of ReLU die, and other scales let one
expert take over a task (Wang et al., HoME, 2024, arXiv 2408.05430). With one expert each gate is 1: that is the shared
bottom. The other terms are those of ranker.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from streaming.declaration import Declaration
from training.models.model import Tensors
from training.models.ranker import Ranker

_EPSILON = 1e-3
"""Added to the variance of an expert's numbers, as in keras.layers.LayerNormalization."""


DEAD = 0.01
"""An expert whose mean gate is below this for every task is dead: no task learns from it any more."""


class MMoE(Ranker):
    """A multi-gate mixture of experts with Adagrad on rows and dense weights.

    `bottom`: units of the shared layer, 0 for none. `experts`: their number, 1 for a shared bottom. `units`: numbers of
    an expert. Ranker describes the other settings.
    """

    def __init__(
        self, declaration: Declaration, *, seed: int = 0, dim: int = 16, bottom: int = 64, experts: int = 4,
        units: int = 32, row_rate: float = 0.015, row_start: float = 1e-7, row_scale: float = 0.005,
        dense_rate: float = 0.05, dense_start: float = 1e-6, positions: int = 0, position_dropout: float = 0.1,
        sizes: str = "",
    ) -> None:  # fmt: skip
        super().__init__(
            declaration, seed=seed, dim=dim, row_rate=row_rate, row_start=row_start, row_scale=row_scale,
            dense_rate=dense_rate, dense_start=dense_start, positions=positions, position_dropout=position_dropout,
            sizes=sizes,
        )  # fmt: skip
        for name, value, least in (("bottom", bottom, 0), ("experts", experts, 1), ("units", units, 1)):
            if value < least:
                raise ValueError(f"model 'mmoe': {name} is {value}, allowed is {least} or more")
        self._experts, self._units = experts, units
        tasks, names = declaration.tasks, self.inputs
        self.observed = tuple(f"gate_{task}_expert{k}" for task in tasks for k in range(experts)) if experts > 1 else ()
        width = bottom or len(names)
        self._bottom = self._layer("bottom", len(names), bottom, (names, None), activation="relu") if bottom else None
        of_inputs = None if bottom else names
        kernel = tf.concat([self._start(width, units) for _ in range(experts)], 1)
        self._declare("experts_kernel", keras.Variable(kernel, name="experts_kernel"), (of_inputs, None))
        self._declare("experts_scale", keras.Variable(tf.ones([experts, units]), name="experts_scale"))
        self._declare("experts_shift", keras.Variable(tf.zeros([experts, units]), name="experts_shift"))
        gates = tf.stack([self._start(width, experts) for _ in tasks], 1)
        self._declare("gates_kernel", keras.Variable(gates, name="gates_kernel"), (of_inputs, tasks, None))
        heads = self._start(units, len(tasks))
        self._declare("heads_kernel", keras.Variable(heads, name="heads_kernel"), (None, tasks))
        self._declare("heads_bias", keras.Variable(tf.zeros([len(tasks)]), name="heads_bias"), (tasks,))
        self._declare_wide()

    def multiplications(self) -> int:
        """Counts those of one example's deep part, without normalisation and activations."""
        deep = ("bottom_kernel", "experts_kernel", "gates_kernel", "heads_kernel")
        kernels = sum(int(tf.size(self.weight(name))) for name in deep if name in self.dense)
        return kernels + len(self.declaration.tasks) * self._experts * self._units

    def gates(self, rows: Tensors, numbers: Any) -> Any:
        """Returns the weight of each expert for each task: float32[n, tasks, experts], each row's sum is 1."""
        return self._gates(self._shared(self._inputs(self._fields(rows)[:, :, 1:], numbers)))

    def observe(self, rows: Tensors, numbers: Any) -> Any:
        """Returns the gates, float32[n, tasks x experts]: the tasks in order, and of each the experts."""
        return tf.reshape(self.gates(rows, numbers), [-1, len(self.observed)])

    def alarms(self, observed: Mapping[str, float]) -> list[str]:
        """Names each dead expert."""
        tasks, found = self.declaration.tasks, []
        for k in range(self._experts if self.observed else 0):
            gates = {task: observed[f"gate_{task}_expert{k}"] for task in tasks}
            if max(gates.values()) < DEAD:
                text = ", ".join(f"{task} {gate:.4f}" for task, gate in gates.items())
                found.append(f"expert {k} is dead: its mean gates are {text}, allowed is {DEAD:g} or more for one task")
        return found

    def _deep(self, inputs: Any) -> Any:
        shared = self._shared(inputs)
        raw = tf.reshape(tf.matmul(shared, self.weight("experts_kernel")), [-1, self._experts, self._units])
        mean, variance = tf.nn.moments(raw, axes=[2], keepdims=True)
        normal = (raw - mean) * tf.math.rsqrt(variance + _EPSILON)
        experts = tf.nn.silu(normal * self.weight("experts_scale") + self.weight("experts_shift"))
        mixed = tf.matmul(self._gates(shared), experts)  # [n, tasks, units]
        return tf.reduce_sum(mixed * tf.transpose(self.weight("heads_kernel")), 2) + self.weight("heads_bias")

    def _shared(self, inputs: Any) -> Any:
        return self._bottom(inputs) if self._bottom else inputs

    def _gates(self, shared: Any) -> Any:
        kernel, tasks = self.weight("gates_kernel"), len(self.declaration.tasks)
        flat = tf.reshape(kernel, [-1, tasks * self._experts])
        return tf.nn.softmax(tf.reshape(tf.matmul(shared, flat), [-1, tasks, self._experts]))

    def _start(self, inputs: int, outputs: int) -> Any:
        return keras.initializers.GlorotUniform(seed=next(self._seeds))((inputs, outputs))


build = MMoE
