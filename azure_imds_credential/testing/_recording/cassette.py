"""Recordings of sessions with IMDS and with what its tokens open: safe to keep, and as good in five years as today."""

from __future__ import annotations

import copy
import functools
import time
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec
from urllib.parse import parse_qsl, urlsplit

import vcr  # type: ignore[import-untyped] # vcrpy ships no types
from vcr.cassette import Cassette  # type: ignore[import-untyped] # ditto
from vcr.errors import UnhandledHTTPRequestError  # type: ignore[import-untyped] # ditto
from vcr.persisters.filesystem import FilesystemPersister  # type: ignore[import-untyped] # ditto
from vcr.serialize import serialize  # type: ignore[import-untyped] # ditto

from .._network import loopback_only
from .rebase import rebased
from .scan import Finding, scan_text
from .scrub import Scrubber, scrub_response

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

_P = ParamSpec("_P")
_MATCH_ON = ("method", "scheme", "host", "port", "path", "query that matters")


class ReplayError(AssertionError):
    """The program did not do what was recorded: it asked for something else, or past the recording."""


class UnsafeRecordingError(AssertionError):
    """What would have been written down holds something that looks live; nothing was written."""


class _WithBlock(AbstractContextManager[Any]):
    """A context manager that cannot be used as a decorator: on an async function it would end before the function ran.

    What the function then asks for would go to the real IMDS.
    """

    def __init__(self, inner: AbstractContextManager[Any]) -> None:
        self._inner = inner

    def __enter__(self) -> Any:
        return self._inner.__enter__()

    def __exit__(self, *exception: Any) -> bool | None:
        return self._inner.__exit__(*exception)


def _only_in_with(generator: Callable[_P, Iterator[Any]]) -> Callable[_P, _WithBlock]:
    @functools.wraps(generator)
    def manager(*args: _P.args, **kwargs: _P.kwargs) -> _WithBlock:
        return _WithBlock(contextmanager(generator)(*args, **kwargs))

    return manager


@_only_in_with
def imds_vcr(
    recording: str | os.PathLike[str],
    *,
    record_mode: str = "none",
    clock: Callable[[], float] = time.time,
    **vcr_options: Any,
) -> Iterator[Any]:
    """Replays a recording, or makes one, with vcrpy.

    ::

        with imds_vcr("recordings/system-assigned.yaml"):
            SecretClient("https://demo-system.vault.azure.net", ImdsCredential()).get_secret("greeting")

    Written down are dummies of the tokens with the same claims, and fakes of identities, tenants, subscriptions,
    request IDs and secret values: the same fake for the same identity in every recording. Host names and the names of
    secrets stay, since requests are matched by them. What still looks live is refused.

    Requests match on method, scheme, host, port, path and query; `api-version`, which follows the release of an SDK,
    does not count, and neither does the address of IMDS. A program may go on using its own client ID when it replays.
    `Date` and the instants of tokens are moved as if the answer were given now. IMDS repeats its last answer when it is
    asked more often than was recorded; everything else is an error then.

    A replay is for one thread at a time: vcrpy takes its patches off for the whole process whenever one thread opens a
    connection, and what other threads ask for meanwhile goes to the network. During a replay such requests, and all
    others that would leave this machine, are refused.

    Args:
        recording: The file, YAML. Use one vault host per recording: Key Vault's clients remember challenges by host.
        record_mode: "none" replays. "once" records if there is no file yet, else replays. "new_episodes" and "all"
            record, as vcrpy describes them.
        clock: Epoch seconds that the replayed answers are given on.
        vcr_options: Options of `vcr.VCR.use_cassette`. Filters and matchers are added to those described above.

    Yields:
        vcrpy's cassette.

    Raises:
        FileNotFoundError: There is nothing to replay.
        ReplayError: At the end of a replay: a request was not in the recording, or tried to leave this machine.
        UnsafeRecordingError: At the end of recording: it would have held something that looks live.
    """
    exists = Path(recording).is_file()
    replaying = record_mode == "none" or (record_mode == "once" and exists)
    if replaying and not exists:
        raise FileNotFoundError(f'no recording {recording}: make it once with imds_vcr(..., record_mode="once")')
    scrubber, persister = Scrubber(), _CheckedPersister(vcr_options.pop("persister", FilesystemPersister))
    recorder = vcr.VCR()
    recorder.register_matcher(_MATCH_ON[-1], _same_query)
    recorder.register_persister(persister)
    options = recorder.get_merged_config(
        **{
            **vcr_options,
            "path": str(recording),
            "record_mode": record_mode,
            "decode_compressed_response": True,
            "match_on": _MATCH_ON,
            "additional_matchers": tuple(vcr_options.get("match_on", ())),
            "before_record_request": (*_listed(vcr_options.get("before_record_request")), scrubber.request),
            "before_record_response": (*_listed(vcr_options.get("before_record_response")), scrub_response),
        }
    )
    with _Cassette.use(**options) as cassette:
        cassette.known, cassette.clock = scrubber.known, clock
        if not replaying:
            yield cassette
        else:
            with loopback_only() as refused:
                try:
                    yield cassette
                finally:
                    _check_replay(recording, cassette.missing, refused)
    if persister.findings:
        raise UnsafeRecordingError("\n".join(["nothing was written:", *map(str, persister.findings)]))


def _check_replay(recording: object, missing: list[str], refused: list[str]) -> None:
    """Raised even when the program caught what happened to it, so that no retry loop or thread hides it."""
    if refused:
        raise ReplayError(
            f"while {recording} was replayed, {refused[0]} was refused. Either the program uses something that vcrpy "
            "does not see, or two threads sent requests at the same time: replay in one thread."
        )
    if missing:
        raise ReplayError(f"{recording} has no answer (left) for {missing[0]}")


class _Cassette(Cassette):  # type: ignore[misc] # vcrpy ships no types
    """vcrpy's cassette, with answers given now and IMDS answering as often as it is asked."""

    known: dict[str, str]
    clock: Callable[[], float]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.missing: list[str] = []

    def __contains__(self, request: Any) -> bool:
        if super().__contains__(request):
            return True
        return self.rewound and _is_imds(request.uri) and any(self._responses(request))

    def find_requests_with_most_matches(self, request: Any) -> Any:
        """Called by vcrpy for the message of the error that it is about to raise for the request."""
        self.missing.append(f"{request.method} {request.uri}")
        return super().find_requests_with_most_matches(request)

    def play_response(self, request: Any) -> dict[str, Any]:
        try:
            response = super().play_response(request)
        except UnhandledHTTPRequestError:  # all played: `__contains__` lets only IMDS get here
            response = self.responses_of(request)[-1]
        return rebased(copy.deepcopy(response), self.clock(), self.known)


class _CheckedPersister:
    """Writes a recording only if the scan finds nothing in it."""

    def __init__(self, persister: Any) -> None:
        self._persister = persister
        self.findings: list[Finding] = []

    def load_cassette(self, cassette_path: Any, serializer: Any) -> Any:
        return self._persister.load_cassette(cassette_path, serializer)

    def save_cassette(self, cassette_path: Any, cassette_dict: Any, serializer: Any) -> None:
        self.findings = scan_text(serialize(cassette_dict, serializer), Path(cassette_path))
        if not self.findings:
            self._persister.save_cassette(cassette_path, cassette_dict, serializer)


def _is_imds(uri: str) -> bool:
    return urlsplit(uri).path.startswith("/metadata/")


def _same_query(one: Any, other: Any) -> None:
    """A matcher as vcrpy wants it: raises when the requests differ."""
    first, second = _query_that_matters(one.uri), _query_that_matters(other.uri)
    if first != second:
        raise AssertionError(f"{first} != {second}")


def _query_that_matters(uri: str) -> list[tuple[str, str]]:
    """Sorted, since order says nothing; in lower case, since GUIDs and ARM IDs have none."""
    query = parse_qsl(urlsplit(uri).query, keep_blank_values=True)
    return sorted((name.lower(), value.lower()) for name, value in query if name.lower() != "api-version")


def _listed(hooks: Any) -> tuple[Any, ...]:
    """One hook or several: vcrpy takes both."""
    if hooks is None:
        return ()
    return (hooks,) if callable(hooks) else tuple(hooks)
