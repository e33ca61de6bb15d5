"""Fuzzes lowhaio with mutations of the rows of test.py, which hypothesis makes small.

    python -W error -X dev .ci/fuzz.py SECONDS [SEED]

Whatever a server sends, a request comes to a result or to an HttpError, and soon; and to the same
in whichever segments it arrives. Nothing is left behind, and the next request gets its own answer.
Whatever the caller's body yields, what leaves is the start of a body that is framed as the head
says.

Cases depend on the seed and the rows alone. One that shows a fault is printed as it is found, and
again when it is as small as it gets.
"""

import asyncio
import contextlib
import gc
import itertools
import re
import socket
import time
import traceback
import typing

import hypothesis
from hypothesis import strategies
from search import main, next_chunk, test

import lowhaio

HANG_SECONDS = 5
BATCH = 500  # Cases; what hypothesis remembers of them makes it slower to look for garbage
SIZE = 300  # Bytes that make a case, two for each choice

CODING = (b'transfer-encoding', b'chunked')
SECOND = b'GET /second '
SECOND_OUTCOME = (b'200', ((b'content-length', b'6'),), b'second')
TOKENS = (
    b'\r', b'\n', b'\r\n', b'\r\n\r\n', b'\n\n', b'\0', b' ', b'\t', b'\r\n ', b':', b': ', b';',
    b',', b'"', b'0', b'1', b'A', b'-', b'+', b'_', b'\x0b', b'\x7f', b'\x85', b'\xa0', b'\xff',
    b'9' * 19, b'9' * 20, b'f' * 16, b'f' * 17, b'0' * 16, b'content-length', b'Content-Length: 2',
    b'\r\ncontent-length: 0', b'\r\nTransfer-Encoding: chunked', b'\r\ntransfer-encoding: gzip',
    b'\r\nconnection: close', b'\r\nkeep-alive: timeout=5', b'\r\n continued', b'HTTP/1.0 200 OK',
    b'0\r\n\r\n', b'5\r\nhello\r\n', b'1;a="b"\r\n', b'\r\n0\r\na: b\r\n\r\n', test.CONTINUE,
    test.HEAD, test.OK, test.CHUNKED,
)
MARK = re.compile(rb'[\r\n:; ]|\Z')
VALID = [row for row in test.RESPONSES if not row.error]
INTERIM_HEADS = re.compile(
    rb'(?:HTTP/1\.[0-9] 1(?!01)[0-9]{2}(?:(?!\r\n\r\n).)*\r\n\r\n){101}', re.DOTALL)


class Case(typing.NamedTuple):
    """A request, its response, and what becomes of both."""

    data: bytes  # The response
    segments: typing.Tuple[int, ...] = ()  # In which it arrives, but for the last
    is_kept: bool = False  # Whether the connection stays open after it
    method: bytes = b'GET'
    headers: typing.Tuple[typing.Tuple[bytes, bytes], ...] = ()
    body: typing.Tuple[typing.Optional[bytes], ...] = ()  # Of the request; None lets the loop run
    recv_bufsize: int = 65536
    max_header_length: int = 16384
    socket_timeout: float = 2


# ---- How cases are made ----


class Choices:
    """Those that bytes make. Of each the first is the simplest, which bytes that are missing make.

    hypothesis draws them at once: to draw choice by choice takes longer than to play a case.
    """

    def __init__(self, data):
        self._bytes = iter(data)

    def number(self, most):
        chosen = next(self._bytes, 0) << 8 | next(self._bytes, 0)
        return chosen * (most + 1) >> 16

    def one(self, *choices):
        return choices[self.number(len(choices) - 1)]

    def place(self, data):
        """An index, often one at which something begins or ends."""
        index = self.number(len(data))
        return self.one(MARK.search(data, index).start(), index)

    def row(self):
        return self.one(*self.one(VALID, VALID, test.RESPONSES))

    def edited(self, data, *times):
        for _ in range(self.one(*times)):
            start = self.place(data)
            end = self.one(start, start + 1, start + 9, self.place(data), len(data))
            start, end = sorted((start, end))
            data = data[:start] + self._instead_of(data[start:end]) + data[end:]
        return data

    def _instead_of(self, part):
        token, other, byte = self.one(*TOKENS), self.row().data, self.number(255)
        return self.one(
            b'', token, token, token + part, part * 2, part.swapcase(), other + part,
            other[self.place(other):], bytes(byte ^ known for known in part),
            bytes((byte,)) * self.one(1, 2, 20, 300, 16384))

    def payload(self):
        return [self.one(b'a', b'\r\n', b'0\r\n\r\n', bytes(range(256)), b'b' * 3000)
                for _ in range(self.number(5))]

    def chunk_stream(self):
        lines = []
        for chunk in self.payload():
            size = b'%0*x' % (self.one(1, 1, 1, 1, 2, 16, 17), len(chunk))
            lines += [size + self.one(b'', b'', b' ', b';a', b' ;a="b"'), chunk]
        lines += [b'0', *self.one((), (), (b'a: b',), (b'a:', b' b', b'C: d')), b'', b'']
        return b'\r\n'.join(lines)

    def cuts(self, data):
        """The sizes of the pieces to cut data into, but for the last."""
        count = self.one(0, 1, 1, 2, 5, 20, *[None] * 2 * (len(data) < 300))
        if count is None:
            return (1,) * len(data)
        at = sorted({0, *(self.place(data) for _ in range(count))})
        return tuple(end - start for start, end in zip(at, at[1:]))

    def response(self):
        row = self.row()
        data = self.one(row.data, row.data, test.response(b''.join(self.payload())),
                        test.CHUNKED + self.chunk_stream())
        data = self.edited(data, 0, 1, 1, 1, 2, 4)
        data = self.one(*[b''] * 20, test.CONTINUE, test.CONTINUE * 101) + data
        return row, data[:self.one(*[len(data)] * 3, self.place(data))]

    def response_case(self):
        row, data = self.response()
        method, headers, body = self.one(
            *[(row.method, (), ())] * 5, (b'HEAD', (), ()),
            (b'POST', ((b'content-length', b'4'),), (b'da', None, b'ta')),
            (b'POST', (CODING,), (None, test.chunked(b'data'))),
            (b'PUT', ((b'content-length', b'4'), (b'expect', b'100-continue')), (b'data',)))
        is_kept = self.one(*[False] * 20, True)
        return Case(
            data, self.cuts(data), is_kept, method, headers, body,
            recv_bufsize=self.one(*(65536, 65536, 100, 7, 1)[:4 if len(data) > 1000 else 5]),
            max_header_length=self.one(row.limit, row.limit, 16384, 100000, 60),
            socket_timeout=0.05 if is_kept else 2)

    def upload_case(self):
        stream, body, start = self.edited(self.chunk_stream(), 0, 1, 1, 1, 2), [], 0
        length = b'content-length', b'%d' % max(0, len(stream) + self.one(0, 1, -1))
        for end in itertools.accumulate((*self.cuts(stream), len(stream))):
            body += [stream[start:end], *self.one((), (), (None,), (None, b''), (None,) * 5)]
            start = end
        return Case(test.OK, is_kept=True, method=b'POST', body=tuple(body),
                    headers=(self.one(CODING, CODING, CODING, length),),
                    max_header_length=1000000)


# ---- What the body of a request may be (RFC 9112 6.2, 7.1) ----


CHUNK_LINE = re.compile(rb'([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\0\r\n]*)?\r\n')
TRAILERS = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\0\r\n]*\r\n)*\r\n")


def end_of_request_body(headers, data):
    """Where it ends; None if it isn't whole. Raises ValueError if it can't become so."""
    name, value = headers[0] if headers else (b'content-length', b'0')
    if name == b'content-length':
        return int(value) if len(data) >= int(value) else None

    position, size = 0, None
    while size != 0:
        line = CHUNK_LINE.match(data, position)
        if not line:
            return unless_wrong(data[position:], b'\n')
        size = int(line[1], 16)
        position = line.end() + (size and size + 2)
        if size and not b'\r\n'.startswith(data[line.end() + size:position]):
            raise ValueError('no CRLF after the chunk at byte %d' % line.start())
    trailers = TRAILERS.match(data, position)
    return trailers.end() if trailers else unless_wrong(data[position:], b'\r\n\r\n')


def unless_wrong(rest, end):
    if end in rest:
        raise ValueError('%.80r' % rest)


# ---- How a case is played ----


class Play:
    """A server and a pool, the request of a case, and a second request."""

    def __init__(self, search, case):
        self.search = search
        self.case = case
        self.segments = list(case.segments)
        self.received = b''  # Of the body of the request

    async def outcome(self):
        """Return (code, headers, body), or what came of them before an exception, and its class.

        Raises AssertionError.
        """
        self.search.loop.start_watching_tasks()
        self.is_answered, self.is_uploaded = asyncio.Event(), asyncio.Event()
        if not self.case.body:
            self.is_uploaded.set()
        server = self.server = test.Server(
            self.search, (), script=self._converse, host='127.0.0.1')
        self.request, close = lowhaio.Pool(
            test.Names(), self._sock, recv_bufsize=self.case.recv_bufsize,
            max_header_length=self.case.max_header_length,
            socket_timeout=self.case.socket_timeout)
        try:
            outcome = await self._fetched()
            await self._check_second(outcome)
            await close()
            await self.search.check_connections()
            self._check_request(outcome)
        finally:
            await close()
            server.close()
        return outcome

    def _sock(self):
        sock = test.SegmentedSocket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.segments = self.segments
        return sock

    # The server

    async def _converse(self, peer):
        with contextlib.suppress(EOFError):  # The client has given up
            while True:
                head = await peer.read_until(b'\r\n\r\n')
                if head.startswith(SECOND):
                    await peer.send(test.response(b'second'))
                    continue
                if b'100-continue' in head:
                    await peer.send(test.CONTINUE)
                await self._receive_body(peer)
                await self.is_uploaded.wait()
                await peer.send(self.case.data)
                self.is_answered.set()
                if not self.case.is_kept:
                    return

    async def _receive_body(self, peer):
        self.received, peer.unread = peer.unread, b''
        end = end_of_request_body(self.case.headers, self.received)
        while end is None:
            data = await peer.receive()
            if not data:
                raise EOFError
            self.received += data
            end = end_of_request_body(self.case.headers, self.received)
        self.received, peer.unread = self.received[:end], self.received[end:]
        assert peer.unread[:len(SECOND)] == SECOND[:len(peer.unread)], peer.unread

    # The client

    async def _fetched(self):
        outcome = ()
        try:
            *outcome, body = await self.request(
                self.case.method, self.server.url + '/first', headers=self.case.headers,
                **({'body': self._body} if self.case.body else {}))
            check_head(*outcome)
            outcome.append(await whole(body))
            check_body(self.case.method, *outcome)
        except lowhaio.HttpError as exception:
            check_exception(exception, self.case)
            outcome = (*outcome, type(exception))
        return tuple(outcome)

    async def _body(self):
        try:
            for piece in self.case.body:
                if piece is None:
                    await asyncio.sleep(0)
                else:
                    yield piece
        finally:
            self.is_uploaded.set()

    # What must be true

    async def _check_second(self, outcome):
        if is_result(outcome):
            await self.is_answered.wait()  # What was too much has arrived, and must be noticed
        self.segments.clear()
        second = await test.fetch(self.request, b'GET', self.server.url + '/second')
        assert second == SECOND_OUTCOME, 'the second request got %r' % (second,)
        if is_result(outcome) and len(self.server.peers) == 1:
            assert self.case.data.endswith((b'\r\n\r\n', outcome[2])), 'reused, in spite of more'

    def _check_request(self, outcome):
        body = b''.join(filter(None, self.case.body))
        assert body.startswith(self.received), 'the server received %r' % self.received
        try:
            is_framed = end_of_request_body(self.case.headers, body) == len(body)
        except ValueError:
            is_framed = False
        if is_result(outcome):
            assert is_framed and self.received == body, 'the server received %r' % self.received
        if not is_result(outcome) and issubclass(outcome[-1], lowhaio.HttpConnectionError):
            sent = any(b'/first' in peer.received for peer in self.server.peers)
            assert not sent, '%s, but it was sent' % outcome[-1].__name__
            assert not is_framed, outcome


def is_result(outcome):
    return not isinstance(outcome[-1], type)


def comparable(outcome):
    # Which one of two faults is met first depends on how much has arrived
    return [lowhaio.HttpInvalidResponse if part is lowhaio.HttpHeaderTooLong else part
            for part in outcome]


async def whole(body):
    chunks = [await next_chunk(body)]
    while chunks[-1]:
        chunks.append(await next_chunk(body))
    return b''.join(chunks)


def check_head(code, headers):
    assert re.fullmatch(rb'[0-9]{3}', code), code
    for name, value in headers:
        assert re.fullmatch(rb"[!#$%&'*+\-.^_`|~0-9a-z]+", name), name
        assert re.fullmatch(rb'[^\0\r\n]*', value) and value == value.strip(b' \t'), value


def check_body(method, code, headers, body):
    fields = dict(headers)
    if method == b'HEAD' or code in (b'101', b'204', b'304'):
        assert body == b'', 'a body of %s %s' % (method, code)
    elif b'content-length' in fields and b'transfer-encoding' not in fields:
        assert len(body) == int(fields[b'content-length'].split(b',')[0]), '%d bytes' % len(body)


def check_exception(exception, case):
    assert type(exception).__name__ in lowhaio.__all__, repr(exception)
    assert re.fullmatch(r'[ -~]{1,600}', str(exception)), repr(exception)
    assert case.socket_timeout < 1 or not isinstance(exception.__cause__, asyncio.TimeoutError), \
        'waited in vain: %r' % exception


# ---- The fuzzer ----


class Fuzzer:
    """Plays cases, and looks at what is left of them."""

    def __init__(self, search):
        self.search = search
        self.case = None  # The last one

    def run(self, seconds, seed):
        """Let hypothesis make cases until the time is over, or one has shown a fault."""
        self.end = time.monotonic() + seconds
        for number in itertools.count():
            gc.unfreeze()
            gc.collect()
            try:
                hypothesis.seed('%d %d' % (seed, number))(SETTINGS(
                    hypothesis.given(strategies.binary(min_size=SIZE, max_size=SIZE))(
                        self._check)))()
            except Exception:
                print('The smallest:\n%s\n%r' % (traceback.format_exc(), self.case))
            if self.search.faults or time.monotonic() > self.end:
                break

    def _check(self, data):
        if not self.search.faults and time.monotonic() > self.end:
            return
        choices = Choices(data)
        try:
            if choices.number(3) < 3:
                self._check_response(choices.response_case())
            else:
                self._outcome(choices.upload_case())
        except Exception as exception:
            self.search.fault(exception, repr(self.case))
            raise

    def _check_response(self, case):
        outcome = self._outcome(case)
        assert not is_result(outcome) or not INTERIM_HEADS.match(case.data), 'read without end'
        at_once = case._replace(segments=(), recv_bufsize=65536)
        if case != at_once and not case.is_kept:
            other = self._outcome(at_once)
            assert comparable(outcome) == comparable(other), '%r, but at once %r' % (
                outcome, other)

    def _outcome(self, case):
        gc.freeze()  # So that to collect what it leaves takes no time
        self.case = case
        try:
            outcome = self.search.loop.run_until_complete(
                asyncio.wait_for(Play(self.search, case).outcome(), HANG_SECONDS))
        finally:
            self.search.check_leftovers()
        self.search.outcomes['result' if is_result(outcome) else outcome[-1].__name__] += 1
        return outcome


SETTINGS = hypothesis.settings(
    max_examples=BATCH, database=None, deadline=None,
    phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
    suppress_health_check=list(hypothesis.HealthCheck))


if __name__ == '__main__':
    main(lambda search, *arguments: Fuzzer(search).run(*arguments))
