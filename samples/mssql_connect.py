"""SQL Server and Azure SQL through pyodbc and Microsoft's ODBC driver.  Usage: mssql_connect.py SERVER DATABASE."""

import struct
import sys

import pyodbc

from azure_imds_credential import ImdsCredential

SQL_COPT_SS_ACCESS_TOKEN = 1256  # msodbcsql.h


def token_struct(token: str) -> bytes:
    """Return a token as the driver takes it: its length in bytes, then UTF-16."""
    data = token.encode("utf-16-le")
    return struct.pack(f"<I{len(data)}s", len(data), data)


def connect(server: str, database: str, credential: ImdsCredential) -> pyodbc.Connection:
    """Open a connection with a token that is valid now."""
    token = credential.get_token("https://database.windows.net/.default").token
    settings = f"Driver={{ODBC Driver 18 for SQL Server}};Server={server};Database={database}"
    return pyodbc.connect(settings, attrs_before={SQL_COPT_SS_ACCESS_TOKEN: token_struct(token)})


if __name__ == "__main__":
    with connect(*sys.argv[1:], ImdsCredential()) as connection:
        print(connection.execute("select suser_sname()").fetchval())
