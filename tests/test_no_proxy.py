"""Proxies, .netrc, CA bundles, redirects and settings of a user's session do not apply to requests to IMDS."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
from azure.core.pipeline.transport import RequestsTransport
from flavors import VAULT, Flavor, VirtualTime
from tcp import Listener, listening, record

from azure_imds_credential import ImdsError, ImdsServiceError, ImdsUnavailableError
from azure_imds_credential.testing import ImdsEmulator, faults
from azure_imds_credential.testing.faults import Reply, Steps

SPELLINGS = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    """A proxy that records what reaches it, named by every variable."""
    with listening(record) as server:
        for name in SPELLINGS:
            monkeypatch.setenv(name, server.url)
        yield server


def session(**settings: Any) -> requests.Session:
    """Return a session of a user."""
    made = requests.Session()
    for name, value in settings.items():
        setattr(made, name, value)
    return made


def proxied(url: str) -> dict[str, str]:
    """Return a proxy under every key that requests looks at."""
    keys = ("http", "https", "all", "http://127.0.0.1", "https://127.0.0.1", "all://127.0.0.1")
    return dict.fromkeys(keys, url)


TRANSPORTS: dict[str, Callable[[str], RequestsTransport | None]] = {
    "none": lambda proxy: None,
    "plain": lambda proxy: RequestsTransport(),
    "trusting the environment": lambda proxy: RequestsTransport(use_env_settings=True),
    "with a session": lambda proxy: RequestsTransport(session=session(), session_owner=False),
    "with a session that has proxies": lambda proxy: RequestsTransport(session=session(proxies=proxied(proxy))),
    "with a session that authenticates": lambda proxy: RequestsTransport(session=session(auth=("user", "password"))),
}


def test_proxy_of_other_clients(proxy: Listener, imds: ImdsEmulator) -> None:
    """Other clients send this request to the proxy, so the tests below can fail."""
    requests.get(f"{imds.endpoint}/metadata/identity/oauth2/token", timeout=5)
    session_of_a_user = session(proxies=proxied(proxy.url), trust_env=False)
    session_of_a_user.get(f"{imds.endpoint}/metadata/identity/oauth2/token", timeout=5)
    session_of_a_user.close()
    assert proxy.accepted == 2
    imds.assert_requests(0)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_no_proxy(transport: str, flavor: Flavor, proxy: Listener, imds: ImdsEmulator) -> None:
    """Nothing reaches a proxy, whatever the environment and the user's session say."""
    own = TRANSPORTS[transport](proxy.url)
    assert flavor.ask(imds.endpoint, transport=own).token in imds.tokens
    assert proxy.accepted == 0
    imds.assert_requests(1)
    if own is not None:
        own.close()


@pytest.mark.parametrize("name", SPELLINGS)
def test_each_variable(name: str, flavor: Flavor, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable for a proxy counts, also without the others."""
    with listening(record) as server:
        monkeypatch.setenv(name, server.url)
        flavor.ask(imds.endpoint)
        assert server.accepted == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_no_proxy_for_retries(
    transport: str, flavor: Flavor, proxy: Listener, imds: ImdsEmulator, virtual_time: VirtualTime
) -> None:
    """A retry goes through no proxy either."""
    own = TRANSPORTS[transport](proxy.url)
    imds.script(faults.status(503), faults.reset(), faults.throttled())
    credential = flavor.ImdsCredential(endpoint=imds.endpoint, transport=own)
    flavor.run(credential.get_token(VAULT))
    with imds.down(), pytest.raises(ImdsError):
        flavor.run(credential.get_token("https://management.azure.com"))
    assert proxy.accepted == 0
    if own is not None:
        own.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_netrc(
    transport: str, flavor: Flavor, imds: ImdsEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No user name and password of `.netrc` or of the user's session are sent."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login user password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    requests.get(imds.endpoint, timeout=5)
    assert imds.requests[0].header("Authorization")  # other clients do send it
    own = TRANSPORTS[transport]("http://127.0.0.1:9")
    flavor.ask(imds.endpoint, transport=own)
    assert imds.token_requests[0].header("Authorization") is None
    if own is not None:
        own.close()


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_ca_bundle(
    name: str, flavor: Flavor, imds: ImdsEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CA bundle of the environment does not count, whether it is missing or would make a server trusted."""
    for other in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, str(tmp_path / "missing.pem"))
    assert flavor.ask(imds.endpoint).token in imds.tokens

    authority = trustme.CA()
    bundle = tmp_path / "bundle.pem"
    authority.cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv(name, str(bundle))
    with tls_server(authority) as url:
        assert requests.get(url, timeout=5).status_code == 200  # other clients do trust it
        with pytest.raises(ImdsUnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            flavor.ask(url)


class tls_server:  # noqa: N801 # used like a function
    """An https server with a certificate of this authority."""

    def __init__(self, authority: trustme.CA) -> None:
        import http.server
        import ssl

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        class Quiet(http.server.ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                """Print nothing: the client refuses the certificate."""

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return f"https://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirect(transport: str, code: int, imds: ImdsEmulator) -> None:
    """No redirect is followed, and a token that comes with one is not taken."""
    from flavors import SYNC

    with listening(record) as elsewhere:

        def redirect_with_a_token(reply: Reply) -> Steps:
            yield Reply(code, reply.body, reply.headers).with_header("Location", f"{elsewhere.url}/metadata").encode()

        imds.script(redirect_with_a_token, seconds=math.inf)
        own = TRANSPORTS[transport]("http://127.0.0.1:9")
        with pytest.raises(ImdsServiceError, match=str(code)):
            SYNC.ask(imds.endpoint, transport=own)
        assert elsewhere.accepted == 0
        imds.assert_requests(1)
        if own is not None:
            own.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("location", ["http://[", "\xe9\xff", "//"])
def test_redirect_to_no_url(transport: str, location: str, flavor: Flavor, imds: ImdsEmulator) -> None:
    """A redirect whose target is no URL is an error like any other redirect, also with a user's transport."""
    imds.script(faults.redirect(location))
    own = TRANSPORTS[transport]("http://127.0.0.1:9")
    with pytest.raises(ImdsServiceError, match="307"):
        flavor.ask(imds.endpoint, transport=own)
    if own is not None:
        own.close()


def test_transport_of_a_user(flavor: Flavor, imds: ImdsEmulator) -> None:
    """A user's transport is neither opened nor closed."""
    mine = session()
    transport = RequestsTransport(session=mine, session_owner=True)
    first = flavor.ask(imds.endpoint, transport=transport)
    second = flavor.ask(imds.endpoint, transport=transport)
    assert transport.session is mine
    assert first.token == second.token
    imds.assert_requests(2)
    transport.close()


def test_connection_of_a_user(flavor: Flavor, imds: ImdsEmulator) -> None:
    """A response that is not read to its end is closed, so that a pool of one connection serves the next request."""
    mine = session()
    mine.mount("http://", requests.adapters.HTTPAdapter(pool_connections=1, pool_maxsize=1, pool_block=True))
    transport = RequestsTransport(session=mine, session_owner=False)
    imds.script(faults.html(200, "x" * (2 << 20)))
    with pytest.raises(ImdsUnavailableError, match="more than"):
        flavor.ask(imds.endpoint, transport=transport)
    assert flavor.ask(imds.endpoint, transport=transport, timeout=10).token in imds.tokens
    mine.close()


def test_no_cookie(flavor: Flavor, imds: ImdsEmulator) -> None:
    """A cookie that a server sets is not sent with the next request."""
    imds.script(faults.status(400, headers={"Set-Cookie": "a=b; Path=/"}))
    with pytest.raises(ImdsError):
        flavor.ask(imds.endpoint)
    flavor.ask(imds.endpoint)
    assert [request.header("Cookie") for request in imds.requests] == [None, None]
