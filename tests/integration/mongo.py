"""A stand-in for a MongoDB server: it speaks the wire protocol just far enough to authenticate with MONGODB-OIDC.

Sources: https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/ and
https://github.com/mongodb/specifications/blob/master/source/auth/auth.md#mongodb-oidc
"""

from __future__ import annotations

import socketserver
import struct
import threading
from collections.abc import Callable
from typing import Any

import bson

OP_REPLY, OP_QUERY, OP_MSG = 1, 2004, 2013
AUTHENTICATION_FAILED = 18


class MongoStandIn:
    """The server; `judged` has the verdict on each token.

    Args:
        verdict: Judges a token; "" when it is good.
    """

    def __init__(self, verdict: Callable[[str], str]) -> None:
        self.verdict = verdict
        self.judged: list[str] = []

    def __enter__(self) -> MongoStandIn:
        server = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                server.serve(self)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            block_on_close = False

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"mongodb://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve(self, connection: socketserver.StreamRequestHandler) -> None:
        authenticated = False
        while len(header := connection.rfile.read(16)) == 16:
            length, request, _, operation = struct.unpack("<iiii", header)
            body = connection.rfile.read(length - 16)
            if operation == OP_QUERY:  # flags, collection name, skip and limit stand before the document
                answer, kind = self.answer(bson.decode(body[body.index(b"\0", 4) + 9 :]), authenticated), OP_REPLY
            else:  # flags and the kind of section stand before it
                answer, kind = self.answer(bson.decode(body[5:]), authenticated), OP_MSG
            authenticated |= "conversationId" in answer and answer["ok"] == 1
            before = struct.pack("<iqii", 8, 0, 0, 1) if kind == OP_REPLY else struct.pack("<IB", 0, 0)
            message = before + bson.encode(answer)
            connection.wfile.write(struct.pack("<iiii", 16 + len(message), 0, request, kind) + message)

    def answer(self, command: dict[str, Any], authenticated: bool) -> dict[str, Any]:
        name = next(iter(command))
        if name in ("hello", "ismaster", "isMaster"):
            return {"ok": 1, "helloOk": True, "isWritablePrimary": True, "maxWireVersion": 25, "minWireVersion": 0}
        if name == "saslStart":
            assert command["mechanism"] == "MONGODB-OIDC"
            reason = self.verdict(bson.decode(command["payload"])["jwt"])
            self.judged.append(reason or "good")
            if not reason:
                return {"ok": 1, "conversationId": 1, "done": True, "payload": b""}
        elif authenticated or name == "endSessions":
            return {"ok": 1}
        return {"ok": 0, "code": AUTHENTICATION_FAILED, "errmsg": "Authentication failed."}
