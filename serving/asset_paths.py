"""How a served graph finds the files beside it: `assets/` of its own version, wherever the folder was moved to."""

from __future__ import annotations

import uuid

import tensorflow as tf


class AssetPaths(tf.saved_model.experimental.TrackableResource):  # type: ignore[misc]
    """A table int64 -> path of an asset of this version.

    A program that loads through a Session, as TF Serving does, knows these paths only while the init op runs; so that
    op stores them here. The files are read at each call: sync replaces them.
    """

    def __init__(self, files: list[tf.saved_model.Asset]) -> None:
        super().__init__()
        # A fixed name: the exporter copies this object, and all copies must share one table.
        self._files, self._shared_name = files, f"minutehand_paths_{uuid.uuid4().hex}"
        _ = self.resource_handle  # created now: later it would belong to the first function that is traced

    def _create_resource(self) -> tf.Tensor:
        return tf.raw_ops.MutableHashTableV2(key_dtype=tf.int64, value_dtype=tf.string, shared_name=self._shared_name)

    def _initialize(self) -> None:
        tf.raw_ops.LookupTableInsertV2(
            table_handle=self.resource_handle,
            keys=tf.range(len(self._files), dtype=tf.int64),
            values=tf.stack([f.asset_path for f in self._files]),
        )

    def read(self, index: int) -> tf.Tensor:
        path = tf.raw_ops.LookupTableFindV2(
            table_handle=self.resource_handle, keys=tf.constant(index, tf.int64), default_value=tf.constant("")
        )
        return tf.io.read_file(path)
