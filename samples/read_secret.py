"""Print when the token of this machine's managed identity expires, then a secret from Azure Key Vault."""

import argparse
import sys
from datetime import datetime, timezone

from azure.core.exceptions import AzureError
from azure.keyvault.secrets import SecretClient

from azure_imds_credential import ImdsCredential


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("--vault-url", "--secret", "--client-id", "--object-id", "--resource-id"):
        parser.add_argument(option, required=option in ("--vault-url", "--secret"))
    args = parser.parse_args(arguments)
    try:
        credential = ImdsCredential(client_id=args.client_id, object_id=args.object_id, resource_id=args.resource_id)
        expires_on = credential.get_token("https://vault.azure.net/.default").expires_on
        print(f"token expire at :  {datetime.fromtimestamp(expires_on, timezone.utc).isoformat(' ', 'microseconds')}")
        with SecretClient(args.vault_url, credential) as client:
            print(f"secret {args.secret} :  {client.get_secret(args.secret).value}")
    except (AzureError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
