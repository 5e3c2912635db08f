"""`python -m azure_imds_credential` is `azure-imds`."""

from ._cli import main

if __name__ == "__main__":
    raise SystemExit(main())
