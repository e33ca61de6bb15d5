"""Follow the links of a site, with so many requests at once, and list its pages.

python examples/crawler.py URL [REQUESTS_AT_ONCE [PAGES_AT_MOST]]
"""

import asyncio
import contextlib
import html.parser
import sys
import urllib.parse
from typing import Any, List, Optional, Tuple

from lowhaio import Pool


class Links(html.parser.HTMLParser):
    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.found: List[str] = []

    def handle_starttag(self, tag: str, attrs: List[Tuple[str, Optional[str]]]) -> None:
        self.add(dict(attrs).get('href') if tag == 'a' else None)

    def add(self, link: Optional[str]) -> None:
        with contextlib.suppress(ValueError):
            self.found.append(urllib.parse.urldefrag(urllib.parse.urljoin(self.url, link)).url)


async def crawl(start: str, at_once: int = 10, pages_at_most: int = 1000) -> int:
    """Return how many pages could not be fetched."""
    site = urllib.parse.urljoin(start, '/')
    seen = {start}
    waiting: asyncio.Queue[str] = asyncio.Queue()
    waiting.put_nowait(start)
    done = failed = 0

    async def work() -> None:
        nonlocal done, failed
        while True:
            url = await waiting.get()
            try:
                code, links = await page(request, url)
                print(code, url, flush=True)
                for link in links:
                    if link.startswith(site) and link not in seen and len(seen) < pages_at_most:
                        seen.add(link)
                        waiting.put_nowait(link)
            except Exception as exception:  # One page must not end it
                failed += 1
                print('%a: %r' % (url, exception), file=sys.stderr)
            done += 1
            print('%d of %d' % (done, len(seen)), end='\r', file=sys.stderr, flush=True)
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


async def page(request: Any, url: str) -> Tuple[str, List[str]]:
    """Return the code of a page, and where it links or redirects to."""
    code, headers, body = await request(b'GET', url)
    fields, links, size = dict(headers), Links(url), 0
    links.add(fields.get(b'location', b'').decode())
    if fields.get(b'content-type', b'').startswith(b'text/html'):
        async for chunk in body:
            links.feed(chunk.decode('latin-1'))  # For links in other letters, look at the charset
            size += len(chunk)
            if size > 1000000:  # Enough of it
                break
    await body.aclose()
    return code.decode(), links.found


if __name__ == '__main__':
    url, *numbers = sys.argv[1:] or sys.exit(__doc__)
    sys.exit(1 if asyncio.run(crawl(url, *map(int, numbers))) else 0)
