"""Read a Key Vault secret as this VM's managed identity. With `--replay RECORDING` it needs neither VM nor vault."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone

from azure.core.exceptions import AzureError
from azure.keyvault.secrets import SecretClient

from azure_imds_credential import ImdsCredential


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("--vault-url", "--secret", "--client-id", "--object-id", "--resource-id", "--replay"):
        parser.add_argument(option, required=option in ("--vault-url", "--secret"))
    options = vars(parser.parse_args(arguments))
    vault_url, secret, recording = (options.pop(name) for name in ("vault_url", "secret", "replay"))
    try:
        with ExitStack() as until_done:
            if recording:
                from azure_imds_credential.testing import imds_vcr  # an extra that a VM does not need

                until_done.enter_context(imds_vcr(recording))
            credential = until_done.enter_context(ImdsCredential(**options))
            client = until_done.enter_context(SecretClient(vault_url, credential))
            token = credential.get_token("https://" + vault_url.partition(".")[2].strip("/") + "/.default")
            now = datetime.now(timezone.utc)
            life = timedelta(seconds=token.expires_on - int(now.timestamp()))
            print(f"token expire at :  {now + life:%Y-%m-%d %H:%M:%S.%f}+00:00")
            print(f"secret {secret} :  {client.get_secret(secret).value}")
    except (AzureError, ValueError, OSError, AssertionError) as error:  # the last two come from a replay
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
