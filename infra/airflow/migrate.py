"""Airflow's tables: asks the database whether it can hold them, then `airflow db migrate` makes or renews them.

    python -m infra.airflow.migrate          # the database is AIRFLOW__DATABASE__SQL_ALCHEMY_CONN, as for Airflow

Airflow says what is wrong with a database in a hundred lines. Here it is one, which names the setting, and exit 2.
"""

from __future__ import annotations

import os
import sys
from urllib.parse import unquote, urlsplit

from infra.settings import without_password

CONNECT_S = 5
DRIVER = "postgresql+psycopg2://"


def refusal(address: str) -> str:
    """Why a PostgreSQL database cannot be Airflow's, on one line and without the password; "" when it can."""
    import psycopg2

    try:
        connection = psycopg2.connect(address, connect_timeout=CONNECT_S)
    except (psycopg2.Error, ValueError) as e:
        reason = "; ".join(line.strip() for line in str(e).splitlines() if line.strip())
        for secret in filter(None, {urlsplit(address).password, unquote(urlsplit(address).password or "")}):
            reason = reason.replace(secret, "***")
        return reason
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_user, has_schema_privilege(current_schema(), 'CREATE')")
            user, may = cursor.fetchone() or ("", False)
    finally:
        connection.close()
    return "" if may else f"{user} may make no tables there (GRANT CREATE ON SCHEMA public TO {user})"


def main() -> int:
    connection = os.environ.get("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "")
    if connection.startswith(DRIVER):
        address = connection.replace(DRIVER, "postgresql://", 1)
        if why := refusal(address):
            print(f"airflow_db is {without_password(address)}, which cannot be used: {why}", file=sys.stderr)
            return 2
    os.execv(sys.executable, [sys.executable, "-m", "airflow", "db", "migrate"])


if __name__ == "__main__":
    sys.exit(main())
