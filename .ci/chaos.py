"""Lets many workers loose with lowhaio on a server that misbehaves at random, and checks all.

    python -W error -X dev .ci/chaos.py SECONDS [SEED]

What a request, its server and its caller do depends on the seed and the number of the request
alone. The target of a request says its number, and so which bytes its bodies must have. From its
plan, and from what else went on meanwhile (names whose addresses changed, connections that the
server ended while they were idle), follows what may become of it. Every few seconds the pool is
closed, and nothing may be left of it.

A request that shows a fault is printed with its plan and all that its server did.
"""

import argparse
import asyncio
import collections
import contextlib
import faulthandler
import gc
import itertools
import logging
import random
import re
import socket
import ssl
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import aiodnsresolver

import lowhaio
import test

WORKERS = 50
SOCKET_TIMEOUT = 2  # Many times what a busy machine takes
HANG_SECONDS = 30  # More than the waits of any request take together
BLOCK_SECONDS = 0.1
DROP_SECONDS = 10  # Until the client has closed a connection that can't be used any more
MAX_FAULTS = 5
MAX_BLOCKS = 5000  # Of memory, more than after the first pool: one for two requests, or less
MAX_PAGES = 16384

GOOD, REFUSED, SILENT = ('127.0.0.2', '127.0.0.3', '::1'), ('127.0.0.4', '127.0.0.5'), '127.0.0.6'
LITERAL = '127.0.0.1'
NAMES = 'a.test', 'b.test', 'c.test'
WRONG_NAME = 'wrong.test'  # Which the certificate has not
test.TEST_FILES.add(__file__)  # Callers' bodies make tasks
PORTS = {  # The TLS versions that they take, if they do
    'plain': None, 'tls12': ssl.TLSVersion.TLSv1_2, 'tls13': ssl.TLSVersion.TLSv1_3,
    'broken': None, 'broken_tls': ssl.TLSVersion.TLSv1_3,
}
BYTES = random.Random(0).getrandbits(8 << 23).to_bytes(1 << 23, 'big')
STRAYS = (  # One that crosses with a request is its response
    b'\r\n', b'\0',
    b'HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n',
    b'HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nstray',
)
NONSENSE = {'garbage': b'\0garbage\r\n\r\n', 'endless': test.HEAD + b'a: ' + b'b' * 20000}
EARLY_HINTS = b'HTTP/1.1 103 Early Hints\r\na: b\r\n\r\n'
BODY_ERRORS = {'HttpConnectionError body', 'HttpDataError body', 'HttpInvalidRequest body'}
CONNECTION_ERRORS = {'HttpConnectionError', 'HttpConnectionError timeout'}
BROKEN_ERRORS = CONNECTION_ERRORS | BODY_ERRORS | {
    'HttpTlsError', 'HttpTlsError timeout', 'HttpConnectionClosedError', 'HttpDataError timeout',
    'HttpInvalidResponse'}


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
    """Pieces that are not empty."""
    cuts = sorted({0, len(data), *(rng.randint(0, len(data)) for _ in range(most))})
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
    """What a request, its server and its caller do: a pure function of seed and number."""

    def __init__(self, seed, number, previous=None):
        self.number = number
        self.seed = '%d %d' % (seed, number)
        rng = random.Random(self.seed)
        self.port = pick(rng, plain=30, tls12=10, tls13=20, broken=2, broken_tls=2)
        self.host = rng.choice(NAMES * 5 + (LITERAL,) * 4 + (WRONG_NAME,))
        if previous:
            self.port, self.host = previous.port, previous.host
        self.is_tls = PORTS[self.port] is not None
        self.is_broken = self.port.startswith('broken')
        self.method = pick(rng, GET=5, HEAD=1, POST=3, PUT=3).encode()
        self._plan_upload(rng)
        self._plan_response(rng)
        self._plan_fault(rng)
        self._plan_connection(rng)
        self._plan_caller(rng)
        if previous:
            self.interrupt = 'no'

    def _plan_upload(self, rng):
        is_upload = self.method in (b'POST', b'PUT')
        self.upload = pick(rng, length=1, chunked=1) if is_upload else ''
        self.upload_size = is_upload and rng.choice((1, 500, 500, 70000, 70000, 3000000))
        self.expect = pick(rng, no=20, at_once=3, interim=1, silent=.2, final=2) \
            if is_upload else 'no'
        self.upload_fault = pick(rng, no=10, fails=1, short=1, long=1) \
            if is_upload and self.expect == 'no' else 'no'
        # Whether the response comes before the upload has: whole, its start, in turns (which the
        # upload may wait for), or an interim one; and then what the server does
        self.early = pick(rng, no=6, whole=3, parts=2, echo=1, talk=1, interim=1) \
            if is_upload and self.expect == 'no' and not self.is_broken else 'no'
        self.then = pick(rng, read=4, hold=1, half=1, close=1, reset=1) \
            if self.early == 'whole' else 'read'

    def _plan_response(self, rng):
        self.framing = pick(rng, length=5, chunked=5, none=1, close=2)
        if self.framing == 'close' and self.early == 'whole':
            self.then = 'half'
        is_duplex = self.early in ('echo', 'talk')
        codes = (204, 304, 101) if self.framing == 'none' else (
            200, 201, 206, 302, 404, 413, 503)
        # It is the end of the upload that lets the server go on, or close
        goes_on = is_duplex or (self.early == 'parts' and self.framing == 'close')
        self.status = rng.choice([code for code in codes if 200 <= code < 300 or not goes_on])
        self.has_body = self.framing != 'none' and self.method != b'HEAD'
        # With a reset, what the system has not sent yet is lost. TLS resets at what it receives
        # after its close_notify
        self.size = 0 if not self.has_body else rng.choice(
            (1, 100, 8000) if self.then in ('close', 'reset', 'half') else
            (1, 100, 100, 8000, 8000, 100000, 1000000))
        self.interims = rng.choice((0, 0, 0, 0, 1, 3))
        self.pace = pick(rng, whole=5, pieces=3, **(
            {} if self.expect == 'final' or is_duplex else {'steady': .3}))
        self.stop = rng.randrange(len(self.request_body())) if self.upload else 0

    def _plan_fault(self, rng):
        """What the server does when it has sent some of the response, or none of it."""
        self.place = rng.choice(['start', 'head'] + ['body'] * (2 * self.has_body))
        faults = {'no': 30, 'reset': 2, 'stall': 1, 'cut': 2, 'close': 2, 'half': 2, 'garbage': 2,
                  'endless': 2 * (self.place == 'start')}
        if self.place == 'body' and self.framing == 'close':  # Which may end, but not be cut
            faults = {'no': 30, 'reset': 4, 'stall': 1, 'cut': 4 * self.is_tls}
        if self.place == 'body' and self.framing == 'length':
            faults['garbage'] = 0
        if self.early == 'talk':
            faults['stall'] = 0  # While the caller's body waits, no time runs
        can_fail = self.upload_fault == 'no' and self.early not in ('whole', 'interim') \
            and self.expect != 'final'
        self.fault = pick(rng, **faults) if can_fail else 'no'

    def limit(self):
        """How much of the response the server sends before its fault."""
        rng, head, parts = self.random('limit'), len(self.response_head()), self.response_body()
        if self.place != 'body':
            return rng.randrange(1, head) if self.place == 'head' else 0
        if self.fault == 'garbage':  # Between two chunks
            return head + len(b''.join(parts[:rng.randrange(len(parts))]))
        return head + rng.randrange(len(b''.join(parts)))

    def _plan_connection(self, rng):
        self.wish = pick(rng, keep=10, close=1, old=1, too_short=1, surplus=2)
        if self.fault != 'no' or (self.wish == 'old' and self.framing != 'length') or (
                self.wish == 'surplus' and self.framing == 'close'):
            self.wish = 'keep'
        self.wishes_close = rng.random() < 0.05  # The client
        self.is_reusable = self.wish == 'keep' and not self.wishes_close and (
            self.framing != 'close' or not self.has_body) and self.expect != 'final' and \
            self.status != 101 and self.then in ('read', 'hold')
        # Whether the upload is to stop at the response, or at the end of it
        self.is_refusal = self.early in ('whole', 'parts') and (
            self.status >= 300 or self.status == 101)
        self.is_cut = self.is_refusal or (self.early == 'whole' and (
            self.wish in ('close', 'old', 'surplus') or self.then in ('half', 'close', 'reset')))
        self.after = pick(rng, no=20, close=3, cut=3, reset=3, stray=6, half=2)
        self.after_seconds = rng.choice((0, 0, 0.002, 0.01, 0.05))

    def _plan_caller(self, rng):
        self.reading = pick(rng, all=12, slowly=2, paused=.2, half=1, dropped=1, unread=1)
        self.interrupt = pick(rng, no=14, cancel=2, timeout=1, asyncio_timeout=1)
        if self.interrupt == 'asyncio_timeout' and not hasattr(asyncio, 'timeout'):
            self.interrupt = 'timeout'
        self.interrupt_turns = rng.choice((0, 0, 1, 2, 3, 5, 8))
        self.interrupt_seconds = rng.choice((0, 0, rng.expovariate(100), rng.expovariate(5)))
        self.pause = rng.choice((0, 0, 0, 0.003, 0.05))
        # Of what the time is limited: the request as a whole, or its body alone
        self.interrupts_body = self.interrupt != 'cancel' and rng.random() < 0.5
        # Whether the loop is blocked from the response until the server has stirred, and then
        # another request follows
        self.blocks = self.interrupt == 'no' and self.is_reusable and self.after != 'no' and \
            not self.is_cut and rng.random() < 0.5
        self._plan_waits(rng)

    def _plan_waits(self, rng):
        """What the caller's body awaits."""
        self.waits = ['sleep', 'future', 'tasks']
        # While its caller awaits something else than lowhaio, that would be hit
        if self.reading == 'all':
            self.waits += ['timeout', *['asyncio_timeout'] * hasattr(asyncio, 'timeout')]
            if self.interrupt == 'no':  # They lose a cancellation that crosses with their end
                self.waits += ['wait_for', *['group'] * hasattr(asyncio, 'timeout')]
        self.waits_forever = self.is_cut and self.upload_fault == 'no' and \
            self.fault != 'stall' and rng.random() < 0.3
        # Not if it may be dropped: then nobody awaits it
        self.cleans_up = self.interrupt == 'no' and self.reading not in ('dropped', 'unread') \
            and rng.random() < 0.3

    def random(self, purpose):
        return random.Random('%s %s' % (self.seed, purpose))

    def headers(self):
        fields = [(b'x-id', b'%d' % self.number)]
        if self.upload:
            fields.append((b'content-length', b'%d' % self.upload_size)
                          if self.upload == 'length' else (b'transfer-encoding', b'chunked'))
        if self.expect != 'no':
            fields.append((b'expect', b'100-continue'))
        return fields + [(b'connection', b'close')] * self.wishes_close

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
        framing = {
            'length': [b'content-length: %d' % self.size], 'close': [],
            'chunked': [b'transfer-encoding: chunked'], 'none': []}[self.framing]
        wish = {'close': [b'connection: x, Close'], 'too_short': [b'keep-alive: timeout=1']}
        return EARLY_HINTS * self.interims + b'\r\n'.join((
            b'HTTP/1.%d %d Reason' % (self.wish != 'old', self.status), b'x-id: %d' % self.number,
            *framing, *wish.get(self.wish, ()), b'', b''))

    def response_body(self):
        """Its parts: garbage between two of them can be told from what should be there."""
        if not self.has_body:
            return []
        rng, data = self.random('chunks'), content(self.number, self.size)
        return chunked(rng, data) if self.framing == 'chunked' else split(rng, data, 5)

    def steps(self):
        """How much of the upload the server has received when it sends what."""
        size, units = len(self.request_body()), [self.response_head(), *self.response_body()]
        if self.early in ('echo', 'talk'):
            return [(size * index // len(units), unit) for index, unit in enumerate(units, 1)]
        answer = b''.join(units)
        early = {'whole': len(answer), 'parts': self.random('parts').randrange(1, len(answer))}
        cut = early.get(self.early, 0)
        return [(self.stop, answer[:cut]), (self.stop if self.is_cut else size, answer[cut:])]

    def script(self):
        """The steps, and what else the server does after each of them, up to what ends it."""
        script, limit = [], self.limit()
        if self.fault != 'no' and not limit:
            first = min(self.stop, self.steps()[0][0])  # For which the caller's body may wait
            return [(self.random('start').choice((0, first)), b'', self.fault)]
        for index, (position, unit) in enumerate(self.steps()):
            if self.fault != 'no' and limit <= len(unit):
                return [*script, (position, unit[:limit], self.fault)]
            limit -= len(unit)
            script.append((position, unit, '' if index else self.then.replace('read', '')))
        return script

    def turns(self):
        """Up to where the upload goes, and how much of the response it waits for then."""
        if self.early != 'talk':
            return [(len(self.request_body()), 0)]
        (first, _), *steps = self.steps()
        sizes = (int(re.match(b'[0-9a-f]+', unit)[0], 16) if self.framing == 'chunked'
                 else len(unit) for _, unit in steps)
        return [(first, 0), *zip((position for position, _ in steps), itertools.accumulate(sizes))]

    def outcomes(self):
        """What may become of it, unless names or idle connections interfere."""
        if self.is_broken:
            return BROKEN_ERRORS
        if self.is_tls and self.host == WRONG_NAME:
            return {'HttpTlsError'}
        gives_up = {'given up'} if self.reading not in ('all', 'slowly', 'paused') else set()
        # With a reset, what the system has not sent yet is lost
        lost = {'HttpConnectionClosedError'} if self.after == 'reset' and self.size > 30000 \
            else set()
        if self.upload_fault != 'no':
            return BODY_ERRORS | lost | (gives_up if self.early != 'no' else set()) | (
                {'result'} | gives_up if self.is_cut or self.upload_fault == 'long' else set())
        failure = {
            'no': 'result', 'stall': 'HttpDataError timeout', 'garbage': 'HttpInvalidResponse',
            'endless': 'HttpHeaderTooLong'}.get(self.fault, 'HttpConnectionClosedError')
        return {failure, *lost} | (
            gives_up if self.fault == 'no' or self.place == 'body' else set())


class Record:
    """What became of a plan."""

    def __init__(self, plan):
        self.plan = plan
        self.start = self.end = 0.0
        self.outcome = self.problem = ''
        self.rng = plan.random('server')
        self.has_stirred = False
        self.uploads = 0  # Bodies of the caller that have started, and not ended
        self.sent = 0  # By the server, of its response
        self.received = 0  # By the server, of the upload
        self.read = 0  # By the caller, of the body of the response
        self.progress = None  # A future that the next bytes of it complete
        self.is_cancelled = False
        self.arrivals = []  # The addresses of the server at which it came
        self.events = []

    def note(self, event):
        self.events.append('%.3f %s' % (time.monotonic() - self.start, event))

    def __str__(self):
        plan = ' '.join('%s=%r' % item for item in vars(self.plan).items())
        seconds = self.end and self.end - self.start
        return 'request %d, %.3f s, %s %s\n    %s\n    %s' % (
            self.plan.number, seconds, self.outcome, self.problem, plan,
            '\n    '.join(self.events))


# ---- The server ----


class Peer(test.Peer):
    """A server's end of a connection, for as long as one likes."""

    record = None

    async def receive(self):
        return await self._done(self.sock.recv, 262144)

    async def is_quiet(self, seconds):
        """Wait, and return whether nothing has come."""
        with contextlib.suppress(asyncio.TimeoutError):
            self.unread = self.unread or await asyncio.wait_for(
                self.receive(), max(seconds, 0.0001))
            if not self.unread:
                raise EOFError
        return not self.unread

    def end_writing(self):
        if isinstance(self.sock, ssl.SSLSocket):
            with contextlib.suppress(ssl.SSLWantReadError, ValueError):  # It may have been
                self.sock.unwrap()
        else:
            self.sock.shutdown(socket.SHUT_WR)

    def misbehave(self, how):
        """End the connection in one of the ways; return whether it is open yet."""
        if how in ('close', 'half'):
            self.end_writing()
        if how in NONSENSE:
            self.sock.send(NONSENSE[how])
        if how in ('close', 'cut'):
            self.close()
        if how == 'reset':
            self.reset()
        return self.is_open()


class Server(threading.Thread):
    """In a thread, with a loop of its own. It has five ports, each at all the addresses."""

    def __init__(self, chaos, seed):
        super().__init__(daemon=True)
        self.chaos = chaos
        self.rng = random.Random(seed)
        self.connections = {}  # Tasks by peer
        self.stirred = set()  # Peers that must be left alone
        self.stirs = collections.defaultdict(list)  # When something came on an idle connection
        self.loop = asyncio.SelectorEventLoop()
        self.loop.set_debug(False)
        self.silent = contextlib.ExitStack()
        self.ports = {name: self._listen(name) for name in PORTS}
        self.start()

    def _listen(self, name):
        port = test.free_port()
        self.silent.enter_context(test.silent_address(SILENT, port))
        context = PORTS[name] and test.server_context(LITERAL, *NAMES, version=PORTS[name])
        for address in (LITERAL, *GOOD):
            listener = socket.socket(
                socket.AF_INET6 if ':' in address else socket.AF_INET, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
            listener.listen(200)
            listener.setblocking(False)
            self.loop.add_reader(listener, self._on_connection, listener, name, context)
        return port

    def run(self):
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def _on_connection(self, listener, name, context):
        with contextlib.suppress(OSError):
            sock = listener.accept()[0]
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer = Peer(sock)
            self.connections[peer] = self.loop.create_task(self._converse(peer, name, context))

    async def _converse(self, peer, name, context):
        try:
            if name.startswith('broken'):
                await self._break(peer, context)
                return
            if context is not None:
                await peer.start_tls(context)
            while await self._exchange(peer, name):
                peer.record = None
        except (OSError, EOFError) as exception:
            if peer.record:
                peer.record.note('the connection ended: %r' % exception)
        except Exception:
            self.chaos.fault(peer.record, traceback.format_exc())
        finally:
            peer.close()
            self.stirred.discard(peer)
            del self.connections[peer]

    async def _break(self, peer, context):
        """Nobody's request is ever read."""
        if context is not None and self.rng.random() < 0.3:
            await peer.start_tls(context)
        how = self.rng.choice(('close', 'cut', 'reset', 'stall', 'half', 'garbage'))
        await asyncio.sleep(self.rng.choice((0, 0.01)))
        if peer.misbehave(how):
            await self._drain(peer)

    async def _exchange(self, peer, name):
        """Answer a request, and return whether there may be another one. Raises EOFError."""
        record = self._arrived(peer, await peer.read_until(b'\r\n\r\n'))
        plan = record.plan
        await self._answer(peer, record)
        if not plan.is_reusable:
            await self._end(peer, record)
            return False
        return plan.after == 'no' or not await peer.is_quiet(plan.after_seconds) or \
            await self._stir(peer, record, name)

    async def _end(self, peer, record):
        """Close, or see that the client does."""
        plan = record.plan
        if plan.has_body and plan.framing == 'close' and plan.then != 'half':
            peer.end_writing()
        if plan.wish != 'surplus' and plan.expect != 'final' and record.rng.random() < 0.5:
            peer.misbehave('close')
            return
        data = await self._drain(peer)
        assert not data, 'sent more: %r' % data

    def _arrived(self, peer, head):
        number = int(head.split(b' ', 2)[1].split(b'=')[1])
        peer.record = record = self.chaos.records[number]
        record.arrivals.append(peer.sock.getsockname()[0])
        record.note('arrived at %s:%d from %d' % (
            *peer.sock.getsockname()[:2], peer.sock.getpeername()[1]))
        assert len(record.arrivals) == 1, 'it came again'
        assert head == record.plan.request_head(), head
        return record

    async def _answer(self, peer, record):
        """Receive the upload, and send the response, as they take turns."""
        plan, rng = record.plan, record.rng
        upload = b'' if plan.expect == 'final' else plan.request_body()
        script = plan.script()
        if plan.expect in ('at_once', 'interim'):
            await peer.send(EARLY_HINTS * (plan.expect == 'interim') + test.CONTINUE)
        for index, (position, data, how) in enumerate(script):
            await self._receive(peer, record, upload, position)
            if plan.early == 'interim' and not index:
                await peer.send(rng.choice((EARLY_HINTS, test.CONTINUE)))
            is_last = how in ('', plan.then) and not any(unit for _, unit, _ in script[index + 1:])
            await self._send(peer, plan, rng, data, is_last)
            record.note('sent %d, received %d %s' % (len(data), record.received, how))
            if how == 'hold':
                await asyncio.sleep(0.2)
            elif how:
                await self._misbehave(peer, record, how)
        await self._receive(peer, record, upload, len(upload))

    async def _misbehave(self, peer, record, how):
        with self._stirring(record.plan.port):
            is_open = peer.misbehave(how)
        if is_open:
            if how == 'stall':
                await asyncio.sleep(1.5 * SOCKET_TIMEOUT)
            await self._drain(peer)
        raise EOFError

    async def _receive(self, peer, record, upload, stop):
        while record.received < min(stop, len(upload)):
            position = record.received
            data = peer.unread or await peer.receive()
            if not data:
                raise EOFError
            missing = len(upload) - position
            data, peer.unread = data[:missing], data[missing:]
            assert upload.startswith(data, position), 'wrong bytes at %d' % position
            record.received += len(data)

    async def _send(self, peer, plan, rng, data, is_last):
        pieces = split(rng, data, {'whole': 0, 'pieces': 6, 'steady': 8}[plan.pace])
        if is_last and pieces and plan.wish == 'surplus':
            # In one segment with the end of the body
            pieces[-1:] = [*filter(None, [pieces[-1][:-500]]), pieces[-1][-500:] + b'\r\n']
        for index, piece in enumerate(pieces):
            if index and plan.pace != 'whole':
                await asyncio.sleep(
                    SOCKET_TIMEOUT / 5 if plan.pace == 'steady' else rng.choice((0, 0, 0.002)))
            await peer.send(piece)

    async def _stir(self, peer, record, name):
        record.note('idle, then %s' % record.plan.after)
        with self._stirring(name):
            if record.plan.after == 'stray':
                peer.sock.send(self.rng.choice(STRAYS))
            is_open = peer.misbehave(record.plan.after)
        record.has_stirred = True
        if is_open:
            self.stirred.add(peer)
            await self._drain(peer)
        return False

    @contextlib.contextmanager
    def _stirring(self, name):
        """A request that has started before the end of this may meet a dead connection."""
        stir = [time.monotonic(), float('inf')]
        self.stirs[name].append(stir)
        try:
            yield
        finally:
            stir[1] = time.monotonic()

    async def _drain(self, peer):
        """Wait for the end, and return the start of what came before it."""
        first, record = b'', peer.record
        with contextlib.suppress(OSError, EOFError):
            while not record or not record.end or time.monotonic() < record.end + DROP_SECONDS:
                await peer.is_quiet(DROP_SECONDS / 5)
                first, peer.unread = first or peer.unread, b''
            raise AssertionError('the connection was not closed')
        return first


# ---- The names ----


class Names:
    """A resolver whose answers change all the time, as its addresses do."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.answers = collections.defaultdict(list)  # When, until when, and the addresses

    def __call__(self, get_logger_adapter):
        return self.resolve, self.clear_cache

    async def resolve(self, host, record_type, get_logger_adapter):
        rng = self.rng
        await asyncio.sleep(rng.choice((0, 0, 0.001, 0.02)))
        is_a = record_type == aiodnsresolver.TYPES.A
        addresses = (
            rng.sample(GOOD[:-1], rng.choice((0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2)))
            + rng.sample(REFUSED, rng.choice((0, 0, 0, 0, 1, 2)))
            + [SILENT] * (rng.random() < 0.04)) if is_a else [GOOD[-1]] * (rng.random() < 0.5)
        rng.shuffle(addresses)
        now = time.monotonic()
        ttl = rng.choice((0, 0.01, 0.1, 0.5))
        self.answers[host].append((now, now + ttl, addresses))
        if not addresses:
            raise rng.choice((aiodnsresolver.DnsRecordDoesNotExist, aiodnsresolver.DnsError))
        kind = aiodnsresolver.IPv4AddressExpiresAt if is_a else aiodnsresolver.IPv6AddressExpiresAt
        expires_at = asyncio.get_running_loop().time() + ttl
        return tuple(kind(address, expires_at) for address in addresses)

    async def clear_cache(self, get_logger_adapter):
        pass

    def known(self, record):
        """The answers that a request can have had."""
        return [addresses for start, end, addresses in self.answers[record.plan.host]
                if start <= record.end and end + 0.01 >= record.start]


# ---- The workers, and what must be true ----


class Chaos:
    """Workers on a pool, for one pool after the other."""

    def __init__(self, seed, caught, logged):
        self.caught, self.logged = caught, logged
        self.loop = loop = test.Loop()
        loop.set_debug(False)  # It takes half of the time
        sys.unraisablehook = lambda unraisable: loop.faults.append(
            'unraisable: %r in %r' % (unraisable.exc_value, unraisable.object))
        self.seed = seed
        self.rng = random.Random(seed)
        self.numbers = itertools.count(1)
        self.count = 0
        self.outcomes = collections.Counter()
        self.faults = 0
        self.records = {}
        self.inner_tasks = set()  # Of callers' bodies
        self.names = Names(seed)
        self.server = Server(self, seed)

    def fault(self, record, text):
        self.faults += 1
        if self.faults <= MAX_FAULTS:
            print('\nFault: seed %d: %s\n%s' % (self.seed, text, record or ''), flush=True)

    async def run(self, seconds):
        end = time.monotonic() + seconds
        self.loop.start_watching_tasks()
        files, memory = test.open_files(), None
        while time.monotonic() < end and not self.faults:
            faulthandler.dump_traceback_later(600, exit=True)
            await self._use_pool(min(end, time.monotonic() + self.rng.choice((1, 2, 4, 8))))
            await self._check_leftovers(files)
            self._judge_all()
            self._forget()
            memory = self._check_memory(memory)
        faulthandler.cancel_dump_traceback_later()

    async def _use_pool(self, end):
        rng = self.rng
        self.is_over = self.is_closed = False
        self.request, close = lowhaio.Pool(
            self.names, get_ssl_context=test.trusting, socket_timeout=SOCKET_TIMEOUT,
            keep_alive_timeout=rng.choice((0, 0.2, 15, 15)),
            recv_bufsize=rng.choice((65536, 16384, 4096)))
        workers = [self.loop.create_task(self._work()) for _ in range(WORKERS)]
        while time.monotonic() < end and not self.faults:
            await asyncio.sleep(0.05)
        if rng.random() < 0.5:
            self.is_closed = True
            await close()
            await asyncio.sleep(0.05)
        self.is_over = True
        await asyncio.wait(workers)
        for worker in workers:
            worker.result()
        await self._wait(lambda: not self.server.stirred, DROP_SECONDS)
        for peer in list(self.server.stirred):
            self.fault(peer.record, 'an idle connection was not closed')
        await close()

    async def _work(self):
        while not self.is_over and not self.faults:
            record = self._new_record()
            plan = record.plan
            await asyncio.sleep(plan.pause)
            task = self.loop.create_task(self._play(record))
            if plan.interrupt == 'cancel':
                for _ in range(plan.interrupt_turns):
                    await asyncio.sleep(0)
                await asyncio.wait({task}, timeout=plan.interrupt_seconds)
                record.is_cancelled = task.cancel()
            await asyncio.wait({task}, timeout=HANG_SECONDS)
            if not task.done():
                self.fault(record, 'hangs at ' + test.where(task))
                task.cancel()
                break

    def _new_record(self, previous=None):
        plan = Plan(self.seed, next(self.numbers), previous)
        record = self.records[plan.number] = Record(plan)
        return record

    async def _play(self, record):
        """Make a request, and keep what becomes of it. Raises nothing."""
        plan, is_closed = record.plan, self.is_closed
        record.start = time.monotonic()
        try:
            record.outcome = await self._fetch(record) if plan.interrupts_body else \
                await self._interrupted(plan, self._fetch(record))
            assert not is_closed, 'the pool was closed'
        except asyncio.CancelledError:
            record.outcome = 'cancelled'
        except asyncio.TimeoutError:
            record.outcome = 'timed out'
        except lowhaio.HttpError as exception:
            record.outcome = self._name(exception) if not is_closed else 'refused'
            record.note('%r from %r' % (exception, exception.__cause__))
        except Exception:
            record.problem = traceback.format_exc()
        record.end = time.monotonic()
        if record.outcome != 'cancelled' and hasattr(asyncio, 'timeout') and \
                asyncio.current_task().cancelling():
            record.problem += 'the task is being cancelled'

        if record.outcome == 'result' and plan.blocks and not self.is_over:
            while not record.has_stirred and time.monotonic() < record.end + BLOCK_SECONDS:
                time.sleep(0.002)
            await self._play(self._new_record(plan))

    async def _interrupted(self, plan, fetched):
        if plan.interrupt == 'timeout':
            with lowhaio.timeout(self.loop, plan.interrupt_seconds):
                return await fetched
        if plan.interrupt == 'asyncio_timeout':
            async with asyncio.timeout(plan.interrupt_seconds):
                return await fetched
        return await fetched

    @staticmethod
    def _name(exception):
        assert type(exception).__name__ in lowhaio.__all__, repr(exception)
        cause = exception.__cause__
        if isinstance(cause, asyncio.TimeoutError) and not getattr(cause, 'errno', None):
            return type(exception).__name__ + ' timeout'
        is_body = isinstance(cause, (BodyError, ValueError)) and \
            str(exception).startswith('the body of the request')
        return type(exception).__name__ + ' body' * is_body

    async def _fetch(self, record):
        plan = record.plan
        url = '%s://%s:%d/' % (
            'https' if plan.is_tls else 'http', plan.host, self.server.ports[plan.port])
        code = b''
        try:
            code, headers, body = await self.request(
                plan.method, url, {'number': plan.number}, plan.headers(),
                **({'body': self._upload, 'body_args': (record,)} if plan.upload else {}))
        finally:
            assert not record.uploads or (code and not plan.is_refusal), 'the upload is open'
        fields = dict(headers)
        if b'x-id' not in fields and fields.get(b'content-length') in (b'0', b'5'):
            return 'stray'
        assert code == b'%d' % plan.status and fields[b'x-id'] == b'%d' % plan.number, headers
        return await self._interrupted(plan, self._read(record, body)) if plan.interrupts_body \
            else await self._read(record, body)

    async def _upload(self, record):
        plan, rng = record.plan, record.plan.random('pieces')
        data, start = plan.yielded(), 0
        record.uploads += 1
        try:
            for end, awaited in plan.turns():
                for piece in split(rng, data[start:end], rng.choice((0, 1, 9))):
                    if rng.random() < 0.2:
                        await self._await(rng.choice(plan.waits), rng)
                    yield rng.choice((bytes, bytearray, memoryview))(piece)
                start = end
                while record.read < awaited and end < len(data):
                    record.progress = self.loop.create_future()
                    await record.progress
            if plan.waits_forever:
                await self.loop.create_future()
            if plan.upload_fault == 'fails':
                raise BodyError
            if plan.upload_fault == 'long':
                yield b'more'
        finally:
            try:
                if plan.cleans_up:
                    await asyncio.sleep(0)
            finally:
                record.uploads -= 1

    async def _await(self, what, rng):
        """All kinds of things that a body may wait for."""
        seconds, forever = rng.choice((0, 0, 0.001, 0.02)), self.loop.create_future()
        with contextlib.suppress(asyncio.TimeoutError):
            if what == 'sleep':
                await asyncio.sleep(seconds)
            elif what == 'future':
                self.loop.call_later(
                    seconds, lambda: forever.done() or forever.set_result(None))
                await forever
            elif what == 'tasks':
                await asyncio.gather(*(self._spawn(asyncio.sleep(seconds)) for _ in range(2)))
            elif what == 'wait_for':
                await asyncio.wait_for(forever, seconds)
            elif what == 'timeout':
                with lowhaio.timeout(self.loop, seconds):
                    await forever
            elif what == 'asyncio_timeout':
                async with asyncio.timeout(seconds):
                    await forever
            elif what == 'group':
                with contextlib.suppress(ExceptionGroup):  # noqa: F821
                    async with asyncio.TaskGroup() as group:
                        group.create_task(self._fail(seconds))
                        await forever

    def _spawn(self, coroutine):
        """What is interrupted doesn't end the tasks that it awaits."""
        task = self.loop.create_task(coroutine)
        self.inner_tasks.add(task)
        task.add_done_callback(self.inner_tasks.discard)
        return task

    @staticmethod
    async def _fail(seconds):
        await asyncio.sleep(seconds)
        raise BodyError

    async def _read(self, record, body):
        """Read a body, and check every byte of it."""
        plan = record.plan
        expected = content(plan.number, plan.size)
        if plan.reading == 'unread':
            return 'given up'
        chunk = await self._next_chunk(body)
        pauses = 10
        while chunk:
            assert expected.startswith(chunk, record.read), 'wrong bytes at %d' % record.read
            record.read += len(chunk)
            if record.progress is not None and not record.progress.done():
                record.progress.set_result(None)
            if plan.reading == 'half' and record.read > plan.size // 2:
                await body.aclose()
                assert not record.uploads, 'the upload is open'
                return 'given up'
            if plan.reading == 'dropped':
                return 'given up'
            if plan.reading == 'slowly' and pauses:
                pauses -= 1
                await asyncio.sleep(0.005)
            if plan.reading == 'paused' and pauses:
                pauses = 0
                await asyncio.sleep(1.4 * SOCKET_TIMEOUT)  # Which is none of the network's
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

    @staticmethod
    async def _wait(is_done, seconds):
        end = time.monotonic() + seconds
        while not is_done() and time.monotonic() < end:
            await asyncio.sleep(0.02)

    def _judge_all(self):
        for record in self.records.values():
            self.count += 1
            try:
                excuse = self._judge(record)
            except AssertionError as exception:
                self.fault(record, str(exception))
            else:
                self.outcomes[excuse + record.outcome] += 1

    def _judge(self, record):
        """Look at a request, and return what has excused it. Raises AssertionError."""
        plan, outcome, arrivals = record.plan, record.outcome, len(record.arrivals)
        assert not record.problem, 'a problem'
        assert outcome, 'nothing became of it'
        known = [[LITERAL]] if plan.host == LITERAL else self.names.known(record)
        assert arrivals or outcome not in ('result', 'given up'), 'it never came'
        assert not arrivals or record.arrivals[0] in itertools.chain(*known), \
            'arrived at %s, not at %s' % (record.arrivals, known)
        kind = getattr(lowhaio, outcome.split()[0], None)
        assert not kind or not arrivals or issubclass(kind, lowhaio.HttpDataError), 'it was sent'
        if outcome.endswith('timeout') and not outcome.startswith('HttpConnectionError'):
            assert record.end - record.start > SOCKET_TIMEOUT * 0.9, 'it timed out early'

        assert not record.uploads, 'the upload was not closed'
        assert not record.is_cancelled or outcome == 'cancelled', 'a cancellation was lost'
        assert outcome != 'result' or plan.is_cut or plan.expect == 'final' or \
            record.received == len(plan.request_body()), 'the upload was cut'
        if outcome in plan.outcomes() or outcome == 'refused':
            return ''
        if outcome == {'no': '', 'cancel': 'cancelled'}.get(plan.interrupt, 'timed out'):
            return ''
        if outcome == 'HttpDnsError' and [] in known:
            return ''
        if outcome in CONNECTION_ERRORS and not all(map(set(GOOD).intersection, known)):
            return ''
        if not arrivals and outcome in (
                'stray', 'HttpConnectionClosedError', 'HttpInvalidResponse') and any(
                start <= record.end and end >= record.start
                for start, end in self.server.stirs[plan.port]):
            return 'raced: '
        raise AssertionError('it should be %s' % ' or '.join(sorted(plan.outcomes())))

    async def _check_leftovers(self, files):
        """Wait until the server has seen all connections close, and look what is left."""
        gc.collect()
        if self.inner_tasks:
            await asyncio.wait(self.inner_tasks)
        loop, others = self.loop, asyncio.all_tasks() - {asyncio.current_task()}
        faults = ['a timer: %r' % timer for timer in loop.active_timers()] + [
            'a %s of %d' % item for item in loop.watched] + [
            'a task: %s' % test.where(task) for task in others]
        await self._wait(lambda: not self.server.connections, HANG_SECONDS)
        for peer in list(self.server.connections):
            self.fault(peer.record, 'a connection was not closed')
        faults += loop.faults + [str(warning) for warning in self.caught] + [
            'asyncio logged: %s' % message for message in self.logged.messages()]
        if not self.faults:
            faults += ['a file: %d, %s' % item for item in test.open_files().items()
                       if item not in files.items()]
        for text in faults:
            self.fault(None, text)

    def _forget(self):
        for leftovers in (self.loop.library_timers, self.records, self.names.answers,
                          self.server.stirs):
            leftovers.clear()

    def _check_memory(self, before):
        """Compare with what was there after the first pools."""
        gc.collect()
        now = sys.getallocatedblocks(), int(Path('/proc/self/statm').read_text().split()[1])
        if before is None:
            return now if self.count > 200 else None
        if now[0] > before[0] + MAX_BLOCKS or now[1] > before[1] + MAX_PAGES:
            self.fault(None, 'blocks and pages of memory: %s, and before: %s' % (now, before))
        return before


def main():
    parser = argparse.ArgumentParser(description='Use lowhaio while all goes wrong.')
    parser.add_argument('seconds', type=float)
    parser.add_argument('seed', type=int, nargs='?', default=random.randrange(1000000))
    arguments = parser.parse_args()
    sys.setswitchinterval(0.0002)  # Each call of the system gives up the interpreter
    print('seed %d' % arguments.seed, flush=True)

    with warnings.catch_warnings(record=True) as caught, \
            test.LogRecords('asyncio', logging.WARNING) as logged:
        warnings.simplefilter('always')
        chaos = Chaos(arguments.seed, caught, logged)
        start = time.monotonic()
        chaos.loop.run_until_complete(chaos.run(arguments.seconds))

    print('seed %d: %d faults in %d requests, %.0f a second: %s' % (
        arguments.seed, chaos.faults, chaos.count, chaos.count / (time.monotonic() - start),
        ', '.join('%d %s' % (count, name) for name, count in chaos.outcomes.most_common())))
    sys.exit(min(chaos.faults, 1))


if __name__ == '__main__':
    main()
