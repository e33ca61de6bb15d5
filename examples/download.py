"""Download the files that a list of checksums names, several at once, and check each of them.

    python examples/download.py https://example.com/files/ SHA256SUMS --into folder

SHA256SUMS is what `sha256sum *` prints. A file that is cut goes on where it ended, in this run or
the next: NAME.part is what there is of it. The exit code is 1 if a file is missing in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from lowhaio import HttpError, Pool

if TYPE_CHECKING:
    from lowhaio import Request

PAUSES = (0, 0.5, 1, 2, 4)  # Seconds before each try


async def fetch(request: Request, url: str, path: Path, checksum: str) -> None:
    if path.exists() and sha256(path) == checksum:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + '.part')
    for pause in PAUSES:
        await asyncio.sleep(pause)
        try:
            await fetch_rest(request, url, part)
            break
        except HttpError:
            if pause == PAUSES[-1]:
                raise
    if sha256(part) != checksum:
        part.unlink()  # Or the next run would go on from it
        raise RuntimeError('its checksum is another one')
    part.replace(path)


async def fetch_rest(request: Request, url: str, part: Path) -> None:
    """Fetch what is missing. If the file has changed meanwhile, the checksum tells."""
    size = part.stat().st_size if part.exists() else 0
    headers = ((b'range', b'bytes=%d-' % size),) if size else ()
    code, fields, body = await request(b'GET', url, headers=headers)
    content_range = dict(fields).get(b'content-range', b'')
    is_rest = code == b'206' and content_range.startswith(b'bytes %d-' % size)
    if is_rest or code == b'200':
        with part.open('ab' if is_rest else 'wb') as file:
            async for chunk in body:
                file.write(chunk)
        return
    await body.aclose()
    if code != b'416' or content_range != b'bytes */%d' % size:  # Else it was whole
        raise RuntimeError(f'the server answered {code.decode()}')


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(1000000):
            digest.update(chunk)
    return digest.hexdigest()


async def download(base: str, sums: Path, into: Path, at_once: int) -> int:
    """Return how many files are missing."""
    lines = sums.read_text(encoding='utf-8').splitlines()
    waiting, done, missing = iter(lines), 0, 0

    async def work() -> None:
        nonlocal done, missing
        for line in waiting:  # All workers share it
            checksum, name = line[:64].lower(), line[66:]
            try:
                if into.resolve() not in (into / name).resolve().parents:
                    raise RuntimeError('not a name in the folder')
                await fetch(request, base + quote(name), into / name, checksum)
            except (HttpError, OSError, RuntimeError) as exception:
                missing += 1
                print(f'{name}: {exception}', file=sys.stderr)
            done += 1
            print(f'{done} of {len(lines)}', end='\r', file=sys.stderr)

    request, close = Pool()
    try:
        await asyncio.gather(*(work() for _ in range(at_once)))
    finally:
        await close()
    return missing


def main() -> int:
    parser = argparse.ArgumentParser(description='Download files and check their sums.')
    parser.add_argument('base', help='URL of their folder, with a slash at the end')
    parser.add_argument('sums', type=Path, help='file with a line "SHA256  NAME" for each')
    parser.add_argument('--into', type=Path, default=Path(), help='folder to write to')
    parser.add_argument('--at-once', type=int, default=8)
    args = parser.parse_args()
    if not args.base.endswith('/'):
        parser.error(f'{args.base} does not end with a slash')
    return 1 if asyncio.run(download(args.base, args.sums, args.into, args.at_once)) else 0


if __name__ == '__main__':
    sys.exit(main())
