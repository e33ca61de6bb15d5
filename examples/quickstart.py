"""Send a file to a server and get it back, with no more than a piece of it in memory.

    python examples/quickstart.py [--megabytes 64]

The server is started for it: see quickstart_server.py.
"""

from __future__ import annotations

import argparse
import asyncio
import filecmp
import os
import sys
import tempfile
import time
from typing import TYPE_CHECKING, AsyncIterator, Callable

from lowhaio import HttpError, Pool, buffered
from quickstart_server import running_server

if TYPE_CHECKING:
    from lowhaio import Request


async def upload(request: Request, url: str, path: str) -> None:
    show = progress('sent', os.path.getsize(path))

    async def contents() -> AsyncIterator[bytes]:
        with open(path, 'rb') as file:
            while chunk := file.read(65536):
                yield chunk
                show(len(chunk))

    length = (b'content-length', b'%d' % os.path.getsize(path))
    code, _, body = await request(b'PUT', url, headers=(length,), body=contents)
    text = await buffered(body)
    if code != b'201':
        raise RuntimeError(f'PUT {url}: {code.decode()}, {text!r}')


async def download(request: Request, url: str, path: str) -> None:
    code, headers, body = await request(b'GET', url)
    if code != b'200':
        await body.aclose()
        raise RuntimeError(f'GET {url}: {code.decode()}')
    show = progress('received', int(dict(headers)[b'content-length']))
    with open(path, 'wb') as file:
        async for chunk in body:
            file.write(chunk)
            show(len(chunk))


def progress(verb: str, total: int) -> Callable[[int], None]:
    """Return a function that is told how many bytes more there are, and shows it."""
    done, started = 0, time.perf_counter()

    def show(size: int) -> None:
        nonlocal done
        done += size
        if done == total or sys.stdout.isatty():
            speed = done / 1e6 / (time.perf_counter() - started)
            print(f'{100 * done // total} % of {total} bytes {verb}, {speed:.0f} MB/s',
                  end='\n' if done == total else '\r')

    return show


async def round_trip(sent: str, back: str) -> None:
    async with running_server() as url:
        request, close = Pool()
        try:
            await upload(request, url, sent)
            await download(request, url, back)
        finally:
            await close()
    if not filecmp.cmp(sent, back, shallow=False):
        raise RuntimeError('what came back is not what was sent')
    print('The same came back')


def main() -> int:
    parser = argparse.ArgumentParser(description='Send a file to a server and get it back.')
    parser.add_argument('--megabytes', type=int, default=64, help='size of the file')
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            sent, back = os.path.join(folder, 'sent'), os.path.join(folder, 'back')
            with open(sent, 'wb') as file:
                file.writelines(os.urandom(1000000) for _ in range(args.megabytes))
            asyncio.run(round_trip(sent, back))
    except (HttpError, OSError, RuntimeError) as exception:
        print(f'{type(exception).__name__}: {exception}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
