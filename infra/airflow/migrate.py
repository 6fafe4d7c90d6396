"""Makes or renews Airflow's tables by `airflow db migrate`, if the database can hold them.

    python -m infra.airflow.migrate          # the database is AIRFLOW__DATABASE__SQL_ALCHEMY_CONN, as for Airflow

Airflow reports a database that it cannot use in a hundred lines. This module does it in one, which names the setting.
"""

from __future__ import annotations

import os
import sys
from urllib.parse import unquote, urlsplit

from common import process
from infra.settings import SettingError, without_password

CONNECT_S = 5
DRIVER = "postgresql+psycopg2://"


def refusal(address: str) -> str:
    """The reason why Airflow cannot use a PostgreSQL database, in one line without the password; "" if it can."""
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


def migrate() -> None:
    connection = os.environ.get("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "")
    if connection.startswith(DRIVER):
        address = connection.replace(DRIVER, "postgresql://", 1)
        if reason := refusal(address):
            raise SettingError(f"airflow_db is {without_password(address)}, which cannot be used: {reason}")
    os.execv(sys.executable, [sys.executable, "-m", "airflow", "db", "migrate"])


def main(argv: list[str] | None = None) -> int:
    process.Arguments("infra.airflow.migrate", __doc__ or "").parse_args(argv)
    return process.run(migrate)


if __name__ == "__main__":
    sys.exit(main())
