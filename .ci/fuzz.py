"""Fuzzes lowhaio with mutations of the rows of test.py, which hypothesis makes and shrinks.

    python -W error -X dev .ci/fuzz.py SECONDS [SEED] [--blob BLOB]

Whatever a server sends, a request comes to a result or to an HttpError, and soon; to the same in
whichever segments it arrives; and in time that grows with its size, not with the square of it.
Nothing is left behind, and the next request gets its own answer. Whatever the caller's body
yields, what leaves is the start of a body that is framed as the head says.

Cases depend on the seed and the rows alone. One that shows a fault is printed as it is found, and
again when it is as small as it gets, with the blob that plays it alone.
"""

import argparse
import asyncio
import collections
import contextlib
import functools
import gc
import itertools
import logging
import random
import re
import signal
import socket
import sys
import time
import traceback
import typing
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import hypothesis
from hypothesis import strategies

import lowhaio
import test

HANG_SECONDS = 5
BATCH = 100  # Cases; what hypothesis remembers of them makes it slower to look for garbage

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


class Case(typing.NamedTuple):
    """A request, its response, and what becomes of both."""

    data: bytes  # The response
    segments: typing.Tuple[int, ...] = ()  # In which it arrives, but for the last
    end: str = 'close'  # Of the connection after it: close, reset or keep
    early: bool = False  # Whether the server answers before it reads
    method: bytes = b'GET'
    headers: typing.Tuple[typing.Tuple[bytes, bytes], ...] = ()
    body: typing.Tuple[typing.Optional[bytes], ...] = ()  # Of the request; None lets the loop run
    reading: str = 'all'  # Of the response's body: all, first or none
    turns: typing.Optional[int] = None  # Of the loop until the caller's task is cancelled
    recv_bufsize: int = 65536
    max_header_length: int = 16384
    socket_timeout: float = 2


# ---- How cases are made: of a choice, the first is the simplest ----


BYTE = strategies.integers(0, 255)
ROW = strategies.sampled_from(test.RESPONSES)


INTERIM_HEADS = re.compile(
    rb'(?:HTTP/1\.[0-9] 1(?!01)[0-9]{2}(?:(?!\r\n\r\n).)*\r\n\r\n){101}', re.DOTALL)
MARK = re.compile(rb'[\r\n:; ]|\Z')
choice = functools.lru_cache(None)(strategies.sampled_from)  # To make it takes longer than to draw

WAYS = choice(tuple(itertools.product(
    ['close'] * 16 + ['reset', 'keep'] * 2, [False] * 9 + [True],
    ['all'] * 8 + ['first', 'none'])))


def one(draw, *choices):
    return draw(choice(choices))


def place(draw, data):
    """An index, often one at which something begins or ends."""
    index, is_at_mark = divmod(draw(strategies.integers(0, 2 * len(data) + 1)), 2)
    return MARK.search(data, index).start() if is_at_mark else index


EDITS = (  # Of a part of the data: what comes in its place
    lambda draw, part: b'',
    lambda draw, part: one(draw, *TOKENS),
    lambda draw, part: one(draw, *TOKENS),
    lambda draw, part: one(draw, *TOKENS) + part,
    lambda draw, part: part * 2,
    lambda draw, part: part.swapcase(),
    lambda draw, part: draw(ROW).data + part,
    lambda draw, part: tail(draw, draw(ROW).data),
    lambda draw, part: bytes(map(draw(BYTE).__xor__, part)),
    lambda draw, part: bytes((draw(BYTE),)) * one(draw, 1, 2, 20, 300, 16384),
)


def tail(draw, data):
    return data[place(draw, data):]


def edited(draw, data, *times):
    for _ in range(one(draw, *times)):
        start = place(draw, data)
        size = one(draw, 0, 1, 9, None, len(data))
        start, end = sorted((start, place(draw, data) if size is None else start + size))
        data = data[:start] + one(draw, *EDITS)(draw, data[start:end]) + data[end:]
    return data


def chunk_stream(draw):
    lines = []
    for _ in range(draw(strategies.integers(0, 5))):
        chunk = one(draw, b'a', b'\r\n', b'0\r\n\r\n', bytes(range(256)), b'b' * 3000)
        size = b'%0*x' % (one(draw, 1, 1, 1, 1, 2, 16, 17), len(chunk))
        lines += [size + one(draw, b'', b'', b' ', b';a', b' ;a="b"'), chunk]
    lines += [b'0', *one(draw, (), (), (b'a: b',), (b'a:', b' b', b'C: d')), b'', b'']
    return b'\r\n'.join(lines)


def cuts(draw, data):
    """The sizes of the pieces to cut data into, but for the last."""
    count = one(draw, 0, 1, 1, 2, 5, 20, *[None] * 2 * (len(data) < 300))
    if count is None:
        return (1,) * len(data)
    at = sorted({0, *(place(draw, data) for _ in range(count))})
    return tuple(end - start for start, end in zip(at, at[1:]))


@strategies.composite
def responses(draw):
    row = draw(ROW)
    data = edited(draw, row.data, 0, 1, 1, 1, 2, 3, 5) if one(draw, True, True, True, False) else \
        test.CHUNKED + edited(draw, chunk_stream(draw), 0, 1, 1, 2)
    data = one(draw, *[b''] * 20, test.CONTINUE, test.CONTINUE * 101) + data
    data = data[:place(draw, data)] if one(draw, *[False] * 12, True) else data
    method, headers, body = one(
        draw, *[(row.method, (), ())] * 4, (b'HEAD', (), ()),
        (b'POST', ((b'content-length', b'4'),), (b'da', None, b'ta')),
        (b'POST', (CODING,), (None, test.chunked(b'data'))),
        (b'PUT', ((b'content-length', b'300000'),), (b'd' * 100000,) * 3),
        (b'PUT', ((b'content-length', b'4'), (b'expect', b'100-continue')), (b'data',)))
    end, is_early, reading = draw(WAYS)
    case = Case(
        data, cuts(draw, data), end, is_early, method, headers, body, reading,
        one(draw, *[None] * 90, *range(12)),
        one(draw, *(65536, 65536, 100, 7, 1)[:4 if len(data) > 1000 else 5]),
        one(draw, row.limit, row.limit, 16384, 100000, 60), 0.05 if end == 'keep' else 2)
    # libuv tells of a reset once: what a SegmentedSocket keeps back then would be waited for
    return (case._replace(segments=())
            if test.LOOP == 'uvloop' and (end == 'reset' or case.early) else case,)


@strategies.composite
def uploads(draw):
    stream, body, start = edited(draw, chunk_stream(draw), 0, 1, 1, 1, 2), [], 0
    length = b'content-length', b'%d' % max(0, len(stream) + one(draw, 0, 1, -1))
    for end in itertools.accumulate((*cuts(draw, stream), len(stream))):
        body += [stream[start:end], *one(draw, (), (), (None,), (None, b''), (None,) * 5)]
        start = end
    return (Case(test.OK, end='keep', method=b'POST', body=tuple(body), max_header_length=1000000,
                 headers=(one(draw, CODING, CODING, CODING, length),)),)


@strategies.composite
def repeats(draw):
    """A case with a repeated byte, alone or within a row, and one with four times as many."""
    data = one(draw, b'', test.CHUNKED, None)
    data = draw(ROW).data if data is None else data and data + chunk_stream(draw)
    at, byte = place(draw, data), bytes((draw(BYTE | choice(tuple(b'\r\n\t :;,"a0f'))),))
    size, bufsize = one(draw, *[(4096, 65536)] * 5, (4096, 1), (16384, 16))
    # With each segment, a line that isn't whole is looked through anew, up to the limit
    limit = 1000000 if bufsize == 65536 else 1000
    return tuple(Case(data[:at] + byte * count + data[at:], recv_bufsize=bufsize,
                      max_header_length=limit) for count in (size, 4 * size))


# Made once: to make a strategy takes as long as to play a case
CASES = strategies.sampled_from(
    [responses()] * 5 + [uploads()] * 2 + [repeats()] * 2).flatmap(lambda strategy: strategy)


# ---- What the body of a request may be (RFC 9112 6.2, 7.1) ----


# Each with ends of which one makes it whole, if it can become so
CHUNK_LINE = re.compile(rb'([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\0\r\n]*)?\r\n'), \
    (b'0\r\n', b'\r\n', b'\n')
TRAILERS = re.compile(
    rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\0\r\n]*\r\n)*\r\n"), \
    (b'a:\r\n\r\n', b':\r\n\r\n', b'\r\n\r\n', b'\r\n', b'\n\r\n', b'\n')


def end_of_request_body(headers, data):
    """Where it ends; None if it isn't whole. Raises ValueError if it can't become so."""
    name, value = headers[0] if headers else (b'content-length', b'0')
    if name == b'content-length':
        return int(value) if len(data) >= int(value) else None

    position, size = 0, None
    while size != 0:
        line = part_of_chunks(data, position, *CHUNK_LINE)
        if line is None:
            return None
        size = int(line[1], 16)
        position = line.end() + (size and size + 2)
        if size and not b'\r\n'.startswith(data[line.end() + size:position]):
            raise ValueError('no CRLF after the chunk at byte %d' % line.start())
    trailers = part_of_chunks(data, position, *TRAILERS)
    return trailers and trailers.end()


def part_of_chunks(data, position, pattern, ends):
    match = pattern.match(data, position) if position <= len(data) else None
    if not match and not any(pattern.fullmatch(data[position:] + end) for end in ends):
        raise ValueError('%r at byte %d' % (data[position:position + 80], position))
    return match


# ---- How a case is played ----


class Play:
    """A server and a pool, the request of a case, and a second request."""

    def __init__(self, loop, case):
        self.loop = loop
        self.case = case
        self.segments = list(case.segments)
        self.received = b''  # Of the body of the request
        self.tasks = []
        self.is_cancelled = False

    def spawn(self, coroutine):
        self.tasks.append(self.loop.create_task(coroutine))
        return self.tasks[-1]

    async def outcome(self):
        """Return (code, headers, body), or what came of them before an exception, and its class.

        Raises AssertionError.
        """
        self.loop.start_watching_tasks()
        self.is_answered, self.is_uploaded = asyncio.Event(), asyncio.Event()
        if not self.case.body:
            self.is_uploaded.set()
        server = self.server = test.Server(self, (), script=self._converse, host='127.0.0.1')
        self.request, close = lowhaio.Pool(
            test.Names(), self._sock, recv_bufsize=self.case.recv_bufsize,
            max_header_length=self.case.max_header_length,
            socket_timeout=self.case.socket_timeout)
        try:
            outcome = await self._first()
            await self._check_second(outcome)
            await close()
            gc.collect()
            await self._check_connections()
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
        is_early = self.case.early and not self.client.done()
        if is_early:
            await self._answer(peer)
        with contextlib.suppress(EOFError):  # The client has given up
            while True:
                head = await peer.read_until(b'\r\n\r\n')
                if head.startswith(SECOND):
                    await peer.send(test.response(b'second'))
                    continue
                if b'100-continue' in head and not is_early:
                    await peer.send(test.CONTINUE)
                await self._receive_body(peer)
                if not is_early:
                    await self.is_uploaded.wait()
                    await self._answer(peer)

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

    async def _answer(self, peer):
        try:
            await peer.send(self.case.data)
        finally:
            {'close': peer.close, 'reset': peer.reset, 'keep': int}[self.case.end]()
            self.is_answered.set()

    # The client

    async def _first(self):
        self.client = self.spawn(self._fetched())
        if self.case.turns is not None:
            for _ in range(self.case.turns):
                await asyncio.sleep(0)
            self.is_cancelled = self.client.cancel()
        try:
            outcome = await self.client
            assert not self.is_cancelled, 'a cancellation was lost'
            return outcome
        except asyncio.CancelledError:
            return (asyncio.CancelledError,)

    async def _fetched(self):
        outcome = ()
        try:
            *outcome, body = await self.request(
                self.case.method, self.server.url + '/first', headers=self.case.headers,
                **({'body': self._body} if self.case.body else {}))
            check_head(*outcome)
            if self.case.reading == 'all':
                outcome.append(await whole(body))
                check_body(self.case.method, *outcome)
            elif self.case.reading == 'first':
                async for _ in body:
                    break
                await body.aclose()
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
        if is_result(outcome) and self.case.reading == 'all' and len(self.server.peers) == 1:
            assert self.case.data.endswith((b'\r\n\r\n', outcome[2])), 'reused, in spite of more'

    async def _check_connections(self):
        _, pending = await asyncio.wait(self.tasks, timeout=1)
        for task in pending:
            task.cancel()
        assert not pending, 'open: %s' % [test.where(task) for task in pending]

    def _check_request(self, outcome):
        body = b''.join(filter(None, self.case.body))
        assert body.startswith(self.received), 'the server received %r' % self.received
        try:
            is_framed = end_of_request_body(self.case.headers, body) == len(body)
        except ValueError:
            is_framed = False
        if is_result(outcome) and not self.case.early:
            assert is_framed and self.received == body, 'the server received %r' % self.received
        if not is_result(outcome) and issubclass(outcome[-1], lowhaio.HttpConnectionError):
            sent = any(b'/first' in peer.received for peer in self.server.peers)
            assert not sent, '%s, but it was sent' % outcome[-1].__name__
            assert not is_framed or self.case.early, outcome


def is_result(outcome):
    return not isinstance(outcome[-1], type)


def comparable(outcome):
    # Which one of two faults is met first depends on how much has arrived
    return [lowhaio.HttpInvalidResponse if part is lowhaio.HttpHeaderTooLong else part
            for part in outcome]


async def whole(body):
    chunks = []
    try:
        async for chunk in body:
            assert type(chunk) is bytes and chunk, chunk
            chunks.append(chunk)
    except lowhaio.HttpError as exception:
        with contextlib.suppress(type(exception)):
            await lowhaio.buffered(body)
            raise AssertionError('a body that has failed just ends') from exception
        raise
    assert await lowhaio.buffered(body) == b'', 'a body that has ended goes on'
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


class Hang(KeyboardInterrupt):
    """Which a loop lets pass from wherever it is raised, and hypothesis too."""


class Fuzzer:
    """Plays cases, and looks at what is left of them."""

    def __init__(self, caught, logged):
        self.loop = test.Loop()
        self.loop.set_debug(False)  # Its tracebacks take half of the time
        self.caught = caught
        self.logged = logged
        self.count = self.faults = 0
        self.outcomes = collections.Counter()
        self.play = None  # The last one
        self.files = test.open_files()
        sys.unraisablehook = lambda unraisable: self.loop.faults.append(
            'unraisable: %r in %r' % (unraisable.exc_value, unraisable.object))
        signal.signal(signal.SIGALRM, self._on_alarm)

    def _on_alarm(self, *_):
        raise Hang('hangs at ' + test.where(self.play.client))

    def run(self, arguments):
        """Let hypothesis make cases until the time is over, or one has shown a fault."""
        self.end = time.monotonic() + arguments.seconds
        for number in itertools.count():
            gc.unfreeze()
            gc.collect()
            check = hypothesis.seed('%d %d' % (arguments.seed, number))(SETTINGS(
                hypothesis.given(cases=CASES)(self._check)))
            if arguments.blob:
                check = hypothesis.reproduce_failure(
                    hypothesis.__version__, arguments.blob.encode())(check)
            try:
                check()
            except (Exception, Hang):
                traceback.print_exc(file=sys.stdout)
            if self.faults or time.monotonic() > self.end:
                break

    def _check(self, cases):
        if not self.faults and time.monotonic() > self.end:
            return
        self.count += 1
        try:
            (self._check_time if len(cases) > 1 else self._check_one)(*cases)
        except (Exception, Hang) as exception:
            if not self.faults:
                print('\nFault: %.2000s\n%r\n' % (exception, self.play.case), flush=True)
            self.faults += 1
            raise

    def _check_one(self, case):
        outcome = self._outcome(case)
        assert not is_result(outcome) or not INTERIM_HEADS.match(case.data), 'read without end'
        if (case.end, case.early, case.reading, case.turns) == ('close', False, 'all', None):
            at_once = self._outcome(case._replace(segments=(), recv_bufsize=65536))
            assert comparable(outcome) == comparable(at_once), \
                '%r, but at once %r' % (outcome, at_once)

    def _check_time(self, *cases):
        """Four times as much takes four times as long, and not sixteen times."""
        for _ in range(3):
            small, large = (self._cpu_seconds(case) for case in cases)
            if large < max(0.05, 8 * small):
                return
        raise AssertionError('it took %.3f s, and a quarter of it %.3f s' % (large, small))

    def _cpu_seconds(self, case):
        start = time.process_time()
        self._outcome(case)
        return time.process_time() - start

    def _outcome(self, case):
        gc.freeze()  # So that to collect what it leaves takes no time
        self.play = Play(self.loop, case)
        signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
        try:
            outcome = self.loop.run_until_complete(self.play.outcome())
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faults = self._faults()
        assert not faults, '\n'.join(faults)
        self.outcomes['result' if is_result(outcome) else outcome[-1].__name__] += 1
        return outcome

    def _faults(self):
        """What the last play has left behind, and what was noticed of it."""
        gc.collect()
        loop = self.loop
        faults = loop.faults + ['a warning: %s' % warning for warning in self.caught] + [
            'asyncio logged: %s' % message for message in self.logged.messages()] + [
            'a timer: %r' % timer for timer in loop.active_timers()] + [
            'a %s of %d' % item for item in loop.watched] + [
            'a task: %s' % test.where(task) for task in asyncio.all_tasks(loop)] + [
            'a file: %d, %s' % item for item in test.open_files().items()
            if item not in self.files.items()]
        for leftovers in (loop.faults, loop.library_timers, self.caught, self.logged.records):
            leftovers.clear()
        return faults


SETTINGS = hypothesis.settings(
    max_examples=BATCH, database=None, deadline=None, print_blob=True,
    phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
    suppress_health_check=list(hypothesis.HealthCheck))


def main():
    parser = argparse.ArgumentParser(description='Fuzz lowhaio.')
    parser.add_argument('seconds', type=float)
    parser.add_argument('seed', type=int, nargs='?', default=random.randrange(1000000))
    parser.add_argument('--blob', help='the only case to play, as hypothesis has printed it')
    arguments = parser.parse_args()
    print('seed %d' % arguments.seed, flush=True)

    start = time.monotonic()
    with warnings.catch_warnings(record=True) as caught, \
            test.LogRecords('asyncio', logging.WARNING) as logged:
        warnings.simplefilter('always')
        fuzzer = Fuzzer(caught, logged)
        fuzzer.run(arguments)

    print('seed %d: %d faults in %d cases, %.0f a second: %s' % (
        arguments.seed, bool(fuzzer.faults), fuzzer.count,
        fuzzer.count / (time.monotonic() - start),
        ', '.join('%d %s' % (count, name) for name, count in fuzzer.outcomes.most_common())))
    sys.exit(bool(fuzzer.faults))


if __name__ == '__main__':
    main()
