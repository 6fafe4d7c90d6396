"""What tests share: paths, waiting, processes, servers, made data."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]

ODD_NAME = "a b%41 é+'\" 日本 🚀"
"""The name of a folder, with characters that programs take for something else."""
