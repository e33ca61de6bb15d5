"""Tests of lowhaio, on the loop that LOWHAIO_TEST_LOOP names: asyncio (the default), uvloop, or
eager, which is asyncio whose tasks start at once, as they may from Python 3.12 on.

    python -W error -X dev -m unittest

After every test, the harness proves that nothing was left behind: see TestCase.

The banners are those of lowhaio.py, in its order. Where to find, or what to give to -k, for

    what is sent, byte by byte        Sent: TARGETS, PARAMS, HOSTS, FIELDS, SENT_BODIES
    what is refused, and how          Refused: BAD_URLS, BAD_METHODS, BAD_FIELDS; Mistakes, BadBody
    a response, byte by byte          test.ResponseTest: STATUS_LINES, FIELD_LINES, CHUNKS,
                                      KNOWN_LENGTHS, FRAMING; grep of_each for the test of a table
    chunked bodies                    chunk: of responses in CHUNKS, of requests in SENT_BODIES
    h11 as an oracle of both          Oracle
    DNS, /etc/hosts                   NameResolution, NameFiles
    addresses, sockets, descriptors   test.Connect, OwnMachineConnect, Descriptors, SocketTest
    timeouts                          test.Timeout: timeout(); SocketTimeout, SlowServer: a pool
    TLS, close_notify                 Tls, Renegotiation
    the caller's body                 RequestBody, CallersBody, ExpectContinue
    an early response                 Early: Refusal, Success, Echo, Fault, Leave; LastWord
    cancellation                      test.Cancellation: at every await; cancel: all others, too
    a response's body                 ResponseBody, DroppedBody, Fairness
    reuse, stale connections          test.Reuse, StaleConnection; test.Close: of a pool
    memory                            NothingIsKept, without_bound, little_memory
    nginx, aiohttp                    Nginx, Aiohttp
    redirects, retries, layers, S3    TestLayers, TestS3
    blocks and links of the docs      TestDocs, TestPages
    examples                          TestExamples, Quickstart, Crawler, Download, TestUpload, Sse,
                                      Proxy, Httpx
"""

import asyncio
import base64
import collections
import contextlib
import contextvars
import ctypes
import datetime
import errno
import faulthandler
import fcntl
import functools
import gc
import gzip
import hashlib
import hmac
import importlib.util
import inspect
import io
import ipaddress
import itertools
import logging
import os
import random
import re
import resource
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import tracemalloc
import types
import typing
import unittest
import urllib.parse
import warnings
import weakref
import xml.etree.ElementTree
from pathlib import Path
from unittest import mock

import aiodnsresolver
import brotli
import h11
import lowhaio_aws_sigv4
import lowhaio_aws_sigv4_unsigned_payload
import lowhaio_chunked
import lowhaio_redirect
import lowhaio_retry
import mobius3
from aiodnsresolver import TYPES

import lowhaio
from lowhaio import (
    HttpConnectionClosedError, HttpConnectionError, HttpDataError, HttpDnsError, HttpError,
    HttpHeaderTooLong, HttpInvalidRequest, HttpInvalidResponse, HttpLoggerAdapter, HttpTlsError,
    Pool, buffered, empty_async_iterator, streamed, timeout,
)

with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # cryptography warns of old Pythons
    import httpx
    import openai
    import trustme
    from aiohttp import web


# ---- Harness ----


LOOP = os.environ.get('LOWHAIO_TEST_LOOP', 'asyncio')
if LOOP == 'uvloop':
    from uvloop import Loop as BaseLoop
else:
    assert LOOP in ('asyncio', 'eager'), LOOP
    from asyncio import SelectorEventLoop as BaseLoop
EAGER = {'eager_start': True} if LOOP == 'eager' else {}  # For each task

TEST_SECONDS = 60
DEFAULT_RESOLVER = inspect.signature(Pool).parameters['get_dns_resolver'].default
TEST_FILES = {__file__}
LIBRARY_FILES = (lowhaio.__file__, aiodnsresolver.__file__)

OK = b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok'
GET = b'GET / HTTP/1.1\r\nhost: localhost\r\n\r\n'


def since_python_3_11(test):
    """Leave a test out, rather than skip it, where what it is about doesn't exist."""
    return test if sys.version_info >= (3, 11) else None


def called_by_library():
    """Whether it is nearer than code of the tests: a caller's body is run by the library."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename in LIBRARY_FILES:
            return True
        if frame.f_code.co_filename in TEST_FILES and frame.f_code not in LOOP_CODES:
            return False
        frame = frame.f_back
    return False


def open_files():
    files = {}
    for number in os.listdir('/proc/self/fd'):
        with contextlib.suppress(OSError):
            files[int(number)] = os.readlink('/proc/self/fd/' + number)
    return {number: target for number, target in files.items() if '/proc/' not in target}


def threads():
    return len(os.listdir('/proc/self/task'))


def where(task):
    """The lines at which a task waits, from the outermost to the innermost."""
    lines = []
    awaited = task.get_coro()
    while awaited is not None:
        frame = getattr(awaited, 'cr_frame', None) or getattr(awaited, 'gi_frame', None) or \
            getattr(awaited, 'ag_frame', None)
        lines.append('%s:%d %s' % (os.path.basename(frame.f_code.co_filename), frame.f_lineno,
                                   frame.f_code.co_name) if frame else repr(awaited))
        awaited = getattr(awaited, 'cr_await', None) or getattr(awaited, 'gi_yieldfrom', None) or \
            getattr(awaited, 'ag_await', None)
    return ' > '.join(lines)


class Loop(BaseLoop):
    """Remembers what the library has scheduled and watches, and who makes tasks."""

    def __init__(self):
        super().__init__()
        self.faults = []
        self.library_timers = {}
        self.watched = set()
        self.slow_callback_duration = TEST_SECONDS  # In debug mode it logs
        self.set_exception_handler(
            lambda _, context: self.faults.append('the exception handler got %r' % context))

    def start_watching_tasks(self):
        self.set_task_factory(self._new_task)
        sys.set_asyncgen_hooks(finalizer=lambda generator: self.faults.append(
            'an asynchronous generator was left to the loop: %r' % generator))

    def _new_task(self, loop, coroutine, **kwargs):
        if called_by_library():
            self.faults.append('a task was made: ' + ''.join(traceback.format_stack()))
        return asyncio.Task(coroutine, loop=loop, **EAGER, **kwargs)

    def call_at(self, when, callback, *args, **kwargs):
        return self._schedule(super().call_at, when, callback, *args, **kwargs)

    def call_later(self, delay, callback, *args, **kwargs):
        return self._schedule(super().call_later, delay, callback, *args, **kwargs)

    def _schedule(self, schedule, when, callback, *args, **kwargs):
        if not called_by_library():
            return schedule(when, callback, *args, **kwargs)

        def run(*args):
            self.library_timers.pop(key, None)
            callback(*args)

        key = object()
        timer = self.library_timers[key] = schedule(when, run, *args, **kwargs)
        return timer

    def active_timers(self):
        return [timer for timer in self.library_timers.values() if not timer.cancelled()]

    def run_in_executor(self, *args):
        if called_by_library():
            self.faults.append('an executor was used')
        return super().run_in_executor(*args)

    def add_reader(self, fd, callback, *args):
        self.watched.add(('reader', fd))
        return super().add_reader(fd, callback, *args)

    def remove_reader(self, fd):
        self.watched.discard(('reader', fd))
        return super().remove_reader(fd)

    def add_writer(self, fd, callback, *args):
        self.watched.add(('writer', fd))
        return super().add_writer(fd, callback, *args)

    def remove_writer(self, fd):
        self.watched.discard(('writer', fd))
        return super().remove_writer(fd)


LOOP_CODES = {method.__code__ for method in vars(Loop).values() if inspect.isfunction(method)}


class LogRecords(logging.Handler):
    """What a logger was given from `with` on."""

    def __init__(self, name, level=logging.DEBUG):
        super().__init__(level)
        self.logger = logging.getLogger(name)
        self.records = []

    def emit(self, record):
        record.getMessage()
        self.records.append(record)

    def messages(self):
        return [record.getMessage() for record in self.records]

    def __enter__(self):
        self.before = self.logger.level, self.logger.propagate
        self.logger.addHandler(self)
        self.logger.setLevel(self.level)
        self.logger.propagate = False
        return self

    def __exit__(self, *_):
        self.logger.removeHandler(self)
        self.logger.level, self.logger.propagate = self.before
        self.logger.manager._clear_cache()


class TestCase(unittest.TestCase):
    """Runs each `async def test_` in a loop of its own, and looks at what is left afterwards.

    The test fails if lowhaio or aiodnsresolver made a task, used a thread, or left an asynchronous
    generator to the loop; if a file is open, or a timer, reader or writer is registered after the
    pools were closed; at any warning, unraisable exception, call of the loop's exception handler
    or record of asyncio's logger; and after so many seconds, with where the task hangs.
    """

    seconds = TEST_SECONDS
    debug = False  # asyncio's debug mode takes five times as long
    maxDiff = None

    def __init_subclass__(cls):
        for name, test in list(vars(cls).items()):
            if name.startswith('test_') and inspect.iscoroutinefunction(test):
                def run(self, test=test):
                    self._run(test)
                setattr(cls, name, functools.wraps(test)(run))

    def _run(self, test):
        self._pools, self._servers, self._tasks = [], [], []
        gc.collect()
        gc.freeze()  # What was before: to go through it three times takes a third of the time
        files = open_files()
        self.loop = loop = Loop()
        loop.set_debug(self.debug)
        faulthandler.dump_traceback_later(2 * self.seconds, exit=True)
        self.threads = threads()
        with warnings.catch_warnings(record=True) as caught, \
                LogRecords('asyncio', logging.WARNING) as logged, \
                mock.patch('sys.unraisablehook', self._on_unraisable):
            warnings.simplefilter('always')
            try:
                loop.run_until_complete(self._main(test))
                gc.collect()
                loop.run_until_complete(asyncio.sleep(0))
                self._check_loop(loop)
            finally:
                asyncio.set_event_loop(None)
                loop.close()
                faulthandler.cancel_dump_traceback_later()
            del self.loop, self._pools, self._servers, self._tasks
            gc.collect()
        faults = loop.faults + ['a warning: %s' % warning for warning in caught] + \
            ['asyncio logged: %s' % message for message in logged.messages()] + [
                'still open: %d, %s' % item for item in open_files().items()
                if item not in files.items()]
        self.assertEqual(faults, [])

    def _on_unraisable(self, unraisable):
        self.loop.faults.append('unraisable: %r in %r' % (unraisable.exc_value, unraisable.object))

    async def _main(self, test):
        task = asyncio.current_task()
        hangs = []

        def on_timeout():
            nonlocal timer
            hangs.extend([where(task)] + [where(other) for other in asyncio.all_tasks()])
            task.cancel()
            timer = self.loop.call_later(1, on_timeout)  # The first may be taken no notice of

        timer = self.loop.call_later(self.seconds, on_timeout)
        self.loop.start_watching_tasks()
        try:
            await test(self)
        except asyncio.CancelledError:
            if hangs:
                self.fail('hangs: ' + '\n'.join(hangs))
            raise
        finally:
            timer.cancel()
            gc.collect()
            for close in self._pools:
                await close()
            await self._close_servers()
        if hasattr(task, 'cancelling') and task.cancelling():
            self.loop.faults.append('task.cancelling() is %d' % task.cancelling())

    async def _close_servers(self):
        for server in self._servers:
            server.close()
        tasks = [task for task in self._tasks if not task.done()]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _check_loop(self, loop):
        loop.faults += ['a timer: %r' % timer for timer in loop.active_timers()]
        loop.faults += ['a %s of %d' % item for item in loop.watched]
        loop.faults += ['a task: %s' % where(task) for task in asyncio.all_tasks(loop)]
        deadline = time.monotonic() + 1  # One that was joined may be there a little longer
        while threads() > self.threads:
            if time.monotonic() > deadline:
                loop.faults.append('a thread')
                break

    def spawn(self, coroutine):
        """Run a coroutine in a task that ends with the test."""
        task = self.loop.create_task(coroutine)
        self._tasks.append(task)
        return task

    def serve(self, *answers, **kwargs):
        server = Server(self, answers, **kwargs)
        self._servers.append(server)
        return server

    def pool(self, **kwargs):
        return self.pool_and_close(**kwargs)[0]

    def pool_and_close(self, **kwargs):
        kwargs = {'get_dns_resolver': Names(), 'get_ssl_context': trusting, **kwargs}
        request, close = Pool(**kwargs)
        self._pools.append(close)
        return request, close

    @contextlib.contextmanager
    def subTest(self, *args, **kwargs):
        cancelled = None
        with super().subTest(*args, **kwargs):
            try:
                yield
            except asyncio.CancelledError as exception:
                cancelled = exception  # unittest would swallow it
        if cancelled is not None:
            raise cancelled

    async def turns(self, number=3):
        """Let the loop run, so that it notices what has happened already."""
        for _ in range(number):
            await asyncio.sleep(0)

    async def fails(self, kind, awaitable, words='', cause=None):
        """Await, and return what it must raise: exactly this class, with these words."""
        try:
            result = await awaitable
        except kind as exception:
            self.assertIs(type(exception), kind, repr(exception))
            self.assertIn(words, str(exception))
            if cause is not None:
                self.assertIsInstance(exception.__cause__, cause)
            return exception
        return self.fail('%s was not raised, but returned: %r' % (kind.__name__, result))

    def assert_says(self, exception, *words):
        """Its message has all the words, is a line of ASCII that isn't long, and has no secret."""
        for some in words:
            self.assertIn(some, str(exception))
        self.assertRegex(str(exception), r'\A[ -~]{10,300}\Z')
        self.assertNotIn('sesame', repr((exception, exception.__cause__)))


def brief(row):
    """What a subtest for a row of a table is called."""
    return repr(row)[:500]


def of_each(rows):
    """The test of a table, each row of which a class knows how to check."""
    async def test(self):
        await self.each(rows)
    return test


async def fetch(request, *args, **kwargs):
    code, headers, body = await request(*args, **kwargs)
    return code, headers, await buffered(body)


def response(body=b'', *fields, status=b'200 OK', length=True):
    fields = (*fields, b'content-length: %d' % len(body)) if length else fields
    lines = (b'HTTP/1.1 ' + status, *fields, b'', b'')
    return b'\r\n'.join(lines) + body


def chunked(*chunks):
    return b''.join(b'%x\r\n%b\r\n' % (len(chunk), chunk) for chunk in chunks) + b'0\r\n\r\n'


CHUNKED = b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n'


def closing(data, end=None):
    """An answer after which the connection ends: is closed, or what a method of Peer does."""
    async def answer(peer):
        await peer.send(data)
        (end or Peer.close)(peer)
    return answer


class Peer:
    """A server's end of a connection."""

    def __init__(self, sock):
        self.loop = asyncio.get_running_loop()
        self.sock = sock
        self.received = bytearray()
        self.requests = []
        self.unread = b''

    async def _done(self, operation, *args):
        while True:
            try:
                return operation(*args)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError) as exception:
                writes = isinstance(exception, ssl.SSLWantWriteError) or \
                    (operation == self.sock.send and type(exception) is BlockingIOError)
            await self._ready(writes)

    async def _ready(self, writes):
        ready = self.loop.create_future()
        add, remove = (self.loop.add_writer, self.loop.remove_writer) if writes else \
            (self.loop.add_reader, self.loop.remove_reader)
        number = self.sock.fileno()
        add(number, lambda: ready.done() or ready.set_result(None))
        try:
            await ready
        finally:
            if self.sock.fileno() == number:
                remove(number)

    async def start_tls(self, context):
        self.sock = context.wrap_socket(
            self.sock, server_side=True, do_handshake_on_connect=False,
            suppress_ragged_eofs=False)
        await self._done(self.sock.do_handshake)

    async def receive(self, size=262144):
        """The next bytes, b'' at the end."""
        data = await self._done(self.sock.recv, size)
        self.received += data
        return data

    async def read_until(self, end):
        while end not in self.unread:
            data = await self.receive()
            if not data:
                raise EOFError('the connection ended after %r' % self.unread)
            self.unread += data
        size = self.unread.index(end) + len(end)
        data, self.unread = self.unread[:size], self.unread[size:]
        return data

    async def read(self, size):
        chunks, missing = [self.unread], size - len(self.unread)
        while missing > 0:
            data = await self.receive()
            if not data:
                raise EOFError('the connection ended %d bytes early' % missing)
            chunks.append(data)
            missing -= len(data)
        data = b''.join(chunks)
        data, self.unread = data[:size], data[size:]
        return data

    async def expect(self, data):
        got = await self.read(len(data))
        assert got == data, '%r, not %r' % (got, data)

    async def request(self):
        """A whole request; b'' if the connection ends before one."""
        try:
            head = await self.read_until(b'\r\n\r\n')
        except EOFError:
            if self.unread:
                raise
            return b''
        fields = dict(line.lower().split(b': ', 1) for line in head.split(b'\r\n')[1:-2])
        if b'100-continue' in fields.get(b'expect', b''):
            await self.send(b'HTTP/1.1 100 Continue\r\n\r\n')
        body = await self.read_until(b'0\r\n\r\n') if b'transfer-encoding' in fields else \
            await self.read(int(fields.get(b'content-length', 0)))
        return head + body

    async def send(self, data):
        data = memoryview(data)
        while data:
            data = data[await self._done(self.sock.send, data):]

    async def ended(self):
        """Wait for the end, and return what came before it and was not read."""
        chunks = [self.unread]
        with contextlib.suppress(ConnectionError):
            while not chunks[1:] or chunks[-1]:
                chunks.append(await self.receive())
        self.unread = b''.join(chunks)
        return self.unread

    def is_open(self):
        return self.sock.fileno() != -1

    def close(self):
        if self.is_open():
            self.loop.remove_reader(self.sock.fileno())
            self.loop.remove_writer(self.sock.fileno())
        self.sock.close()

    def close_tls(self):
        with contextlib.suppress(OSError):
            self.sock.unwrap()
        self.close()

    def reset(self):
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self.close()


class Server:
    """Answers each request, on whichever connection it comes, with the next of the answers.

    An answer is bytes, or an async function that is given the peer. The last one is repeated.
    With script=..., an async function that is given the peer, that alone talks on each connection;
    without script and answers, the test does, on the peers that it accepts.
    """

    def __init__(self, case, answers, script=None, tls=None, address='127.0.0.1', port=0,
                 host='localhost', send_buffer=None):
        self.case = case
        self.answers = collections.deque(answers)
        self.script = script or (self._answer if answers else None)
        self.tls = server_context() if tls is True else tls
        self.peers = []
        self.requests = []
        self.accepted = asyncio.Queue()
        family = socket.AF_INET6 if ':' in address else socket.AF_INET
        self.listener = socket.socket(family, socket.SOCK_STREAM)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind((address, port))
        self.listener.listen(100)
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self.url = '%s://%s:%d' % ('https' if tls else 'http', host, self.port)
        case.loop.add_reader(self.listener.fileno(), self._on_connection)

    def _on_connection(self):
        with contextlib.suppress(BlockingIOError):
            sock = self.listener.accept()[0]
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.peers.append(Peer(sock))
            self.case.spawn(self._converse(self.peers[-1]))

    async def _converse(self, peer):
        try:
            if self.tls is not None:
                await peer.start_tls(self.tls)
            self.accepted.put_nowait(peer)
            if self.script is not None:
                await self.script(peer)
                peer.close()
        except OSError:
            peer.close()
        except (AssertionError, EOFError, ValueError) as exception:
            self.case.loop.faults.append('the server: %r' % exception)

    async def _answer(self, peer):
        request = await self._request(peer)
        while request:
            self.requests.append(request)
            peer.requests.append(request)
            answer = self.answers.popleft() if len(self.answers) > 1 else self.answers[0]
            await (peer.send(answer) if isinstance(answer, bytes) else answer(peer))
            if not peer.is_open():
                break
            request = await self._request(peer)

    @staticmethod
    async def _request(peer):
        try:
            return await peer.request()
        except EOFError:
            return b''  # Given up

    async def accept(self):
        return await self.accepted.get()

    def counts(self):
        """How many requests came on each connection."""
        return [len(peer.requests) for peer in self.peers]

    def close(self):
        if self.listener.fileno() != -1:
            self.case.loop.remove_reader(self.listener.fileno())
        self.listener.close()
        for peer in self.peers:
            peer.close()


def free_port():
    """A port that is free on all addresses."""
    with socket.socket() as sock:
        sock.bind(('0.0.0.0', 0))
        return sock.getsockname()[1]


@functools.lru_cache(maxsize=None)
def authority():
    return trustme.CA()


@functools.lru_cache(maxsize=None)
def certificate(*names):
    return authority().issue_cert(*names)


def server_context(*names, version=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate(*(names or ('localhost', '127.0.0.1', '::1', 'a.test'))).configure_cert(context)
    context.options &= ~getattr(ssl, 'OP_IGNORE_UNEXPECTED_EOF', 0)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


def trusting():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority().configure_trust(context)
    return context


class Names:
    """A resolver that knows some names. `records` may be changed between requests."""

    def __init__(self, ttl=60, **hosts):
        self.ttl = ttl
        self.records = {('localhost', 'A'): ['127.0.0.1']}
        self.queries = []
        self.clears = 0

    def add(self, host, kind, *addresses):
        self.records[host, kind] = addresses
        return self

    def __call__(self, get_logger_adapter):
        return self.resolve, self.clear_cache

    async def resolve(self, host, record_type, get_logger_adapter):
        kind = record_type.name
        self.queries.append((host, kind))
        answer = self.records.get((host, kind), ())
        if isinstance(answer, Exception):
            raise answer
        if not answer:
            raise aiodnsresolver.DnsRecordDoesNotExist
        make = aiodnsresolver.IPv4AddressExpiresAt if kind == 'A' else \
            aiodnsresolver.IPv6AddressExpiresAt
        expires_at = asyncio.get_running_loop().time() + self.ttl
        return tuple(make(address, expires_at) for address in answer)

    async def clear_cache(self, get_logger_adapter):
        self.clears += 1


@contextlib.contextmanager
def etc(**files):
    """Have these files be what is given: bytes, or what opening them raises."""
    contents = {'/etc/' + name.replace('resolv_conf', 'resolv.conf'): content
                for name, content in files.items()}
    real_open = open

    def open_content(path, *args, **kwargs):
        content = contents.get(path)
        if isinstance(content, Exception):
            raise content
        return real_open(path, *args, **kwargs) if content is None else io.BytesIO(content)
    with mock.patch('builtins.open', open_content):
        yield


NAME_SERVER_PORTS = {}  # By address


class RedirectedSocket(socket.socket):
    """The socket of aiodnsresolver: port 53 is that of the test's name server."""

    def connect(self, address):
        return super().connect((address[0], NAME_SERVER_PORTS[address[0]]))

    def recvfrom(self, size):
        data, (host, _) = super().recvfrom(size)
        return data, (host, 53)


class NameServer:
    """A name server on UDP. Answers are by name and type.

    Without a port the resolver is led to it, in this process.
    """

    def __init__(self, case, address='127.0.0.1', port=0):
        self.answers = {}
        self.queries = []
        self.times = []
        self.drops = 0  # So many packets first
        self.delay = 0
        self.flags = {}  # Of answers, beside those that they have
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind((address, port))
        self.sock.setblocking(False)
        self.loop = case.loop
        self.loop.add_reader(self.sock.fileno(), self._on_query)
        case._servers.append(self)
        if not port:
            self._lead(case, address)

    def _lead(self, case, address):
        NAME_SERVER_PORTS[address] = self.sock.getsockname()[1]
        patches = contextlib.ExitStack()
        patches.enter_context(mock.patch.object(aiodnsresolver, 'socket', RedirectedSocket))
        patches.enter_context(etc(resolv_conf=b''.join(
            b'nameserver %b\n' % address.encode() for address in NAME_SERVER_PORTS)))
        patches.callback(NAME_SERVER_PORTS.clear)
        case.addCleanup(patches.close)

    def add(self, name, kind, *records, ttl=60, rcode=0):
        """Records are texts; a CNAME is (kind, text)."""
        self.answers[name.encode(), kind] = records, ttl, rcode
        return self

    def _on_query(self):
        data, address = self.sock.recvfrom(512)
        query = aiodnsresolver.parse(data)
        name, kind = query.qd[0].name.lower(), TYPES(query.qd[0].qtype).name
        self.queries.append((name.decode(), kind))
        self.times.append(self.loop.time())
        if self.drops:
            self.drops -= 1
            return
        records, ttl, rcode = self.answers.get((name, kind), ((), 0, 3))
        answer = aiodnsresolver.pack(query._replace(
            qr=1, ra=1, rcode=rcode, **self.flags,
            an=tuple(self._record(query.qd[0], record, ttl) for record in records)))
        if self.delay:
            self.loop.call_later(self.delay, self._send, answer, address)
        else:
            self._send(answer, address)

    def _send(self, answer, address):
        if self.sock.fileno() != -1:
            self.sock.sendto(answer, address)

    @staticmethod
    def _record(question, record, ttl):
        cname = not record[-1].isdigit() and ':' not in record
        return aiodnsresolver.ResourceRecord(
            question.name, TYPES.CNAME if cname else question.qtype, 1, ttl,
            record.encode() if cname else ipaddress.ip_address(record).packed)

    def close(self):
        if self.sock.fileno() != -1:
            self.loop.remove_reader(self.sock.fileno())
        self.sock.close()


@types.coroutine
def interrupted(coroutine, number, interrupt):
    """Await, and at suspension `number` call interrupt(); return (result, suspensions).

    What interrupt() returns is thrown in when the suspension ends, if it is not None.
    """
    suspensions, thrown = 0, None
    while True:
        try:
            future = coroutine.send(None) if thrown is None else coroutine.throw(thrown)
        except StopIteration as stop:
            return stop.value, suspensions
        late = interrupt() if suspensions == number else None
        suspensions += 1
        try:
            yield future
            thrown = late
        except BaseException as exception:
            thrown = exception


def setUpModule():
    logging.getLogger('aiodnsresolver').addHandler(logging.NullHandler())
    loop = Loop()
    loop.run_until_complete(asyncio.sleep(0))  # The first uvloop opens a pipe for good
    loop.close()


# ---- Exceptions ----


class ExceptionsTest(TestCase):

    def test_exceptions_form_the_tree_that_is_promised(self):
        for kind, base in (
                (HttpError, Exception), (HttpConnectionError, HttpError),
                (HttpDnsError, HttpConnectionError), (HttpTlsError, HttpConnectionError),
                (HttpInvalidRequest, HttpConnectionError), (HttpDataError, HttpError),
                (HttpConnectionClosedError, HttpDataError), (HttpHeaderTooLong, HttpDataError),
                (HttpInvalidResponse, HttpDataError)):
            with self.subTest(kind=kind):
                self.assertEqual(kind.__bases__, (base,))

    def test_all_names_are_public_and_there(self):
        self.assertEqual(sorted(lowhaio.__all__), sorted((
            'HttpConnectionClosedError', 'HttpConnectionError', 'HttpDataError', 'HttpDnsError',
            'HttpError', 'HttpHeaderTooLong', 'HttpInvalidRequest', 'HttpInvalidResponse',
            'HttpLoggerAdapter', 'HttpTlsError', 'Pool', 'buffered', 'empty_async_iterator',
            'streamed', 'timeout')))
        for name in lowhaio.__all__:
            self.assertTrue(hasattr(lowhaio, name), name)


# ---- Logging ----


class LoggingTest(TestCase):

    def adapter(self, extras):
        def get_logger_adapter(extra):
            extras.append(extra)
            return HttpLoggerAdapter(logging.getLogger('lowhaio'), extra)
        return get_logger_adapter

    def resolver_adapter(self, extras):
        def get_resolver_logger_adapter(http_extra):
            def get_logger_adapter(extra):
                extras.append((http_extra, extra))
                return logging.LoggerAdapter(logging.getLogger('aiodnsresolver'), extra)
            return get_logger_adapter
        return get_resolver_logger_adapter

    async def test_steps_of_a_request_are_logged_in_their_order_after_its_method_and_url(self):
        url = self.serve(OK).url + '/%25s/%d?100%'
        request, close = self.pool_and_close()
        with LogRecords('lowhaio') as log:
            await fetch(request, b'GET', url)
            await fetch(request, b'GET', url)
            await close()
        step = ['Using connection', 'Received head', 'Keeping connection']
        self.assertEqual(
            [message.partition(': ')[0] for message in log.messages()],
            ['[http:GET,%s] %s' % (url, text) for text in ('Connecting', *step, *step)]
            + ['[http] Closing pool'])
        self.assertEqual({record.levelno for record in log.records}, {logging.DEBUG})

    async def test_messages_outside_of_a_request_start_with_http(self):
        _, close = self.pool_and_close()
        extras = []
        with LogRecords('lowhaio') as log:
            await close(get_logger_adapter=self.adapter(extras))
        self.assertEqual(extras, [{}])
        self.assertEqual([message[:7] for message in log.messages()], ['[http] '])

    async def test_url_is_logged_as_it_is_with_arguments_and_without(self):
        logger = logging.getLogger('lowhaio')
        extra = {'lowhaio_method': 'GET', 'lowhaio_url': 'http://a.test/%20%s?%d%%'}
        adapter = HttpLoggerAdapter(logger, extra)
        nested = HttpLoggerAdapter(HttpLoggerAdapter(logger, {}), extra)
        outer = logging.LoggerAdapter(adapter, {})
        dns = aiodnsresolver.ResolverLoggerAdapter(adapter, {'host': 'a.test'})
        prefix = '[http:GET,http://a.test/%20%s?%d%%]'
        with LogRecords('lowhaio') as log:
            for one in (adapter, nested, outer, dns):
                one.debug('plain')
                one.info('%s of %d', 'some', 3)
                one.warning('%(a)s', {'a': 'some'})
                one.error(ValueError('wrong'))
                one.critical('100%%%s', '')
        for before in (prefix, '[http] ' + prefix, prefix, prefix + ' [dns:a.test]'):
            expected = [before + ' ' + text for text in (
                'plain', 'some of 3', 'some', 'wrong', '100%')]
            self.assertEqual(log.messages()[:5], expected)
            del log.records[:5]

    async def test_header_values_and_bodies_are_never_logged(self):
        server = self.serve(response(b'sesame', b'x-b: sesame'), closing(b'sesame', Peer.reset))
        request = self.pool(get_dns_resolver=DEFAULT_RESOLVER)
        fields = ((b'x-a', b'sesame'), (b'content-length', b'6'))
        with LogRecords('lowhaio') as log, LogRecords('aiodnsresolver') as dns:
            await fetch(request, b'PUT', server.url, headers=fields, body=streamed(b'sesame'))
            with contextlib.suppress(HttpError):
                await fetch(request, b'PUT', server.url, headers=fields, body=streamed(b'sesame'))
        self.assertNotIn('sesame', '\n'.join(log.messages() + dns.messages()))

    async def test_resolver_logs_within_the_request(self):
        server = self.serve(OK)
        NameServer(self)
        request = self.pool(get_dns_resolver=DEFAULT_RESOLVER)
        with LogRecords('aiodnsresolver', logging.INFO) as log:
            await fetch(request, b'GET', server.url)
        prefix = '[http:GET,%s] [dns:localhost,A] ' % server.url
        self.assertEqual({message[:len(prefix)] for message in log.messages()}, {prefix})

    async def test_adapters_given_to_a_pool_or_instead_to_a_request_get_the_extra(self):
        server = self.serve(OK)
        NameServer(self)
        extra = {'lowhaio_method': 'GET', 'lowhaio_url': server.url}
        for is_for_request in (False, True):
            with self.subTest(is_for_request=is_for_request):
                extras, unused, dns_extras = [], [], []
                adapters = {'get_logger_adapter': self.adapter(extras),
                            'get_resolver_logger_adapter': self.resolver_adapter(dns_extras)}
                request = self.pool(get_dns_resolver=DEFAULT_RESOLVER, **(
                    {'get_logger_adapter': self.adapter(unused)} if is_for_request else adapters))
                await fetch(request, b'GET', server.url, **(adapters if is_for_request else {}))
                self.assertEqual((extras, unused), ([extra], []))
                self.assertIn((extra, {'aiodnsresolver_fqdn': 'localhost',
                                       'aiodnsresolver_qtype': 1}), dns_extras)


# ---- Helpers ----


class HelpersTest(TestCase):

    async def test_streamed_and_buffered_give_back_the_same_bytes_again_and_again(self):
        body = streamed(b'abc')
        self.assertEqual([await buffered(body()), await buffered(body())], [b'abc', b'abc'])

    async def test_empty_async_iterator_yields_nothing(self):
        self.assertEqual(await buffered(empty_async_iterator()), b'')


class TimeoutTest(TestCase):

    async def wait(self, seconds):
        with timeout(self.loop, seconds):
            await asyncio.Event().wait()

    def cancelling(self):
        return getattr(asyncio.current_task(), 'cancelling', int)()

    async def test_timeout_raises_timeout_error_after_its_seconds(self):
        start = time.monotonic()
        with self.assertRaises(asyncio.TimeoutError):
            await self.wait(0.05)
        self.assertGreater(time.monotonic() - start, 0.04)
        self.assertEqual(self.cancelling(), 0)

    def test_timeout_outside_of_a_task_is_refused(self):
        with contextlib.closing(asyncio.new_event_loop()) as loop, \
                self.assertRaisesRegex(RuntimeError, 'in a task'), timeout(loop, 1):
            pass

    async def test_block_that_ends_or_raises_in_time_leaves_no_timer(self):
        with timeout(self.loop, 10):
            await asyncio.sleep(0)
        self.assertEqual(self.loop.active_timers(), [])
        with self.assertRaisesRegex(ValueError, 'mine'), timeout(self.loop, 10):
            raise ValueError('mine')
        self.assertEqual(self.loop.active_timers(), [])

    async def test_reset_starts_the_time_afresh(self):
        start = time.monotonic()
        with self.assertRaises(asyncio.TimeoutError), timeout(self.loop, 0.1) as reset:
            for _ in range(4):
                await asyncio.sleep(0.05)
                reset()
            await asyncio.Event().wait()
        self.assertGreater(time.monotonic() - start, 0.28)

    async def test_cancellation_from_outside_stays_a_cancellation(self):
        task = self.spawn(self.wait(10))
        await self.turns()
        await cancel(task)

    async def test_nested_timeouts_expire_on_their_own(self):
        with timeout(self.loop, 10):
            with self.assertRaises(asyncio.TimeoutError):
                await self.wait(0.02)
            await asyncio.sleep(0)
        self.assertEqual(self.cancelling(), 0)

    async def test_outer_timeout_passes_through_the_inner_one(self):
        inner = []
        with self.assertRaises(asyncio.TimeoutError), timeout(self.loop, 0.02):
            try:
                await self.wait(10)
            except BaseException as exception:
                inner.append(type(exception))
                raise
        self.assertEqual(inner, [asyncio.CancelledError])

    @since_python_3_11
    async def test_asyncio_timeout_around_it_is_not_disturbed(self):
        with self.assertRaises(TimeoutError):
            async with asyncio.timeout(0.02) as outer:
                await self.wait(10)
        self.assertTrue(outer.expired())

    @since_python_3_11
    async def test_task_group_works_on_after_a_timeout_within(self):
        async def times_out():
            with self.assertRaises(asyncio.TimeoutError):
                await self.wait(0.02)
            return self.cancelling()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(times_out())
        self.assertEqual(task.result(), 0)

    @since_python_3_11
    async def test_outside_cancellation_in_the_same_turn_is_not_lost(self):
        task = self.spawn(self.wait(0.02))
        await self.turns()
        self.loop.call_at(self.loop.time() + 0.02, task.cancel)
        time.sleep(0.05)  # Both are due at once
        with self.assertRaises(asyncio.CancelledError):
            await task
        self.assertEqual(task.cancelling(), 1)

    async def test_request_within_a_timeout_is_ended_by_it(self):
        server, request = self.serve(), self.pool()
        with self.assertRaises(asyncio.TimeoutError), timeout(self.loop, 0.1):
            await request(b'GET', server.url)
        peer = await server.accept()
        self.assertEqual(await peer.ended(), GET)

    async def test_reset_does_nothing_after_the_end_of_its_timeout(self):
        with timeout(self.loop, 5) as reset:
            pass
        reset()
        self.assertEqual(self.loop.active_timers(), [])


# ---- Request target and head (RFC 3986; RFC 9110 4.2; RFC 9112 3) ----


async def chunks_of(*chunks):
    for chunk in chunks:
        yield chunk


def by_bytes(data):
    return [data[i:i + 1] for i in range(len(data))]


CONTROLS = bytes((*range(32), 127))
TOKEN_BYTES = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
NOT_TOKEN_BYTES = bytes(set(range(256)) - set(TOKEN_BYTES))
SECRET = b'sesame'  # It is in values and bodies, and must not be in a message

IN_CHUNKS = ((b'transfer-encoding', b'chunked'),)
CLOSE = (b'connection', b'close')
EXPECT = (b'expect', b'100-continue')


def content_length(number):
    return ((b'content-length', b'%d' % number),)


class SentRow(typing.NamedTuple):
    """A request, and the bytes that must arrive, where {} in its URL is the port of the server."""

    wire: bytes
    url: str = 'http://localhost:{}/'
    method: bytes = b'GET'
    params: typing.Any = ()
    headers: typing.Tuple[typing.Tuple[bytes, bytes], ...] = ()
    chunks: typing.Sequence[typing.Any] = ()  # Of the body
    resolved: typing.Optional[str] = 'localhost'  # The name that DNS is asked for
    version: bytes = b'HTTP/1.1'
    address: str = '127.0.0.1'  # Of the server


def sent_target(tail, target, params=()):
    return SentRow(b'GET %b HTTP/1.1\r\nhost: localhost\r\n\r\n' % target,
                   'http://localhost:{}' + tail, params=params)


def sent_host(host, field, is_name=True, **kwargs):
    """What is in the host field is resolved if it is a name, without a dot at its end."""
    return SentRow(b'GET / HTTP/1.1\r\nhost: %b\r\n\r\n' % field, 'http://%s:{}/' % host,
                   resolved=field.decode().rstrip('.') if is_name else None, **kwargs)


def field_lines(headers):
    return b''.join(b'%b: %b\r\n' % tuple(header) for header in headers)


def sent_fields(*headers, version=b'HTTP/1.1'):
    """The headers as they are given, after a host unless one is among them."""
    return sent_body(headers=headers, method=b'GET', version=version)


def sent_body(*chunks, headers=None, method=b'PUT', version=b'HTTP/1.1'):
    """The bytes of the chunks, after the headers, which are their length unless given."""
    body = b''.join(map(bytes, chunks))
    headers = content_length(len(body)) if headers is None else headers
    host = b'' if b'host' in {name.lower() for name, _ in headers} else b'host: localhost\r\n'
    return SentRow(b'%b / %b\r\n%b%b\r\n%b' % (method, version, host, field_lines(headers), body),
                   method=method, headers=headers, chunks=chunks, version=version)


def sent_chunks(*chunks):
    return sent_body(*chunks, headers=IN_CHUNKS)


ESCAPED_CONTROLS = b''.join(b'%%%02X' % byte for byte in CONTROLS)

TARGETS = (
    *(SentRow(GET, scheme + '://localhost:{}/') for scheme in ('HTTP', 'hTtP')),
    *(sent_target(tail, tail.encode()) for tail in (  # Sent as it is
        '/?', '/?a:b@c', '/?/??', '/?a=b&c;d=&=&', '//a', '/a//b/', '/a/../b/./..', '/%2e%2E/',
        '/a:b@c', '/http://u:p@a.test:1/?b', '/aZ09-._~?aZ09-._~', "/!$&'()*,;=?!$&'()*,;=+",
        '/?a+b', '/%2b?%2B', '/%41%2f%2F%c3?%3d%3D', '/%0d%0A%00?%0D%0a%00', '/%25?%2541',
        '/' + 'ab/' * 20000)),
    *(sent_target(tail, target) for tail, target in (  # No path; fragments
        ('', b'/'), ('?a', b'/?a'), ('#f', b'/'), ('?/a', b'/?/a'), ('/a#f', b'/a'),
        ('/a#f?b', b'/a'), ('/a#f#g', b'/a'), ('/a#\u2028b', b'/a'), ('/a?b#c', b'/a?b'),
        ('/a?#', b'/a?'))),
    *(sent_target(tail, target) for tail, target in (  # What is no escape; blanks; other ASCII
        ('/a+b', b'/a%2Bb'), ('/%?%', b'/%25?%25'), ('/%%41?%%41', b'/%25%41?%25%41'),
        ('/a%2?a%2', b'/a%252?a%252'), ('/%zz%4g?%zz%4g', b'/%25zz%254g?%25zz%254g'),
        ('/%\u0664\u0661', b'/%25%D9%A4%D9%A1'), ('/%u0041?%u0041', b'/%25u0041?%25u0041'),
        ('/a b?c d', b'/a%20b?c%20d'), ('/a ', b'/a%20'), ('/a\\..\\b', b'/a%5C..%5Cb'),
        ('/%7b{{}}', b'/%7b%7B%7B%7D%7D'), ('/"<>\\^`{|}[]?"<>\\^`{|}[]',
         b'/%22%3C%3E%5C%5E%60%7B%7C%7D%5B%5D?%22%3C%3E%5C%5E%60%7B%7C%7D%5B%5D'))),
    *(sent_target(tail, target) for tail, target in (  # UTF-8 of two bytes, three and four
        ('/\u00fc?\u00fc=\u00df', b'/%C3%BC?%C3%BC=%C3%9F'), ('/u\u0308', b'/u%CC%88'),
        ('/\u20ac?\u20ac', b'/%E2%82%AC?%E2%82%AC'),
        ('/\U0001f600?\U0001f600', b'/%F0%9F%98%80?%F0%9F%98%80'))),
    *(sent_target(tail, target) for tail, target in (
        # What may be taken for CR, LF, a blank, a slash or a question mark
        ('/\u010d\u010a?\u560d\u560a', b'/%C4%8D%C4%8A?%E5%98%8D%E5%98%8A'),
        ('/\x80\x85\x9f', b'/%C2%80%C2%85%C2%9F'), ('/\u2028?\u2029', b'/%E2%80%A8?%E2%80%A9'),
        ('/\xa0\ufeff', b'/%C2%A0%EF%BB%BF'), ('/\uff0f\uff1f', b'/%EF%BC%8F%EF%BC%9F'))),
)

PARAMS = (
    *(sent_target('/', b'/?' + query, params) for params, query in (  # Of all types
        ((('a', 'b'),), b'a=b'), ([('a', 'b'), ('c', 'd')], b'a=b&c=d'), ((['a', 'b'],), b'a=b'),
        ({'a': 'b', 'c': ['d', 'e']}, b'a=b&c=d&c=e'), ({'a': 'b'}.items(), b'a=b'),
        ((('a', 'b'), ('a', 'c')), b'a=b&a=c'), ((('a', ['1', 2]), ('b', ('3',))), b'a=1&a=2&b=3'),
        ((('a', ()), ('b', 'c')), b'b=c'), ((('a', b'\xff/b'),), b'a=%FF%2Fb'),
        (((b'\xff', 'b'),), b'%FF=b'), ((('a', [b'\xff', b'b']),), b'a=%FF&a=b'),
        ((('a', 1), (2, -3.5)), b'a=1&2=-3.5'), ((('', ''),), b'='), ((('a', ''),), b'a='))),
    *(sent_target('/', b'/?' + query, (pair,)) for pair, query in (  # And how they are encoded
        (('a b', ' c '), b'a%20b=%20c%20'), (('aZ09-._~', 'aZ09-._~'), b'aZ09-._~=aZ09-._~'),
        (('a', '!"#$%&\'()*+,/:;<=>?@[\\]^`{|}'), b'a=%21%22%23%24%25%26%27%28%29%2A%2B%2C%2F%3A'
         b'%3B%3C%3D%3E%3F%40%5B%5C%5D%5E%60%7B%7C%7D'),
        (('a&b=c?d#e/f', ''), b'a%26b%3Dc%3Fd%23e%2Ff='), (('a', '%41'), b'a=%2541'),
        (('\u00fc', '\U0001f600'), b'%C3%BC=%F0%9F%98%80'),
        (('a', CONTROLS), b'a=' + ESCAPED_CONTROLS),  # CVE-2026-1527
        ((CONTROLS.decode(), 'b'), ESCAPED_CONTROLS + b'=b'))),
    *(sent_target(tail, target, (('a', 'b'),)) for tail, target in (  # After what is there
        ('/?x=y', b'/?x=y&a=b'), ('/?', b'/?a=b'), ('/?x&', b'/?x&a=b'), ('/?x?', b'/?x?a=b'),
        ('/#f?g', b'/?a=b'), ('/?x#f', b'/?x&a=b'), ('', b'/?a=b'), ('/%3F', b'/%3F?a=b'))),
    sent_target('/?%20+ ', b'/?%20+%20&a=%20', (('a', ' '),)),
    *(sent_target(tail, tail.encode(), params) for tail, params in (  # None
        ('/', ()), ('/?x', ()), ('/?', {}), ('/?x', (('a', ()),)), ('/', (('a', []),)))),
)

LABEL = 'a' * 63
NAME = '.'.join((LABEL, LABEL, LABEL, 'a' * 61))
HOSTS = (
    *(sent_host(host, host.encode()) for host in (
        'a.test.', '3com.4test', '127.test', 'a0123456789.b0123456789', '_a_._b_', '-a-.b--c', 'a',
        LABEL, NAME, NAME + '.', 'xn--strae-oqa.test',
        # Which end in no number
        '0xg', '0x7f.test', 'a0x1', '0x1-', '1x0', '0_x', '7f000001a', '0x7f.0x1.x1')),
    *(sent_host(host, field) for host, field in (
        ('LOCALHOST', b'localhost'), ('A.Test', b'a.test'),
        ('XN--BCHER-KVA.test', b'xn--bcher-kva.test'),
        # In IDNA: letters of any case and script
        ('b\u00fccher.test', b'xn--bcher-kva.test'), ('B\u00dcCHER.TEST', b'xn--bcher-kva.test'),
        ('bu\u0308cher.test', b'xn--bcher-kva.test'), ('\u00fc.TEST', b'xn--tda.test'),
        ('\u00fc.test.', b'xn--tda.test.'), ('\u0391\u03a3.test', b'xn--mxa0b.test'),
        ('\u0130.test', b'xn--i-9bb.test'),
        ('\u4f8b\u3048.\u30c6\u30b9\u30c8', b'xn--r8jz45g.xn--zckzah'),
        ('\u05d0.test', b'xn--4db.test'), ('\U0001f600.test', b'xn--e28h.test'),
        ('\u00fc' + 'a' * 55, b'xn--%b-oxf' % (b'a' * 55)),
        # In IDNA: what stands for dots, letters and nothing
        ('a\u3002test', b'a.test'), ('a.test\uff61', b'a.test.'), ('\u212a.test', b'k.test'),
        ('\uff21\uff22.test', b'ab.test'), ('local\u00adhost', b'localhost'))),
    *(sent_host(host, b'127.0.0.1' + dot, is_name=False) for host, dot in (
        ('127.0.0.1', b''), ('127.0.0.1.', b'.'), ('\uff11\uff12\uff17.0.0.1', b''))),
    *(sent_host(host, host.lower().encode(), is_name=False, address=address)
      for host, address in (
          ('[::1]', '::1'), ('[0:0:0:0:0:0:0:1]', '::1'), ('[0::0001]', '::1'),
          ('[::FFFF:7F00:1]', '127.0.0.1'), ('[::ffff:127.0.0.1]', '127.0.0.1'))),
)

METHODS = tuple(sent_body(headers=(), method=method) for method in (
    b'POST', b'DELETE', b'OPTIONS', b'TRACE', b'M-SEARCH', b'X', b'get', b'Get', b'CONNECTED',
    b'Host', b'content-length', b'PRI', TOKEN_BYTES, b'A' * 1000))

FIELDS = (
    sent_fields((b'X-B', b'1'), (b'x-a', b'2'), (b'X-b', b'3')),
    sent_fields((b'a', b'b'), (b'a', b'b')),
    sent_fields((b'a', b''), (b'b', b'c')),
    sent_fields(*[(b'a', b'b')] * 2000),
    sent_fields([b'a', b'b']),
    *(sent_fields((name, b'a')) for name in (
        TOKEN_BYTES, *(b'n' * size for size in (1, 64, 65, 1000)))),
    *(sent_fields((b'a', value)) for value in (
        bytes(set(range(256)) - set(CONTROLS)), b' \tb\t ', b'b \t c', b' \t', b'\x80\x85\xff',
        b'\xc3\xbc', b'b' * 100000)),
    *(sent_fields((b'host', host)) for host in (
        b'b.test', b'b.test:81', b'b.test:', b'B.Test.', b' b.test\t', b'', b'a-b',
        b'[::ffFF:1.2.3.4]:81', b'[0123:4567:89ab:cdef:ABCD:EF::]',
        b'%01%23%45%67%89%ab%cd%ef%AB%CD%EF', b"aZ09-._~%41!$&'()*+,;=")),
    sent_fields((b'HoSt', b'b.test')),
    sent_fields((b'a', b'b'), (b'HoSt', b'b.test')),
    sent_fields((b'a', b'b'), (b'HOST', b'b.test'), (b'c', b'd')),
    sent_fields((b'x-host', b'b')),
    sent_fields((b'Connection', b'Close')),
    sent_fields((b'connection', b'a'), CLOSE),
    sent_fields(EXPECT),  # Without a body
    sent_fields(version=b'HTTP/1.0'),
    sent_fields((b'connection', b'keep-alive'), version=b'HTTP/1.0'),
)

LARGE_CHUNK = bytes(range(256)) * 400
TWO_CHUNKS = b'3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n'
SENT_BODIES = (
    *(sent_body(*chunks) for chunks in (
        (), (b'', b''), by_bytes(b'abcde'), (b'', b'a', b'', b'', b'b', b''),
        (bytearray(b'ab'), bytearray(), bytearray(b'cd')),
        (memoryview(b'ab'), memoryview(b''), memoryview(bytearray(b'c'))),
        (b'a', LARGE_CHUNK, b'b'))),
    *(sent_body(chunk) for chunk in (
        b'abcde', bytes(range(256)), GET, b'0\r\n\r\n', LARGE_CHUNK, bytearray(LARGE_CHUNK))),
    *(sent_body(memoryview(data)[::step]) for data, step in (
        (LARGE_CHUNK, 1), (b'abcd', 2), (b'ab', -1), (LARGE_CHUNK + LARGE_CHUNK, 2),
        (LARGE_CHUNK, -1))),
    *(sent_body(memoryview(data).cast(*kind)) for data, *kind in (
        (b'abcd', 'H'), (b'ab', 'c'), (b'abcdef', 'B', (2, 3)), (LARGE_CHUNK, 'I'),
        (LARGE_CHUNK, 'B', (256, 400)))),
    sent_body(b'', bytearray(), memoryview(b''), headers=()),
    *(sent_body(b'ab', headers=headers) for headers in (
        ((b'Content-LENGTH', b'2'),), ((b'content-length', b' \t2 '),),
        ((b'content-length', b'0' * 18 + b'2'),), (*content_length(2), CLOSE),
        (*content_length(2), EXPECT), (*content_length(2), (b'Expect', b'100-Continue')))),
    sent_body(b'ab', version=b'HTTP/1.0'),
    sent_body(b'ab', method=b'GET'),
    sent_body(headers=(*content_length(0), EXPECT)),
    *(sent_body(TWO_CHUNKS, headers=headers) for headers in (
        (*IN_CHUNKS, EXPECT), (*IN_CHUNKS, CLOSE), ((b'Transfer-Encoding', b'Chunked'),),
        ((b'transfer-encoding', b'gzip, chunked'),),
        ((b'transfer-encoding', b'gzip'), (b'Transfer-Encoding', b' chunked ')))),
    sent_chunks(TWO_CHUNKS),
    *(sent_chunks(TWO_CHUNKS[:cut], TWO_CHUNKS[cut:]) for cut in range(1, len(TWO_CHUNKS))),
    *(sent_chunks(*by_bytes(body)) for body in (
        TWO_CHUNKS, b'0\r\n\r\n', b'0' * 16 + b'\r\n\r\n',
        b'a\r\n0123456789\r\nB\r\n0123456789a\r\n0\r\n\r\n', b'%016x\r\nab\r\n0\r\n\r\n' % 2,
        b'7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n', b'5\r\n0\r\n\r\n\r\n0\r\n\r\n',
        b'1;a\r\nb\r\n1;a=b;c="d;e"\r\nf\r\n0;g\r\n\r\n', b'1\r\na\r\n0\r\nb: c\r\nD:\r\n\r\n')),
    sent_chunks(b'', b'1\r\na\r\n', b'', bytearray(), b'0\r\n', b'', b'\r\n', b''),
    sent_chunks(bytearray(b'1\r\na'), memoryview(b'\r\n0\r\n'), bytearray(b'\r\n')),
    # Extensions and trailers longer than max_header_length
    sent_chunks(b'1;', b'x' * 20000, b'\r\na\r\n0\r\n\r\n'),
    sent_chunks(b'0\r\n', *[b'a: b\r\n'] * 4000, b'\r\n'),
    sent_chunks(b'19000\r\n', LARGE_CHUNK, b'\r\n0\r\n\r\n'),
    sent_chunks(*[b'1\r\na\r\n'] * 2000, b'0\r\n\r\n'),
)

SENT = (*TARGETS, *PARAMS, *HOSTS, *METHODS, *FIELDS, *SENT_BODIES)


class SentTest(TestCase):
    """Each row is sent alone on its connection, and not a byte more than the row has."""

    async def check(self, row):
        async def script(peer):
            head = await peer.read_until(b'\r\n\r\n')
            if EXPECT[1] in head.lower() and len(row.wire) > len(head):
                await self.turns()
                self.assertEqual((peer.unread, peer.received), (b'', head))
                await peer.send(b'HTTP/1.1 100 Continue\r\n\r\n')
            await peer.read(len(row.wire) - len(head))
            await peer.send(OK)
            await peer.ended()

        server = self.serve(script=script, address=row.address)
        names = Names()
        if row.resolved:
            names.add(row.resolved, 'A', '127.0.0.1')
        request, close = self.pool_and_close(
            get_dns_resolver=names, http_version=row.version, socket_timeout=2)
        result = await fetch(
            request, row.method, row.url.replace('{}', str(server.port), 1), row.params,
            row.headers, *((chunks_of, row.chunks) if row.chunks else ()))
        await close()
        peer = server.peers[0]
        await peer.ended()
        self.assertEqual(bytes(peer.received), row.wire)
        self.assertEqual(result, (b'200', ((b'content-length', b'2'),), b'ok'))
        self.assertEqual(names.queries, [(row.resolved, 'A')] if row.resolved else [])
        self.assertEqual(len(server.peers), 1)
        server.close()

    async def each(self, rows):
        for row in rows:
            with self.subTest(brief(row)):
                await self.check(row)

    test_targets = of_each(TARGETS)
    test_params = of_each(PARAMS)
    test_hosts = of_each(HOSTS)
    test_methods = of_each(METHODS)
    test_header_fields = of_each(FIELDS)
    test_bodies = of_each(SENT_BODIES)

    async def test_params_and_headers_may_be_iterators(self):
        server = self.serve(OK)
        await fetch(self.pool(), b'GET', server.url, params=iter((('a', '&'), ('b', '='))),
                    headers=iter(((b'c', b'd'), (b'e', b'f'))))
        self.assertEqual(server.requests, [
            b'GET /?a=%26&b=%3D HTTP/1.1\r\nhost: localhost\r\nc: d\r\ne: f\r\n\r\n'])

    async def test_every_digit_of_an_ipv6_address_counts_and_ports_default_to_80_and_443(self):
        tried = []

        class Sock(socket.socket):
            def connect_ex(self, address):
                tried.append(address[:2])
                return errno.ECONNREFUSED
        request = self.pool(get_sock=sockets(Sock))
        for url in ('http://localhost', 'https://localhost/', 'http://localhost:/',
                    'HTTPS://localhost:?', 'http://[::1]', 'https://[::1]:/',
                    'https://localhost:80', 'http://localhost:1', 'http://localhost:65535',
                    'http://localhost:00080'):
            await self.fails(HttpConnectionError, request(b'GET', url))
        self.assertEqual([port for _, port in tried],
                         [80, 443, 80, 443, 80, 443, 80, 1, 65535, 80])
        for literal in ('123:4567:89ab:cdef::', '::ABCD:EF01'):
            await self.fails(HttpConnectionError, request(b'GET', 'http://[%s]' % literal))
        self.assertEqual(tried[-2:], [('123:4567:89ab:cdef::', 80), ('::abcd:ef01', 80)])

    async def test_names_of_headers_are_not_remembered_without_bound(self):
        request = self.pool()
        tracemalloc.start()
        try:
            for number in range(20):
                await self.fails(HttpInvalidRequest, request(
                    b'M%d' % number, 'http://localhost/', headers=(
                        *((b'%060d-%d' % (name, number), b'') for name in range(500)),
                        *((b'%040000d-%d' % (name, number), b'') for name in range(5)),
                        (b'content-length', b''))))
            kept = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        self.assertLess(kept, 500000)


class RefusedRow(typing.NamedTuple):
    """Arguments that differ from those of a good request, and the words of what they raise.

    {} in the URL is the port of the server.
    """

    arguments: typing.Dict[str, typing.Any]
    words: typing.Tuple[str, ...]
    cause: type = ValueError


def bad_url(url, *words, cause=ValueError):
    return RefusedRow({'url': url}, words, cause)


def bad_host(host, *words, cause=ValueError):
    return bad_url('http://%s:{}/' % host, *words, cause=cause)


def bad_port(port, *words):
    return bad_url('http://localhost:%s/' % port, 'URL', 'port', '65535', *words)


def bad_method(method, *words):
    return RefusedRow({'method': method}, ('method', *words))


def bad_headers(*headers, words=(), cause=ValueError):
    return RefusedRow({'headers': headers}, ('header', *words), cause)


def bad_name(header_name, *words):
    return bad_headers((header_name, SECRET), words=('header name', 'token', *words))


def bad_value(value, name=b'x-a'):
    return bad_headers((name, value), words=('value of the header %r' % name, 'control character'))


def bad_given_host(*values):
    return bad_headers(*((b'host', value) for value in values),
                       words=('host must be given once', 'host:port'))


def bad_lengths(*headers):
    return bad_headers(*headers, words=('content-length', 'once', 'number'))


def bad_coding(*values):
    return bad_headers(*((b'transfer-encoding', value) for value in values),
                       words=('transfer-encoding', 'chunked'))


def bad_type(words=(), cause=TypeError, **arguments):
    return RefusedRow(arguments, words, cause)


def bad_control(url, index=''):
    byte = next(byte for byte in url.encode() if byte in CONTROLS)
    return bad_url(url, 'URL has a control character', '%a' % chr(byte), 'index %s' % index)


BAD_URLS = (
    bad_url('', 'http://'),
    *(bad_url(url, 'http://', 'https://') for url in (
        'localhost', 'localhost:{}/', '/a', '//localhost:{}/', 'http:', 'http:/localhost:{}/',
        'http:localhost:{}', 'http//localhost:{}/', '?http://localhost:{}/',
        '#http://localhost:{}/', '/http://localhost:{}/')),
    *(bad_url(scheme + '://localhost:{}/', 'scheme', '%a' % scheme.lower())
      for scheme in ('', 'ftp', 'ws', 'httpx', 'shttp', 'http+unix', ' http', 'http ',
                     '\u017fhttp', 'htt\uff50', '\xa0http', '\ufeffhttp')),
    bad_url('x' * 100000 + '://localhost:{}/', 'scheme', "x'..."),
    *(bad_url(url, 'must have a host') for url in (
        'http://', 'http:///a', 'http://?a', 'http://#a', 'http://:80/', 'https://:/')),
    *(bad_url('http://%s@localhost:{}/' % user, 'user information', 'authorization') for user in (
        'u', 'u:sesame', '', ':', 'a.test', 'a.test:80', '[::1]', 'b@c', '\\')),
    bad_url('http://a.test\\@localhost:{}/', 'user information'),
    bad_url('http://u:sesame@/', 'user information'),
    bad_url('http://u:sesame/b@localhost:{}/', 'URL'),
    bad_port('0', 'not 0'), bad_port('00000', 'not 0'), bad_port('65536', 'not 65536'),
    *(bad_port(port) for port in (
        '99999', '000080', '9' * 100000, '-1', '+80', 'a', '8 0', ' 80', '80 ', '8_0', '0x50',
        '8.0', '80:80', ':80', '\u0661', '80\\', '%38%30')),
    *(bad_host(host, 'host of the URL', 'labels') for host in (
        'a..b', '.a', '.', 'a..', '..', ' ', 'a b', ' localhost', 'localhost ', 'a%41', '%6c', '%',
        'a\\b', 'localhost\\', 'a"b', 'a<b', 'a>', 'a^b', 'a`b', 'a{b', 'a|b', 'a,b', 'a;b', 'a=b',
        'a&b', 'a!b', 'a$b', 'a*', "a'b", 'a(b', 'a+b', 'a~b', LABEL + 'a', 'a.%sa.b' % LABEL,
        'a\u2100b.test')),  # In NFKC a slash is in it
    bad_url('http://localhost HTTP/1.1:{}/', 'host of the URL'),  # CVE-2019-11236
    *(bad_host(host, 'host of the URL', '253 bytes') for host in (
        NAME + 'a', NAME + 'a.', '.'.join(['\u00fc' + 'a' * 55] * 4), 'a' * 100000)),
    *(bad_host(host, 'not a name in IDNA', cause=UnicodeError) for host in (
        '\u00fc..b', '\u3002', '\uff0e', '\u00ad', '\u00fc' + 'a' * 63, '\u00fc' + 'a' * 56,
        'a\ufffc', '\ue000', 'a\x85b', 'xn--\u00fc', '\u05d0a.test')),
    *(bad_host(host, 'IDNA 2003 and 2008', 'xn--', cause=UnicodeError) for host in (
        'fa\xdf.de', '\u1e9e.de', 'FA\u1e9e.de', '\u03b2\u03cc\u03bb\u03bf\u03c2.com',
        'a\u200cb.com', 'a\u200db.com', '\u0dc1\u0dca\u200d\u0dbb\u0dd3.com', 'a.stra\xdfe',
        'a.test\xdf.', '\u200ca.test', 'a\u1806b.test', 'a\u2024test', 'a\u2488test',
        'a\u249btest', '\u33c2test', '\u33c7test', '\u33d8test', 'a\ufe52test',
        'a\U0002f868.test', 'a\U0002f874.test', 'a\U0002f91f.test', 'a\U0002f95f.test',
        'a\U0002f9bf.test')),
    *(bad_host(host, 'URL must have a host') for host in (
        '[::1', '::1]', '::1', '1::', '[::1]a', 'a[::1]', '[[::1]]', '[::1][::1]', '[]]', '[::g]',
        '[v1.a]', '[g%25lo]', '[::1/64]', '[localhost]', '[:: 1]', '[\u0661::]')),
    bad_host('[%s]' % (':' * 100000), 'host of the URL', ":'..."),
    *(bad_host(host, 'IPv6 address of the URL has a zone', 'resolver') for host in (
        '[::1%25lo]', '[::1%lo]', '[fe80::1%25eth0]', '[fe80::1%eth0]', '[fe80::1%251]',
        '[FE80::1%25en0]', '[fe80::1%]', '[fe80::1%25]', '[%25lo]', '[fe80::1%eth0')),
    *(bad_host(host, 'host of the URL', 'not an IP address') for host in (
        '[]', '[:]', '[1]', '[:::1]', '[1::2::3]', '[12345::]', '[1:2:3:4:5:6:7:8:9]',
        '[127.0.0.1]', '[::256.0.0.1]', '[::1.2.3]', '[::01.2.3.4]', '256.0.0.1', '1.2.3', '127.1',
        '1.2.3.4.5', '2130706433', '0', 'a.1', '0x7f.1', '01.2.3.4', '0x7f000001', '127.0.0.0x1',
        '0x7f.0x0.0x0.0x1', '0x', '0X7F000001', '0x7f000001.', 'a.0x', 'a.b.0XfF.', '1.2.3.0x4',
        '0x00000000000000000000007f.0.0.1', '0xffffffffffffffff', '017700000001', '00',
        '127.0.0.09', '\uff10\uff587f000001', '127\u3002\uff10x1', '\u2460', '127.1.')),
    # CVE-2024-3651, CVE-2022-45061, CVE-2021-33503
    bad_url('http://%s/' % ('\u00fc' * 100000), 'host of the URL', '253 bytes'),
    bad_url('http://%slocalhost:{}/' % ('@' * 100000), 'user information'),
    bad_url('http://localhost%s/' % (':' * 100000), 'port'),
    bad_url('http://%s/' % ('[' * 100000), 'host'),
    bad_url('a' * 1000000, 'http://'),
    *(bad_url('http://%s\ud800' % start, 'surrogate', "'\\ud800'", 'index %d' % (7 + len(start)))
      for start in ('', 'localhost/', 'localhost/?')),
    bad_url('http://localhost/\udc80', 'control character or surrogate'),
    # CVE-2019-9740, CVE-2019-9947, CVE-2019-11236, CVE-2019-12387, CVE-2019-18348, CVE-2020-11078
    bad_control('http://localhost:{}/?a\r\nx: sesame', 25),
    bad_control('http://localhost:{}/a HTTP/1.1\r\nx: sesame'),
    bad_control('http://localhost:{}/\r\n\r\nGET /b HTTP/1.1'),
    bad_control('http://localhost:{}\r\n/'),
    bad_control('http://localhost\r\nx: y:{}/', 16),
    bad_control('http://a\r\n@localhost:{}/'),
    # CVE-2023-24329, as is a blank before the scheme, and CVE-2022-0391
    bad_control('\nhttp://localhost:{}/', 0),
    bad_control('ht\ntp://localhost:{}/', 2),
    bad_control('http://localhost:{}/\n'),
    bad_control('http://localhost\n'),
    *(bad_control(url % chr(byte)) for byte in CONTROLS for url in (
        'ht%stp://localhost:{}/', 'http://local%shost:{}/', 'http://localhost:{}%s/',
        'http://localhost:{}/a%sb', 'http://localhost:{}/?a%sb', 'http://localhost:{}/#%s')),
)

BAD_METHODS = (
    bad_method(b'', 'token', "b''"),
    # CVE-2023-49082, CVE-2020-26137, CVE-2020-26116
    bad_method(b'GET / HTTP/1.1\r\nx: y\r\n', 'token', "b'GET / HTTP/1.1\\r\\nx: y\\r\\n'"),
    *(bad_method(method, 'token') for method in (b'GET\r\n', b'GET\n', b' GET', b'G\xc3\xbc')),
    bad_method(b'G ' * 100000, 'token', "'..."),
    *(bad_method(method, 'CONNECT', 'not supported')
      for method in (b'CONNECT', b'connect', b'Connect')),
    *(bad_method(b'G%cT' % byte, 'token') for byte in NOT_TOKEN_BYTES),
)

BAD_FIELDS = (
    *(bad_name(name, '%r' % name) for name in (
        b'', b' a', b'a:', b'a: b\r\nc')),  # The last one is CVE-2026-0865, as those of values are
    *(bad_name(name) for name in (b':authority', b'a\n')),
    bad_name(b'a ' * 100000, "'..."),
    *(bad_name(b'a%cb' % byte) for byte in NOT_TOKEN_BYTES),
    *(bad_value(value) for value in (
        b'sesame\r\nb: c', b'sesame\r\n b', b'\nsesame', b'sesame\n', b'sesame\r')),
    *(bad_value(b'sesame%cb' % byte) for byte in CONTROLS.replace(b'\t', b'')),
    bad_value(b'a\r\n\r\nsesame', b'upgrade'),  # CVE-2026-1527
    bad_value(b'localhost\r\nx: sesame', b'host'),  # CVE-2023-29406
    bad_headers((b'a' * 100000, b'\n'),
                words=("aaa'... has a control character, b'\\n', at index 0",)),
    bad_headers((b'a' * 100000, 1), words=('pair of bytes',), cause=TypeError),
    bad_headers((b'a', b'b'), (b'host', b'c'), (b'd', b'\0'), words=("b'd'",)),
    bad_given_host(b'localhost', b'localhost'),
    bad_given_host(b'', b''),
    bad_headers((b'host', b'a'), (b'HOST', b'a'), words=('host must be given once',)),
    *(bad_given_host(value) for value in (  # CVE-2023-29406
        b'a b', b'a/b', b'a?b', b'a#b', b'u@a', b'a, b', b'http://a', b'a:b', b'a:80:80', b'a:-1',
        b'a: 80', b'[::1', b'::1', b'[a', b'[::1]a', b'[::1%25lo]', b'[]', b'a\tb', b'"a"',
        b'a\\b', b'<a>', b'\xfc', b'a\x80', b'a%zz', b'a%4', b'a%')),
    *(bad_lengths((b'content-length', value)) for value in (
        b'', b' ', b'-1', b'+1', b'1X', b'1_0', b'1 0', b'0x1', b'1.0', b'1e1', b'a', b'1,', b',1',
        b'1, 1', b'1;a', b'"1"', b'\xb2', '\u0661'.encode(), b'9' * 20, b'9' * 10000)),
    *(bad_lengths((name, value), (other_name, other_value))
      for name, value, other_name, other_value in (
          (b'content-length', b'2', b'content-length', b'2'),
          (b'content-length', b'', b'content-length', b'2'),
          (b'content-length', b'1', b'Content-Length', b'1'),  # CVE-2026-1525
          (b'Content-length', b'1', b'CONTENT-LENGTH', b'2'))),
    *(bad_headers((length, b'0'), (coding, b'chunked'), words=(
        'transfer-encoding must not be given with content-length',)) for length, coding in (
            (b'content-length', b'transfer-encoding'), (b'Content-Length', b'Transfer-Encoding'),
            (b'CONTENT-LENGTH', b'transfer-encoding'))),
    bad_headers((b'transfer-encoding', b'chunked'), (b'content-length', b'5'),
                words=('with content-length',)),
    *(bad_coding(value) for value in (
        b'', b' ', b',', b'gzip', b'identity', b'chunked,', b'chunked, gzip', b'chunked, identity',
        b'chunked, chunked', b'chunked,gzip,chunked', b', chunked', b'gzip,, chunked',
        b'a b, chunked', b'"a, chunked', b'\xff, chunked', b'chunked;q="a, chunked',
        b'identity, chunked', b'xchunked', b'chunkedx', b'gzip chunked', b'gzip;chunked',
        b'chunked;a', b'"chunked"', b'chunked\xa0', b'\x85chunked', 'chun\u212aed'.encode())),
    bad_coding(b'chunked', b'chunked'),
    bad_coding(b'chunked', b'gzip'),
    RefusedRow({'headers': IN_CHUNKS, 'version': b'HTTP/1.0'}, ('transfer-encoding', 'HTTP/1.0')),
)

HEADERS = "headers must be pairs of bytes, such as ((b'name', b'value'),)"
PARAMS_WORDS = "params must be a dict, or pairs such as (('name', 'value'),)"
COMMA = 'with a comma after a single one'

BAD_TYPES = (
    *(bad_type(('method must be bytes', type(method).__name__), method=method)
      for method in ('GET', None, bytearray(b'GET'), 1)),
    *(bad_type(("URL must be a str, such as 'https://example.com/', not %s" % type(url).__name__,),
               url=url) for url in (b'http://localhost:{}/', None, 80, ['http://localhost:{}/'])),
    *(bad_type(('header ', "pair of bytes, such as (b'name', b'value')", 'text.encode()',
                "b'%d' % number", '%s and %s' % (type(name).__name__, type(value).__name__)),
               headers=((name, value),)) for name, value in (
        (b'a', 'sesame'), ('a', SECRET), ('a', 'sesame'), (b'a', 1), (b'a', None), (None, SECRET),
        (b'a', bytearray(SECRET)), (b'a', [SECRET]), ((b'a', b'b'), SECRET))),
    bad_type((HEADERS, 'not a dict: give its items()'), headers={b'a': SECRET}),
    *(bad_type(headers=headers) for headers in (None, 1, (1,))),
    *(bad_type((HEADERS,), headers=headers) for headers in (
        SECRET, ((b'a',),), ((b'a', b'b', SECRET),), ((),), ('a: sesame',), (b'a: ' + SECRET,))),
    *(bad_type((HEADERS, COMMA), headers=headers) for headers in (
        (b'a', SECRET), [b'content-length', SECRET], (b'te', b'no'), (b'te', SECRET),
        iter((b'te', SECRET)), (b'te',), ('te', 'sesame'))),
    *(bad_type((PARAMS_WORDS, COMMA), params=params) for params in (
        ('a', 'b'), ('ab', 'cd'), ['ab', 'cd'], (b'ab', b'cd'), ('ab',), (('a', 'b'), 'cd'))),
    *(bad_type((PARAMS_WORDS,), params=params) for params in (
        1, (1,), 'abc', (('a',),), (('a', 'b', 'c'),))),
    *(bad_type(('params have None at', name, 'leave out'), params=params) for name, params in (
        ("'a'", {'a': None}), ("'a'", (('a', None),)), ("'a'", {'a': [1, None]}),
        ("'b'", {'a': 1, 'b': (None,)}), ("'a'", {'a': {None}}), ('NoneType', {None: 'a'}),
        ("b'a'", {b'a': None}))),
    *(bad_type(('params', 'UTF-8'), UnicodeError, params=(pair,))
      for pair in (('a', '\ud800'), ('\ud800', 'a'))),
    *(bad_type(('body must be a function', kind, advice), body=body) for body, kind, advice in (
        (SECRET, 'bytes', 'streamed(data)'), ([SECRET], 'list', 'streamed(data)'),
        ('sesame', 'str', 'streamed(text.encode())'), (None, 'NoneType', 'leave it out'),
        (iter(()), 'iterator', 'async def that yields'),
        ((chunk for chunk in (SECRET,)), 'generator', 'async def that yields'),
        (io.BytesIO(SECRET), 'BytesIO', 'async def that yields what it reads'),
        (streamed(SECRET)(), 'async_generator', 'the function that makes it, uncalled'))),
    *(bad_type(('body_args must be an iterable', 'body_kwargs a dict'), **arguments)
      for arguments in ({'body_args': 5}, {'body_kwargs': 5}, {'body_kwargs': (1, 2)},
                        {'body_kwargs': (('a',),)})),
)

REFUSED = (*BAD_URLS, *BAD_METHODS, *BAD_FIELDS, *BAD_TYPES)


class RefusedTest(TestCase):
    """Nothing of a row is sent, no name is resolved, and the caller's body isn't asked for."""

    async def each(self, rows):
        server = self.serve(OK)
        names = Names()
        called = []

        async def body():
            called.append(True)
            return
            yield b''
        good = {'method': b'GET', 'url': 'http://localhost:{}/', 'body': body}
        pools = {version: self.pool(get_dns_resolver=names, http_version=version)
                 for version in (b'HTTP/1.1', b'HTTP/1.0')}
        for row in rows:
            with self.subTest(brief(row)):
                arguments = {**good, **row.arguments}
                request = pools[arguments.pop('version', b'HTTP/1.1')]
                if isinstance(arguments['url'], str):
                    arguments['url'] = arguments['url'].replace('{}', str(server.port))
                exception = await self.fails(
                    HttpInvalidRequest, fetch(request, **arguments), cause=row.cause)
                self.assert_says(exception, *row.words)
                self.assertEqual((names.queries, len(server.peers), called), ([], 0, []))
        await self.turns()
        self.assertEqual(server.peers, [])
        await fetch(pools[b'HTTP/1.1'], b'GET', server.url)  # A pool works on after refusals

    test_urls = of_each(BAD_URLS)
    test_methods = of_each(BAD_METHODS)
    test_header_fields = of_each(BAD_FIELDS)
    test_types_of_arguments = of_each(BAD_TYPES)

    def test_no_row_is_there_twice(self):
        for rows, least in ((SENT, 250), (REFUSED, 900), (BAD_BODIES, 90), (RESPONSES, 380)):
            counts = collections.Counter(map(repr, rows))
            self.assertEqual([row[:500] for row, count in counts.items() if count > 1], [])
            self.assertGreater(len(counts), least)

    async def test_version_of_a_pool_is_checked(self):
        for version in (b'HTTP/1.1\r\nx: y', b'HTTP/1.1\n', b'HTTP/2', b'http/1.1', b'', None,
                        'HTTP/1.1', b'HTTP/1.2'):  # The first is CVE-2023-49081
            with self.subTest(version), self.assertRaisesRegex(ValueError, 'http_version must be'):
                Pool(http_version=version)

    async def test_long_hosts_and_urls_take_no_time(self):
        start, size, million = time.process_time(), 300000, 10**6
        for host in ('\u00fc' * million, '\u00fc.' * million, '\u1e9b\u0323' * million,
                     'a' * million):
            await self.fails(HttpInvalidRequest, self.pool()(b'GET', 'http://%s/' % host), '253')
        for url in ('http://' + '@' * size, 'http://' + ':' * size, 'http://[' + ':' * size,
                    'http://' + '.' * size, 'h' * size, 'http://a/' + '%' * size + '\n',
                    'http://' + '1.' * size, 'http://a:' + '9' * size):
            await self.fails(HttpInvalidRequest, self.pool()(b'GET', url))
        server = self.serve(OK)
        await fetch(self.pool(max_header_length=10**8), b'GET', server.url + '/' + '%%2' * 100000)
        self.assertIn(b'%25%252', server.requests[0])
        self.assertLess(time.process_time() - start, 2)


class MistakesTest(TestCase):
    """What a newcomer gets wrong is answered by what to write instead."""

    async def refused(self, words, body, cause=TypeError, headers=((b'content-length', b'2'),)):
        server = self.serve(OK)
        await self.fails(HttpInvalidRequest, self.pool()(
            b'POST', server.url, body=body, headers=headers), words, cause)
        self.assertEqual(server.requests, [])

    async def test_body_function_that_is_not_asynchronous_is_told_of_async_def(self):
        def generator():
            yield b'ab'
        for name, body in (('generator', generator), ('bytes', lambda: b'ab'),
                           ('NoneType', lambda: None), ('BytesIO', io.BytesIO)):
            await self.refused('as an async def with yield does, not %s' % name, body)

    async def test_body_that_returns_rather_than_yields_is_told_of_yield(self):
        async def body():
            return b'ab'
        coroutine = body()
        await self.refused('an async def with yield does, not coroutine', lambda: coroutine)
        coroutine.close()

    async def test_body_that_yields_text_is_told_of_bytes(self):
        for chunk in ('ab', None, 1, [97]):
            await self.refused('it must yield bytes, bytearray or memoryview, not %s'
                               % type(chunk).__name__, streamed(chunk))

    async def test_streamed_that_is_not_called_is_told_what_it_misses(self):
        await self.refused("streamed() missing 1 required positional argument: 'data'", streamed)

    async def test_body_without_length_is_told_the_header(self):
        await self.refused("(b'content-length', b'%d' % len(data)) in headers", streamed(b'ab'),
                           ValueError, headers=())

    async def test_buffered_of_what_is_no_body_says_what_to_write(self):
        server = self.serve(OK)
        not_awaited = self.pool()(b'GET', server.url)
        words = 'code, headers, body = await request(...), and then await buffered(body)'
        for argument in (not_awaited, (b'200', (), None), b'ab', None):
            await self.fails(TypeError, buffered(argument),
                             'not %s: %s' % (type(argument).__name__, words))
        not_awaited.close()

    async def test_buffered_passes_on_the_type_error_of_an_iterable(self):
        async def numbers():
            yield b'ab' + 1
        await self.fails(TypeError, buffered(numbers()), 'concat')

    async def test_request_after_close_is_told_of_another_pool(self):
        request, close = self.pool_and_close()
        await close()
        await self.fails(HttpConnectionError, request(b'GET', 'http://localhost/'),
                         'make another one with Pool()')

    def test_request_in_a_second_run_of_asyncio_says_the_same(self):
        async def make():
            return Pool(get_dns_resolver=Names())

        async def use(request):
            await self.fails(RuntimeError, request(b'GET', 'http://127.0.0.1:9/'),
                             'belongs to another event loop: make one with Pool() in each')
        request, close = run_once(make())
        run_once(use(request))
        run_once(close())

    async def test_request_in_another_thread_says_that_the_pool_is_of_another_loop(self):
        server, request = self.serve(OK), self.pool()
        await fetch(request, b'GET', server.url)
        errors = []

        async def use():
            errors.append(await self.fails(
                RuntimeError, request(b'GET', server.url), 'belongs to another event loop'))
        thread = threading.Thread(target=run_once, args=(use(),))
        thread.start()
        thread.join()
        self.assertEqual(len(errors), 1)


def run_once(coroutine):
    """Run it in a loop of its own, as asyncio.run does, which uses threads in Python 3.9."""
    loop = BaseLoop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


class BodyRow(typing.NamedTuple):
    """Chunks of the caller's that break their framing after so many good bytes."""

    headers: typing.Tuple[typing.Tuple[bytes, bytes], ...]
    chunks: typing.Sequence[bytes]
    good: int
    words: typing.Tuple[str, ...]


def unframed(*chunks, headers=()):
    return BodyRow(headers, chunks, 0, ('neither content-length nor transfer-encoding',))


def bad_length_body(length, *chunks, words=('more bytes than content-length says',)):
    return BodyRow(content_length(length), chunks, min(length, len(b''.join(chunks))), words)


def bad_chunks_body(good, *bad):
    """Chunks whose bytes are well-formed up to those that are bad."""
    first, *others = bad
    return BodyRow(IN_CHUNKS, [good + first, *others], len(good),
                   ('chunked body', 'lowhaio_chunked encodes them'))


def after_last_chunk(good, *bad):
    return BodyRow(IN_CHUNKS, [good, *bad], len(good), ('last chunk',))


def no_last_chunk(*chunks):
    return BodyRow(IN_CHUNKS, chunks, len(b''.join(chunks)),
                   ('last chunk', 'lowhaio_chunked encodes them'))


BAD_BODIES = (
    unframed(GET),  # CVE-2020-35863
    unframed(GET, headers=(CLOSE,)),
    unframed(SECRET),
    unframed(b'', b'', SECRET),
    unframed(bytearray(SECRET)),
    unframed(LARGE_CHUNK),
    bad_length_body(0, SECRET),
    *(bad_length_body(6, *chunks) for chunks in (
        (b'sesame.',), (SECRET, b'.'), (SECRET, b'', b'', b'.'), (SECRET, GET), (SECRET + GET,))),
    bad_length_body(2, memoryview(b'ab'), memoryview(b'c')),
    bad_length_body(1, memoryview(b'ab').cast('H')),
    bad_length_body(3, words=('0 of its 3 bytes',)),
    bad_length_body(3, b'', b'', words=('0 of its 3 bytes',)),
    bad_length_body(7, SECRET, words=('6 of its 7 bytes',)),
    bad_length_body(8, b'ses', b'', b'ame', b'.', words=('7 of its 8 bytes',)),
    bad_length_body(10 ** 19 - 1, SECRET, words=('6 of its 9999999999999999999 bytes',)),
    *(bad_chunks_body(good, bad) for good, bad in (
        # What is no chunks at all
        (b'', b'sesame'), (b'', b'{"sesame": 1}'), (b'', b'sesame\r\n'), (b'12', b'.5'),
        (b'', bytes(9)), (b'', GET), (b'feed ', b'sesame'),
        # The size, and the end of its line
        (b'', b'\r\nsesame'), (b'', b'g\r\n'), (b'', b'+6\r\nsesame\r\n0\r\n\r\n'),
        (b'', b'-6\r\nsesame\r\n0\r\n\r\n'), (b'', b' 6\r\nsesame\r\n0\r\n\r\n'),
        (b'1', b'_0\r\nsesame'), (b'0', b'x6\r\nsesame\r\n0\r\n\r\n'),
        (b'6', b',\r\nsesame\r\n0\r\n\r\n'), (b'6 ', b'6\r\nsesame\r\n0\r\n\r\n'),
        (b'0' * 16, b'6\r\nsesame\r\n0\r\n\r\n'), (b'1' + b'0' * 15, b'00000006\r\nsesame'),
        (b'6', b'\nsesame\r\n0\r\n\r\n'), (b'6\r', b'sesame\r\n0\r\n\r\n'),
        (b'6\r', b'\r\nsesame\r\n0\r\n\r\n'), (b'6', b'\0\r\nsesame\r\n0\r\n\r\n'),
        (b'6', b'\xa0\r\nsesame\r\n0\r\n\r\n'),
        # Extensions
        (b'6;a', b'\nsesame\r\n0\r\n\r\n'), (b'6;a\r', b'b\r\nsesame\r\n0\r\n\r\n'),
        (b'6;a', b'\0\r\nsesame\r\n0\r\n\r\n'), (b'0;a', b'\nGET / HTTP/1.1\r\n\r\n'),
        # The end of a chunk
        (b'6\r\nsesame', b'.\r\n0\r\n\r\n'), (b'7\r\nsesame\r', b'\n0\r\n\r\n'),
        (b'6\r\nsesame', b'0\r\n\r\n'), (b'6\r\nsesame', b'\n0\r\n\r\n'),
        (b'6\r\nsesame\r', b'0\r\n\r\n'), (b'6\r\nsesame', b'\n\r0\r\n\r\n'),
        (b'6\r\nsesame\r\n', b'\r\n0\r\n\r\n'), (b'1\r\na\r\n', b'sesame'),
        # The last chunk and trailers
        (b'0', b'\n\n'), (b'0\r', b'\rGET / HTTP/1.1\r\n\r\n'),
        (b'0\r\n', b'\nGET / HTTP/1.1\r\n\r\n'), (b'0\r\n\r', b'\rGET / HTTP/1.1\r\n\r\n'),
        (b'0\r\na: sesame', b'\n\nGET / HTTP/1.1\r\n\r\n'), (b'0\r\na: sesame\r', b'b: c\r\n\r\n'),
        (b'0\r\na: sesame', b'\0\r\n\r\n'), (b'0\r\nsesame', b'\r\n\r\n'),
        (b'0\r\na', b' sesame: b\r\n\r\n'), (b'0\r\n', b': sesame\r\n\r\n'),
        (b'0\r\na: b\r\nc', b'\r\n\r\n'), (b'0\r\nsesame', b' : b\r\n\r\n'),
        (b'0\r\nGET', b' / HTTP/1.1\r\na: b\r\n\r\n'))),
    bad_chunks_body(b'6\r\nsesame\r', b'', b'0\r\n\r\n'),
    bad_chunks_body(b'1\r\na\r\n', b'', b'sesame'),
    *(after_last_chunk(*chunks) for chunks in (
        (b'0\r\n\r\n', b'.'), (b'0\r\n\r\n', b'\r\n'), (b'6\r\nsesame\r\n0\r\n\r\n', GET),
        (b'0\r\n\r\n', b'', b'', GET), (b'0\r\na: sesame\r\n\r\n', GET),
        (b'0\r\n\r\n', b'0\r\n\r\n'),
        # Empty chunks that lowhaio_chunked 0.0.5 takes for any other: the first, the last
        (b'0\r\n\r\n', b'12\r\nGET /sesame HTTP/\r\n', b'0\r\n\r\n'))),
    BodyRow(IN_CHUNKS, [b'6\r\nsesame\r\n', b'0\r\n\r\n', b'0\r\n\r\n'], 16, ('last chunk',)),
    BodyRow(IN_CHUNKS, [b'1\r\na\r\n', b'0\r\n\r\n', b'6\r\nsesame\r\n', b'0\r\n\r\n'], 11,
            ('last chunk',)),
    BodyRow(IN_CHUNKS, [b'0\r\n\r\n' + GET], 5, ('last chunk',)),
    *(no_last_chunk(*chunks) for chunks in (
        (), (b'', b''), (b'6',), (b'6\r',), (b'6\r\n',), (b'6;sesame',), (b'6\r\nses', b'am'),
        (b'6\r\nsesame',), (b'6\r\nsesame\r',), (b'6\r\nsesame\r\n',), (b'6\r\nsesame\r\n', b'0'),
        (b'6\r\nsesame\r\n', b'0\r\n'), (b'0\r\n\r',), (b'0\r\na: sesame',),
        (b'0\r\na: sesame\r\n',))),
    BodyRow(((b'transfer-encoding', b'gzip, chunked'),), [SECRET], 0, ('chunked body',)),
)


class BadBodyTest(TestCase):
    """Nothing but good bytes leaves: none if no chunk lets the head go before the bad one."""

    async def check(self, row, chunks, waits, wire):
        closed = []

        async def body():
            try:
                for chunk in chunks:
                    if waits:
                        await asyncio.sleep(0)  # What was yielded leaves
                    yield chunk
                if waits:
                    await asyncio.sleep(0)
            finally:
                closed.append(True)
        server = self.serve()
        request, close = self.pool_and_close(socket_timeout=1)
        exception = await self.fails(
            HttpDataError if waits else HttpInvalidRequest,
            fetch(request, b'PUT', server.url, headers=row.headers, body=body),
            'the body of the request: ', cause=ValueError)
        self.assert_says(exception, *row.words)
        self.assertEqual(closed, [True])
        received = await (await server.accept()).ended()
        self.assertEqual(received, b'PUT / HTTP/1.1\r\nhost: localhost\r\n%b\r\n%b' % (
            field_lines(row.headers), wire) if waits else b'')
        await close()
        server.close()

    async def each(self, rows):
        for row in rows:
            data, whole = b''.join(row.chunks), b''
            for chunk in row.chunks:
                chunks = whole + chunk
                if len(chunks) > row.good:
                    break
                whole = chunks
            with self.subTest(brief(row)):
                await self.check(row, row.chunks, False, b'')
            with self.subTest(brief(row), waits='before each chunk'):
                await self.check(row, row.chunks, True, whole)
            if len(data) < 1000:
                with self.subTest(brief(row), waits='before each byte'):
                    await self.check(row, by_bytes(data), True, data[:row.good])

    test_bodies_that_break_their_framing = of_each(BAD_BODIES)


# ---- Response head (RFC 9112 4, 5) ----


class Row(typing.NamedTuple):
    """A response, and what must come of it: an exception with these words, or a result."""

    data: bytes
    error: typing.Optional[type] = None
    words: typing.Tuple[str, ...] = ()
    code: bytes = b'200'
    headers: typing.Tuple[typing.Tuple[bytes, bytes], ...] = ()
    body: bytes = b''
    reused: bool = False  # Whether the connection may be
    method: bytes = b'GET'
    closes: bool = False  # Whether the server does after the last byte
    limit: int = 16384  # max_header_length


def good(data, headers=(), body=b'', reused=True, **kwargs):
    return Row(data, headers=headers, body=body, reused=reused, **kwargs)


def framed(lines, payload=b'', body=None, reused=True, status=b'HTTP/1.1 200 OK', **kwargs):
    """A response of these field lines, the last one without its end, whose payload is its body."""
    headers = tuple((name.lower(), value) for name, _, value in (
        line.partition(b': ') for line in lines.split(b'\r\n') if lines))
    head = b'\r\n'.join((status, lines) if lines else (status,))
    return good(head + b'\r\n\r\n' + payload, headers, payload if body is None else body, reused,
                code=status[9:12], **kwargs)


def bad(data, *words, error=HttpInvalidResponse, **kwargs):
    return Row(data, error, words, **kwargs)


def early_end(data, *words, **kwargs):
    return bad(data, *words, error=HttpConnectionClosedError, closes=True, **kwargs)


def too_long(limit, data, *words):
    return bad(data, 'max_header_length', *words, error=HttpHeaderTooLong, limit=limit)


HEAD = b'HTTP/1.1 200 OK\r\n'
LENGTH = (b'content-length', b'2')


def good_status(line, reused=True):
    return framed(b'content-length: 2', b'ok', reused=reused, status=line)


def bad_status(line, *words):
    return bad(line + b'\r\ncontent-length: 0\r\n\r\n', 'line 1 of the head', *words)


STATUS_LINES = (
    *(good_status(line) for line in (
        b'HTTP/1.1 200 OK', b'HTTP/1.1 404 Not  Found', b'HTTP/1.1 200 ', b'HTTP/1.1 200',
        b'HTTP/1.1 200  OK', b'HTTP/1.1 200 \xff\x80\t\x01\x7f:', b'HTTP/1.9 200 OK',
        b'HTTP/1.1 000 ?', b'HTTP/1.1 999 ?', b'HTTP/1.1 299 ?')),
    good_status(b'HTTP/1.0 200 OK', reused=False),
    *(bad_status(line) for line in (
        # What is before it
        b'\r\nHTTP/1.1 200 OK', b' HTTP/1.1 200 OK', b'\nHTTP/1.1 200 OK',
        b'\xef\xbb\xbfHTTP/1.1 200 OK',
        # The version
        b'HTTP/2 200', b'HTTP/2.0 200 OK', b'HTTP/0.9 200 OK', b'HTTP/11 200 OK',
        b'HTTP/1 200 OK', b'HTTP/1. 200 OK', b'HTTP/1.10 200 OK', b'HTTP/1.x 200 OK',
        b'http/1.1 200 OK', b'HTTPS/1.1 200 OK', b'ICY 200 OK',
        # The code; its Arabic digits are CVE-2025-69224
        b'HTTP/1.1 ', b'HTTP/1.1 20 OK', b'HTTP/1.1 2000 OK', b'HTTP/1.1 2xx OK',
        b'HTTP/1.1 +20 OK', 'HTTP/1.1 \u0662\u0660\u0660 OK'.encode(), b'HTTP/1.1  200 OK',
        b'HTTP/1.1\t200 OK', b'HTTP/1.1 200\tOK', b'HTTP/1.1 200OK', b'HTTP/1.1200 OK',
        # The reason
        b'HTTP/1.1 200 \0', b'HTTP/1.1 200 O\0K', b'HTTP/1.1 200 O\rK', b'HTTP/1.1 200 OK\r')),
    *(bad_status(line, words) for line, words in (
        (b'\0HTTP/1.1 200 OK', "'\\x00"), (b'SSH-2.0-OpenSSH_9.2', "b'S"), (b'<html>', "b'<"),
        (b'HTTP/1.1 200 %b\0' % (b'x' * 99), "xxx'..."))),
    bad_status(b'garbage', 'HTTP/1.x', "b'g"),
    bad(b'\x15\x03\x01\0\x02\x02\x28', 'line 1 of the head'),  # TLS
    bad(b'HTTP/1.1 200 OK\ncontent-length: 0\r\n\r\n', 'line 1 of the head'),
    bad(b'HTTP/1.1 200 OK\ncontent-length: 0\n\n', 'line 1'),
    early_end(b'HTTP/1.1 200 OK\rcontent-length: 0\r\r', 'within the head'),
)


def good_fields(lines, *headers):
    return good(b'%b%b\r\ncontent-length: 2\r\n\r\nok' % (HEAD, lines), (*headers, LENGTH), b'ok')


def bad_fields(lines, *words):
    return bad(b'%b%b\r\ncontent-length: 0\r\n\r\n' % (HEAD, lines), *words)


TCHARS = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
BALANCED_LINE_ENDS = (b'a: b\nc: d\n', b'a: b\nc: d\r', b'a: b\rc: d\r', b'a: b\n', b'a: b\r')
VALUE_BYTES = bytes(sorted({*range(1, 256)} - {10, 13})) + b'.'

FIELD_LINES = (
    *(good_fields(b'a:' + raw, (b'a', value)) for raw, value in (
        (b'b', b'b'), (b' \t b c\t ', b'b c'), (b':b: c', b':b: c'), (b' XbX', b'XbX'),
        (b' ' + VALUE_BYTES, VALUE_BYTES), (b' \x0bb\x0c', b'\x0bb\x0c'),
        (b' \xa0b\x85', b'\xa0b\x85'), (b' "b, \\"c"', b'"b, \\"c"'))),
    *(good_fields(name + b': B', (name.lower(), b'B')) for name in (
        b'X-A', TCHARS, b'ABCDEFGHIJKLMNOPQRSTUVWXYZ', b'X' * 100)),
    good_fields(b'a:\r\nb: \r\nc:\t', (b'a', b''), (b'b', b''), (b'c', b'')),
    good_fields(b'a: 1\r\nb: 2\r\nA: 3', (b'a', b'1'), (b'b', b'2'), (b'a', b'3')),
    *(good_fields(b'a:' + raw, (b'a', value)) for raw, value in (  # In several lines
        (b' b\r\n c', b'b c'), (b' b\r\n\tc', b'b c'), (b' b \t \r\n \t  c', b'b c'),
        (b'  b\t\r\n c \r\n\td ', b'b c d'), (b'\r\n b', b'b'),
        (b' b\r\n content-length: 5', b'b content-length: 5'),  # CVE-2024-27982
        (b' b\r\n c\r\n\td:', b'b c d:'))),
    good_fields(b'a: b\r\n c\r\n d\r\ne: f', (b'a', b'b c d'), (b'e', b'f')),
    good_fields(b'a: b\r\n \r\nc: d', (b'a', b'b'), (b'c', b'd')),
    good(HEAD + b'content-length:\r\n 2\r\n\r\nok', (LENGTH,), b'ok'),
    good(HEAD + b'transfer-encoding:\r\n\tchunked\r\n\r\n0\r\n\r\n',
         ((b'transfer-encoding', b'chunked'),)),
    bad(HEAD + b'content-length: 2\r\n 0\r\n\r\nok', 'content-length', "b'2 0'"),  # CVE-2024-27982
    *(bad_fields(line, 'line 2 of the head') for line in (b'a', b': a', b':')),
    *(bad_fields(lines, 'line 2') for lines in (
        # Names: CVE-2021-22959, CVE-2024-23829, CVE-2025-69224, CVE-2023-47627
        b'a : b', b'a\t: b', b'a b: c', b'a\xff: b', '\u212aeep-alive: timeout=5'.encode(),
        b'a\x01: b', b'a\x7f: b', b'a\0: b', b' a: b', b'\ta: b', b' \t', b'HTTP/1.1 200 OK',
        *(b'a%c: b' % byte for byte in b'(),/;<=>?@[\\]{}"'),
        # Values and line ends: CVE-2026-34520, CVE-2022-35256
        b'a: b\0', b'a: b\rc: d', b'a: b\r', b'a: b\nc: d', b'a: b\n', b'a: b\n\rc: d',
        b'a: b\r\r\nb: c\n', b'a: b\n c')),
    *(bad_fields(lines, 'line 3') for lines in (
        b'x: y\r\na: b\rc',  # CVE-2023-30589
        b'a: b\r\n c\nd: e', b'a: b\r\n c\0d', b'a: b\r\n c\rd')),
    bad_fields(b'a: b\r\n c : d\r\ne : f', 'line 4'),
    bad_fields(b'a: b\r\n c\r\n\td\r\n \r\ne', 'line 6'),
    bad_fields(b'a b' + b'c' * 300, 'line 2', "b'a b%s'..." % ('c' * 77)),
    *(bad(HEAD + lines + b'\r\n\r\n', 'line 2') for lines in BALANCED_LINE_ENDS),
    bad(HEAD + b'a: b\r\n\n', 'line 3'),
    bad(HEAD + b'a: b\n\r\n', 'line 2'),
    framed(b'', b'abc', reused=False, closes=True),
    early_end(b'', 'without a response'),
    *(early_end(data, 'within the head') for data in (
        b'HTTP/1.1 20', HEAD, HEAD + b'content-le', HEAD + b'content-length: 0\r\n',
        HEAD + b'content-length: 0\r\n\r')),
    framed(b'content-length: 2', b'ok', limit=38),
    too_long(38, HEAD + b'content-length: 12\r\n\r\n', 'head', '38'),
    *(too_long(50, data, '50') for data in (  # CVE-2021-31525, CVE-2023-38039
        b'HTTP/1.1 200 ' + b'a' * 100, HEAD + b'a' * 100, HEAD + b'a: ' + b'b' * 100,
        HEAD + b'a:\r\n' * 30, HEAD + b'a:' + b'\r\n b' * 30)),
)

CONTINUE = b'HTTP/1.1 100 Continue\r\n\r\n'

INTERIM_RESPONSES = (
    *(good(data + OK, (LENGTH,), b'ok') for data in (
        CONTINUE, CONTINUE + b'HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n'
        b'HTTP/1.1 102 Processing\r\n\r\n', b'HTTP/1.0 100 Continue\r\n\r\n',
        b'HTTP/1.1 199 ?\r\n\r\n',
        b'HTTP/1.1 100 A\r\ncontent-length: 5\r\ntransfer-encoding: gzip\r\n\r\n')),
    good(CONTINUE + CHUNKED + chunked(b'ok'), ((b'transfer-encoding', b'chunked'),), b'ok'),
    # 101 is a final response, after which there is another protocol
    framed(b'upgrade: a', reused=False, status=b'HTTP/1.1 101 Switching Protocols'),
    framed(b'upgrade: a', b'\x81\x05hello', b'', reused=False, status=b'HTTP/1.1 101 A'),
    framed(b'content-length: 2', b'ok', b'', reused=False, status=b'HTTP/1.1 101 A'),
    bad(b'HTTP/1.1 100 Continue\r\n\r\ngarbage\r\n\r\n', 'line 1 of the head'),
    bad(b'HTTP/1.1 103 A\r\na : b\r\n\r\n' + OK, 'line 2'),
    bad(CONTINUE + b'\r\n' + OK, 'line 1'),
    *(good(b'HTTP/1.1 103 A\r\n%b\r\n\r\n' % lines + OK, (LENGTH,), b'ok', False) for lines in (
        b'Connection: a, Close', b'connection: close\r\nconnection: a')),
    early_end(CONTINUE, 'after an interim response'),
    early_end(CONTINUE + b'HTTP/1.1 2', 'within the head'),
    too_long(50, b'HTTP/1.1 103 A\r\na: %b\r\n\r\n' % (b'b' * 50) + OK, 'head'),
    good(CONTINUE * 3 + OK, (LENGTH,), b'ok', limit=50),  # Each head has the limit for itself
)


# ---- Body decoders (RFC 9112 6, 7.1) ----


CODING = (b'transfer-encoding', b'chunked')


def good_chunks(data, body=b'', reused=True, **kwargs):
    return framed(b'transfer-encoding: chunked', data, body, reused, **kwargs)


def bad_chunks(data, *words):
    return bad(CHUNKED + data, 'chunk', *words)


KNOWN_LENGTHS = (
    *(framed(lines, b'ok') for lines in (
        b'content-length: 0002', b'content-length: 2\r\nContent-Length: 2',
        b'content-length: 2, 2 ,2')),
    good(HEAD + b'CONTENT-LENGTH:2\r\n\r\nok', (LENGTH,), b'ok'),
    framed(b'content-length: 0'),
    framed(b'content-length: 8', b'\r\n\r\n\n\0\r\r'),
    framed(b'content-length: %d' % len(OK), OK),
    # What follows the body
    *(good(OK + rest, (LENGTH,), b'ok', False) for rest in (b'x', b'\r\n', b'\0', OK, CONTINUE)),
    framed(b'content-length: 0', OK, b'', False),  # CVE-2026-6733
    good(OK, (LENGTH,), b'ok', False, closes=True),
    early_end(HEAD + b'content-length: 4\r\n\r\n', '0 of its 4'),
    early_end(HEAD + b'content-length: 4\r\n\r\nabc', '3 of its 4'),
    early_end(HEAD + b'content-length: 9223372036854775807\r\n\r\nab',  # CVE-2025-13836
              '2 of its 92233'),
    *(bad(HEAD + b'content-length: %b\r\n\r\nok' % value, 'content-length of the response', words)
      for value, words in (
          (b'2\r\ncontent-length: 1', "b'2, 1'"),  # CVE-2020-10108
          (b'1, 2', "b'1, 2'"),
          (b'+2', "b'+2'"),  # CVE-2021-32715
          (b'', "b''"), (b'9' * 300, "b'%s'..." % ('9' * 80)))),
    *(bad(HEAD + b'content-length: %b\r\n\r\nok' % value, 'content-length of the response')
      for value in (
          b'2, 02', b',2', b'2,', b'2 2', b'-2', b'2_0', b'2(a)', b'2;a=b', b'"2"', b'0x2', b'2.0',
          b'2e0', b'two', b'2X', b',', b'\x0b2', b'2\xa0', b'\xb2', b'\xd9\xa2',  # CVE-2025-69224
          b'9' * 20, b'0' * 19 + b'2')),
)

NO_BODIES = (
    framed(b'', status=b'HTTP/1.1 204 No Content'),
    framed(b'content-length: 0', status=b'HTTP/1.1 204 A'),
    framed(b'content-length: 2', reused=False, status=b'HTTP/1.1 204 A'),  # RFC 9110 8.6
    framed(b'transfer-encoding: chunked', reused=False, status=b'HTTP/1.1 204 A'),
    framed(b'', b'x', b'', reused=False, status=b'HTTP/1.1 204 A'),
    framed(b'content-length: 2', status=b'HTTP/1.1 304 Not Modified'),
    framed(b'', status=b'HTTP/1.1 304 A'),
    framed(b'transfer-encoding: chunked', status=b'HTTP/1.1 304 A'),
    framed(b'content-length: 2', b'ok', b'', reused=False, status=b'HTTP/1.1 304 A'),
    framed(b'content-length: 2', b'ok', status=b'HTTP/1.1 205 A'),
    *(framed(lines, method=b'HEAD') for lines in (
        b'content-length: 2', b'transfer-encoding: chunked', b'', b'transfer-encoding: gzip',
        b'content-length: x')),
    good(OK, (LENGTH,), reused=False, method=b'HEAD'),
    good(CONTINUE + OK[:-2], (LENGTH,), method=b'HEAD'),
    framed(b'content-length: 2', status=b'HTTP/1.1 404 A', method=b'HEAD'),
    good(OK, (LENGTH,), b'ok', method=b'head'),  # It is another method
)

UNTIL_CLOSE = (
    *(framed(lines, b'abc', reused=False, closes=True) for lines in (
        b'a: b', b'connection: keep-alive', b'transfer-encoding: Identity')),
    framed(b'a: b', reused=False, closes=True),
    framed(b'', OK, reused=False, closes=True),
    framed(b'', b'abc', reused=False, closes=True, status=b'HTTP/1.1 205 A'),
)

CHUNKS = (
    *(good_chunks(data, body) for data, body in (
        (chunked(b'abc', b'd' * 20), b'abc' + b'd' * 20), (b'0\r\n\r\n', b''),
        # Sizes
        (b'0000000000000000\r\n\r\n', b''), (b'0000000000000003\r\nabc\r\n0\r\n\r\n', b'abc'),
        (b'A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n', b'01234567890123456789'),
        (b''.join(b'%c\r\n%b\r\n' % (digit, b'x' * int(chr(digit), 16))
                  for digit in b'123456789abcdefABCDEF0'), b'x' * 195),
        (b'10\r\n0123456789abcdef\r\n0\r\n\r\n', b'0123456789abcdef'),
        (chunked(*[b'a' * 1500] * 3, b'b' * 1499, *[b'c' * 1500] * 2, *[b'd' * 21] * 2,
                 *[b'e'] * 3), b'a' * 4500 + b'b' * 1499 + b'c' * 3000 + b'd' * 42 + b'eee'),
        (b'1\r\na\r\n' * 50 + b'0\r\n\r\n', b'a' * 50),  # CVE-2025-69229
        # Blanks and extensions
        (b'3 \t\r\nabc\r\n0\t \r\n\r\n', b'abc'),
        (b'3;a\r\nabc\r\n3 ;\ta=" b;\\"" \r\ndef\r\n0;c\r\n\r\n', b'abcdef'),
        (b'3;\r\nabc\r\n0;;\r\n\r\n', b'abc'), (b'3;\x01\xff\r\nabc\r\n0\r\n\r\n', b'abc'),
        (b'1;a="\r\n"\r\n0\r\n\r\n', b'"'),
        # Line ends in chunks
        (b'4\r\n\r\n\r\n\r\n3\r\n0\r\n\r\n0\r\n\r\n', b'\r\n\r\n0\r\n'),
        # Trailers, which are dropped
        (b'1\r\na\r\n0\r\nx: y\r\nZ:\r\n\r\n', b'a'), (b'0;a\r\nx: y\r\n\r\n', b''),
        (b'1\r\na\r\n0\r\ncontent-length: 5\r\ntransfer-encoding: gzip\r\n'  # CVE-2025-53643
         b'connection: close\r\n\r\n', b'a'),
        (b'0\r\n%b: \x01\x0b\x7f\x80\xff\t"\r\n\r\n' % TCHARS, b''))),
    *(good_chunks(data, body, False) for data, body in (  # What follows the last chunk
        (b'0\r\n\r\nx', b''), (b'0\r\n\r\n\r\n', b''), (b'0\r\n\r\n0\r\n\r\n', b''),
        (b'1\r\na\r\n0\r\n\r\n' + OK, b'a'), (b'0\r\na: b\r\n\r\n' + OK, b''))),
    bad_chunks(b'g\r\n', 'hex digits'),
    *(bad_chunks(data) for data in (
        # Sizes: CVE-2025-69224, CVE-2021-32714
        b'\r\nab', b'1\r\na\r\n\r\n', b'+1\r\na\r\n0\r\n\r\n', b'-1\r\na\r\n0\r\n\r\n',
        b'0x1\r\na\r\n0\r\n\r\n', b'1_0\r\n', b'"1"\r\na\r\n0\r\n\r\n',
        b'\xd9\xa1\r\na\r\n0\r\n\r\n', b'10000000000000001\r\na\r\n0\r\n\r\n',
        b'00000000000000001\r\na\r\n0\r\n\r\n', b' 1\r\na\r\n0\r\n\r\n', b'1 0\r\n',
        b'1\x0b\r\na\r\n0\r\n\r\n', b'1,a\r\na\r\n0\r\n\r\n',
        # The ends of their lines: CVE-2025-22871
        b'1\na\r\n0\r\n\r\n', b'1 \t\na\r\n0\r\n\r\n', b'1\r\na\r\n0\n\r\n', b'1\ra\r\n0\r\n\r\n',
        b'1\r\r\na\r\n0\r\n\r\n',
        # Extensions: CVE-2024-52304, CVE-2021-22960
        b'1;a\rb\r\na\r\n0\r\n\r\n', b'1;a\nb\r\na\r\n0\r\n\r\n', b'1;a\0\r\na\r\n0\r\n\r\n',
        # The end of a chunk, of the third of a size, too: CVE-2025-43859
        b'1\r\na\r\n' * 2 + b'1\r\nab1\r\n', b'1\r\naxx0\r\n\r\n', b'1\r\na\n\r0\r\n\r\n',
        b'2\r\nabc\r\n0\r\n\r\n', b'4\r\nabc\r\n0\r\n\r\n', b'0\r\n1\r\na\r\n0\r\n\r\n')),
    *(bad_chunks(data, 'CRLF') for data in (
        b'1\r\nabc0\r\n\r\n', b'1\r\na\n0\r\n\r\n', b'1\r\na\r0\r\n\r\n')),
    bad_chunks(b'0\r\na\r\n\r\n', 'trailer'),
    *(bad_chunks(b'0\r\n' + trailers) for trailers in (
        b': a\r\n\r\n', b'a : b\r\n\r\n', b'a: \0\r\n\r\n', b'a\0: b\r\n\r\n', b'a\xff: b\r\n\r\n',
        b' a: b\r\n\r\n', OK,
        # The ends of their lines
        b'a: b\rc\r\n\r\n', b'a: b\nc: d\r\n\r\n', b'a: b\r\n\n', b'\n', b'\r\r\n',
        *(lines + b'\r\n\r\n' for lines in BALANCED_LINE_ENDS),
        # The second one, and folded ones
        b'a: b\r\nc\r\n\r\n', b'a: b\r\n: c\r\n\r\n', b'a: b\r\nc: \0\r\n\r\n',
        b'a: b\r\nc: d\re\r\n\r\n', b'a: b\r\nc: d\ne\r\n\r\n', b'a: b\r\n c\rd\r\n\r\n',
        b'a: b\r\n c\nd\r\n\r\n', b'a: b\r\n \0\r\n\r\n')),
    *(early_end(CHUNKED + data, 'last chunk') for data in (
        b'', b'1', b'1\r', b'1;a', b'5\r\nabc', b'ffffffffffffffff\r\nabc', b'1\r\na',
        b'1\r\na\r', b'1\r\na\r\n', b'0\r\n', b'0\r\n\r', b'0\r\na: b', b'0\r\na: b\r\n')),
    good_chunks(b'1;%b\r\na\r\n0\r\n\r\n' % (b'a' * 95), b'a', limit=99),
    too_long(99, CHUNKED + b'1;%b\r\na\r\n0\r\n\r\n' % (b'a' * 96), 'extensions', '99'),
    good_chunks(b'0\r\na: %b\r\n\r\n' % (b'b' * 92), limit=99),
    too_long(99, CHUNKED + b'0\r\na: %b\r\n\r\n' % (b'b' * 93), 'trailers', '99'),
    *(too_long(99, CHUNKED + data, '99') for data in (
        # CVE-2024-22019, CVE-2023-39326; CVE-2026-54277, CVE-2026-22815
        b'1;' + b'a' * 200, b'1' + b' ' * 200, b'1;aaaaaa\r\na\r\n' * 20,
        b'1        \r\na\r\n' * 20,
        b'0\r\n' + b'a' * 200, b'0\r\na: ' + b'b' * 200, b'0\r\n' + b'a: b\r\n' * 40)),
)


# ---- Framing and persistence (RFC 9112 6.3, 9.3) ----


def bad_coding_of(value, *words):
    return bad(HEAD + b'transfer-encoding: %b\r\n\r\n1\r\na\r\n0\r\n\r\n' % value,
               'transfer-encoding of the response must be chunked', *words)


def persistence(line, reused, version=b'HTTP/1.1'):
    return framed(line + b'\r\ncontent-length: 2', b'ok', reused=reused,
                  status=version + b' 200 OK')


FRAMING = (
    framed(b'Transfer-Encoding: CHUNKED', chunked(b'a'), b'a'),
    good(HEAD + b'transfer-encoding: \t chunked \t\r\n\r\n' + chunked(b'a'), (CODING,), b'a'),
    *(framed(lines, chunked(b'a'), b'a', False) for lines in (
        b'content-length: 9\r\ntransfer-encoding: chunked',  # CVE-2023-47641
        b'transfer-encoding: chunked\r\ncontent-length: 1',  # CVE-2020-10109
        b'content-length: x\r\ntransfer-encoding: chunked',
        b'connection: close\r\ntransfer-encoding: chunked')),
    framed(b'connection: keep-alive\r\ntransfer-encoding: chunked', chunked(b'a'), b'a', False,
           status=b'HTTP/1.0 200 OK'),  # RFC 9112 6.1
    framed(b'transfer-encoding: identity\r\ncontent-length: 2', b'ok', reused=False),
    framed(b'te: chunked\r\ncontent-length: 2', b'ok'),
    framed(b'content-encoding: chunked\r\ncontent-length: 2', b'ok'),
    *(bad_coding_of(value, words) for value, words in (
        (b'gzip', "b'gzip'"),
        (b'gzip, chunked', "b'gzip, chunked'"),  # CVE-2022-1705
        (b'chunked\r\nTransfer-Encoding: chunked', "b'chunked, chunked'"),  # CVE-2021-21299
        (b'', "b''"), (b'x' * 300, "b'%s'..." % ('x' * 80)))),
    *(bad_coding_of(value) for value in (  # CVE-2022-1705, CVE-2025-69224
        b'chunked, gzip', b'chunked, chunked', b'chunked\r\ntransfer-encoding: identity',
        b'identity, chunked', b'chunked,', b',chunked', b'chunked;a=b', b'"chunked"', b'xchunked',
        b'chunkedx', b'\x0bchunked', b'chunked\xa0', 'chun\u212aed'.encode(),
        b'chunked\r\n ,gzip')),
    *(persistence(line, False) for line in (
        b'connection: close', b'Connection: CLOSE', b'connection: foo, close',
        b'connection: foo,\tclose ,bar', b'connection: ,close,', b'connection: keep-alive, close',
        b'connection: a\r\nconnection: close\r\nconnection: b',
        b'keep-alive: timeout=0', b'keep-alive: timeout=1', b'keep-alive: Timeout=1, max=5',
        b'keep-alive: max=5, timeout=1', b'keep-alive: max=5,timeout=1',
        b'keep-alive: max=5;timeout=1', b'keep-alive: max=5\ttimeout=1')),
    *(persistence(line, True) for line in (
        b'connection: foo', b'connection: closed', b'connection: "close"', b'connection: closeX',
        b'connection: close;a', b'connection: keep-alive', b'connection: upgrade',
        b'connection: ', b'proxy-connection: close', b'x-connection: close',
        b'keep-alive: timeout=2', b'keep-alive: timeout=20', b'keep-alive: timeout=999999999',
        b'keep-alive: max=1', b'keep-alive: timeout=x', b'keep-alive: xtimeout=1',
        b'keep-alive: ')),
    *(persistence(line, True, b'HTTP/1.0') for line in (
        b'connection: keep-alive', b'connection: Keep-Alive', b'connection: foo, keep-alive')),
    *(persistence(line, False, b'HTTP/1.0') for line in (
        b'connection: foo', b'keep-alive: timeout=20', b'connection: keep-alive, close')),
    framed(b'connection: close', reused=False, status=b'HTTP/1.1 204 A'),
    framed(b'content-length: 2', reused=False, status=b'HTTP/1.0 200 OK', method=b'HEAD'),
)

RESPONSES = (*STATUS_LINES, *FIELD_LINES, *INTERIM_RESPONSES, *KNOWN_LENGTHS, *NO_BODIES,
             *UNTIL_CLOSE, *CHUNKS, *FRAMING)


class SegmentedSocket(socket.socket):
    """Receives bytes as if they arrived in segments of the given sizes, and then the rest.

    What is of the next segment has not arrived yet when it is asked for the first time. Closing
    resets the connection: the system has not enough ports to keep one for a minute after each.
    """

    segments = ()

    def __init__(self, *args):
        super().__init__(*args)
        self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))

    def recv(self, size):
        if not self.segments:
            return super().recv(size)
        if not self.segments[0]:
            del self.segments[0]
            raise BlockingIOError(errno.EAGAIN, 'not yet')
        data = super().recv(min(size, self.segments[0]))
        self.segments[0] -= len(data)
        return data


class SegmentedTest(TestCase):
    """The sockets of its pool receive in self.segments, which a test sets before a request."""

    def segmented_pool(self, **kwargs):
        def get_sock():
            self.sock = SegmentedSocket(socket.AF_INET, socket.SOCK_STREAM)
            self.sock.segments = self.segments
            return self.sock
        self.segments = []
        return self.pool_and_close(get_sock=get_sock, socket_timeout=5, **kwargs)


async def second_request(request, server):
    """Whether a second request, which must get its own answer, went out on the same connection."""
    before = len(server.peers)
    code, _, body = await fetch(request, b'GET', server.url + '/second')
    assert (code, body) == (b'200', b'ok'), (code, body)
    return len(server.peers) == before


class ResponseTest(SegmentedTest):
    """Each row is received whole; in buffers of 7 bytes and 1; by bytes; and cut at each byte."""

    seconds = 120

    async def check(self, row, segments, recv_bufsize=65536):
        """Receive it, and see whether a second request goes out on the same connection."""
        server, request, close = self.serve_row(row, OK, recv_bufsize=recv_bufsize)
        await self.check_response(row, request, server, segments)
        if segments:
            await self.turns()  # What was to come later has arrived
        self.assertIs(await second_request(request, server), row.reused)
        await close()
        server.close()

    async def check_cuts(self, row):
        server, request, close = self.serve_row(row)
        # In what is long, all that is not near the end of a line is the same
        cuts = range(1, len(row.data)) if len(row.data) < 200 else sorted({
            cut for end in re.finditer(rb'[\r\n;]+', row.data)
            for cut in range(end.start() - 1, end.end() + 2)} & {*range(1, len(row.data))})
        for cut in cuts:
            with self.subTest(brief(row), cut=cut):
                await self.check_response(row, request, server, [cut])
                await self.turns()
                self.assertIs(self.sock.fileno() != -1, row.reused)
        await close()
        server.close()

    def serve_row(self, row, *answers, **kwargs):
        server = self.serve(closing(row.data) if row.closes else row.data, *answers)
        return (server, *self.segmented_pool(max_header_length=row.limit, **kwargs))

    async def check_response(self, row, request, server, segments):
        self.segments[:] = segments
        if row.error is None:
            result = await fetch(request, row.method, server.url)
            self.assertEqual(result, (row.code, row.headers, row.body))
            return
        exception = await self.fails(row.error, fetch(request, row.method, server.url))
        self.assert_says(exception, *row.words)

    async def each(self, rows):
        for row in rows:
            for size in (65536, 7, 1):
                with self.subTest(brief(row), recv_bufsize=size):
                    await self.check(row, [], size)
            with self.subTest(brief(row), cut='at each byte'):
                await self.check(row, [1] * len(row.data))
            await self.check_cuts(row)

    test_status_lines = of_each(STATUS_LINES)
    test_field_lines = of_each(FIELD_LINES)
    test_interim_responses = of_each(INTERIM_RESPONSES)
    test_bodies_of_known_length = of_each(KNOWN_LENGTHS)
    test_responses_without_a_body = of_each(NO_BODIES)
    test_bodies_until_the_connection_is_closed = of_each(UNTIL_CLOSE)
    test_chunked_bodies = of_each(CHUNKS)
    test_framing_and_persistence = of_each(FRAMING)

    async def test_what_servers_choose_is_not_remembered_without_bound(self):
        for line in (b'HTTP/1.1 200 %b', b'keep-alive: timeout=60, %b', b'server: %b', b'date: %b',
                     b'connection: keep-alive, %b', b'x-%b: a'):
            with self.subTest(line):
                lines = [line % (b'%07d' % number * 2000) for number in range(80)]
                answers = [response(b'', status=text[9:]) if text.startswith(b'HTTP') else
                           response(b'', text) for text in lines]
                server, request = self.serve(*answers), self.pool()
                await fetch(request, b'GET', server.url)
                gc.collect()
                tracemalloc.start()
                try:
                    for _ in range(79):
                        await fetch(request, b'GET', server.url)
                    for data in (lines, answers, server.requests, server.peers[0].requests):
                        data.clear()
                    gc.collect()
                    kept = tracemalloc.take_snapshot().filter_traces(
                        [tracemalloc.Filter(True, lowhaio.__file__)])
                finally:
                    tracemalloc.stop()
                self.assertLess(sum(trace.size for trace in kept.traces), 300000)
                self.assertEqual(server.counts(), [0])

    async def test_connection_and_version_of_a_request_decide_whether_it_is_pooled(self):
        keep_alive = (b'connection', b'keep-alive')
        for version, headers, reused in (
                (b'HTTP/1.1', (CLOSE,), False), (b'HTTP/1.1', (keep_alive,), True),
                (b'HTTP/1.1', ((b'Connection', b'a, Close'),), False),
                (b'HTTP/1.0', (keep_alive,), True), (b'HTTP/1.0', (), False)):
            with self.subTest(version=version, headers=headers):
                server, request = self.serve(OK), self.pool(http_version=version)
                await fetch(request, b'GET', server.url, headers=headers)
                self.assertIs(await second_request(request, server), reused)

    async def test_names_of_fields_are_lower_cased_however_many_and_long(self):
        names = [b'X-%d' % number for number in range(600)] + [b'Y' * 100]
        head = b''.join(b'%b: a\r\n' % name for name in names)
        result = await fetch(self.pool(), b'GET', self.serve(
            b'HTTP/1.1 200 OK\r\n%bcontent-length: 0\r\n\r\n' % head).url)
        self.assertEqual([name for name, _ in result[1][:-1]], [name.lower() for name in names])

    async def test_interim_responses_are_bounded(self):
        for count, final in ((100, True), (101, False), (5000, False)):
            for size in (65536, 7):
                with self.subTest(count=count, recv_bufsize=size):
                    server = self.serve(CONTINUE * count + OK)
                    got = fetch(self.pool(recv_bufsize=size), b'GET', server.url)
                    await (got if final else self.fails(
                        HttpInvalidResponse, got, 'more than 100 interim responses'))

    async def test_16_kb_of_any_byte_anywhere_take_no_time(self):
        """But in the middle of a word, where it is the same as at its end."""
        data = CHUNKED + b'1;a=b\r\nc\r\n0\r\nd: e\r\n\r\n'
        places = {place: b'\0\t\n\r ",0:;=af\x80' for place in range(1, len(data) + 1)
                  if not data[place - 1:place + 1].isalpha() or place == len(data)}
        places[0] = places[len(HEAD) + 19] = bytes(range(256))
        request = self.pool(max_header_length=10**6, get_sock=SegmentedSocket)
        for place, some_bytes in places.items():
            for byte, rest in itertools.product(some_bytes, (data[place:], b'\1')):
                server = self.serve(closing(data[:place] + bytes([byte]) * 16384 + rest))
                start = time.process_time()
                with contextlib.suppress(HttpError):
                    await fetch(request, b'GET', server.url)
                self.assertLess(time.process_time() - start, 0.2, (place, byte))
                server.close()


# ---- h11 as an oracle ----


class Case(typing.NamedTuple):
    """A response, and how it comes."""

    data: bytes
    method: bytes = b'GET'
    closes: bool = False  # Whether the server does after the last byte
    cuts: typing.Tuple[int, ...] = ()  # The sizes of the segments that it arrives in


class Outcome(typing.NamedTuple):
    code: bytes = b''
    headers: typing.Tuple[typing.Tuple[bytes, bytes], ...] = ()
    body: bytes = b''
    reused: bool = False


REJECTION = Outcome()


def not_reused(outcome):
    return outcome._replace(reused=False)


def with_controls(outcome):
    return outcome._replace(headers=tuple(
        (name, re.sub(rb'<(0b|0c)>', lambda match: bytes([int(match[1], 16)]), value))
        for name, value in outcome.headers))


class Difference(typing.NamedTuple):
    """Where lowhaio is not to do with a response what h11 does with it.

    It is to do what h11 does with another: all that matches the pattern, in parts of these kinds,
    is replaced. What h11 then returns is what the result is made of.
    """

    name: str  # With the section that decides
    example: Case
    kinds: typing.Tuple[str, ...]
    pattern: bytes
    replacement: typing.Union[bytes, typing.Callable[[typing.Match[bytes]], bytes]]
    result: typing.Callable[[Outcome], Outcome] = lambda outcome: outcome


FINAL_HEADS = ('head', 'chunked head', 'identity head', 'bodyless head')
HEADS = ('interim head', *FINAL_HEADS)
H11_REFUSES = b'\0'
FRAMING_FIELD = rb'(?im)^(content-length|transfer-encoding)(?=:)'
MASKED = rb'\1-by-another-name'  # So that h11 takes it for any field

DIFFERENCES = (
    Difference(
        'lowhaio refuses a bare LF that ends a line, h11 takes it (RFC 9112 2.2)',
        Case(HEAD + b'a: b\ncontent-length: 2\r\n\r\nok'),
        (*HEADS, 'trailers'), rb'(?<!\r)\n', H11_REFUSES + b'\n'),
    Difference(
        'lowhaio refuses HTTP/2.0, and h11 takes it for HTTP/1.x (RFC 9110 2.5)',
        Case(OK.replace(b'1.1', b'2.0')), HEADS, rb'\AHTTP/[02-9]', H11_REFUSES),
    Difference(
        'lowhaio takes a code under 100 for a final one, h11 refuses it (RFC 9110 15)',
        Case(OK.replace(b'200', b'099')), FINAL_HEADS, rb'\A(HTTP/1\.[0-9] )0', rb'\g<1>5',
        lambda outcome: outcome._replace(code=b'0' + outcome.code[1:])),
    Difference(
        'lowhaio takes vertical tabs and form feeds in values, h11 refuses them (RFC 9110 5.5)',
        Case(HEAD + b'a: b\x0bc\x0c\r\ncontent-length: 2\r\n\r\nok'), (*HEADS, 'trailers'),
        rb'[\x0b\x0c]', lambda match: b'<%02x>' % ord(match[0]), with_controls),
    Difference(
        'lowhaio looks at framing only where there is a body, h11 at all (RFC 9112 6.3)',
        Case(b'HTTP/1.1 204 A\r\ntransfer-encoding: gzip\r\n\r\n'),
        ('interim head', 'bodyless head'), FRAMING_FIELD, MASKED),
    Difference(
        'lowhaio drops trailers that frame, h11 refuses them if they are bad (RFC 9112 7.1.2)',
        Case(CHUNKED + b'0\r\ncontent-length: x\r\n\r\n'), ('trailers',), FRAMING_FIELD, MASKED),
    Difference(
        'lowhaio takes any content-length beside chunked, h11 refuses a bad one (RFC 9112 6.3)',
        Case(HEAD + b'content-length: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n'),
        ('chunked head',), rb'(?im)^(content-length)(?=:)', MASKED),
    Difference(
        'lowhaio does not reuse after transfer-encoding with content-length (RFC 9112 6.3)',
        Case(HEAD + b'content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n'),
        FINAL_HEADS, rb'(?is)\A(?=.*\ncontent-length[:-])(?=.*\ntransfer-encoding[:-])', b'',
        not_reused),
    Difference(
        'lowhaio takes identity for no transfer coding, h11 refuses it (RFC 2616 4.4)',
        Case(HEAD + b'transfer-encoding: identity\r\n\r\nabc', closes=True),
        ('identity head',), rb'(?im)^(transfer-encoding)(?=:)', MASKED),
    Difference(
        'lowhaio refuses a content-length of 20 digits, h11 takes it (RFC 9110 8.6)',
        Case(HEAD + b'content-length: 00000000000000000002\r\n\r\nok'), ('head', 'identity head'),
        rb'(?i)\ncontent-length:(?:[\d, \t]|\r\n[ \t])*(?<!\d)\d{20}(?!\d)', H11_REFUSES),
    Difference(
        'lowhaio refuses a chunk size of 17 to 20 digits, h11 takes it (RFC 9112 7.1)',
        Case(CHUNKED + b'00000000000000000\r\n\r\n'),
        ('chunk line',), rb'\A[0-9A-Fa-f]{17,20}(?![0-9A-Fa-f])', H11_REFUSES),
    Difference(
        'lowhaio takes blanks before a chunk extension, h11 refuses them (RFC 9110 5.6.3)',
        Case(CHUNKED + b'0 ;a\r\n\r\n'), ('chunk line',), rb'\A([0-9A-Fa-f]+)[ \t]+;', rb'\1;'),
    Difference(
        'lowhaio refuses a bare CR in a chunk extension, h11 takes it (RFC 9112 2.2)',
        Case(CHUNKED + b'0;a\rb\r\n\r\n'), ('chunk line',), rb';.*\r(?!\n)', H11_REFUSES),
    Difference(
        'lowhaio refuses a NUL in a chunk extension, h11 takes it (RFC 9112 7.1.1)',
        Case(CHUNKED + b'0;a\0\r\n\r\n'), ('chunk line',), rb';.*\0', H11_REFUSES),
    Difference(
        'lowhaio reuses a connection if HTTP/1.0 says keep-alive, h11 does not (RFC 9112 9.3)',
        Case(b'HTTP/1.0 200 OK\r\nconnection: a, Keep-Alive\r\ncontent-length: 2\r\n\r\nok'),
        FINAL_HEADS, rb'(?is)\AHTTP/1\.0(?!.*\ntransfer-encoding[:-])'
        rb'(?=.*\nconnection:(?:[^\n]*,)?[ \t]*keep-alive[ \t]*[,\r])', b'HTTP/1.1'),
    Difference(
        'lowhaio does not reuse what the server is about to close, h11 does (RFC 9112 9.5)',
        Case(HEAD + b'keep-alive: timeout=1\r\ncontent-length: 2\r\n\r\nok'),
        FINAL_HEADS, rb'(?is)\A(?:(?!timeout=).)*\nkeep-alive:(?:(?!timeout=)[^\n])*'
        rb'(?<=[:,; \t])timeout=0*[01](?!\d)', rb'\g<0>', not_reused),
    Difference(
        'lowhaio drops blanks before a fold, h11 leaves them in the value (RFC 9112 5.2)',
        Case(HEAD + b'a: b \t\r\n c\r\ncontent-length: 2\r\n\r\nok'),
        HEADS, rb'(?<=[^\r\n \t])[ \t]+(?=\r\n[ \t])', b''),
    Difference(
        'lowhaio does not reuse after a 204 that states a body, h11 does (RFC 9110 8.6)',
        Case(b'HTTP/1.1 204 A\r\ncontent-length: 2\r\n\r\n'), ('bodyless head',),
        rb'(?is)\AHTTP/1\.[0-9] 204(?=.*\n(?:transfer-encoding|'
        rb'content-length(?!(?:-by-another-name)?:[ \t]*0[ \t]*\r))[:-])', rb'\g<0>',
        not_reused),
    Difference(
        'lowhaio does not reuse after an interim response with close, h11 does (RFC 9112 9.6)',
        Case(b'HTTP/1.1 103 A\r\nconnection: a, Close\r\n\r\n' + OK), ('interim head',),
        rb'(?i)\nconnection:(?:[^\n]*,)?[ \t]*close[ \t]*[,\r]', rb'\g<0>', not_reused),
)


def parts(method, data):
    """Cut a response into heads, chunk lines, chunks, trailers and the rest, as h11 would."""
    kind = 'interim head'
    while kind == 'interim head':
        head = re.match(rb'(?s).*?\n\r?\n|', data)[0]
        kind = kind_of_head(method, head)
        yield kind, head
        data = data[len(head):]
    while kind == 'chunked head':
        line = re.match(rb'([0-9A-Fa-f]+).*\n|', data)
        size = int(line[1] or b'0', 16)
        end = re.compile(rb'(?s)\r?\n|.*?\n\r?\n|').match(data, line.end()).end() \
            if not size else line.end() + size + 2
        yield 'chunk line', line[0]
        yield 'chunk' if size else 'trailers', data[line.end():end]
        data = data[end:]
        kind = 'chunked head' if size else 'rest'
    yield 'rest', data


def kind_of_head(method, head):
    if re.match(rb'HTTP/[0-9]\.[0-9] 1(?!01)', head):
        return 'interim head'
    if method == b'HEAD' or re.match(rb'HTTP/[0-9]\.[0-9] (?:101|204|304)', head):
        return 'bodyless head'
    codings = re.findall(
        rb'(?im)^transfer-encoding:(?:[ \t]|\r\n[ \t])*(.*?)[ \t]*\r\n(?![ \t])', head)
    coding = b', '.join(codings).lower()
    return '%s head' % coding.decode() if coding in (b'chunked', b'identity') else 'head'


def expected(case):
    """What lowhaio is to make of a case, whether its server closes, and the differences."""
    pieces, differences = list(parts(case.method, case.data)), []
    for difference in DIFFERENCES:
        replaced = [
            re.subn(difference.pattern, difference.replacement, piece)
            if kind in difference.kinds else (piece, 0) for kind, piece in pieces]
        pieces = [(kind, piece) for (kind, _), (piece, _) in zip(pieces, replaced)]
        differences += [difference] if any(count for _, count in replaced) else []
    outcome, closes = by_h11(case._replace(data=b''.join(piece for _, piece in pieces)))
    for difference in differences:
        outcome = outcome if outcome is REJECTION else difference.result(outcome)
    return outcome, closes, differences


def by_h11(case):
    """What h11 makes of a case, and whether its server closes: it does if h11 waits for that."""
    stream = io.BytesIO(case.data)
    segments = [*filter(None, [*map(stream.read, case.cuts), stream.read()])]
    connection = h11_client(case.method)
    try:
        events = list(h11_events(connection, segments + [b''] * case.closes))
    except h11.RemoteProtocolError:
        return REJECTION, True
    if not any(map(is_end, events)):
        return by_h11(case._replace(closes=True))

    head = next(filter(is_final_head, events))
    body = b''.join(event.data for event in events if type(event) is h11.Data)
    reused = connection.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE} and \
        connection.trailing_data == (b'', False)
    return Outcome(b'%03d' % head.status_code, raw_headers(case), body, reused), case.closes


def raw_headers(case):
    """The headers as they came: h11 lowers and merges the values of those that frame."""
    events = h11_events(h11_client(case.method), [re.sub(FRAMING_FIELD, MASKED, case.data)])
    return tuple((name.replace(MASKED[2:], b''), value)
                 for name, value in next(filter(is_final_head, events)).headers)


def h11_client(method):
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1048576)
    # With upgrade, so that a 101 is no surprise
    connection.send(h11.Request(method=method, target='/', headers=[
        ('host', 'localhost'), ('upgrade', 'a')]))
    connection.send(h11.EndOfMessage())
    return connection


def h11_events(connection, segments):
    event = None
    for segment in segments:
        connection.receive_data(segment)
        while not is_end(event):
            event = connection.next_event()
            if event is h11.NEED_DATA:
                break
            yield event


def is_switch(event):
    return type(event) is h11.InformationalResponse and event.status_code == 101


def is_final_head(event):
    return type(event) is h11.Response or is_switch(event)


def is_end(event):
    return type(event) is h11.EndOfMessage or is_switch(event)


ODD_BYTES = (*(bytes([byte]) for byte in b'\0\1\t\n\r\x0b\x0c "(),:;=-+0129aAfF\x7f\x80\xff'),
             b'\r\n', b'\r\n ', b'\n\n', b'\r\n\r\n', b' \t')


def crossed(chance, data):
    """A response that has status lines, field lines and chunks of others, too."""
    for other in chance.choices(RESPONSES, k=chance.choice((1, 1, 2, 4))):
        lines, others = (re.split(rb'(?<=\r\n)', text) for text in (data, other.data))
        place = chance.randrange(len(lines))
        start = 0 if place == 0 else chance.randrange(len(others))
        end = start + chance.choice((1, 1, 2, 99))
        lines[place:place + chance.randrange(2)] = others[start:end]
        data = b''.join(lines)
    return data


def mutated(chance, data):
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        # Nearer to the head than to the end
        start = min(chance.randint(0, len(data)), chance.randint(0, len(data)))
        end = start + chance.choice((0, 1, 1, 2, 9))
        insert = chance.choice((b'', data[start:end] * 2, *[chance.choice(ODD_BYTES)] * 3))
        data = data[:start] + insert + data[end:]
    return data if chance.randrange(9) else data[:chance.randint(0, len(data))]


def generated_cases(seed, number):
    chance = random.Random(seed)
    for row in RESPONSES:
        yield Case(row.data, row.method, row.closes)
    for _ in range(number):
        row, kind = chance.choice(RESPONSES), chance.randrange(5)
        method = row.method if kind == 0 else chance.choice((b'GET', b'GET', b'HEAD'))
        data = row.data if kind == 0 else crossed(chance, row.data)
        data = mutated(chance, data) if kind < 2 else data
        cuts = tuple(chance.randint(1, len(data) // 2 + 1) for _ in range(chance.randrange(4)))
        yield Case(data, method, not chance.randrange(5), cuts)


class OracleOfResponsesTest(SegmentedTest):
    """What lowhaio makes of responses, but for the differences, is what h11 does."""

    def serve_cases(self):
        async def answer(peer):
            await peer.send(self.case.data)
            if self.closes:
                peer.close()
        self.server, (self.request, _) = self.serve(answer), self.segmented_pool()

    async def by_lowhaio(self, case, closes):
        self.case, self.closes, self.segments[:] = case, closes, case.cuts
        try:
            outcome = Outcome(*await fetch(self.request, case.method, self.server.url))
        except (HttpConnectionClosedError, HttpInvalidResponse):
            outcome = REJECTION
        self.segments.clear()
        await self.turns()  # What was to come later has arrived
        return outcome._replace(reused=self.sock.fileno() != -1)

    async def check(self, case):
        outcome, closes, differences = expected(case)
        names = [difference.name for difference in differences]
        got = await self.by_lowhaio(case, closes)
        if got == REJECTION and any(kind == 'trailers' and re.search(rb'\r\n[ \t]', piece)
                                    for kind, piece in parts(case.method, case.data)):
            return names  # A folded trailer may be refused
        self.assertEqual(got, outcome, (case, names))
        return names

    async def test_generated_responses(self):
        self.serve_cases()
        for case in generated_cases(seed=1, number=3000):
            await self.check(case)

    async def test_each_difference_is_one(self):
        self.serve_cases()
        for difference in DIFFERENCES:
            with self.subTest(difference.name):
                self.assertIn(difference.name, await self.check(difference.example))
                self.assertNotEqual(by_h11(difference.example)[0], expected(difference.example)[0])


def is_for_any_request(row):
    """Whether what it has may go with what others have, and h11 knows it."""
    return row.version == b'HTTP/1.1' and b'gzip' not in row.wire and {
        b'connection', b'expect'}.isdisjoint(name.lower() for name, _ in row.headers)


class OracleOfRequestsTest(TestCase):
    """What lowhaio sends is, to h11, exactly the requests that were asked for."""

    def check_by_h11(self, row):
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=10**6)
        head, *data, end = h11_events(connection, [row.wire])
        self.assertTrue(is_end(end))
        self.assertEqual(connection.trailing_data, (b'', False))
        self.assertEqual((head.method, b'HTTP/' + head.http_version), (row.method, row.version))
        # In lower case, as h11 makes of some values
        given = [(name.lower(), value.lower().strip(b' \t')) for name, value in row.headers]
        host = [] if b'host' in dict(given) else [(b'host', b'localhost')]
        self.assertEqual([(name, value.lower()) for name, value in head.headers], host + given)
        if (b'transfer-encoding', b'chunked') not in head.headers:
            self.assertEqual(b''.join(event.data for event in data),
                             b''.join(map(bytes, row.chunks)))

    def test_rows_are_read_as_they_were_meant(self):
        for row in (*METHODS, *FIELDS, *SENT_BODIES):
            if b'gzip' not in row.wire:  # Which h11 doesn't know
                with self.subTest(brief(row)):
                    self.check_by_h11(row)

    async def test_parts_of_any_rows_go_together(self):
        """A method, a target, fields and a body, in one request after another."""
        async def script(peer):
            for row in rows:
                await peer.expect(row.wire)
                await peer.send(OK)
            self.assertEqual(await peer.ended(), b'')
        server, chance, rows = self.serve(script=script), random.Random(1), []
        request, close = self.pool_and_close(socket_timeout=5)
        tables = [[*filter(is_for_any_request, table)] for table in (
            METHODS, (*TARGETS, *PARAMS), FIELDS, SENT_BODIES)]
        for method, target, fields, body in (map(chance.choice, tables) for _ in range(200)):
            line = b'%b %b HTTP/1.1\r\n' % (method.method, target.wire.split(b' ')[1])
            lines = fields.wire.partition(b'\r\n')[2][:-2] + field_lines(body.headers)
            rows.append(target._replace(
                wire=b'%b%b\r\n%b' % (line, lines, body.wire.partition(b'\r\n\r\n')[2]),
                method=method.method, headers=(*fields.headers, *body.headers),
                chunks=body.chunks))
            self.check_by_h11(rows[-1])
        for row in rows:
            await fetch(request, row.method, row.url.replace('{}', str(server.port), 1),
                        row.params, row.headers, chunks_of, row.chunks)
        await close()
        await server.peers[0].ended()
        self.assertEqual(len(server.peers), 1)


# ---- Name resolution ----


class NameResolutionTest(TestCase):

    def resolving_pool(self, **kwargs):
        return self.pool(get_dns_resolver=DEFAULT_RESOLVER, **kwargs)

    def resolved(self, port=0, **kwargs):
        """A name server that knows a.test, the server of that name, and a pool that asks."""
        return (NameServer(self).add('a.test', 'A', '127.0.0.1'),
                self.serve(OK, host='a.test', port=port), self.resolving_pool(**kwargs))

    async def test_name_server_is_asked_once_while_its_answer_lives(self):
        names, server, request = self.resolved(keep_alive_timeout=0)
        for _ in range(2):
            await fetch(request, b'GET', server.url)
        self.assertEqual((names.queries, server.counts()), ([('a.test', 'A')], [1, 1]))

    async def test_cname_is_followed(self):
        names, server, request = self.resolved()
        names.add('a.test', 'A', 'b.test').add('b.test', 'A', '127.0.0.1')
        self.assertEqual((await fetch(request, b'GET', server.url))[2], b'ok')
        self.assertIn(b'host: a.test\r\n', server.requests[0])

    async def test_aaaa_is_asked_for_where_there_is_no_a_record(self):
        names = NameServer(self).add('a.test', 'A').add('a.test', 'AAAA', '::1')
        server = self.serve(OK, host='a.test', address='::1')
        request = self.resolving_pool(keep_alive_timeout=0)
        for _ in range(2):
            await fetch(request, b'GET', server.url)
        self.assertEqual(names.queries, [('a.test', 'A'), ('a.test', 'AAAA')])

    async def test_failing_name_server_is_a_dns_error(self):
        names = NameServer(self).add('a.test', 'A', rcode=2)
        await self.fails(HttpDnsError, self.resolving_pool()(b'GET', 'http://a.test/'), 'a.test',
                         aiodnsresolver.DnsResponseCode)
        self.assertEqual({kind for _, kind in names.queries}, {'A'})

    async def test_second_name_server_is_asked_if_the_first_fails(self):
        NameServer(self, '127.0.0.1').add('a.test', 'A', rcode=2)
        NameServer(self, '127.0.0.2').add('a.test', 'A', '127.0.0.1')
        server = self.serve(OK, host='a.test')
        self.assertEqual((await fetch(self.resolving_pool(), b'GET', server.url))[2], b'ok')

    async def test_lost_packet_is_sent_again_and_leaves_no_cancellation(self):
        names, server, request = self.resolved()
        names.drops = 1
        await fetch(request, b'GET', server.url)
        self.assertEqual(len(names.queries), 2)
        self.assertEqual(getattr(asyncio.current_task(), 'cancelling', int)(), 0)

    async def test_name_server_that_never_answers_is_a_dns_error(self):
        names, _, request = self.resolved()
        names.drops = 100
        start = time.monotonic()
        await self.fails(
            HttpDnsError, request(b'GET', 'http://a.test/'),
            'a.test could not be resolved: the name servers (127.0.0.1) were asked 5 times each, '
            'for up to 9.5 seconds; in the end: no valid answer', aiodnsresolver.DnsTimeout)
        self.assertEqual(names.queries, [('a.test', 'A')] * 5)
        self.assertTrue(9.4 < time.monotonic() - start < 11)
        self.assertEqual([round(later - earlier, 1) for earlier, later in zip(
            names.times, names.times[1:])], [0.5, 1, 2, 3])

    async def test_name_server_that_takes_longer_than_half_a_second_is_waited_for(self):
        for delay, number in ((0.6, 2), (1.2, 3)):
            with self.subTest(delay):
                names, server, request = self.resolved()
                names.delay = delay
                self.assertEqual((await fetch(request, b'GET', server.url))[2], b'ok')
                self.assertEqual(len(names.queries), number)

    async def test_name_that_is_unknown_or_has_neither_record_is_a_dns_error(self):
        names = NameServer(self).add('a.test', 'A').add('a.test', 'AAAA')
        for host in ('a.test', 'b.test'):
            await self.fails(HttpDnsError, self.resolving_pool()(b'GET', 'http://%s/' % host),
                             host, aiodnsresolver.DnsRecordDoesNotExist)
            self.assertEqual(names.queries[-2:], [(host, 'A'), (host, 'AAAA')])

    async def test_connections_of_before_are_used_again_once_their_address_is_back(self):
        names, server, request = self.resolved(port=free_port())
        other = self.serve(OK, address='127.0.0.2', port=server.port)
        for address in ('127.0.0.1', '127.0.0.2', '127.0.0.1', '127.0.0.2'):
            names.add('a.test', 'A', address, ttl=0)
            await fetch(request, b'GET', server.url)
            await asyncio.sleep(0.01)
        self.assertEqual((server.counts(), other.counts()), ([2], [2]))

    async def test_cancellation_after_a_lost_packet_passes_through(self):
        names, _, request = self.resolved()
        names.drops = 2
        task = self.spawn(request(b'GET', 'http://a.test/'))
        while len(names.queries) < 2:
            await asyncio.sleep(0.01)
        await cancel(task)

    async def test_changed_record_is_seen_after_its_ttl_while_an_old_exception_is_held(self):
        names, server, request = self.resolved(port=free_port())
        names.answers.clear()
        other = self.serve(OK, address='127.0.0.2', port=server.port)
        held = await self.fails(HttpDnsError, request(b'GET', server.url))
        names.add('a.test', 'A', '127.0.0.1', ttl=1)
        await fetch(request, b'GET', server.url)
        asked = self.loop.time()
        names.add('a.test', 'A', '127.0.0.2')
        while not other.requests:
            self.assertLess(self.loop.time() - asked, 3)
            await asyncio.sleep(0.05)
            await fetch(request, b'GET', server.url)
        self.assertGreater(self.loop.time() - asked, 0.8)
        self.assertIsInstance(held, HttpDnsError)

    async def test_concurrent_requests_share_a_query(self):
        names, server, request = self.resolved()
        results = await asyncio.gather(*(fetch(request, b'GET', server.url) for _ in range(5)))
        self.assertEqual([body for _, _, body in results], [b'ok'] * 5)
        self.assertEqual(len(names.queries), 1)

    async def test_cancelled_lookup_does_not_fail_the_others(self):
        names, server, request = self.resolved()
        names.drops = 1
        tasks = [self.spawn(fetch(request, b'GET', server.url)) for _ in range(3)]
        await self.turns(5)
        tasks[0].cancel()
        for task in tasks[1:]:
            self.assertEqual((await task)[2], b'ok')

    async def test_unreadable_file_is_a_dns_error_of_names_only(self):
        url = self.serve(OK).url.replace('localhost', '127.0.0.1')
        for words, files in (
                ('resolv.conf', {'resolv_conf': FileNotFoundError(2, 'resolv.conf')}),
                ('/etc/hosts', {'hosts': PermissionError(13, 'denied', '/etc/hosts')})):
            with self.subTest(words), etc(**files):
                request = self.resolving_pool()
                await self.fails(HttpDnsError, request(b'GET', 'http://a.test/'), words)
                self.assertEqual((await fetch(request, b'GET', url))[2], b'ok')

    async def test_exception_of_a_resolver_is_the_cause_of_a_dns_error(self):
        for exception, words in (
                (OSError('mine'), 'mine'), (OSError(), 'OSError()'),
                (aiodnsresolver.DnsError(), 'DnsError()'), (KeyError('mine'), "KeyError('mine')")):
            names = Names()
            names.records['a.test', 'A'] = exception
            await self.fails(
                HttpDnsError, self.pool(get_dns_resolver=names)(b'GET', 'http://a.test/'),
                'a.test could not be resolved: ' + words, type(exception))

    async def test_what_name_servers_say_is_not_remembered_without_bound(self):
        names = NameServer(self)
        resolve, clear_cache = DEFAULT_RESOLVER(
            get_logger_adapter=lambda extra: logging.getLogger('aiodnsresolver'))
        for number in range(1100):
            names.answers = {(b'%d.test' % number, 'A'): (['127.0.0.1'], 86400, 0)}
            await resolve('%d.test' % number, TYPES.A)
        self.assertLess(len(self.loop.active_timers()), 1024)
        await clear_cache()

    async def test_name_in_etc_hosts_is_found_in_any_case_and_with_only_ipv6(self):
        for line, host, address in ((b'127.0.0.1 MyHost', 'myhost', '127.0.0.1'),
                                    (b'::1 six', 'six', '::1')):
            server = self.serve(OK, address=address, host=host)
            with etc(hosts=line, resolv_conf=b''):
                request = self.pool(get_dns_resolver=DEFAULT_RESOLVER)
            self.assertEqual((await fetch(request, b'GET', server.url))[2], b'ok')

    async def test_addresses_are_kept_for_1024_hosts(self):
        def get_sock():
            raise OSError('that is enough')
        hosts, names = ['host%d' % number for number in range(1025)], Names()
        for host in hosts:
            names.add(host, 'A', '127.0.0.1')
        request = self.pool(get_dns_resolver=names, get_sock=get_sock)
        for host in (*hosts, hosts[-1], hosts[0]):
            await self.fails(HttpConnectionError, request(b'GET', 'http://%s/' % host), 'enough')
        asked = collections.Counter(host for host, kind in names.queries if kind == 'A')
        self.assertEqual((asked[hosts[0]], asked[hosts[-1]], sum(asked.values())), (2, 1, 1026))

    async def test_resolver_without_an_address_is_a_dns_error(self):
        async def nothing(*_, **__):
            return ()
        await self.fails(HttpDnsError, self.pool(
            get_dns_resolver=lambda get_logger_adapter: (nothing, nothing),
        )(b'GET', 'http://localhost/'), 'no address')


LIBC = ctypes.CDLL(None, use_errno=True)


def called(function, *arguments):
    if getattr(LIBC, function)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, '%s: %s' % (function, os.strerror(number)))


def leave_the_machine():
    """Give this thread an empty /etc, and addresses and ports of its own: those of loopback."""
    called('unshare', 0x40020000)  # CLONE_NEWNET | CLONE_NEWNS
    called('mount', b'none', b'/', None, 0x44000, None)  # MS_REC | MS_PRIVATE
    called('mount', b'none', b'/etc', b'tmpfs', 0, None)
    with socket.socket() as sock, socket.socket(socket.AF_INET6) as sock6:
        flags = struct.pack('16sh22x', b'lo', 0x41)  # IFF_UP | IFF_RUNNING
        fcntl.ioctl(sock, 0x8914, flags)  # SIOCSIFFLAGS
        address = socket.inet_pton(socket.AF_INET6, 'fe80::1') + struct.pack('Ii', 64, 1)
        fcntl.ioctl(sock6, 0x8916, address)  # SIOCSIFADDR
    write_etc(hosts=b'127.0.0.1 localhost', resolv_conf=b'')


def write_etc(**files):
    for name, content in files.items():
        Path('/etc', name.replace('resolv_conf', 'resolv.conf')).write_bytes(content)


class OwnMachineTest(TestCase):
    """Each test has a machine of its own, but for processes: mounts, interfaces and ports."""

    def _run(self, test):
        ended = []

        def run():
            try:
                leave_the_machine()
            except OSError as exception:
                print('\n%s is NOT TESTED, as root alone can do: %s' % (self.id(), exception),
                      file=sys.stderr)
                return unittest.SkipTest('%s: run as root' % exception)
            try:
                super(OwnMachineTest, self)._run(test)
            except BaseException as exception:
                return exception
            return None
        thread = threading.Thread(target=lambda: ended.append(run()))
        thread.start()
        thread.join()
        if ended[0] is not None:
            raise ended[0]


SKIPPED_LINES = (
    b'localhost x', b'127.000.000.001 x', b'127.1 x', b'10.0.0.0/8 x', b'127.0.0.1:8080 x',
    b'[::1] x', b'fe80::1%lo x', b'\xef\xbb\xbf127.0.0.1 x', b'\xff\xfe x', b'\xe9', b'x',
    b'127.0.0.1',
    b'0x7f.0.0.1 x', b'017700000001 x', b'2130706433 x', b'127.0.0.256 x', b'127.0.0.1.1 x',
    b'::1::2 x', b'::1%1 x', b'::g x', b'1:2:3:4:5:6:7:8:9 x', b'127.0.0.1\xa0x', b'127.0.0.1,x',
    b'127.0.0.1\0 x', b'"127.0.0.1" x', b'-127.0.0.1 x', b'\xd9\xa1.1.1.1 x', b'#127.0.0.1 x',
    b' # 127.0.0.1 x', b'127.0.0.1 # x', b'127.0.0.1#x', b'\xe9 # x', b'; 127.0.0.1 x', b'\0', b'',
    b' \t\r', b'x' * 100000)


@contextlib.contextmanager
def no_descriptor():
    """None is free but for those of what is closed."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_files()) + 3, limits[1]))
    files = []
    try:
        with contextlib.suppress(OSError):
            while True:
                files.append(os.dup(0))
        yield
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


class NameFilesTest(OwnMachineTest):
    """/etc/hosts and /etc/resolv.conf as they are, read as libc reads them."""

    PORT = 8080

    def new_pool(self, **kwargs):
        return self.pool(get_dns_resolver=DEFAULT_RESOLVER, **kwargs)

    async def code(self, host, request=None):
        return (await fetch(request or self.new_pool(), b'GET',
                            'http://%s:%d/' % (host, self.PORT)))[0]

    async def test_line_of_hosts_that_makes_no_sense_is_skipped(self):
        self.serve(OK, port=self.PORT)
        for line in SKIPPED_LINES:
            for end in (b'\n', b'\r\n'):
                with self.subTest(line=line[:30], end=end):
                    write_etc(hosts=b'127.0.0.1 a.test' + end + line + end + b'127.0.0.1 b.test')
                    for host in ('a.test', 'b.test'):
                        self.assertEqual(await self.code(host), b'200')
                    await self.fails(HttpDnsError, self.code('x'), 'x could not be resolved')

    async def test_line_of_hosts_is_read_as_libc_reads_it(self):
        self.serve(OK, port=self.PORT)
        for line in (
                b'127.0.0.1 x', b'127.0.0.1\tx', b' \t127.0.0.1  x ', b'127.0.0.1 a x',
                b'127.0.0.1 X', b'127.0.0.1 x a', b'127.0.0.1 x#a', b'127.0.0.1 x # caf\xe9',
                b'127.0.0.1 caf\xe9 x', b'127.0.0.1 x\r',
                b'127.0.0.1\x0bx', b'127.0.0.1\x0cx', b'127.0.0.1 \xff\xfe x', b'127.0.0.1 y\rx',
                b'127.0.0.1 x x', b'127.0.0.1 a\n127.0.0.1 x', b'\n\n127.0.0.1 x\n\n'):
            with self.subTest(line):
                write_etc(hosts=line)
                self.assertEqual(await self.code('x'), b'200')

    async def test_all_addresses_of_a_name_in_hosts_are_tried(self):
        self.serve(OK, port=self.PORT, address='127.0.0.3')
        write_etc(hosts=b'127.0.0.1 x\n127.0.0.3 y x\n127.0.0.1 x\n127.0.0.2 x\n::1 x\n')
        self.assertEqual(await self.code('x'), b'200')

    async def test_name_in_hosts_has_no_addresses_elsewhere(self):
        names = NameServer(self, '127.0.0.1', 53).add('x', 'AAAA', '::1').add(
            'y', 'A', '127.0.0.1')
        self.serve(OK, port=self.PORT, address='::1')
        write_etc(hosts=b'127.0.0.1 x\n::1 y\n')
        await self.fails(HttpConnectionError, self.code('x'), 'Connection refused')
        self.assertEqual(await self.code('y'), b'200')
        self.assertEqual(names.queries, [])

    async def test_name_in_hosts_is_looked_up_once(self):
        self.serve(OK, port=self.PORT)
        request = self.new_pool()
        with LogRecords('aiodnsresolver') as log:
            await self.code('localhost', request)
            number = len(log.records)
            await self.code('localhost', request)
            await self.code('localhost:%d/b?c#' % self.PORT, request)
        self.assertEqual((len(log.records), number > 0), (number, True))

    async def test_alias_of_a_name_in_hosts_lives_as_long_as_it_says(self):
        names = NameServer(self, '127.0.0.1', 53).add('a.test', 'A', 'b.test', ttl=0)
        self.serve(OK, port=self.PORT)
        write_etc(hosts=b'127.0.0.1 b.test')
        request = self.new_pool()
        for number in (1, 2):
            self.assertEqual(await self.code('a.test', request), b'200')
            self.assertEqual(len(names.queries), number)
            await asyncio.sleep(0.01)

    async def test_line_of_resolv_conf_that_makes_no_sense_is_skipped(self):
        NameServer(self, '127.53.0.1', 53).add('a.test', 'A', '127.0.0.1')
        self.serve(OK, port=self.PORT)
        for line in (
                b'nameserver localhost', b'nameserver', b'nameserver 127.53.0.1:53',
                b'nameserver 1.1.1.256', b'nameserver [::1]', b'nameserver fe80::1%lo',
                b'nameserver ::1', b'nameserver ::g', b'nameserver 10.0.0.0/8', b'nameserver \xff',
                b'\xef\xbb\xbfnameserver 127.0.0.9', b'# nameserver 127.0.0.9',
                b';nameserver 127.0.0.9', b'nameserver #127.0.0.9', b'nameservers 127.0.0.9',
                b'search caf\xe9', b'# \xe9', b'options ndots:5', b'\0', b''):
            for end in (b'\n', b'\r\n'):
                with self.subTest(line=line, end=end), \
                        LogRecords('aiodnsresolver', logging.WARNING) as log:
                    write_etc(resolv_conf=line + end + b'nameserver 127.53.0.1' + end)
                    self.assertEqual(await self.code('a.test'), b'200')
                    self.assertEqual(log.messages(), [])

    async def test_line_of_resolv_conf_is_read_as_libc_reads_it(self):
        NameServer(self, '127.0.0.1', 53).add('a.test', 'A', '127.0.0.1')
        self.serve(OK, port=self.PORT)
        for content in (
                b'', b'#', b'nameserver localhost', b'nameserver 0.0.0.0', b'nameserver 127.1',
                b'nameserver 0x7f.1', b'nameserver 127.000.000.001',
                b'nameserver 127.0.0.1 # mine',
                b'nameserver 127.0.0.1#mine', b'nameserver 127.0.0.1;mine',
                b'nameserver\t127.0.0.1\t', b'domain test\nnameserver 127.0.0.1'):
            with self.subTest(content):
                write_etc(resolv_conf=content)
                self.assertEqual(await self.code('a.test'), b'200')

    async def test_three_name_servers_are_asked_as_by_libc(self):
        third, fourth = (NameServer(self, address, 53).add('a.test', 'A', '127.0.0.1')
                         for address in ('127.0.0.3', '127.0.0.4'))
        self.serve(OK, port=self.PORT)
        write_etc(resolv_conf=b'nameserver ::1\n' + b''.join(
            b'nameserver 127.0.0.%d\n' % number for number in (1, 2, 3, 4)))
        self.assertEqual(await self.code('a.test'), b'200')
        third.add('a.test', 'A', rcode=2)
        await self.fails(HttpDnsError, self.code('a.test'), '(127.0.0.1, 127.0.0.2, 127.0.0.3)')
        self.assertEqual((len(third.queries), fourth.queries), (6, []))

    async def test_files_that_can_not_be_read_are_tried_again_at_the_next_name(self):
        self.serve(OK, port=self.PORT)
        NameServer(self, '127.0.0.1', 53).add('a.test', 'A', '127.0.0.1')
        for path in (Path('/etc/hosts'), Path('/etc/resolv.conf')):
            for make, unmake in (
                    (lambda path: None, lambda path: None), (Path.mkdir, Path.rmdir),
                    (lambda path: path.symlink_to('hosts.d/none'), Path.unlink),
                    (lambda path: path.symlink_to(path), Path.unlink)):
                with self.subTest(path, make=make):
                    path.unlink()
                    make(path)
                    request = self.new_pool()
                    for _ in range(2):
                        await self.fails(HttpDnsError, self.code('a.test', request), str(path))
                    self.assertEqual(await self.code('127.0.0.1', request), b'200')
                    unmake(path)
                    path.write_bytes(b'')
                    self.assertEqual(await self.code('a.test', request), b'200')

    async def test_pool_that_is_made_without_a_free_descriptor_resolves_later(self):
        self.serve(OK, port=self.PORT)
        with no_descriptor():
            request = self.new_pool()
            await self.fails(HttpDnsError, self.code('localhost', request), 'Too many open files')
        self.assertEqual(await self.code('localhost', request), b'200')

    async def test_failures_are_told_in_words(self):
        names = NameServer(self, '127.53.0.1', 53).add('a.test', 'A', rcode=2).add(
            'b.test', 'A', rcode=5).add('c.test', 'A', rcode=4).add('d.test', 'A', 'd.test')
        unheard, unreachable = b'nameserver 127.0.0.9', b'nameserver 192.0.2.1'
        mine, times = b'nameserver 127.53.0.1', 'were asked 5 times each, for up to 9.5 seconds'
        for content, host, *words in (
                (b'', 'a.test', '127.0.0.1, as /etc/resolv.conf has none', times,
                 'Connection refused'),
                (b'nameserver ::1\nnameserver fe80::1%lo', 'a.test',
                 '/etc/resolv.conf has only name servers of IPv6'),
                (unheard, 'a.test', '(127.0.0.9)', times, 'Connection refused'),
                (unreachable, 'a.test', '(192.0.2.1)', times, 'Network is unreachable'),
                (unheard + b'\n' + mine, 'a.test', '(127.0.0.9, 127.53.0.1)', times,
                 'error code 2 (SERVFAIL)'),
                (mine, 'b.test', '(127.53.0.1)', times, 'error code 5 (REFUSED)'),
                (mine, 'c.test', '(127.53.0.1)', times, 'DnsResponseCode(4)'),
                (mine, 'd.test', 'CNAME'),
                (mine, 'e.test', '(127.53.0.1)', 'no A or AAAA record'),
                (mine, 'e', '(127.53.0.1)', 'no A or AAAA record',
                 'a single label needs a search domain'),
                (unheard, 'e', 'Connection refused', 'a single label needs a search domain')):
            with self.subTest(content=content, host=host):
                write_etc(resolv_conf=content)
                exception = await self.fails(HttpDnsError, self.code(host))
                self.assert_says(exception, host + ' could not be resolved: ', *words)
        self.assertNotIn(('a.test', 'AAAA'), names.queries)

    async def test_answer_that_was_cut_and_has_no_address_is_told(self):
        names = NameServer(self, '127.0.0.1', 53)
        names.flags = {'tc': 1}
        self.serve(OK, port=self.PORT)
        for records, words in (((), 'cut (TC)'), (('b.test',), 'cut (TC)'), (('127.0.0.1',), '')):
            with self.subTest(records):
                names.add('a.test', 'A', *records).add('b.test', 'A')
                if words:
                    await self.fails(HttpDnsError, self.code('a.test'), words)
                else:
                    self.assertEqual(await self.code('a.test'), b'200')
        names.answers.clear()
        await self.fails(HttpDnsError, self.code('a.test'), 'no A or AAAA record')


# ---- Connection ----


def length(size):
    return ((b'content-length', b'%d' % size),)


CHUNK, LAST_CHUNK = b'1\r\na\r\n', b'0\r\n\r\n'
HALF = HEAD + b'content-length: 5\r\n\r\nabc'
REFUSAL = response(b'big', status=b'413 Too Large')
LARGE = 10**6  # Many times what there is room for between SteppedTest's ends


def sockets(kind=socket.socket, send_buffer=None, receive_buffer=None):
    """A get_sock that makes sockets of a class, whose buffers may be small."""
    def get_sock(family=socket.AF_INET):
        sock = kind(family, socket.SOCK_STREAM)
        if send_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        return sock
    return get_sock


def small_buffers(server):
    """Have the kernel keep little of what a server is sent and sends."""
    server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    return server


async def gone(peer):
    """Wait until the client's end of a connection is closed."""
    while peer.is_open():
        await asyncio.sleep(0)


async def take(peer, size):
    """Read so many bytes, or all that come, and forget them; return how many there were."""
    taken = len(peer.unread)
    peer.unread = b''
    while taken < size:
        data = await peer.receive()
        peer.received.clear()
        if not data:
            break
        taken += len(data)
    return taken


async def cancel(task):
    """Cancel a task, which must end by that."""
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled(), task


def end_tls(peer):
    """Close with a close_notify where there is TLS."""
    peer.close_tls() if isinstance(peer.sock, ssl.SSLSocket) else peer.close()


@contextlib.contextmanager
def in_thread(converse, tls=False):
    """The URL of a server that needs no loop: a thread that has one connection."""
    def serve():
        accepted = listener.accept()[0]
        accepted.settimeout(TEST_SECONDS)
        with context.wrap_socket(accepted, server_side=True) if tls else accepted as sock:
            converse(sock)
    context, thread = server_context(), threading.Thread(target=serve)
    with socket.create_server(('127.0.0.1', 0)) as listener:
        listener.settimeout(TEST_SECONDS)
        thread.start()
        yield 'http%s://127.0.0.1:%d/' % ('s' if tls else '', listener.getsockname()[1])
        thread.join()


class SteppedTest(TestCase):
    """An exchange that the test drives: what its body does, step by step, and what the peer does.

    The kernel keeps little of it.
    """

    def setUp(self):
        self.notes = []

    async def body(self, *steps):
        """Yield the bytes among the steps, and await what the others return."""
        try:
            for step in steps:
                if callable(step):
                    await step()
                else:
                    yield step
        except BaseException as exception:
            self.notes.append(type(exception).__name__)
            raise
        finally:
            await asyncio.sleep(0)
            self.notes.append('closed')

    def uploading(self, server, *steps, method=b'POST', headers=IN_CHUNKS, body=None, **pool):
        self.notes.clear()
        self.request = self.pool(**{'get_sock': sockets(send_buffer=65536), **pool})
        return self.spawn(self.request(
            method, server.url, headers=headers, body=body or self.body, body_args=steps))

    async def begin(self, *steps, tls=None, **kwargs):
        """The task of a request, and its peer, which has got the head."""
        self.server = small_buffers(self.serve(tls=tls))
        task = self.uploading(self.server, *steps, **kwargs)
        peer = await self.server.accept()
        await peer.read_until(b'\r\n\r\n')
        return task, peer

    async def begun(self, *steps, **kwargs):
        """The peer, and the body of a response that has come in the middle of its request."""
        task, peer = await self.begin(*steps, **kwargs)
        await peer.send(HALF)
        _, _, body = await task
        self._tasks.remove(task)  # It holds the body,
        del task
        await self.turns(1)  # as does the callback that goes on here
        return peer, body

    async def whole(self, awaitable):
        code, _, body = await awaitable
        return code, await buffered(body)

    async def reuses(self, peer):
        """Whether the next request comes to this peer, and not on another connection."""
        async def answer(accepted):
            with contextlib.suppress(OSError, EOFError):
                peer = await accepted
                if await peer.request():
                    await peer.send(OK)

        async def same():
            return peer
        before = len(self.server.peers)
        tasks = [self.spawn(answer(get())) for get in (same, self.server.accept)]
        await fetch(self.request, b'GET', self.server.url)
        for task in tasks:
            task.cancel()
        return len(self.server.peers) == before

    async def closed(self, peer):
        """Wait until the client has closed, and return what it had sent before."""
        with contextlib.suppress(ssl.SSLError):
            return await peer.ended()

    def plain_and_tls(self):
        context = server_context()
        for tls in (None, context):
            with self.subTest(tls=tls):
                yield tls


@contextlib.contextmanager
def silent_address(address='127.0.0.1', port=0):
    """The port of an address that neither accepts a connection nor refuses it."""
    with full_listener(address, port) as listener:
        yield listener.getsockname()[1]


@contextlib.contextmanager
def full_listener(address='127.0.0.1', port=0):
    """One that takes no more connections until some are accepted."""
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(0)
        socks = [stack.enter_context(socket.socket(family)) for _ in range(4)]
        for sock in socks:
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield listener


class ConnectTest(TestCase):

    REFUSING, SILENT, ACCEPTING = '127.0.0.2', '127.0.0.3', '127.0.0.4'
    UNREACHABLE = '255.255.255.255'  # As the system says at once

    def pool_for(self, *a, aaaa=(), ttl=60, **kwargs):
        """One for which a.test has these addresses, and that notes which it tries."""
        class Noted(socket.socket):
            def connect_ex(self, address):
                tried.append(address[0])
                return super().connect_ex(address)
        self.tried = tried = []
        self.names = Names(ttl).add('a.test', 'A', *a).add('a.test', 'AAAA', *aaaa)
        return self.pool(get_dns_resolver=self.names, **{'get_sock': sockets(Noted), **kwargs})

    def kinds(self):
        return [kind for _, kind in self.names.queries]

    async def failure(self, request, port, *args):
        return await self.fails(
            HttpConnectionError, request(b'GET', 'http://a.test:%d/' % port), *args)

    async def test_address_that_is_slow_to_accept_is_waited_for(self):
        with full_listener() as listener:
            listener.setblocking(False)
            mine = socket.socket()
            task = self.spawn(fetch(self.pool(get_sock=lambda: mine), b'GET',
                                    'http://127.0.0.1:%d/' % listener.getsockname()[1]))
            await self.turns()  # Now it waits
            sock, address = await self.loop.sock_accept(listener)
            while address != mine.getsockname():  # The system asks again after a second
                sock.close()
                sock, address = await self.loop.sock_accept(listener)
            peer = Peer(sock)
            await peer.request()
            await peer.send(OK)
            self.assertEqual((await task)[2], b'ok')
            peer.close()

    async def test_first_address_is_used_if_all_accept(self):
        server = self.serve(OK, host='a.test', port=free_port())
        self.serve(OK, address='127.0.0.2', port=server.port)
        await fetch(self.pool_for('127.0.0.1', '127.0.0.2'), b'GET', server.url)
        self.assertEqual((self.tried, server.counts()), (['127.0.0.1'], [1]))

    async def test_addresses_that_fail_in_any_order_leave_the_one_that_accepts(self):
        server = self.serve(OK, address=self.ACCEPTING, port=free_port())
        with silent_address(self.SILENT, server.port):
            orders = list(itertools.permutations(
                (self.REFUSING, self.UNREACHABLE, self.SILENT, self.ACCEPTING)))
            tasks = [self.spawn(self.duration(order, server.port)) for order in orders]
            waiting, prompt = [], []
            for order, task in zip(orders, tasks):
                waits = order.index(self.SILENT) < order.index(self.ACCEPTING)
                (waiting if waits else prompt).append(await task)
            self.assertTrue(0.24 < min(waiting) < 1, waiting)
            self.assertLess(min(prompt), 0.2)
        self.assertEqual(len(server.requests), len(orders))

    async def duration(self, addresses, port):
        start = time.monotonic()
        result = await fetch(self.pool_for(*addresses), b'GET', 'http://a.test:%d/' % port)
        self.assertEqual(result[2], b'ok')
        return time.monotonic() - start

    async def test_failure_is_that_of_the_first_address(self):
        for addresses, error in (((self.REFUSING, self.UNREACHABLE), errno.ECONNREFUSED),
                                 ((self.UNREACHABLE, self.REFUSING), errno.ENETUNREACH)):
            exception = await self.failure(
                self.pool_for(*addresses), free_port(), addresses[0], OSError)
            self.assertEqual(exception.__cause__.errno, error)

    async def test_aaaa_is_tried_where_each_a_address_fails_in_its_own_way(self):
        server = self.serve(OK, address='::1', host='a.test')
        with silent_address(self.SILENT, server.port):
            request = self.pool_for(
                self.SILENT, self.UNREACHABLE, self.REFUSING, aaaa=('::1',), socket_timeout=0.4)
            self.assertEqual((await fetch(request, b'GET', server.url))[2], b'ok')

    async def test_attempts_start_each_250_ms_share_the_timeout_and_are_closed(self):
        attempts = []

        def get_sock():
            attempts.append((socket.socket(), self.loop.time()))
            return attempts[-1][0]
        port, silent = free_port(), ('127.0.0.2', '127.0.0.3', '127.0.0.4')
        request = self.pool_for(*silent, get_sock=get_sock, socket_timeout=0.6)
        with contextlib.ExitStack() as stack:
            for address in silent:
                stack.enter_context(silent_address(address, port))
            await self.failure(request, port, 'a.test', asyncio.TimeoutError)
        (first, at), (second, second_at), (third, third_at) = attempts
        self.assertTrue(0.24 < second_at - at < 0.4 and 0.24 < third_at - second_at < 0.4)
        self.assertTrue(0.55 < self.loop.time() - at < 0.9)
        self.assertEqual([first.fileno(), second.fileno(), third.fileno()], [-1] * 3)

    async def test_each_address_that_fails_is_named_once_with_its_reason(self):
        refused, unreachable = 'Connection refused', 'Network is unreachable'
        silent, untried = 'no answer for 0.1 seconds (socket_timeout)', 'not tried in that time'
        many = ['127.0.1.%d' % number for number in range(1, 21)]
        for a, aaaa, reasons in (
                (('127.0.0.1',), (), '127.0.0.1: ' + refused),
                (('127.0.0.1', '127.0.0.1'), (), '127.0.0.1: ' + refused),
                (('127.0.0.1',), ('::1',), '127.0.0.1: %s; ::1: %s' % (refused, silent)),
                ((self.SILENT,), ('::2',), '%s: %s; ::2: ' % (self.SILENT, silent)),
                ((), ('::1',), '::1: ' + silent),
                ((self.UNREACHABLE, '127.0.0.1'), (), '%s: %s; 127.0.0.1: %s' % (
                    self.UNREACHABLE, unreachable, refused)),
                ((self.SILENT, self.REFUSING), (), '%s: %s; %s: %s' % (
                    self.SILENT, silent, self.REFUSING, untried)),
                ((self.REFUSING, self.SILENT), ('::1',), '%s: %s; %s: %s; ::1: %s' % (
                    self.REFUSING, refused, self.SILENT, silent, silent)),
                (many, (), '; '.join('%s: %s' % (address, refused) for address in many[:6])
                 + '; and 14 more')):
            with self.subTest(a=a, aaaa=aaaa), silent_address(self.SILENT, free_port()) as port, \
                    silent_address('::1', port):
                message = str(await self.failure(
                    self.pool_for(*a, aaaa=aaaa, socket_timeout=0.1), port))
                words = 'no connection to a.test, port %d: %s' % (port, reasons)
                self.assertEqual(message[:len(words)], words)
                self.assertLessEqual(len(message), max(len(words), 300))

    async def test_literal_that_fails_is_named_once(self):
        port = free_port()
        for literal, host in (('127.0.0.1', '127.0.0.1'), ('[::1]', '::1'), ('[0::0001]', '::1')):
            exception = await self.fails(
                HttpConnectionError, self.pool()(b'GET', 'http://%s:%d/' % (literal, port)))
            self.assertEqual(str(exception), 'no connection to %s, port %d: Connection refused'
                             % (host, port))

    async def test_failure_of_ipv4_is_told_where_ipv6_is_not_found(self):
        for answer in (aiodnsresolver.DnsTimeout(), aiodnsresolver.DnsRecordDoesNotExist(), ()):
            request = self.pool_for('127.0.0.1')
            self.names.records['a.test', 'AAAA'] = answer
            await self.failure(request, free_port(), '127.0.0.1: Connection refused',
                               ConnectionRefusedError)

    async def test_ipv6_that_worked_is_remembered_where_ipv4_did_not(self):
        for address, keep_alive in itertools.product((self.SILENT, self.REFUSING), (15, 0)):
            with self.subTest(address=address, keep_alive=keep_alive):
                server = self.serve(OK, address='::1', host='a.test')
                request = self.pool_for(
                    address, aaaa=('::1',), socket_timeout=0.3, keep_alive_timeout=keep_alive)
                with silent_address(self.SILENT, server.port):
                    for _ in range(3):
                        await fetch(request, b'GET', server.url)
                self.assertEqual(self.kinds(), ['A', 'AAAA'])
                self.assertEqual(server.counts(), [3] if keep_alive else [1, 1, 1])
                self.assertEqual(self.tried, [address] + ['::1'] * len(server.peers))

    async def test_ipv6_is_remembered_no_longer_than_its_answer_lives(self):
        server = self.serve(OK, address='::1', host='a.test')
        request = self.pool_for(self.REFUSING, aaaa=('::1',), ttl=0)
        for _ in range(2):
            await fetch(request, b'GET', server.url)
        self.assertEqual(self.kinds(), ['A', 'AAAA'] * 2)

    async def test_ipv4_is_tried_again_once_ipv6_that_was_remembered_fails(self):
        server = self.serve(closing(response(b'', b'connection: close')), address='::1',
                            host='a.test', port=free_port())
        request = self.pool_for('127.0.0.1', aaaa=('::1',))
        await fetch(request, b'GET', server.url)
        server.close()
        other = self.serve(OK, port=server.port)
        for _ in range(2):
            self.assertEqual((await fetch(request, b'GET', server.url))[2], b'ok')
        self.assertEqual((other.counts(), self.kinds()), ([2], ['A', 'AAAA', 'A']))

    async def test_ip_version_that_worked_is_remembered_for_its_port(self):
        six = self.serve(OK, address='::1', host='a.test', port=free_port())
        four = self.serve(OK, host='a.test', port=free_port())
        request = self.pool_for('127.0.0.1', aaaa=('::1',), keep_alive_timeout=0)
        for server in (six, four, six, four):
            await fetch(request, b'GET', server.url)
        self.assertEqual(self.tried, ['127.0.0.1', '::1', '127.0.0.1', '::1', '127.0.0.1'])

    async def test_address_that_worked_goes_first_while_its_answer_lives(self):
        server = self.serve(OK, address=self.ACCEPTING, host='a.test', port=free_port())
        request = self.pool_for(self.SILENT, self.REFUSING, self.ACCEPTING, keep_alive_timeout=0)
        with silent_address(self.SILENT, server.port):
            for _ in range(3):
                await fetch(request, b'GET', server.url)
        self.assertEqual(self.tried, [self.SILENT, self.REFUSING] + [self.ACCEPTING] * 3)

    def bound(self, family, port):
        def get_sock(other=socket.AF_INET):
            sock = socket.socket(other)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setblocking(False)
            if other == family:
                sock.bind(('', port))
            return sock
        return get_sock

    async def test_socket_that_is_connected_to_itself_counts_as_refused(self):
        for tls, (literal, family) in itertools.product(('', 's'), (
                ('127.0.0.1', socket.AF_INET), ('127.0.0.2', socket.AF_INET),
                ('[::1]', socket.AF_INET6), ('[::ffff:127.0.0.1]', socket.AF_INET6))):
            with self.subTest(tls=tls, literal=literal):
                port = free_port()
                await self.fails(
                    HttpConnectionError, self.pool(get_sock=self.bound(family, port))(
                        b'GET', 'http%s://%s:%d/' % (tls, literal, port)),
                    'port %d: Connection refused' % port, ConnectionRefusedError)

    async def test_address_after_one_that_is_of_the_socket_itself_is_tried(self):
        server = self.serve(OK, address='::1', host='a.test')
        request = self.pool_for('127.0.0.1', aaaa=('::1',),
                                get_sock=self.bound(socket.AF_INET, server.port))
        self.assertEqual((await fetch(request, b'GET', server.url))[2], b'ok')

    async def test_get_sock_that_fails_or_takes_no_argument_is_a_connection_error(self):
        def get_sock():
            raise OSError('mine')
        request = self.pool(get_sock=get_sock)
        for host, words, cause in (('[::1]', 'AF_INET6', TypeError),
                                   ('127.0.0.1', 'mine', OSError)):
            await self.fails(
                HttpConnectionError, request(b'GET', 'http://%s:9/' % host), words, cause)

    async def test_get_sock_is_called_with_af_inet6_for_ipv6_only(self):
        families = []

        def get_sock(*family):
            families.append(family)
            return socket.socket(*family)
        for address, host in (('127.0.0.1', '127.0.0.1'), ('::1', '[::1]')):
            server = self.serve(OK, address=address, host=host)
            await fetch(self.pool(get_sock=get_sock), b'GET', server.url)
        self.assertEqual(families, [(), (socket.AF_INET6,)])

    async def test_resolver_with_the_same_addresses_for_each_type_is_not_asked_for_ever(self):
        queries = []

        async def resolve(host, record_type, get_logger_adapter):
            queries.append(record_type.name)
            return [ipaddress.ip_address('127.0.0.1')] * (len(queries) < 10)
        request = self.pool(
            get_dns_resolver=lambda get_logger_adapter: (resolve, Names().clear_cache))
        await self.failure(request, free_port(), 'no connection to a.test')
        self.assertEqual(queries, ['A', 'AAAA'])


# Requests to many hosts, one after another, by a process that may have few files; the last of each
# pool goes to another URL
MANY_HOSTS_SCRIPT = """
import asyncio, resource, sys
from lowhaio import Pool, buffered

async def main(url, last_url, least, most):
    failures = []
    for number in range(int(least), int(most)):
        request, close = Pool()
        for host in range(number):
            host_url = (url if host + 1 < number else last_url).replace('*', str(host))
            try:
                _, _, body = await request(b'GET', host_url)
                await buffered(body)
            except Exception as exception:
                failures.append('%d of %d: %s' % (host, number, exception))
        await close()
    print(len(failures), *failures[:1])

resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
asyncio.run(main(*sys.argv[1:]))
"""


class OwnMachineConnectTest(OwnMachineTest):

    async def get(self, url, addresses):
        """Fetch from the first of the addresses that AAAA records have."""
        async def resolve(host, record_type, get_logger_adapter):
            if record_type != TYPES.AAAA:
                raise aiodnsresolver.DnsRecordDoesNotExist
            return addresses
        return await fetch(self.pool(
            get_dns_resolver=lambda get_logger_adapter: (resolve, Names().clear_cache)),
            b'GET', url)

    async def test_zone_that_a_resolver_returns_is_used(self):
        server = self.serve(OK, address='::', host='a.test')
        for addresses in (['fe80::1%lo'], ['fe80::1%1'], ['fe80::1%nope', 'fe80::1%lo'],
                          ['fe80::1', 'fe80::1%lo'], ['fe80::2%lo', 'fe80::1%lo']):
            with self.subTest(addresses):
                self.assertEqual((await self.get(server.url, addresses))[2], b'ok')

    async def test_zone_that_is_none_of_this_machine_is_told(self):
        await self.fails(HttpConnectionError, self.get('http://a.test/', ['fe80::1%nope']),
                         'fe80::1%nope: ', OSError)

    async def test_port_that_the_system_chose_may_be_the_one_that_nobody_listens_on(self):
        Path('/proc/sys/net/ipv4/ip_local_port_range').write_text('50000 50001')
        for port in (50000, 50001):
            for _ in range(4):
                await self.fails(HttpConnectionError, self.pool()(
                    b'GET', 'http://127.0.0.1:%d/' % port), 'refused', ConnectionRefusedError)

    async def finished(self, *command, **environment):
        process = subprocess.Popen(
            [sys.executable, '-W', 'error', '-c', *command], stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env={**os.environ, **environment})
        ended = self.loop.create_future()
        output = bytearray()

        def on_output():
            data = os.read(process.stdout.fileno(), 65536)
            output.extend(data)
            if not data:
                self.loop.remove_reader(process.stdout.fileno())
                ended.set_result(None)
        self.loop.add_reader(process.stdout.fileno(), on_output)
        await ended
        process.communicate()
        return output.decode()

    async def test_idle_connections_make_room_where_no_descriptor_is_free(self):
        names = NameServer(self, '127.0.0.1', 53)
        for number in range(100):
            names.add('%d.a.test' % number, 'A', '127.0.0.1')
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        file, nowhere = os.path.join(folder, 'ca.pem'), os.path.join(folder, 'nowhere')
        authority().cert_pem.write_to_path(file)
        subprocess.run(['openssl', 'rehash', folder], check=True)
        server = self.serve(OK, host='*.a.test')
        tls_server = self.serve(OK, host='*.a.test', tls=server_context('*.a.test'))
        for name, last, least, most, environment in (
                ('sockets and name server', server, 100, 101, {}),
                ('file of authorities', tls_server, 12, 28,
                 {'SSL_CERT_FILE': file, 'SSL_CERT_DIR': nowhere}),
                ('folder of authorities', tls_server, 12, 28,
                 {'SSL_CERT_FILE': nowhere, 'SSL_CERT_DIR': folder})):
            with self.subTest(name):
                self.assertEqual(await self.finished(
                    MANY_HOSTS_SCRIPT, server.url, last.url, str(least), str(most),
                    **environment), '0\n')
        self.assertEqual(len(server.requests + tls_server.requests), 100 + 2 * sum(range(12, 28)))


class DescriptorsTest(TestCase):
    """Where the process, or the system, has no descriptor free."""

    async def test_connection_that_is_idle_longest_is_closed_first(self):
        server = self.serve(OK)
        names = Names()
        for number in range(4):
            names.add('%d.test' % number, 'A', '127.0.0.1')
        request = self.pool(get_dns_resolver=names)
        for number in (0, 1, 2, 1):
            await fetch(request, b'GET', 'http://%d.test:%d/' % (number, server.port))
        with full_listener() as listener, no_descriptor():
            task = self.spawn(request(b'GET', 'http://3.test:%d/' % listener.getsockname()[1]))
            await server.peers[0].ended()
            self.assertEqual([peer.is_open() for peer in server.peers[1:]], [True, True])
            self.assertFalse(task.done())
        task.cancel()

    async def test_lack_of_a_descriptor_is_told_where_nothing_is_idle(self):
        request = self.pool()
        with no_descriptor():
            await self.fails(HttpConnectionError, request(b'GET', 'http://127.0.0.1:9/'),
                             'port 9: Too many open files', OSError)

    async def test_get_sock_is_asked_once_more_where_it_has_no_descriptor(self):
        def get_sock():
            calls.append(number)
            if len(calls) <= errors:
                raise OSError(number, os.strerror(number))
            return socket.socket()
        for number, errors in itertools.product((errno.EMFILE, errno.ENFILE), (1, 2)):
            with self.subTest(number=number, errors=errors):
                calls = []
                got = fetch(self.pool(get_sock=get_sock), b'GET', self.serve(OK).url)
                if errors == 1:
                    self.assertEqual((await got)[2], b'ok')
                else:
                    await self.fails(HttpConnectionError, got, os.strerror(number))
                self.assertEqual(len(calls), 2)

    async def test_resolver_is_asked_once_more_where_it_has_no_descriptor(self):
        for error, number in ((OSError(errno.EMFILE, 'few'), 2), (OSError(errno.EPERM, 'no'), 1),
                              (socket.gaierror(socket.EAI_FAIL, 'no'), 1)):
            names = Names()
            names.records['a.test', 'A'] = error
            await self.fails(HttpDnsError, self.pool(get_dns_resolver=names)(
                b'GET', 'http://a.test/'), error.strerror, type(error))
            self.assertEqual(len(names.queries), number)


class SocketTest(TestCase):
    """What a socket does, seldom or on some systems only, and what comes of it."""

    async def through(self, tls=None, answer=OK, **faults):
        """Fetch through a socket whose methods raise what is given at their first calls."""
        server = self.serve(answer, tls=tls)
        base = ssl.SSLSocket if tls else socket.socket

        def faulty(name):
            def method(sock, *args, **kwargs):
                if faults[name]:
                    raise faults[name].pop(0)
                return getattr(base, name)(sock, *args, **kwargs)
            return method
        faulty_class = type('Faulty', (base,), {name: faulty(name) for name in faults})

        def get_ssl_context():
            context = trusting()
            context.sslsocket_class = faulty_class
            return context
        request = self.pool(get_ssl_context=get_ssl_context) if tls else self.pool(
            get_sock=sockets(faulty_class))
        return await fetch(request, b'GET', server.url)

    async def test_tls_that_wants_to_write_to_read_and_to_read_to_write_is_waited_for(self):
        result = await self.through(
            tls=True, recv=[ssl.SSLWantWriteError()], send=[ssl.SSLWantReadError()],
            do_handshake=[ssl.SSLWantWriteError()])
        self.assertEqual(result[2], b'ok')

    async def test_errors_of_the_socket_are_errors_of_their_phase(self):
        for kind, words, method, fault in (
                (HttpConnectionError, 'before anything was sent', 'send',
                 ConnectionResetError('reset')),
                (HttpDataError, 'head of the response', 'recv', OSError(errno.EIO, 'input')),
                (HttpDataError, 'system', 'recv', OSError(errno.ETIMEDOUT, 'system'))):
            with self.subTest(words):
                exception = await self.fails(
                    kind, self.through(**{method: [fault]}), words, OSError)
                self.assertNotIn('socket_timeout', str(exception))
                self.assertIs(type(exception.__cause__), type(fault))

    async def test_failure_to_send_ends_the_wait_for_it(self):
        class Failing(socket.socket):
            sends = 0

            def send(self, *args):
                Failing.sends += 1
                if self.sends > 3:  # By then it is the loop that calls
                    raise OSError(errno.ENOBUFS, 'no space')
                return super().send(*args)
        await self.fails(HttpConnectionClosedError, self.pool(get_sock=sockets(Failing))(
            b'POST', self.serve(script=Peer.ended).url, body=streamed(bytes(10**8)),
            headers=length(10**8)), 'no space', cause=OSError)
        self.assertEqual(Failing.sends, 4)

    async def test_head_larger_than_the_socket_takes_is_sent_whole(self):
        server = small_buffers(self.serve(OK))
        await fetch(self.pool(get_sock=sockets(send_buffer=65536)), b'GET', server.url,
                    headers=((b'large', b'x' * LARGE),))
        self.assertEqual(len(server.requests[0]), LARGE + len(GET) + len(b'large: \r\n'))

    async def test_reset_is_noticed_at_once_after_any_part_of_a_response(self):
        """The system tells of it once, along with the bytes that came before it."""
        parts = (b'HTTP/1.1 2', CONTINUE, HALF, HEAD + b'a: b', HEAD + b'\r\nabc',
                 CHUNKED + b'3\r\nabc\r\n', OK, CHUNKED + chunked(b'a'), CONTINUE + OK)
        for data, headers, recv_bufsize in itertools.product(
                parts, ((), length(3), (*length(3), EXPECT)), (7, 65536)):
            with self.subTest(data=data, headers=headers, recv_bufsize=recv_bufsize):
                request = self.pool(socket_timeout=60, recv_bufsize=recv_bufsize)
                got = fetch(
                    request, b'PUT', self.serve(closing(data, Peer.reset)).url, headers=headers,
                    body=streamed(b'abc' if headers else b''))
                if data in parts[-3:]:
                    with contextlib.suppress(HttpConnectionClosedError):
                        await got
                else:
                    await self.fails(HttpConnectionClosedError, got)

    async def test_body_until_close_is_cut_by_a_reset_that_sending_has_noticed(self):
        is_reset = asyncio.Event()

        async def script(peer):
            await peer.read_until(b'\r\n\r\n')
            await peer.send(b'HTTP/1.1 413 Content Too Large\r\n\r\na part')
            peer.reset()
            is_reset.set()

        async def body():
            yield b'a'
            await is_reset.wait()
            yield b'b'
        code, _, response_body = await self.pool()(
            b'POST', self.serve(script=script).url, headers=length(2), body=body)
        self.assertEqual(code, b'413')
        await self.fails(HttpConnectionClosedError, buffered(response_body))


async def drip(peer, data, seconds=0.05, parts=8):
    """Send in parts, with pauses before each."""
    size = len(data) // parts + 1
    for start in range(0, len(data), size):
        await asyncio.sleep(seconds)
        await peer.send(data[start:start + size])


async def tls_by_hand(peer, send=Peer.send):
    """Take the handshake and a request over TLS; return a function that encrypts."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = server_context().wrap_bio(incoming, outgoing, server_side=True)
    for operation in (tls.do_handshake, tls.read):
        is_done = False
        while not is_done:
            try:
                is_done = operation() != b''
            except ssl.SSLWantReadError:
                await send(peer, outgoing.read())
                incoming.write(await peer.receive())

    def encrypted(data):
        tls.write(data)
        return outgoing.read()
    return encrypted


class SocketTimeoutTest(SteppedTest):

    def by_hand(self, send):
        """The URL of a server over TLS; send(peer, encrypted) answers a request."""
        async def script(peer):
            await send(peer, await tls_by_hand(peer))
            await peer.ended()
        return self.serve(script=script).url.replace('http', 'https')

    async def test_silence_is_an_error_of_its_phase(self):
        for scheme, said, kind, words in (
                ('https', b'', HttpTlsError, 'TLS with localhost'),
                ('http', b'', HttpDataError, 'head'),
                ('http', b'HTTP/1.1 200 OK\r\n', HttpDataError, 'head'),
                ('http', HALF, HttpDataError, 'body')):
            with self.subTest(scheme=scheme, said=said):
                async def script(peer, said=said):
                    await peer.send(said)
                    await peer.ended()
                server = self.serve(script=script)
                exception = await self.fails(kind, fetch(
                    self.pool(socket_timeout=0.1), b'GET', server.url.replace('http', scheme)),
                    words, asyncio.TimeoutError)
                self.assertIn('for 0.1 seconds (socket_timeout)', str(exception))
                await gone(server.peers[0])

    async def test_missing_body_times_out_as_a_data_error(self):
        server = self.serve(b'HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc')
        _, _, body = await self.pool(socket_timeout=0.2)(b'GET', server.url)
        self.assertEqual(await body.__anext__(), b'abc')
        await self.fails(HttpDataError, body.__anext__(), 'body', asyncio.TimeoutError)
        await self.fails(HttpDataError, body.__anext__(), 'body')

    async def test_slow_but_steady_response_or_tls_record_is_not_cut(self):
        async def send(peer, encrypted=bytes):
            await drip(peer, encrypted(response(bytes(9000))), parts=10)
        for url in (self.serve(send).url, self.by_hand(send)):
            start = time.monotonic()
            result = await fetch(self.pool(socket_timeout=0.3), b'GET', url)
            self.assertEqual(result[2], bytes(9000))
            self.assertGreater(time.monotonic() - start, 0.45)

    async def test_slow_but_steady_handshake_and_half_a_tls_record_are_cut(self):
        async def half_a_record(peer, encrypted):
            await drip(peer, encrypted(OK)[:-9], parts=3)

        async def handshake(peer):
            await tls_by_hand(peer, functools.partial(drip, parts=1000, seconds=0.02))
        for url, kind, words, least in (
                (self.by_hand(half_a_record), HttpDataError, 'head', 0.3),
                (self.serve(script=handshake).url.replace('http', 'https'), HttpTlsError,
                 'socket_timeout', 0.15)):
            start = time.monotonic()
            await self.fails(kind, self.pool(socket_timeout=0.2)(b'GET', url), words,
                             asyncio.TimeoutError)
            self.assertTrue(least < time.monotonic() - start < 2)

    async def test_slow_tls_record_does_not_prolong_the_wait_for_a_100(self):
        async def send(peer, encrypted):
            await drip(peer, encrypted(OK), seconds=0.2, parts=7)
        url, start = self.by_hand(send), time.monotonic()

        async def body():
            sent_at.append(time.monotonic() - start)
            yield b'a'
        sent_at = []
        await fetch(self.pool(), b'PUT', url, body=body, headers=(*length(1), EXPECT))
        self.assertTrue(0.9 < sent_at[0] < 2)

    async def test_pauses_of_the_callers_body_are_not_the_networks(self):
        """Before the response, in the middle of it, and after the whole of it."""
        for tls in self.plain_and_tls():
            for answer in (b'', HALF, OK):
                event = asyncio.Event()
                task, peer = await self.begin(
                    CHUNK, event.wait, LAST_CHUNK, tls=tls, socket_timeout=0.05)
                await peer.send(answer)
                got = self.spawn(self.whole(task))
                await asyncio.sleep(0.15)
                event.set()
                await peer.expect(CHUNK + LAST_CHUNK)
                await peer.send({b'': OK, HALF: b'de', OK: b''}[answer])
                self.assertEqual(await got, (b'200', b'abcde' if answer is HALF else b'ok'))
                self.assertEqual(self.notes, ['closed'])

    async def test_consumer_may_take_longer_than_the_timeout(self):
        server = self.serve(response(bytes(1000000)))
        _, _, body = await self.pool(socket_timeout=0.1)(b'GET', server.url)
        size = len(await body.__anext__())
        await asyncio.sleep(0.3)
        self.assertEqual(size + len(await buffered(body)), 1000000)

    async def stalls_once_nothing_moves(self, move):
        task, peer = await self.begin(bytes(LARGE), headers=length(LARGE), socket_timeout=0.2)
        await peer.send(HEAD + b'content-length: 100\r\n\r\nabc')
        _, _, body = await task
        reading = self.spawn(buffered(body))
        for _ in range(8):
            await asyncio.sleep(0.05)
            await move(peer)
        self.assertFalse(reading.done())
        start = time.monotonic()
        await self.fails(HttpDataError, reading, 'socket_timeout', asyncio.TimeoutError)
        self.assertTrue(0.1 < time.monotonic() - start < 0.6)

    async def test_one_direction_may_stall_while_the_other_moves(self):
        """One deadline is for both."""
        async def sends(peer):
            await peer.send(b'd')

        async def takes(peer):
            await take(peer, 50000)
        for move in (sends, takes):
            with self.subTest(move=move):
                await self.stalls_once_nothing_moves(move)


class SlowServerTest(SteppedTest):
    """What the kernel holds for a server gets less, or doesn't: that decides.

    Lines are as slow as those of users; only the data is less.
    """

    RATE = 65536
    TIMEOUT = 1

    async def takes(self, peer, size, rate):
        """Read so many bytes, steadily; return when the last one came."""
        step = max(rate // 20, 1)
        due = time.monotonic()
        while size > 0:
            data = await peer.receive(min(step, size))
            peer.received.clear()
            if not data:
                break
            size -= len(data)
            due += len(data) / rate
            await asyncio.sleep(max(due - time.monotonic(), 0))
        return time.monotonic()

    async def begin(self, size, send_buffer=None, tls=None):
        """The task of an upload, and its peer, between which little is under way."""
        server = self.serve(tls=tls)
        server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        request = self.pool(get_sock=sockets(send_buffer=send_buffer), socket_timeout=self.TIMEOUT)
        task = self.spawn(self.whole(request(
            b'PUT', server.url, headers=length(size), body=streamed(bytes(size)))))
        peer = await server.accept()
        await peer.read_until(b'\r\n\r\n')
        return task, peer

    async def uploads(self, rate, tls, send_buffer, begun=b''):
        size, start = 3 * rate, time.monotonic()
        task, peer = await self.begin(size, send_buffer, tls)
        await peer.send(begun)
        await self.taken(task, peer, size, rate)
        await peer.send(b'de' if begun else OK)
        self.assertEqual(await task, (b'200', b'abcde' if begun else b'ok'))
        self.assertGreater(time.monotonic() - start, 2.4)

    async def taken(self, task, peer, size, rate):
        taking = self.spawn(self.takes(peer, size - len(peer.unread), rate))
        await asyncio.wait({task, taking}, return_when=asyncio.FIRST_COMPLETED)
        self.assertTrue(taking.done(), 'given up while the server takes bytes')
        return await taking

    async def test_steady_server_is_waited_for_however_slow(self):
        """Whether all is in the kernel at once, or the kernel takes no more for long, and also
        where the response has begun."""
        context = server_context()
        await asyncio.gather(*(
            self.uploads(rate, tls, send_buffer, begun)
            for rate, begun in ((64000, b''), (100000, b''), (self.RATE, HALF))
            for tls in (None, context) for send_buffer in (None, 2 * rate)))

    async def stalls(self, tls, send_buffer, size, taken=130000):
        """How long after the last byte was taken a server is given up that stalls for good."""
        task, peer = await self.begin(size, send_buffer, tls)
        last = await self.taken(task, peer, taken, self.RATE)
        await self.fails(HttpDataError, task, 'socket_timeout', asyncio.TimeoutError)
        return time.monotonic() - last

    async def test_server_that_stalls_for_good_is_given_up_in_time(self):
        """In the middle of what it is sent, or where it has taken all and says nothing."""
        context = server_context()
        waited = await asyncio.gather(
            *(self.stalls(tls, send_buffer, size) for tls in (None, context)
              for send_buffer, size in ((None, 400000), (65536, 10**7))),
            self.stalls(None, None, 100000, 100000))
        for seconds in waited:
            self.assertTrue(0.5 < seconds < 1.7, waited)  # And some time is the machine's


TLS_VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


class TlsTest(TestCase):

    async def test_certificate_must_be_of_the_name_in_idna_or_of_the_address(self):
        names = Names().add('xn--bcher-kva.test', 'A', '127.0.0.1').add('a.test', 'A', '127.0.0.1')
        for host, address, right, *wrong in (
                ('localhost', '127.0.0.1', 'localhost', 'b.test'),
                ('a.test', '127.0.0.1', 'a.test', 'localhost'),
                ('127.0.0.1', '127.0.0.1', '127.0.0.1', '127.0.0.2', 'localhost'),
                ('[::1]', '::1', '::1', '::2', 'localhost'),
                ('b\u00fccher.test', '127.0.0.1', 'xn--bcher-kva.test', 'bucher.test')):
            for name in (right, *wrong):
                with self.subTest(host=host, name=name):
                    server = self.serve(OK, tls=server_context(name), host=host, address=address)
                    result = fetch(self.pool(get_dns_resolver=names), b'GET', server.url)
                    if name == right:
                        self.assertEqual((await result)[2], b'ok')
                    else:
                        await self.fails(HttpTlsError, result, right.split('.')[0],
                                         ssl.SSLCertVerificationError)
                        self.assertEqual(server.requests, [])

    async def test_full_records_are_read_without_asking_whether_there_is_more(self):
        asked = []

        class Poll:
            def __init__(self):
                self.object = real_poll()
                self.register = self.object.register

            def poll(self, *args):
                asked.append(args)
                return self.object.poll(*args)
        real_poll = select.poll
        server = self.serve(response(bytes(2**20)), tls=True)
        with mock.patch.object(select, 'poll', Poll):
            self.assertEqual(len((await fetch(self.pool(), b'GET', server.url))[2]), 2**20)
        self.assertLess(len(asked), 2**20 // 16384 // 2)

    async def test_unknown_authority_and_expired_certificate_are_tls_errors(self):
        expired = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority().issue_cert('localhost', not_after=datetime.datetime(
            2020, 1, 1, tzinfo=datetime.timezone.utc)).configure_cert(expired)
        for context, trust, words in ((server_context(), ssl.create_default_context, 'localhost'),
                                      (expired, trusting, 'expired')):
            await self.fails(HttpTlsError, self.pool(get_ssl_context=trust)(
                b'GET', self.serve(OK, tls=context).url), words, ssl.SSLCertVerificationError)

    async def test_name_in_idna_is_in_sni_but_no_address(self):
        names, seen = Names().add('xn--bcher-kva.test', 'A', '127.0.0.1'), []
        context = server_context('xn--bcher-kva.test', 'localhost', '127.0.0.1')
        context.sni_callback = lambda sock, name, context: seen.append(name)
        for host in ('127.0.0.1', 'localhost', 'B\u00dccher.test.'):
            server = self.serve(OK, tls=context, host=host)
            await fetch(self.pool(get_dns_resolver=names), b'GET', server.url)
        self.assertEqual(seen, [None, 'localhost', 'xn--bcher-kva.test'])

    async def test_server_that_speaks_no_tls_or_hangs_up_is_a_tls_error(self):
        """Bytes before the handshake are no response."""
        for said, end, reads_first in itertools.product(
                (b'', b'HTTP/1.1 400 Bad\r\n\r\n', OK), (Peer.close, Peer.reset), (False, True)):
            with self.subTest(said=said, end=end, reads_first=reads_first):
                async def script(peer, said=said, end=end, reads_first=reads_first):
                    if reads_first:
                        await peer.receive()
                    await peer.send(said)
                    end(peer)
                url = self.serve(script=script).url.replace('http', 'https')
                for _ in range(5):
                    await self.fails(HttpTlsError, self.pool()(b'GET', url), 'localhost', OSError)

    async def test_server_that_resets_before_the_handshake_leaves_nothing_open(self):
        def get_ssl_context():
            Peer(listener.accept()[0]).reset()
            return trusting()

        with socket.create_server(('127.0.0.1', 0)) as listener:
            request = self.pool(get_ssl_context=get_ssl_context)
            url = 'https://localhost:%d/' % listener.getsockname()[1]
            await self.fails(HttpTlsError, request(b'GET', url), 'localhost', OSError)

    async def test_context_is_made_at_the_first_https_request(self):
        get_ssl_context = mock.Mock(side_effect=trusting)
        request = self.pool(get_ssl_context=get_ssl_context, keep_alive_timeout=0)
        plain, tls = self.serve(OK), self.serve(OK, tls=True)
        for url, number in ((plain.url, 0), (tls.url, 1), (tls.url, 1)):
            await fetch(request, b'GET', url)
            self.assertEqual(get_ssl_context.call_count, number)

    async def test_exception_of_get_ssl_context_is_a_tls_error(self):
        request = self.pool(get_ssl_context=mock.Mock(side_effect=ValueError('mine')))
        await self.fails(HttpTlsError, request(
            b'GET', self.serve().url.replace('http', 'https')), 'mine', ValueError)

    async def test_cut_is_an_error_of_heads_and_bodies(self):
        """Only a close_notify ends a body that runs until close."""
        def get_ssl_context():
            context = trusting()
            context.options |= getattr(ssl, 'OP_IGNORE_UNEXPECTED_EOF', 0)
            return context
        request = self.pool(get_ssl_context=get_ssl_context)
        contexts = [server_context('localhost', version=version) for version in TLS_VERSIONS]
        for data, tls, end in itertools.product(
                (b'', b'HTTP/1.1 200', OK[:-1], CHUNKED + b'1\r\n', CHUNKED + CHUNK,
                 CHUNKED + CHUNK + b'0\r\n', HEAD + b'\r\n', HEAD + b'\r\nabc'),
                contexts, (Peer.close, Peer.reset, Peer.close_tls)):
            with self.subTest(data=data, version=tls.minimum_version, end=end):
                result = fetch(request, b'GET', self.serve(closing(data, end), tls=tls).url)
                if end == Peer.close_tls and data.startswith(HEAD + b'\r\n'):
                    self.assertEqual((await result)[2], data[len(HEAD) + 2:])
                else:
                    await self.fails(HttpConnectionClosedError, result)

    async def test_cut_after_a_whole_response_is_no_error(self):
        for data in (OK, CHUNKED + chunked(b'ok')):
            server = self.serve(closing(data), tls=True)
            self.assertEqual((await fetch(self.pool(), b'GET', server.url))[2], b'ok')

    async def test_close_notify_is_sent_when_we_close(self):
        server = self.serve(tls=True)
        request, close = self.pool_and_close()
        task = self.spawn(fetch(request, b'GET', server.url))
        peer = await server.accept()
        await peer.request()
        await peer.send(OK)
        await task
        await close()
        self.assertEqual(await peer.ended(), b'')  # A cut would be an SSLEOFError

    async def test_connections_are_reused_in_every_version(self):
        for version in TLS_VERSIONS:
            server = self.serve(OK, tls=server_context('localhost', version=version))
            request = self.pool()
            for _ in range(3):
                await fetch(request, b'GET', server.url)
                await self.turns()
            self.assertEqual(server.counts(), [3], version)

    async def test_large_bodies_go_both_ways_with_a_tiny_buffer(self):
        data = bytes(range(256)) * 300
        for version in TLS_VERSIONS:
            server = self.serve(response(data), CHUNKED + chunked(data),
                                tls=server_context('localhost', version=version))
            request = self.pool(recv_bufsize=100)
            for _ in range(2):
                _, _, body = await fetch(
                    request, b'PUT', server.url, body=streamed(data), headers=length(len(data)))
                self.assertTrue(body == data and server.requests[-1].endswith(data))
            self.assertEqual(server.counts(), [2])

    async def test_long_head_over_tls_with_a_small_buffer_is_read_on_at_once(self):
        answer = response(b'ok', b'x: ' + b'y' * 5000)
        expects = ((b'expect', b'100-continue'), (b'content-length', b'1'))
        for headers, body in (((), empty_async_iterator), (expects, streamed(b'a'))):
            request = self.pool(recv_bufsize=100, socket_timeout=5)
            result = await fetch(request, b'POST', self.serve(answer, tls=True).url,
                                 headers=headers, body=body)
            self.assertEqual(result[2], b'ok')

    async def test_part_of_a_tls_record_does_not_keep_the_loop_busy_while_idle(self):
        stirred = self.loop.create_future()

        async def script(peer):
            encrypted = await tls_by_hand(peer)
            await peer.send(encrypted(OK))
            await asyncio.sleep(0.05)
            await peer.send(encrypted(OK)[:-1])
            stirred.set_result(None)
            await peer.ended()
        events, add_reader = [], self.loop.add_reader

        def add_counted_reader(number, callback):
            add_reader(number, lambda: events.append(number) or callback())
        url = self.serve(script=script).url.replace('http', 'https')
        with mock.patch.object(self.loop, 'add_reader', add_counted_reader):
            await fetch(self.pool(), b'GET', url)
            await stirred
            await asyncio.sleep(0.1)
        self.assertLess(len(events), 30)


class OpensslServer:
    """openssl s_server, which renegotiates and sends key updates when told to: Python's ssl can't.

    It answers with what it is told, too.
    """

    def __init__(self, case, *arguments):
        self.loop, self.output, self.event = case.loop, bytearray(), asyncio.Event()
        with tempfile.NamedTemporaryFile() as file:
            file.write(certificate('localhost').private_key_and_cert_chain_pem.bytes())
            file.flush()
            self.process = subprocess.Popen(
                ['openssl', 's_server', '-accept', '127.0.0.1:0', '-crlf', '-cert', file.name,
                 *arguments],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                bufsize=0)
            case._servers.append(self)
            while not re.search(rb'ACCEPT .*\n', self.output):
                self._on_output()
        self.url = 'https://localhost:%d/' % int(self.output.split(b':')[-1])
        self.loop.add_reader(self.process.stdout.fileno(), self._on_output)

    def _on_output(self):
        self.output += os.read(self.process.stdout.fileno(), 65536)
        self.event.set()

    async def says(self, words, times=1):
        while len(re.findall(words, self.output)) < times:
            self.event.clear()
            await self.event.wait()

    def tell(self, data):
        self.process.stdin.write(data)

    async def answer(self, task):
        """Answer the request that a task sends, and await the task."""
        self.output.clear()
        await self.says(b'\r\n\r\n')
        self.tell(OK.replace(b'\r', b''))
        return await task

    def close(self):
        if self.process.returncode is None:
            self.loop.remove_reader(self.process.stdout.fileno())
            self.process.kill()
            self.process.communicate()


class RenegotiationTest(TestCase):

    def renegotiating(self):
        def get_ssl_context():
            context = trusting()
            context.options &= ~ssl.OP_NO_RENEGOTIATION
            return context
        return OpensslServer(self, '-tls1_2'), self.pool(
            get_ssl_context=get_ssl_context, socket_timeout=2)

    async def test_it_disturbs_no_response_and_no_idle_connection(self):
        server, request = self.renegotiating()
        for number in (1, 2):
            task = self.spawn(fetch(request, b'GET', server.url))
            await server.says(rb'GET /', number)
            server.tell(b'r\n')  # While the response is awaited
            await server.says(rb'SSL_do_handshake -> 1', 2 * number - 1)
            server.tell(response(b'ok\r\n').replace(b'\r', b''))
            self.assertEqual((await task)[2], b'ok\r\n')
            server.tell(b'r\n')  # While the connection is idle
            await server.says(rb'SSL_do_handshake -> 1', 2 * number)
            await self.turns()
        self.assertEqual(server.output.count(b'BEGIN SSL SESSION PARAMETERS'), 1)

    async def test_it_does_not_hold_an_upload_up(self):
        async def body():
            for _ in range(500):
                yield b'x' * 9999 + b'\n'
                await asyncio.sleep(0)
            yield b'the end\n'
        server, request = self.renegotiating()
        task = self.spawn(fetch(request, b'PUT', server.url, headers=length(5000008), body=body))
        await server.says(rb'PUT /')
        for _ in range(20):
            server.tell(b'r\n')
            await asyncio.sleep(0.002)
        await server.says(rb'the end')
        server.tell(OK.replace(b'\r', b'') + b'\n')
        self.assertEqual((await task)[2], b'ok')


def prompt(base):
    """A class of sockets whose peer seems faster: the loop waits for no bytes that are coming."""
    class Prompt(base):
        def recv(self, size):
            return self._at_once(super().recv, size)

        def send(self, data):
            return self._at_once(super().send, data)

        def _at_once(self, operation, argument):
            while True:
                try:
                    return operation(argument)
                except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    writes = [self] if operation.__name__ == 'send' else []
                    if not any(select.select([] if writes else [self], writes, [], 0.02)):
                        raise
    return Prompt


class FairnessTest(TestCase):
    """No other task waits for more than 20 ms, however fast the peer is.

    It is a thread, and only this thread's processor time counts. On a busy machine, with half of
    a core and its caches, that is twice as much.
    """

    SIZE = 8000000

    @contextlib.asynccontextmanager
    async def ticking(self):
        """Count the turns of another task, and note how late the latest one is."""
        async def tick():
            while True:
                start = time.thread_time()
                await asyncio.sleep(0)
                self.late = max(self.late, time.thread_time() - start)
                self.ticks += 1
        self.late = self.ticks = 0
        task = self.spawn(tick())
        await self.turns()
        yield
        await cancel(task)

    def prompt_context(self):
        context = trusting()
        context.sslsocket_class = prompt(ssl.SSLSocket)
        return context

    async def transfer(self, answer, size=0, body=empty_async_iterator, headers=(), tls=False,
                       recv_bufsize=65536):
        def converse(sock):
            data = sock.recv(262144)
            missing = size - len(data.split(b'\r\n\r\n', 1)[1])
            while missing > 0 and data:
                data = sock.recv(262144)
                missing -= len(data)
            sock.sendall(answer)
            sock.recv(1)
        request, close = self.pool_and_close(
            recv_bufsize=recv_bufsize, get_ssl_context=self.prompt_context,
            get_sock=sockets(prompt(socket.socket)))
        with in_thread(converse, tls) as url:
            async with self.ticking():
                _, _, chunks = await request(b'PUT', url, headers=headers, body=body)
                async for _ in chunks:
                    pass
                await self.turns()
            await close()

    async def assert_fair(self, *args, **kwargs):
        late = []
        while len(late) < 3:  # The garbage collector may have had its turn too
            await self.transfer(*args, **kwargs)
            late.append(self.late)
            if self.late < (0.04 if sys.gettrace() is None else 0.2):  # Coverage takes longer
                return
        self.fail('other tasks waited for %s seconds' % late)

    async def test_no_task_is_late_during_a_download_and_an_upload(self):
        async def pieces():
            for _ in range(100):
                yield bytes(self.SIZE // 100)
        sent = length(self.SIZE)
        for tls, transfer in itertools.product((False, True), (
                (response(bytes(self.SIZE)),),
                (OK, self.SIZE, streamed(bytes(self.SIZE)), sent), (OK, self.SIZE, pieces, sent))):
            with self.subTest(tls=tls, upload=transfer[1:]):
                await self.assert_fair(*transfer, tls=tls)
                self.assertGreater(self.ticks, self.SIZE // 1000000)

    async def test_no_task_is_late_during_a_download_of_tiny_chunks(self):
        for bufsize, number in ((5000, 30000), (65536, 60000), (1048576, 200000)):
            with self.subTest(bufsize=bufsize):
                await self.assert_fair(CHUNKED + number * CHUNK + LAST_CHUNK, recv_bufsize=bufsize)

    async def test_no_task_is_late_during_an_upload_of_tiny_chunks(self):
        async def one_by_one():
            for _ in range(6000):
                for piece in (b'1\r\n', b'x', b'\r\n'):
                    yield piece
            yield LAST_CHUNK
        at_once = streamed(60000 * CHUNK + LAST_CHUNK)
        for body, size in ((one_by_one, 36005), (at_once, 360005)):
            with self.subTest(body=body):
                await self.assert_fair(OK, size, body, IN_CHUNKS)

    async def test_other_tasks_get_their_turn_though_each_response_is_there_at_once(self):
        class PromptlyAnswered(socket.socket):
            def send(self, data):
                sent = super().send(data)
                select.select([self], [], [], TEST_SECONDS)
                return sent

        def answer(sock):
            while sock.recv(262144):
                sock.sendall(OK)
        with in_thread(answer) as url:
            request, close = self.pool_and_close(get_sock=sockets(PromptlyAnswered))
            async with self.ticking():
                for _ in range(50):
                    await fetch(request, b'GET', url)
            await close()
        self.assertGreaterEqual(self.ticks, 45)

    async def test_other_tasks_get_their_turn_while_much_has_arrived_already(self):
        async def answer(peer):
            await peer.send(response(bytes(2200000)))  # It fits into the kernel's buffers
            sent.set_result(None)
        sent, server = self.loop.create_future(), self.serve(answer)
        _, _, body = await self.pool(recv_bufsize=1000)(b'GET', server.url)
        await sent
        async with self.ticking():
            self.ticks = 0
            await buffered(body)
        self.assertGreaterEqual(self.ticks, 2)

    async def test_other_tasks_get_their_turn_with_a_receive_buffer_of_8_megabytes(self):
        class Whole(socket.socket):
            """Gives as much as it is asked for, as a kernel with large buffers does."""

            def recv(self, size):
                data = super().recv(size)
                while 0 < len(data) < size and select.select([self], [], [], 1)[0]:
                    more = super().recv(size - len(data))
                    if not more:
                        break
                    data += more
                return data

        def answer(sock):
            sock.recv(10000)
            sock.sendall(response(bytes(size)))
            sock.recv(1)
        size = 16 * 2**20
        with in_thread(answer) as url:
            request, close = self.pool_and_close(recv_bufsize=2**23, get_sock=sockets(Whole))
            _, _, body = await request(b'GET', url)
            async with self.ticking():
                received = self.ticks = 0
                async for chunk in body:
                    received += len(chunk)
                    self.assertGreaterEqual(self.ticks + 2, received // 2**20)
            await close()
        self.assertEqual(received, size)

    async def test_other_tasks_get_their_turn_in_both_directions_at_once(self):
        def echo(sock):
            sock.recv(65536)
            sock.sendall(HEAD + b'content-length: %d\r\n\r\n' % self.SIZE)
            size = self.SIZE
            while size:
                data = sock.recv(262144)
                sock.sendall(data)
                size -= len(data)

        async def body():
            yield b''
            await event.wait()
            for _ in range(self.SIZE // 50000):
                yield bytes(50000)
        event = asyncio.Event()
        with in_thread(echo) as url:
            _, _, answer = await self.pool()(b'POST', url, headers=length(self.SIZE), body=body)
            async with self.ticking():
                event.set()
                self.assertEqual(len(await buffered(answer)), self.SIZE)
        self.assertGreaterEqual(self.ticks, self.SIZE // 2**20)


class TurnTest(TestCase):
    """A wait for the network is over in the turn of the loop in which its event comes."""

    async def test_task_goes_on_in_the_very_turn_in_which_its_response_arrives(self):
        def add_reader(number, callback, *args):
            return Loop.add_reader(self.loop, number, lambda: (
                callback(*args), are_done.append(task.done())))
        server, request, are_done = self.serve(OK), self.pool(), []
        variable = contextvars.ContextVar('of the test')

        async def fetched():
            variable.set('mine')
            code = (await request(b'GET', server.url))[0]
            return code, variable.get(), asyncio.current_task() is task
        with mock.patch.object(self.loop, 'add_reader', add_reader):
            task = self.loop.create_task(fetched())
            self.assertEqual(await task, (b'200', 'mine', True))
        self.assertIn(True, are_done)

    async def test_context_of_a_task_is_its_own_after_it_even_if_it_was_empty(self):
        server, request = self.serve(OK), self.pool()
        variable = contextvars.ContextVar('of the test')

        async def fetched():
            await request(b'GET', server.url)
            variable.set('mine')
            await asyncio.sleep(0)
            return variable.get('lost')
        task = contextvars.Context().run(self.loop.create_task, fetched())
        self.assertEqual(await task, 'mine')


# ---- Request body ----


async def forever():
    await asyncio.Event().wait()


async def failing():
    raise KeyError('mine')


class ExchangeTest(SteppedTest):
    """One whose body waits for self.event at each step that is self.pause."""

    def uploading(self, *args, **kwargs):
        self.event = asyncio.Event()
        return super().uploading(*args, **kwargs)

    async def pause(self):
        await self.event.wait()

    def rows(self, *columns):
        """Each combination, plain and over TLS."""
        for row in itertools.product((None, server_context()), *columns):
            with self.subTest(row='%.200r' % (row,)):
                yield row

    async def driven(self, early, *steps, **kwargs):
        """The peer, and the task that runs the body: that of the request, or the response's."""
        if not early:
            return reversed(await self.begin(*steps, **kwargs))
        peer, body = await self.begun(*steps, **kwargs)
        return peer, self.spawn(buffered(body))

    async def concludes(self, task, peer, *dialogue, result=(b'200', b'ok')):
        """The peer sends, expects, sends and so on; then the request has returned a result."""
        whole = self.spawn(self.whole(task))
        for number, data in enumerate(dialogue):
            await (peer.expect(data) if number % 2 else peer.send(data))
        self.assertEqual(await whole, result)

    async def stops(self, task, peer, *dialogue, result=(b'413', b'big'), note='CancelledError',
                    sent=b''):
        """The last word of a dialogue stops the body, and no more is sent than what was before."""
        await self.concludes(task, peer, *(dialogue or (REFUSAL,)), result=result)
        self.assertEqual(self.notes, [note, 'closed'])
        if peer.is_open() and sent is not None:
            self.assertEqual(await self.closed(peer), sent)


class RequestBodyTest(ExchangeTest):

    async def sent(self, body, size, args=(), **kwargs):
        """What a server gets of a body that it answers to."""
        server = self.serve(OK)
        await fetch(self.pool(), b'PUT', server.url, headers=length(size), body=body,
                    body_args=args, **kwargs)
        return server.requests[0].split(b'\r\n\r\n', 1)[1]

    async def test_body_may_change_and_resize_what_it_has_yielded(self):
        async def body(size):
            data = bytearray(b'a' * size)
            yield data
            data[:] = b'b' * size
            yield data
            data.clear()
            data.extend(b'c' * size)
            yield memoryview(data)
            data.clear()
        for size in (1, 65535, 65536, 10**7):
            self.assertTrue(await self.sent(body, 3 * size, (size,)) ==
                            b'a' * size + b'b' * size + b'c' * size)

    async def test_body_gets_its_arguments(self):
        async def body(*args, **kwargs):
            yield repr((args, kwargs)).encode()
        for kwargs in ({'b': 2}, (('b', 2),)):
            self.assertEqual(await self.sent(body, 16, iter((1,)), body_kwargs=kwargs),
                             b"((1,), {'b': 2})")

    async def test_body_may_be_any_asynchronous_iterable(self):
        """Here one without a coroutine."""
        class Body:
            def __init__(self, chunks, end):
                self.chunks, self.end = [*chunks], end

            def __aiter__(self):
                return self

            def __anext__(self):
                if not self.chunks:
                    raise self.end
                future = asyncio.get_running_loop().create_future()
                future.set_result(self.chunks.pop(0))
                return future
        for chunks in ((), (b'a',), (b'a', b'b')):
            self.assertEqual(await self.sent(Body, len(chunks), (chunks, StopAsyncIteration)),
                             b''.join(chunks))
            await self.fails(HttpConnectionError, self.sent(Body, 9, (chunks, KeyError('mine'))),
                             'mine', KeyError)

    async def test_what_the_call_of_a_body_raises_or_returns_may_be_wrong(self):
        def body():
            raise FileNotFoundError('gone')
        await self.fails(HttpConnectionError, self.sent(body, 3), cause=FileNotFoundError)
        for wrong in (lambda unknown: None, lambda: b'abc', lambda: None, lambda: iter((b'abc',))):
            await self.fails(HttpInvalidRequest, self.sent(wrong, 3), cause=TypeError)

    async def test_head_and_first_chunk_leave_together_on_any_connection(self):
        """Also after a response that came before the end of its request."""
        async def answer(peer):
            await peer.send(OK)
            answered.set()

        async def body():
            yield b'abc'
            await answered.wait()
            await self.turns()

        class CountingSocket(socket.socket):
            def send(self, data):
                sizes.append(len(data))
                return super().send(data)
        sizes, answered = [], asyncio.Event()
        server = self.serve(answer)
        request = self.pool(get_sock=sockets(CountingSocket))
        for each in (body, streamed(b'abc')):
            await fetch(request, b'PUT', server.url, headers=length(3), body=each)
        self.assertEqual((len(server.peers), sizes), (1, [len(server.requests[0])] * 2))

    async def test_body_that_waits_does_not_hold_the_head_back(self):
        task, peer = await self.begin(self.pause, CHUNK + LAST_CHUNK)
        self.event.set()
        await self.concludes(task, peer, b'', CHUNK + LAST_CHUNK, OK)

    async def test_body_that_yields_nothing_without_a_pause_does_not_hold_the_head_back(self):
        async def body():
            while not begun:
                yield b''
            yield LAST_CHUNK
        begun = []
        task, peer = await self.begin(body=body)
        begun.append(True)
        await self.concludes(task, peer, b'', LAST_CHUNK, OK)

    async def test_large_chunk_is_not_copied_to_join_the_head(self):
        async def script(peer):
            await peer.read_until(b'\r\n\r\n')
            await take(peer, len(data))
            await peer.send(OK)
        data, server = bytes(10**7), self.serve(script=script)
        tracemalloc.start()
        try:
            await fetch(self.pool(), b'POST', server.url, body=streamed(data),
                        headers=length(len(data)))
            self.assertLess(tracemalloc.get_traced_memory()[1], 3 * 10**6)
        finally:
            tracemalloc.stop()

    async def test_what_the_socket_does_not_take_at_once_is_sent_while_the_body_waits(self):
        for tls in self.plain_and_tls():
            task, peer = await self.begin(
                bytes(LARGE), self.pause, b'.', headers=length(LARGE + 1), tls=tls)
            await peer.read(LARGE)
            self.event.set()
            await self.concludes(task, peer, b'', b'.', OK)

    async def test_exception_of_the_body_at_any_chunk_is_the_cause(self):
        async def body(number, waits):
            try:
                for _ in range(number):
                    yield bytes(30000)
                    await self.turns(waits)
                raise KeyError('mine')
            finally:
                self.notes.append(number)

        async def script(peer):
            await (peer.ended() if peer is server.peers[0] else peer.request())
            await peer.send(OK)
        kinds = set()
        for tls, number, waits in self.rows(range(5), (0, 1)):
            server = self.serve(script=script, tls=tls)
            with self.assertRaisesRegex(HttpError, 'mine') as raised:
                await self.uploading(server, number, waits, headers=length(200000), body=body)
            self.assertIsInstance(raised.exception.__cause__, KeyError)
            self.assertEqual(self.notes, [number])
            while not server.peers:
                await asyncio.sleep(0)
            await gone(server.peers[0])
            kinds.add((type(raised.exception), bool(server.peers[0].received)))
            self.assertEqual((await fetch(self.request, b'GET', server.url))[2], b'ok')
        self.assertEqual(kinds, {(HttpConnectionError, False), (HttpDataError, True)})

    async def test_other_exceptions_of_the_body_pass_through(self):
        """Out of the request, and out of the reading of the response."""
        class Stop(BaseException):
            pass

        async def stops():
            await self.pause()
            raise Stop
        for early in (False, True):
            peer, task = await self.driven(early, CHUNK, stops)
            self.event.set()
            with self.assertRaises(Stop):
                await task
            self.assertEqual((await self.closed(peer), self.notes), (CHUNK, ['Stop', 'closed']))

    async def test_buffer_of_the_caller_is_free_when_its_body_is_closed(self):
        async def body():
            try:
                yield buffer
            finally:
                buffer.clear()
        buffer = bytearray(LARGE)
        task, peer = await self.begin(headers=length(LARGE), body=body)
        await self.concludes(task, peer, REFUSAL, result=(b'413', b'big'))
        self.assertEqual(buffer, b'')


@types.coroutine
def closed_when(coroutine, is_time):
    """Run a coroutine, and close it as soon as it is time."""
    while not is_time():
        future = coroutine.send(None)
        yield  # And not the future, so that there is another turn soon
        if future is not None:
            while not future.done() and not is_time():
                yield
    coroutine.close()


class CallersBodyTest(ExchangeTest):
    """What the body of the caller does inside works as it does in a task."""

    VARIABLE = contextvars.ContextVar('VARIABLE')

    def snippets(self):
        """What is awaited, and proves what comes of it."""
        async def futures_that_are_done_now_or_later():
            future = self.loop.create_future()
            future.set_result('done')
            self.assertEqual(await future, 'done')
            self.assertEqual(await asyncio.gather(future, asyncio.sleep(0.01, 1)), ['done', 1])
            self.assertEqual(await asyncio.wait_for(asyncio.sleep(0, 2), 60), 2)

        async def futures_that_fail():
            future, task = self.loop.create_future(), self.loop.create_task(forever())
            self.loop.call_soon(future.set_exception, KeyError('set'))
            await self.fails(KeyError, future, 'set')
            self.loop.call_soon(task.cancel)
            await self.fails(asyncio.CancelledError, task)

        async def bare_yields():
            await self.turns(30)

        async def timeouts():
            await self.fails(asyncio.TimeoutError, asyncio.wait_for(forever(), 0.01))
            with self.assertRaises(asyncio.TimeoutError), timeout(self.loop, 0.01):
                await forever()

        async def current_task_and_variable():
            await asyncio.sleep(0)
            self.assertEqual((asyncio.current_task(), self.VARIABLE.get()), (self.driver, 'mine'))

        @types.coroutine
        def odd():
            yield 'odd'

        async def what_can_not_be_awaited():
            with contextlib.closing(asyncio.new_event_loop()) as other:
                await self.fails(RuntimeError, other.create_future(), 'loop')
            await self.fails(RuntimeError, odd(), 'odd')
            await self.fails(RuntimeError, asyncio.current_task())

        async def timeouts_and_groups_of_asyncio():
            with self.assertRaises(asyncio.TimeoutError):
                async with asyncio.timeout(0.01):
                    await forever()
            async with asyncio.TaskGroup() as group:
                task = group.create_task(asyncio.sleep(0, 42))
            self.assertEqual((task.result(), asyncio.current_task().cancelling()), (42, 0))
            with self.assertRaises(BaseExceptionGroup) as raised:  # noqa: F821
                async with asyncio.TaskGroup() as group:
                    group.create_task(forever())
                    group.create_task(failing())
            self.assertEqual(len(raised.exception.exceptions), 1)
            if sys.version_info < (3, 13):
                asyncio.current_task().uncancel()  # It doesn't
            self.assertEqual(asyncio.current_task().cancelling(), 0)
        return (futures_that_are_done_now_or_later, futures_that_fail, bare_yields, timeouts,
                current_task_and_variable, what_can_not_be_awaited,
                *((timeouts_and_groups_of_asyncio,) if sys.version_info >= (3, 11) else ()))

    async def test_it_works_while_the_request_is_sent_and_while_the_response_is_read(self):
        async def fetched(server, *steps):
            self.VARIABLE.set('mine')
            self.driver = asyncio.current_task()
            self.event = asyncio.Event()
            _, _, answer = await self.pool()(
                b'POST', server.url, headers=length(2), body=self.body, body_args=steps)
            self.event.set()
            return await buffered(answer)
        for tls, (answer, wait, rest), snippet in self.rows(
                ((CONTINUE, self.turns, OK), (HALF, self.pause, b'de')), self.snippets()):
            self.notes.clear()
            server = self.serve(tls=tls)
            task = self.spawn(fetched(server, b'a', wait, snippet, b'b'))
            peer = await server.accept()
            await peer.read_until(b'\r\n\r\n')
            await peer.send(answer)
            await peer.expect(b'ab')
            await peer.send(rest)
            await asyncio.wait({task})  # One that awaited itself can't be awaited
            task.result()
            self.assertEqual(self.notes, ['closed'])

    async def test_timeout_around_a_body_that_waits_ends_it(self):
        async def limited(awaited):
            with timeout(self.loop, 0.05):
                await awaited

        async def limited_by_asyncio(awaited):
            async with asyncio.timeout(0.05):
                await awaited
        limits = (limited, lambda awaited: asyncio.wait_for(awaited, 0.05),
                  *((limited_by_asyncio,) if sys.version_info >= (3, 11) else ()))
        for limit, early in itertools.product(limits, (False, True)):
            peer, task = await self.driven(early, CHUNK, forever, LAST_CHUNK)
            with self.assertRaises(asyncio.TimeoutError):
                await limit(task)
            self.assertEqual(self.notes, ['CancelledError', 'closed'])
            self.assertEqual(await self.closed(peer), CHUNK)

    @since_python_3_11
    async def test_refusal_reaches_a_body_that_has_caught_a_timeout_of_its_own(self):
        """Before, a cancellation isn't counted: it looks as if the body still cleaned up."""
        async def polls():
            for _ in range(3):
                with contextlib.suppress(asyncio.TimeoutError), timeout(self.loop, 0.01):
                    await forever()
            await forever()
        task, peer = await self.begin(CHUNK, polls, LAST_CHUNK)
        await peer.expect(CHUNK)
        await asyncio.sleep(0.1)
        await self.stops(task, peer)

    async def test_closed_coroutine_of_a_request_closes_the_body_and_the_connection(self):
        """Also where its finally waits: that is not carried out, and Python may say so."""
        async def body(size, waits_at_last):
            try:
                self.notes.append('begun')
                yield bytes(size)
                self.notes.append('waits')
                await forever()
            finally:
                self.notes.append('closed')
                if waits_at_last:
                    await forever()
                    self.notes.append('never')

        async def script(peer):
            await peer.read_until(b'\r\n\r\n')
            await peer.send(REFUSAL if note == 'closed' else b'')
            await peer.ended()
        for size, note, waits_at_last in ((1, 'waits', False), (1, 'waits', True),
                                          (1, 'closed', True), (200000, 'waits', False),
                                          (LARGE, 'begun', False)):
            with self.subTest(size=size, note=note, waits_at_last=waits_at_last):
                server = self.serve(script=script)
                self.notes.clear()
                with contextlib.suppress(*(RuntimeError, HttpDataError) if waits_at_last else ()):
                    await closed_when(self.pool()(
                        b'PUT', server.url, headers=length(LARGE), body=body,
                        body_args=(size, waits_at_last)), lambda note=note: note in self.notes)
                self.assertEqual(self.notes[-1], 'closed')
                await gone(await server.accept())


# ---- Exchange (RFC 9110 10.1.1, RFC 9112 9.3) ----


class ExpectContinueTest(ExchangeTest):

    HEADERS = (*length(3), EXPECT)

    async def expecting(self, *steps, tls=None):
        """The task of a request whose body is held back, and its peer."""
        task, peer = await self.begin(*(steps or (b'abc',)), headers=self.HEADERS, tls=tls)
        await self.has_no_more(peer)
        return task, peer

    async def has_no_more(self, peer):
        await self.turns(10)
        with self.assertRaises((BlockingIOError, ssl.SSLWantReadError)):
            peer.sock.recv(1)
        self.assertEqual(peer.unread, b'')

    async def test_body_is_sent_after_a_100_and_not_after_other_interim_responses(self):
        for tls, others in self.rows((b'', b'HTTP/1.1 103 Hints\r\n\r\n')):
            task, peer = await self.expecting(tls=tls)
            await peer.send(others)
            await self.has_no_more(peer)
            await self.concludes(task, peer, others + CONTINUE, b'abc', OK)

    async def test_body_is_not_sent_after_a_final_response(self):
        """Nor where it comes with a 100, unless it is a success; no other request follows it."""
        for tls, code in self.rows((b'101', b'200', b'202', b'206', b'303', b'417',
                                    b'100 A\r\n\r\nHTTP/1.1 417')):
            task, peer = await self.expecting(tls=tls)
            await self.concludes(task, peer, b'HTTP/1.1 %b A\r\ncontent-length: 0\r\n\r\n' % code,
                                 result=(code[-3:], b''))
            self.assertEqual(await self.closed(peer), b'')
            self.assertFalse(await self.reuses(peer))

    async def test_body_is_sent_after_a_100_that_comes_together_with_a_200(self):
        for tls, rest in self.rows((b'', b'ok')):
            await self.concludes(*await self.expecting(tls=tls), CONTINUE + OK[:-2] + rest,
                                 b'abc', b'ok'[len(rest):])

    async def test_body_that_was_let_go_is_sent_to_its_end_after_a_200(self):
        for first, rest in ((OK[:-1], b'k'), (OK, b'')):
            task, peer = await self.expecting(b'a', self.pause, b'bc')
            await peer.send(CONTINUE)
            await peer.expect(b'a')
            await peer.send(first)
            await self.turns(10)
            self.event.set()
            await self.concludes(task, peer, b'', b'bc', rest)

    async def test_body_that_was_let_go_is_stopped_by_a_417(self):
        await self.stops(*await self.expecting(b'a', forever, b'bc'), CONTINUE, b'a',
                         b'HTTP/1.1 417 No\r\ncontent-length: 0\r\n\r\n', result=(b'417', b''))

    async def test_body_is_sent_after_a_second_of_silence(self):
        task, peer = await self.expecting()
        start = time.monotonic()
        await peer.expect(b'abc')
        self.assertTrue(0.8 < time.monotonic() - start < 2)
        await self.concludes(task, peer, CONTINUE + OK)

    async def test_body_is_sent_at_once_after_a_100_in_tls_and_small_buffers(self):
        async def body():
            waited.append(time.monotonic() - start)
            yield b'abc'
        server, waited = self.serve(OK, tls=True), []
        request = self.pool(recv_bufsize=5)
        await fetch(request, b'GET', server.url)
        start = time.monotonic()
        await fetch(request, b'PUT', server.url, headers=self.HEADERS, body=body)
        self.assertLess(waited[0], 0.9)

    async def test_expect_without_a_body_waits_for_nothing(self):
        server = self.serve(script=closing(OK))
        await fetch(self.pool(), b'GET', server.url, headers=self.HEADERS[1:])

    async def test_close_instead_of_a_100_is_a_closed_error(self):
        task, peer = await self.expecting()
        peer.close()
        await self.fails(HttpConnectionClosedError, task)


class EarlyRefusalTest(ExchangeTest):
    """Codes of 300 and more, and a 101, stop sending at once, whatever the body waits for."""

    def ways_to_wait(self, future, inner):
        async def bare_yields():
            while True:
                await asyncio.sleep(0)

        async def inner_generator():
            yield await future

        async def nested():
            async for _ in inner_generator():
                pass

        async def long_finally():
            try:
                await future
            finally:
                await self.turns(20)
                await asyncio.sleep(0.02)

        async def in_timeout_and_group():
            async with asyncio.timeout(60), asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(60))
        return (
            lambda: future, lambda: asyncio.sleep(60), lambda: inner,
            lambda: asyncio.shield(inner), lambda: asyncio.gather(inner, future),
            lambda: asyncio.wait({inner}),
            lambda: asyncio.wait_for(asyncio.shield(future), 60), bare_yields, nested,
            long_finally, *((in_timeout_and_group,) if sys.version_info >= (3, 11) else ()))

    async def test_body_that_waits_is_cancelled_where_it_waits(self):
        future, event = self.loop.create_future(), asyncio.Event()
        inner = self.spawn(event.wait())
        for tls, way in self.rows(self.ways_to_wait(future, inner)):
            task, peer = await self.begin(CHUNK, way, LAST_CHUNK, tls=tls)
            await peer.expect(CHUNK)
            await self.turns(5)
            await self.stops(task, peer)
            self.assertEqual((future.done(), inner.done()), (False, False))
        future.set_result(None)
        event.set()
        await self.turns()

    async def test_body_is_cancelled_before_it_has_yielded_anything(self):
        for tls in self.plain_and_tls():
            await self.stops(*await self.begin(forever, LAST_CHUNK, tls=tls))

    async def test_codes_that_stop_sending(self):
        for code in (b'101', b'300', b'302', b'304', b'399', b'400', b'401', b'413', b'499',
                     b'500', b'503', b'599', b'600', b'999'):
            with self.subTest(code=code):
                body = b'' if code in (b'101', b'304') else b'ok'
                task, peer = await self.begin(CHUNK, forever, LAST_CHUNK)
                await self.stops(
                    task, peer, b'HTTP/1.1 %b A\r\ncontent-length: 2\r\n\r\n%b' % (code, body),
                    result=(code, body), sent=CHUNK)
                self.assertFalse(await self.reuses(peer))

    async def test_sending_stops_though_the_rest_of_the_response_is_to_come(self):
        for tls, (field, first, rest) in self.rows((
                (b'content-length: 3', b'b', b'ig'), (b'a: b', b'b', b'ig'),
                (b'transfer-encoding: chunked', b'1\r\nb\r\n', b'2\r\nig\r\n' + LAST_CHUNK))):
            task, peer = await self.begin(b'a', forever, b'b', headers=length(9), tls=tls)
            await peer.send(b'HTTP/1.1 500 A\r\n%b\r\n\r\n%b' % (field, first))
            code, _, body = await task
            self.assertEqual(self.notes, ['CancelledError', 'closed'])
            self.assertEqual(await body.__anext__(), b'b')
            await peer.send(rest)
            if field == b'a: b':
                end_tls(peer)
            self.assertEqual((code, await buffered(body)), (b'500', b'ig'))
            if peer.is_open():
                self.assertEqual(await self.closed(peer), b'a')

    async def test_body_that_is_being_sent_is_closed_at_its_yield(self):
        """Whatever the server does then; and nothing more leaves."""
        for tls, (act, taken), (headers, start) in self.rows(
                ((Peer.is_open, 0), (lambda peer: peer.sock.shutdown(socket.SHUT_RD), 0),
                 (Peer.close, LARGE // 10), (Peer.reset, 0)),
                ((length(LARGE), b''), (IN_CHUNKS, b'%x\r\n' % LARGE))):
            task, peer = await self.begin(start + bytes(LARGE), headers=headers, tls=tls)
            await peer.send(REFUSAL)
            await take(peer, taken)
            act(peer)
            await self.stops(task, peer, b'', note='GeneratorExit', sent=None)
            if peer.is_open():
                await self.closed(peer)
            self.assertLess(len(peer.received), LARGE)
            self.assertFalse(await self.reuses(peer))

    async def test_body_that_yields_steadily_is_stopped(self):
        """With or without pauses, and whatever came before: responses, tickets of a session."""
        async def body(seconds):
            nonlocal sent
            try:
                while sent < 10**8:
                    sent += 100
                    if seconds is not None:
                        await asyncio.sleep(seconds)
                    yield bytes(100)
            finally:
                self.notes.append('closed')
        for tls, seconds in self.rows((None, 0, 0.001)):
            sent, server = 0, self.serve(tls=tls)
            task = self.uploading(server, seconds, headers=length(10**8), body=body)
            peer = await server.accept()
            await peer.send(b'HTTP/1.1 103 Early Hints\r\n\r\n')
            await peer.read_until(b'\r\n\r\n')
            await peer.read(5000)  # By then what came before has been looked at
            await self.concludes(task, peer, REFUSAL, result=(b'413', b'big'))
            self.assertLess(sent, 10**7)
            self.assertEqual(self.notes, ['closed'])

    async def test_refusal_after_interim_responses_and_an_earlier_wait(self):
        task, peer = await self.begin(CHUNK, self.pause, CHUNK, forever, LAST_CHUNK)
        await peer.send(b'HTTP/1.1 103 A\r\n\r\nHTTP/1.1 102 A\r\n\r\n')
        await self.turns(5)
        self.assertFalse(task.done())
        self.event.set()
        await peer.expect(CHUNK * 2)
        await peer.send(REFUSAL[:20])
        await self.turns(5)
        self.assertFalse(task.done())
        await self.stops(task, peer, REFUSAL[20:])

    async def test_nothing_leaves_of_a_body_that_takes_no_notice_of_its_cancellation(self):
        async def stubborn(turns):
            with contextlib.suppress(asyncio.CancelledError):
                await forever()
            await self.turns(turns)
        for turns, after in itertools.product((0, 3), ((), (LAST_CHUNK,))):
            with self.subTest(turns=turns, after=after):
                task, peer = await self.begin(CHUNK, functools.partial(stubborn, turns), *after)
                await self.concludes(task, peer, REFUSAL, result=(b'413', b'big'))
                self.assertEqual(self.notes, ['GeneratorExit', 'closed'] if after else ['closed'])
                self.assertEqual(await self.closed(peer), CHUNK)

    async def test_exception_of_a_body_that_is_closed_at_its_yield_is_told(self):
        async def body():
            try:
                while True:
                    yield await asyncio.sleep(0, CHUNK)
            finally:
                raise KeyError('mine')
        task, peer = await self.begin(body=body)
        await peer.send(REFUSAL)
        await self.fails(HttpDataError, task, 'closed', cause=KeyError)
        await self.closed(peer)

    async def test_exception_of_a_body_that_is_stopped_is_told_or_the_response_returned(self):
        async def fails_at_last():
            try:
                await forever()
            finally:
                raise KeyError('mine')
        task, peer = await self.begin(CHUNK, fails_at_last, LAST_CHUNK)
        try:
            await self.concludes(task, peer, REFUSAL, result=(b'413', b'big'))
        except HttpDataError as exception:
            self.assertIsInstance(exception.__cause__, KeyError)
        self.assertEqual(self.notes, ['KeyError', 'closed'])
        self.assertEqual(await self.closed(peer), CHUNK)

    async def test_whole_refusal_is_returned_though_a_reset_follows(self):
        task, peer = await self.begin(CHUNK, forever, LAST_CHUNK)
        await peer.send(REFUSAL)
        peer.reset()
        await self.stops(task, peer, b'')

    async def test_end_of_the_connection_without_a_response_ends_the_wait(self):
        for end, steps in itertools.product(
                (Peer.close, Peer.reset), ((CHUNK, forever), (b'%x\r\n' % 10**8, bytes(10**8)))):
            with self.subTest(end=end, steps=steps[:1]):
                task, peer = await self.begin(*steps)
                await peer.expect(steps[0])
                end(peer)
                await self.fails(HttpConnectionClosedError, task)
                self.assertEqual(self.notes[-1:], ['closed'])

    async def test_loop_rests_while_the_rest_of_a_refusal_is_awaited(self):
        task, peer = await self.begin(bytes(LARGE), headers=length(10**8))
        await self.turns(10)  # The kernel is full
        await peer.send(REFUSAL[:-3])
        _, _, body = await task
        with contextlib.suppress(asyncio.TimeoutError):  # Until there is room to send more
            while True:
                await asyncio.wait_for(peer.receive(), 0.05)
        reading = self.spawn(buffered(body))
        start = time.process_time()
        await asyncio.sleep(0.2)
        self.assertLess(time.process_time() - start, 0.1)
        await peer.send(b'big')
        self.assertEqual(await reading, b'big')


class EarlySuccessTest(ExchangeTest):
    """Other codes than those let the request go on to its end."""

    async def test_request_goes_on_while_the_response_is_read(self):
        codes = (b'200', b'201', b'202', b'203', b'206', b'207', b'226', b'299')
        for code, tls in ((b'200', True), *((code, None) for code in codes)):
            with self.subTest(code=code, tls=tls):
                task, peer = await self.begin(CHUNK, self.pause, CHUNK, LAST_CHUNK, tls=tls)
                await peer.send(HALF.replace(b'200', code))
                got, _, body = await task
                self.assertEqual((got, await body.__anext__()), (code, b'abc'))
                self.assertEqual(self.notes, [])
                reading = self.spawn(buffered(body))
                await peer.expect(CHUNK)
                self.event.set()
                await peer.expect(CHUNK + LAST_CHUNK)
                await peer.send(b'de')
                self.assertEqual((await reading, self.notes), (b'de', ['closed']))
                self.assertTrue(await self.reuses(peer))

    async def test_end_of_a_response_without_length_ends_sending(self):
        """Over TLS its close_notify does, with the connection open."""
        for tls in self.plain_and_tls():
            task, peer = await self.begin(CHUNK, forever, tls=tls)
            await peer.send(HEAD + b'\r\nabc')
            _, _, body = await task
            reading = self.spawn(buffered(body))
            await peer.expect(CHUNK)
            await self.turns()
            with contextlib.suppress(ssl.SSLWantReadError):
                peer.sock.unwrap() if tls else peer.sock.shutdown(socket.SHUT_WR)
            self.assertEqual((await reading, self.notes), (b'abc', ['CancelledError', 'closed']))

    async def test_reading_ends_and_the_connection_is_reused_once_the_request_has_ended(self):
        for tls, (head, rest) in self.rows((
                (HALF, b'de'), (CHUNKED + b'3\r\nabc\r\n', b'2\r\nde\r\n0\r\n\r\n'))):
            task, peer = await self.begin(CHUNK, self.pause, LAST_CHUNK, tls=tls)
            await peer.send(head)
            _, _, body = await task
            await peer.send(rest)
            received = b''
            while len(received) < 5:
                received += await body.__anext__()
            reading = self.spawn(buffered(body))
            await self.turns(10)
            self.assertFalse(reading.done())
            self.assertFalse(await self.reuses(peer))
            self.event.set()
            self.assertEqual((received, await reading), (b'abcde', b''))
            await peer.expect(CHUNK + LAST_CHUNK)
            self.assertTrue(await self.reuses(peer))

    async def goes_on(self, answer, result, **kwargs):
        """The peer, whose whole response must be returned once the rest of the request is sent."""
        task, peer = await self.begin(CHUNK, self.pause, LAST_CHUNK, **kwargs)
        await peer.send(answer)
        await peer.expect(CHUNK)
        await self.turns(10)
        self.assertEqual((task.done(), self.notes), (False, []))
        self.event.set()
        await self.concludes(task, peer, b'', LAST_CHUNK, result=result)
        self.assertEqual(self.notes, ['closed'])
        return peer

    async def test_whole_response_is_returned_once_the_request_is_sent(self):
        for tls, (answer, code, content, method) in self.rows((
                (OK, b'200', b'ok', b'POST'), (CHUNKED + chunked(b'ok'), b'200', b'ok', b'POST'),
                (b'HTTP/1.1 204 A\r\n\r\n', b'204', b'', b'POST'), (OK[:-2], b'200', b'', b'HEAD'),
                (CONTINUE + response(b'ok', status=b'202 A'), b'202', b'ok', b'POST'),
                (b'HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok',
                 b'200', b'ok', b'POST'))):
            peer = await self.goes_on(answer, (code, content), method=method, tls=tls)
            self.assertTrue(await self.reuses(peer))

    async def test_connection_that_is_kept_for_no_time_does_not_end_sending(self):
        for kwargs, field in (({'keep_alive_timeout': 0}, b'a: b'),
                              ({}, b'keep-alive: timeout=1')):
            peer = await self.goes_on(response(b'ok', field), (b'200', b'ok'), **kwargs)
            self.assertFalse(await self.reuses(peer), field)

    ENDS = (
        (response(b'ok', b'connection: close'), Peer.is_open),
        (response(b'ok', b'Connection: a, Close'), Peer.is_open),
        (CHUNKED[:-2] + b'connection: close\r\n\r\n' + chunked(b'o', b'k'), Peer.is_open),
        (OK.replace(b'1.1', b'1.0'), Peer.is_open),
        (OK + b'x', Peer.is_open),
        (OK + OK, Peer.is_open),
        (CHUNKED + chunked(b'o', b'k') + b'\0', Peer.is_open),
        (OK, end_tls),
        (CHUNKED + chunked(b'o', b'k'), end_tls),
        (HEAD + b'\r\nok', end_tls),
        (OK, Peer.reset),
    )

    async def test_whole_response_after_which_nothing_can_follow_ends_sending(self):
        """Also where its end comes while the body is read."""
        for tls, (answer, end), is_read in self.rows(self.ENDS, (False, True)):
            if tls and end == Peer.reset:
                continue
            task, peer = await self.begin(CHUNK, forever, CHUNK, tls=tls)
            await peer.expect(CHUNK)
            size = answer.index(b'\r\n\r\n') + 4 + (4 if b'chunked' in answer else 1)
            whole = self.spawn(self.whole(task))
            if is_read:
                await peer.send(answer[:size])
                await asyncio.wait({task})
                await self.turns(5)
                self.assertEqual(self.notes, [])
            await peer.send(answer[size:] if is_read else answer)
            end(peer)
            self.assertEqual(await whole, (b'200', b'ok'))
            self.assertEqual(self.notes, ['CancelledError', 'closed'])
            if peer.is_open():
                self.assertEqual(await self.closed(peer), b'')

    async def test_byte_or_end_that_comes_later_ends_sending_too(self):
        for tls, ends in self.rows((False, True)):
            task, peer = await self.begin(CHUNK, forever, CHUNK, tls=tls)
            await peer.send(OK)
            await peer.expect(CHUNK)
            await self.turns(5)
            self.assertFalse(task.done())
            end_tls(peer) if ends else await peer.send(b'x')
            self.assertEqual(await self.whole(task), (b'200', b'ok'))
            self.assertEqual(self.notes, ['CancelledError', 'closed'])

    async def test_all_of_a_large_body_arrives_after_a_whole_200(self):
        for tls in self.plain_and_tls():
            task, peer = await self.begin(
                *[bytes(30000)] * 100, headers=length(3000000), tls=tls)
            await peer.send(OK)
            self.assertEqual(await take(peer, 3000000), 3000000)
            await self.concludes(task, peer)
            self.assertEqual(self.notes, ['closed'])
            self.assertTrue(await self.reuses(peer))

    async def test_response_is_read_while_the_body_yields_without_a_pause(self):
        async def body():
            yield CHUNK
            await self.pause()
            while not chunks:
                yield b''
            yield LAST_CHUNK
        chunks = []
        peer, answer = await self.begun(body=body)
        self.assertEqual(await answer.__anext__(), b'abc')
        self.event.set()
        await peer.send(b'de')
        chunks.append(await answer.__anext__())
        self.assertEqual((chunks, await buffered(answer)), ([b'de'], b''))


class EarlyEchoTest(ExchangeTest):
    """Both directions at once; with more than the kernel holds, see AiohttpTest."""

    async def test_each_side_may_wait_for_the_last_word_of_the_other(self):
        async def script(peer):
            await peer.read_until(b'\r\n\r\n')
            await peer.send(CHUNKED)
            for chunk in (*[CHUNK] * 50, LAST_CHUNK):
                await peer.expect(chunk)
                await peer.send(chunk)

        async def body(said):
            for _ in range(50):
                yield CHUNK
                self.notes.append(await said.get())
            yield LAST_CHUNK
        for tls in self.plain_and_tls():
            said, server = asyncio.Queue(), self.serve(script=script, tls=tls)
            _, _, answer = await self.uploading(server, said, body=body)
            async for chunk in answer:
                said.put_nowait(chunk)
            self.assertEqual(self.notes, [b'a'] * 50)

    async def test_slow_reader_of_the_response_holds_both_sides_back(self):
        async def body():
            nonlocal pulled
            while pulled < size:
                pulled += 65536
                yield bytes(65536)

        async def script(peer):
            nonlocal sent
            await peer.read_until(b'\r\n\r\n')
            await peer.send(HEAD + b'content-length: %d\r\n\r\n' % size + peer.unread)
            data = peer.unread
            while data:
                sent += len(data)
                peer.received.clear()
                data = await peer.receive(65536)
                await peer.send(data)
        pulled, sent, received, size = 0, 0, 0, 1600 * 65536
        _, _, answer = await self.uploading(
            small_buffers(self.serve(script=script)), headers=length(size), body=body,
            get_sock=sockets(send_buffer=65536, receive_buffer=65536))
        for _ in range(20):
            await asyncio.sleep(0.02)
            self.assertLess(sent - received, 2**20)
            self.assertLess(pulled - received, 2**21)
            received += len(await answer.__anext__())
        before = pulled
        await asyncio.sleep(0.05)
        self.assertEqual(pulled, before)  # It is run by whoever reads
        await answer.aclose()


class EarlyFaultTest(ExchangeTest):
    """What goes wrong with the rest of a request whose response has begun."""

    @staticmethod
    async def is_cancelled():
        raise asyncio.TimeoutError('mine')

    FAULTS = (  # Headers, what is yielded before and after the response has begun, words, cause
        (length(9), b'a', (failing, b'b'), 'mine', KeyError),
        (length(9), b'a', (is_cancelled.__func__, b'b'), 'mine', asyncio.TimeoutError),
        (length(2), b'a', (b'bc',), 'more bytes than content-length says', ValueError),
        (length(2), b'ab', (b'GET /',), 'more bytes than content-length says', ValueError),
        (length(5), b'a', (), 'ended', ValueError),
        (IN_CHUNKS, CHUNK, (GET,), 'chunked body', ValueError),
        (IN_CHUNKS, CHUNK, (b'1\r\nab',), 'chunked body', ValueError),
        (IN_CHUNKS, b'5\r\nabc', (), 'last chunk', ValueError),
        (IN_CHUNKS, CHUNK + LAST_CHUNK, (GET,), 'last chunk', ValueError),
        (length(5), b'a', ('b',), 'the body of the request', TypeError),
    )

    async def test_fault_is_raised_by_reading_or_by_request_if_the_whole_response_was_there(self):
        for tls, (headers, good, bad, words, cause), early in self.rows(self.FAULTS, (HALF, OK)):
            task, peer = await self.begin(good, self.pause, *bad, headers=headers, tls=tls)
            await peer.expect(good)
            await peer.send(early)
            if early is HALF:
                _, _, body = await task
                self.assertEqual(await body.__anext__(), b'abc')
                task = body.__anext__()
            else:
                await self.turns(10)
            self.event.set()
            await self.fails(HttpDataError, task, words, cause)
            self.assertEqual(self.notes[-1], 'closed')
            self.assertEqual(await self.closed(peer), b'')
            self.assertFalse(await self.reuses(peer))

    async def test_no_more_of_the_response_is_waited_for_after_a_fault(self):
        _, body = await self.begun(b'a', self.pause, headers=length(5), socket_timeout=60)
        reading = self.spawn(buffered(body))
        await self.turns(5)
        self.event.set()
        await self.fails(HttpDataError, reading, 'ended', ValueError)
        await self.fails(HttpDataError, buffered(body), 'ended')

    async def test_server_that_takes_no_more_is_given_up(self):
        for tls, early in self.rows((HALF, OK)):
            task, peer = await self.begin(
                bytes(LARGE), headers=length(LARGE), tls=tls, socket_timeout=0.2)
            await peer.send(early)
            start = time.monotonic()
            failing = task if early is OK else buffered((await task)[2])
            await self.fails(HttpDataError, failing, 'socket_timeout', asyncio.TimeoutError)
            self.assertTrue(0.1 < time.monotonic() - start < 1)
            self.assertEqual(self.notes, ['GeneratorExit', 'closed'])

    async def test_end_of_the_connection_is_a_closed_error_unless_the_response_is_whole(self):
        for tls, steps, end, early in self.rows(
                ((CHUNK, forever), (b'%x\r\n' % LARGE, bytes(LARGE))),
                (Peer.reset, Peer.close), (HALF, OK)):
            if not (tls and early is OK):
                task, peer = await self.begin(*steps, tls=tls)
                await peer.send(early)
                got = self.spawn(self.whole(task))
                await self.turns(8)
                end(peer)
                if early is OK:
                    self.assertEqual(await got, (b'200', b'ok'))
                else:
                    await self.fails(HttpConnectionClosedError, got)
                self.assertEqual(self.notes[-1], 'closed')

    async def test_response_that_is_bad_from_its_start_closes_the_callers_generator(self):
        task, peer = await self.begin(CHUNK, forever, LAST_CHUNK)
        await peer.send(CHUNKED + b'x')
        await self.fails(HttpInvalidResponse, self.whole(task))
        self.assertEqual(self.notes, ['CancelledError', 'closed'])


class EarlyLeaveTest(ExchangeTest):
    """Responses that are closed, dropped or cancelled while their requests are being sent."""

    async def test_aclose_ends_sending_and_closes_the_callers_generator(self):
        for tls, (step, note), reads in self.rows(
                ((forever, 'CancelledError'), (bytes(LARGE), 'GeneratorExit')), (False, True)):
            peer, body = await self.begun(b'a', step, headers=length(LARGE + 1), tls=tls)
            if reads:
                await body.__anext__()
            await body.aclose()
            self.assertEqual(self.notes, [note, 'closed'])
            await self.closed(peer)
            self.assertLess(len(peer.received), LARGE)
            await body.aclose()

    async def test_dropped_response_closes_the_socket(self):
        async def body(step):
            try:
                yield b'a'
                if callable(step):
                    await step()
                yield step
            finally:
                self.notes.append('closed')
        for tls, step, reads in self.rows(
                (forever, lambda: asyncio.sleep(60), bytes(LARGE)), (False, True)):
            peer, answer = await self.begun(step, headers=length(LARGE + 1), tls=tls, body=body)
            if reads:
                await answer.__anext__()
            del answer
            gc.collect()
            await self.closed(peer)
            gc.collect()
            self.assertLess(len(peer.received), LARGE)
            self.assertEqual(self.notes, ['closed'])

    async def test_response_is_read_in_another_task_than_the_one_that_asked(self):
        async def note():
            await self.pause()
            await asyncio.sleep(0)
            self.notes.append(asyncio.current_task())
        for tls in self.plain_and_tls():
            peer, reading = await self.driven(True, CHUNK, note, LAST_CHUNK, tls=tls)
            await self.turns(3)
            self.event.set()
            await peer.expect(CHUNK + LAST_CHUNK)
            await peer.send(b'de')
            self.assertEqual(await reading, b'abcde')
            self.assertEqual(self.notes, [reading, 'closed'])

    async def test_cancellation_reaches_what_the_body_waits_for(self):
        """Of the request, and of the reading."""
        for tls, early in self.rows((False, True)):
            future = self.loop.create_future()
            peer, task = await self.driven(
                early, CHUNK, lambda future=future: future, LAST_CHUNK, tls=tls)
            await peer.expect(CHUNK)
            await self.turns(5)
            await cancel(task)
            self.assertTrue(future.cancelled())
            self.assertEqual(self.notes, ['CancelledError', 'closed'])
            self.assertEqual(await self.closed(peer), b'')

    @since_python_3_11
    async def test_cancellation_is_not_lost_in_more_of_a_response(self):
        """That comes while what the body awaits cleans up: its reader may never come back."""
        async def inner():
            try:
                await forever()
            finally:
                await self.pause()
        for early, later in ((False, HALF), (True, b'd')):
            inner_task = self.spawn(inner())
            peer, task = await self.driven(early, CHUNK, lambda inner_task=inner_task: inner_task)
            await peer.expect(CHUNK)
            await self.turns()
            task.cancel()
            await self.turns()
            await peer.send(later)
            await self.turns(10)
            self.assertFalse(task.done())
            self.event.set()
            with self.assertRaises(asyncio.CancelledError):
                await task
            self.assertEqual(self.notes, ['CancelledError', 'closed'])

    async def test_cancellation_is_not_lost_in_a_response(self):
        """Whichever comes first, and however many turns there are between them."""
        async def turns_late():
            try:
                await forever()
            finally:
                await self.turns(4)
        outcomes = set()
        for step, turns, cancels_first, early in itertools.product(
                (forever, turns_late), range(9), (False, True), (False, True)):
            with self.subTest(turns=turns, cancels_first=cancels_first, early=early):
                peer, task = await self.driven(early, CHUNK, step, LAST_CHUNK)
                await peer.expect(CHUNK)
                await self.turns(5)
                if cancels_first:
                    is_cancelled = task.cancel()
                    await self.turns(turns)
                with contextlib.suppress(ConnectionError):
                    await peer.send(b'dex' if early else REFUSAL)  # Sending is over
                if not cancels_first:
                    await self.turns(turns)
                    is_cancelled = task.cancel()
                await asyncio.wait({task})
                self.assertEqual((task.cancelled(), self.notes[0]),
                                 (is_cancelled, 'CancelledError'))
                outcomes.add(is_cancelled)
        self.assertEqual(outcomes, {False, True})


class LastWordTest(ExchangeTest):
    """What the server said last is what counts, whatever sending says."""

    BODIES = ({}, {'headers': length(3), 'body': streamed(b'abc')},
              {'headers': length(10**7), 'body': streamed(bytes(10**7))})

    def requiring_certificates(self):
        context = server_context(version=ssl.TLSVersion.TLSv1_3)
        authority().configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        return self.serve(OK, tls=context)

    async def alert_is_named(self, awaitable):
        with self.assertRaisesRegex(HttpError, '(?i)certificate.required'):
            await awaitable

    async def test_alert_that_a_certificate_is_required_is_named_each_time(self):
        server = self.requiring_certificates()
        for kwargs in self.BODIES * 10:
            await self.alert_is_named(fetch(self.pool(), b'POST', server.url, **kwargs))

    async def test_alert_is_named_while_the_body_waits(self):
        await self.alert_is_named(self.uploading(self.requiring_certificates(), CHUNK, forever))
        self.assertEqual(self.notes, ['CancelledError', 'closed'])

    async def test_alert_is_named_though_it_came_before_anything_was_sent(self):
        """The body waits until the server has closed, and then there is a reset."""
        async def body():
            while not server.peers or server.peers[0].is_open():
                await asyncio.sleep(0)
            yield b'abc'
        for _ in range(20):
            server = self.requiring_certificates()
            await self.alert_is_named(
                fetch(self.pool(), b'POST', server.url, headers=length(3), body=body))

    async def test_response_before_a_reset_counts_though_nothing_was_sent_yet(self):
        """The server has answered and reset the connection when the first byte is sent."""
        class TooLate(socket.socket):
            def send(self, data):
                if not answered:
                    answered.append(True)
                    sock = listener.accept()[0]
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
                    sock.sendall(REFUSAL)
                    sock.close()
                return super().send(data)
        with socket.create_server(('127.0.0.1', 0)) as listener:
            url = 'http://127.0.0.1:%d/' % listener.getsockname()[1]
            request = self.pool(get_sock=sockets(TooLate))
            for kwargs in self.BODIES:
                answered = []
                self.assertEqual(await self.whole(request(b'POST', url, **kwargs)),
                                 (b'413', b'big'))

    async def test_response_at_accept_before_a_reset_counts(self):
        """The caller's body has it come before anything is sent."""
        async def body():
            await self.turns()
            peer = await server.accept()
            await peer.send(REFUSAL)
            peer.reset()
            await self.turns()
            yield b'abc'
        server = self.serve()
        self.assertEqual(await self.whole(self.pool()(
            b'POST', server.url, headers=length(3), body=body)), (b'413', b'big'))


class CancellationTest(ExchangeTest):
    """Each kind of request is driven to its end, interrupted at its first suspension, at its
    second, and so on until there was none left to be interrupted, in each of the ways there are.
    """

    def setUp(self):
        super().setUp()
        self.part, self.doing, self.phases = 'request', '', set()

    async def body(self, *steps):
        self.notes.append('begun')
        try:
            for step in steps:
                self.doing = ': body waits'
                await (step() if callable(step) else self.turns(1))
                self.doing = ': body is sent'
                yield step
        finally:
            self.notes.append('ended')
            self.doing = ': body ends'
            await self.turns(1)
            self.doing = ''

    async def whole(self, awaitable):
        self.part, self.doing = 'request', ''
        _, _, body = await awaitable
        self.part = 'response'
        return await buffered(body)

    def at(self, number, coroutine, interrupt):
        """Interrupt a coroutine at a suspension, and remember what it was in the middle of."""
        def note_and_interrupt():
            self.phases.add(self.part + self.doing)
            self.is_reached = True
            return interrupt()
        self.is_reached = self.is_finished = False
        return self.finished(interrupted(coroutine, number, note_and_interrupt))

    async def finished(self, awaitable):
        await awaitable
        self.is_finished = True

    async def cancelled(self, *arguments):
        """Before what is waited for has come."""
        task, message = asyncio.current_task(), ('mine',) if sys.version_info >= (3, 9) else ()
        try:
            await self.at(*arguments, lambda: task.cancel(*message) and None)
        except asyncio.CancelledError as exception:
            self.assertEqual(exception.args, message)
            if hasattr(task, 'uncancel'):
                self.assertEqual(task.uncancel(), 0)

    async def thrown_into(self, *arguments):
        """In the turn of the loop in which what is waited for has come, and otherwise unseen."""
        mine = asyncio.CancelledError()
        try:
            await self.at(*arguments, lambda: mine)
        except asyncio.CancelledError as exception:
            self.assertIs(exception, mine)

    async def ended_by_timeout(self, *arguments):
        callbacks, handles = [], []

        def call_later(seconds, callback):
            callbacks.append(callback)
            return Loop.call_later(self.loop, seconds, callback)
        with contextlib.suppress(asyncio.TimeoutError), contextlib.ExitStack() as stack:
            with mock.patch.object(self.loop, 'call_later', call_later):
                stack.enter_context(timeout(self.loop, 60))
            await self.at(*arguments, lambda: handles.append(self.loop.call_soon(callbacks[0])))
        for handle in handles:
            handle.cancel()  # As the timer is, once the block has ended

    async def ended_by_asyncio_timeout(self, *arguments):
        with contextlib.suppress(asyncio.TimeoutError):
            async with asyncio.timeout(None) as limit:
                await self.at(*arguments, lambda: limit.reschedule(self.loop.time()))

    async def ended_by_task_group(self, *arguments):
        async def fails_at_event():
            await failure.wait()
            raise KeyError
        failure = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                sibling = group.create_task(fails_at_event())
                await self.at(*arguments, failure.set)
                if not self.is_reached:
                    sibling.cancel()
        except BaseExceptionGroup as exception:  # noqa: F821
            self.assertEqual([type(error) for error in exception.exceptions], [KeyError])
        if self.is_finished and asyncio.current_task().cancelling():
            asyncio.current_task().uncancel()  # Python before 3.13 doesn't in __aexit__

    async def at_every_await(self, least, *phases, answer=OK, names=Names, server=(), pool=(),
                             **kwargs):
        """Plain in all ways; over TLS, where names don't matter, in two."""
        ways = [self.cancelled, self.thrown_into, self.ended_by_timeout]
        if sys.version_info >= (3, 11):
            ways += [self.ended_by_asyncio_timeout, self.ended_by_task_group]
        client_tls = trusting()
        pool = {'get_ssl_context': lambda: client_tls, **dict(pool)}
        for tls in (None, server_context()) if names is Names else (None,):
            for way in ways[:2] if tls else ways:
                self.phases.clear()
                self.is_reached = True
                for number in itertools.count():
                    pool['get_dns_resolver'] = names() if names else DEFAULT_RESOLVER
                    await self.interrupted_at(
                        number, way, self.serve(answer, tls=tls, **dict(server)), pool, **kwargs)
                    if not self.is_reached:
                        break
                self.assertGreaterEqual(
                    number, least + (tls is not None and not server and 'warm' not in kwargs))
                self.assertGreaterEqual(self.phases, {*phases})

    async def interrupted_at(self, number, way, server, pool, warm=False, method=b'GET',
                             **arguments):
        files, watched = open_files(), set(self.loop.watched)
        request, close = self.pool_and_close(**pool)
        if warm:
            await fetch(request, b'GET', server.url)
        self.notes.clear()
        await way(number, self.whole(request(method, server.url, **arguments)))
        if hasattr(asyncio.Task, 'cancelling'):
            self.assertEqual(asyncio.current_task().cancelling(), 0)
        self.assertEqual(self.notes, ['begun', 'ended'] if self.notes else [])
        if not self.is_finished:
            if pool['get_dns_resolver'] is not DEFAULT_RESOLVER:
                self.assertEqual(self.loop.active_timers(), [])
            for peer in server.peers:
                await gone(peer)
            self.assertEqual(self.loop.watched, watched)
            self.assertEqual(open_files(), files)
        self.assertEqual((await fetch(request, b'GET', server.url))[2][-2:], b'ok')
        await close()
        server.close()

    def uploads(self, *chunks, headers=()):
        return {'method': b'PUT', 'body': self.body, 'body_args': chunks,
                'headers': headers or length(sum(map(len, chunks)))}

    async def test_get_is_interrupted_cleanly_at_every_await(self):
        await self.at_every_await(1, 'request')

    async def test_get_through_dns_is_interrupted_cleanly_at_every_await(self):
        name_server = NameServer(self).add('a.test', 'A', '127.0.0.1')
        await self.at_every_await(2, 'request', server={'host': 'a.test'}, names=None)
        name_server.add('a.test', 'A').add('a.test', 'AAAA', '::1')
        await self.at_every_await(
            3, 'request', server={'host': 'a.test', 'address': '::1'}, names=None)

    async def test_get_from_the_second_address_is_interrupted_cleanly_at_every_await(self):
        await self.at_every_await(
            1, 'request', server={'host': 'a.test'},
            names=lambda: Names().add('a.test', 'A', '127.0.0.2', '127.0.0.1'))

    async def test_get_on_a_used_connection_is_interrupted_cleanly_at_every_await(self):
        await self.at_every_await(1, 'request', warm=True)

    async def test_upload_is_interrupted_cleanly_at_every_await(self):
        await self.at_every_await(
            4, 'request: body waits', 'request: body ends', **self.uploads(b'a', b'b', b'c'))

    async def test_upload_larger_than_buffers_is_interrupted_cleanly_at_every_await(self):
        await self.at_every_await(
            5, 'request: body is sent', 'request: body waits',
            pool={'get_sock': sockets(send_buffer=32768)}, **self.uploads(*[bytes(300000)] * 2))

    async def test_early_response_is_interrupted_cleanly_at_every_await(self):
        await self.at_every_await(
            2, 'request: body waits', 'request: body ends', answer=closing(OK),
            **self.uploads(LAST_CHUNK, *[b''] * 9, headers=IN_CHUNKS))

    async def test_both_directions_at_once_are_interrupted_cleanly_at_every_await(self):
        async def converse(peer):
            """Begin a response in the middle of its request, but for a GET."""
            with contextlib.suppress(EOFError):
                while True:
                    if (await peer.read_until(b'\r\n\r\n')).startswith(b'GET'):
                        await peer.send(OK)
                    else:
                        await peer.send(CHUNKED + CHUNK)
                        await peer.expect(b'abc')
                        await peer.send(b'1\r\nb\r\n')
                        await peer.expect(b'd')
                        await peer.send(chunked(b'ok'))
        for warm in ({}, {'warm': True}):
            await self.at_every_await(
                5, 'response: body waits', 'response: body ends',
                *(() if LOOP == 'uvloop' else ('response',)),  # Which has come by then
                server={'script': converse}, **warm, **self.uploads(b'a', b'b', b'c', b'd'))

    async def test_refusal_of_a_body_that_waits_is_interrupted_cleanly_at_every_await(self):
        async def hang_up(peer):
            """Refuse what waits, but for a GET."""
            with contextlib.suppress(EOFError):
                head = await peer.read_until(b'\r\n\r\n')
                await peer.send(OK if head.startswith(b'GET') else REFUSAL)
                await peer.ended()
        await self.at_every_await(
            3, 'request: body ends', server={'script': hang_up},
            **self.uploads(b'a', forever, headers=length(9)))

    async def test_100_continue_is_interrupted_cleanly_at_every_await(self):
        await self.at_every_await(
            3, 'request', 'request: body waits', 'request: body ends',
            **self.uploads(b'abc', headers=(*length(3), EXPECT)))

    async def test_chunked_download_is_interrupted_cleanly_at_every_await(self):
        async def answer(peer):
            await peer.send(CHUNKED)
            for data in (b'1\r\n', b'a\r\n', b'2\r\nok', b'\r\n0\r\n', b'\r\n'):
                await self.turns()
                await peer.send(data)
        await self.at_every_await(6, 'request', 'response', answer=answer)

    async def test_download_until_close_is_interrupted_cleanly_at_every_await(self):
        async def answer(peer):
            await peer.send(HEAD + b'\r\na')
            await self.turns()
            await peer.send(b'ok')
            await self.turns()
            end_tls(peer)
        await self.at_every_await(3, 'request', 'response', answer=answer)

    async def test_second_cancellation_ends_a_callers_body_that_does_not_end(self):
        async def body():
            try:
                yield bytes(LARGE)
            finally:
                self.notes.append('ended')
                await forever()
        task, peer = await self.begin(headers=length(LARGE), body=body)
        task.cancel()
        await peer.ended()  # The connection doesn't wait for the body
        self.assertEqual((self.notes, task.done()), (['ended'], False))
        await cancel(task)

    async def test_connecting_is_cancelled_cleanly(self):
        with silent_address() as port:
            task = self.spawn(self.pool()(b'GET', 'http://localhost:%d/' % port))
            await self.turns(5)
            await cancel(task)
            self.assertEqual([kind for kind, _ in self.loop.watched if kind == 'writer'], [])


# ---- Response body ----


def on_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


class ResponseBodyTest(TestCase):

    async def half(self, **kwargs):
        server = self.serve(**kwargs)
        task = self.spawn(self.pool()(b'GET', server.url))
        peer = await server.accept()
        await peer.request()
        await peer.send(HALF)
        _, _, body = await task
        self._tasks.remove(task)  # It holds the body
        return peer, body

    async def test_chunks_are_given_as_they_arrive(self):
        peer, body = await self.half()
        self.assertEqual(await body.__anext__(), b'abc')
        for chunk in (b'd', b'e'):
            await peer.send(chunk)
            self.assertEqual(await body.__anext__(), chunk)
        with self.assertRaises(StopAsyncIteration):
            await body.__anext__()

    async def test_chunks_are_bytes_never_empty_and_joined_where_they_arrive_together(self):
        for bufsize, numbers in ((1, (1000,)), (65536, (1, 2, 3, 4))):
            server = self.serve(CHUNKED + CHUNK * 1000 + LAST_CHUNK)
            _, _, body = await self.pool(recv_bufsize=bufsize)(b'GET', server.url)
            chunks = [chunk async for chunk in body]
            self.assertEqual(({type(chunk) for chunk in chunks}, b'' in chunks), ({bytes}, False))
            self.assertIn(len(chunks), numbers)

    async def test_ended_body_ends_again(self):
        _, _, body = await self.pool()(b'GET', self.serve(OK).url)
        self.assertEqual([await buffered(body) for _ in range(3)], [b'ok', b'', b''])

    async def test_failed_body_raises_again_and_again(self):
        for data in (HALF, CHUNKED + b'1\r\nax', CHUNKED + CHUNK):
            server, raised = self.serve(closing(data)), set()
            _, _, body = await self.pool(recv_bufsize=1)(b'GET', server.url)
            for _ in range(3):
                with self.assertRaises(HttpDataError) as caught:
                    await buffered(body)
                raised.add((type(caught.exception), str(caught.exception)))
            self.assertEqual(len(raised), 1)
            self.assertIsNot(type(caught.exception), HttpDataError)

    async def test_cancelled_body_raises_when_asked_again(self):
        peer, body = await self.half()
        task = self.spawn(buffered(body))
        await self.turns()
        await cancel(task)
        await peer.ended()
        await self.fails(HttpDataError, buffered(body))

    async def test_second_consumer_is_told_and_the_first_unharmed(self):
        peer, body = await self.half()
        await body.__anext__()
        first = self.spawn(buffered(body))
        await self.turns()
        for second in (body.__anext__, body.aclose):
            await self.fails(RuntimeError, second(), 'already')
        await peer.send(b'de')
        self.assertEqual(await first, b'de')

    async def test_consumer_in_another_event_loop_is_told_and_the_first_unharmed(self):
        def consume():
            with contextlib.closing(Loop()) as other:
                with self.assertRaisesRegex(RuntimeError, 'loop|already' if waits else 'loop'):
                    other.run_until_complete(operation())
                told.append(True)
        for (waits, name), tls in itertools.product(
                ((False, '__anext__'), (True, '__anext__'), (True, 'aclose')), (None, True)):
            with self.subTest(waits=waits, tls=tls, name=name):
                peer, body = await self.half(tls=tls)
                told, operation = [], getattr(body, name)
                first = await body.__anext__()
                reading = self.spawn(buffered(body)) if waits else None
                await self.turns()
                on_thread(consume)
                self.assertEqual(told, [True])
                await peer.send(b'de')
                self.assertEqual(first + await (reading or buffered(body)), b'abcde')

    async def test_no_more_than_a_buffer_is_read_ahead(self):
        async def answer(peer):
            await peer.send(response(bytes(50000000)))
        server = self.serve(answer)
        _, _, body = await self.pool(recv_bufsize=1000)(b'GET', server.url)
        size = 0
        for least in (20000, 120000):
            while size < least:
                chunk = await body.__anext__()
                self.assertLessEqual(len(chunk), 1000)
                size += len(chunk)
            await self.turns(50)
        await body.aclose()

    async def test_unread_body_holds_the_server_back_and_keeps_no_loop_busy(self):
        async def script(peer):
            await peer.request()
            await peer.send(HEAD + b'\r\n')
            for _ in range(1000):
                await peer.send(bytes(10000))
                sent.append(10000)
        for tls in (None, True):
            sent, before = [], -1
            server = small_buffers(self.serve(script=script, tls=tls))
            _, _, body = await self.pool(
                get_sock=sockets(receive_buffer=65536))(b'GET', server.url)
            while before != len(sent):
                before = len(sent)
                await asyncio.sleep(0.05)
            self.assertLess(sum(sent), 2000000)
            start = time.process_time()
            await asyncio.sleep(0.2)
            self.assertLess(time.process_time() - start, 0.07)
            await body.aclose()

    async def test_aclose_closes_the_connection(self):
        for tls in (None, True):
            peer, body = await self.half(tls=tls)
            for _ in range(2):
                await body.aclose()
                self.assertEqual(await peer.ended(), b'')
            with contextlib.suppress(HttpDataError, StopAsyncIteration):
                self.fail('it gave %r' % await body.__anext__())

    async def test_aclose_of_a_whole_body_lets_the_connection_live(self):
        server, request = self.serve(OK), self.pool()
        _, _, body = await request(b'GET', server.url)
        await body.aclose()
        self.assertTrue(await second_request(request, server))


SCRIPT = """
import asyncio, atexit, gc, os, ssl, sys, threading, warnings
from lowhaio import Pool, buffered
if os.environ.get('LOWHAIO_TEST_LOOP') == 'uvloop':
    from uvloop import new_event_loop
else:
    from asyncio import SelectorEventLoop as new_event_loop

def get_ssl_context():
    return ssl.create_default_context(cadata=os.environ['AUTHORITY'])
"""

# A process that ends while it holds bodies, in one of the ways that sys.argv names
EXIT_SCRIPT = SCRIPT + """
case, *urls = sys.argv[1:]
bodies = []
loop = new_event_loop()
loop.slow_callback_duration = 60  # In development mode it logs
gc.disable()

async def main():
    request, close = Pool(get_ssl_context=get_ssl_context)
    for url in urls:
        _, _, body = await request(b'GET', url)
        bodies.append(body)
        if case in ('exit', 'thread'):
            await body.__anext__()
    bodies.append(bodies)  # A cycle, which is collected late
    if case == 'exit':
        sys.exit()

if case == 'late':
    atexit.register(loop.close)  # After the finalizers of bodies
    loop.run_until_complete(main())
elif case == 'thread':
    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    thread.join()
    atexit.register(loop.close)  # Before the finalizers of bodies
else:
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
"""


def process_of(*command):
    """Python in a process of its own, that trusts the servers of the tests."""
    return subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        cwd=os.path.dirname(os.path.abspath(__file__)),
        env={**os.environ, 'AUTHORITY': authority().cert_pem.bytes().decode()})


class DroppedBodyTest(TestCase):
    """A body closes its connection wherever it is dropped, and nothing is said."""

    async def test_dropped_body_closes_its_connection(self):
        for tls, is_read, on, in_cycle in itertools.product(
                (None, True), (False, True), (lambda drop: drop(), on_thread), (False, True)):
            with self.subTest(tls=tls, is_read=is_read, on=on, in_cycle=in_cycle):
                peer, body = await ResponseBodyTest.half(self, tls=tls)
                if is_read:
                    await body.__anext__()
                bodies = [body]
                del body
                if in_cycle:
                    bodies.append(bodies)
                    del bodies
                on(gc.collect if in_cycle else bodies.clear)
                self.assertEqual(await peer.ended(), b'')

    @contextlib.contextmanager
    def half_server(self, tls):
        """The URL of a server that sends a part, and waits for the end."""
        def converse(sock):
            sock.recv(10000)
            sock.sendall(HALF)
            while sock.recv(10000):
                pass
            ended.append(True)
        ended = []
        with in_thread(converse, tls) as url:
            yield url
        self.assertEqual(ended, [True])

    @contextlib.contextmanager
    def nothing_is_said(self):
        said = []
        with warnings.catch_warnings(record=True) as caught, \
                mock.patch('sys.unraisablehook', said.append), \
                LogRecords('asyncio', logging.WARNING) as logged:
            warnings.simplefilter('always')
            yield
            gc.collect()
        self.assertEqual(said + logged.messages() + [str(warning) for warning in caught], [])

    def test_body_dropped_after_the_loop_ended_closes_its_socket(self):
        async def main(url):
            return (await Pool(get_ssl_context=trusting)[0](b'GET', url))[2]
        for tls, on, is_closed in itertools.product(
                (False, True), (lambda drop: drop(), on_thread), (False, True)):
            with self.subTest(tls=tls, on=on, is_closed=is_closed), \
                    self.nothing_is_said(), self.half_server(tls) as url:
                loop = Loop()
                bodies = [loop.run_until_complete(main(url))]
                if is_closed:
                    loop.close()
                on(bodies.clear)
                loop.close()

    def test_bodies_at_the_exit_of_the_interpreter_are_silent(self):
        with contextlib.ExitStack() as stack:
            processes = []
            for case in ('closed', 'exit', 'late', 'thread'):
                urls = [stack.enter_context(self.half_server(tls)) for tls in (False, True)]
                processes.append(process_of(
                    '-W', 'error', '-X', 'dev', '-c', EXIT_SCRIPT, case, *urls))
            for process in processes:
                with self.subTest(case=process.args[7]):
                    self.assertEqual((process.communicate(), process.returncode), ((b'', b''), 0))


# ---- Pool ----


class UsedTest(TestCase):

    async def used(self, *answers, tls=None, **pool):
        """A server, and what asks it, after a first request."""
        server, request = self.serve(*(answers or (OK,)), tls=tls), self.pool(**pool)
        self.assertEqual((await fetch(request, b'GET', server.url))[0], b'200')
        return server, request


class ReuseTest(UsedTest):

    async def test_connection_is_back_with_the_last_byte(self):
        server, request = self.serve(OK), self.pool()
        bodies = [(await request(b'GET', server.url))[2] for _ in range(3)]
        self.assertEqual(server.counts(), [3])
        self.assertEqual([await buffered(body) for body in bodies], [b'ok'] * 3)

    async def test_half_read_response_keeps_its_connection(self):
        server, request = self.serve(response(bytes(3000000)), OK), self.pool()
        _, _, body = await request(b'GET', server.url)
        await body.__anext__()
        await fetch(request, b'GET', server.url)
        self.assertEqual(server.counts(), [1, 1])
        await buffered(body)

    async def test_most_recently_used_connection_is_first(self):
        server, request = self.serve(), self.pool()
        tasks = [self.spawn(fetch(request, b'GET', server.url)) for _ in range(3)]
        peers = [await server.accept() for _ in tasks]
        for peer in peers:
            await peer.request()
        for done, i in enumerate((1, 0, 2)):
            await peers[i].send(response(b'%d' % i))
            while sum(task.done() for task in tasks) <= done:
                await self.turns()
        for _ in range(2):
            task = self.spawn(fetch(request, b'GET', server.url))
            await peers[2].request()
            await peers[2].send(OK)
            await task

    async def test_idle_connection_is_closed_after_the_shorter_keep_alive_timeout(self):
        """That of the pool, or the server's less a second."""
        for seconds, field, least in ((0.1, b'a: b', 0.05), (15, b'keep-alive: timeout=2', 0.9),
                                      (0.1, b'keep-alive: timeout=9', 0.05)):
            server, _ = await self.used(response(b'ok', field), keep_alive_timeout=seconds)
            start = time.monotonic()
            while server.peers[0].is_open():
                await asyncio.sleep(0.01)
            self.assertTrue(least < time.monotonic() - start < least + 1)

    async def test_keep_alive_timeout_may_be_tiny_and_0_means_no_reuse(self):
        server, request = await self.used(keep_alive_timeout=0.0002)
        for _ in range(20):
            self.assertEqual((await fetch(request, b'GET', server.url))[2], b'ok')
        server, request = await self.used(keep_alive_timeout=0)
        self.assertFalse(await second_request(request, server))

    async def test_no_timer_of_a_response_fires_on_the_idle_connection(self):
        server, request = await self.used(socket_timeout=0.05)
        await asyncio.sleep(0.2)  # Four times as long as a wait for a response may take
        self.assertTrue(await second_request(request, server))

    async def test_cancelled_requests_take_no_place(self):
        server, request = self.serve(), self.pool()
        tasks = [self.spawn(request(b'GET', server.url)) for _ in range(100)]
        for _ in tasks:
            await server.accept()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for peer in server.peers:
            self.assertEqual(await peer.ended(), GET)
        self.assertEqual((await fetch(request, b'GET', self.serve(OK).url))[2], b'ok')

    async def test_connections_are_of_one_host_port_and_tls(self):
        server, tls = self.serve(OK), self.serve(OK, tls=True)
        request = self.pool(get_dns_resolver=Names().add('a.test', 'A', '127.0.0.1'))
        for url in (server.url, tls.url, server.url.replace('localhost', 'a.test'),
                    server.url.replace('localhost', '127.0.0.1')) * 2:
            await fetch(request, b'GET', url)
        self.assertEqual((server.counts(), tls.counts()), ([2, 2, 2], [2]))

    async def test_tls_of_a_connection_is_that_of_its_pool_and_url(self):
        tls, plain = self.serve(OK, tls=True), self.serve(OK)
        request = self.pool(socket_timeout=0.5)
        await fetch(request, b'GET', tls.url)
        await fetch(request, b'GET', plain.url)
        with self.assertRaises(HttpError):
            await fetch(request, b'GET', tls.url.replace('https', 'http'))
        await self.fails(HttpTlsError, request(b'GET', plain.url.replace('http', 'https')))
        await self.fails(HttpTlsError, self.pool(
            get_ssl_context=ssl.create_default_context)(b'GET', tls.url))

    async def test_connection_to_any_current_address_is_reused_and_to_an_old_one_not(self):
        names = Names(ttl=0)
        server = self.serve(OK, host='a.test', port=free_port())
        other = self.serve(response(b'other'), address='127.0.0.2', port=server.port)
        request = self.pool(get_dns_resolver=names)
        for addresses, body in ((('127.0.0.1',), b'ok'), (('127.0.0.2',), b'other'),
                                (('127.0.0.1',), b'ok'), (('127.0.0.3', '127.0.0.2'), b'other')):
            names.add('a.test', 'A', *addresses)
            self.assertEqual((await fetch(request, b'GET', server.url))[2], body)
            self.assertTrue(server.peers[0].is_open())
        self.assertEqual((server.counts(), other.counts()), ([2], [2]))


def recorded(kind, socks):
    """A get_sock whose sockets are added to a list."""
    def get_sock():
        socks.append(kind(socket.AF_INET, socket.SOCK_STREAM))
        return socks[-1]
    return get_sock


class StaleConnectionTest(UsedTest):
    """What happens to a connection while it is idle, or when it is used again."""

    STRAY = b'HTTP/1.1 408 Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n'

    def events(self):
        """What a server does, over TLS and not."""
        for tls, act in itertools.product((None, server_context()), (
                Peer.close, Peer.close_tls, Peer.reset, lambda peer: peer.sock.send(self.STRAY),
                lambda peer: peer.sock.send(b'x'))):
            if tls or act is not Peer.close_tls:
                with self.subTest(act=act, tls=tls):
                    yield act, tls

    async def test_whatever_happens_while_idle_closes_the_connection_when_it_happens(self):
        for act, tls in self.events():
            files, watched = open_files(), set(self.loop.watched)
            server, _ = await self.used(tls=tls)
            watched |= {('reader', server.listener.fileno())}
            files[server.listener.fileno()] = open_files()[server.listener.fileno()]
            act(server.peers[0])
            await gone(server.peers[0])
            for _ in range(100):
                if self.loop.watched != watched:
                    await asyncio.sleep(0)
            self.assertEqual((self.loop.watched, self.loop.active_timers()), (watched, []))
            self.assertEqual(open_files(), files)

    async def test_whatever_happened_is_seen_though_the_loop_was_blocked(self):
        """Or was not."""
        for act, tls in self.events():
            for turns in (0, 10):
                server, request = await self.used(tls=tls)
                await self.turns()
                act(server.peers[0])
                await self.turns(turns)
                self.assertFalse(await second_request(request, server))

    async def test_expiry_is_seen_though_the_loop_was_blocked(self):
        server, request = await self.used(keep_alive_timeout=0.05)
        time.sleep(0.1)
        self.assertFalse(await second_request(request, server))

    async def test_byte_decrypted_with_the_response_is_not_left_for_the_next(self):
        server, request = await self.used(
            OK + OK.replace(b'ok', b'no'), OK, tls=True, recv_bufsize=len(OK))
        self.assertFalse(await second_request(request, server))

    async def key_update(self, command, blocked):
        """Send one on an idle connection; return how many connections two requests took."""
        reads = []

        class Recorded(ssl.SSLSocket):
            def read(self, *args):
                reads.append(self)
                return super().read(*args)

        def get_ssl_context():
            context = trusting()
            context.sslsocket_class = Recorded
            return context
        server, request = OpensslServer(self), self.pool(get_ssl_context=get_ssl_context)
        await server.answer(self.spawn(fetch(request, b'GET', server.url)))
        number = len(reads)
        server.tell(command)
        if blocked:
            self.assertTrue(select.select([reads[0]], [], [], TEST_SECONDS)[0])
        while len(reads) == number and not blocked:  # Until the loop has noticed it
            await asyncio.sleep(0)
        await server.answer(self.spawn(fetch(request, b'GET', server.url)))
        server.close()
        return len(set(reads))

    async def test_key_updates_while_idle_are_no_stray_bytes(self):
        for command, blocked in itertools.product((b'k\n', b'K\n'), (False, True)):
            self.assertEqual(await self.key_update(command, blocked), 1)

    async def test_stray_bytes_while_the_callers_body_runs_are_not_the_answer(self):
        async def body():
            await server.peers[0].send(response(b'stray'))
            server.peers[0].sock.shutdown(socket.SHUT_WR)
            time.sleep(0.01)  # The loop has no turn
            yield b'abc'
        server, request = await self.used(OK, response(b'right'))
        result = await fetch(request, b'POST', server.url, body=body, headers=length(3))
        self.assertEqual((result[2], server.counts()), (b'right', [1, 1]))

    async def test_connections_that_take_nothing_are_replaced_silently(self):
        class Mortal(socket.socket):
            is_dead = False

            def send(self, *args):
                if self.is_dead:
                    raise BrokenPipeError
                return super().send(*args)

        async def body():
            bodies.append('begun')
            yield b'abc'
        socks, bodies, server = [], [], self.serve(OK)
        request = self.pool(get_sock=recorded(Mortal, socks))
        await asyncio.gather(*(fetch(request, b'GET', server.url) for _ in range(3)))
        for dead, connections in ((socks[1:3], 3), (socks[:1], 4)):
            for sock in dead:
                sock.is_dead = True
            await fetch(request, b'PUT', server.url, headers=length(3), body=body)
            self.assertEqual((len(socks), len(server.peers)), (connections, connections))
        self.assertEqual((len(bodies), sum(server.counts())), (2, 5))

    async def test_connection_that_ends_while_it_is_full_is_replaced_silently(self):
        class Full(socket.socket):
            ending = None

            def send(self, *args):
                if self.ending is None:
                    return super().send(*args)
                self.ending()
                self.ending = lambda: None
                raise BlockingIOError
        for end, (body, headers) in itertools.product(
                (lambda peer: peer.sock.send(response(b'stray')),
                 lambda peer: peer.sock.shutdown(socket.SHUT_WR), Peer.reset),
                ((empty_async_iterator, ()), (streamed(b'abc'), length(3)))):
            with self.subTest(end=end, body=body):
                socks = []
                server, request = await self.used(get_sock=recorded(Full, socks))
                socks[0].ending = functools.partial(end, server.peers[0])
                result = await fetch(request, b'PUT', server.url, headers=headers, body=body)
                self.assertEqual((result[2], server.counts()), (b'ok', [1, 1]))

    async def replacing(self, begin, end, tls=None):
        """A request whose connection is found dead once its body waits, between begin and end. It
        has no other one before the end: what is awaited meanwhile is a name's address.
        """
        is_resolved = asyncio.Event()

        class Gated(Names):
            async def resolve(self, *args, **kwargs):
                await is_resolved.wait()
                return await super().resolve(*args, **kwargs)

        async def body():
            server.peers[0].close()
            is_resolved.clear()
            try:
                await begin()
            finally:
                end()
                is_resolved.set()
            yield bytes(65536)  # It is sent at once, if to a connection
        is_resolved.set()
        server, request = await self.used(tls=tls, get_dns_resolver=Gated(ttl=0))
        return await fetch(request, b'PUT', server.url, headers=length(65536), body=body)

    async def test_timeout_of_a_body_may_end_while_its_connection_is_replaced(self):
        async def begin():
            with contextlib.suppress(asyncio.TimeoutError), timeout(self.loop, 0.01):
                await forever()
        for tls in (None, True):
            code, _, body = await self.replacing(begin, lambda: None, tls)
            self.assertEqual((code, body), (b'200', b'ok'))

    async def test_body_is_cancelled_while_its_connection_is_replaced(self):
        async def begin():
            begun.set()
            await forever()
        begun, notes = asyncio.Event(), []
        task = self.spawn(self.replacing(begin, lambda: notes.append('end')))
        await begun.wait()
        await self.turns()
        await cancel(task)
        self.assertEqual(notes, ['end'])

    async def test_request_that_a_dying_connection_took_is_never_sent_twice(self):
        async def script(peer):
            await peer.request()
            await peer.send(OK)
            if is_read:
                await peer.read_until(b'\r\n\r\n')
                await peer.read(5)
            else:
                await peer._ready(False)  # The kernel has it
            end(peer)
        for tls, end, is_read, size, send_buffer in itertools.product(
                (None, server_context()), (Peer.close, Peer.reset), (False, True), (0, 10, LARGE),
                (None, 1024)):  # A write of several TLS records ends in the middle of them
            if (is_read and not size) or (send_buffer and not tls):
                continue
            with self.subTest(tls=tls, end=end, is_read=is_read, size=size):
                server = self.serve(script=script, tls=tls)
                request = self.pool(get_sock=sockets(send_buffer=send_buffer))
                await fetch(request, b'GET', server.url)
                await self.fails(HttpConnectionClosedError, request(
                    b'PUT', server.url, headers=length(size), body=streamed(bytes(size))))
                await self.turns(5)
                self.assertEqual(len(server.peers), 1)


class CloseTest(TestCase):

    async def test_close_closes_idle_connections_and_timers(self):
        servers = self.serve(OK), self.serve(OK, tls=True)
        request, close = self.pool_and_close()
        for server in servers:
            await fetch(request, b'GET', server.url)
        await close()
        self.assertEqual(self.loop.active_timers(), [])
        for server in servers:
            await gone(server.peers[0])

    async def test_close_clears_the_dns_cache_also_of_what_resolves_meanwhile(self):
        names = NameServer(self).add('a.test', 'A', '127.0.0.1')
        server = self.serve(OK, host='a.test')
        for meanwhile in (False, True):
            request, close = self.pool_and_close(get_dns_resolver=DEFAULT_RESOLVER)
            task = self.spawn(fetch(request, b'GET', server.url))
            await (self.turns(2) if meanwhile else task)
            await close()
            with contextlib.suppress(*(HttpConnectionError,) if meanwhile else ()):
                await task
            self.assertEqual(self.loop.active_timers(), [])
        self.assertLessEqual(len(names.queries), 2)

    async def test_close_twice_is_fine(self):
        names = Names()
        _, close = self.pool_and_close(get_dns_resolver=names)
        await close()
        await close()
        self.assertGreaterEqual(names.clears, 1)

    async def test_later_request_raises_connection_error(self):
        server = self.serve(OK)
        request, close = self.pool_and_close()
        await close()
        await self.fails(HttpConnectionError, request(b'GET', server.url), 'closed')
        self.assertEqual(server.peers, [])

    async def test_response_in_flight_goes_on_and_is_then_closed(self):
        """Before its head, and in its body."""
        for answer in (b'', HALF):
            server = self.serve()
            request, close = self.pool_and_close()
            task = self.spawn(fetch(request, b'GET', server.url))
            peer = await server.accept()
            await peer.request()
            await peer.send(answer)
            await self.turns(5)
            await close()
            await peer.send(b'de' if answer else OK)
            self.assertEqual((await task)[2], b'abcde' if answer else b'ok')
            self.assertEqual(await peer.ended(), b'')


# A parent that reads on after its child has dropped, collected or finalised all of it
FORK_SCRIPT = SCRIPT + """
warnings.simplefilter('ignore', DeprecationWarning)

async def upload():
    yield b'a'
    await uploading.wait()
    yield b'b'

async def main(case, url):
    global uploading
    uploading = asyncio.Event()
    pool = [*Pool(get_ssl_context=get_ssl_context)]
    arguments = {'headers': ((b'content-length', b'2'),), 'body': upload}
    held = [await pool[0](b'POST', url, **(arguments if case == 'duplex' else {}))]
    if case == 'idle':
        await buffered(held.pop()[2])
    if case == 'read':
        await held[0][2].__anext__()

    child = os.fork()
    if child == 0:
        if case == 'exit':
            atexit._run_exitfuncs()
        elif case == 'cycle':
            held.append(held)
        elif case != 'read':
            pool.clear()
        held = None
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

    print('forked', flush=True)
    uploading.set()
    if case == 'idle':
        held = [await pool[0](b'GET', url)]
    print(len(await buffered(held[0][2])), flush=True)
    await pool[1]()

for case, url in zip(sys.argv[1::2], sys.argv[2::2]):
    loop = new_event_loop()
    try:
        loop.run_until_complete(main(case, url))
    finally:
        loop.close()
"""


class NothingIsKeptTest(ExchangeTest):
    """What is over leaves no object to the garbage collector, and what is idle keeps none."""

    @contextlib.contextmanager
    def no_cycle(self):
        """Whatever of lowhaio is made within goes without the collector."""
        gc.collect()
        gc.disable()
        try:
            yield
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            kept = [item for item in gc.garbage if type(item).__module__ == 'lowhaio' or
                    isinstance(item, OSError)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        self.assertEqual(kept, [])

    async def test_failed_requests_and_bodies_leave_no_reference_cycles(self):
        async def script(peer):
            await peer.receive()
            await peer.send(said)
            await (peer.ended() if times_out else asyncio.sleep(0))
        for tls, said, times_out in self.rows((b'', HALF), (False, True)):
            server, request = self.serve(script=script, tls=tls), self.pool(socket_timeout=0.2)
            with self.subTest(said=said, times_out=times_out), self.no_cycle():
                with contextlib.suppress(HttpDataError):
                    await fetch(request, b'GET', server.url)
                await self.turns()

    async def test_failed_connection_leaves_no_reference_cycle(self):
        request, url = self.pool(), 'http://localhost:%d/' % free_port()
        with self.no_cycle():
            await self.fails(HttpConnectionError, request(b'GET', url))

    async def test_cancellation_while_the_callers_body_waits_leaves_no_reference_cycle(self):
        task, _ = await self.begin(CHUNK, forever)
        self._tasks.remove(task)
        with self.no_cycle():
            await cancel(task)
            del task
            await self.turns()

    async def kept(self, request, url, **kwargs):
        """Set a context variable in a task, and return what is left of its value."""
        class Value:
            pass

        async def run():
            value = Value()
            contextvars.ContextVar('variable').set(value)
            await fetch(request, b'POST', url, **kwargs)
            return weakref.ref(value)
        reference = await self.loop.create_task(run())
        await self.turns()  # The loop has let go of the task
        gc.collect()
        return reference()

    async def test_idle_connection_keeps_no_context_of_the_task_that_used_it(self):
        for tls, kwargs in self.rows((
                {}, {'headers': length(3), 'body': streamed(b'abc')},
                {'headers': length(LARGE), 'body': streamed(bytes(LARGE))},
                {'headers': (*length(3), EXPECT), 'body': streamed(b'abc')})):
            server = small_buffers(self.serve(response(bytes(LARGE)), OK, tls=tls))
            request = self.pool(get_sock=sockets(send_buffer=65536))
            self.assertIsNone(await self.kept(request, server.url, **kwargs))
            self.assertTrue(await second_request(request, server))
            self.assertIsNone(await self.kept(request, server.url, **kwargs))

    def test_what_a_forked_child_drops_disturbs_nothing_of_its_parent(self):
        """A parent goes through the cases; each server looks whether it is disturbed."""
        def converse(case, sock):
            with in_turn:
                received = [sock.recv(10000)]
                sock.sendall(OK if case == 'idle' else HALF)
                first = process.stdout.readline()
                sock.settimeout(0.1)
                with contextlib.suppress(socket.timeout):
                    received.append(sock.recv(10000))  # b'' if the child has closed
                sock.settimeout(TEST_SECONDS)
                with contextlib.suppress(OSError):
                    sock.sendall(OK if case == 'idle' else b'de')
                    sock.recv(10000)
                said.append((first, process.stdout.readline(), b'' in received))
        said, arguments, in_turn = [], [], threading.Lock()
        cases = [*itertools.product(
            ('drop', 'read', 'cycle', 'exit', 'idle', 'duplex'), (False, True))]
        with contextlib.ExitStack() as stack:
            for case, tls in cases:
                arguments += case, stack.enter_context(
                    in_thread(functools.partial(converse, case), tls))
            process = process_of('-c', FORK_SCRIPT, *arguments)
        self.assertEqual((process.communicate(), process.returncode), ((b'', b''), 0))
        self.assertEqual(said, [
            (b'forked\n', b'2\n' if case in ('idle', 'read') else b'5\n', False)
            for case, _ in cases])


class PoolArgumentsTest(TestCase):

    async def test_versions_and_numbers_that_can_not_be_are_refused(self):
        for name, values in (
                ('http_version', (b'HTTP/2', b'HTTP/1.1\r\n', b'http/1.1', b'', 'HTTP/1.1', None)),
                ('keep_alive_timeout', (-1, 1j)), ('socket_timeout', (None, float('nan'))),
                ('max_header_length', ('16384', None)),
                ('recv_bufsize', (0, -1, 1e5, 65536.0, float('inf'), float('nan'), '65536', None,
                                  b'\1', 2**31, 2**63))):
            for bad in values:
                with self.subTest(name=name, bad=bad), self.assertRaisesRegex(
                        ValueError, '^%s must ' % name):
                    Pool(**{name: bad})

    def test_pool_without_a_running_loop_says_so(self):
        with self.assertRaisesRegex(RuntimeError, r'in an async def, .* asyncio\.run'):
            Pool()

    async def test_what_must_be_a_function_is_refused_if_it_is_none(self):
        for name, bad, kind in (
                ('get_ssl_context', trusting(), 'an ssl.SSLContext, not SSLContext'),
                ('get_sock', None, 'a socket, not NoneType'),
                ('get_dns_resolver', (), 'a pair of functions, not tuple')):
            with self.subTest(name), self.assertRaisesRegex(
                    TypeError, '%s must be a function that returns %s' % (name, kind)):
                Pool(**{name: bad})

    def test_loop_without_add_reader_is_refused(self):
        class Proactor(asyncio.SelectorEventLoop):
            add_reader = asyncio.AbstractEventLoop.add_reader

        async def main():
            with self.assertRaisesRegex(NotImplementedError, 'add_reader'):
                Pool()
        with contextlib.closing(Proactor()) as loop:
            loop.run_until_complete(main())

    async def test_arguments_have_the_defaults_that_are_promised(self):
        parameters = inspect.signature(Pool).parameters
        self.assertEqual(list(parameters), [
            'get_dns_resolver', 'get_sock', 'get_ssl_context', 'http_version',
            'keep_alive_timeout', 'recv_bufsize', 'max_header_length', 'socket_timeout',
            'get_logger_adapter', 'get_resolver_logger_adapter'])
        self.assertEqual(
            [parameters[name].default for name in (
                'get_ssl_context', 'http_version', 'keep_alive_timeout', 'max_header_length',
                'socket_timeout')],
            [ssl.create_default_context, b'HTTP/1.1', 15, 16384, 10])
        self.assertEqual(list(inspect.signature(self.pool()).parameters), [
            'method', 'url', 'params', 'headers', 'body', 'body_args', 'body_kwargs',
            'get_logger_adapter', 'get_resolver_logger_adapter'])


# ---- Real servers ----


NGINX_CONF = """
    daemon off;
    pid nginx.pid;
    error_log error.log;
    events { worker_connections 1024; }
    http {
        access_log off;
        client_body_temp_path body;
        proxy_temp_path proxy;
        fastcgi_temp_path fastcgi;
        uwsgi_temp_path uwsgi;
        scgi_temp_path scgi;
        client_max_body_size 0;
        default_type text/plain;
        root html;
        ssi_types *;
        add_header Cache-Control no-cache always;
        add_header X-Request-Id $request_id always;
        add_header X-Connection $connection always;
        server {
            listen 127.0.0.1:%d;
            listen 127.0.0.1:%d ssl;
            ssl_certificate certificate.pem;
            ssl_certificate_key certificate.pem;

            location /echo { return 200 '$request_method $args'; }
            location /204 { return 204; }
            location /404 { return 404 'it is not here'; }
            location /500 { return 500 'it broke'; }
            location /files/ { }
            location /uploads/ { dav_methods PUT DELETE; }

            # Server-side includes make the length unknown
            location /chunked/ { alias html/files/; ssi on; }
            location /until-close/ {
                alias html/files/;
                ssi on;
                chunked_transfer_encoding off;
            }

            location /1k/ { client_max_body_size 1k; dav_methods PUT; }
            location /1k/reset { client_max_body_size 1k; dav_methods PUT; lingering_close off; }
        }
    }
"""

# The shell ends with this process, however that ends: then its standard input does
NGINX_SCRIPT = '"$@" & cat; kill "$!"; wait; rm -rf "$0"'


class Nginx:

    def __init__(self, binary):
        self.folder = tempfile.mkdtemp(prefix='lowhaio-nginx-')
        self.files, self.uploads = [
            Path(self.folder, 'html', name) for name in ('files', 'uploads')]
        for folder in (self.files, self.uploads):
            folder.mkdir(parents=True)
        listeners = [socket.create_server(('127.0.0.1', 0), backlog=500) for _ in range(2)]
        ports = [listener.getsockname()[1] for listener in listeners]
        self.urls = 'http://localhost:%d' % ports[0], 'https://localhost:%d' % ports[1]
        certificate('localhost', '127.0.0.1', '::1', 'a.test') \
            .private_key_and_cert_chain_pem.write_to_path(self.folder + '/certificate.pem')
        Path(self.folder, 'nginx.conf').write_text(NGINX_CONF % tuple(ports), encoding='utf-8')
        self.process = self._started(binary, listeners)
        for listener in listeners:
            listener.close()

    def _started(self, binary, listeners):
        """Start it on listeners that it inherits: nobody can take their ports in between."""
        numbers = [listener.fileno() for listener in listeners]
        for listener in listeners:
            listener.setblocking(False)
        command = [binary, '-p', self.folder + '/', '-c', 'nginx.conf']
        if os.geteuid() == 0:
            command += ['-g', 'user root;']  # The folder is for this user only
        subprocess.run([*command, '-t', '-q'], check=True)
        return subprocess.Popen(
            ['sh', '-c', NGINX_SCRIPT, self.folder, *command], stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL, pass_fds=numbers, start_new_session=True,
            env={**os.environ, 'NGINX': ''.join('%d;' % number for number in numbers)})

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class HttpServer:
    """Of aiohttp: answers with a function that is given itself and a request.

    It runs in the loop of a test, as long as that does, or in a thread: see served().
    """

    def __init__(self, answer, tls=None, path=None):
        self.answer = answer
        self.tls = tls
        self.connections = set()
        self.requests = []
        self.active = self.most_active = 0
        self.waits, self.client_is_gone = threading.Event(), False
        if path is None:
            self.sock = socket.create_server(('127.0.0.1', 0), backlog=500)
            self.port = self.sock.getsockname()[1]
            self.url = 'http%s://localhost:%d' % ('s' if tls else '', self.port)
        else:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.bind(path)

    async def run(self):
        self.enough = asyncio.Event()
        app = web.Application(client_max_size=2**30)
        app.router.add_route('*', '/{path:.*}', self._on_request)
        runner = web.AppRunner(app, access_log=None, lingering_time=0)
        try:
            await runner.setup()
            await web.SockSite(runner, self.sock, ssl_context=self.tls).start()
            await forever()
        finally:
            asyncio.get_running_loop().remove_reader(self.sock)
            for _ in range(3):  # What has been accepted is known to it before it closes
                await asyncio.sleep(0)
            await runner.cleanup()

    async def _on_request(self, request):
        self.connections.add(request.transport.get_extra_info('peername'))
        self.requests.append((request.method, request.raw_path))
        try:
            return await self.answer(self, request)
        except ConnectionError:
            return hang_up(request)

    async def wait_for_others(self, number):
        """Wait until there were so many requests at once, and a bit for one too many."""
        self.active += 1
        self.most_active = max(self.active, self.most_active)
        if self.most_active < number:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.enough.wait(), 5)
        self.enough.set()
        await asyncio.sleep(0.01)
        self.active -= 1

    async def until_gone(self, request):
        self.waits.set()
        await until(lambda: request.transport is None)
        self.client_is_gone = True


@contextlib.contextmanager
def served(answer, tls=None, path=None, **state):
    """A server in a thread of its own, with attributes that its answers may look at."""
    server = HttpServer(answer, tls, path)
    vars(server).update(state)
    loop = asyncio.SelectorEventLoop()
    loop.slow_callback_duration = TEST_SECONDS  # In development mode it logs
    task = loop.create_task(server.run())
    thread = threading.Thread(target=loop.run_until_complete, args=(asyncio.wait({task}),))
    thread.start()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        loop.close()
        server.sock.close()  # It may not have begun


async def begun_answer(request, status=200, **fields):
    """One that is written piece by piece, with a length or in chunks."""
    answer = web.StreamResponse(
        status=status, headers={name.replace('_', '-'): text for name, text in fields.items()})
    await answer.prepare(request)
    return answer


async def echo(server, request):
    """Answers with what was sent, and with the framing it was sent with."""
    data = await request.read()
    if not request.headers.get('transfer-encoding'):
        return web.Response(body=data, status=int(request.query.get('status', 200)))
    answer = await begun_answer(request)
    for start in range(0, len(data), 10007):
        await answer.write(data[start:start + 10007])
    return answer


async def duplex(server, request):
    """Echoes each part as it comes, with the length that it was sent with if there is one."""
    length = request.version == (1, 1) and request.headers.get('content-length')
    answer = await begun_answer(request, **({'content_length': length} if length else {}))
    async for piece in request.content.iter_any():
        await answer.write(piece)
    return answer


async def pieces(path, size=99991):
    with open(path, 'rb') as file:
        for piece in iter(lambda: file.read(size), b''):
            yield piece


async def in_chunks(data):
    """Chunks as lowhaio_chunked makes them."""
    try:
        async for piece in data:
            yield b'%x\r\n' % len(piece)
            yield piece
            yield b'\r\n'
        yield b'0\r\n\r\n'
    finally:
        await data.aclose()


async def digest(body):
    sha256 = hashlib.sha256()
    async for piece in body:
        sha256.update(piece)
    return sha256.hexdigest()


def upload(data, size=9973):
    """What to give to a request for a chunked body."""
    async def body():
        for start in range(0, len(data), size):
            yield data[start:start + size]
    return {'headers': IN_CHUNKS, 'body': lambda: in_chunks(body())}


def of_length(data):
    """What to give to a request for a body of known length."""
    return {'headers': length(len(data)), 'body': streamed(data)}


class NginxTest(TestCase):

    LARGE_SIZE = 32 * 2**20

    @classmethod
    def setUpClass(cls):
        binary = shutil.which('nginx', path=os.environ.get('PATH', '') + ':/usr/sbin')
        if binary is None:
            problem = 'The tests with nginx need it installed: apt-get install nginx'
            if os.environ.get('CI'):
                raise AssertionError(problem)
            print(problem, file=sys.stderr)
            raise unittest.SkipTest(problem)
        cls.nginx = Nginx(binary)
        cls.addClassCleanup(cls.nginx.close)

        # Without what could start a server-side include
        cls.data, large = [
            os.urandom(size).replace(b'<', b'>') for size in (300000, cls.LARGE_SIZE)]
        for name, data in (('text', b'some text'), ('data', cls.data), ('large', large)):
            (cls.nginx.files / name).write_bytes(data)
        cls.large = cls.nginx.files / 'large'
        cls.large_digest = hashlib.sha256(large).hexdigest()

    def mixed_requests(self, number, nginx, aiohttp, etag):
        """21 of them: method, URL, arguments, expected code and body."""
        sent = self.data[number:50000 + number * 100]
        expecting = {**upload(sent), 'headers': (*IN_CHUNKS, EXPECT)}
        return [
            (b'GET', nginx + '/files/text', {}, b'200', b'some text'),
            (b'GET', nginx + '/files/text', {'headers': ((b'if-none-match', etag),)}, b'304', b''),
            (b'GET', nginx + '/files/data', {}, b'200', self.data),
            (b'HEAD', nginx + '/files/data', {}, b'200', b''),
            (b'GET', nginx + '/files/data', {
                'headers': ((b'range', b'bytes=%d-%d' % (number, 2 * number)),),
            }, b'206', self.data[number:2 * number + 1]),
            (b'GET', nginx + '/chunked/text', {}, b'200', b'some text'),
            (b'GET', nginx + '/chunked/data', {}, b'200', self.data),
            (b'HEAD', nginx + '/chunked/data', {}, b'200', b''),
            (b'GET', nginx + '/until-close/data', {}, b'200', self.data),
            (b'GET', nginx + '/204', {}, b'204', b''),
            (b'GET', nginx + '/404', {}, b'404', b'it is not here'),
            (b'GET', nginx + '/500', {}, b'500', b'it broke'),
            (b'POST', nginx + '/echo?%d' % number, of_length(b'a'), b'200', b'POST %d' % number),
            (b'PUT', nginx + '/uploads/length-%d' % number, of_length(sent), b'201', b''),
            (b'PUT', nginx + '/uploads/chunked-%d' % number, upload(sent), b'201', b''),
            (b'PUT', nginx + '/uploads/expected-%d' % number, expecting, b'201', b''),
            (b'DELETE', nginx + '/uploads/delete-%d' % number, {}, b'204', b''),
            (b'POST', aiohttp, of_length(sent), b'200', sent),
            (b'PUT', aiohttp, upload(sent), b'200', sent),
            (b'HEAD', aiohttp + '/?status=404', {}, b'404', b''),
            (b'DELETE', aiohttp + '/?status=500', of_length(b'%d' % number), b'500',
             b'%d' % number),
        ]

    async def test_2100_mixed_requests_100_at_a_time_get_the_right_answers(self):
        async def check(number):
            rows = self.mixed_requests(
                number, plain if number % 10 else tls, server.url, etag)
            random.Random(number).shuffle(rows)
            for method, url, arguments, *expected in rows:
                code, headers, body = await fetch(request, method, url, **arguments)
                self.assertEqual([code, body == expected[1]], [expected[0], True], (method, url))
                connections[dict(headers).get(b'x-connection')] += 1
        socks, connections = [], collections.Counter()
        request, close = self.pool_and_close(get_sock=recorded(socket.socket, socks))
        server = HttpServer(echo)
        self.spawn(server.run())
        plain, tls = self.nginx.urls
        _, headers, _ = await fetch(request, b'GET', plain + '/files/text')
        etag = dict(headers)[b'etag']
        for number in range(100):
            (self.nginx.uploads / ('delete-%d' % number)).write_bytes(b'')
        await asyncio.gather(*map(check, range(100)))
        await close()

        self.assertEqual([sock for sock in socks if sock.fileno() != -1], [])
        self.assertEqual(sum(connections.values()), 2100)
        self.assertEqual(connections.pop(None), 400)  # aiohttp's
        # The 100 responses that end with their connection cost one each
        self.assertLessEqual(len(connections), 200)
        self.assertLessEqual(len(server.connections), 100)
        self.assertTrue(read_files(self.nginx.uploads) == {
            '%s-%d' % (name, number): self.data[number:50000 + number * 100]
            for name in ('length', 'chunked', 'expected') for number in range(100)})
        for path in self.nginx.uploads.iterdir():
            path.unlink()

    @contextlib.contextmanager
    def little_memory(self):
        """Fail if the peak is over 4 MiB. Half a MiB is what it takes."""
        tracemalloc.start()
        try:
            yield
            self.assertLess(tracemalloc.get_traced_memory()[1], 4 * 2**20)
        finally:
            tracemalloc.stop()

    def large_uploads(self, *paths):
        """Over each connection and in each framing: a URL, and what to give to a request."""
        for url, path, arguments in itertools.product(self.nginx.urls, paths, (
                {'headers': length(self.LARGE_SIZE), 'body': lambda: pieces(self.large)},
                {'headers': IN_CHUNKS, 'body': lambda: in_chunks(pieces(self.large))})):
            with self.subTest(url=url, path=path, headers=arguments['headers']):
                yield url + path, arguments

    async def check_large_upload(self, code):
        got = await digest(pieces(self.nginx.uploads / 'large'))
        (self.nginx.uploads / 'large').unlink()
        self.assertEqual((code, got), (b'201', self.large_digest))

    async def test_large_downloads_are_exact_and_take_little_memory(self):
        request = self.pool()
        for url, framing in itertools.product(
                self.nginx.urls, ('files', 'chunked', 'until-close')):
            with self.subTest(url=url, framing=framing):
                with self.little_memory():
                    code, _, body = await request(b'GET', '%s/%s/large' % (url, framing))
                    got = await digest(body)
                self.assertEqual((code, got), (b'200', self.large_digest))

    async def test_large_uploads_are_exact_and_take_little_memory(self):
        request = self.pool()
        for url, arguments in self.large_uploads('/uploads/large'):
            with self.little_memory():
                code, _, _ = await fetch(request, b'PUT', url, **arguments)
            await self.check_large_upload(code)

    async def test_response_body_can_be_the_body_of_another_request(self):
        request = self.pool()
        for source, target in itertools.permutations(self.nginx.urls):
            _, headers, download = await request(b'GET', source + '/files/large')
            code, _, _ = await fetch(
                request, b'PUT', target + '/uploads/large', body=lambda body=download: body,
                headers=((b'content-length', dict(headers)[b'content-length']),))
            await self.check_large_upload(code)

    async def test_413_during_an_upload_is_the_response(self):
        request = self.pool()
        for url, arguments in self.large_uploads('/1k/a', '/1k/reset'):
            code, fields, answer = await fetch(request, b'PUT', url, **arguments)
            self.assertEqual((code, dict(fields)[b'content-length']),
                             (b'413', b'%d' % len(answer)))
            self.assertIn(b'Too Large', answer)
            code, _, answer = await fetch(request, b'GET', url.partition('/1k')[0] + '/echo?next')
            self.assertEqual((code, answer), (b'200', b'GET next'))


class AiohttpTest(TestCase):

    def server(self, answer, tls=None):
        server = HttpServer(answer, tls)
        self.spawn(server.run())
        return server, self.pool()

    async def test_bodies_of_all_sizes_are_echoed_while_they_are_still_sent(self):
        data = os.urandom(12 * 2**20)  # More than the kernel holds
        for tls in (None, server_context()):
            server, request = self.server(duplex, tls)
            for size in (0, 1, 65535, 65536, 65537, len(data)):
                for arguments in (of_length(data[:size]), upload(data[:size], 65536)):
                    await self.echoes(request, server.url, data[:size], arguments)
            self.assertEqual(len(server.connections), 1)

    async def test_several_echoes_that_end_with_their_connections_do_not_hinder_each_other(self):
        data = os.urandom(12 * 2**20)
        for tls in (None, server_context()):
            server = self.server(duplex, tls)[0]
            request = self.pool(http_version=b'HTTP/1.0')
            await asyncio.gather(*(
                self.echoes(request, server.url, data, of_length(data)) for _ in range(3)))
            self.assertEqual(len(server.connections), 3)

    async def echoes(self, request, url, data, arguments):
        code, _, body = await fetch(request, b'POST', url, **arguments)
        self.assertEqual((code, body == data), (b'200', True), (len(data), arguments['headers']))

    async def test_websocket_upgrade_is_returned_and_its_connection_not_reused(self):
        async def answer(server, request):
            websocket = web.WebSocketResponse()
            if not websocket.can_prepare(request):
                return web.Response()
            await websocket.prepare(request)
            async for _ in websocket:
                pass
            return websocket
        key = b'bG93aGFpbyBsb3doYWlvLg=='
        server, request = self.server(answer)
        code, headers, body = await fetch(request, b'GET', server.url, headers=(
            (b'connection', b'upgrade'), (b'upgrade', b'websocket'),
            (b'sec-websocket-version', b'13'), (b'sec-websocket-key', key)))
        # RFC 6455 4.2.2
        accept = hashlib.sha1(key + b'258EAFA5-E914-47DA-95CA-C5AB0DC85B11').digest()
        self.assertEqual((code, body), (b'101', b''))
        self.assertEqual(dict(headers)[b'sec-websocket-accept'], base64.b64encode(accept))
        await fetch(request, b'GET', server.url)
        self.assertEqual(len(server.connections), 2)


# ---- Real clients ----
#
# What is published for lowhaio 0.0.89, as it comes from PyPI, runs on this one.


SIGNED, UNSIGNED = lowhaio_aws_sigv4, lowhaio_aws_sigv4_unsigned_payload

AMZ_KEY, AMZ_SECRET = 'AKIDEXAMPLE', 'wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY'
REGION = 'us-east-1'

# It takes a listener over: nobody can take its port in between. It ends with this process
MOTO_SCRIPT = """
import os, sys, threading
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
app = DomainDispatcherApplication(create_backend_app)
make_server('127.0.0.1', 0, app, threaded=True, fd=int(sys.argv[1])).serve_forever()
"""


class Moto:
    """An S3 server, in a process of its own: it takes a second to be imported."""

    def __init__(self):
        with socket.create_server(('127.0.0.1', 0), backlog=500) as listener:
            self.address = listener.getsockname()
            self.process = subprocess.Popen(
                [sys.executable, '-c', MOTO_SCRIPT, str(listener.fileno())],
                stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=[listener.fileno()],
                start_new_session=True)

    async def answer(self, peer):
        """Hand a request over to it, and its response to the peer."""
        request = peer.requests[-1]
        with socket.create_connection(self.address) as sock, \
                contextlib.closing(Peer(sock)) as moto:
            sock.setblocking(False)
            await moto.send(request)
            head = await moto.read_until(b'\r\n\r\n')
            length = re.search(rb'(?i)\r\ncontent-length: (\d+)\r\n', head)
            has_body = length and not request.startswith(b'HEAD ')
            await peer.send(head + (await moto.read(int(length[1])) if has_body else b''))

    def close(self):
        self.process.stdin.close()
        self.process.wait()


@functools.lru_cache(maxsize=None)
def moto():
    """One for all tests, that is started when the first of them needs it."""
    server = Moto()
    unittest.addModuleCleanup(server.close)
    return server


def signature_and_expected(request):
    """The signature of a request, and what AWS computes for its bytes (Signature Version 4)."""
    head, _, body = request.partition(b'\r\n\r\n')
    request_line, *lines = head.split(b'\r\n')
    method, target, _ = request_line.split(b' ')
    path, _, query = target.partition(b'?')
    fields = dict(re.fullmatch(rb'([^:]+):\s*(.*)', line).groups() for line in lines)
    fields = {name.lower(): b' '.join(value.split()) for name, value in fields.items()}
    assert len(fields) == len(lines)
    scope, names, signature = re.fullmatch(
        rb'AWS4-HMAC-SHA256 Credential=%b/(\d{8}/[^/]+/[^/]+/aws4_request), '
        rb'SignedHeaders=([^,]+), Signature=([0-9a-f]{64})' % AMZ_KEY.encode(),
        fields[b'authorization']).groups()
    assert {b'host', b'x-amz-date', b'x-amz-content-sha256'} <= set(names.split(b';'))

    payload = fields[b'x-amz-content-sha256']
    if payload != b'UNSIGNED-PAYLOAD':
        payload = hashlib.sha256(body).hexdigest().encode()
    pairs = [pair.partition(b'=') for pair in query.split(b'&')] if query else []
    canonical_request = b'\n'.join((
        method,
        aws_encoded(path, b'/'),
        b'&'.join(sorted(
            aws_encoded(name) + b'=' + aws_encoded(value) for name, _, value in pairs)),
        *(b'%b:%b' % (name, fields[name]) for name in sorted(names.split(b';'))),
        b'', names, payload))
    to_sign = b'\n'.join((
        b'AWS4-HMAC-SHA256', fields[b'x-amz-date'], scope,
        hashlib.sha256(canonical_request).hexdigest().encode()))
    key = functools.reduce(
        lambda key, text: hmac.new(key, text, hashlib.sha256).digest(),
        [*scope.split(b'/'), to_sign], b'AWS4' + AMZ_SECRET.encode())
    return signature, key.hex().encode()


def aws_encoded(data, safe=b''):
    decoded = urllib.parse.unquote_to_bytes(data.replace(b'+', b' '))  # As S3 does, in paths too
    return urllib.parse.quote(decoded, safe=safe + b'~').encode()


async def credentials(*_):
    return AMZ_KEY, AMZ_SECRET, ()


class ClientTest(TestCase):

    def check_signatures(self, server):
        self.assertTrue(server.requests)
        for request in server.requests:
            with self.subTest(request=request[:200]):
                signature, expected = signature_and_expected(request)
                self.assertEqual(signature, expected)

    def signed(self, layer, credentials=credentials):
        self.forgive_utcnow(layer)
        return layer.signed(self.pool(), credentials, 's3', REGION)

    def forgive_utcnow(self, layer):
        """Let it use what Python 3.12 has deprecated, until the end of the test."""
        warnings.filterwarnings(
            'ignore', r'datetime\.datetime\.utcnow\(\) is deprecated', DeprecationWarning,
            layer.__name__ + '$')


def targets(server):
    return [request.split(b' ', 2)[1] for request in server.requests]


def redirect(code, location):
    return b'HTTP/1.1 %d x\r\nlocation: %b\r\ncontent-length: 4\r\n\r\nmore' % (code, location)


class TestLayers(ClientTest):

    async def test_locations_arrive_intact_through_lowhaio_redirect(self):
        for location in (
                b'/', b'/a%20b', b'/a%2Fb%252F', b'/%C3%A9/%e2%82%ac', b'/?q=a%26b&q=c+d&r=%2B',
                b'/a;b=c/d:e@f?/?=%3D&&', b"/!$&'()*,=~-._?!$'()*,;:@/?"):
            for start in b'', b'//localhost:%(port)d', b'http://localhost:%(port)d':
                with self.subTest(location=location, start=start):
                    server = self.serve(OK)
                    place = start % {b'port': server.port} + location
                    server.answers = collections.deque([redirect(302, place), OK])
                    request = lowhaio_redirect.redirectable(self.pool())
                    answer = await fetch(request, b'GET', server.url + '/start')
                    self.assertEqual((answer[0], answer[2]), (b'200', b'ok'))
                    self.assertEqual(targets(server), [b'/start', location])
                    self.assertEqual(server.counts(), [2])

    async def test_redirected_request_is_what_lowhaio_redirect_makes_of_it(self):
        """With the body again, or as a GET; with the credentials, or without them elsewhere."""
        other = self.serve(OK, host='a.test')
        for code, method, place, repeats, keeps in (
                (301, b'PUT', b'/there', True, True), (302, b'POST', b'/there', False, True),
                (303, b'PUT', b'/there', False, True), (307, b'POST', b'/there', True, True),
                (308, b'PATCH', b'/there', True, True),
                (307, b'POST', other.url.encode(), True, False)):
            with self.subTest(code=code, method=method, place=place):
                server = self.serve(redirect(code, place), OK)
                request = lowhaio_redirect.redirectable(self.pool(
                    get_dns_resolver=Names().add('a.test', 'A', '127.0.0.1')))
                await fetch(request, method, server.url, body=streamed(b'data'),
                            headers=(*length(4), (b'authorization', b'secret')))
                sent = (server.requests[1:] or other.requests)[0]
                self.assertEqual(sent.split(b' ')[0], method if repeats else b'GET')
                self.assertTrue(sent.endswith(b'\r\n\r\ndata' if repeats else b'\r\n\r\n'), sent)
                self.assertEqual((b'content-length: 4' in sent, b'secret' in sent),
                                 (repeats, keeps))

    async def test_endless_redirects_end_on_one_connection(self):
        server = self.serve(redirect(301, b'/'))
        request = lowhaio_redirect.redirectable(self.pool(), max_redirects=5)
        await self.fails(
            lowhaio_redirect.HttpTooManyRedirects, request(b'GET', server.url))
        self.assertEqual(server.counts(), [5])

    async def test_lowhaio_retry_tries_again_after_the_class_it_is_given(self):
        server = self.serve(
            closing(b''), closing(b'HTTP/1.1 2'), closing(b'not HTTP\r\n'), OK, closing(b''))
        names = Names(ttl=0)
        request = lowhaio_retry.retry(self.pool(get_dns_resolver=names), (
            (HttpConnectionError, (0, 0)), (HttpDataError, (0, 0, 0))))
        _, _, body = await fetch(request, b'PUT', server.url, **of_length(b'some'))
        self.assertEqual((body, server.counts()), (b'ok', [1, 1, 1, 1]))
        self.assertTrue(all(sent.endswith(b'\r\n\r\nsome') for sent in server.requests))
        self.assertEqual(len(names.queries), 4)

    async def test_lowhaio_retry_gives_up_with_the_last_exception_and_its_cause(self):
        secure = self.serve(tls=server_context('b.test'))
        refusing = self.serve(OK)
        refusing.close()
        unknown = Names()
        unknown.records['localhost', 'A'] = aiodnsresolver.DnsError()
        for names, url, kind, cause in (
                (unknown, refusing.url, HttpDnsError, aiodnsresolver.DnsError),
                (Names(ttl=0), refusing.url, HttpConnectionError, ConnectionRefusedError),
                (Names(ttl=0), secure.url, HttpTlsError, ssl.SSLCertVerificationError)):
            request = lowhaio_retry.retry(
                self.pool(get_dns_resolver=names), ((HttpConnectionError, (0, 0)),))
            await self.fails(kind, request(b'GET', url), cause=cause)
            self.assertEqual(names.queries.count(('localhost', 'A')), 3)

    async def test_all_layers_together(self):
        async def body(first, *, last):
            yield first
            yield last
        self.forgive_utcnow(UNSIGNED)
        server = self.serve(
            closing(b''), redirect(307, b"/~there/!$&'()*,;=:@"),
            closing(b'HTTP/1.1 200 OK\r\nx'), OK)
        request = lowhaio_redirect.redirectable(UNSIGNED.signed(
            lowhaio_retry.retry(self.pool(), ((HttpDataError, (0, 0)),)),
            credentials, 's3', REGION))
        _, _, answer = await fetch(
            request, b'PUT', server.url + '/key', headers=IN_CHUNKS, body_args=(b'da',),
            body=lowhaio_chunked.chunked(body), body_kwargs=(('last', b'ta!'),))
        self.assertEqual((answer, targets(server)), (
            b'ok', [b'/key', b'/key', *[b"/~there/!$&'()*,;=:@"] * 2]))
        self.check_signatures(server)
        for sent in server.requests:
            self.assertTrue(sent.endswith(
                b'\r\n\r\n2\r\nda\r\n3\r\nta!\r\n0\r\n\r\n'), sent)


class S3Test(ClientTest):

    @classmethod
    def setUpClass(cls):
        moto()

    buckets = itertools.count()  # Ports come again

    async def bucket(self, host='localhost'):
        """A server that hands over to moto what it records, and the URL of a new bucket on it."""
        server = self.serve(moto().answer, host=host)
        url = '%s/bucket-%d' % (server.url, next(self.buckets))
        code, _, body = await fetch(self.signed(SIGNED), b'PUT', url)
        self.assertEqual(code, b'200', body)
        return server, url

    def folder(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        return folder.name


class TestS3(S3Test):

    async def test_keys_of_all_kinds_are_signed_as_they_are_sent(self):
        keys = ['key', 'a/b.c', 'two words', '\xfc\u20ac\U0001f600', 'a+b=c&d', '100%', '%zz%',
                "!$'()*,:@~-._", '"<>[]\\^`{|}']
        server, url = await self.bucket()
        for layer in SIGNED, UNSIGNED:
            request = self.signed(layer)
            prefix = layer.__name__ + '/'
            for key in keys:
                data = os.urandom(10)
                length = () if layer is SIGNED else ((b'content-length', b'10'),)
                await fetch(request, b'PUT', '%s/%s%s' % (url, prefix, key),
                            headers=length, body=streamed(data))
                answer = await fetch(request, b'GET', '%s/%s%s' % (url, prefix, key))
                self.assertEqual((answer[0], answer[2]), (b'200', data))
            _, _, listing = await fetch(
                request, b'GET', url, params=(('list-type', '2'), ('prefix', prefix)))
            self.assertEqual(listed_keys(listing), sorted(prefix + key for key in keys))
        self.check_signatures(server)

    async def test_params_headers_and_session_tokens_are_signed_as_they_are_sent(self):
        async def with_token():
            return AMZ_KEY, AMZ_SECRET, ((b'x-amz-security-token', b'to+ken/=='),)
        server = self.serve(OK)
        url = server.url.replace('localhost', 'LocalHost') + '/a;b=c/'
        for layer, (params, expected) in itertools.product((SIGNED, UNSIGNED), (
                ((('a', 'b'),), b'a=b'),
                ((('b', '2'), ('a', '1')), b'b=2&a=1'),
                ((('a', '2'), ('a', '1'), ('a', '')), b'a=2&a=1&a='),
                ((('uploads', ''),), b'uploads='),
                ((('a b', 'c d'), ('+', '+')), b'a%20b=c%20d&%2B=%2B'),
                ((('prefix', 'a/b'), ('~*', "~-._!'()")), b'prefix=a%2Fb&~%2A=~-._%21%27%28%29'),
                ((('\xe9', '\u20ac&='), ('%41', '%2F')), b'%C3%A9=%E2%82%AC%26%3D&%2541=%252F'))):
            await fetch(self.signed(layer, with_token), b'GET', url, params=params, headers=(
                (b'X-Amz-Meta-B', b'  two   words '), (b'range', b'bytes=0-9'),
                (b'accept', b'*/*')))
            self.assertEqual(targets(server)[-1], b'/a;b=c/?' + expected)
            self.assertIn(b'\r\nx-amz-security-token: to+ken/==\r\n', server.requests[-1])
        self.check_signatures(server)

    async def test_mobius3_syncs_folders(self):
        server, url = await self.bucket()
        first, second = self.folder(), self.folder()
        async with self.mobius3(server, url, first):
            write_files(first, {
                'file': b'some text', 'empty': b'', 'to be renamed \xe9': os.urandom(100001),
                'to be deleted': b'old', 'folder/deep/file +&=.bin': os.urandom(50000),
                'moved/file': b'moved'})
        async with self.mobius3(server, url, second):
            self.assertEqual(read_files(second), read_files(first))
        self.assertEqual(len(read_files(second)), 6)

        async with self.mobius3(server, url, first):
            os.rename(first + '/to be renamed \xe9', first + '/folder/renamed')
            os.rename(first + '/moved', first + '/elsewhere')
            os.remove(first + '/to be deleted')
        async with self.mobius3(server, url, second):
            self.assertEqual(read_files(second), read_files(first))
        self.assertEqual(sorted(read_files(second)), [
            'elsewhere/file', 'empty', 'file', 'folder/deep/file +&=.bin', 'folder/renamed'])
        self.check_signatures(server)

    @contextlib.asynccontextmanager
    async def mobius3(self, server, url, folder):
        """Downloads what is new before the block, and uploads what is after it."""
        self.forgive_utcnow(UNSIGNED)
        with LogRecords('mobius3', logging.WARNING) as logged:
            start, stop = mobius3.Syncer(
                folder, url.rpartition('/')[2], server.url + '/{}/', REGION,
                get_credentials=credentials, get_pool=self.pool_and_close,
                local_modification_persistance=0)
            await start()
            yield
            await stop()
        self.assertEqual(logged.messages(), [])


def listed_keys(listing):
    return [element.text for element in xml.etree.ElementTree.fromstring(listing).iter()
            if element.tag.endswith('}Key')]


def write_files(folder, contents):
    for name, data in contents.items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def read_files(folder):
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in Path(folder).rglob('*') if path.is_file()}


# ---- README and examples ----


ROOT = Path(__file__).resolve().parent


async def until(condition):
    for _ in range(TEST_SECONDS * 100):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise asyncio.TimeoutError


def hang_up(request, answer=None):
    """Close the connection, after what was written."""
    if request.transport is not None:
        request.transport.close()
    return answer or web.Response()


async def hello(server, request):
    """Answers with the body of the request, or else with some JSON."""
    return web.Response(body=await request.read() or b'{"hello": "world"}')


async def on_number(server, request):
    await server.wait_for_others(10)
    return web.Response(body=b'a', status=404 if request.path == '/49' else 200)


async def on_form(server, request):
    return web.Response(text=repr(urllib.parse.parse_qsl(await request.text())))


async def on_multipart(server, request):
    server.parts = [(part.headers['content-disposition'], await part.read())
                    async for part in await request.multipart()]
    return web.Response(body=b'stored', status=201)


async def on_file(server, request):
    if request.method != 'PUT':
        return web.Response(body=server.file)
    server.file = await request.read()
    return web.Response(status=201)


async def on_lines(server, request):
    """Sends each chunk once the example has printed what it makes of those before."""
    answer = await begun_answer(request)
    for chunk, text in ((b'{"number": 1}\n{"num', "{'number': 1}"),
                        (b'ber": 2}\r\n', "{'number': 2}"), (b'{"number": 3}', '')):
        await answer.write(chunk)
        await until(lambda text=text: text in server.printed.getvalue())
    return answer


async def on_coded(server, request):
    assert request.headers['accept-encoding'] == 'gzip, br'
    name = request.path.split('/')[2]
    return web.Response(body=coded(name), headers={} if name == 'plain' else {
        'content-encoding': 'br' if name == 'br' else 'GZIP'})


async def on_redirects(server, request):
    location = {
        'relative/start': '../relative/end?x=\xe9', 'moved': '/private',
        'elsewhere': 'https://example.com:8443/private', 'endless': 'endless',
        'insecure': 'http://localhost:8080/private'}.get(request.path[len('/redirects/'):])
    if location is None:
        return web.Response(text=request.raw_path)
    return web.Response(body=b'moved', status=302, headers={'location': location})


async def on_login(server, request):
    return web.Response(body=b'welcome', headers=[
        ('set-cookie', 'a=1; HttpOnly'), ('set-cookie', 'b=2; Path=/other')])


async def on_flaky(server, request):
    number = len(server.requests)
    if number == 1:
        return hang_up(request)
    if number == 2:
        answer = await begun_answer(request, content_length='6')
        await answer.write(b'who')
        return hang_up(request, answer)
    if number == 3:
        return web.Response(body=b'busy', status=503, headers={'retry-after': '0'})
    return web.Response(body=b'whole!')


async def on_slow(server, request):
    answer = await begun_answer(request, content_length='1000')
    for _ in range(1000):
        await answer.write(b'a')
        await asyncio.sleep(0.02)
    return answer


def address_of_client(request):
    address = request.transport.get_extra_info('peername')
    return repr(address and address[0])


# By the first part of the path: answers, and texts to answer with
ANSWERS = {
    'form': on_form, 'multipart': on_multipart, 'file': on_file, 'numbers.ndjson': on_lines,
    'coded': on_coded, 'redirects': on_redirects, 'login': on_login, 'flaky': on_flaky,
    'slow': on_slow}
TEXT_ANSWERS = {
    'agent': lambda request: request.headers['user-agent'],
    'cookies': lambda request: str(request.headers.get('cookie')),
    'private': lambda request: str(request.headers.get('authorization')),
    'v2': lambda request: repr([request.raw_path, request.headers['user-agent'],
                                request.headers.getall('accept')]),
    'host': lambda request: request.headers['host'],
    'client': address_of_client}


async def answer_docs(server, request):
    """Answers the blocks of README and docs as a server would that they could be for."""
    name = request.path.split('/')[1]
    if name in TEXT_ANSWERS:
        return web.Response(text=TEXT_ANSWERS[name](request))
    return await (on_number if name.isdigit() else ANSWERS.get(name, hello))(server, request)


@functools.lru_cache(maxsize=None)
def coded(name):
    data = bytes(20000000 if name == 'bomb' else 200000)
    if name in ('plain', 'br'):
        return brotli.compress(data) if name == 'br' else data
    if name == 'members':
        return b''.join(gzip.compress(data[start:start + 50000])
                        for start in range(0, 200000, 50000))
    whole = gzip.compress(data)
    return whole[:-1] if name == 'cut' else whole


class ServedSocket(socket.socket):
    """Connects to a local server, whatever the address."""

    ports = types.MappingProxyType({})
    addresses: typing.ClassVar = []

    def connect_ex(self, address):
        self.addresses.append(address)
        return super().connect_ex(
            address if isinstance(address, str) else ('127.0.0.1', self.ports[address[1]]))


def local_resolver(get_logger_adapter):
    async def resolve(host, record_type, get_logger_adapter):
        return [ipaddress.ip_address('127.0.0.1')]

    async def clear_cache(get_logger_adapter):
        pass

    return resolve, clear_cache


PAGES = ('README.md', *sorted(
    str(page.relative_to(ROOT)) for folder in ('docs', 'benchmarks')
    for page in (ROOT / folder).glob('*.md')))


def text_of(page):
    return (ROOT / page).read_text(encoding='utf-8')


def prose_of(page):
    return re.sub(r'^```.*?^```$', '', text_of(page), flags=re.DOTALL | re.MULTILINE)


def links_of(page):
    return re.findall(r'\]\(([^)]*)\)', text_of(page))


def blocks_of(page, language='python'):
    """The line, the code and the last heading before each block."""
    text = text_of(page)
    blocks = re.finditer(r'^```%s\n(.*?)^```$' % language, text, re.DOTALL | re.MULTILINE)
    return [
        (text.count('\n', 0, block.start()) + 1, block[1],
         re.findall(r'^##+ (.*)', text[:block.start()], re.MULTILINE)[-1])
        for block in blocks]


ECHOED = "200 b'{\"hello\": \"world\"}'\n"

# What the blocks print, in their order
PRINTED = (
    ('README.md', 'First request', '18 bytes\n'),
    ('README.md', 'JSON, a file up, a file down', "{'name': 'value'}\n"),
    ('README.md', 'Layers', "200 b'example/1.0'\n"),
    ('docs/recipes.md', 'In a web application', ECHOED),
    ('docs/recipes.md', 'Forms',
     """b"[('name', 'Zo\\xc3\\xab & co'), ('tag', 'a'), ('tag', 'b')]"\n"""),
    ('docs/recipes.md', 'A file in a form', 'stored\n'),
    ('docs/recipes.md', 'A body of unknown length', '3890\n'),
    ('docs/recipes.md', 'Many at once', 'https://example.com/49 404\n49\n'),
    ('docs/recipes.md', 'Lines as they come', "{'number': 1}\n{'number': 2}\n{'number': 3}\n"),
    ('docs/recipes.md', 'Decompression',
     'gzip 200 200000\nmembers 200 200000\nbr 200 200000\nplain 200 200000\n'
     'bomb more than 1000000 bytes, decompressed\ncut the compressed data is cut short\n'),
    ('docs/recipes.md', 'Redirects',
     "200 b'/redirects/relative/end?x=%C3%A9'\n200 b'Bearer secret'\n200 b'None'\n"
     'a redirect from https to http\nmore than 10 redirects\n'),
    ('docs/recipes.md', 'Cookies', "200 b'welcome'\n200 b'a=1'\n200 b'None'\n"),
    ('docs/recipes.md', 'Authentication',
     "200 b'Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=='\n200 b'Bearer mF_9.B5f-4.1JqM'\n200 b'None'\n"),
    ('docs/recipes.md', 'A base URL and default headers',
     """200 b"['/v2/items', 'example/1.0', ['text/csv']]"\n"""),
    ('docs/recipes.md', 'Another try',
     'again, after HttpConnectionClosedError\n' * 2 + "again, after 503\n(b'200', b'whole!')\n"),
    ('docs/recipes.md', 'A deadline', 'given up: 0.2 seconds have passed\n'),
    ('docs/recipes.md', 'The host with its port', "200 b'localhost'\n200 b'localhost:8080'\n"),
    ('docs/recipes.md', "Names by the system's resolver", ECHOED),
    ('docs/recipes.md', 'Names by a table', ECHOED),
    ('docs/recipes.md', 'Sockets of your own', """200 b"''"\n200 b"'127.0.0.2'"\n"""),
    ('docs/recipes.md', 'Addresses that are refused',
     'no connection to 127.0.0.1, port 8080: ...\nno connection to localhost, port 8080: ...\n'),
    ('docs/recipes.md', 'Tests without a network', 'passed\n'),
    ('docs/reference.md', 'The request', ECHOED),
    ('docs/reference.md', 'TLS', ECHOED),
    ('docs/reference.md', 'Logging', ECHOED),
)

# What makes a program of README's layer
OF_LAYER = """
import asyncio
from lowhaio import Pool, buffered

async def main():
    request, close = Pool()
    code, _, body = await with_user_agent(request)(b'GET', 'https://example.com/agent')
    print(code.decode(), await buffered(body))
    await close()

asyncio.run(main())
"""


def run_app(coroutine):
    """Stand in for aiohttp's run_app, which runs for ever: ask the application once."""
    async def main():
        runner = web.AppRunner(await coroutine)
        await runner.setup()
        await web.TCPSite(runner, '127.0.0.1', 0).start()
        reader, writer = await asyncio.open_connection(*runner.addresses[0])
        writer.write(b'GET / HTTP/1.0\r\n\r\n')
        head, _, body = (await reader.read()).partition(b'\r\n\r\n')
        writer.close()
        await runner.cleanup()
        print(head.split()[1].decode(), body)
    asyncio.run(main())


class TestDocs(unittest.TestCase):

    maxDiff = None

    def setUp(self):
        authority = trustme.CA()
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert('example.com').configure_cert(tls)
        authority.configure_trust(tls)
        tls.verify_mode = ssl.CERT_OPTIONAL

        folder = self.enter(tempfile.TemporaryDirectory())
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder)
        authority.cert_pem.write_to_path('ca.pem')
        authority.issue_cert('client.example.com').private_key_and_cert_chain_pem.write_to_path(
            'client.pem')
        self.data = bytes(range(256)) * 1000
        Path('file.bin').write_bytes(self.data)
        coded('bomb')  # Before memory is measured

        self.https = self.enter(served(answer_docs, tls))
        self.http = self.enter(served(answer_docs))
        self.servers = self.https, self.http, self.enter(served(answer_docs, path='app.sock'))
        self.enter(mock.patch.object(ServedSocket, 'ports', {
            443: self.https.port, 8443: self.https.port, 8080: self.http.port}))
        self.enter(mock.patch.object(lowhaio, 'Pool', functools.partial(
            lowhaio.Pool, get_dns_resolver=local_resolver, get_sock=sockets(ServedSocket),
            get_ssl_context=functools.partial(ssl.create_default_context, cafile='ca.pem'))))
        self.enter(mock.patch.object(web, 'run_app', run_app))

    def enter(self, context):
        value = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        return value

    def test_python_blocks_print_and_do_what_is_expected(self):
        blocks = [(page, *block) for page in PAGES for block in blocks_of(page)]
        self.assertEqual([(page, heading) for page, _, _, heading in blocks],
                         [(page, heading) for page, heading, _ in PRINTED])
        for (page, line, source, heading), (_, _, printed) in zip(blocks, PRINTED):
            with self.subTest(page=page, line=line, heading=heading):
                whole = source + OF_LAYER * (heading == 'Layers')
                self.check_convention(whole)
                self.printed = self.run_block(page, line, whole)
                self.assertEqual(
                    re.sub(r'(no connection to .*?: ).*', r'\1...', self.printed), printed)
                self.assertEqual(
                    ServedSocket.addresses,
                    self.ADDRESSES.get(heading, ServedSocket.addresses))
                getattr(self, 'check_' + re.sub(r'\W+', '_', heading.lower()), bool)()

    ADDRESSES = types.MappingProxyType({
        "Names by the system's resolver": [('127.0.0.1', 8080)],
        'Names by a table': [('192.0.2.7', 443)],
        'Sockets of your own': ['app.sock', ('127.0.0.1', 8080)],
        'Addresses that are refused': []})

    def check_json_a_file_up_a_file_down(self):
        self.assertTrue(self.https.file == self.data)  # A difference would take long to show
        self.assertTrue(Path('copy.bin').read_bytes() == self.data)

    def check_many_at_once(self):
        self.assertEqual(self.https.most_active, 10)
        self.assertEqual(sorted(self.https.requests), sorted(
            ('GET', '/%d' % number) for number in range(50)))

    def check_a_file_in_a_form(self):
        (field, value), (file, data) = self.https.parts
        self.assertEqual((field, value), ('form-data; name="title"', b'My "file"'))
        self.assertEqual(file, 'form-data; name="upload"; filename="file.bin"')
        self.assertTrue(data == self.data)

    def check_decompression(self):
        self.assertLess(self.peak, 10000000)

    def check_redirects(self):
        self.assertEqual(len([path for _, path in self.https.requests if 'endless' in path]), 11)

    def check_addresses_that_are_refused(self):
        self.assertEqual(self.printed.count('Permission denied'), 2)

    def check_convention(self, source):
        if 'run_app' not in source:
            self.assertRegex(source, r'async def main\(\)')
            self.assertTrue(source.endswith('\nasyncio.run(main())\n'))
        for url in re.findall(r'\w+://[^\s\']*', source):
            self.assertRegex(
                url, r'^(https://example\.com(:8443)?|http://localhost:8080|http://127\.0\.0\.1:8080)')

    def run_block(self, page, line, source):
        for server in self.servers:
            server.requests.clear()
        ServedSocket.addresses.clear()
        printed = self.https.printed = io.StringIO()
        unraisable = []
        # Compiled so that a traceback shows the line of the page
        code = compile('\n' * line + source, page, 'exec', dont_inherit=True)
        with contextlib.redirect_stdout(printed), silent_root_logger(), \
                mock.patch('sys.unraisablehook', unraisable.append), \
                mock.patch.object(socket, 'socket', ServedSocket):
            tracemalloc.start()
            try:
                exec(code, {'__name__': '__main__'})
                self.peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            gc.collect()
        self.assertEqual(unraisable, [])
        return printed.getvalue()

    def test_params_are_encoded_as_the_block_says(self):
        found = [(line, source) for line, source, _ in blocks_of('docs/reference.md')
                 if '# GET /' in source]
        self.assertEqual(len(found), 1)
        self.run_block('docs/reference.md', *found[0])
        self.assertIn('# %s %s\n' % self.https.requests[0], found[0][1])

    PASSES_CODES_ON = ('In a web application', 'Layers', 'Another try', 'Tests without a network')

    def test_code_that_is_not_expected_is_an_error_of_each_block_that_does_not_print_it(self):
        async def refuse(server, request):
            if request.method != method:
                return await answer_docs(server, request)
            await request.read()
            return web.Response(body=b'{"a": 1}', status=500)
        self.https.answer = self.http.answer = refuse
        for page in PAGES:
            for line, source, heading in blocks_of(page):
                if heading in self.PASSES_CODES_ON or re.search(r'print\((\w+, )?code', source):
                    continue
                for method in re.findall(r"request\(\s*b'(\w+)'", source):
                    with self.subTest(page=page, line=line, heading=heading, method=method):
                        with self.assertRaisesRegex(RuntimeError, '500'):
                            self.run_block(page, line, source)
                        self.assertFalse(Path('copy.bin').exists())

    def test_first_two_commands(self):
        commands = [command for _, command, _ in blocks_of('README.md', 'bash')]
        self.assertEqual(commands[:2], [
            'python -m pip install . && python examples/quickstart.py\n',
            "python -m pip install '.[test]' && python -W error -X dev -m unittest\n",
        ])


class TestPages(unittest.TestCase):
    """What can be told of README and docs without running them."""

    def test_links_lead_to_files_and_headings(self):
        links = [(page, link) for page in PAGES for link in links_of(page)]
        self.assertGreater(len(links), 60)
        for page, link in links:
            if not re.match(r'https?://', link):
                with self.subTest(page=page, link=link):
                    path, _, heading = link.partition('#')
                    target = (ROOT / page).parent / path if path else ROOT / page
                    self.assertTrue(target.exists(), target)
                    if heading:
                        headings = [
                            re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-')
                            for title in re.findall(r'^##+ (.*)', prose_of(target), re.MULTILINE)]
                        self.assertEqual(headings.count(heading), 1, headings)

    def test_each_page_and_example_is_linked(self):
        linked = {
            os.path.normpath(os.path.join(os.path.dirname(page), link.partition('#')[0]))
            for page in PAGES for link in links_of(page)}
        text = ''.join(map(text_of, PAGES))
        self.assertEqual([page for page in PAGES[1:] if page not in linked], [])
        self.assertEqual([
            path.name for path in (ROOT / 'examples').glob('*.py')
            if path.name not in text and path.name != 'quickstart_server.py'], [])

    def test_no_paragraph_stands_in_two_places(self):
        seen = {}
        for page in PAGES:
            for part in re.split(r'\n\n|\n(?=- |\| )', prose_of(page)):
                paragraph = ' '.join(part.split())
                if len(paragraph) > 60 and ' --- ' not in paragraph:
                    self.assertIsNone(seen.get(paragraph), (page, paragraph))
                    seen[paragraph] = page

    def test_table_of_arguments_has_all_of_them_and_their_defaults(self):
        readme = text_of('README.md')
        table = readme[readme.index('\nOf `Pool`:'):readme.index('\n## Layers')]
        for name, parameter in inspect.signature(lowhaio.Pool).parameters.items():
            with self.subTest(name=name):
                row = next(row for row in table.splitlines() if '`%s`' % name in row)
                if not callable(parameter.default):
                    self.assertIn('`%r`' % (parameter.default,), row)

    def test_tree_of_exceptions_is_that_of_the_module(self):
        def lines(kind, prefix=''):
            for index, child in enumerate(kind.__subclasses__()):
                is_last = index == len(kind.__subclasses__()) - 1
                yield prefix + ('└── ' if is_last else '├── ') + child.__name__
                yield from lines(child, prefix + ('    ' if is_last else '│   '))

        public = [line for line in lines(HttpError) if '_' not in line]
        shown = re.findall(r'^    (.*?Http\w+)', text_of('README.md'), re.MULTILINE)
        self.assertEqual(sorted(shown), sorted(['HttpError', *public]))


@contextlib.contextmanager
def silent_root_logger():
    """Take back what logging.basicConfig does, and keep its messages out of the way."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with mock.patch.object(sys, 'stderr', io.StringIO()):
        try:
            yield
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)


def run_script(name, *arguments, folder, **environment):
    """Run one of the examples; return its exit code, output and report."""
    with run_in_background(name, *arguments, folder=folder, **environment) as process:
        try:
            output, report = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, output, clean(report)


def clean(report):
    """A report without what asyncio says, in development mode, of a busy machine's slow steps."""
    return re.sub(r'(?m)^Executing <.*\n', '', report.decode())


def interrupted_process(process):
    """What a process has printed that is ended by SIGINT: again, if a finalizer has taken it."""
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=10)
    process.kill()
    raise AssertionError('SIGINT does not end it: %r' % (process.communicate(),))


def run_in_background(name, *arguments, folder, **environment):
    # A shell's job in the background ignores SIGINT, and so would what it starts
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return subprocess.Popen(
            [sys.executable, '-W', 'error',
             # Of the package, which is as it is published
             '-W', 'ignore:datetime.datetime.utcnow:DeprecationWarning',
             '-X', 'dev', str(ROOT / 'examples' / name), *arguments],
            cwd=folder, env=dict(os.environ, PYTHONPATH=str(ROOT), TMPDIR=folder, **environment),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, handler)


def example(name, run_name=None):
    """Return an example as a module: from Python 3.15 on, a traceback needs its loader."""
    spec = importlib.util.spec_from_file_location(
        run_name or name[:-len('.py')], ROOT / 'examples' / name)
    module = importlib.util.module_from_spec(spec)
    with mock.patch.object(sys, 'path', [str(ROOT / 'examples'), *sys.path]):
        spec.loader.exec_module(module)
    return module


def url_of(server):
    return 'http://127.0.0.1:%d/' % server.port


class ExampleTest(unittest.TestCase):

    maxDiff = None

    def setUp(self):
        context = tempfile.TemporaryDirectory()
        self.folder = Path(context.__enter__())
        self.addCleanup(context.__exit__, None, None, None)

    def run_script(self, *arguments):
        return run_script(*arguments, folder=str(self.folder))


class TestExamples(ExampleTest):

    def test_each_has_help_and_refuses_what_it_does_not_know(self):
        for name, (argument, code, words) in itertools.product(
                ('quickstart.py', 'download.py', 'upload.py', 'sse.py', 'proxy.py', 'crawler.py'),
                (('--help', 0, 'usage: %s'), ('--unknown', 2, '%s: error: '))):
            printed = io.StringIO()
            with self.subTest(name=name, argument=argument), \
                    mock.patch.object(sys, 'argv', [name, argument]), \
                    contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                with self.assertRaises(SystemExit) as exit_:
                    example(name, '__main__')
                self.assertEqual(exit_.exception.code, code)
                self.assertIn(words % name, printed.getvalue())


class TestQuickstart(ExampleTest):

    def test_it_sends_a_file_and_gets_it_back(self):
        code, output, report = self.run_script('quickstart.py', '--megabytes', '5')
        self.assertEqual((code, report), (0, ''))
        self.assertRegex(output, rb'\A100 % of 5000000 bytes sent, \d+ MB/s\n'
                                 rb'100 % of 5000000 bytes received, \d+ MB/s\n'
                                 rb'The same came back\n\Z')
        self.assertEqual(read_files(self.folder), {})

    def test_code_that_is_not_expected_is_an_error_and_leaves_no_file(self):
        async def main(function, path):
            request, close = Pool()
            with self.assertRaisesRegex(RuntimeError, '404'):
                await function(request, url_of(server) + 'x', str(path))
            await close()
        script = example('quickstart.py')
        write_files(self.folder, {'file': b'data'})
        with served(site) as server, contextlib.redirect_stdout(io.StringIO()):
            asyncio.run(main(script.upload, self.folder / 'file'))
            asyncio.run(main(script.download, self.folder / 'copy'))
        self.assertEqual(read_files(self.folder), {'file': b'data'})


async def site(server, request):
    """A site of 30 pages, each with links to the next ones, and some that lead nowhere."""
    name = request.path[1:]
    if name != '0':
        await server.wait_for_others(getattr(server, 'at_once', 1))
    if name == 'cut':
        return hang_up(request)
    if name == 'moved':
        return web.Response(status=302, headers={'location': '/here'})
    if name == 'data':
        return web.Response(text='<a href="/not-a-link">')
    if not name.isdigit() or int(name) >= 30:
        return web.Response(status=404)
    links = ['/%d#part' % (int(name) + more) for more in range(1, 8)]
    links += ['../%s' % name, '/data', '/moved', '/cut', 'http://localhost:9/', 'http://[',
              'mailto:a@b', '\x00']
    return web.Response(content_type='text/html', text='<p>' + ''.join(
        '<a class="b" href="%s">c</a>' % link for link in links))


class TestCrawler(ExampleTest):

    def crawl(self, server, *arguments):
        return self.run_script('crawler.py', url_of(server) + '0', *arguments)

    def test_it_lists_the_pages_of_a_site_four_at_once_and_goes_on_after_errors(self):
        with served(site, at_once=4) as server:
            code, output, report = self.crawl(server, '--at-once', '4')
        codes = {**{'%d' % number: '200' if number < 30 else '404' for number in range(37)},
                 'data': '200', 'moved': '302', 'here': '404'}
        self.assertEqual(sorted(output.decode().split('\n')), sorted(
            ['', *('%s %s%s' % (codes[name], url_of(server), name) for name in codes)]), report)
        self.assertEqual((code, server.most_active), (1, 4), report)
        self.assertEqual(len(server.requests), 41)
        self.assertRegex(report, r"\A'http://.*/cut': the server closed .*\n\Z")

    def test_it_stops_at_the_number_of_pages_that_is_given(self):
        with served(site) as server:
            code, output, report = self.crawl(server, '--at-once', '2', '--pages', '5')
        self.assertEqual((code, len(output.splitlines()), len(server.requests)), (0, 5, 5), report)


async def ranges(server, request):
    """Serves files in parts, and closes its connection after so many bytes of each response."""
    name, field = urllib.parse.unquote(request.raw_path[1:]), request.headers.get('range')
    if name not in server.files:
        return web.Response(body=b'no such file', status=404)
    data, start = server.files[name], int(field[6:-1]) if field else 0
    server.asked.append((name, start))
    if field and start >= len(data):
        return web.Response(status=416, headers={'content-range': 'bytes */%d' % len(data)})
    fields = {'content_range': 'bytes %d-%d/%d' % (start, len(data) - 1, len(data))}
    answer = await begun_answer(request, 206 if start else 200,
                                content_length=str(len(data) - start), **fields if start else {})
    await answer.write(data[start:][:server.cut_after.pop(0) if server.cut_after else None])
    if server.hangs:
        await server.until_gone(request)
    return hang_up(request, answer)


class TestDownload(ExampleTest):

    def setUp(self):
        super().setUp()
        self.data = os.urandom(300000)
        self.into = self.folder / 'into'
        self.into.mkdir()

    def server(self, *cut_after, hangs=False, **files):
        return served(ranges, files={'file': self.data, **files}, cut_after=[*cut_after],
                      asked=[], hangs=hangs)

    def arguments(self, server, files):
        (self.folder / 'SUMS').write_text(''.join(
            '%s  %s\n' % (hashlib.sha256(data).hexdigest(), name)
            for name, data in files.items()), encoding='utf-8')
        return ('download.py', url_of(server), 'SUMS', '--into', str(self.into), '--at-once', '2')

    def downloads(self, server, files, code=0, missing=()):
        """Run it; all files must be there then, but those that are missing. Return the report."""
        result = self.run_script(*self.arguments(server, files))
        self.assertEqual(result[0], code, result)
        self.assertTrue(read_files(self.into) == {
            name: data for name, data in files.items() if name not in missing}, result)
        return result[2]

    def test_files_of_all_names_are_there_in_the_end(self):
        files = {'file': self.data, 'a/b c?#%41\xe9': b'odd', 'empty': b''}
        with self.server(**files) as server:
            self.assertTrue(self.downloads(server, files).endswith('3 of 3\r'))

    def test_file_that_is_cut_twice_is_gone_on_with_where_it_was(self):
        with self.server(100000, 50000) as server:
            self.downloads(server, {'file': self.data})
        self.assertEqual(server.asked, [('file', 0), ('file', 100000), ('file', 150000)])

    def test_part_of_an_earlier_run_is_gone_on_with_and_a_whole_one_is_kept(self):
        for name, size, asked in (('file.part', 200000, [('file', 200000)]),
                                  ('file.part', 300000, [('file', 300000)]), ('file', 300000, [])):
            write_files(self.into, {name: self.data[:size]})
            with self.subTest(name=name, size=size), self.server() as server:
                self.downloads(server, {'file': self.data})
                self.assertEqual(server.asked, asked)
            (self.into / 'file').unlink()

    def test_file_with_another_checksum_or_code_is_missing_and_the_rest_is_there(self):
        write_files(self.into, {'wrong.part': b'old'})
        missing = {'wrong': b'expected', 'missing': b'', '../outside': b''}
        with self.server(wrong=b'another') as server:
            report = self.downloads(server, {**missing, 'file': self.data}, 1, missing)
        for line in ('wrong: its checksum is another one', 'missing: the server answered 404',
                     '../outside: not a name in the folder'):
            self.assertIn(line, report)

    def test_program_that_is_killed_leaves_what_the_next_one_goes_on_with(self):
        part, files = self.into / 'file.part', {'file': self.data}
        with self.server(100000, hangs=True) as server, run_in_background(
                *self.arguments(server, files), folder=str(self.folder)) as process:
            while not part.exists() or part.stat().st_size < 65536:
                self.assertIsNone(process.poll())
                time.sleep(0.01)
            process.kill()
            process.communicate()
        size = part.stat().st_size
        with self.server() as server:
            self.downloads(server, files)
        self.assertEqual(server.asked, [('file', size)])

    def test_slash_that_is_missing_is_an_error(self):
        write_files(self.folder, {'SUMS': b''})
        code, _, report = self.run_script('download.py', 'http://localhost/a', 'SUMS')
        self.assertEqual(code, 2)
        self.assertIn('does not end with a slash', report)


class TestUpload(S3Test):
    """examples/upload.py"""

    ENVIRONMENT = types.MappingProxyType({
        'AWS_ACCESS_KEY_ID': AMZ_KEY, 'AWS_SECRET_ACCESS_KEY': AMZ_SECRET, 'AWS_REGION': REGION})

    async def test_files_are_uploaded_whatever_their_names(self):
        self.forgive_utcnow(UNSIGNED)
        files = {'file': b'some text', 'empty': b'', 'a/b/large': bytes(range(256)) * 1000,
                 "a%20b 100% \xe9+;:@&=$,!*'()~?#": b'odd'}
        server, url = await self.bucket('127.0.0.1')
        folder = self.folder()
        write_files(folder, files)
        with mock.patch.dict(os.environ, self.ENVIRONMENT), \
                contextlib.redirect_stdout(io.StringIO()) as printed:
            self.assertEqual(
                await example('upload.py').upload(Path(folder), url + '/in/', 2), 0)
        self.assertEqual(sorted(printed.getvalue().splitlines()), sorted(files))

        request = self.signed(UNSIGNED)
        _, _, listing = await fetch(request, b'GET', url, params=(('list-type', '2'),))
        self.assertEqual(listed_keys(listing), sorted('in/' + name for name in files))
        _, _, body = await fetch(request, b'GET', url + '/in/a/b/large')
        self.assertEqual(body, files['a/b/large'])
        self.check_signatures(server)

    async def test_command(self):
        _, url = await self.bucket()
        for bucket, code, output, report in (
                (url.rpartition('/')[2] + '/', 0, b'file\n', r'\Z'),
                ('not-there/', 1, b'', r'file: 404, .*NoSuchBucket'),
                ('not-there', 2, b'', r'(.|\n)*does not end with a slash\n')):
            folder = self.folder()
            write_files(folder, {'file': b'data'})
            finished = run_script(
                'upload.py', folder, 'http://127.0.0.1:%d/%s' % (moto().address[1], bucket),
                folder=self.folder(), **self.ENVIRONMENT)
            self.assertEqual(finished[:2], (code, output), finished)
            self.assertRegex(finished[2], r'\A' + report)
        answer = await fetch(self.signed(UNSIGNED), b'GET', url + '/file')
        self.assertEqual((answer[0], answer[2]), (b'200', b'data'))


async def events(server, request):
    """A streaming API: each request takes the next part of a script."""
    server.bodies.append(await request.read())
    step = server.script.pop(0)
    if isinstance(step, int):
        return web.Response(body=b'not now', status=step, headers={'retry-after': '0'})
    answer = await begun_answer(request, content_type='text/event-stream')
    for chunk in step:
        await (answer.write(chunk) if chunk else server.until_gone(request))
    return answer


class TestSse(ExampleTest):

    STREAM = (b': hello\r\n\r\nevent: a\ndata: {"n":\ndata:1}\n\nid: 7\ndata: \xc3\xa9\r\n\r\n'
              b'data: three\n\n\n\ndata: not whole')
    EVENTS = '{"n":\n1}\n\xe9\nthree\n'

    def server(self, *script):
        return served(events, script=[*script], bodies=[])

    def prints(self, script, code, printed, words, *arguments):
        """What it prints and reports, given the script of a server."""
        with self.subTest(script=script), self.server(*script) as server:
            result = self.run_script('sse.py', url_of(server), '{"prompt": "x"}', *arguments)
            self.assertEqual(set(server.bodies), {b'{"prompt": "x"}'})
            self.assertEqual((result[0], result[1].decode()), (code, printed), result)
            self.assertRegex(result[2], words)

    def test_events_are_printed_wherever_the_stream_is_cut(self):
        self.prints([[self.STREAM]], 0, self.EVENTS, r'\A\Z')
        script = example('sse.py')
        for size in range(1, len(self.STREAM)):
            for start in range(size if size > 2 else 1):
                cuts = [0, *range(start or size, len(self.STREAM), size), len(self.STREAM)]
                events = script.Events()
                found = [event for first, last in zip(cuts, cuts[1:])
                         for event in events.feed(self.STREAM[first:last])]
                self.assertEqual('\n'.join(found) + '\n', self.EVENTS)

    def test_429_and_503_are_tried_again_and_other_codes_and_too_many_tries_are_errors(self):
        self.prints([429, 503, [self.STREAM]], 0, self.EVENTS,
                    r'\A429: again in 0 s\n503: again in 0 s\n\Z')
        for script in ([500], [429, 429]):
            self.prints(script, 1, '', "the server answered %d: b'not now'\n" % script[-1],
                        '--tries', '2')

    def test_event_without_an_end_is_an_error(self):
        for stream in ([b'data: ' + bytes(500000)] * 3, [b'data: ' + bytes(99999) + b'\n'] * 11):
            self.prints([stream], 1, '', r'\Aan event is longer than 1000000 bytes\n\Z')

    def test_ctrl_c_closes_the_connection(self):
        with self.server([b'data: one\n\n', None]) as server:
            with run_in_background(
                    'sse.py', url_of(server), '{}', folder=str(self.folder)) as process:
                self.assertEqual(process.stdout.readline(), b'one\n')
                server.waits.wait(10)
                output, report = interrupted_process(process)
            self.assertEqual((process.returncode, output), (130, b''))
            if sys.version_info >= (3, 11):  # KeyboardInterrupt comes anywhere before
                self.assertEqual(clean(report), '')
        self.assertTrue(server.client_is_gone)


def soon(awaitable):
    return asyncio.wait_for(awaitable, TEST_SECONDS)


class TestProxy(unittest.IsolatedAsyncioTestCase):
    """examples/proxy.py between a client and a server of bytes."""

    async def asyncSetUp(self):
        self.connections = asyncio.Queue()
        upstream = await asyncio.start_server(
            lambda *streams: self.connections.put_nowait(streams), '127.0.0.1', 0)
        self.addCleanup(upstream.close)
        self.upstream_port, self.port = upstream.sockets[0].getsockname()[1], free_port()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.process = run_in_background(
            'proxy.py', 'http://127.0.0.1:%d/' % self.upstream_port, '--port', str(self.port),
            folder=folder.name)
        self.addCleanup(self.end)
        loop = asyncio.get_running_loop()
        self.assertIn(b' to http://', await loop.run_in_executor(
            None, self.process.stdout.readline))

    def end(self):
        with self.process:
            self.process.terminate()
            report = self.process.communicate(timeout=TEST_SECONDS)[1]
        self.assertEqual((self.process.returncode, clean(report)), (0, self.report))

    report = ''

    async def begin(self, line, *fields):
        """Send a head, and return the one that comes out at the other end, in lower case."""
        self.client, self.to_proxy = await asyncio.open_connection('127.0.0.1', self.port)
        self.addCleanup(self.to_proxy.close)
        self.to_proxy.write(b'\r\n'.join((line + b' HTTP/1.1', b'Host: proxy', *fields, b'', b'')))
        self.upstream, self.to_client = await soon(self.connections.get())
        self.addCleanup(self.to_client.close)
        return (await soon(self.upstream.readuntil(b'\r\n\r\n'))).lower().split(b'\r\n')[:-2]

    async def goes_up(self, data):
        self.to_proxy.write(data)
        self.assertEqual(await soon(self.upstream.readexactly(len(data))), data)

    async def comes_down(self, data):
        self.to_client.write(data)
        self.assertEqual(await soon(self.client.readexactly(len(data))), data)

    async def answer(self, *lines):
        """Answer with a head, and return the one that comes out."""
        self.to_client.write(b'\r\n'.join((b'HTTP/1.1 ' + lines[0], *lines[1:], b'', b'')))
        head = (await soon(self.client.readuntil(b'\r\n\r\n'))).lower().split(b'\r\n')[:-2]
        self.assertEqual(head[0].split()[1], lines[0][:3])
        return head

    async def test_head_and_body_are_passed_on_each_way(self):
        data = gzip.compress(os.urandom(10))
        head = await self.begin(
            b'POST /a%2Fb?c=%20', b'Content-Encoding: gzip', b'X-A: 1', b'Connection: x-b',
            b'X-B: 2', b'Content-Length: %d' % len(data))
        self.assertEqual(head[0], b'post /a%2fb?c=%20 http/1.1')
        self.assertEqual(sorted(head[1:]), sorted((
            b'content-encoding: gzip', b'content-length: %d' % len(data), b'x-a: 1',
            b'host: 127.0.0.1:%d' % self.upstream_port, b'x-forwarded-for: 127.0.0.1')))
        await self.goes_up(data)
        head = await self.answer(b'203 OK', b'x-c: 3', b'keep-alive: timeout=5',
                                 b'content-length: 5')
        self.assertIn(b'x-c: 3', head)
        self.assertNotIn(b'keep-alive', b''.join(head))
        await self.comes_down(b'h')  # Before the rest is there
        await self.comes_down(b'ello')

    async def test_chunks_go_up_as_they_come(self):
        self.assertIn(b'transfer-encoding: chunked',
                      await self.begin(b'PUT /', b'Transfer-Encoding: chunked'))
        await self.goes_up(b'3\r\none\r\n')
        await self.goes_up(b'3\r\ntwo\r\n0\r\n\r\n')
        await self.answer(b'204 No Content')

    async def test_early_response_is_passed_on(self):
        await self.begin(b'PUT /', b'Content-Length: 1000000')
        await self.goes_up(b'abc')
        await self.answer(b'413 Too Large', b'content-length: 3')
        await self.comes_down(b'big')
        await soon(self.upstream.read())  # To the end, for the rest isn't asked for
        self.to_proxy.close()  # Or aiohttp's server would wait for the rest at its end
        await self.to_proxy.wait_closed()

    async def test_echo_that_answers_while_it_still_reads(self):
        await self.begin(b'POST /', b'Transfer-Encoding: chunked')
        await self.answer(b'200 OK', b'transfer-encoding: chunked')
        for chunk in (b'3\r\none\r\n', b'5\r\nthree\r\n', b'0\r\n\r\n'):
            await self.goes_up(chunk)  # Only after the echo of the one before
            await self.comes_down(chunk)

    async def test_client_that_goes_away_ends_the_request(self):
        for fields, begins in (((b'Content-Length: 9',), False), ((), False), ((), True)):
            with self.subTest(fields=fields, begins=begins):
                await self.begin(b'PUT /', *fields)
                if begins:
                    await self.answer(b'200 OK', b'content-length: 9')
                self.to_proxy.transport.abort()
                with contextlib.suppress(ConnectionError):
                    self.assertEqual(await soon(self.upstream.read()), b'')

    async def test_server_that_breaks_off_is_not_taken_for_one_that_has_ended(self):
        await self.begin(b'GET /path')
        await self.answer(b'200 OK', b'transfer-encoding: chunked')
        await self.comes_down(b'3\r\none\r\n')
        self.to_client.close()
        with contextlib.suppress(ConnectionError):
            self.assertNotIn(b'0\r\n\r\n', await soon(self.client.read()))
        self.report = mock.ANY

    async def test_server_that_is_not_there_is_a_502(self):
        await self.begin(b'GET /')
        self.to_client.close()
        self.assertEqual((await soon(self.client.readuntil(b'\r\n\r\n'))).split()[1], b'502')


async def api(server, request):
    """What openai's SDK asks, and some paths that go wrong."""
    body, path = await request.read(), request.path
    server.bodies.append((dict(request.headers), body))
    if path == '/gzip':
        return web.Response(body=gzip.compress(b'plain'), headers={'content-encoding': 'gzip'})
    if path == '/moved':
        return web.Response(status=302, headers={'location': '/here'})
    if path == '/cut':
        answer = await begun_answer(request, content_length='10')
        await answer.write(b'half')
        return hang_up(request, answer)
    if path == '/late':
        await server.until_gone(request)
    if path == '/bad':
        request.transport.write(b'HTTP/1.1 200 OK\r\na : b\r\n\r\n')
        return hang_up(request)
    if path != '/v1/chat/completions':
        return await hello(server, request)
    answer = await begun_answer(request, content_type='text/event-stream')
    for number in range(5):
        await answer.write(
            b'data: {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", '
            b'"choices": [{"index": 0, "delta": {"content": "%d "}}]}\n\n' % number)
        if number == 2 and b'endless' in body:
            await server.until_gone(request)
    await answer.write(b'data: [DONE]\n\n')
    return answer


class TestHttpxTransport(ExampleTest):

    def run_with(self, main, *args, **kwargs):
        """Run main(client, url) with a client of httpx on lowhaio."""
        transport = example('httpx_transport.py').LowhaioTransport

        async def run():
            async with httpx.AsyncClient(transport=transport(*args), **kwargs) as client:
                await main(client, url_of(self.server))
        with served(api, bodies=[]) as self.server:
            asyncio.run(run())

    def test_requests_and_responses_of_all_kinds(self):
        async def lines():
            yield b'one\n'
            yield b''
            yield b'two\n'

        async def main(client, url):
            response = await client.get(
                url.replace('//', '//user:secret@') + 'a%20b?c=d', params={'e': 'f g'})
            self.assertEqual((response.status_code, response.json()), (200, {'hello': 'world'}))
            self.assertEqual(self.server.requests[-1], ('GET', '/a%20b?e=f+g'))
            self.assertIn('authorization', {name.lower() for name in self.server.bodies[-1][0]})

            self.assertEqual((await client.post(url, json={'a': 1})).json(), {'a': 1})
            self.assertEqual((await client.post(url, content=lines())).content, b'one\ntwo\n')
            self.assertEqual(self.server.bodies[-1][0]['Transfer-Encoding'], 'chunked')
            self.assertEqual((await client.put(url, files={'a': b'b'})).status_code, 200)
            self.assertEqual((await client.head(url)).content, b'')
            self.assertEqual((await client.get(url + 'gzip')).text, 'plain')
            response = await client.get(url + 'moved', follow_redirects=True)
            self.assertEqual(response.url.path, '/here')
            async with client.stream('GET', url) as response:
                self.assertEqual(b''.join([part async for part in response.aiter_bytes(3)]),
                                 b'{"hello": "world"}')
        self.run_with(main)

    def test_exceptions_are_those_of_httpx(self):
        async def fails():
            yield b'one'
            raise KeyError('of the caller')

        async def main(client, url):
            for path, kind in (
                    (no_tls.replace('http', 'https'), httpx.ConnectError),
                    (url + 'cut', httpx.RemoteProtocolError), (url + 'late', httpx.ReadTimeout),
                    (url + 'bad', httpx.RemoteProtocolError),
                    ('http://127.0.0.1:9/', httpx.ConnectError),
                    ('ftp://127.0.0.1/', httpx.UnsupportedProtocol)):
                with self.subTest(path=path), self.assertRaises(kind) as caught:
                    await client.get(path)
                self.assertIs(type(caught.exception), kind)
                self.assertIsNotNone(caught.exception.request)
            with self.assertRaises(KeyError):
                await client.post(url, content=fails())
            with self.assertRaises(httpx.LocalProtocolError):
                await client.post(url, content=chunks_of(b'one'), headers={'content-length': 'x'})
        with in_thread(lambda sock: sock.recv(10000)) as no_tls:
            self.run_with(main, timeout=0.3)

    def test_server_that_takes_nothing_is_a_write_timeout(self):
        async def endless():
            while True:
                yield bytes(65536)

        async def main(client, url):
            with socket.create_server(('127.0.0.1', 0)) as sock, \
                    self.assertRaises(httpx.WriteTimeout):
                await client.post(
                    'http://127.0.0.1:%d/' % sock.getsockname()[1], content=endless())
        self.run_with(main, timeout=0.3)

    def test_time_outs_have_a_pool_each_but_no_more_than_eight(self):
        async def main(client, url):
            for number in range(1, 12):
                await client.get(url, timeout=number)
            self.assertEqual(list(client._transport._pools), list(range(4, 12)))
        self.run_with(main)

    async def completion(self, client, url, prompt):
        sdk = openai.AsyncOpenAI(api_key='key', base_url=url + 'v1', http_client=client)
        return await sdk.chat.completions.create(
            model='m', messages=[{'role': 'user', 'content': prompt}], stream=True)

    def test_openai_streams_a_completion_and_closes_one_that_is_left(self):
        async def main(client, url):
            texts = []
            for prompt in ('short', 'endless'):
                stream = await self.completion(client, url, prompt)
                async for event in stream:
                    texts.append(event.choices[0].delta.content)
                    if prompt == 'endless' and len(texts) == 7:
                        await stream.close()
                        break
            self.assertEqual(''.join(texts), '0 1 2 3 4 0 1 ')
        self.run_with(main)
        self.assertTrue(self.server.client_is_gone)

    def test_openai_in_a_task_that_is_cancelled_closes_its_connection(self):
        async def read(client, url, started):
            async with await self.completion(client, url, 'endless') as stream:
                async for event in stream:
                    if event.choices[0].delta.content == '2 ':
                        started.set()

        async def main(client, url):
            started = asyncio.Event()
            task = asyncio.ensure_future(read(client, url, started))
            await started.wait()
            await cancel(task)
        self.run_with(main)
        self.assertTrue(self.server.client_is_gone)
