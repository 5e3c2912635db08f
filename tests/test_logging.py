"""What is logged: nothing for a cached token, one line per request, retries with their reason."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
from flavors import VAULT, Flavor, VirtualTime

from azure_imds_credential import IdentityUnavailableError, ImdsThrottledError
from azure_imds_credential.testing import ImdsEmulator, SystemAssigned, UserAssigned, faults

NAME = "azure_imds_credential"


def ours(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name.partition(".")[0] == NAME]


def test_cached_token(flavor: Flavor, imds: ImdsEmulator, caplog: pytest.LogCaptureFixture) -> None:
    """A call that a cached token serves logs nothing."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    flavor.run(credential.get_token(VAULT))
    caplog.clear()
    for _ in range(10):
        flavor.run(credential.get_token(VAULT))
        flavor.run(credential.get_token_info(VAULT))
    assert [record for record in caplog.records if record.name != "asyncio"] == []


def test_request(flavor: Flavor, imds: ImdsEmulator, caplog: pytest.LogCaptureFixture) -> None:
    """A request is one line at INFO, as text and as fields."""
    flavor.ask(imds.endpoint)
    (record,) = ours(caplog)
    assert record.levelno == logging.INFO
    fields = {name: value for name, value in vars(record).items() if name.startswith("imds_")}
    milliseconds, expires_in = fields.pop("imds_milliseconds"), fields.pop("imds_expires_in")
    assert 0 <= milliseconds < 60_000
    assert abs(86399 - milliseconds / 1000 - expires_in) <= 1, "what is left at the end of the request"
    assert fields == {
        "imds_identity": "the machine's default identity",
        "imds_resource": VAULT,
        "imds_outcome": "token",
        "imds_attempts": 1,
        "imds_throttled": 0,
        "imds_callers": 1,
        "imds_refresh": False,
        "imds_client_id": SystemAssigned().client_id,
        "imds_match": "not selected",
    }
    assert record.getMessage() == (
        f"IMDS: identity=the machine's default identity resource={VAULT} outcome=token attempts=1 "
        f"milliseconds={milliseconds} expires_in={expires_in} client_id={SystemAssigned().client_id} match=not selected"
    )


def test_failed_request(flavor: Flavor, imds: ImdsEmulator, caplog: pytest.LogCaptureFixture) -> None:
    """A failed request is one line too; its outcome is the class of the error."""
    client_id = "00000000-0000-4000-8000-000000000001"
    with pytest.raises(IdentityUnavailableError):
        flavor.ask(imds.endpoint, client_id=client_id)
    (record,) = ours(caplog)
    assert (record.levelno, record.imds_outcome, record.imds_identity, record.imds_expires_in) == (  # type: ignore[attr-defined] # by `extra`
        logging.INFO,
        "IdentityUnavailableError",
        f"client_id {client_id}",
        None,
    )


@pytest.mark.parametrize(
    ("selector", "match"),
    [
        (lambda _: {}, "not selected"),
        (lambda app: {"client_id": app.client_id}, "confirmed"),
        (lambda app: {"object_id": app.object_id}, "confirmed"),
        (lambda app: {"resource_id": app.resource_id}, "confirmed"),
    ],
    ids=["none", "client_id", "object_id", "resource_id"],
)
def test_match(
    selector: Callable[[UserAssigned], dict[str, str]], match: str, flavor: Flavor, caplog: pytest.LogCaptureFixture
) -> None:
    """The line has the client ID that the response names, and whether the response names what was selected."""
    app = UserAssigned("app")
    with ImdsEmulator(identities=[app]) as imds:
        flavor.ask(imds.endpoint, **selector(app))
    (record,) = ours(caplog)
    assert record.getMessage().endswith(f" client_id={app.client_id} match={match}")


def test_unconfirmed(flavor: Flavor, imds: ImdsEmulator, caplog: pytest.LogCaptureFixture) -> None:
    """A response that leaves out what was selected is a token, and the line says that it is not confirmed."""
    app = UserAssigned("app")
    imds.assign(app)
    imds.script(faults.members(client_id=None, access_token="dummy-opaque"))
    flavor.ask(imds.endpoint, client_id=app.client_id)
    (record,) = ours(caplog)
    assert record.getMessage().endswith(" client_id=None match=unconfirmed")


def test_retries(
    flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Each wait is one line at INFO with its length and its reason."""
    imds.script(faults.throttled(), faults.status(503, "ill"), faults.reset(after=-5))
    flavor.ask(imds.endpoint)
    *retries, request = ours(caplog)
    assert request.imds_attempts == 4  # type: ignore[attr-defined] # by `extra`
    assert [record.levelno for record in retries] == [logging.INFO] * 3
    assert [record.imds_retry_delay for record in retries] == virtual_time.slept  # type: ignore[attr-defined] # as above
    reasons = (
        "429 invalid_request: Temporarily throttled, too many requests",
        "503, it said: ill",
        "200, the body broke off",
    )
    for record, delay, reason in zip(retries, virtual_time.slept, reasons, strict=True):
        assert record.getMessage() == f"asking IMDS again in {delay:.1f} s: {reason}"


def test_failed_refresh(
    flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed refresh is one warning: for how long the cached token serves, and when the next try is."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint, timeout=30)
    first = flavor.run(credential.get_token(VAULT))
    virtual_time.skip(50_000)
    imds.script(faults.status(403, "no"), seconds=10_000)
    assert flavor.run(credential.get_token(VAULT)).token == first.token
    imds.wait_for_requests(2)
    for _ in range(2000):
        warnings = [record for record in ours(caplog) if record.levelno == logging.WARNING]
        if warnings:
            break
        imds.now()
        _pause()
    (warning,) = warnings
    assert "refreshing a token failed, the cached one serves for 36" in warning.getMessage()
    assert "next try in 30 s" in warning.getMessage()
    assert "403" in warning.getMessage()
    assert flavor.run(credential.get_token(VAULT)).token == first.token  # backing off: no request
    imds.assert_requests(2)


def _pause() -> None:
    import time

    time.sleep(0.01)  # the warning is written by the refreshing thread


def test_errors(
    flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    """What is raised is not logged above INFO."""
    imds.script(faults.throttled(), seconds=1000)
    with pytest.raises(ImdsThrottledError):
        flavor.ask(imds.endpoint)
    assert {record.levelno for record in ours(caplog)} == {logging.INFO}


def test_logging_enable(flavor: Flavor, imds: ImdsEmulator, caplog: pytest.LogCaptureFixture) -> None:
    """azure-core's own policy logs URL, status and headers, never a body."""
    flavor.ask(imds.endpoint, logging_enable=True)
    policy = [record.getMessage() for record in caplog.records if record.name.endswith("http_logging_policy")]
    assert len(policy) == 2
    assert "/metadata/identity/oauth2/token" in policy[0]
    assert "Response status: 200" in policy[1]
    assert "access_token" not in "".join(policy)


def test_no_handler() -> None:
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


def test_filter_that_fails(
    flavor: Flavor,
    imds: ImdsEmulator,
    virtual_time: VirtualTime,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An error of a log filter is reported as one of the thread, at a retry as at the end; the token comes."""

    def fail(_record: logging.LogRecord) -> bool:
        raise ValueError("no")

    reported: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", reported.append)
    caplog.set_level(logging.INFO, "azure_imds_credential")
    monkeypatch.setattr(logging.getLogger("azure_imds_credential"), "filters", [fail])
    imds.script(faults.status(503))
    assert flavor.ask(imds.endpoint).token == imds.tokens[-1]
    assert len(virtual_time.slept) == 1
    assert [str(each.exc_value) for each in reported] == ["no", "no"]
