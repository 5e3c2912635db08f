"""Print when the token of this machine's managed identity expires."""

import argparse
import sys
from datetime import datetime, timezone

from azure_imds_credential import ImdsCredential, ImdsError


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("--client-id", "--object-id", "--resource-id"):
        parser.add_argument(option, help="of a user-assigned identity")
    try:
        credential = ImdsCredential(**vars(parser.parse_args(arguments)))
        expires_on = credential.get_token("https://vault.azure.net/.default").expires_on
    except (ImdsError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(f"token expire at :  {datetime.fromtimestamp(expires_on, timezone.utc).isoformat(' ', 'microseconds')}")


if __name__ == "__main__":
    main()
