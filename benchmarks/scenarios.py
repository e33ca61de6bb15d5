"""What is measured, with the goals: CPU of a peer divided by that of lowhaio."""

from types import MappingProxyType
from typing import Any, Dict, Mapping, NamedTuple

SMALL_BODY = b'Hello, world\n'
POST_BODY = b'{"name": "value"}'.ljust(100)
PIECE = 65536  # Bytes of an upload that the program has at a time

# Of lowhaio's figure, those of the peers; httpx is on its own
PEERS = ('lowhaio', 'bare', 'published', 'aiohttp', 'httpx', 'pyreqwest', 'blocking')

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
    kind: str  # The function of client.py that runs it
    unit: str
    count: int  # Of requests, connections or MiB
    goals: Mapping[str, float] = MappingProxyType({})
    metric: str = 'cpu'  # Or 'bytes'
    tls: bool = False
    in_flight: int = 1
    idle: int = 0  # Connections that are in the pool already
    blocking: bool = False  # Whether a blocking socket can do it
    bare: bool = True
    default: bool = True
    path: str = '/small'


def goals(*values: Any) -> Dict[str, float]:
    peers = ('bare', 'published', 'aiohttp', 'pyreqwest', 'blocking')
    return {peer: value for peer, value in zip(peers, values) if value is not None}


SCENARIOS = {
    'small-1': Scenario(
        'small GET, one at a time', 'get', 'request', 3000,
        goals(1.0, 2.2, 2.8, 2.0), blocking=True),
    'small-64': Scenario(
        'small GET, 64 in flight', 'get', 'request', 6000,
        goals(1.0, 4.0, 4.0, 2.0), in_flight=64),
    'small-4000': Scenario(
        'small GET, 4,000 in flight', 'get', 'request', 12000,
        goals(1.0, 4.5, 6.0, 2.0), in_flight=4000),
    'small-64-tls': Scenario(
        'small GET, 64 in flight, TLS', 'get', 'request', 6000,
        goals(1.0, 4.0, 4.0, 2.0), tls=True, in_flight=64),
    'urls-64': Scenario(
        'small GET, 64 in flight, another URL each', 'get_urls', 'request', 6000,
        in_flight=64, path='/echo/'),
    'post-64': Scenario(
        'small POST, 64 in flight', 'post', 'request', 6000, in_flight=64, path='/post'),
    'new': Scenario(
        'new connection each', 'get', 'request', 1500,
        goals(1.2, 1.8, 2.5, 1.0, 0.7), blocking=True, path='/close'),
    'new-tls': Scenario(
        'new TLS connection each', 'get', 'request', 300,
        goals(1.3, 1.2, 1.4, None, 1.0), tls=True, blocking=True, path='/close'),
    'download': Scenario(
        'download', 'download', 'MB', 256,
        goals(None, 2.0, 2.2, 2.0, 0.9), blocking=True, path='/data'),
    'download-tls': Scenario(
        'download, TLS', 'download', 'MB', 256,
        goals(None, 1.1, 1.8, 1.0, 1.0), tls=True, blocking=True, path='/data'),
    'chunked': Scenario(
        'download in 8 KiB chunks', 'download', 'MB', 256,
        goals(None, 1.5, 1.5, 2.0), bare=False, path='/chunked/data'),
    'chunked-tls': Scenario(
        'download in 8 KiB chunks, TLS', 'download', 'MB', 256,
        goals(None, 1.3, 1.5, 1.3), tls=True, bare=False, path='/chunked/data'),
    'upload': Scenario(
        'upload', 'upload', 'MB', 256,
        goals(None, 1.0, 1.2, None, 0.95), blocking=True, path='/uploads/data'),
    'upload-tls': Scenario(
        'upload, TLS', 'upload', 'MB', 256,
        goals(None, 1.0, 1.0, None, 0.95), tls=True, blocking=True, path='/uploads/data'),
    'idle': Scenario(
        'memory per idle connection', 'idle', 'connection', 1000,
        goals(1.2, 1.6, 4.0, 2.5), metric='bytes'),
    'import': Scenario('import, CPU time', 'imports', 'import', 1, blocking=True),
    'import-memory': Scenario(
        'import, memory', 'imports', 'import', 1, metric='bytes', blocking=True),
    'idle-tls': Scenario(
        'memory per idle TLS connection', 'idle', 'connection', 1000, metric='bytes',
        tls=True, default=False),
    'pooled-64': Scenario(
        'small GET, 64 in flight, 64 pooled', 'get', 'request', 6000,
        in_flight=64, idle=64, default=False),
    'pooled-1000': Scenario(
        'small GET, 64 in flight, 1,000 pooled', 'get', 'request', 6000,
        in_flight=64, idle=1000, default=False),
    'pooled-4000': Scenario(
        'small GET, 64 in flight, 4,000 pooled', 'get', 'request', 6000,
        in_flight=64, idle=4000, default=False),
    'hosts-1000': Scenario(
        'small GET, 64 in flight, over 1,000 hosts', 'get_hosts', 'request', 6000,
        in_flight=64, default=False),
}
HOSTS = tuple('host-%d.test' % number for number in range(1000))
