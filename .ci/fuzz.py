"""Fuzzes lowhaio with mutations of the rows of test.py.

    python -W error -X dev .ci/fuzz.py SECONDS [SEED] [--case NUMBER]

Whatever a server sends, a request comes to a result or to an HttpError, and soon; to the same in
whichever segments it arrives; and in time that grows with its size, not with the square of it.
Nothing is left behind, and the next request gets its own answer. Whatever the caller's body
yields, what leaves is the start of a body that is framed as the head says.

A case depends on the seed, its number and the rows alone. It is printed if it shows a fault.
"""

import argparse
import asyncio
import collections
import contextlib
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

import lowhaio
import test

HANG_SECONDS = 5
MAX_FAULTS = 5

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

    def __str__(self):
        return ''.join('    %s=%s,\n' % (name, literal(value))
                       for name, value in self._asdict().items())


def literal(value):
    """What Python reads as the value, with repeated bytes written as such."""
    if isinstance(value, tuple):
        return '(%s)' % ''.join(literal(member) + ', ' for member in value)
    if not isinstance(value, bytes) or not value:
        return repr(value)
    runs = re.finditer(rb'(.)\1{30,}|(?:(?!(.)\2{30}).)+', value, re.DOTALL)
    return ' + '.join('%r * %d' % (run[1], len(run[0])) if run[1] else repr(run[0])
                      for run in runs)


# ---- How cases are made ----


def place(rng, data):
    """An index, often one at which something begins or ends."""
    marks = [match.start() for match in re.finditer(rb'[\r\n:; ]|\Z', data)]
    return rng.choice((rng.randint(0, len(data)), rng.choice(marks)))


def mutated(rng, data, *times):
    for _ in range(rng.choice(times)):
        start = place(rng, data)
        start, end = sorted((start, rng.choice((start, start + 1, start + 9, place(rng, data)))))
        span, token, other = data[start:end], rng.choice(TOKENS), rng.choice(test.RESPONSES).data
        data = data[:start] + rng.choice((
            b'', token, token, token + span, span * 2, span.swapcase(), other + span,
            other[place(rng, other):],
            bytes(byte ^ 1 << rng.randrange(8) for byte in span),
            bytes((rng.randrange(256),)) * rng.choice((1, 2, 20, 300, 16384)),
        )) + data[end:]
    return data


def chunk_stream(rng):
    lines = []
    for _ in range(rng.randint(0, 5)):
        chunk = rng.choice((b'a', b'\r\n', b'0\r\n\r\n', bytes(range(256)), b'b' * 3000))
        size = b'%0*x' % (rng.choice((1, 1, 1, 1, 2, 16, 17)), len(chunk))
        lines += [size + rng.choice((b'', b'', b' ', b';a', b' ;a="b"')), chunk]
    lines += [b'0', *rng.choice(((), (), (b'a: b',), (b'a:', b' b', b'C: d'))), b'', b'']
    return b'\r\n'.join(lines)


def cuts(rng, data):
    """The sizes of the pieces to cut data into, but for the last."""
    if len(data) < 300 and rng.random() < 0.2:
        return (1,) * len(data)
    at = sorted({0, *(place(rng, data) for _ in range(rng.choice((0, 1, 1, 2, 5, 20))))})
    return tuple(end - start for start, end in zip(at, at[1:]))


def response_case(rng):
    row = rng.choice(test.RESPONSES)
    data = mutated(rng, row.data, 0, 1, 1, 1, 2, 3, 5) if rng.random() < 0.8 else \
        test.CHUNKED + mutated(rng, chunk_stream(rng), 0, 1, 1, 2)
    method, headers, body = rng.choice((
        *[(row.method, (), ())] * 4, (b'HEAD', (), ()),
        (b'POST', ((b'content-length', b'4'),), (b'da', None, b'ta')),
        (b'POST', (CODING,), (None, test.chunked(b'data'))),
        (b'PUT', ((b'content-length', b'300000'),), (b'd' * 100000,) * 3),
        (b'PUT', ((b'content-length', b'4'), (b'expect', b'100-continue')), (b'data',)),
    ))
    end = rng.choice(('close',) * 16 + ('reset', 'reset', 'keep', 'keep'))
    case = Case(
        data, cuts(rng, data), end, rng.random() < 0.1, method, headers, body,
        reading=rng.choice(('all',) * 8 + ('first', 'none')),
        turns=rng.randrange(12) if rng.random() < 0.1 else None,
        recv_bufsize=rng.choice((65536, 65536, 100, 7, 1)[:4 if len(data) > 1000 else 5]),
        max_header_length=rng.choice((row.limit, row.limit, 16384, 100000, 60)),
        socket_timeout=0.05 if end == 'keep' else 2)
    # libuv tells of a reset once: what a SegmentedSocket keeps back then would be waited for
    return case._replace(segments=()) \
        if test.LOOP == 'uvloop' and (end == 'reset' or case.early) else case


def upload_case(rng):
    stream, body = mutated(rng, chunk_stream(rng), 0, 1, 1, 1, 2), []
    length = b'content-length', b'%d' % max(0, len(stream) + rng.choice((-1, 0, 1)))
    for end in itertools.accumulate((*cuts(rng, stream), len(stream))):
        piece = stream[sum(map(len, filter(None, body))):end]
        body += [piece, *rng.choice(((), (), (None,), (None, b''), (None,) * 5))]
    return Case(test.OK, end='keep', method=b'POST', body=tuple(body), max_header_length=1000000,
                headers=(rng.choice((CODING, CODING, CODING, length)),))


def repeat_cases(rng):
    """A case with a repeated byte, alone or within a row, and one with four times as many."""
    data = rng.choice((b'', test.CHUNKED + chunk_stream(rng), rng.choice(test.RESPONSES).data))
    at = place(rng, data)
    byte = bytes((rng.choice((rng.randrange(256), *b'\r\n\t :;,"a0f')),))
    size, bufsize = rng.choice(((4096, 65536),) * 5 + ((4096, 1), (16384, 16)))
    # With each segment, a line that isn't whole is looked through anew, up to the limit
    limit = 1000000 if bufsize == 65536 else 1000
    return [Case(data[:at] + byte * count + data[at:], recv_bufsize=bufsize,
                 max_header_length=limit) for count in (size, 4 * size)]


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
            self.client.cancel()
        try:
            return await self.client
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
    assert case.end == 'keep' or not isinstance(exception.__cause__, asyncio.TimeoutError), \
        'waited in vain: %r' % exception


# ---- The fuzzer ----


class Hang(KeyboardInterrupt):
    """Which a loop lets pass from wherever it is raised."""


class Fuzzer:
    """Makes cases, plays them, and looks at what is left of them."""

    def __init__(self, caught, logged):
        self.loop = test.Loop()
        self.loop.set_debug(False)  # Its tracebacks take half of the time
        self.caught = caught
        self.logged = logged
        self.outcomes = collections.Counter()
        self.plays = []  # Of the last case
        gc.freeze()  # So that collecting what cases leave takes no time
        self.files = test.open_files()
        self.threads = test.threads()
        sys.unraisablehook = lambda unraisable: self.loop.faults.append(
            'unraisable: %r in %r' % (unraisable.exc_value, unraisable.object))
        signal.signal(signal.SIGALRM, self._on_alarm)

    def _on_alarm(self, *_):
        raise Hang('hangs at ' + test.where(self.plays[-1].client))

    def fuzz(self, rng):
        self.plays = []
        rng.choice((self._response,) * 5 + (self._upload,) * 2 + (self._repeat,) * 2)(rng)

    def _response(self, rng):
        case = response_case(rng)
        outcome = self._outcome(case)
        if (case.end, case.early, case.reading, case.turns) == ('close', False, 'all', None):
            at_once = self._outcome(case._replace(segments=(), recv_bufsize=65536))
            assert comparable(outcome) == comparable(at_once), \
                '%r, but at once %r' % (outcome, at_once)

    def _upload(self, rng):
        self._outcome(upload_case(rng))

    def _repeat(self, rng):
        """Four times as much takes four times as long, and not sixteen times."""
        cases = repeat_cases(rng)
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
        play = Play(self.loop, case)
        self.plays.append(play)
        signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
        try:
            outcome = self.loop.run_until_complete(play.outcome())
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


def main():
    parser = argparse.ArgumentParser(description='Fuzz lowhaio.')
    parser.add_argument('seconds', type=float)
    parser.add_argument('seed', type=int, nargs='?', default=random.randrange(1000000))
    parser.add_argument('--case', type=int, help='the number of the only case to play')
    arguments = parser.parse_args()
    print('seed %d' % arguments.seed, flush=True)

    with warnings.catch_warnings(record=True) as caught, \
            test.LogRecords('asyncio', logging.WARNING) as logged:
        warnings.simplefilter('always')
        sys.exit(run(Fuzzer(caught, logged), arguments))


def run(fuzzer, arguments):
    """Return the number of faults."""
    start, count, faults = time.monotonic(), 0, 0
    numbers = itertools.count() if arguments.case is None else [arguments.case]
    for number in numbers:
        if time.monotonic() > start + arguments.seconds and numbers != [number]:
            break
        count += 1
        try:
            fuzzer.fuzz(random.Random('%d %d' % (arguments.seed, number)))
        except (Exception, Hang) as exception:
            faults += 1
            print('\nFault: seed %d --case %d, Case(\n%s)' % (
                arguments.seed, number, fuzzer.plays[-1].case))
            traceback.print_exc(file=sys.stdout)
            if isinstance(exception, Hang) or faults == MAX_FAULTS:
                break

    seconds = time.monotonic() - start
    print('seed %d: %d faults in %d cases, %.0f a second: %s' % (
        arguments.seed, faults, count, count / seconds,
        ', '.join('%d %s' % (count, name) for name, count in fuzzer.outcomes.most_common())))
    return min(faults, 1)


if __name__ == '__main__':
    main()
