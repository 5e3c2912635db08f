"""fsspec (and so pandas, dask, ...) on Azure Storage through adlfs.  Usage: fsspec_adlfs.py ACCOUNT PATH [HOST]."""

import sys

import fsspec

from azure_imds_credential.aio import ImdsCredential  # adlfs awaits its credential

if __name__ == "__main__":
    account, path, *host = sys.argv[1:]
    files = fsspec.filesystem(
        "az", account_name=account, credential=ImdsCredential(), account_host=host[0] if host else None
    )
    files.pipe(path, b"hello")
    print(files.cat(path).decode())
