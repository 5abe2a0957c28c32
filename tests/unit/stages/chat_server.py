"""A chat completions server on this machine, whose answers a test lays down one by one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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


class ChatServer:
    """`say(body, n)` gives the answer to the n-th request; requests are kept. A context manager."""

    def __init__(self, say: Callable[[dict[str, Any], int], Said]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.most_at_once = 0
        self._now, self._lock, self.over = 0, threading.Lock(), threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
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
                said = say(body, n) if self.path == "/v1/chat/completions" else Said({"error": "no such path"}, 404)
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
                self.send_header("Content-Length", str(len(content)))
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
