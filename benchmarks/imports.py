"""Measures what it takes to import a peer, in a process of its own: imports.py PEER [FOLDER]"""

import os
import sys
import time

MODULES = {
    'lowhaio': 'lowhaio', 'published': 'lowhaio', 'aiohttp': 'aiohttp', 'httpx': 'httpx',
    'pyreqwest': 'pyreqwest.client', 'bare': 'asyncio, ssl', 'blocking': 'socket, ssl',
}


def memory():
    """Return the bytes that are this process's alone, or resident where that can't be told."""
    try:
        with open('/proc/self/smaps_rollup') as file:
            return 1024 * sum(
                int(line.split()[1]) for line in file if line.startswith('Private_'))
    except OSError:
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == 'darwin' else 1024)


def main(peer, core='', folder=''):
    if core:
        os.sched_setaffinity(0, {int(core)})
    sys.path[0] = folder
    before, wall, cpu = memory(), time.perf_counter(), time.process_time()
    exec('import ' + MODULES[peer])
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print('{"cpu": %f, "wall": %f, "units": 1, "bytes": %d}' % (cpu, wall, memory() - before))


if __name__ == '__main__':
    main(*sys.argv[1:])
