"""polars on Azure Storage: a function that gives tokens.  Usage: polars_storage.py ACCOUNT URL."""

import sys

import polars

from azure_imds_credential import ImdsCredential

credential = ImdsCredential()


def azure_token() -> tuple[dict[str, str], int]:
    """What polars asks again when the token expires."""
    token = credential.get_token("https://storage.azure.com/.default")
    return {"bearer_token": token.token}, token.expires_on


if __name__ == "__main__":
    account, url = sys.argv[1:]
    options = {"account_name": account}
    polars.DataFrame({"n": [1, 2, 3]}).write_parquet(url, storage_options=options, credential_provider=azure_token)
    table = polars.scan_parquet(url, storage_options=options, credential_provider=azure_token)
    print(table.select(polars.col("n").sum()).collect().item())
