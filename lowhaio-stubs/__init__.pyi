import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Protocol, type_check_only

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

_Chunk: TypeAlias = bytes | bytearray | memoryview
_Fields: TypeAlias = tuple[tuple[bytes, bytes], ...]
_Adapter: TypeAlias = logging.Logger | logging.LoggerAdapter[Any]
_GetAdapter: TypeAlias = Callable[[dict[str, Any]], _Adapter]
_GetResolverAdapter: TypeAlias = Callable[[dict[str, Any]], _GetAdapter]

class HttpError(Exception): ...
class HttpConnectionError(HttpError): ...
class HttpDnsError(HttpConnectionError): ...
class HttpTlsError(HttpConnectionError): ...
class HttpInvalidRequest(HttpConnectionError): ...
class HttpDataError(HttpError): ...
class HttpConnectionClosedError(HttpDataError): ...
class HttpHeaderTooLong(HttpDataError): ...
class HttpInvalidResponse(HttpDataError): ...

class HttpLoggerAdapter(logging.LoggerAdapter[Any]): ...

@type_check_only
class _Body(AsyncIterator[bytes], Protocol):
    async def aclose(self) -> None: ...

@type_check_only
class _Request(Protocol):
    async def __call__(
        self,
        method: bytes,
        url: str,
        params: Iterable[tuple[object, object]] | dict[Any, Any] = ...,
        headers: Iterable[tuple[bytes, bytes]] = ...,
        body: Callable[..., AsyncIterable[_Chunk]] = ...,
        body_args: Iterable[Any] = ...,
        body_kwargs: Mapping[str, Any] | Iterable[tuple[str, Any]] = ...,
        get_logger_adapter: _GetAdapter = ...,
        get_resolver_logger_adapter: _GetResolverAdapter = ...,
    ) -> tuple[bytes, _Fields, _Body]: ...

@type_check_only
class _Close(Protocol):
    async def __call__(
        self,
        get_logger_adapter: _GetAdapter = ...,
        get_resolver_logger_adapter: _GetResolverAdapter = ...,
    ) -> None: ...

@type_check_only
class _ResolveHost(Protocol):
    async def __call__(
        self,
        fqdn: str,
        qtype: Any,
        /,
        *,
        get_logger_adapter: _GetAdapter,
    ) -> Iterable[IPv4Address | IPv6Address]: ...

@type_check_only
class _ClearDnsCache(Protocol):
    async def __call__(self, *, get_logger_adapter: _GetAdapter) -> None: ...

@type_check_only
class _GetDnsResolver(Protocol):
    def __call__(
        self,
        *,
        get_logger_adapter: _GetAdapter,
    ) -> tuple[_ResolveHost, _ClearDnsCache]: ...

def Pool(
    get_dns_resolver: _GetDnsResolver = ...,
    # Called with socket.AF_INET6 for an IPv6 address, and with nothing for an IPv4 one.
    get_sock: Callable[[], socket.socket] = ...,
    get_ssl_context: Callable[[], ssl.SSLContext] = ...,
    http_version: bytes = b'HTTP/1.1',
    keep_alive_timeout: float = 15,
    recv_bufsize: int = ...,
    max_header_length: int = 16384,
    socket_timeout: float = 10,
    get_logger_adapter: _GetAdapter = ...,
    get_resolver_logger_adapter: _GetResolverAdapter = ...,
) -> tuple[_Request, _Close]: ...
def streamed(data: _Chunk) -> Callable[[], AsyncIterator[bytes]]: ...
async def buffered(data: AsyncIterable[_Chunk]) -> bytes: ...
def empty_async_iterator() -> AsyncIterator[bytes]: ...
def timeout(
    loop: asyncio.AbstractEventLoop,
    seconds: float,
) -> AbstractContextManager[Callable[[], None]]: ...
