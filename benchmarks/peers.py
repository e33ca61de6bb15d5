"""The clients, each set up as its documentation says for many requests, and as lean as it can be:
one session, as many connections as asked for, no redirects, cookies, or decompression, and no
header fields of its own where it can be told so.

A peer has coroutines that one driver calls: `get` and `post` return the status and the body,
`download` and `upload` the status, and give each chunk of the body to `write`.
"""

import asyncio
import importlib
import os
import socket
import ssl
import sys
from datetime import timedelta

KEEP_ALIVE = 3600  # Longer than any run, for all


def ignore(_):
    pass


class Peer:
    module = ''

    def __init__(self, certificate):
        self.certificate = certificate

    def ssl_context(self):
        return ssl.create_default_context(cafile=self.certificate)

    async def open(self):
        pass

    async def close(self):
        pass


class Lowhaio(Peer):
    module = 'lowhaio'
    folder = os.environ.get('LOWHAIO', '')
    options = {}

    async def open(self):
        sys.path.insert(0, self.folder)
        lowhaio = importlib.import_module('lowhaio')
        assert os.path.dirname(os.path.abspath(lowhaio.__file__)) == self.folder, lowhaio.__file__
        self.buffered, self.streamed = lowhaio.buffered, lowhaio.streamed
        self.request, self.close = lowhaio.Pool(
            get_ssl_context=self.ssl_context, keep_alive_timeout=KEEP_ALIVE, **self.options)

    async def get(self, url):
        code, _, body = await self.request(b'GET', url)
        return int(code), await self.buffered(body)

    async def post(self, url, data):
        code, _, body = await self.request(
            b'POST', url, headers=((b'content-length', b'%d' % len(data)),),
            body=self.streamed(data))
        return int(code), await self.buffered(body)

    async def download(self, url, write):
        code, _, body = await self.request(b'GET', url)
        async for chunk in body:
            write(chunk)
        return int(code)

    async def upload(self, url, length, pieces, write=ignore):
        code, _, body = await self.request(
            b'PUT', url, headers=((b'content-length', b'%d' % length),), body=pieces)
        async for chunk in body:
            write(chunk)
        return int(code)


class Published(Lowhaio):
    folder = os.environ.get('LOWHAIO_PUBLISHED', '')
    options = {'recv_bufsize': 65536}  # Faster than its default, 16384


class Aiohttp(Peer):
    module = 'aiohttp'

    async def open(self):
        import aiohttp
        from aiohttp import http_parser

        # There is a slow parser in Python too
        assert http_parser.HttpResponseParser.__module__ == 'aiohttp._http_parser'

        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, ssl=self.ssl_context(), keepalive_timeout=KEEP_ALIVE),
            cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False,
            skip_auto_headers=('Accept', 'Accept-Encoding', 'Content-Type', 'User-Agent'))

    async def close(self):
        await self.session.close()

    async def get(self, url):
        async with self.session.get(url, allow_redirects=False) as response:
            return response.status, await response.read()

    async def post(self, url, data):
        async with self.session.post(url, data=data, allow_redirects=False) as response:
            return response.status, await response.read()

    async def download(self, url, write):
        async with self.session.get(url, allow_redirects=False) as response:
            async for chunk in response.content.iter_any():
                write(chunk)
            return response.status

    async def upload(self, url, length, pieces, write=ignore):
        async with self.session.put(
                url, data=pieces(), headers={'Content-Length': str(length)},
                allow_redirects=False) as response:
            async for chunk in response.content.iter_any():
                write(chunk)
            return response.status


class Httpx(Peer):
    module = 'httpx'

    async def open(self):
        import httpx
        self.client = httpx.AsyncClient(
            verify=self.ssl_context(), timeout=60, trust_env=False, limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=None,
                keepalive_expiry=KEEP_ALIVE))
        for name in ('accept', 'accept-encoding', 'connection', 'user-agent'):
            del self.client.headers[name]

    async def close(self):
        await self.client.aclose()

    async def get(self, url):
        response = await self.client.get(url)
        return response.status_code, response.content

    async def post(self, url, data):
        response = await self.client.post(url, content=data)
        return response.status_code, response.content

    async def download(self, url, write):
        async with self.client.stream('GET', url) as response:
            async for chunk in response.aiter_raw():
                write(chunk)
            return response.status_code

    async def upload(self, url, length, pieces, write=ignore):
        response = await self.client.put(
            url, content=pieces(), headers={'content-length': str(length)})
        return response.status_code


class Pyreqwest(Peer):
    module = 'pyreqwest'

    async def open(self):
        from pyreqwest.client import ClientBuilder
        with open(self.certificate, 'rb') as file:
            certificate = file.read()
        builder = ClientBuilder().add_root_certificate_pem(certificate).no_proxy() \
            .follow_redirects(False).referer(False).pool_idle_timeout(timedelta(hours=1)) \
            .gzip(False).brotli(False).zstd(False).deflate(False)
        self.client = builder.build()

    async def close(self):
        await self.client.close()

    async def get(self, url):
        response = await self.client.get(url).build().send()
        return response.status, await response.bytes()

    async def post(self, url, data):
        response = await self.client.post(url).body_bytes(data).build().send()
        return response.status, await response.bytes()

    async def download(self, url, write):
        return await self.written(self.client.get(url), write)

    async def upload(self, url, length, pieces, write=ignore):
        return await self.written(
            self.client.put(url).header('content-length', str(length)).body_stream(pieces()),
            write)

    async def written(self, builder, write):
        # What has arrived is given at once, as it has to be for events
        async with builder.streamed_read_buffer_limit(0).build_streamed() as response:
            read = response.body_reader.read_chunk
            while True:
                chunk = await read()
                if chunk is None:
                    return response.status
                write(chunk)


# ---- Without HTTP: they send the bytes of a request, and count those of the response ------------


def split(url):
    """Return whether it is over TLS, the address, and the target."""
    scheme, _, authority, target = url.split('/', 3)
    host, port = authority.split(':')
    return scheme == 'https:', (host, int(port)), '/' + target


def head(method, url, length=None):
    return b'%s %s HTTP/1.1\r\nhost: %s\r\n%s\r\n' % (
        method, split(url)[2].encode(), url.split('/')[2].split(':')[0].encode(),
        b'' if length is None else b'content-length: %d\r\n' % length)


def head_and_body_lengths(data):
    """Return the lengths of a response, and whether it is the last one on its connection."""
    lines, end, _ = data.lower().partition(b'\r\n\r\n')
    assert end, data
    _, _, rest = lines.partition(b'\r\ncontent-length: ')
    body_length = int(rest.split(b'\r\n')[0]) if rest else 0  # A 204 has none
    return len(lines + end), body_length, b'\r\nconnection: close' in lines


class BareProtocol(asyncio.Protocol):

    def __init__(self, loop):
        self.loop = loop
        self.resume_writing()

    def connection_made(self, transport):
        self.transport = transport

    def exchange(self, length, write):
        """Return a future of the last bytes, once that many have arrived."""
        self.missing, self.write = length, write
        self.done = self.loop.create_future()
        return self.done

    def data_received(self, data):
        if self.missing is None:
            self.missing = sum(head_and_body_lengths(data)[:2])
        self.missing -= len(data)
        if self.write is not None:
            self.write(data)
        if not self.missing:
            self.done.set_result(data)

    def connection_lost(self, exception):
        if not self.done.done():
            self.done.set_exception(exception or EOFError())

    def pause_writing(self):
        self.writable = self.loop.create_future()

    def resume_writing(self):
        writable, self.writable = getattr(self, 'writable', None), None
        if writable is not None:
            writable.set_result(None)


class Bare(Peer):
    async def open(self):
        self.loop = asyncio.get_running_loop()
        self.idle = {}
        self.requests = {}
        self.lengths = {}
        self.tls = self.ssl_context()

    async def close(self):
        for protocols in self.idle.values():
            for protocol in protocols:
                protocol.transport.close()

    async def connected(self, tls, address):
        _, protocol = await self.loop.create_connection(
            lambda: BareProtocol(self.loop), *address, ssl=self.tls if tls else None)
        protocol.transport.set_write_buffer_limits(high=65536)
        return protocol

    async def get(self, url):
        return await self.exchange(b'GET', url)

    async def post(self, url, data):
        return await self.exchange(b'POST', url, data)

    async def exchange(self, method, url, data=None):
        if url not in self.requests:
            if len(self.requests) > 1000:
                self.requests.clear()
            tls, address, target = split(url)
            request = head(method, url, data and len(data)) + (data or b'')
            resource = address, target.rpartition('/')[0] or target
            self.requests[url] = request, tls, address, resource
        request, tls, address, resource = self.requests[url]
        length, body_length, closes = self.lengths.get(resource, (None, 0, False))

        idle = self.idle.setdefault(address, [])
        protocol = idle.pop() if idle else await self.connected(tls, address)
        protocol.transport.write(request)
        data = await protocol.exchange(length, None)
        if length is None:
            head_length, body_length, closes = head_and_body_lengths(data)
            self.lengths[resource] = head_length + body_length, body_length, closes
        if closes:
            protocol.transport.close()
        else:
            idle.append(protocol)
        return int(data[9:12]), data[-body_length:]

    async def download(self, url, write):
        return await self.transfer(head(b'GET', url), url, None, write)

    async def upload(self, url, length, pieces, write=ignore):
        return await self.transfer(head(b'PUT', url, length), url, pieces, write)

    async def transfer(self, request, url, pieces, write):
        tls, address, _ = split(url)
        idle = self.idle.setdefault(address, [])
        protocol = idle.pop() if idle else await self.connected(tls, address)
        first = None

        def write_body(data):
            nonlocal first
            if first is None:
                first = data
                data = data[head_and_body_lengths(data)[0]:]
            if data:
                write(data)

        done = protocol.exchange(None, write_body)
        protocol.transport.write(request)
        if pieces is not None:
            async for piece in pieces():
                protocol.transport.write(piece)
                if protocol.writable is not None:
                    await protocol.writable
        await done
        idle.append(protocol)
        return int(first[9:12])


class Blocking(Peer):
    """It has coroutines too, for the driver's sake, but they wait for nothing."""

    async def open(self):
        self.tls = self.ssl_context()
        self.idle = None
        self.requests = {}

    def connected(self, tls, address):
        if self.idle is not None:
            sock, self.idle = self.idle, None
            return sock
        sock = socket.create_connection(address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.tls.wrap_socket(sock, server_hostname=address[0]) if tls else sock

    async def get(self, url):
        if url not in self.requests:
            self.requests[url] = (head(b'GET', url), *split(url)[:2])
            self.lengths = None
        request, tls, address = self.requests[url]

        sock = self.connected(tls, address)
        sock.sendall(request)
        data = sock.recv(65536)
        if self.lengths is None:
            self.lengths = head_and_body_lengths(data)
        head_length, body_length, closes = self.lengths
        while len(data) < head_length + body_length:
            data += sock.recv(65536)
        if closes:
            sock.close()
        else:
            self.idle = sock
        return int(data[9:12]), data[head_length:]

    async def download(self, url, write):
        sock = self.connected(*split(url)[:2])
        sock.sendall(head(b'GET', url))
        data = sock.recv(65536)
        head_length, body_length, _ = head_and_body_lengths(data)
        code, chunk = int(data[9:12]), data[head_length:]
        while True:
            write(chunk)
            body_length -= len(chunk)
            if not body_length:
                break
            chunk = sock.recv(65536)
        self.idle = sock
        return code

    async def upload(self, url, length, pieces, write=None):
        sock = self.connected(*split(url)[:2])
        sock.sendall(head(b'PUT', url, length))
        if write is not None:  # The head comes first, and then each piece comes back
            data = sock.recv(65536)
        async for piece in pieces():
            sock.sendall(piece)
            missing = 0 if write is None else len(piece)
            while missing:
                chunk = sock.recv(missing)
                missing -= len(chunk)
                write(chunk)
        if write is None:
            data = sock.recv(65536)
        self.idle = sock
        return int(data[9:12])


PEERS = {
    'lowhaio': Lowhaio, 'bare': Bare, 'published': Published, 'aiohttp': Aiohttp, 'httpx': Httpx,
    'pyreqwest': Pyreqwest, 'blocking': Blocking,
}
