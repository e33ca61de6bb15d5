"""Measures lowhaio beside other clients, with nginx as the server. See --help."""

import argparse
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from importlib import metadata

import measure
import report
from scenarios import SCENARIOS, TITLES

HERE = os.path.dirname(os.path.abspath(__file__))
PUBLISHED = 'lowhaio==0.0.89'
INSTALL_BENCH = 'python -m pip install . -r benchmarks/requirements.txt'


def options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--cpu', action='store_true', help='measure CPU time')
    parser.add_argument('--instructions', action='store_true',
                        help='count instructions with valgrind, and system calls with strace')
    parser.add_argument('--growth', action='store_true',
                        help='count instructions by connections, header fields and pieces, '
                        'and draw benchmarks/growth-*.svg')
    parser.add_argument('--quick', action='store_true',
                        help='each scenario once, to see that it works: no figures')
    parser.add_argument('--scenarios', metavar='NAME,...', help='of ' + ', '.join(SCENARIOS))
    parser.add_argument('--peers', metavar='NAME,...', help='of ' + ', '.join(TITLES))
    parser.add_argument('--loop', choices=('asyncio', 'uvloop'), default='asyncio')
    parser.add_argument('--rounds', type=int, default=9, help='of CPU time')
    parser.add_argument('--lowhaio', metavar='FOLDER', default=os.path.dirname(HERE),
                        help='where the lowhaio.py is that is measured')
    parser.add_argument('--output', metavar='PREFIX', help='write PREFIX.md and PREFIX.json, and '
                        'with --cpu PREFIX.svg')
    parser.add_argument('--cache', metavar='FOLDER', help='where %s is installed for itself; '
                        'default: one in the folder for temporary files' % PUBLISHED)
    args = parser.parse_args()

    args.lowhaio = os.path.abspath(args.lowhaio)
    if not (args.cpu or args.instructions or args.growth or args.quick):
        args.cpu = args.instructions = True
    args.scenarios = args.scenarios.split(',') if args.scenarios else list(SCENARIOS)
    args.peers = args.peers.split(',') if args.peers else list(
        ('lowhaio', 'aiohttp') if args.growth else TITLES)
    for given, known in (args.scenarios, SCENARIOS), (args.peers, TITLES):
        for name in given:
            if name not in known:
                parser.error('%s is none of %s' % (name, ', '.join(known)))
    return args


# ---- What is there ------------------------------------------------------------------------------


def is_installed(module):
    return importlib.util.find_spec(module) is not None


def missing_tools(args):
    """Return what it can't do without, and how to install it."""
    counts = args.instructions or args.growth
    tools = {
        'nginx': (shutil.which('nginx', path=os.environ.get('PATH', '') + ':/usr/sbin'),
                  'apt-get install nginx'),
        'trustme': (is_installed('trustme'), INSTALL_BENCH),
        'aiodnsresolver': (is_installed('aiodnsresolver'), INSTALL_BENCH),
        'uvloop': (args.loop == 'asyncio' or is_installed('uvloop'), INSTALL_BENCH),
        'strace': (not args.instructions or shutil.which('strace'), 'apt-get install strace'),
        'valgrind': (not counts or shutil.which('valgrind'), 'apt-get install valgrind'),
    }
    return ['%s is missing: %s' % (name, how) for name, (there, how) in tools.items() if not there]


def available_peers(args):
    """Return the versions of the peers that are there, and a line about each of the others."""
    versions, missing = {}, []
    args.published = ''
    for name in args.peers:
        if name in ('lowhaio', 'bare', 'blocking'):
            versions[name] = ''
        elif name == 'published':
            problem = 'not installed for --quick' if args.quick else install_published(args)
            if problem:
                missing.append('%s is left out: %s' % (TITLES[name], problem))
            else:
                versions[name] = PUBLISHED.split('==')[1]
        elif is_installed(name):
            versions[name] = metadata.version(name)
        else:
            missing.append('%s is left out, for it is not installed: %s%s' % (
                TITLES[name], INSTALL_BENCH, ' (it is for Python 3.11 and newer)'
                if name == 'pyreqwest' and sys.version_info < (3, 11) else ''))
    return versions, missing


def install_published(args):
    """Install it into a folder of its own, so that neither is ever taken for the other."""
    cache = args.cache or os.path.join(
        tempfile.gettempdir(), 'lowhaio-benchmark-%d' % os.getuid())
    os.makedirs(cache, mode=0o700, exist_ok=True)
    if os.stat(cache).st_uid != os.getuid():
        return 'its cache folder is of another user, choose one with --cache'
    args.published = os.path.join(cache, '%s-python%d.%d' % (
        PUBLISHED.replace('==', '-'), *sys.version_info[:2]))
    if not os.path.exists(os.path.join(args.published, 'lowhaio.py')):
        got = subprocess.run(
            [sys.executable, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check',
             '--target', args.published, PUBLISHED], stderr=subprocess.PIPE, text=True)
        if got.returncode:
            return 'pip could not install it: %s' % got.stderr.strip().split('\n')[-1]
    return ''


def cores():
    """Return a core for the server, and one for the client that is no hyper-thread of it."""
    if not hasattr(os, 'sched_setaffinity'):
        return None, None
    usable = sorted(os.sched_getaffinity(0))
    server, others = usable[0], usable[1:]
    try:
        with open('/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list' % server) as file:
            first, *rest = (int(number) for number in re.findall('[0-9]+', file.read()))
        siblings = range(first, rest[0] + 1) if rest else (first,)
        others = [core for core in others if core not in siblings] or others
    except (OSError, ValueError):
        pass
    return (server, others[-1]) if others else (None, None)


def raise_file_limit(wanted):
    import resource
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return soft
    for limits in (wanted, max(wanted, hard)), (min(wanted, hard), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            return limits[0]
        except (OSError, ValueError):
            pass
    return soft


def machine():
    name = platform.processor() or platform.machine()
    try:
        with open('/proc/cpuinfo') as file:
            name = re.search('^model name\\s*: (.*)', file.read(), re.MULTILINE)[1]
    except (OSError, TypeError):
        pass
    return '%s, %d cores, %s' % (name, os.cpu_count(), platform.system())


def about(args, versions):
    from nginx import binary
    got = subprocess.run([binary(), '-v'], stderr=subprocess.PIPE, text=True)
    return {
        'python': platform.python_version(), 'loop': args.loop, 'machine': machine(),
        'nginx': got.stderr.strip().rpartition('/')[2], 'versions': versions,
        'rounds': args.rounds,
        'command': 'python benchmarks/run.py' + ''.join(' ' + word for word in sys.argv[1:])}


# ---- All of it ----------------------------------------------------------------------------------


def say(line):
    print(line, file=sys.stderr, flush=True)


def main():
    args = options()
    missing = missing_tools(args)
    if missing:
        raise SystemExit('\n'.join(missing))
    versions, missing = available_peers(args)
    for line in missing:
        say(line)

    files = raise_file_limit(40000 if args.growth else 20000)
    server_core, client_core = cores() if args.cpu else (None, None)
    if args.cpu and client_core is None:
        say('Client and server are not pinned to cores of their own')
    elif args.cpu:
        os.sched_setaffinity(0, {server_core})  # And what it starts, but for the clients

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    bench = measure.Bench(args, list(versions), client_core, files, say)
    try:
        run(args, bench, about(args, versions))
    finally:
        bench.close()
    for line in bench.errors:
        say(line)
    sys.exit(bool(bench.errors))


def run(args, bench, about):
    if args.quick:
        bench.quick()
        return
    if args.growth:
        report.write_growth(HERE, about, bench.growth())
        return
    results = {'about': about}
    if args.instructions:
        results['instructions'] = bench.each_scenario(bench.instructions)
        print(report.instructions_table(about, results['instructions']), flush=True)
    if args.cpu:
        results['cpu'] = bench.each_scenario(bench.cpu)
        print(report.cpu_table(about, results['cpu']), flush=True)
    if args.output:
        report.write(args.output, results)


if __name__ == '__main__':
    main()
