"""Lets many workers loose with lowhaio on servers that misbehave at random, and checks all.

    python -W error -X dev .ci/chaos.py SECONDS [SEED]

What a request, its server and its caller do depends on the seed and the number of the request
alone. The target of a request says its number, and so which bytes its bodies must have. From its
plan follows what may become of it. Servers and workers share a loop, so nothing happens between
two steps of a worker: what may come of a request doesn't depend on what else goes on. Every few
seconds the pool is closed, and nothing may be left of it.

A request that shows a fault is printed with its plan and all that its server did.
"""

import asyncio
import contextlib
import faulthandler
import gc
import itertools
import random
import socket
import ssl
import sys
import time
import traceback

from search import END_SECONDS, main, test

import lowhaio

WORKERS = 30
SOCKET_TIMEOUT = 2  # Many times what a busy machine takes
HANG_SECONDS = 30  # More than the waits of any request take together

LITERAL, GOOD, REFUSED = '127.0.0.1', ('127.0.0.2', '127.0.0.3', '127.0.0.4'), '127.0.0.5'
NAMES = 'a.test', 'b.test'
test.TEST_FILES.add(__file__)  # Callers' bodies make tasks
BYTES = random.Random(0).getrandbits(8 << 23).to_bytes(1 << 23, 'big')
STRAYS = b'\r\n', b'\0', b'HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n'
EARLY_HINTS = b'HTTP/1.1 103 Early Hints\r\na: b\r\n\r\n'
BODY_ERRORS = {'HttpConnectionError', 'HttpDataError', 'HttpInvalidRequest'}


class BodyError(Exception):
    """What a body of a caller raises."""


# ---- What is to happen ----


def pick(rng, **weights):
    return rng.choices(list(weights), list(weights.values()))[0]


def content(number, size):
    """Bytes that no other request has at the same place."""
    start = number * 7919 % (len(BYTES) - size)
    return BYTES[start:start + size]


def split(rng, data, most):
    """Pieces that are not empty, and often end a byte before a line does."""
    cuts = {0, len(data)}
    for _ in range(rng.randint(0, most)):
        at = rng.randint(0, len(data))
        cuts.add(max(at, rng.choice((at, data.find(b'\r\n', at) - 1))))
    cuts = sorted(cuts)
    return [data[start:end] for start, end in zip(cuts, cuts[1:])]


def chunked(rng, data):
    """The chunks of data, and the last one."""
    chunks, position = [], 0
    while position < len(data):
        chunk = data[position:position + rng.choice((1, 30, 1000, 20000, 100000))]
        chunks.append(b'%x%b\r\n%b\r\n' % (
            len(chunk), rng.choice((b'', b'', b';a=b')), chunk))
        position += len(chunk)
    return [*chunks, b'0\r\n' + rng.choice((b'', b'', b'a: b\r\n')) + b'\r\n']


class Plan:
    """What a request, its server and its caller do: a pure function of seed and number.

    One that follows another on its connection has its origin.
    """

    def __init__(self, seed, number, previous=None):
        self.number = number
        self.seed = '%d %d' % (seed, number)
        rng = random.Random(self.seed)
        self.is_tls, self.host = rng.random() < 0.3, rng.choice((LITERAL, *NAMES))
        if previous:
            self.is_tls, self.host = previous.is_tls, previous.host
        self.method = pick(rng, GET=4, HEAD=1, POST=5).encode()
        self._plan_upload(rng)
        self._plan_response(rng)
        self._plan_fault(rng)
        self._plan_caller(rng, bool(previous))

    def _plan_upload(self, rng):
        is_upload = self.method == b'POST'
        self.upload = pick(rng, length=1, chunked=1) if is_upload else ''
        self.upload_size = is_upload and rng.choice((1, 500, 500, 70000, 70000, 3000000))
        self.upload_fault = pick(rng, no=10, fails=1, short=1, long=1) if is_upload else 'no'
        # Whether the response comes before the upload has: whole, or part by part. Then how much
        # of the upload the server waits for, and what it does after a whole one
        self.early = pick(rng, no=6, whole=5, echo=2) if is_upload else 'no'
        self.stop = rng.randrange(len(self.request_body())) if is_upload else 0
        self.then = pick(rng, read=4, half=2, reset=1) if self.early == 'whole' else 'read'

    def _plan_response(self, rng):
        self.framing = pick(rng, length=5, chunked=5, close=2)
        if self.framing == 'close' and self.early == 'whole':
            self.then = 'half'
        self.status = 200 if self.early == 'echo' else rng.choice((200, 200, 404))
        self.has_body = self.method != b'HEAD'
        # With a reset, what the system has not sent yet is lost. TLS resets at what it receives
        # after its close_notify
        self.size = self.has_body and rng.choice(
            (1, 100, 8000) if self.then != 'read' else (1, 100, 100, 8000, 1000000))
        self.interims = rng.choice((0, 0, 0, 1, 3))
        self.is_in_pieces = rng.random() < 0.4
        self.is_last = self.then != 'read' or (self.framing == 'close' and self.has_body) or \
            rng.random() < 0.1  # On its connection
        # Whether the upload is to stop at the response, or at the end of it
        self.is_refusal = self.early == 'whole' and self.status >= 300
        self.is_cut = self.is_refusal or (self.early == 'whole' and self.is_last)

    def _plan_fault(self, rng):
        """What the server does when it has sent so many bytes of the response."""
        self.fault, self.limit = 'no', sys.maxsize
        if self.upload_fault != 'no' or self.early == 'whole' or rng.random() < 0.8:
            return
        head = len(self.response_head())
        size = head + len(b''.join(self.response_body()))
        self.limit = rng.choice((0, rng.randrange(head), rng.randrange(size)))
        # The end of the connection may be that of the body
        is_end = self.framing == 'close' and self.limit >= head
        self.fault = rng.choice(('reset', 'stall') if is_end else (
            'reset', 'reset', 'half', 'half', 'cut', 'cut', 'stall'))

    def _plan_caller(self, rng, is_second):
        self.reading = pick(rng, all=12, slowly=2, half=1, dropped=2)
        self.interrupt = 'no' if is_second else pick(rng, no=14, cancel=2, timeout=2)
        self.interrupt_turns = rng.choice((0, 0, 1, 2, 3, 5, 8))
        self.interrupt_seconds = rng.choice((0, 0, rng.expovariate(100), rng.expovariate(5)))
        self.waits_forever = self.is_cut and self.upload_fault == 'no' and rng.random() < 0.3
        # What the server does to the idle connection, just before the next request. Who reads
        # slowly does so while others use it
        is_idle = not self.is_last and not self.upload and self.reading == 'all'
        self.after = pick(rng, no=1, half=1, stray=2) \
            if is_idle and self.interrupt == 'no' else 'no'

    def random(self, purpose):
        return random.Random('%s %s' % (self.seed, purpose))

    def headers(self):
        return [(b'x-id', b'%d' % self.number), *{
            '': [], 'length': [(b'content-length', b'%d' % self.upload_size)],
            'chunked': [(b'transfer-encoding', b'chunked')]}[self.upload]]

    def request_head(self):
        fields = [(b'host', self.host.encode()), *self.headers()]
        return b'%b /?number=%d HTTP/1.1\r\n%b\r\n' % (
            self.method, self.number, b''.join(b'%b: %b\r\n' % field for field in fields))

    def request_body(self):
        if not self.upload:
            return b''
        data = content(-self.number, self.upload_size)
        return b''.join(chunked(self.random('upload'), data)) \
            if self.upload == 'chunked' else data

    def yielded(self):
        """What of it the caller's body yields."""
        data = self.request_body()
        if self.upload_fault in ('fails', 'short'):
            return data[:self.random('fault').randrange(len(data))]
        return data[:self.stop] if self.waits_forever else data

    def response_head(self):
        return EARLY_HINTS * self.interims + b'HTTP/1.1 %d Reason\r\nx-id: %d\r\n%b%b\r\n' % (
            self.status, self.number, {
                'length': b'content-length: %d\r\n' % self.size, 'close': b'',
                'chunked': b'transfer-encoding: chunked\r\n'}[self.framing],
            b'connection: x, Close\r\n' * self.is_last)

    def response_body(self):
        """Its parts."""
        if not self.has_body:
            return []
        rng, data = self.random('chunks'), content(self.number, self.size)
        return chunked(rng, data) if self.framing == 'chunked' else split(rng, data, 5)

    def steps(self):
        """How much of the upload the server has received when it sends what."""
        size, units = len(self.request_body()), [self.response_head(), *self.response_body()]
        if self.early == 'echo':
            return [(size * index // len(units), unit) for index, unit in enumerate(units, 1)]
        return [(self.stop if self.early == 'whole' else size, b''.join(units))]

    def outcomes(self):
        """What may become of it, but for an interruption."""
        gives_up = {'given up'} if self.reading not in ('all', 'slowly') else set()
        if self.upload_fault != 'no':
            return BODY_ERRORS | (gives_up if self.early != 'no' else set()) | (
                {'result'} | gives_up if self.is_cut or self.upload_fault == 'long' else set())
        failure = {'no': 'result', 'stall': 'HttpDataError timeout'}.get(
            self.fault, 'HttpConnectionClosedError')
        return {failure} | (gives_up if self.limit >= len(self.response_head()) else set())


class Record:
    """What became of a plan."""

    def __init__(self, plan):
        self.plan = plan
        self.start = self.end = 0.0
        self.outcome = self.problem = ''
        self.peer = None
        self.uploads = 0  # Bodies of the caller that have started, and not ended
        self.received = 0  # By the server, of the upload
        self.read = 0  # By the caller, of the body of the response
        self.is_cancelled = False
        self.arrivals = []  # The addresses of the server at which it came
        self.events = []

    def note(self, event):
        self.events.append('%.3f %s' % (time.monotonic() - self.start, event))

    def __str__(self):
        plan = ' '.join('%s=%r' % item for item in vars(self.plan).items())
        return 'request %d, %.3f s, %s %s\n    %s\n    %s' % (
            self.plan.number, self.end and self.end - self.start, self.outcome, self.problem,
            plan, '\n    '.join(self.events))


# ---- The servers ----


def end_writing(peer):
    if isinstance(peer.sock, ssl.SSLSocket):
        with contextlib.suppress(ssl.SSLWantReadError, ValueError):  # It may have been
            peer.sock.unwrap()
    else:
        peer.sock.shutdown(socket.SHUT_WR)


class Servers:
    """With and without TLS, each at all the addresses."""

    def __init__(self, search, records):
        self.records = records
        self.stirred = {}  # The records of peers whose connections the client must close
        self.ports = {is_tls: test.free_port() for is_tls in (False, True)}
        context = test.server_context(LITERAL, *NAMES)
        self.servers = [
            test.Server(search, (), self._converse, context if is_tls else None, address, port)
            for is_tls, port in self.ports.items() for address in (LITERAL, *GOOD)]

    def close(self):
        for server in self.servers:
            server.close()

    async def _converse(self, peer):
        record = None
        try:
            while not record or not record.plan.is_last:
                peer.received.clear()  # It is checked as it comes
                record = self._arrived(peer, await peer.read_until(b'\r\n\r\n'))
                await self._answer(peer, record)
            await self._end(peer, record)
        except (OSError, EOFError) as exception:
            if record:
                record.note('the connection ended: %r' % exception)
        finally:
            self.stirred.pop(peer, None)

    def _arrived(self, peer, head):
        number = int(head.split(b' ', 2)[1].split(b'=')[1])
        record = self.records[number]
        record.peer = peer
        record.arrivals.append(peer.sock.getsockname()[0])
        record.note('arrived at %s:%d from %d' % (
            *peer.sock.getsockname(), peer.sock.getpeername()[1]))
        assert len(record.arrivals) == 1, '%d came again' % number
        assert peer not in self.stirred, '%d came on a connection that was at its end' % number
        assert head == record.plan.request_head(), head
        return record

    async def _answer(self, peer, record):
        """Receive the upload, and send the response, as they take turns."""
        plan, upload, sent = record.plan, record.plan.request_body(), 0
        for position, unit in plan.steps():
            data = unit[:plan.limit - sent]
            await self._receive(peer, record, upload, position if plan.limit else 0)
            sent += len(data)
            await self._send(peer, plan, data)
            record.note('sent %d, received %d' % (sent, record.received))
            if sent == plan.limit:
                await self._misbehave(peer, record, plan.fault)
        if plan.then != 'read':
            await self._misbehave(peer, record, plan.then)
        await self._receive(peer, record, upload, len(upload))

    async def _receive(self, peer, record, upload, stop):
        while record.received < min(stop, len(upload)):
            data = peer.unread or await peer.receive()
            if not data:
                raise EOFError
            missing = len(upload) - record.received
            data, peer.unread = data[:missing], data[missing:]
            assert upload.startswith(data, record.received), \
                'wrong bytes at %d of %d' % (record.received, record.plan.number)
            record.received += len(data)

    async def _send(self, peer, plan, data):
        rng = plan.random('send')
        for piece in split(rng, data, 6 * plan.is_in_pieces):
            await peer.send(piece)
            await asyncio.sleep(rng.choice((0, 0, 0.002)) * plan.is_in_pieces)

    async def _misbehave(self, peer, record, how):
        record.note(how)
        if how == 'cut':
            peer.close()
        elif how == 'reset':
            peer.reset()
        else:
            if how == 'half':
                end_writing(peer)
            else:
                await asyncio.sleep(1.5 * SOCKET_TIMEOUT)
            self.stirred[peer] = record
            await peer.ended()
        raise EOFError

    async def _end(self, peer, record):
        """Close, or see that the client does."""
        plan = record.plan
        if plan.has_body and plan.framing == 'close':
            end_writing(peer)
        if plan.random('end').random() < 0.5:
            self.stirred[peer] = record
            data = await peer.ended()
            assert not data, '%d sent more: %r' % (plan.number, data)

    def stir(self, record):
        """Do what the client must notice before it uses a connection again."""
        after, peer = record.plan.after, record.peer
        if not peer.is_open():
            return
        record.note('idle, then %s' % after)
        self.stirred[peer] = record
        with contextlib.suppress(OSError):  # The client may have closed it
            if after == 'stray':
                peer.sock.send(record.plan.random('stray').choice(STRAYS))
            else:
                end_writing(peer)


# ---- The names ----


class Names(test.Names):
    """Their addresses change all the time."""

    def __init__(self, seed):
        super().__init__()
        self.rng = random.Random(seed)
        self.answers = []  # The host, when, until when, and the addresses

    async def resolve(self, host, record_type, get_logger_adapter):
        rng = self.rng
        await asyncio.sleep(rng.choice((0, 0, 0.001, 0.02)))
        addresses = [REFUSED] * (rng.random() < 0.2) + rng.sample(GOOD, rng.choice((1, 1, 2)))
        self.add(host, 'A', *addresses)
        self.ttl, now = rng.choice((0, 0.01, 0.1, 0.5)), asyncio.get_running_loop().time()
        self.answers.append((host, now, now + self.ttl, addresses))
        return await super().resolve(host, record_type, get_logger_adapter)

    def known(self, record):
        """The addresses that a request can have had."""
        host = record.plan.host
        return [LITERAL] if host == LITERAL else [
            address for name, start, end, addresses in self.answers for address in addresses
            if name == host and start <= record.end and end + 0.01 >= record.start]


# ---- The workers, and what must be true ----


class Chaos:
    """Workers on a pool, for one pool after the other."""

    def __init__(self, search, seed):
        self.search, self.loop = search, search.loop
        self.seed, self.rng = seed, random.Random(seed)
        self.numbers = itertools.count(1)

    def run(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.search.faults:
            faulthandler.dump_traceback_later(300, exit=True)
            self.end = min(end, time.monotonic() + self.rng.choice((1, 2, 4)))
            try:
                self.loop.run_until_complete(self._use_pool())
                self.search.check_leftovers()
            except AssertionError as exception:
                self.search.fault(exception, '')
        faulthandler.cancel_dump_traceback_later()

    async def _use_pool(self):
        self.loop.start_watching_tasks()
        self.records, self.names = {}, Names(self.rng.random())
        self.closed = float('inf')
        self.servers = Servers(self.search, self.records)
        self.request, close = lowhaio.Pool(
            self.names, get_ssl_context=test.trusting, socket_timeout=SOCKET_TIMEOUT,
            keep_alive_timeout=self.rng.choice((0, 0.2, 15, 15)),
            recv_bufsize=self.rng.choice((65536, 16384, 4096)))
        workers = [self.loop.create_task(self._work()) for _ in range(WORKERS)]
        if self.rng.random() < 0.5:
            await asyncio.wait(workers, timeout=self.end - time.monotonic())
            self.closed = self.loop.time()
            await close()  # What has started goes on
        await asyncio.gather(*workers)
        gc.collect()
        end = time.monotonic() + END_SECONDS
        while self.servers.stirred and time.monotonic() < end:
            await asyncio.sleep(0.02)
        for record in self.servers.stirred.values():
            self.search.fault('its connection was not closed', record)
        await close()
        await self.search.check_connections()
        self._judge_all()
        self.servers.close()

    async def _work(self):
        while time.monotonic() < self.end and not self.search.faults:
            record = self._new_record()
            plan, task = record.plan, self.loop.create_task(self._play(record))
            if plan.interrupt == 'cancel':
                for _ in range(plan.interrupt_turns):
                    await asyncio.sleep(0)
                await asyncio.wait({task}, timeout=plan.interrupt_seconds)
                record.is_cancelled = task.cancel()
            await asyncio.wait({task}, timeout=HANG_SECONDS)
            if not task.done():
                self.search.fault('hangs at ' + test.where(task), record)
                task.cancel()

    def _new_record(self, previous=None):
        plan = Plan(self.seed, next(self.numbers), previous)
        record = self.records[plan.number] = Record(plan)
        return record

    async def _play(self, record):
        """Make a request, and keep what becomes of it. Raises nothing."""
        plan = record.plan
        record.start = self.loop.time()
        try:
            if plan.interrupt == 'timeout':
                with lowhaio.timeout(self.loop, plan.interrupt_seconds):
                    record.outcome = await self._fetch(record)
            else:
                record.outcome = await self._fetch(record)
        except asyncio.CancelledError:
            record.outcome = 'cancelled'
        except asyncio.TimeoutError:
            record.outcome = 'timed out'
        except lowhaio.HttpError as exception:
            is_late = isinstance(exception.__cause__, asyncio.TimeoutError)
            record.outcome = type(exception).__name__ + ' timeout' * is_late
            record.note('%r from %r' % (exception, exception.__cause__))
        except Exception:
            record.problem = traceback.format_exc()
        record.end = self.loop.time()
        if record.outcome != 'cancelled' and sys.version_info >= (3, 11) and \
                asyncio.current_task().cancelling():
            record.problem += 'the task is being cancelled'

        if record.outcome == 'result' and plan.after != 'no':
            self.servers.stir(record)
            await self._play(self._new_record(plan))

    async def _fetch(self, record):
        plan = record.plan
        url = '%s://%s:%d/' % (
            'https' if plan.is_tls else 'http', plan.host, self.servers.ports[plan.is_tls])
        code = b''
        try:
            code, headers, body = await self.request(
                plan.method, url, {'number': plan.number}, plan.headers(),
                **({'body': self._upload, 'body_args': (record,)} if plan.upload else {}))
        finally:
            assert not record.uploads or (code and not plan.is_refusal), 'the upload is open'
        assert code == b'%d' % plan.status and dict(headers)[b'x-id'] == b'%d' % plan.number, \
            headers
        return await self._read(record, body)

    async def _upload(self, record):
        plan, rng = record.plan, record.plan.random('pieces')
        record.uploads += 1
        try:
            for piece in split(rng, plan.yielded(), rng.choice((0, 1, 9))):
                if rng.random() < 0.2:
                    await self._await(plan, rng.choice((0, 0, 0.001, 0.02)))
                yield rng.choice((bytes, bytearray, memoryview))(piece)
            if plan.waits_forever:
                await self.loop.create_future()
            if plan.upload_fault == 'fails':
                raise BodyError
            if plan.upload_fault == 'long':
                yield b'more'
        finally:
            record.uploads -= 1

    async def _await(self, plan, seconds):
        if plan.reading != 'all':  # What its caller awaits else would be hit by a timeout
            await asyncio.sleep(seconds)
            return
        with contextlib.suppress(asyncio.TimeoutError), lowhaio.timeout(self.loop, seconds):
            await self.loop.create_future()

    async def _read(self, record, body):
        """Read a body, and check every byte of it."""
        plan = record.plan
        expected = content(plan.number, plan.size)
        if plan.reading == 'dropped' and plan.number % 2:
            return 'given up'
        chunk, pauses = await self._next_chunk(body), 10 * (plan.reading == 'slowly')
        while chunk:
            assert expected.startswith(chunk, record.read), 'wrong bytes at %d' % record.read
            record.read += len(chunk)
            if plan.reading == 'half' and record.read > plan.size // 2:
                await body.aclose()
                assert not record.uploads, 'the upload is open'
                return 'given up'
            if plan.reading == 'dropped':
                return 'given up'
            if pauses:
                pauses -= 1
                await asyncio.sleep(0.005)
            chunk = await self._next_chunk(body)
        assert record.read == plan.size, 'only %d bytes' % record.read
        assert await lowhaio.buffered(body) == b''
        assert not record.uploads, 'the upload is open'
        return 'result'

    @staticmethod
    async def _next_chunk(body):
        """Return b'' at the end."""
        try:
            chunk = await body.__anext__()
            assert type(chunk) is bytes and chunk, chunk
            return chunk
        except StopAsyncIteration:
            return b''
        except (lowhaio.HttpError, asyncio.CancelledError):
            with contextlib.suppress(lowhaio.HttpDataError):
                await body.__anext__()
                raise AssertionError('a body that has failed goes on') from None
            raise

    def _judge_all(self):
        for record in self.records.values():
            try:
                self._judge(record)
                self.search.outcomes[record.outcome] += 1
            except AssertionError as exception:
                self.search.fault(exception, record)

    def _judge(self, record):
        plan, outcome, arrivals = record.plan, record.outcome, record.arrivals
        assert outcome and not record.problem, 'a problem'
        assert arrivals or outcome not in ('result', 'given up'), 'it never came'
        assert set(arrivals) <= set(self.names.known(record)), \
            'arrived at %s, not at %s' % (arrivals, self.names.known(record))
        kind = getattr(lowhaio, outcome.split()[0], None)
        assert not kind or not arrivals or issubclass(kind, lowhaio.HttpDataError), 'it was sent'
        assert not outcome.endswith('timeout') or \
            record.end - record.start > SOCKET_TIMEOUT * 0.9, 'it timed out early'
        assert not record.uploads, 'the upload was not closed'
        assert not record.is_cancelled or outcome == 'cancelled', 'a cancellation was lost'
        assert outcome != 'result' or plan.is_cut or \
            record.received == len(plan.request_body()), 'the upload was cut'
        interrupted = {'no': '', 'cancel': 'cancelled', 'timeout': 'timed out'}[plan.interrupt]
        is_refused = outcome == 'HttpConnectionError' and record.start >= self.closed
        assert is_refused or outcome == interrupted or outcome in plan.outcomes(), \
            'it should be %s' % ' or '.join(sorted(plan.outcomes()))


if __name__ == '__main__':
    main(lambda search, seconds, seed: Chaos(search, seed).run(seconds))
