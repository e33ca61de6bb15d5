"""What is measured, and by whom it can be."""

from typing import NamedTuple

SMALL_BODY = b'Hello, world\n'
POST_BODY = b'{"name": "value"}'.ljust(100)
PIECE = 65536  # Bytes of an upload that the program has at a time
ECHO_PIECE = 1000
EVENT = b'data: ' + 192 * b'.' + b'\n\n'
DNS_NAME = 'server.benchmark.test'  # Known to the name server of the benchmark alone
KIB, MIB = 1 << 10, 1 << 20

TITLES = {
    'lowhaio': 'lowhaio',
    'bare': 'asyncio transport, no HTTP',
    'published': 'lowhaio 0.0.89',
    'aiohttp': 'aiohttp',
    'httpx': 'httpx',
    'pyreqwest': 'pyreqwest (Rust)',
    'blocking': 'blocking socket, no HTTP',
}


class Scenario(NamedTuple):
    title: str
    kind: str = 'get'  # The function of client.py that runs it
    unit: str = 'request'
    path: str = '/small'
    host: str = '127.0.0.1'
    tls: bool = False
    in_flight: int = 1
    size: int = 0  # Bytes of an object
    batch: int = 100  # Units by which the run lengths differ that instructions are counted in
    without: str = ''  # The peers that can't

    @property
    def least(self):
        """How many are measured at a time, at the least."""
        return max(self.in_flight, 100 if self.kind in ('events', 'duplex') else 1)


SMALL = {'unit': 'object', 'size': 100 * KIB, 'batch': 20}
LARGE = {'unit': 'MiB', 'size': 8 * MIB, 'batch': 16}
SCENARIOS = {
    'get': Scenario('small GET'),
    'get-64': Scenario('small GET, 64 in flight', in_flight=64, without='blocking'),
    'urls': Scenario('small GET, another URL each', 'urls', path='/echo/'),
    'post': Scenario('small POST', 'post', path='/post', without='blocking'),
    'name': Scenario('small GET, name of /etc/hosts', host='localhost'),
    'dns': Scenario('small GET, name from a name server', host=DNS_NAME),
    'tls': Scenario('small GET, TLS', tls=True),
    'tls-64': Scenario(
        'small GET, TLS, 64 in flight', tls=True, in_flight=64, without='blocking'),
    'tls-name': Scenario('small GET, TLS, name of /etc/hosts', host='localhost', tls=True),
    'new': Scenario('new connection each', path='/close'),
    'new-tls': Scenario('new TLS connection each', path='/close', tls=True, batch=10),
    'download-100k': Scenario('100 KiB down', 'download', path='/100k', **SMALL),
    'download-100k-tls': Scenario(
        '100 KiB down, TLS', 'download', path='/100k', tls=True, **SMALL),
    'upload-100k': Scenario(
        '100 KiB up', 'upload', path='/uploads/100k', **SMALL),
    'upload-100k-tls': Scenario(
        '100 KiB up, TLS', 'upload', path='/uploads/100k', tls=True, **SMALL),
    'download': Scenario('8 MiB down', 'download', path='/8m', **LARGE),
    'download-tls': Scenario(
        '8 MiB down, TLS', 'download', path='/8m', tls=True, **LARGE),
    'chunked': Scenario(
        '8 MiB down in chunks of 8 KiB', 'download', path='/chunked/8m', without='bare blocking',
        **LARGE),
    'upload': Scenario('8 MiB up', 'upload', path='/uploads/8m', **LARGE),
    'upload-tls': Scenario(
        '8 MiB up, TLS', 'upload', path='/uploads/8m', tls=True, **LARGE),
    'events': Scenario(
        'event of 200 bytes, one at a time', 'events', 'event', path='/events',
        without='bare published blocking'),  # 0.0.89 takes its end for a failure
    # The others send all of a body before they read the response
    'duplex': Scenario(
        'echo of 1,000 bytes within a request', 'duplex', 'round trip', path='/duplex',
        without='published httpx'),
    'idle': Scenario(
        'memory per idle connection', 'idle', 'connection', batch=1000,
        without='blocking httpx'),
    'import': Scenario('import, CPU time', 'import', 'import'),
    'import-memory': Scenario('import, memory', 'import', 'import'),
}
