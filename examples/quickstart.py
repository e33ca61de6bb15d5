"""Send a file to a server and get it back, or fetch a URL, with nothing ever whole in memory.

python examples/quickstart.py               a server is started for it
python examples/quickstart.py URL [FILE]    without FILE, to standard output
"""

import asyncio
import contextlib
import filecmp
import os
import sys
import tempfile
import time
from typing import Any, AsyncIterator, Dict

from lowhaio import HttpError, Pool


async def fetch(url: str, path: str = '') -> None:
    request, close = Pool()
    try:
        await transfer(request, b'GET', url, path or sys.stdout.fileno())
    finally:
        await close()


async def round_trip(path: str) -> None:
    with open(path, 'wb') as file:
        size = sum(file.write(b'%0999d\n' % number) for number in range(32000))
    request, close = Pool()
    async with await asyncio.start_server(serve, '127.0.0.1', 0) as server:
        url = 'http://127.0.0.1:%d/' % server.sockets[0].getsockname()[1]
        try:
            put = await transfer(
                request, b'PUT', url, os.devnull, size,
                headers=((b'content-length', b'%d' % size),), body=contents, body_args=(path,))
            get = await transfer(request, b'GET', url, path + '.back')
        finally:
            await close()
            # That ends the tasks of the server
            await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})

    if put[b'client-port'] != get[b'client-port']:
        raise RuntimeError('the second request did not use the connection of the first')
    if not filecmp.cmp(path, path + '.back', shallow=False):
        raise RuntimeError('what came back is not what was sent')
    print('The same came back, over the same connection')


async def contents(path: str) -> AsyncIterator[bytes]:
    with open(path, 'rb') as file:
        while chunk := file.read(65536):
            yield chunk


async def transfer(
        request: Any, method: bytes, url: str, path: Any, size: int = 0, **options: Any,
) -> Dict[bytes, bytes]:
    """Make a request, write its response to a file, and report to standard error."""
    started = time.perf_counter()
    code, headers, body = await request(method, url, **options)
    print('%s %s' % (method.decode(), code.decode()), *headers, sep='\n    ', file=sys.stderr)
    if code != b'200':
        raise RuntimeError('the server answered %s' % code.decode())
    with open(path, 'wb', closefd=isinstance(path, str)) as file:
        async for chunk in body:
            size += file.write(chunk)
            if sys.stderr.isatty() and size % 1000000 < len(chunk):
                print('    %d MB' % (size // 1000000), end='\r', file=sys.stderr, flush=True)
    speed = size / 1000000 / (time.perf_counter() - started)
    print('    %d bytes, %.1f MB/s' % (size, speed), file=sys.stderr)
    return dict(headers)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Keep what is PUT on a connection, and send it back for a GET."""
    head = b'HTTP/1.1 200 OK\r\nclient-port: %d\r\ncontent-length: %%d\r\n\r\n' \
        % writer.get_extra_info('peername')[1]
    with contextlib.suppress(EOFError, ConnectionError), contextlib.closing(writer), \
            tempfile.TemporaryFile() as file:
        while True:
            request = await reader.readuntil(b'\r\n\r\n')
            if request.startswith(b'PUT '):
                length = int(request.lower().partition(b'\r\ncontent-length:')[2].split()[0])
                for left in range(length, 0, -65536):
                    file.write(await reader.readexactly(min(left, 65536)))
                writer.write(head % 0)
            else:
                file.flush()
                writer.write(head % file.tell())
                await asyncio.get_running_loop().sendfile(writer.transport, file)


if __name__ == '__main__':
    try:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(fetch(*sys.argv[1:]) if sys.argv[1:] else round_trip(folder + '/file'))
    except (HttpError, OSError, RuntimeError) as exception:
        sys.exit('%s: %s' % (type(exception).__name__, exception))
