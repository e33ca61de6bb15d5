"""A reverse proxy: what it is asked for it gets from another server, streamed both ways.

    python examples/proxy.py http://localhost:9000 --port 8080

A response that comes before the whole request was sent is passed on. If the client goes away, the
request ends; if the other server does, so does the connection to the client. aiohttp serves.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from typing import TYPE_CHECKING, AsyncIterator, Iterable, List, Tuple
from urllib.parse import urlsplit

from aiohttp import web
from lowhaio import HttpError, Pool
from multidict import CIMultiDict

if TYPE_CHECKING:
    from lowhaio import Request

# RFC 9110 7.6.1; expect is aiohttp's to answer
NOT_PASSED_ON = {b'connection', b'expect', b'host', b'keep-alive', b'proxy-connection', b'te',
                 b'trailer', b'transfer-encoding', b'upgrade'}


def passed_on(fields: Iterable[Tuple[bytes, bytes]]) -> List[Tuple[bytes, bytes]]:
    fields = [(name.lower(), value) for name, value in fields]
    listed = {token.strip().lower() for name, value in fields if name == b'connection'
              for token in value.split(b',')}
    return [field for field in fields if field[0] not in NOT_PASSED_ON | listed]


async def contents(incoming: web.BaseRequest, is_chunked: bool) -> AsyncIterator[bytes]:
    async for chunk in incoming.content.iter_any():
        yield b'%x\r\n%b\r\n' % (len(chunk), chunk) if is_chunked else chunk
    if is_chunked:
        yield b'0\r\n\r\n'


async def respond(
        request: Request, upstream: str, incoming: web.BaseRequest) -> web.StreamResponse:
    is_chunked = 'transfer-encoding' in incoming.headers
    headers = [*passed_on(incoming.raw_headers), (b'host', urlsplit(upstream).netloc.encode()),
               (b'x-forwarded-for', (incoming.remote or 'unknown').encode())]
    if is_chunked:
        headers.append((b'transfer-encoding', b'chunked'))
    try:
        code, fields, body = await request(
            incoming.method.encode(), upstream + incoming.raw_path, headers=headers,
            body=contents, body_args=(incoming, is_chunked))
    except HttpError as exception:
        is_late = isinstance(exception.__cause__, asyncio.TimeoutError)
        return web.Response(status=504 if is_late else 502, text=f'{exception}\n')

    outgoing = web.StreamResponse(status=int(code), headers=CIMultiDict(
        (name.decode(), value.decode(errors='replace')) for name, value in passed_on(fields)))
    try:
        await outgoing.prepare(incoming)
        async for chunk in body:
            await outgoing.write(chunk)
        await outgoing.write_eof()
    except HttpError as exception:
        print(f'{incoming.raw_path}: {exception}', file=sys.stderr)
        if incoming.transport is not None:
            incoming.transport.abort()  # So that the response isn't taken for a whole one
    finally:
        await body.aclose()
    return outgoing


async def serve(upstream: str, port: int) -> None:
    async def handle(incoming: web.BaseRequest) -> web.StreamResponse:
        return await respond(request, upstream, incoming)

    request, close = Pool()
    stopped = asyncio.Event()
    for number in signal.SIGINT, signal.SIGTERM:  # Not KeyboardInterrupt, which may come anywhere
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    server = web.Server(handle, handler_cancellation=True, auto_decompress=False)
    runner = web.ServerRunner(server, shutdown_timeout=5)
    try:
        await runner.setup()
        site = web.TCPSite(runner, 'localhost', port)
        await site.start()
        print(f'{site.name} to {upstream}', flush=True)
        await stopped.wait()
    finally:
        await runner.cleanup()
        await close()


def main() -> int:
    parser = argparse.ArgumentParser(description='Pass requests on to another server.')
    parser.add_argument('upstream', help='such as http://localhost:9000')
    parser.add_argument('--port', type=int, default=8080)
    args = parser.parse_args()
    try:
        asyncio.run(serve(args.upstream.rstrip('/'), args.port))
    except OSError as exception:
        parser.error(str(exception))
    return 0


if __name__ == '__main__':
    sys.exit(main())
