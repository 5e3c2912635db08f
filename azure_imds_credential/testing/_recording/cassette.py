"""Recordings of sessions with IMDS and with what its tokens open: safe to keep, and as good in five years as today."""

from __future__ import annotations

import copy
import functools
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ParamSpec

import vcr  # type: ignore[import-untyped] # vcrpy ships no types
from vcr.cassette import Cassette  # type: ignore[import-untyped] # ditto
from vcr.errors import UnhandledHTTPRequestError  # type: ignore[import-untyped] # ditto
from vcr.persisters.filesystem import FilesystemPersister  # type: ignore[import-untyped] # ditto
from vcr.request import Request  # type: ignore[import-untyped] # ditto
from vcr.serialize import serialize  # type: ignore[import-untyped] # ditto

from .._network import loopback_only
from .._own_cache import own_shared_cache
from .exchanges import scrub_request, scrub_session
from .live_values import find_live
from .matching import is_imds, same_request
from .rebase import rebased
from .scan import scan_text
from .scrub import Scrubber, UnreadableError
from .unrecorded import UnrecordedExchanges

_P = ParamSpec("_P")
_MATCH_ON = ("method", "the request that was recorded")
_HOW_TO_ALLOW = "if it is harmless, allow it by its name, its value or its content type: imds_vcr(..., keep=[...])"


class ReplayError(AssertionError):
    """The program did not do what was recorded: it asked for something else, or past the recording."""


class IncompleteRecordingError(AssertionError):
    """Several threads or tasks exchanged something at the same time, and not all of it was recorded."""


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
    keep: Iterable[str | re.Pattern[str]] = (),
    clock: Callable[[], float] | None = None,
    **vcr_options: Any,
) -> Iterator[Any]:
    """Replay a recording, or make one, with vcrpy.

    ::

        with imds_vcr("recordings/system-assigned.yaml"):
            SecretClient("https://demo-system.vault.azure.net", ImdsCredential()).get_secret("greeting")

    Written down are dummies of the tokens with the same claims, and fakes of identities, tenants, subscriptions, names
    in ARM IDs, e-mail addresses and secrets. A fake has the length and the alphabet of what it stands for. The same
    identity has the same fake in every recording and in every form; so a program may use what it reads in a replay.
    Host names and the names of secrets stay, since requests are matched by them. All else stays byte for byte.

    Requests match on method, scheme, host, port, path and query. `api-version`, which follows the release of an SDK,
    the address of IMDS, and secrets in a query do not count. A program may use its own client ID when it replays.
    `Date` and the instants of tokens are moved as if the answer were given now. IMDS repeats its last answer when it is
    asked more often than was recorded; everything else is an error then.

    A replay is for one thread at a time: vcrpy takes its patches off for the whole process whenever one thread opens a
    connection, and what other threads ask for meanwhile goes to the network. During a replay such requests, and all
    others that would leave this machine, are refused. While it records, they are counted, and the recording fails.

    Tokens that processes share are kept in a folder of the block's own: `shared_cache=True` neither finds the user's
    tokens in it nor leaves dummies for the user.

    Args:
        recording: The file, YAML. Use one vault host per recording: Key Vault's clients remember challenges by host.
        record_mode: "none" replays. "once" records if there is no file yet, else replays. "new_episodes" and "all"
            record, as vcrpy describes them.
        keep: What is written down although it looks like a secret: names of members, headers and parameters, whole
            values, patterns that match either, and content types of bodies that cannot be looked into.
        clock: Epoch seconds that the replayed answers are given on, `time.time` by default.
        vcr_options: Options of `vcr.VCR.use_cassette`. Filters and matchers are added to those described above.

    Yields:
        vcrpy's cassette.

    Raises:
        FileNotFoundError: There is nothing to replay.
        ReplayError: At the end of a replay: a request was not in the recording, or tried to leave this machine.
        UnsafeRecordingError: At the end of recording: something looks live, or cannot be looked into. Nothing was
            written. Raised from the block's own exception if there was one.
        IncompleteRecordingError: At the end of recording: threads or tasks exchanged something at the same time, and
            vcrpy did not see all of it. Nothing was written.
    """
    kept = _checked_keep(keep)
    exists = Path(recording).is_file()
    replaying = record_mode == "none" or (record_mode == "once" and exists)
    if replaying and not exists:
        raise FileNotFoundError(
            f'no recording {recording}: make it once where there is an IMDS, with imds_vcr(..., record_mode="once"), '
            "or with pytest --imds-record=once for the fixture imds_recording"
        )
    matching, persister = Scrubber(kept), _CheckedPersister(vcr_options.pop("persister", FilesystemPersister), kept)
    recorder = vcr.VCR()
    recorder.register_matcher(_MATCH_ON[-1], same_request)
    recorder.register_persister(persister)
    before_recording = _listed(vcr_options.get("before_record_request"))
    options = recorder.get_merged_config(
        **{
            **vcr_options,
            "path": str(recording),
            "record_mode": record_mode,
            "decode_compressed_response": True,
            "match_on": _MATCH_ON,
            "additional_matchers": tuple(vcr_options.get("match_on", ())),
            "before_record_request": (*before_recording, functools.partial(_to_compare, scrubber=matching, keep=kept)),
        }
    )
    try:
        unrecorded = UnrecordedExchanges()
        with own_shared_cache(), nullcontext() if replaying else unrecorded, _Cassette.use(**options) as cassette:
            cassette.known, cassette.clock = matching.known, clock or _now
            cassette.persister, cassette.unrecorded = persister, unrecorded
            if not replaying:
                yield cassette
            else:
                with loopback_only() as refused:
                    try:
                        yield cassette
                    finally:
                        _check_replay(recording, cassette.missing, refused)
    except Exception as error:
        if persister.problems:
            raise UnsafeRecordingError(persister.told()) from error
        raise
    if persister.problems:
        raise UnsafeRecordingError(persister.told())
    if unrecorded.found:
        lines = "\n".join(f"  {line}" for line in unrecorded.found)
        raise IncompleteRecordingError(
            f"nothing was written to {recording}: vcrpy did not see {len(unrecorded.found)} exchange(s):\n{lines}\n"
            "It records one thread or task at a time: let the program do one request after the other."
        )


def _now() -> float:
    """Return epoch seconds. `time.time` is looked up at each use: freezegun and others put theirs in its place."""
    return time.time()


def _checked_keep(keep: Iterable[str | re.Pattern[str]]) -> list[str | re.Pattern[str]]:
    if isinstance(keep, (str, re.Pattern)):
        raise TypeError(f"keep must be a list of names, values or patterns, got {keep!r}")
    entries = list(keep)
    for entry in entries:
        if not isinstance(entry, (str, re.Pattern)):
            raise TypeError(f"keep must hold strings and compiled patterns, got {entry!r}")
        if entry == "":
            raise ValueError("keep must not hold an empty string")
    return entries


def _to_compare(request: Any, scrubber: Scrubber, keep: list[str | re.Pattern[str]]) -> Any:
    """Return a request as it is compared with those of a recording. The one that was given stays as it is."""
    if getattr(request, "is_raw", False):
        return request
    try:
        return scrub_request(request, scrubber, keep)
    except UnreadableError:
        return Request(
            request.method, scrubber.uri(request.uri), request.body, scrubber.request_headers(request.headers)
        )


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
    """vcrpy's cassette, with answers given now and IMDS answering as often as it is asked.

    Exchanges are kept as they were until the session ends: what must not be written is only known then.
    """

    known: dict[str, str]
    clock: Callable[[], float]
    persister: _CheckedPersister
    unrecorded: UnrecordedExchanges

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.missing: list[str] = []
        self._is_loading = False

    def __contains__(self, request: Any) -> bool:
        if super().__contains__(request):
            return True
        return self.rewound and is_imds(request.uri) and any(self._responses(request))

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

    def append(self, request: Any, response: Any) -> None:
        """Called by vcrpy with each new exchange; and while it loads, with each recorded one, which is scrubbed."""
        if self._is_loading:
            super().append(request, response)
            return
        self.unrecorded.recorded()
        raw = copy.copy(request)
        raw.is_raw = True  # the user's own filters see it, ours do not yet
        super().append(raw, response)

    def _load(self) -> None:
        self._is_loading = True
        try:
            super()._load()
        finally:
            self._is_loading = False

    def _save(self, force: bool = False) -> None:
        if self.unrecorded.found:
            return
        made = self.data[self._loaded_count :]
        if made and self.dirty:
            scrubbed = self.persister.scrub(made)
            if scrubbed is None:
                return
            self.data[self._loaded_count :] = scrubbed
        super()._save(force)


class _CheckedPersister:
    """Writes a recording only if nothing in it is live, as far as anyone can tell."""

    def __init__(self, persister: Any, keep: list[str | re.Pattern[str]]) -> None:
        self._persister, self._keep = persister, keep
        self._secrets: list[str] = []
        self.problems: list[str] = []

    def told(self) -> str:
        return "\n".join(["nothing was written:", *self.problems, _HOW_TO_ALLOW])

    def scrub(self, exchanges: list[Any]) -> list[Any] | None:
        """Return new exchanges as they are written down, None if they may not be."""
        scrubbed = scrub_session(exchanges, Scrubber(self._keep), self._keep)
        self.problems, self._secrets = scrubbed.problems, scrubbed.secrets
        return None if self.problems else scrubbed.exchanges

    def load_cassette(self, cassette_path: Any, serializer: Any) -> Any:
        return self._persister.load_cassette(cassette_path, serializer)

    def save_cassette(self, cassette_path: Any, cassette_dict: Any, serializer: Any) -> None:
        text = serialize(copy.deepcopy(cassette_dict), serializer)
        for secret in find_live(text, self._secrets):
            self.problems.append(
                f"{cassette_path}: a live value is still there, {secret[:3]}... ({len(secret)} characters)"
            )
        self.problems += [str(finding) for finding in scan_text(text, Path(cassette_path), self._keep)]
        if not self.problems:
            self._persister.save_cassette(cassette_path, cassette_dict, serializer)


def _listed(hooks: Any) -> tuple[Any, ...]:
    """Return one hook or several as a tuple: vcrpy takes both."""
    if hooks is None:
        return ()
    return (hooks,) if callable(hooks) else tuple(hooks)
