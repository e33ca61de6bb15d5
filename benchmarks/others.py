"""The servers beside nginx: for many connections, header fields and chunks; for events and echoes;
and a name server. All live in threads of one process, which is not measured."""

import asyncio
import itertools
import mmap
import re
import socket
import socketserver
import struct
import threading
import time

from scenarios import DNS_NAME, EVENT, MIB, SMALL_BODY

NAME_SERVER = '127.5.3.1'
TTL = 60
LINUX_DEVICE = getattr(socket, 'SO_BINDTODEVICE', None)


class Responder(asyncio.Protocol):
    """Answers each request at once, but GET /hold/N-ID only when N of these have arrived, so that
    they are on as many connections."""

    held = {}  # Transports, by target
    numbers = itertools.count()

    def connection_made(self, transport):
        self.transport = transport
        self.missing = 0
        transport.get_extra_info('socket').setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data):
        if self.missing:
            self.received(len(data))
            return
        method, _, rest = data.partition(b' ')
        target = rest.partition(b' ')[0].decode()
        _, kind, *values = target.split('/')
        if method == b'PUT':
            head, _, body = data.partition(b'\r\n\r\n')
            length = re.search(b'(?i)\r\ncontent-length: *([0-9]+)', head)[1]
            self.missing = int(length)
            self.received(len(body))
        elif kind == 'hold':
            self.hold(target, int(values[0].split('-')[0]))
        elif kind == 'chunks':
            self.transport.write(chunked(int(values[0])))
        else:
            self.transport.write(response(int(values[0]) if values else 5))

    def received(self, number):
        self.missing -= number
        if not self.missing:
            self.transport.write(response(5))

    def hold(self, target, number):
        held = self.held.setdefault(target, [])
        held.append(self.transport)
        if len(held) == number:
            for transport in self.held.pop(target):
                transport.write(response(5))


def response(fields):
    """A response with that many fields, of which every second differs each time."""
    number = next(Responder.numbers)
    return b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n%s\r\n%s' % (
        len(SMALL_BODY), b''.join(
            b'x-field-%d: %032d\r\n' % (n, number if n % 2 else 0) for n in range(fields - 1)),
        SMALL_BODY)


def chunked(size, made={}):  # noqa: B006 - a cache
    if size not in made:
        chunk = b'%x\r\n%s\r\n' % (size, b'.' * size)
        made.clear()
        made[size] = b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%s0\r\n\r\n' % (
            chunk * (8 * MIB // size))
    return made[size]


class NameServer(asyncio.DatagramProtocol):
    """Knows one name, which has one address."""

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        end = 12
        while data[end]:
            end += data[end] + 1
        question = data[12:end + 5]
        labels = b''.join(b'%c%s' % (len(label), label) for label in DNS_NAME.encode().split(b'.'))
        known = question[:-5].lower() == labels
        answers = known and question[-4:-2] == b'\0\1'
        self.transport.sendto(
            data[:2] + struct.pack('!5H', 0x8180 if known else 0x8183, 1, answers, 0, 0) + question
            + (struct.pack('!HHHIH4B', 0xc00c, 1, 1, TTL, 4, 127, 0, 0, 1) if answers else b''),
            address)


class Streamer(socketserver.StreamRequestHandler):
    """Sends events as they are read, or back what comes in."""

    seen = None  # Shared with the client: the bytes of events that it has read

    def handle(self):
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            target = self.rfile.readline()
            fields = {}
            for line in iter(self.rfile.readline, b'\r\n'):
                if not line:
                    return
                name, _, value = line.partition(b':')
                fields[name.lower()] = value.strip()
            if b'/events' in target:
                self.send_events(int(re.search(rb'\?([0-9]+)', target)[1]))
            else:
                self.echo(int(fields[b'content-length']))

    def send_events(self, number):
        chunk = b'%x\r\n%s\r\n' % (len(EVENT), EVENT)
        self.wfile.write(
            b'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n'
            b'cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n')
        for n in range(1, number + 1):
            self.wfile.write(chunk)
            while int.from_bytes(self.seen[:], 'little') != n * len(EVENT):
                time.sleep(20e-6)
            time.sleep(self.pause)  # For the client to look at the socket, and to wait
        self.wfile.write(b'0\r\n\r\n')

    def echo(self, length):
        self.wfile.write(b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n' % length)
        while length:
            data = self.rfile.read1(65536)
            if not data:
                return
            self.wfile.write(data)
            length -= len(data)


class StreamServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_):
        pass  # A client that was ended


class Servers:

    def __init__(self, seen, pause, name_server):
        """With the path of the file that is shared, and the pause between events in seconds."""
        with open(seen, 'w+b') as file:
            file.write(bytes(8))
            file.flush()
            Streamer.seen, Streamer.pause = mmap.mmap(file.fileno(), 8), pause
        streams = StreamServer(('127.0.0.1', 0), Streamer)
        self.streams = streams.server_address[1]
        threading.Thread(target=streams.serve_forever, daemon=True).start()
        self.has_name_server = False
        started = threading.Event()
        threading.Thread(target=self._run, args=(started, name_server), daemon=True).start()
        started.wait()

    def _run(self, started, name_server):
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        loop.run_until_complete(self._start(loop, name_server))
        started.set()
        loop.run_forever()

    async def _start(self, loop, name_server):
        sock = socket.socket()
        try:  # All of 127.0.0.0/8, but no other network
            sock.setsockopt(socket.SOL_SOCKET, LINUX_DEVICE, b'lo')
            sock.bind(('0.0.0.0', 0))
        except (OSError, TypeError):
            sock.bind(('127.0.0.1', 0))
        self.port = sock.getsockname()[1]
        await loop.create_server(Responder, sock=sock, backlog=4096)
        if name_server:
            try:
                await loop.create_datagram_endpoint(NameServer, (NAME_SERVER, 53))
                self.has_name_server = True
            except OSError:
                pass  # Its scenario is left out
