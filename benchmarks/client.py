"""The process that is measured. It is told on its standard input what to do next:

    {"scenario": NAME, "count": NUMBER, ...}

It does that many requests (or what the scenario counts), and prints the CPU time of the whole
process for these, user and system, all its threads. Connections stay open in between.
"""

import asyncio
import gc
import json
import mmap
import os
import sys
import time
import zlib

from imports import memory
from scenarios import ECHO_PIECE, EVENT, MIB, PIECE, POST_BODY, SCENARIOS, SMALL_BODY


def check(what, got, expected):
    if got != expected:
        raise AssertionError('%s: got %r, expected %r' % (what, got, expected))


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


async def fill_pool(peer, connections, origin):
    """Make that many connections: the server answers when that many requests have arrived."""
    url = '%s/hold/%d-%d' % (origin, connections, os.getpid())

    async def get(_):
        check('response', await peer.get(url), (200, SMALL_BODY))

    await in_flight(connections, connections, get)


# ---- What a client does. Each returns the number of units. --------------------------------------


async def get(peer, spec, scenario, count):
    """GET the small body of each of the URLs in turn."""
    urls = spec['urls']

    async def exchange(n):
        code, body = await peer.get(urls[n % len(urls)])
        if code != 200 or body != SMALL_BODY:
            check('response', (code, body), (200, SMALL_BODY))

    await in_flight(scenario.in_flight, count, exchange)
    return count


async def urls(peer, spec, scenario, count):
    url = spec['urls'][0]
    first = spec.setdefault('first', 0)
    spec['first'] += count

    async def exchange(n):
        name = '%013d' % (first + n)
        code, body = await peer.get(url + name)
        if code != 200 or body != name.encode():
            check('response', (code, body), (200, name.encode()))

    await in_flight(scenario.in_flight, count, exchange)
    return count


async def post(peer, spec, scenario, count):
    url, expected = spec['urls'][0], b'POST %d' % len(POST_BODY)

    async def exchange(_):
        code, body = await peer.post(url, POST_BODY)
        if code != 200 or body != expected:
            check('response', (code, body), (200, expected))

    await in_flight(scenario.in_flight, count, exchange)
    return count


def objects(scenario, count):
    """Return how many, and of how many units each is."""
    each = scenario.size / MIB if scenario.unit == 'MiB' else 1
    return max(1, round(count / each)), each


async def download(peer, spec, scenario, count):
    """The content is checked at first, and then the length."""
    checksum = length = 0

    def write_checksum(chunk):
        nonlocal checksum
        checksum = zlib.crc32(chunk, checksum)

    def write(chunk):
        nonlocal length
        length += len(chunk)

    if not spec.get('checked'):
        check('code', await peer.download(spec['urls'][0], write_checksum), 200)
        check('checksum', checksum, spec['checksum'])
        spec['checked'] = True
    number, each = objects(scenario, count)
    for _ in range(number):
        check('code', await peer.download(spec['urls'][0], write), 200)
    check('length', length, scenario.size * number)
    return number * each


async def upload(peer, spec, scenario, count):
    """The server compares nothing: what it has stored is looked at."""
    size, piece_size = scenario.size, spec.get('piece', PIECE)
    whole, rest = divmod(size, piece_size)
    piece = (bytes(range(251)) * (piece_size // 251 + 1))[:piece_size]

    async def pieces():
        for _ in range(whole):
            yield piece
        if rest:
            yield piece[:rest]

    number, each = objects(scenario, count)
    for _ in range(number):
        code = await peer.upload(spec['urls'][0], size, pieces)
        check('code', code in (200, 201, 204), True)
    if 'uploaded' in spec:
        check('length', os.path.getsize(spec['uploaded']), size)
        if not spec.get('checked'):
            with open(spec['uploaded'], 'rb') as file:
                check('content', file.read() == whole * piece + piece[:rest], True)
            spec['checked'] = True
    return number * each


async def events(peer, spec, scenario, count):
    """The server sends the next event a little after it sees that the last one has been read."""
    length = 0
    with open(spec['seen'], 'r+b') as file:
        seen = mmap.mmap(file.fileno(), 8)

    def write(chunk):
        nonlocal length
        length += len(chunk)
        seen[:] = length.to_bytes(8, 'little')

    seen[:] = bytes(8)
    code = await peer.download('%s?%d' % (spec['urls'][0], count), write)
    check('events', (code, length), (200, count * len(EVENT)))
    return count


async def duplex(peer, spec, scenario, count):
    """Each piece is sent once the one before it has come back."""
    piece, back, echoed = os.urandom(ECHO_PIECE), b'', asyncio.Event()

    def write(chunk):
        nonlocal back
        back += chunk
        if len(back) == ECHO_PIECE:
            check('piece', back == piece, True)
            back = b''
            echoed.set()

    async def pieces():
        for _ in range(count):
            yield piece
            await echoed.wait()
            echoed.clear()

    check('code', await peer.upload(spec['urls'][0], count * ECHO_PIECE, pieces, write), 200)
    return count


async def idle(peer, spec, scenario, count):
    """Return the number of connections, and the memory that they take."""
    await fill_pool(peer, 4, spec['origin'])
    before, sockets_before = memory(), sockets()
    await fill_pool(peer, count, spec['origin'])
    await asyncio.sleep(0.1)  # Threads may have things to put away
    spec['bytes'] = memory() - before
    return sockets() - sockets_before


# ---- The process --------------------------------------------------------------------------------


async def measured(run, peer, spec, scenario):
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    units = await run(peer, spec, scenario, spec['count'])
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {'cpu': cpu, 'wall': wall, 'units': units, 'bytes': spec.get('bytes')}


async def serve(name):
    import peers
    open_peers, specs = {}, {}
    for line in sys.stdin:
        spec = json.loads(line)
        key = spec['key']
        scenario = SCENARIOS[spec['scenario']]
        if spec.get('size'):
            scenario = scenario._replace(size=spec['size'])
        if key not in open_peers:
            open_peers[key] = peer = peers.PEERS[name](spec['certificate'])
            await peer.open()
            specs[key] = {}
            if spec.get('fill'):
                await fill_pool(peer, spec['fill'], spec['origin'])
        specs[key].update(spec)
        figures = await measured(
            globals()[scenario.kind], open_peers[key], specs[key], scenario)
        await asyncio.sleep(spec.get('rest', 0))
        print(json.dumps(figures), flush=True)


def main(name, loop, core):
    if core:
        os.sched_setaffinity(0, {int(core)})
    if loop == 'uvloop' and name != 'blocking':
        import uvloop as loops
    else:
        loops = asyncio
    event_loop = loops.new_event_loop()
    asyncio.set_event_loop(event_loop)
    event_loop.run_until_complete(serve(name))
    os._exit(0)  # A thread of pyreqwest's may crash an interpreter that is being taken down


if __name__ == '__main__':
    main(*sys.argv[1:])
