"""A chat completions server on this machine, whose answers a test lays down one by one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Said:
    """One answer: a JSON value or raw bytes; `hang`: nothing is sent; `trickle`: a byte at a time, without an end."""

    content: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    hang: bool = False
    trickle: bool = False
    missing: int = 0
    """Bytes that are promised beside the content and never sent."""


class ChatServer:
    """`say(body, n)` gives the answer to the n-th request; requests are kept. `models`: what it lists, if anything. A
    context manager."""

    def __init__(self, say: Callable[[dict[str, Any], int], Said], models: Sequence[Mapping[str, str]] = ()) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.headers: list[Message] = []
        self.paths: list[str] = []
        self.most_at_once = 0
        self._now, self._lock, self.over = 0, threading.Lock(), threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = json.dumps({"data": list(models)}).encode()
                self.send_response(200 if models and self.path.startswith("/v1/models") else 404)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_POST(self) -> None:
                with outer._lock:
                    outer._now += 1
                    outer.most_at_once = max(outer.most_at_once, outer._now)
                try:
                    self._answer()
                except (BrokenPipeError, ConnectionResetError):
                    pass
                finally:
                    with outer._lock:
                        outer._now -= 1

            def _answer(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    n = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.keys.append(self.headers["Authorization"])
                    outer.headers.append(self.headers)
                    outer.paths.append(self.path)
                known = self.path.partition("?")[0] == "/v1/chat/completions"
                said = say(body, n) if known else Said({"error": "no such path"}, 404)
                if said.hang:
                    outer.over.wait(30)
                    return
                content = said.content if isinstance(said.content, bytes) else json.dumps(said.content).encode()
                self.send_response(said.status)
                for name, value in said.headers.items():
                    self.send_header(name, value)
                if said.trickle:
                    self.end_headers()
                    while not outer.over.wait(0.02):
                        self.wfile.write(b" ")
                    return
                self.send_header("Content-Length", str(len(content) + said.missing))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> ChatServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


def text(content: str) -> Said:
    """An answer in words."""
    return Said({"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}]})


def tokens(*places: Mapping[str, float]) -> Said:
    """An answer of tokens: at each place the alternatives with their log-probabilities, the chosen one first."""
    content = []
    for place in places:
        listed = [{"token": t, "logprob": p, "bytes": None} for t, p in place.items()]
        content.append({**listed[0], "top_logprobs": listed})
    said = "".join(next(iter(place)) for place in places)
    return Said(
        {"choices": [{"message": {"content": said}, "logprobs": {"content": content}, "finish_reason": "stop"}]}
    )
