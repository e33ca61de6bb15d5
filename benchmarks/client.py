"""The process that is measured: one peer in one scenario. Prints the figures as JSON.

    client.py '{"scenario": ..., "peer": ..., "count": ..., ...}'

CPU time is that of the whole process, user and system, all its threads, over the measured part.
"""

import asyncio
import gc
import json
import os
import sys
import time
import zlib

from imports import memory
from scenarios import HOSTS, PIECE, POST_BODY, SCENARIOS, SMALL_BODY


class Meter:
    def __enter__(self):
        gc.collect()
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_):
        self.cpu = time.process_time() - self.cpu
        self.wall = time.perf_counter() - self.wall

    def figures(self, units):
        return {'cpu': self.cpu, 'wall': self.wall, 'units': units}


def sockets():
    links = ('/proc/self/fd/' + number for number in os.listdir('/proc/self/fd'))
    return sum(os.path.lexists(link) and os.readlink(link).startswith('socket:') for link in links)


async def in_flight(number, count, exchange):
    """Call exchange(n) for each n of range(count), that many of them at a time."""
    numbers = iter(range(count))

    async def work():
        for n in numbers:
            await exchange(n)

    if number == 1:
        await work()
    else:
        await asyncio.gather(*(work() for _ in range(min(number, count))))


def check(what, got, expected):
    if got != expected:
        raise AssertionError('%s: got %r, expected %r' % (what, got, expected))


async def fill_pool(peer, connections, origin):
    """Make that many connections: the server answers when that many requests have arrived."""
    url = '%s/hold/%d-%d' % (origin, connections, os.getpid())

    async def get():
        code, body = await peer.get(url)
        check('code', code, peer.ok)
        check('body', body, SMALL_BODY)

    await asyncio.gather(*(get() for _ in range(connections)))


async def measure_requests(peer, spec, scenario, exchange):
    connections = scenario.idle or (scenario.in_flight if scenario.in_flight > 1 else 0)
    if connections:
        await fill_pool(peer, connections, spec['origin'])
    await in_flight(scenario.in_flight, spec['warm_up'], exchange)
    with Meter() as meter:
        await in_flight(scenario.in_flight, spec['count'], exchange)
    return meter.figures(spec['count'])


async def get(peer, spec, scenario):
    url, ok = spec['url'], peer.ok

    async def exchange(_):
        code, body = await peer.get(url)
        if code != ok or body != SMALL_BODY:
            check('response', (code, body), (ok, SMALL_BODY))

    return await measure_requests(peer, spec, scenario, exchange)


async def get_urls(peer, spec, scenario):
    url, ok = spec['url'], peer.ok

    async def exchange(n):
        name = '%013d' % n
        code, body = await peer.get(url + name)
        if code != ok or body != name.encode():
            check('response', (code, body), (ok, name.encode()))

    return await measure_requests(peer, spec, scenario, exchange)


async def get_hosts(peer, spec, scenario):
    ok = peer.ok
    urls = ['http://%s:%d/small' % (host, spec['port']) for host in HOSTS]

    async def exchange(n):
        code, body = await peer.get(urls[n % len(urls)])
        if code != ok or body != SMALL_BODY:
            check('response', (code, body), (ok, SMALL_BODY))

    await in_flight(scenario.in_flight, 2 * len(urls), exchange)
    with Meter() as meter:
        await in_flight(scenario.in_flight, spec['count'], exchange)
    return {**meter.figures(spec['count']), 'sockets': sockets()}


async def post(peer, spec, scenario):
    url, ok = spec['url'], peer.ok
    expected = b'POST %d' % len(POST_BODY)

    async def exchange(_):
        code, body = await peer.post(url, POST_BODY)
        if code != ok or body != expected:
            check('response', (code, body), (ok, expected))

    return await measure_requests(peer, spec, scenario, exchange)


async def download(peer, spec, scenario):
    """The content is checked while warming up, and then the length."""
    checksum = length = 0

    def write_checksum(chunk):
        nonlocal checksum
        checksum = zlib.crc32(chunk, checksum)

    def write(chunk):
        nonlocal length
        length += len(chunk)

    check('code', await peer.download(spec['url'].replace('data', 'warm-up'), write_checksum),
          peer.ok)
    check('checksum', checksum, spec['checksum'])
    with Meter() as meter:
        for _ in range(spec['repeat']):
            code = await peer.download(spec['url'], write)
            check('code', code, peer.ok)
    check('length', length, (spec['count'] << 20) * spec['repeat'])
    return meter.figures(length / 1e6)


async def upload(peer, spec, scenario):
    """The content is checked on the server's disk, once the time is taken."""
    piece = os.urandom(PIECE)
    replaced = b'204' if isinstance(peer.ok, bytes) else 204

    def pieces(number):
        async def body():
            for _ in range(number):
                yield piece
        return body

    warm_up = 8 << 20
    for _ in range(2):  # The second replaces the file of the first, as the measured one does
        code = await peer.upload(spec['url'], warm_up, pieces(warm_up // PIECE))
    check('code', code, replaced)
    length = spec['count'] << 20
    with Meter() as meter:
        for _ in range(spec['repeat']):
            code = await peer.upload(spec['url'], length, pieces(length // PIECE))
            check('code', code, replaced)
    with open(spec['uploaded'], 'rb') as file:
        number = sum(got == piece for got in iter(lambda: file.read(PIECE), b''))
    check('pieces', number, length // PIECE)
    check('length', os.path.getsize(spec['uploaded']), length)
    return meter.figures(length * spec['repeat'] / 1e6)


async def idle(peer, spec, scenario):
    count = spec['count']
    await fill_pool(peer, 4, spec['origin'])
    before, sockets_before = memory(), sockets()
    await fill_pool(peer, count, spec['origin'])
    await asyncio.sleep(0.1)  # Threads may have things to put away
    connections = sockets() - sockets_before
    check('enough connections', connections >= count - 4, True)
    return {'bytes': memory() - before, 'units': connections}


def main():
    spec = json.loads(sys.argv[1])
    if spec['core'] is not None:
        os.sched_setaffinity(0, {spec['core']})
    scenario = SCENARIOS[spec['scenario']]

    import peers
    peer = peers.PEERS[spec['peer']](
        spec['certificate'], HOSTS if scenario.kind == 'get_hosts' else (), spec['port'])
    if spec['loop'] == 'uvloop' and spec['peer'] != 'blocking':
        import uvloop
        loop = uvloop.new_event_loop()
    else:
        loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)

    async def run():
        await peer.open()
        try:
            return await globals()[scenario.kind](peer, spec, scenario)
        finally:
            await peer.close()

    print(json.dumps(loop.run_until_complete(run())), flush=True)
    os._exit(0)  # A thread of pyreqwest's may crash an interpreter that is being taken down


if __name__ == '__main__':
    main()
