"""Checks that a uv.lock names no host but the two of the public Python index. Exit code 1 if it does.

python -m infra.tools.lock_guard uv.lock
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from common import process

ALLOWED = ("pypi.org", "files.pythonhosted.org")


def foreign(text: str) -> list[tuple[int, str]]:
    """(line number, address) of each address on another host, or of another scheme than https."""
    addresses = []
    for number, line in enumerate(text.splitlines(), 1):
        for scheme, host in re.findall(r'([a-z+]+)://([^/"\s]*)', line):
            if scheme != "https" or host not in ALLOWED:
                addresses.append((number, f"{scheme}://{host}"))
    return addresses


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments("infra.tools.lock_guard", __doc__ or "")
    parser.add_argument("file", type=Path)
    file = parser.parse_args(argv).file
    wrong = foreign(file.read_text())
    for number, address in wrong[:5]:
        print(f"{file}:{number}: {address}; allowed are {' and '.join(ALLOWED)}", file=sys.stderr)
    return process.FAILED if wrong else process.DONE


if __name__ == "__main__":
    sys.exit(main())
