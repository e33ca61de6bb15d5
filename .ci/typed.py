"""What lowhaio's users write, for type checkers alone: all public names, used as in README.md.

mypy --strict and pyright check it against the installed stubs. Each `type: ignore` marks a mistake
that they must find: both report one that isn't needed.
"""
# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import ssl
from typing import (
    TYPE_CHECKING, Any, AsyncGenerator, AsyncIterator, Callable, Dict, Iterable, List,
    Protocol, Tuple, Type, Union,
)

from lowhaio import (
    HttpConnectionClosedError, HttpConnectionError, HttpDataError, HttpDnsError, HttpError,
    HttpHeaderTooLong, HttpInvalidRequest, HttpInvalidResponse, HttpLoggerAdapter, HttpTlsError,
    Pool, buffered, empty_async_iterator, streamed, timeout,
)

if TYPE_CHECKING:
    from lowhaio import Close, Headers, Options, Params, Request, Response, ResponseBody
    from typing_extensions import Unpack

URL = 'https://example.com/'
Adapter = HttpLoggerAdapter
Chunk = Union[bytes, bytearray, memoryview]
GetAdapter = Callable[[Dict[str, Any]], Adapter]


# ---- Hooks ----


class Resolve(Protocol):
    async def __call__(
            self, host: str, record_type: Any, get_logger_adapter: Any,
    ) -> List[ipaddress.IPv4Address]: ...


class ClearCache(Protocol):
    async def __call__(self, get_logger_adapter: Any) -> None: ...


def get_dns_resolver(get_logger_adapter: Any) -> Tuple[Resolve, ClearCache]:
    async def resolve(
            host: str, record_type: Any, get_logger_adapter: Any,
    ) -> List[ipaddress.IPv4Address]:
        return [ipaddress.IPv4Address('127.0.0.1')]

    async def clear_cache(get_logger_adapter: Any) -> None:
        pass

    return resolve, clear_cache


def get_sock(family: int = socket.AF_INET) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock


def get_ssl_context() -> ssl.SSLContext:
    return ssl.create_default_context(cafile='ca.pem')


def get_logger_adapter(extra: Dict[str, Any]) -> Adapter:
    return HttpLoggerAdapter(logging.getLogger('app.http'), {**extra, 'job': 'job 7'})


def get_resolver_logger_adapter(http_extra: Dict[str, Any]) -> GetAdapter:
    def get_adapter(extra: Dict[str, Any]) -> Adapter:
        return HttpLoggerAdapter(get_logger_adapter(http_extra), extra)

    return get_adapter


# ---- Calls ----


async def use() -> None:
    request, close = Pool(
        get_dns_resolver=get_dns_resolver, get_sock=get_sock, get_ssl_context=get_ssl_context,
        http_version=b'HTTP/1.1', keep_alive_timeout=0.5, recv_bufsize=65536,
        max_header_length=16384, socket_timeout=10,
        get_logger_adapter=get_logger_adapter,
        get_resolver_logger_adapter=get_resolver_logger_adapter)

    code, headers, body = await request(b'GET', URL)
    digits: bytes = code
    by_name: Dict[bytes, bytes] = dict(headers)
    async for chunk in body:
        data: bytes = chunk
        print(digits, by_name, data)
    await body.aclose()
    size = int(headers[0][1]) + len(await buffered(body))

    with timeout(asyncio.get_running_loop(), 60) as restart:
        await request(
            method=b'POST', url=URL, params=(('q', 'a b'), ('tag', ('a', 'b')), (1, None)),
            headers=[(b'content-length', b'%d' % size)], body=contents, body_args=('file',),
            body_kwargs=(('chunk_size', 1),), get_logger_adapter=get_logger_adapter,
            get_resolver_logger_adapter=get_resolver_logger_adapter)
        restart()
    await request(b'PUT', URL, params={'a': 'b'}, body=contents, body_kwargs={'path': 'file'})
    await request(b'PUT', URL, body=streamed(bytearray(b'data')))
    await request(b'GET', URL, headers=(), body=empty_async_iterator)
    await close()
    await close(
        get_logger_adapter=get_logger_adapter,
        get_resolver_logger_adapter=get_resolver_logger_adapter)


async def contents(path: str, chunk_size: int = 65536) -> AsyncIterator[memoryview]:
    yield memoryview(path.encode() * chunk_size)


async def catch() -> None:
    request, _ = Pool()
    try:
        await request(b'GET', URL)
    except (HttpDnsError, HttpTlsError, HttpInvalidRequest) as exception:
        not_sent: HttpConnectionError = exception
        raise not_sent from None
    except (HttpConnectionClosedError, HttpHeaderTooLong, HttpInvalidResponse) as exception:
        sent: HttpDataError = exception
        raise sent from None
    except HttpError as exception:
        print(exception.__cause__)


# ---- Layers ----


def with_user_agent(request: Request) -> Request:
    async def _request(
            method: bytes, url: str, params: Params = (), headers: Headers = (),
            **options: Unpack[Options],
    ) -> Response:
        headers = (*headers, (b'user-agent', b'example/1.0'))
        return await request(method, url, params, headers, **options)

    return _request


def doubled(request: Request) -> Request:
    async def _request(
            method: bytes, url: str, params: Params = (), headers: Headers = (), **options: Any,
    ) -> Response:
        code, fields, body = await request(method, url, params=params, headers=headers, **options)
        return code, fields, twice(body)

    return _request


async def twice(body: ResponseBody) -> AsyncGenerator[bytes, None]:
    try:
        async for chunk in body:
            yield chunk + chunk
    finally:
        await body.aclose()


def repeated(request: Request) -> Request:
    async def _request(
            method: bytes, url: str, params: Params = (), headers: Headers = (),
            **options: Unpack[Options],
    ) -> Response:
        body = options.get('body', empty_async_iterator)

        async def body_twice(*args: Any, **kwargs: Any) -> AsyncIterator[Chunk]:
            for _ in range(2):
                async for chunk in body(*args, **kwargs):
                    yield chunk

        options['body'] = body_twice
        return await request(method, url, params, headers, **options)

    return _request


async def use_layers() -> None:
    request, close = Pool()
    request = repeated(doubled(with_user_agent(request)))
    _, _, body = await request(b'GET', URL, body=streamed(b'data'))
    print(await buffered(body))
    await body.aclose()
    await close_all([close])


async def close_all(closes: Iterable[Close]) -> None:
    for close in closes:
        await close()


def no_layer(request: Request) -> Request:
    async def no_headers(method: bytes, url: str, **options: Unpack[Options]) -> Response:
        return await request(method, url, **options)

    async def no_body(
            method: bytes, url: str, params: Params = (), headers: Headers = (),
    ) -> Response:
        return await request(method, url, params, headers)

    async def no_response(
            method: bytes, url: str, params: Params = (), headers: Headers = (), **options: Any,
    ) -> bytes:
        return await request(method, url, params, headers, **options)  # type: ignore[return-value]

    print(with_user_agent(no_headers))  # type: ignore[arg-type]
    print(with_user_agent(no_body))  # type: ignore[arg-type]
    return no_response  # type: ignore[return-value]


# ---- Mistakes ----


async def mistakes() -> None:
    request, close = Pool()
    await request('GET', URL)  # type: ignore[arg-type]
    await request(b'GET', URL.encode())  # type: ignore[arg-type]
    await request(b'GET')  # type: ignore[call-arg]
    await request(b'GET', URL, header=())  # type: ignore[call-arg]
    await request(b'GET', URL, params='a=b')  # type: ignore[arg-type]
    await request(b'GET', URL, headers={b'a': b'b'})  # type: ignore[dict-item]
    await request(b'GET', URL, headers=(('a', 'b'),))  # type: ignore[arg-type]
    await request(b'GET', URL, headers=((b'a', 1),))  # type: ignore[arg-type]
    await request(b'PUT', URL, body=b'data')  # type: ignore[arg-type]
    await request(b'PUT', URL, body=streamed(b'data')())  # type: ignore[arg-type]
    await request(b'PUT', URL, body=lambda: [b'data'])  # type: ignore[arg-type, return-value]
    await request(b'PUT', URL, body=strings)  # type: ignore[arg-type]
    await request(b'PUT', URL, body=contents, body_args=1)  # type: ignore[arg-type]
    await request(b'PUT', URL, body=contents, body_kwargs=('path',))  # type: ignore[arg-type]
    await request(b'GET', URL, get_logger_adapter=logging.getLogger)  # type: ignore[arg-type]
    request(b'GET', URL)  # type: ignore[unused-coroutine]
    code, _, body = await request(b'GET', URL)
    print(code == '200')  # type: ignore[comparison-overlap]
    print(await body.read())  # type: ignore[attr-defined]
    print(body.decode())  # type: ignore[attr-defined]
    print(body + b'')  # type: ignore[operator]
    await close(request)  # type: ignore[arg-type]
    close()  # type: ignore[unused-coroutine]

    streamed('data')  # type: ignore[arg-type]
    await buffered(b'data')  # type: ignore[arg-type]
    await buffered(contents)  # type: ignore[arg-type]
    timeout(60)  # type: ignore[call-arg, arg-type]
    with timeout(asyncio.get_running_loop(), 60) as restart:
        restart(60)  # type: ignore[call-arg]
    kind: Type[HttpDataError] = HttpConnectionError  # type: ignore[assignment]
    print(kind)


async def strings() -> AsyncIterator[str]:
    yield 'data'


def mistakes_in_hooks() -> None:
    Pool(10)  # type: ignore[arg-type]
    Pool(timeout=10)  # type: ignore[call-arg]
    Pool(http_version='HTTP/1.1')  # type: ignore[arg-type]
    Pool(recv_bufsize=0.5)  # type: ignore[arg-type]
    Pool(socket_timeout=None)  # type: ignore[arg-type]
    Pool(get_dns_resolver=lambda: get_dns_resolver(None))  # type: ignore[arg-type]
    Pool(get_dns_resolver=no_pair)  # type: ignore[arg-type]
    Pool(get_sock=socket_of)  # type: ignore[arg-type]
    Pool(get_sock=lambda: 7)  # type: ignore[arg-type, return-value]
    Pool(get_ssl_context=get_ssl_context())  # type: ignore[arg-type]
    Pool(get_ssl_context=lambda: None)  # type: ignore[arg-type, return-value]
    Pool(get_logger_adapter=get_resolver_logger_adapter)  # type: ignore[arg-type]
    Pool(get_resolver_logger_adapter=get_logger_adapter)  # type: ignore[arg-type]
    request = Pool()
    request(b'GET', URL)  # type: ignore[operator]


async def no_pair(get_logger_adapter: Any) -> None:
    pass


def socket_of(family: int) -> socket.socket:
    return socket.socket(family)
