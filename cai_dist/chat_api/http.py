"""The connection to a server with the OpenAI-compatible API: its address, the key, proxies, and one request within a
deadline and a bound of size.

Knows no run. Whatever a server sends is hostile: its size is bounded, its words are cut and cleaned before they are
shown, and the key is struck out of them.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx

from cai_dist.config.feedback import EndpointConfig
from cai_dist.errors import ConfigError

Body = dict[str, Any]
LARGEST = 8 << 20
"""Bytes of an answer."""
_SHOWN = 200
"""Characters of a server's words in a message."""
_NAMED = 5
"""Models of a server that a message names."""


class Busy(Exception):
    """Try again: `reason` in one line, `wait` as the server asks (seconds)."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait


@dataclass(frozen=True)
class Response:
    """What a server has sent, with any status."""

    status: int
    headers: httpx.Headers
    content: bytes

    @property
    def kind(self) -> str:
        """Content type of the answer without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower() or "no content type"


class Connection:
    """Sends requests to one server.

    The key comes from the environment, here and now, and is nowhere but in the request's header. Raises ConfigError for
    a key that no header can hold.
    """

    def __init__(self, config: EndpointConfig) -> None:
        self._config = config
        self.key = os.environ.get(config.api_key_env, "").strip()
        if not all("!" <= c <= "~" for c in self.key):
            # A client would put a key that no header can hold into its error message.
            raise ConfigError(
                f"feedback.endpoint.api_key_env: the key in {config.api_key_env} has characters that no key has"
            )
        self._base = config.url.rstrip("/")
        self._query = f"?api-version={config.api_version}" if config.api_version else ""
        self.url = f"{self._base}/chat/completions{self._query}"

    def client(self) -> httpx.AsyncClient:
        """A client with the key, and with the proxy of the environment unless the server is on this machine. Raises
        ConfigError for a proxy that cannot be used."""
        name = self._config.api_key_header
        said = f"Bearer {self.key}" if name.lower() == "authorization" else self.key
        headers = {name: said} if self.key else {}
        # Certificates take a tenth of a second to load, and without TLS there are none to look at.
        tls = urlsplit(self.url).scheme.lower() == "https"
        direct = httpx.AsyncHTTPTransport(verify=tls) if _on_this_machine(self.url) else None
        try:
            return httpx.AsyncClient(headers=headers, timeout=None, transport=direct)  # `send` has the deadline
        except (ImportError, httpx.InvalidURL, ValueError) as error:
            # Not the error's own words: they may hold the proxy's password.
            what = "needs the package socksio" if isinstance(error, ImportError) else "is no address of a proxy"
            raise ConfigError(
                f"feedback.endpoint: the proxy of the environment (HTTP_PROXY, HTTPS_PROXY or ALL_PROXY) {what}; "
                "correct or unset it, or name the server's host in NO_PROXY"
            ) from None

    async def send(self, client: httpx.AsyncClient, body: Body) -> Response:
        """The whole response to a chat completion, within the deadline however slowly it trickles. Raises Busy."""
        return await self._send(client, "POST", self.url, body)

    async def models(self, client: httpx.AsyncClient) -> str:
        """The names of the first models that the server lists; "" where it lists none."""
        try:
            response = await self._send(client, "GET", f"{self._base}/models{self._query}", None)
            listed = json.loads(response.content)["data"] if response.status == 200 else []
            names = [str(model["id"]) for model in listed]
        except (Busy, ValueError, KeyError, TypeError, RecursionError):
            return ""
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return ", ".join(map(repr, map(self.shown, names[:_NAMED]))) + more

    async def _send(self, client: httpx.AsyncClient, method: str, url: str, body: Body | None) -> Response:
        content = bytearray()
        try:
            async with (
                asyncio.timeout(self._config.timeout),
                client.stream(method, url, json=body) as response,
            ):
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > LARGEST:
                        raise Busy(f"its answer is larger than {LARGEST >> 20} MiB")
                # Some servers repeat the key, and what they say is kept and shown.
                clean = bytes(content).replace(self.key.encode(), b"***") if self.key else bytes(content)
                return Response(response.status_code, response.headers, clean)
        except TimeoutError:
            raise Busy(f"no answer within {self._config.timeout:g} s (feedback.endpoint.timeout)") from None
        except httpx.DecodingError as error:
            raise Busy(f"its answer cannot be unpacked ({self.shown(str(error))})") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise Busy(f"cannot be reached ({type(error).__name__}: {self.shown(str(error))})") from None

    def shown(self, text: str) -> str:
        """A server's words in one short line, without the key."""
        return escaped(text.replace(self.key, "***") if self.key else text)[:_SHOWN]

    def first_words(self, response: Response) -> str:
        """The content type of a response and how it begins, in one short line."""
        begins = self.shown(response.content[:4000].decode("utf-8", "replace"))
        return f"{self.shown(response.kind)}: {begins}" if begins else f"{self.shown(response.kind)}, empty"


def escaped(text: str) -> str:
    """`text` in one line: white space as single blanks, everything else that does not print as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))


def _on_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
