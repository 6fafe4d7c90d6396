"""The embedding table without collisions: a C++ core (core/), TensorFlow ops around it (op/), and `Table`."""

from training.cuckoo.admission import Admission
from training.cuckoo.embedding import Embedding
from training.cuckoo.optimizers import FTRL, SGD, Adagrad, Adam, Momentum
from training.cuckoo.segments import Constant, Normal, Segment, Uniform, Zeros
from training.cuckoo.table import Rows, Table

__all__ = [
    "FTRL",
    "SGD",
    "Adagrad",
    "Adam",
    "Admission",
    "Constant",
    "Embedding",
    "Momentum",
    "Normal",
    "Rows",
    "Segment",
    "Table",
    "Uniform",
    "Zeros",
]
