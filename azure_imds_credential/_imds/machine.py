"""Facts about this machine that shorten a wait, or tell who refuses."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

# DMI vendors of machines that cannot be Azure VMs ("Microsoft Corporation" there). Unknown ones say nothing.
# https://www.freedesktop.org/software/systemd/man/latest/systemd-detect-virt.html lists the same names.
_OTHER_VENDORS = (
    "Amazon EC2", "Google", "Apple Inc.", "Dell Inc.", "LENOVO", "HP", "Hewlett-Packard", "ASUSTeK", "VMware",
    "innotek GmbH", "Oracle Corporation", "DigitalOcean", "Hetzner", "Alibaba Cloud",
)  # fmt: skip


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def plainly_not_azure(platform: str = sys.platform, read: Callable[[str], str] = _read) -> bool:
    """Return whether this machine is of a kind that Azure does not have. This only shortens a wait."""
    return platform == "darwin" or read("/sys/class/dmi/id/sys_vendor").startswith(_OTHER_VENDORS)


@cache
def is_plainly_not_azure() -> bool:
    """Return `plainly_not_azure()`, read once: a machine does not change its kind."""
    return plainly_not_azure()


# Where the package of the Metadata Security Protocol's guest agent puts its program and its configuration: the RPM
# specification in https://github.com/Azure/GuestProxyAgent.
_PROXY_AGENT = ("/usr/sbin/azure-proxy-agent", "/etc/azure/proxy-agent.json")


def has_proxy_agent(exists: Callable[[str], bool] = os.path.exists) -> bool:
    """Return whether the guest agent of the Metadata Security Protocol is installed on this machine."""
    return any(exists(path) for path in _PROXY_AGENT)
