"""The emulator: a machine with managed identities, on a loopback port of this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from ..._endpoint import TOKEN_PATH
from .._http import checks
from .._http.server import Server, address
from ..faults import Fault
from ..faults import wireserver as wireserver_fault
from . import openid
from .identities import TENANT_ID, Identity, checked
from .journal import Journal, Request
from .profiles import PROFILES, ProfileName
from .rate_limits import Limits
from .service import Imds
from .token_endpoint import Machine
from .tokens import ISSUER, LIFETIME, TokenService


class ImdsEmulator:
    """An Azure Instance Metadata Service in this process, for tests.

    Any number of them run side by side, each with its own port, identities, tokens and clock:

        with ImdsEmulator() as imds:
            credential = ImdsCredential(endpoint=imds.endpoint)

    Everything may be called from any thread. Tokens are real RS256 JWTs of a fixed fake tenant; the key that verifies
    them is published under `openid_configuration_url`.

    Args:
        identities: What the machine has. None: what the profile has, for a VM one system-assigned identity.
        host: IP address to listen on, or localhost, which is 127.0.0.1 whatever the machine says.
        port: Port to listen on; 0 takes a free one.
        profile: The kind of machine: "vm", "vmss", "aci" (Container Instances) or "aks" (a pod on an AKS node).
        throttle: Refuse more than 20 requests a second and 5 at once, as documented, with 429.
        latency: Seconds that every answer takes. Requests are only "at once" when answers take time.
        clock: Gives epoch seconds, `time.time` by default; `advance` adds to it.
        token_lifetime: Seconds between issue and end of a token.
        renew_before: Seconds before its end from which a token is replaced by a new one. In between, real IMDS hands
            out the same token again with less time left; when it renews is unknown.
        known_resources: The resources that exist; None: everything that looks like an App ID URI or a GUID.
        claims: Claims of the tokens to replace or add, None to leave one out; or a function of the resource that gives
            them. Real tokens of some audiences lack `xms_mirid`: `claims={"xms_mirid": None}` shows whether a program
            relies on it.
        keep: How many requests and tokens are remembered, the newest ones; None: all. For an emulator that runs long.
    """

    tenant_id = TENANT_ID
    issuer = ISSUER

    def __init__(
        self,
        identities: Iterable[Identity] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        profile: ProfileName = "vm",
        throttle: bool = False,
        latency: float = 0.0,
        clock: Callable[[], float] | None = None,
        token_lifetime: int = LIFETIME,
        renew_before: float = 0.0,
        known_resources: Collection[str] | None = None,
        claims: Mapping[str, Any] | Callable[[str], Mapping[str, Any]] | None = None,
        keep: int | None = None,
    ) -> None:
        if profile not in PROFILES:
            raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {profile!r}")
        kind = PROFILES[profile]
        if keep is not None:
            checks.whole("keep", keep, 1)
        self._tokens = TokenService(kind.machine_id, token_lifetime, renew_before, claims, keep)
        has = [checked(identity) for identity in (kind.identities if identities is None else identities)]
        self._machine = Machine(kind, has, self._tokens, known_resources)
        self._clock, self._advanced = clock, 0.0
        self._imds = Imds(self._machine, self.now, latency, Limits() if throttle else None, Journal(keep))
        self._host, self._port = address(host, port)
        self._server: Server | None = None

    def __repr__(self) -> str:
        where = "not started" if self._server is None else self.endpoint
        return f"<ImdsEmulator {self._machine.profile.name} {where}>"

    # The life of the server

    def start(self) -> ImdsEmulator:
        """Start to listen; `with` does it for you."""
        if self._server is None:
            server = Server(self._host, self._port, self._imds.respond)
            server.start()
            self._server = server
        return self

    def close(self) -> None:
        """End every connection and free the port. May be called again."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    def __enter__(self) -> ImdsEmulator:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def _running(self) -> Server:
        if self._server is None:
            raise RuntimeError("the emulator is not running: use it in a `with` block, or call start()")
        return self._server

    @property
    def port(self) -> int:
        """Port that it listens on."""
        return self._running.port

    @property
    def endpoint(self) -> str:
        """Base URL: what `ImdsCredential(endpoint=...)` and AZURE_POD_IDENTITY_AUTHORITY_HOST take."""
        return self._running.url

    @property
    def openid_configuration_url(self) -> str:
        """Where validators find the issuer and the key set."""
        return self.endpoint + openid.CONFIGURATION_PATH

    @property
    def jwks_uri(self) -> str:
        """Where validators find the key set."""
        return self.endpoint + openid.KEYS_PATH

    @contextmanager
    def down(self) -> Iterator[None]:
        """Nothing listens inside the block: open connections are cut, new ones refused. The port stays reserved."""
        server = self._running
        server.pause()
        try:
            yield
        finally:
            if self._server is server:
                server.resume()

    def restart(self, refused: float = 0.5, wireserver: int = 1) -> None:
        """Restart as IMDS does, and return at once.

        Args:
            refused: Seconds for which connections are refused.
            wireserver: How many token requests the other server answers after that, with 500.
        """
        checks.seconds("refused", refused)
        checks.whole("wireserver", wireserver)
        server = self._running
        server.pause()
        if wireserver:
            self.script(*[wireserver_fault()] * wireserver)
        server.resume_later(refused)

    # The machine

    @property
    def identities(self) -> tuple[Identity, ...]:
        """What the machine has now."""
        return tuple(self._machine.identities)

    def assign(self, identity: Identity) -> None:
        """Assign one more identity to the machine."""
        self._machine.identities = [*self._machine.identities, checked(identity)]

    def remove(self, identity: Identity) -> None:
        """Take an identity away from the machine."""
        self._machine.identities = [i for i in self._machine.identities if i != identity]

    @property
    def tokens(self) -> list[str]:
        """Every access token ever issued, oldest first."""
        return self._tokens.issued

    def issue_token(self, resource: str, identity: Identity | None = None) -> str:
        """Return a signed token that no request asked for, of any identity (None: the machine's first)."""
        return self._tokens.issue(identity or self._machine.identities[0], resource, self.now()).value

    def renew_tokens(self) -> None:
        """Forget the tokens handed out so far: the next answers carry new ones."""
        self._tokens.renew()

    def now(self) -> float:
        """Epoch seconds of the emulator's clock."""
        # `time.time` is looked up at each use: freezegun and others put theirs in its place.
        return (self._clock or time.time)() + self._advanced

    def advance(self, seconds: float) -> None:
        """Put the emulator's clock forward, or back."""
        self._advanced += checks.seconds("seconds", seconds, -checks.CENTURY, checks.CENTURY)

    # Faults

    def script(self, *faults: Fault, seconds: float | None = None, path: str = TOKEN_PATH) -> None:
        """Let the next requests to a path meet these faults, one after the other; then all is well again.

        Args:
            faults: From `azure_imds_credential.testing.faults`, or your own.
            seconds: Instead of one request each: all requests of so many seconds of the emulator's clock, in turn.
                math.inf: until `clear_faults`.
            path: The path whose requests are meant. Probes without the Metadata header count like any other.
        """
        self._imds.script.add(path, faults, self.now(), seconds)

    def random_faults(self, *faults: Fault, rate: float, seed: int) -> None:
        """From now on a share of the token requests meets one of these faults.

        Args:
            faults: From `azure_imds_credential.testing.faults`, or your own.
            rate: The share, from 0 to 1.
            seed: The same seed gives the same sequence.
        """
        self._imds.script.at_random(faults, rate, seed)

    def clear_faults(self) -> None:
        """Nothing goes wrong any more."""
        self._imds.script.clear()

    @property
    def faults_left(self) -> int:
        """Scripted faults that no request has met yet."""
        return self._imds.script.left()

    # The journal

    @property
    def requests(self) -> list[Request]:
        """Every request so far, probes and refused ones included; those for the key set are not counted."""
        return self._imds.journal.all()

    @property
    def token_requests(self) -> list[Request]:
        """The requests to the token endpoint that carry a Metadata header, so no probes."""
        return [request for request in self.requests if request.is_token_request]

    def wait_for_requests(self, count: int, timeout: float = 30.0) -> list[Request]:
        """Return the requests so far, as soon as there are at least `count`; AssertionError after `timeout` seconds."""
        return self._imds.journal.wait_for(count, timeout)

    def assert_requests(self, count: int, **query: str | None) -> list[Request]:
        """Fail unless exactly so many requests came; the message lists all that came.

        Args:
            count: How many.
            query: Only requests whose query variable has this value (None: is absent), e.g. `client_id=...`.

        Returns:
            The requests that were counted.
        """
        return self._imds.journal.check(count, query)

    def clear_requests(self) -> None:
        """Forget the requests so far."""
        self._imds.journal.clear()
