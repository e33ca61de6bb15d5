"""Follow the links of a site, several pages at once, and print the code and URL of each page.

    python examples/crawler.py https://example.com/ --at-once 10 --pages 1000

The exit code is 1 if a page could not be fetched.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from html.parser import HTMLParser
from typing import TYPE_CHECKING, List, Optional, Tuple
from urllib.parse import urldefrag, urljoin

from lowhaio import HttpError, Pool

if TYPE_CHECKING:
    from lowhaio import Request

MAX_PAGE_BYTES = 1000000


class Links(HTMLParser):
    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.found: List[str] = []

    def handle_starttag(self, tag: str, attrs: List[Tuple[str, Optional[str]]]) -> None:
        if tag == 'a':
            self.add(dict(attrs).get('href') or '')

    def add(self, link: str) -> None:
        with contextlib.suppress(ValueError):
            self.found.append(urldefrag(urljoin(self.url, link)).url)


async def fetch(request: Request, url: str) -> Tuple[str, List[str]]:
    """Return the code of a page, and the URLs that it links or redirects to."""
    code, headers, body = await request(b'GET', url)
    fields, links, size = dict(headers), Links(url), 0
    if b'location' in fields:
        links.add(fields[b'location'].decode('latin-1'))
    if fields.get(b'content-type', b'').startswith(b'text/html'):
        async for chunk in body:
            links.feed(chunk.decode('latin-1'))  # The letters of a link are ASCII, as a rule
            size += len(chunk)
            if size > MAX_PAGE_BYTES:
                break
    await body.aclose()
    return code.decode(), links.found


async def crawl(start: str, at_once: int, max_pages: int) -> int:
    """Return how many pages could not be fetched."""
    site, seen, failed = urljoin(start, '/'), {start}, 0
    waiting: asyncio.Queue[str] = asyncio.Queue()
    waiting.put_nowait(start)

    async def work() -> None:
        nonlocal failed
        while True:
            url = await waiting.get()
            try:
                code, links = await fetch(request, url)
                print(code, url, flush=True)
                for link in links:
                    if link.startswith(site) and link not in seen and len(seen) < max_pages:
                        seen.add(link)
                        waiting.put_nowait(link)
            except HttpError as exception:
                failed += 1
                print(f'{url!a}: {exception}', file=sys.stderr)
            finally:
                waiting.task_done()

    request, close = Pool()
    workers = [asyncio.ensure_future(work()) for _ in range(at_once)]
    try:
        await waiting.join()
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        await close()
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description='List the pages of a site.')
    parser.add_argument('url')
    parser.add_argument('--at-once', type=int, default=10)
    parser.add_argument('--pages', type=int, default=1000, help='stop after so many')
    args = parser.parse_args()
    return 1 if asyncio.run(crawl(args.url, args.at_once, args.pages)) else 0


if __name__ == '__main__':
    sys.exit(main())
