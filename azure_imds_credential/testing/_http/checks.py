"""Numbers that a test gives, checked where it gives them: on the server's thread the error would be lost."""

from __future__ import annotations

LONGEST = 30 * 86400  # seconds to wait: more is a mistake, and more than locks can wait on some platforms
CENTURY = 36525 * 86400  # seconds by which a clock moves, so that it still shows a date that HTTP can write


def seconds(name: str, value: float, least: float = 0, most: float = LONGEST) -> float:
    """Return a length of time.

    Raises:
        TypeError: It is no number.
        ValueError: It is out of range, or NaN.
    """
    return _between(name, value, "a number of seconds", least, most)


def share(name: str, value: float) -> float:
    """Return a part of a whole; raises as `seconds` does."""
    return _between(name, value, "a share", 0, 1)


def whole(name: str, value: int, least: int | None = 0, most: int | None = None) -> int:
    """Return a whole number; None: no bound.

    Raises:
        TypeError: It is none.
        ValueError: It is out of range.
    """
    bounds = "" if least is None else f" from {least}" if most is None else f" from {least} to {most}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number{bounds}, got {value!r}")
    if (least is not None and value < least) or (most is not None and value > most):
        raise ValueError(f"{name} must be a whole number{bounds}, got {value!r}")
    return value


def _between(name: str, value: float, kind: str, least: float, most: float) -> float:
    expected = f"{name} must be {kind} from {least:.0f} to {most:.0f}, got {value!r}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(expected)
    if not least <= value <= most:
        raise ValueError(expected)
    return value
