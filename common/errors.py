"""The two ways in which a command of ours ends without its result. `common.process.run` turns them into exit codes."""

from __future__ import annotations


class InputError(Exception):
    """What was given, or what lies on the disk, cannot be used: exit 2. The message says what it is, and what is
    allowed."""


class Refused(Exception):
    """All was in order and the answer is no, as of a gate: exit 3. The message gives the reasons."""
