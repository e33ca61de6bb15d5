"""Upload a folder to S3, or to storage that speaks its protocol, several files at once.

    python examples/upload.py folder https://s3.eu-west-2.amazonaws.com/bucket/

AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION are taken from the environment. Requests
are signed by lowhaio-aws-sigv4-unsigned-payload. The exit code is 1 if a file is not uploaded.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, AsyncIterator
from urllib.parse import quote, unquote, urlsplit

from lowhaio import HttpError, Pool, buffered
from lowhaio_aws_sigv4_unsigned_payload import aws_sigv4_headers

if TYPE_CHECKING:
    from lowhaio import Headers, Options, Params, Request, Response
    from typing_extensions import Unpack


def signed(request: Request, key_id: str, secret: str, region: str) -> Request:
    """Sign as the package's own `signed` does, but with keys that have a %, ? or # as well."""
    async def _request(
            method: bytes, url: str, params: Params = (), headers: Headers = (),
            **options: Unpack[Options],
    ) -> Response:
        parts = urlsplit(url)
        headers = aws_sigv4_headers(
            key_id, secret, tuple(headers), 's3', region, parts.hostname, method.decode(),
            unquote(parts.path), params, 'UNSIGNED-PAYLOAD')
        return await request(method, url, params, headers, **options)

    return _request


async def contents(path: Path) -> AsyncIterator[bytes]:
    with path.open('rb') as file:
        while chunk := file.read(65536):
            yield chunk


async def upload(folder: Path, bucket: str, at_once: int) -> int:
    """Return how many files could not be uploaded."""
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    waiting, failed = iter(files), 0

    async def work() -> None:
        nonlocal failed
        for path in waiting:  # All workers share it
            key = path.relative_to(folder).as_posix()
            try:
                code, _, body = await request(
                    b'PUT', bucket + quote(key, safe='/~'),
                    headers=((b'content-length', b'%d' % path.stat().st_size),),
                    body=contents, body_args=(path,))
                text = await buffered(body)
                if code != b'200':
                    raise RuntimeError(f'{code.decode()}, {text[:500]!r}')
                print(key)
            except (HttpError, OSError, RuntimeError) as exception:
                failed += 1
                print(f'{key}: {exception}', file=sys.stderr)

    env = os.environ
    request, close = Pool()
    request = signed(
        request, env['AWS_ACCESS_KEY_ID'], env['AWS_SECRET_ACCESS_KEY'], env['AWS_REGION'])
    try:
        await asyncio.gather(*(work() for _ in range(at_once)))
    finally:
        await close()
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description='Upload a folder to S3.')
    parser.add_argument('folder', type=Path)
    parser.add_argument('bucket', help='URL of the bucket or of a folder in it, with a slash at '
                        'the end')
    parser.add_argument('--at-once', type=int, default=8)
    args = parser.parse_args()
    if not args.bucket.endswith('/'):
        parser.error(f'{args.bucket} does not end with a slash')
    if not args.folder.is_dir():
        parser.error(f'{args.folder} is not a folder')
    return 1 if asyncio.run(upload(args.folder, args.bucket, args.at_once)) else 0


if __name__ == '__main__':
    sys.exit(main())
