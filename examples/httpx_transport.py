"""httpx on lowhaio: give LowhaioTransport to an httpx.AsyncClient, or to an SDK built on httpx.

    client = httpx.AsyncClient(transport=LowhaioTransport())
    sdk = openai.AsyncOpenAI(http_client=httpx.AsyncClient(transport=LowhaioTransport()))

Of httpx's time-outs, `read` is the socket_timeout of lowhaio, for connecting and sending too.
Other options: LowhaioTransport(functools.partial(Pool, get_ssl_context=...)).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, AsyncIterator, Callable, Dict, Optional, Tuple

import httpx
from lowhaio import (
    HttpConnectionClosedError, HttpConnectionError, HttpError, HttpHeaderTooLong,
    HttpInvalidRequest, HttpInvalidResponse, Pool,
)

if TYPE_CHECKING:
    from lowhaio import Close, Request, ResponseBody

NO_TIMEOUT = 1e6
MAX_POOLS = 8  # One for each time-out


class LowhaioTransport(httpx.AsyncBaseTransport):
    def __init__(self, new_pool: Callable[..., Tuple[Request, Close]] = Pool) -> None:
        self._new_pool = new_pool
        self._pools: Dict[float, Tuple[Request, Close]] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url, seconds = request.url, request.extensions.get('timeout', {}).get('read') or NO_TIMEOUT
        if seconds not in self._pools:
            if len(self._pools) == MAX_POOLS:
                _, close = self._pools.pop(next(iter(self._pools)))
                await close()  # What is in flight goes on to its end
            self._pools[seconds] = self._new_pool(socket_timeout=seconds)
        exchange = _Exchange(request)
        try:
            code, fields, exchange.body = await self._pools[seconds][0](
                request.method.encode(),
                f'{url.scheme}://{url.netloc.decode()}{url.raw_path.decode()}',
                headers=request.headers.raw, body=exchange.chunks)
        except HttpError as exception:
            raise exchange.error(exception) from exception
        return httpx.Response(int(code), headers=fields, stream=exchange)

    async def aclose(self) -> None:
        while self._pools:
            _, (_, close) = self._pools.popitem()
            await close()


class _Exchange(httpx.AsyncByteStream):
    """The body of a request for lowhaio, and then that of its response for httpx."""

    def __init__(self, request: httpx.Request) -> None:
        self.request = request
        self.body: Optional[ResponseBody] = None
        self.is_sent = False
        self.failure: Optional[Exception] = None  # Of the body of the request

    async def chunks(self) -> AsyncIterator[bytes]:
        is_chunked = 'transfer-encoding' in self.request.headers
        assert isinstance(self.request.stream, httpx.AsyncByteStream)
        try:
            async for chunk in self.request.stream:
                if chunk:
                    yield b'%x\r\n%b\r\n' % (len(chunk), chunk) if is_chunked else chunk
        except Exception as exception:
            self.failure = exception
            raise
        self.is_sent = True
        if is_chunked:
            yield b'0\r\n\r\n'

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        assert self.body is not None
        try:
            return await self.body.__anext__()
        except HttpError as exception:
            raise self.error(exception) from exception

    async def aclose(self) -> None:
        if self.body is not None:
            await self.body.aclose()

    def error(self, exception: HttpError) -> Exception:
        """Return what httpx raises in such a case."""
        text = str(exception)
        if self.failure is not None:
            return self.failure
        if isinstance(exception, HttpInvalidRequest):
            kind = httpx.LocalProtocolError if self.request.url.scheme in ('http', 'https') \
                else httpx.UnsupportedProtocol
            return kind(text, request=self.request)
        is_late = isinstance(exception.__cause__, asyncio.TimeoutError)
        if isinstance(exception, HttpConnectionError):
            return (httpx.ConnectTimeout if is_late else httpx.ConnectError)(
                text, request=self.request)
        if isinstance(exception, (HttpInvalidResponse, HttpHeaderTooLong)) or (
                isinstance(exception, HttpConnectionClosedError) and not exception.__cause__):
            return httpx.RemoteProtocolError(text, request=self.request)
        if self.is_sent:
            return (httpx.ReadTimeout if is_late else httpx.ReadError)(text, request=self.request)
        return (httpx.WriteTimeout if is_late else httpx.WriteError)(text, request=self.request)
