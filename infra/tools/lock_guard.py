"""Refuses a uv.lock that names another host than the public Python index's two.

python -m infra.tools.lock_guard uv.lock
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ALLOWED = ("pypi.org", "files.pythonhosted.org")


def foreign(text: str) -> list[tuple[int, str]]:
    """(line number, address) of each address on another host, or of another scheme than https."""
    addresses = []
    for number, line in enumerate(text.splitlines(), 1):
        for scheme, host in re.findall(r'([a-z+]+)://([^/"\s]*)', line):
            if scheme != "https" or host not in ALLOWED:
                addresses.append((number, f"{scheme}://{host}"))
    return addresses


def main() -> int:
    path = Path(sys.argv[1])
    wrong = foreign(path.read_text())
    for number, address in wrong[:5]:
        print(f"{path}:{number}: {address}; allowed are {' and '.join(ALLOWED)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
