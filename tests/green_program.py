"""Ask for tokens in a process that was patched by gevent or eventlet, and print what happened as JSON.

Usage: python green_program.py gevent|eventlet before|after|late ENDPOINT

`before`: patched before the import. `after`: after the import, before the first request. `late`: after a first request.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

TURNS = 20
SCOPES = [f"https://r{number}.example/.default" for number in range(3)]


def patched(library: str) -> tuple[Callable[..., Any], Callable[[float], Any], Callable[[Any], Any]]:
    """Patch the standard library; return how to start a green thread, to sleep in one, and to wait for one."""
    warnings.simplefilter("ignore")  # both warn of a late patch, which is what is tried
    if library == "gevent":
        from gevent import monkey, sleep, spawn

        monkey.patch_all()
        return spawn, sleep, lambda thread: thread.get()
    import eventlet

    eventlet.monkey_patch()
    return eventlet.spawn, eventlet.sleep, lambda thread: thread.wait()


def main(library: str, when: str, endpoint: str) -> None:
    if when == "before":
        green = patched(library)
    from azure_imds_credential import ImdsCredential, ImdsError

    credential = ImdsCredential(endpoint=endpoint, timeout=60)
    told: dict[str, Any] = {"first": None}
    if when == "late":
        told["first"] = credential.get_token("https://first.example/.default").token
    if when != "before":
        green = patched(library)
    spawn, sleep, wait = green

    turns = [0]

    def other() -> None:
        while True:
            turns[0] += 1
            if turns[0] == TURNS:
                print("turning", flush=True)  # now the endpoint may answer
            sleep(0.01)

    spawn(other)
    # The endpoint holds its answers back until the other green thread has had turns: a process that stands still gets
    # none, and so no answer.
    asking = [spawn(lambda scope=scope: credential.get_token(scope).token) for scope in SCOPES]
    told["tokens"] = [wait(one) for one in asking]
    told["turns"] = turns[0]
    told["again"] = [credential.get_token(scope).token for scope in SCOPES]
    told["joined"] = [
        wait(one) for one in [spawn(lambda: credential.get_token("https://one.example").token) for _ in "123"]
    ]
    begun, before = time.monotonic(), turns[0]
    try:
        ImdsCredential(endpoint=endpoint, timeout=0.5).get_token("https://silent.example/.default")
        told["error"] = None
    except ImdsError as error:
        told["error"] = type(error).__name__
    told["seconds"], told["turns while silent"] = time.monotonic() - begun, turns[0] - before
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
