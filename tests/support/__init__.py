"""What tests share: paths, waiting, processes, servers, made data."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
