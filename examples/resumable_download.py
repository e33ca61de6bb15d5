"""Download a URL to a file, and go on where it ended if the connection, or the program, was cut.

python examples/resumable_download.py URL FILE

What there is of it waits in FILE.part, and in FILE.etag which version it is of.
"""

import asyncio
import contextlib
import os
import sys
from typing import Any

from lowhaio import HttpError, HttpInvalidRequest, Pool

TRIES = 5  # Without a byte between them


async def download(url: str, path: str) -> None:
    request, close = Pool()
    tries, is_whole = TRIES, False
    try:
        while not is_whole:
            before = size_of(path + '.part')
            try:
                await rest(request, url, path)
                is_whole = True
            except HttpError as exception:
                tries = TRIES if size_of(path + '.part') > before else tries - 1
                if not tries or isinstance(exception, HttpInvalidRequest):
                    raise
                print('going on, after: %s' % exception, file=sys.stderr)
                await asyncio.sleep(0.1 * 2 ** (TRIES - tries))
    finally:
        await close()
    os.replace(path + '.part', path)
    os.remove(path + '.etag')


async def rest(request: Any, url: str, path: str) -> None:
    """Ask for what is missing, if it is still of the same version (RFC 9110 13.1.5)."""
    size, etag = size_of(path + '.part'), b''
    with contextlib.suppress(FileNotFoundError), open(path + '.etag', 'rb') as file:
        etag = file.read()
    condition = ((b'range', b'bytes=%d-' % size), (b'if-range', etag)) if size and etag else ()
    code, headers, body = await request(b'GET', url, headers=condition)

    fields = dict(headers)
    content_range = fields.get(b'content-range', b'')
    if code == b'416' and condition and content_range == b'bytes */%d' % size:
        await body.aclose()
        return  # It was whole already
    if code == b'206' and content_range.startswith(b'bytes %d-' % size) and \
            fields.get(b'etag') == etag:
        mode = 'ab'
    elif code == b'200':  # A new version, or no server for ranges
        mode, size, etag = 'wb', 0, fields.get(b'etag', b'')
    else:
        raise RuntimeError('the server answered %s %s' % (code.decode(), content_range.decode()))

    with open(path + '.part', mode) as part:
        with open(path + '.etag', 'wb') as file:
            file.write(etag if etag.startswith(b'"') else b'')  # A weak one won't do
        print('from byte %d' % size)
        async for chunk in body:
            size += part.write(chunk)
            print(size, 'bytes', end='\r', file=sys.stderr)


def size_of(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0


if __name__ == '__main__':
    try:
        asyncio.run(download(*sys.argv[1:] if len(sys.argv) == 3 else sys.exit(__doc__)))
    except (HttpError, OSError, RuntimeError) as error:
        sys.exit('%s: %s' % (type(error).__name__, error))
