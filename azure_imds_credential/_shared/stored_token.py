"""How a token is written down for other processes of this machine, and when what is read back is believed.

A CRC of the second line, then JSON. Times are of CLOCK_BOOTTIME, which is never set and goes on while the machine
sleeps. It starts anew at a boot, hence the boot's ID. It stands still while the host pauses a VM, hence the offset of
the wall clock: where that has changed, the earlier of the two expiries counts.
"""

from __future__ import annotations

import binascii
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

from .._clock import MAX_DRIFT
from .._jwt import MAX_LIFE, TOKEN

FORMAT = 2  # 1 had no `wall_offset`


class StoredToken(NamedTuple):
    """A token that a process of this user stored. Times are of `Clock.now`."""

    access_token: str
    expires_at: float
    asked_at: float
    stored_at: float
    wall_offset: float  # wall clock minus boot clock, when it was stored
    forced: bool

    def has_drifted(self, now: float, wall: float) -> bool:
        """Return whether wall clock and boot clock have drifted apart since: the VM was paused, or a clock was set."""
        return abs(self._drift(now, wall)) > MAX_DRIFT

    def earliest_expiry(self, now: float, wall: float) -> float:
        """Return the time of `Clock.now` at which it expires; by the wall clock if that is earlier after a drift."""
        return self.expires_at - max(0.0, self._drift(now, wall)) if self.has_drifted(now, wall) else self.expires_at

    def _drift(self, now: float, wall: float) -> float:
        return wall - now - self.wall_offset

    def __repr__(self) -> str:
        return f"StoredToken(expires_at={self.expires_at}, stored_at={self.stored_at})"


def encode(key: list[object], stored: StoredToken) -> bytes:
    """Return the content of the file for a key: endpoint, members of the identity, resource."""
    body = json.dumps({"format": FORMAT, "boot": _boot_id(), "key": key, **stored._asdict()}).encode()
    return b"%08x\n" % binascii.crc32(body) + body


def decode(content: bytes, key: list[object] | None, now: float) -> StoredToken:
    """Return what a process stored for this key, or for any key if it is None.

    Raises:
        ValueError: It is damaged, of another format, key or boot, or from the future. The message quotes none of it.
    """
    checksum, _, body = content.partition(b"\n")
    if checksum != b"%08x" % binascii.crc32(body):
        raise ValueError("damaged")
    try:
        stored = json.loads(body)
        form, stored_key, boot = stored["format"], stored["key"], stored["boot"]
        times = [_number(stored[name]) for name in ("asked_at", "stored_at", "expires_at", "wall_offset")]
        token, forced = stored["access_token"], stored["forced"]
    except (TypeError, ValueError, OverflowError, KeyError, RecursionError) as error:
        raise ValueError("in another form than this version writes") from error
    if type(form) is not int or form != FORMAT or not isinstance(token, str) or not re.fullmatch(TOKEN, token):
        raise ValueError("in another form than this version writes")
    if key is not None and stored_key != key:
        raise ValueError("for something else than its name says")
    if boot != _boot_id():
        raise ValueError("from before the last boot")
    asked_at, stored_at, expires_at, wall_offset = times
    if not all(map(math.isfinite, times)) or not asked_at <= stored_at <= now:
        raise ValueError("dated in the future, or not at all")
    if expires_at - stored_at > MAX_LIFE:
        raise ValueError("valid for longer than a token can be")
    return StoredToken(token, expires_at, asked_at, stored_at, wall_offset, forced is True)


def _number(value: object) -> float:
    # A boolean is a number to Python, and none in JSON.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("not a number")
    return float(value)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
