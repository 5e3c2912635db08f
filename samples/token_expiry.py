"""Print when the token of this VM's managed identity expires. With `--replay RECORDING` it needs no VM."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone

from azure_imds_credential import ImdsCredential
from azure_imds_credential.exceptions import ImdsError


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    identity = parser.add_mutually_exclusive_group()
    for option in ("--client-id", "--object-id", "--resource-id"):
        identity.add_argument(option, help="of a user-assigned identity")
    parser.add_argument("--replay", metavar="RECORDING")
    options = vars(parser.parse_args(arguments))
    recording = options.pop("replay")
    try:
        with ExitStack() as until_done:
            if recording:
                from azure_imds_credential.testing import imds_vcr  # an extra that a VM does not need

                until_done.enter_context(imds_vcr(recording))
            credential = until_done.enter_context(ImdsCredential(**options))
            expires_on = credential.get_token("https://vault.azure.net/.default").expires_on
    except (ImdsError, ValueError, OSError, AssertionError) as error:  # the last two come from a replay
        sys.exit(f"{type(error).__name__}: {error}")
    now = datetime.now(timezone.utc)
    life = timedelta(seconds=expires_on - int(now.timestamp()))
    print(f"token expire at :  {now + life:%Y-%m-%d %H:%M:%S.%f}+00:00")


if __name__ == "__main__":
    main()
