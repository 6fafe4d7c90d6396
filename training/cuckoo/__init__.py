"""The collisionless embedding table: a C++ core (*.h), TensorFlow ops around it (ops.cc), and `Table`."""

from training.cuckoo.table import Rows, Table

__all__ = ["Rows", "Table"]
