"""What is logged: nothing on warm hits, one line per exchange, retries with their reason."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
from colours import VAULT, Colour, VirtualTime

from azure_imds_credential import IdentityUnavailableError, ImdsThrottledError
from azure_imds_credential.testing import ImdsEmulator, faults

NAME = "azure_imds_credential"


def ours(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name.partition(".")[0] == NAME]


def test_a_warm_hit_is_silent(colour: Colour, imds: ImdsEmulator, caplog: pytest.LogCaptureFixture) -> None:
    """A held token is handed out without a word from anybody."""
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    colour.run(credential.get_token(VAULT))
    caplog.clear()
    for _ in range(10):
        colour.run(credential.get_token(VAULT))
        colour.run(credential.get_token_info(VAULT))
    assert [record for record in caplog.records if record.name != "asyncio"] == []


def test_an_exchange_is_one_structured_line(
    colour: Colour, imds: ImdsEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Identity, resource, outcome, attempts, milliseconds and expiry, as text and as fields."""
    colour.ask(imds.endpoint)
    (record,) = ours(caplog)
    assert record.levelno == logging.INFO
    fields = {name: value for name, value in vars(record).items() if name.startswith("imds_")}
    milliseconds = fields.pop("imds_milliseconds")
    assert 0 <= milliseconds < 60_000
    assert fields == {
        "imds_identity": "system-assigned",
        "imds_resource": VAULT,
        "imds_outcome": "token",
        "imds_attempts": 1,
        "imds_expires_in": 86399,
    }
    assert record.getMessage() == (
        f"IMDS: identity=system-assigned resource={VAULT} outcome=token attempts=1 milliseconds={milliseconds} "
        "expires_in=86399"
    )


def test_a_failed_exchange_is_one_line_too(
    colour: Colour, imds: ImdsEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    """The outcome is the class of the error, for the identity that was asked for."""
    client_id = "00000000-0000-4000-8000-000000000001"
    with pytest.raises(IdentityUnavailableError):
        colour.ask(imds.endpoint, client_id=client_id)
    (record,) = ours(caplog)
    assert (record.levelno, record.imds_outcome, record.imds_identity, record.imds_expires_in) == (  # type: ignore[attr-defined] # by `extra`
        logging.INFO,
        "IdentityUnavailableError",
        f"client_id {client_id}",
        None,
    )


def test_retries_are_told_with_their_reason(
    colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Each wait is one line at INFO: how long, and because of what."""
    imds.script(faults.throttled(), faults.status(503, "ill"), faults.reset(after=-5))
    colour.ask(imds.endpoint)
    *retries, exchange = ours(caplog)
    assert exchange.imds_attempts == 4  # type: ignore[attr-defined] # by `extra`
    assert [record.levelno for record in retries] == [logging.INFO] * 3
    assert [record.imds_retry_delay for record in retries] == virtual_time.slept  # type: ignore[attr-defined] # as above
    reasons = ("429 invalid_request: Temporarily throttled, too many requests", "503", "200, the answer broke off")
    for record, delay, reason in zip(retries, virtual_time.slept, reasons, strict=True):
        assert record.getMessage() == f"asking IMDS again in {delay:.1f} s: {reason}"


def test_a_failed_refresh_is_one_warning(
    colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    """The held token goes on serving; the log says for how long, and when the next try is."""
    credential = colour.ImdsCredential(endpoint=imds.endpoint, timeout=30)
    first = colour.run(credential.get_token(VAULT))
    virtual_time.skip(50_000)
    imds.script(faults.status(403, "no"), seconds=10_000)
    assert colour.run(credential.get_token(VAULT)).token == first.token
    imds.wait_for_requests(2)
    for _ in range(200):
        warnings = [record for record in ours(caplog) if record.levelno == logging.WARNING]
        if warnings:
            break
        imds.now()
        _pause()
    (warning,) = warnings
    assert "refreshing a token failed, the held one serves for 36" in warning.getMessage()
    assert "next try in 30 s" in warning.getMessage()
    assert "403" in warning.getMessage()
    assert colour.run(credential.get_token(VAULT)).token == first.token  # backing off: nobody asks
    imds.assert_requests(2)


def _pause() -> None:
    import time

    time.sleep(0.01)  # the warning is written by the refreshing thread


def test_errors_are_raised_and_not_logged(
    colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever gets the exception decides what it is worth: nothing above INFO."""
    imds.script(faults.throttled(), seconds=1000)
    with pytest.raises(ImdsThrottledError):
        colour.ask(imds.endpoint)
    assert {record.levelno for record in ours(caplog)} == {logging.INFO}


def test_logging_enable_shows_requests_and_no_bodies(
    colour: Colour, imds: ImdsEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    """azure-core's own policy tells URL, status and headers."""
    colour.ask(imds.endpoint, logging_enable=True)
    policy = [record.getMessage() for record in caplog.records if record.name.endswith("http_logging_policy")]
    assert len(policy) == 2
    assert "/metadata/identity/oauth2/token" in policy[0]
    assert "Response status: 200" in policy[1]
    assert "access_token" not in "".join(policy)


def test_an_application_without_logging_sees_nothing() -> None:
    """The package's logger has a NullHandler: not even a warning reaches standard error."""
    program = (
        "import logging, azure_imds_credential, azure_imds_credential.aio as aio\n"
        "log = logging.getLogger('azure_imds_credential')\n"
        "assert [type(handler) for handler in log.handlers] == [logging.NullHandler], log.handlers\n"
        "assert log.level == logging.NOTSET and log.propagate\n"
        "log.warning('not to be seen')\n"
        "try:\n    azure_imds_credential.ImdsCredential(endpoint='http://127.0.0.1:9').get_token('https://vault.azure.net')\n"
        "except azure_imds_credential.ImdsUnavailableError:\n    print('raised')\n"
    )
    child = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (child.stdout, child.stderr) == ("raised\n", "")
