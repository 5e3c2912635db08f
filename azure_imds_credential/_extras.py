"""The one place that says how an extra of this package is installed."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, distribution

_NAME = "azure-imds-credential"


def extra_needed(what: str, extra: str, library: str | None = None) -> str:
    """Return the message for a missing extra: what needs it, and the command that installs it.

    The command repeats where this package was installed from, which pip writes down for a folder, a file or a
    repository (PEP 610, direct_url.json). Without that record the message names the extra only: the index that the
    package came from is not known here.

    Args:
        what: What needs the extra, such as "shared_cache=True".
        extra: Name of the extra, as in setup.cfg.
        library: Name of the library that was not found, where one is known.
    """
    source = _installed_from()
    needs = f"the extra [{extra}] of {_NAME}"
    needs = f"{library}, which {needs} installs" if library else needs
    if source is None:
        return f"{what} needs {needs}: install {_NAME}[{extra}] from where {_NAME} came from"
    return f"{what} needs {needs}: pip install '{_NAME}[{extra}] @ {source}'"


def _installed_from() -> str | None:
    """Return the URL in pip's record, as a requirement takes it; None where there is no record."""
    try:
        record = json.loads(distribution(_NAME).read_text("direct_url.json") or "null")
    except (PackageNotFoundError, ValueError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("url"), str):
        return None
    version_control = record.get("vcs_info")
    if not isinstance(version_control, dict):
        return str(record["url"])
    revision = version_control.get("requested_revision")
    return f"{version_control.get('vcs')}+{record['url']}{f'@{revision}' if revision else ''}"
