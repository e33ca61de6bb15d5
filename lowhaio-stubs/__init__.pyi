"""The types of lowhaio, and the docstrings of its public names, for type checkers and editors.

Request, Response, ResponseBody, Close, Params, Headers and Options are names for types alone. They
cost nothing at run time, for they don't exist there: import them under `typing.TYPE_CHECKING`.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import (
    AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping,
)
from contextlib import AbstractContextManager
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Protocol, TypedDict, type_check_only

from typing_extensions import TypeAlias

__all__ = (
    'HttpConnectionClosedError',
    'HttpConnectionError',
    'HttpDataError',
    'HttpDnsError',
    'HttpError',
    'HttpHeaderTooLong',
    'HttpInvalidRequest',
    'HttpInvalidResponse',
    'HttpLoggerAdapter',
    'HttpTlsError',
    'Pool',
    'buffered',
    'empty_async_iterator',
    'streamed',
    'timeout',
)

# ---- Exceptions ----

class HttpError(Exception):
    """A request has failed, or the body of its response.

    If another exception is the reason, it is the `__cause__`, such as `asyncio.TimeoutError` after
    `socket_timeout`.
    """

class HttpConnectionError(HttpError):
    """Nothing of this request was sent. It is safe to try again."""

class HttpDnsError(HttpConnectionError):
    """The name of the host could not be resolved to an address."""

class HttpTlsError(HttpConnectionError):
    """The TLS handshake failed, or the certificate of the server is not valid for the host."""

class HttpInvalidRequest(HttpConnectionError):
    """An argument of the request is wrong, or its body is not what its headers say."""

class HttpDataError(HttpError):
    """Some of this request was sent, or may have been. The server may have acted on it."""

class HttpConnectionClosedError(HttpDataError):
    """The connection ended before the response did."""

class HttpHeaderTooLong(HttpDataError):
    """A head, a chunk line or the trailers of a response are longer than `max_header_length`."""

class HttpInvalidResponse(HttpDataError):
    """The server broke the syntax or the framing of HTTP/1.1 (RFC 9112)."""

# ---- Logging ----

class HttpLoggerAdapter(logging.LoggerAdapter[Any]):
    """Puts `[http]` before each message, or `[http:METHOD,URL]` within a request."""

_Adapter: TypeAlias = logging.Logger | logging.LoggerAdapter[Any]
_GetAdapter: TypeAlias = Callable[[dict[str, Any]], _Adapter]
_GetResolverAdapter: TypeAlias = Callable[[dict[str, Any]], _GetAdapter]

# ---- Requests and responses ----

def empty_async_iterator() -> AsyncIterator[bytes]:
    """Yield nothing: the `body` of a request that has none."""

_Chunk: TypeAlias = bytes | bytearray | memoryview
_Body: TypeAlias = Callable[..., AsyncIterable[_Chunk]]
_BodyKwargs: TypeAlias = Mapping[str, Any] | Iterable[tuple[str, Any]]

Params: TypeAlias = Iterable[tuple[object, object]] | dict[Any, Any]
Headers: TypeAlias = Iterable[tuple[bytes, bytes]]

@type_check_only
class ResponseBody(AsyncIterator[bytes], Protocol):
    """The body of a response: an asynchronous iterator of bytes, in chunks of any size."""

    def aclose(self) -> Coroutine[Any, Any, None]:
        """Close the connection, unless the whole body has arrived.

        What is unread is lost. What is unsent of the request is not sent.
        """

Response: TypeAlias = tuple[bytes, tuple[tuple[bytes, bytes], ...], ResponseBody]

@type_check_only
class Options(TypedDict, total=False):
    """The arguments of a request that most layers pass on: `**options: Unpack[Options]`."""

    body: _Body
    body_args: Iterable[Any]
    body_kwargs: _BodyKwargs
    get_logger_adapter: _GetAdapter
    get_resolver_logger_adapter: _GetResolverAdapter

@type_check_only
class Request(Protocol):
    """The type of `request`, and of each layer that wraps it."""

    def __call__(
        self,
        method: bytes,
        url: str,
        params: Params = (),
        headers: Headers = (),
        *,
        body: _Body = empty_async_iterator,
        body_args: Iterable[Any] = (),
        body_kwargs: _BodyKwargs = (),
        get_logger_adapter: _GetAdapter = ...,
        get_resolver_logger_adapter: _GetResolverAdapter = ...,
    ) -> Coroutine[Any, Any, Response]:
        """Send a request, and return (code, headers, body) once the head of the response is there.

        method: bytes, such as b'GET'
        url: str, http or https
        params: pairs to append to the query of the URL; a value may be a sequence
        headers: pairs of bytes; for a body, give content-length or transfer-encoding
        body(*body_args, **dict(body_kwargs)): returns an asynchronous iterable of bytes

        code is three digits as bytes. headers is a tuple of pairs of bytes, with names in lower
        case. body is an asynchronous iterator of bytes, with `aclose()`.

        Raises HttpConnectionError if nothing was sent: it is safe to try again. Raises
        HttpDataError otherwise (RFC 9110 9.2.2). Reading the body can raise HttpDataError too.
        """

@type_check_only
class Close(Protocol):
    """The type of `close`."""

    def __call__(
        self,
        get_logger_adapter: _GetAdapter = ...,
        get_resolver_logger_adapter: _GetResolverAdapter = ...,
    ) -> Coroutine[Any, Any, None]:
        """Close the idle connections now, and each other connection after its response.

        A new request raises HttpConnectionError from now on.
        """

# ---- Hooks of Pool ----

@type_check_only
class _ResolveHost(Protocol):
    def __call__(
        self,
        fqdn: str,
        qtype: Any,
        /,
        *,
        get_logger_adapter: _GetAdapter,
    ) -> Awaitable[Iterable[IPv4Address | IPv6Address]]: ...

@type_check_only
class _ClearDnsCache(Protocol):
    def __call__(self, *, get_logger_adapter: _GetAdapter) -> Awaitable[None]: ...

@type_check_only
class _GetDnsResolver(Protocol):
    def __call__(
        self,
        *,
        get_logger_adapter: _GetAdapter,
    ) -> tuple[_ResolveHost, _ClearDnsCache]: ...

# ---- Functions ----

def Pool(
    get_dns_resolver: _GetDnsResolver = ...,
    # Called with socket.AF_INET6 for an IPv6 address, and with nothing for an IPv4 one.
    get_sock: Callable[[], socket.socket] = ...,
    get_ssl_context: Callable[[], ssl.SSLContext] = ssl.create_default_context,
    http_version: bytes = b'HTTP/1.1',
    keep_alive_timeout: float = 15,
    recv_bufsize: int = 65536,
    max_header_length: int = 16384,
    socket_timeout: float = 10,
    get_logger_adapter: _GetAdapter = ...,
    get_resolver_logger_adapter: _GetResolverAdapter = ...,
) -> tuple[Request, Close]:
    """Return (request, close), which share a pool of connections on the running loop.

    get_dns_resolver(get_logger_adapter=...): returns (resolve, clear_cache), as aiodnsresolver's
        Resolver does
    get_sock(): returns a TCP socket; called with socket.AF_INET6 for an IPv6 address
    get_ssl_context(): returns the ssl.SSLContext for https; called at the first https request
    http_version: b'HTTP/1.1' or b'HTTP/1.0'
    keep_alive_timeout: seconds that a connection may be idle; 0 for no reuse
    recv_bufsize: bytes to receive at once, at the most
    max_header_length: bytes of a response head, chunk line or trailer section, at the most
    socket_timeout: seconds that each wait on the network may take
    get_logger_adapter(extra): returns an adapter that logs
    get_resolver_logger_adapter(http_extra): returns such a function for the resolver

    Raises ValueError if http_version or a number makes no sense, TypeError if a hook is not a
    function, RuntimeError if no loop runs, and NotImplementedError if it can't watch sockets.
    """

def streamed(data: _Chunk) -> Callable[[], AsyncIterator[bytes]]:
    """Return a function for the argument `body` of a request. The request then sends `data`."""

async def buffered(data: AsyncIterable[_Chunk]) -> bytes:
    """Return all the bytes of a response body, or of any asynchronous iterable of bytes."""

def timeout(
    loop: asyncio.AbstractEventLoop,
    seconds: float,
) -> AbstractContextManager[Callable[[], None]]:
    """Raise `asyncio.TimeoutError` in the current task once `seconds` have passed in the block.

    Yields a function without arguments that starts the time again. If the task is cancelled from
    outside, that stays an `asyncio.CancelledError`. Raises RuntimeError outside of a task.
    """
