"""PostgreSQL through SQLAlchemy and psycopg: an Entra token as password.  Usage: postgres_engine.py URL."""

import sys
from typing import Any

from sqlalchemy import Engine, create_engine, event, text

from azure_imds_credential import ImdsCredential

SCOPE = "https://ossrdbms-aad.database.windows.net/.default"  # of Azure Database for PostgreSQL and MySQL


def engine_with_tokens(url: str, credential: ImdsCredential) -> Engine:
    """Make an engine whose every new connection gets a usable token; the URL names the identity as user."""
    engine = create_engine(url)

    @event.listens_for(engine, "do_connect")
    def use_token(_dialect: Any, _record: Any, _args: Any, parameters: dict[str, Any]) -> None:
        parameters["password"] = credential.get_token(SCOPE).token

    return engine


if __name__ == "__main__":
    with engine_with_tokens(sys.argv[1], ImdsCredential()).connect() as connection:
        print(connection.execute(text("select current_user")).scalar_one())
