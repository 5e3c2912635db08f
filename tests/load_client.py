"""A client that is not the bottleneck: many kept connections, each asking at its own pace, on raw asyncio.

Arguments: host, port, connections, requests a second in all (0: as many as possible), seconds.
Prints one JSON object: answers, errors, seconds it took, the longest wait for an answer in seconds.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from typing import Any

from raw_http import TOKEN_TARGET

REQUEST = f"GET {TOKEN_TARGET} HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n".encode()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    writer.write(REQUEST)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
    body = await reader.readexactly(length)
    if not head.startswith(b"HTTP/1.1 200 OK\r\n"):
        raise ConnectionError(head.partition(b"\r\n")[0].decode())
    return str(json.loads(body)["access_token"])


async def load(host: str, port: int, connections: int, rate: float, seconds: float) -> dict[str, Any]:
    answers, waits, errors, tokens = 0, [0.0], [], set()
    streams = [await asyncio.open_connection(host, port) for _ in range(connections)]
    begin = time.monotonic()

    async def connection(number: int) -> None:
        nonlocal answers
        reader, writer = streams[number]
        for number_of_request in itertools.count() if not rate else range(int(rate * seconds / connections)):
            due = begin + (number + number_of_request * connections) / rate if rate else time.monotonic()
            if due >= begin + seconds:
                return
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            asked = time.monotonic()
            try:
                tokens.add(await asyncio.wait_for(ask(reader, writer), 10))
            except (OSError, EOFError, asyncio.TimeoutError, ValueError) as error:
                errors.append(repr(error))
                return
            answers += 1
            waits.append(time.monotonic() - asked)

    await asyncio.gather(*(connection(number) for number in range(connections)))
    took = time.monotonic() - begin
    for _, writer in streams:
        writer.close()
    return {"answers": answers, "errors": errors, "tokens": len(tokens), "took": took, "longest": max(waits)}


if __name__ == "__main__":
    host, port, connections, rate, seconds = sys.argv[1:]
    print(json.dumps(asyncio.run(load(host, int(port), int(connections), float(rate), float(seconds)))))
