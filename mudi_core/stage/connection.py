"""A connection to a language model: directly, or through the proxy of the environment when the proxy cannot read it."""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import urllib.parse
import urllib.request

from ..types import MudiError

_CONNECTING = 10.0
"""Seconds to wait for a connection."""
_PROXY = "http://proxy.example:8080"


class BadProxy(MudiError):
    """A proxy in the environment that is not the address of one."""


class _Secure(http.client.HTTPConnection):
    """A connection over https that can be shut down also while the two sides agree on their keys."""

    default_port = http.client.HTTPS_PORT

    def __init__(self, host: str, port: int | None, seconds: float, server: str) -> None:
        super().__init__(host, port, timeout=seconds)
        self.server = server
        """The name that the certificate must have; ``host`` may be a proxy."""
        self.wire: socket.socket | None = None

    def connect(self) -> None:
        super().connect()
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        self.wire = self.sock.dup()  # `wrap_socket` takes the socket away until it is done
        self.sock = context.wrap_socket(self.sock, server_hostname=self.server)

    def close(self) -> None:
        super().close()
        if self.wire is not None:
            self.wire.close()


def connection_to(address: str, timeout: float) -> http.client.HTTPConnection:
    """Return a connection, not yet open, to the host of an address.

    Only https uses the proxy of the environment, through a tunnel that the proxy cannot read. Raise `BadProxy`.
    """
    parts = urllib.parse.urlsplit(address)
    host, seconds = parts.hostname or "", min(timeout, _CONNECTING)
    if parts.scheme == "http":
        return http.client.HTTPConnection(host, parts.port, timeout=seconds)
    named = urllib.request.getproxies().get("https", "")
    if not named or urllib.request.proxy_bypass(host):
        return _Secure(host, parts.port, seconds, host)
    try:
        proxy = urllib.parse.urlsplit(named if "//" in named else f"//{named}")
        if proxy.scheme not in ("", "http", "https") or not proxy.hostname:
            raise ValueError(proxy.scheme)
        through = _Secure(proxy.hostname, proxy.port or http.client.HTTP_PORT, seconds, host)
    except (ValueError, http.client.InvalidURL):
        raise BadProxy(  # what is set may contain a password
            f"HTTPS_PROXY is not the address of a proxy for http. It should look like {_PROXY}. Set it again, or set "
            "NO_PROXY to the name of the language model's host."
        ) from None
    headers = {}
    if proxy.username:
        login = f"{urllib.parse.unquote(proxy.username)}:{urllib.parse.unquote(proxy.password or '')}"
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    through.set_tunnel(host, parts.port or http.client.HTTPS_PORT, headers)
    return through
