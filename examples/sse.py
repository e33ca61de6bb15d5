"""Ask a streaming API, as those of language models are, and print its events as they come.

    python examples/sse.py https://example.com/v1/completions '{"prompt": "Hello", "stream": true}'

The answer is a stream of server-sent events. If the server says 429 or 503, the request is made
again after the pause that it asks for. Ctrl-C closes the connection, which ends the work there.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import TYPE_CHECKING, List

from lowhaio import HttpError, Pool, buffered, streamed

if TYPE_CHECKING:
    from lowhaio import Request, ResponseBody

MAX_EVENT_BYTES = 1000000


class Events:
    """Turns bytes, however they are cut, into the data of events."""

    def __init__(self) -> None:
        self._line, self._data = bytearray(), bytearray()

    def feed(self, chunk: bytes) -> List[str]:
        """Return the data of each event that is whole with this chunk."""
        whole = []
        for piece in chunk.splitlines(keepends=True):
            self._line += piece
            if len(self._data) + len(self._line) > MAX_EVENT_BYTES:
                raise RuntimeError(f'an event is longer than {MAX_EVENT_BYTES} bytes')
            if piece.endswith(b'\n'):
                name, _, value = self._line.rstrip(b'\r\n').partition(b':')
                if name == b'data':
                    self._data += value[value.startswith(b' '):] + b'\n'
                elif not self._line.strip() and self._data:
                    whole.append(self._data[:-1].decode())
                    self._data.clear()
                self._line.clear()
        return whole


async def opened(request: Request, url: str, data: bytes, tries: int) -> ResponseBody:
    """Return the body of a 200, after as many tries as it takes."""
    headers = (
        (b'accept', b'text/event-stream'),
        (b'content-type', b'application/json'),
        (b'content-length', b'%d' % len(data)),
    )
    while True:
        tries -= 1
        code, fields, body = await request(b'POST', url, headers=headers, body=streamed(data))
        if code == b'200':
            return body
        text = await buffered(body)
        pause = dict(fields).get(b'retry-after', b'1')
        if code not in (b'429', b'503') or not tries or not pause.isdigit():
            raise RuntimeError(f'the server answered {code.decode()}: {text[:500]!r}')
        print(f'{code.decode()}: again in {pause.decode()} s', file=sys.stderr)
        await asyncio.sleep(int(pause))


async def show_events(url: str, data: bytes, tries: int, silence: float) -> None:
    request, close = Pool(socket_timeout=silence)
    try:
        body = await opened(request, url, data, tries)
        try:
            events = Events()
            async for chunk in body:
                for event in events.feed(chunk):
                    print(event, flush=True)
        finally:
            await body.aclose()
    finally:
        await close()


def main() -> int:
    parser = argparse.ArgumentParser(description='Print the events of a streaming API.')
    parser.add_argument('url')
    parser.add_argument('json', help='what to POST')
    parser.add_argument('--tries', type=int, default=3)
    parser.add_argument('--silence', type=float, default=60, help='seconds to wait for more')
    args = parser.parse_args()
    try:
        asyncio.run(show_events(args.url, args.json.encode(), args.tries, args.silence))
    except KeyboardInterrupt:
        return 130
    except (HttpError, RuntimeError) as exception:
        print(exception, file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
