"""Delta tables (delta-rs) on Azure Storage: a token per table object.  Usage: delta_table.py ACCOUNT URL."""

import sys

import polars
from deltalake import DeltaTable, write_deltalake

from azure_imds_credential import ImdsCredential

credential = ImdsCredential()


def storage_options(account: str) -> dict[str, str]:
    """delta-rs takes a fixed token: call this for every table that is opened, not once per program."""
    return {"account_name": account, "bearer_token": credential.get_token("https://storage.azure.com/.default").token}


if __name__ == "__main__":
    account, url = sys.argv[1:]
    write_deltalake(url, polars.DataFrame({"n": [1, 2, 3]}), storage_options=storage_options(account))
    print(DeltaTable(url, storage_options=storage_options(account)).count())
