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
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        for scheme, host in re.findall(r'([a-z+]+)://([^/"\s]*)', line):
            if scheme != "https" or host not in ALLOWED:
                found.append((number, f"{scheme}://{host}"))
    return found


def main() -> int:
    path = Path(sys.argv[1])
    found = foreign(path.read_text())
    for number, address in found[:5]:
        print(f"{path}:{number}: {address}; allowed are {' and '.join(ALLOWED)}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
