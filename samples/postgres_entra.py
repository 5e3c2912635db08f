"""PostgreSQL through Microsoft's azure-postgresql-auth.  Usage: postgres_entra.py URL ID."""

import sys

from azure_postgresql_auth.sqlalchemy import enable_entra_authentication
from sqlalchemy import create_engine, text

from azure_imds_credential import ImdsCredential

if __name__ == "__main__":
    url, client_id = sys.argv[1:]  # the URL names no user: that stands in the token
    engine = create_engine(url, connect_args={"credential": ImdsCredential(client_id=client_id)})
    enable_entra_authentication(engine)
    with engine.connect() as connection:
        print(connection.execute(text("select current_user")).scalar_one())
