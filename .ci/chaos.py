"""Lets many workers loose with lowhaio on servers that misbehave at random, and checks all.

    python -W error -X dev .ci/chaos.py SECONDS [SEED]

What a request, its server and its caller do depends on the seed and the number of the request
alone, and from that follows what may become of it. Its target says the number, and so which bytes
its bodies must have. Servers and workers share a loop, so nothing happens between two steps of a
worker, and no request crosses with the end of its connection by chance. Every few seconds the pool
is closed, and nothing may be left of it.

A request that shows a fault is printed with its plan and all that its server did.
"""

import asyncio
import contextlib
import gc
import itertools
import random
import socket
import ssl
import sys
import time
import traceback

from search import END_SECONDS, main, next_chunk, test

import lowhaio

WORKERS = 40
SOCKET_TIMEOUT = 2  # Many times what a busy machine takes
HANG_SECONDS = 10  # More than the waits of any request take together

LITERAL, GOOD = '127.0.0.1', ('127.0.0.2', '127.0.0.3', '127.0.0.4')
SILENT = '127.0.0.6'
BAD = '127.0.0.5', SILENT  # The first refuses connections
NAMES = 'a.test', 'b.test'
test.TEST_FILES.add(__file__)  # Callers' bodies make timers
BYTES = random.Random(0).getrandbits(8 << 23).to_bytes(1 << 23, 'big')
STRAYS = b'\r\n', b'\0', b'HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n'


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


class Request:
    """What it, its server and its caller are to do, which follows from seed and number alone, and
    what became of it. One that follows another on its connection has its origin.
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

        self.start = self.end = 0.0
        self.outcome = self.problem = ''
        self.peer = None  # The server's end of its connection
        self.uploads = 0  # Bodies of the caller that have started, and not ended
        self.received = 0  # By the server, of the upload
        self.read = 0  # By the caller, of the body of the response
        self.was_cancelled = False  # Before its end
        self.arrivals = []  # The addresses of the server at which it came
        self.events = []

    def note(self, event):
        self.events.append('%.3f %s' % (time.monotonic() - self.start, event))

    def __str__(self):
        return '\n'.join('    %s: %s' % item for item in vars(self).items())

    def _plan_upload(self, rng):
        is_upload = self.method == b'POST'
        self.upload = pick(rng, length=1, chunked=1) if is_upload else ''
        self.upload_size = is_upload and rng.choice((1, 500, 500, 70000, 70000, 3000000))
        # Whether the response comes before the upload has: whole, or part by part. Then how much
        # of the upload the server waits for, and what it does after a whole one
        self.early = pick(rng, no=6, whole=5, echo=2) if is_upload else 'no'
        self.stop = rng.randrange(len(self.request_body())) if is_upload else 0
        self.then = pick(rng, read=3, half=2, reset=4) if self.early == 'whole' else 'read'

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
        self.is_in_pieces = rng.random() < 0.4
        self.is_last = self.then != 'read' or (self.framing == 'close' and self.has_body) or \
            rng.random() < 0.1  # On its connection
        # Whether the upload is to stop at the response, or at the end of it
        self.is_refusal = self.early == 'whole' and self.status >= 300
        self.is_cut = self.is_refusal or (self.early == 'whole' and self.is_last)

    def _plan_fault(self, rng):
        """What the server does when it has sent so many bytes of the response."""
        self.fault, self.limit = 'no', sys.maxsize
        if self.early == 'whole' or rng.random() < 0.8:
            return
        head = len(self.response_head())
        size = head + len(b''.join(self.response_body()))
        self.limit = rng.choice((0, rng.randrange(head), rng.randrange(size)))
        # The end of the connection may be that of the body
        is_end = self.framing == 'close' and self.limit >= head
        self.fault = pick(rng, reset=3, stall=1, half=0 if is_end else 3)

    def _plan_caller(self, rng, is_second):
        self.reading = pick(rng, all=10, closed=1, dropped=1)  # The other two in the middle
        # By its caller, who waits for so many turns of the loop and seconds
        self.is_cancelled = not is_second and rng.random() < 0.2
        self.cancel_turns = rng.choice((0, 0, 1, 2, 3, 5, 8))
        self.cancel_seconds = rng.choice((0, 0, rng.expovariate(100), rng.expovariate(5)))
        self.waits_forever = self.is_cut and rng.random() < 0.3
        # What the server does to the idle connection, just before the next request
        is_idle = not self.is_last and not self.upload and self.reading == 'all'
        self.after = pick(rng, no=1, half=1, stray=2) \
            if is_idle and not self.is_cancelled else 'no'

    def random(self, purpose):
        return random.Random('%s %s' % (self.seed, purpose))

    def headers(self):
        return {'': (), 'length': ((b'content-length', b'%d' % self.upload_size),),
                'chunked': ((b'transfer-encoding', b'chunked'),)}[self.upload]

    def request_body(self):
        if not self.upload:
            return b''
        data = content(-self.number, self.upload_size)
        return b''.join(chunked(self.random('upload'), data)) \
            if self.upload == 'chunked' else data

    def response_head(self):
        return b'HTTP/1.1 %d Reason\r\nx-id: %d\r\n%b%b\r\n' % (
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
        """What may become of it, but for a cancellation."""
        gives_up = {'given up'} if self.reading != 'all' else set()
        failure = {'no': 'result', 'stall': 'HttpDataError timeout'}.get(
            self.fault, 'HttpConnectionClosedError')
        return {failure} | (gives_up if self.limit >= len(self.response_head()) else set())


# ---- The servers ----


def end_writing(peer):
    if isinstance(peer.sock, ssl.SSLSocket):
        with contextlib.suppress(ssl.SSLWantReadError, ValueError):  # It may have been
            peer.sock.unwrap()
    else:
        peer.sock.shutdown(socket.SHUT_WR)


class Servers:
    """With and without TLS, each at all the addresses."""

    def __init__(self, search, requests):
        self.search, self.requests = search, requests
        self.stirred = {}  # The requests of peers whose connections the client must close
        self.ports = {is_tls: test.free_port() for is_tls in (False, True)}
        self.silent = contextlib.ExitStack()
        for port in self.ports.values():
            self.silent.enter_context(test.silent_address(SILENT, port))
        context = test.server_context(LITERAL, *NAMES)
        self.servers = [
            test.Server(search, (), self._converse, context if is_tls else None, address, port)
            for is_tls, port in self.ports.items() for address in (LITERAL, *GOOD)]

    def close(self):
        for server in self.servers:
            server.close()
        self.silent.close()

    async def _converse(self, peer):
        request = None
        try:
            while not request or not request.is_last:
                peer.received.clear()  # It is checked as it comes
                request = self._arrived(peer, await peer.read_until(b'\r\n\r\n'))
                await self._answer(peer, request)
            await self._end(peer, request)
        except (OSError, EOFError) as exception:
            if request:
                request.note('the connection ended: %r' % exception)
        except AssertionError as exception:
            self.search.fault(exception, request)
        finally:
            self.stirred.pop(peer, None)

    def _arrived(self, peer, head):
        number = int(head.split(b' ', 2)[1].split(b'=')[1])
        request = self.requests[number]
        request.peer = peer
        request.arrivals.append(peer.sock.getsockname()[0])
        request.note('arrived at %s:%d from %d' % (
            *peer.sock.getsockname(), peer.sock.getpeername()[1]))
        assert len(request.arrivals) == 1, '%d came again' % number
        assert peer not in self.stirred, '%d came on a connection that was at its end' % number
        return request

    async def _answer(self, peer, request):
        """Receive the upload, and send the response, as they take turns."""
        upload, sent = request.request_body(), 0
        for position, unit in request.steps():
            data = unit[:request.limit - sent]
            await self._receive(peer, request, upload, position if request.limit else 0)
            sent += len(data)
            await self._send(peer, request, data)
            request.note('sent %d, received %d' % (sent, request.received))
            if sent == request.limit:
                await self._misbehave(peer, request, request.fault)
        if request.then != 'read':
            await self._misbehave(peer, request, request.then)
        await self._receive(peer, request, upload, len(upload))

    async def _receive(self, peer, request, upload, stop):
        while request.received < min(stop, len(upload)):
            data = peer.unread or await peer.receive()
            if not data:
                raise EOFError
            missing = len(upload) - request.received
            data, peer.unread = data[:missing], data[missing:]
            assert upload.startswith(data, request.received), \
                'wrong bytes at %d of %d' % (request.received, request.number)
            request.received += len(data)

    async def _send(self, peer, request, data):
        rng = request.random('send')
        for piece in split(rng, data, 6 * request.is_in_pieces):
            await peer.send(piece)
            await asyncio.sleep(rng.choice((0, 0, 0.002)) * request.is_in_pieces)

    async def _misbehave(self, peer, request, how):
        request.note(how)
        if how == 'reset':
            peer.reset()
            raise EOFError
        if how == 'half':
            end_writing(peer)
        self.stirred[peer] = request
        await peer.ended()
        raise EOFError

    async def _end(self, peer, request):
        """Close, or see that the client does."""
        if request.framing == 'close' and request.has_body:
            end_writing(peer)
            return
        self.stirred[peer] = request
        data = await peer.ended()
        assert not data, '%d sent more: %r' % (request.number, data)

    def stir(self, request):
        """Do what the client must notice before it uses a connection again."""
        after, peer = request.after, request.peer
        if not peer.is_open():
            return
        request.note('idle, then %s' % after)
        self.stirred[peer] = request
        with contextlib.suppress(OSError):  # The client may have closed it
            if after == 'stray':
                peer.sock.send(request.random('stray').choice(STRAYS))
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
        addresses = rng.sample(BAD, rng.choice((0, 0, 0, 0, 1, 1, 2))) + \
            rng.sample(GOOD, rng.choice((1, 1, 2)))
        self.add(host, 'A', *addresses)
        self.ttl, now = rng.choice((0, 0.01, 0.1, 0.5)), asyncio.get_running_loop().time()
        self.answers.append((host, now, now + self.ttl, addresses))
        return await super().resolve(host, record_type, get_logger_adapter)

    def known(self, request):
        """The addresses that a request can have had."""
        host = request.host
        return [LITERAL] if host == LITERAL else [
            address for name, start, end, addresses in self.answers for address in addresses
            if name == host and start <= request.end and end + 0.01 >= request.start]


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
            self.end = min(end, time.monotonic() + self.rng.choice((1, 4, 8)))
            try:
                self.loop.run_until_complete(self._use_pool())
                self.search.check_leftovers()
            except AssertionError as exception:
                self.search.fault(exception, '')

    async def _use_pool(self):
        self.loop.start_watching_tasks()
        self.requests, self.names = {}, Names(self.rng.random())
        self.servers = Servers(self.search, self.requests)
        self.send, close = lowhaio.Pool(
            self.names, get_ssl_context=test.trusting, socket_timeout=SOCKET_TIMEOUT,
            keep_alive_timeout=self.rng.choice((0, 0.2, 15, 15)),
            recv_bufsize=self.rng.choice((65536, 16384, 4096)))
        await asyncio.gather(*(self._work() for _ in range(WORKERS)))
        gc.collect()
        end = time.monotonic() + END_SECONDS
        while self.servers.stirred and time.monotonic() < end:
            await asyncio.sleep(0.02)
        for request in self.servers.stirred.values():
            self.search.fault('its connection was not closed', request)
        await close()
        await self.search.check_connections()
        for request in self.requests.values():
            try:
                self._judge(request)
                self.search.outcomes[request.outcome] += 1
            except AssertionError as exception:
                self.search.fault(exception, request)
        self.servers.close()

    async def _work(self):
        while time.monotonic() < self.end and not self.search.faults:
            request = self._new_request()
            task = self.loop.create_task(self._play(request))
            if request.is_cancelled:
                for _ in range(request.cancel_turns):
                    await asyncio.sleep(0)
                await asyncio.wait({task}, timeout=request.cancel_seconds)
                request.was_cancelled = task.cancel()
            await asyncio.wait({task}, timeout=HANG_SECONDS)
            if not task.done():
                self.search.fault('hangs at ' + test.where(task), request)
                task.cancel()

    def _new_request(self, previous=None):
        number = next(self.numbers)
        request = self.requests[number] = Request(self.seed, number, previous)
        return request

    async def _play(self, request):
        """Make a request, and keep what becomes of it. Raises nothing."""
        request.start = self.loop.time()
        try:
            request.outcome = await self._fetch(request)
        except asyncio.CancelledError:
            request.outcome = 'cancelled'
        except lowhaio.HttpError as exception:
            is_late = isinstance(exception.__cause__, asyncio.TimeoutError)
            request.outcome = type(exception).__name__ + ' timeout' * is_late
            request.note('%r from %r' % (exception, exception.__cause__))
        except Exception:
            request.problem = traceback.format_exc()
        request.end = self.loop.time()
        if request.outcome == 'result' and request.after != 'no':
            self.servers.stir(request)
            await self._play(self._new_request(request))

    async def _fetch(self, request):
        scheme = 'https' if request.is_tls else 'http'
        url = '%s://%s:%d/' % (scheme, request.host, self.servers.ports[request.is_tls])
        code = b''
        try:
            code, headers, body = await self.send(
                request.method, url, {'number': request.number}, request.headers(),
                **({'body': self._upload, 'body_args': (request,)} if request.upload else {}))
        finally:
            assert not request.uploads or (code and not request.is_refusal), 'the upload is open'
        assert (code, dict(headers)[b'x-id']) == (
            b'%d' % request.status, b'%d' % request.number), headers
        return await self._read(request, body)

    async def _upload(self, request):
        rng = request.random('pieces')
        request.uploads += 1
        try:
            data = request.request_body()[:request.stop if request.waits_forever else None]
            for piece in split(rng, data, rng.choice((0, 1, 9))):
                if rng.random() < 0.2:
                    await asyncio.sleep(rng.choice((0, 0, 0.001, 0.02)))
                yield rng.choice((bytes, bytearray, memoryview))(piece)
            if request.waits_forever:
                await self.loop.create_future()
        finally:
            request.uploads -= 1

    async def _read(self, request, body):
        """Read a body, and check every byte of it."""
        expected = content(request.number, request.size)
        chunk = await next_chunk(body)
        while chunk:
            assert expected.startswith(chunk, request.read), 'wrong bytes at %d' % request.read
            request.read += len(chunk)
            if request.reading != 'all' and request.read > request.size // 2:
                if request.reading == 'closed':
                    await body.aclose()
                    assert not request.uploads, 'the upload is open'
                return 'given up'
            chunk = await next_chunk(body)
        assert request.read == request.size, 'only %d bytes' % request.read
        assert not request.uploads, 'the upload is open'
        return 'result'

    def _judge(self, request):
        outcome, arrivals = request.outcome, request.arrivals
        assert not request.problem, request.problem
        assert outcome, 'nothing became of it'
        assert arrivals or outcome not in ('result', 'given up'), 'it never came'
        assert set(arrivals) <= set(self.names.known(request)), \
            'arrived at %s, not at %s' % (arrivals, self.names.known(request))
        kind = getattr(lowhaio, outcome.split()[0], None)
        assert not kind or not arrivals or issubclass(kind, lowhaio.HttpDataError), 'it was sent'
        assert not outcome.endswith('timeout') or \
            request.end - request.start > SOCKET_TIMEOUT * 0.9, 'it timed out early'
        assert not request.uploads, 'the upload was not closed'
        assert request.was_cancelled == (outcome == 'cancelled'), 'a cancellation was lost'
        assert outcome != 'result' or request.is_cut or \
            request.received == len(request.request_body()), 'the upload was cut'
        assert outcome == 'cancelled' or outcome in request.outcomes(), \
            'it should be %s' % ' or '.join(sorted(request.outcomes()))


if __name__ == '__main__':
    main(lambda search, seconds, seed: Chaos(search, seed).run(seconds))
