"""Write surface.json: which options the real Azure CLI declares for the commands that samples/azure uses.

Run by hand where `pip install azure-cli` was done (700 MB, which is why the tests read the recording instead):
`python tests/azure_cli/record_surface.py`. It runs no command, so it needs neither login nor network.
"""

import argparse
import json
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from azure.cli.core import get_default_cli
from knack import events

COMMANDS = """
account set|account show|ad signed-in-user show|ad sp show|deployment group create|group create|group delete
group exists|group show|identity create|identity show|keyvault create|keyvault list|keyvault list-deleted|keyvault purge
keyvault recover|keyvault secret list|keyvault secret set|keyvault show|login|network nsg rule create
role assignment create|vm create|vm identity assign|vm identity remove|vm list|vm show
"""


class ParserSeenError(Exception):
    """Carries the parser out of the CLI before it reads the command line."""


def parser_of(command: str) -> argparse.ArgumentParser:
    cli = get_default_cli()

    def stop(_cli: Any, **_event: Any) -> None:
        raise ParserSeenError

    # Raised when the command's arguments are complete: global ones such as --subscription included.
    cli.register_event(events.EVENT_INVOKER_POST_CMD_TBL_CREATE, stop)
    try:
        cli.invocation = cli.invocation_cls(
            cli_ctx=cli,
            parser_cls=cli.parser_cls,
            commands_loader_cls=cli.commands_loader_cls,
            help_cls=cli.help_cls,
        )
        cli.invocation.execute([*command.split(), "--help"])
    except ParserSeenError:
        pass
    table = cli.invocation.commands_loader
    cli.invocation.parser.load_command_table(table)
    parser = cli.invocation.parser
    for word in command.split():
        choices = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction)).choices
        parser = choices[word]
    return parser


def main() -> None:
    surface: dict[str, Any] = {}
    for command in sorted(COMMANDS.strip().replace("\n", "|").split("|")):
        options = [action for action in parser_of(command)._actions if action.option_strings]
        surface[command] = {
            "options": sorted(str(name) for action in options for name in action.option_strings),
            "required": sorted(sorted(map(str, action.option_strings)) for action in options if action.required),
            "choices": {
                str(name): sorted(map(str, action.choices))
                for action in options
                if action.choices
                for name in action.option_strings
            },
        }
    recording = {
        "from": f"azure-cli {version('azure-cli')}",
        "recorded": f"{datetime.now(timezone.utc):%Y-%m-%d}",
        "commands": surface,
    }
    Path(__file__).with_name("surface.json").write_text(json.dumps(recording, indent=1) + "\n")


if __name__ == "__main__":
    main()
