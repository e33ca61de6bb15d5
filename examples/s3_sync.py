"""Copy the new and changed files of a folder to S3, with lowhaio-aws-sigv4-unsigned-payload.

python examples/s3_sync.py FOLDER https://s3.eu-west-2.amazonaws.com/BUCKET/

AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION come from the environment.
"""

import asyncio
import hashlib
import os
import sys
from pathlib import Path
from typing import Any, AsyncIterator, Dict
from urllib.parse import quote, unquote, urlsplit
from xml.etree import ElementTree

from lowhaio import HttpError, Pool, buffered
from lowhaio_aws_sigv4_unsigned_payload import aws_sigv4_headers


async def signed(request: Any, method: bytes, url: str, params: Any = (), headers: Any = (),
                 **options: Any) -> bytes:
    # The package's own layer takes paths that aren't encoded, and so not all keys
    host, path = urlsplit(url).hostname, unquote(urlsplit(url).path)
    headers = aws_sigv4_headers(
        os.environ['AWS_ACCESS_KEY_ID'], os.environ['AWS_SECRET_ACCESS_KEY'], headers, 's3',
        os.environ['AWS_REGION'], host, method.decode(), path, params, 'UNSIGNED-PAYLOAD')
    code, _, body = await request(method, url, params=params, headers=headers, **options)
    data = await buffered(body)
    if code != b'200':
        raise RuntimeError('%s: %s, %r' % (url, code.decode(), data[:500]))
    return data


async def sync(folder: str, bucket: str) -> None:
    async def upload_files() -> None:
        for path in paths:  # Which all of these share
            key = path.relative_to(folder).as_posix()
            md5 = hashlib.md5()
            async for chunk in contents(path):
                md5.update(chunk)
            if etags.get(key) != md5.hexdigest():
                length = (b'content-length', b'%d' % path.stat().st_size)
                await signed(request, b'PUT', bucket + quote(key, safe='/~'), headers=(length,),
                             body=contents, body_args=(path,))
                print(key)

    request, close = Pool()
    try:
        etags = await listed(request, bucket)
        paths = (path for path in sorted(Path(folder).rglob('*')) if path.is_file())
        await asyncio.gather(*(upload_files() for _ in range(10)))
    finally:
        await close()


async def listed(request: Any, bucket: str) -> Dict[str, str]:
    etags: Dict[str, str] = {}
    params: Any = (('list-type', '2'),)
    while params:  # There are 1000 on a page
        page = ElementTree.fromstring(await signed(request, b'GET', bucket, params=params))
        for item in page.iterfind('{*}Contents'):
            etags[item.findtext('{*}Key', '')] = item.findtext('{*}ETag', '').strip('"')
        token = page.findtext('{*}NextContinuationToken')
        params = token and (('list-type', '2'), ('continuation-token', token))
    return etags


async def contents(path: Path) -> AsyncIterator[bytes]:
    with open(path, 'rb') as file:
        while chunk := file.read(65536):
            yield chunk


if __name__ == '__main__':
    try:
        asyncio.run(sync(*sys.argv[1:]))
    except (HttpError, OSError, RuntimeError) as exception:
        sys.exit('%s: %s' % (type(exception).__name__, exception))
