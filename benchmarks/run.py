"""Measures lowhaio beside other clients, with nginx as the server. See --help."""

import argparse
import importlib.util
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from importlib import metadata

import report
from scenarios import PEERS, SCENARIOS, TITLES

HERE = os.path.dirname(os.path.abspath(__file__))
PUBLISHED = 'lowhaio==0.0.89'
INSTALL_BENCH = 'python -m pip install . -r benchmarks/requirements.txt'
SECONDS = 120  # That a process may take


def options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--scenarios', metavar='NAME,...', help='default: all but those of '
                        '--scaling; of %s' % ', '.join(SCENARIOS))
    parser.add_argument('--peers', metavar='NAME,...', default=','.join(PEERS))
    parser.add_argument('--loop', choices=('asyncio', 'uvloop'), default='asyncio')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--size', type=int, default=256, help='MiB of a download or an upload')
    parser.add_argument('--quick', action='store_true',
                        help='one short round, to see that it works: its figures mean little')
    parser.add_argument('--scaling', action='store_true',
                        help='measure 64, 1,000 and 4,000 pooled connections, and 1,000 hosts')
    parser.add_argument('--syscalls', action='store_true',
                        help='count system calls with strace, rather than time')
    parser.add_argument('--instructions', action='store_true',
                        help='count instructions with valgrind, rather than time')
    parser.add_argument('--output', metavar='PREFIX',
                        help='write PREFIX.json, PREFIX.md and PREFIX.svg')
    parser.add_argument('--cache', metavar='FOLDER', help='where %s is installed for itself; '
                        'default: one in the folder for temporary files' % PUBLISHED)
    args = parser.parse_args()

    args.scenarios = args.scenarios.split(',') if args.scenarios else [
        name for name, scenario in SCENARIOS.items()
        if (scenario.kind == 'get_hosts' or scenario.idle if args.scaling else scenario.default)]
    args.peers = args.peers.split(',')
    for given, known in (args.scenarios, SCENARIOS), (args.peers, PEERS):
        for name in given:
            if name not in known:
                parser.error('%s is none of %s' % (name, ', '.join(known)))
    args.cut = 1
    if args.quick:
        args.rounds, args.size, args.cut = 1, min(args.size, 16), 20
    if args.instructions:
        args.size, args.cut = min(args.size, 16), 20
    return args


# ---- What is there ------------------------------------------------------------------------------


def is_installed(module):
    return importlib.util.find_spec(module) is not None


def missing_tools(args):
    """Return what it can't do without, and how to install it."""
    tools = {
        'nginx': (shutil.which('nginx', path=os.environ.get('PATH', '') + ':/usr/sbin'),
                  'apt-get install nginx'),
        'trustme': (is_installed('trustme'), INSTALL_BENCH),
        'uvloop': (args.loop == 'asyncio' or is_installed('uvloop'), INSTALL_BENCH),
        'strace': (not args.syscalls or shutil.which('strace'), 'apt-get install strace'),
        'valgrind': (not args.instructions or shutil.which('valgrind'),
                     'apt-get install valgrind'),
    }
    return ['%s is missing: %s' % (name, how) for name, (there, how) in tools.items() if not there]


def available_peers(args):
    """Return the versions of the peers that are there, and a line about each of the others."""
    versions, missing = {}, []
    for name in args.peers:
        if name in ('bare', 'blocking'):
            versions[name] = ''
        elif name == 'lowhaio':
            versions[name] = 'this checkout'
            if not is_installed('aiodnsresolver'):
                raise SystemExit('aiodnsresolver is missing: ' + INSTALL_BENCH)
        elif name == 'published':
            problem = install_published(args)
            if problem:
                missing.append(problem)
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
        return '%s is left out: its cache folder is of another user, choose one with --cache' % (
            TITLES['published'])
    args.published = os.path.join(cache, '%s-python%d.%d' % (
        PUBLISHED.replace('==', '-'), *sys.version_info[:2]))
    if not os.path.exists(os.path.join(args.published, 'lowhaio.py')):
        got = subprocess.run(
            [sys.executable, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check',
             '--target', args.published, PUBLISHED], stderr=subprocess.PIPE, text=True)
        if got.returncode:
            return '%s is left out: pip could not install it: %s' % (
                TITLES['published'], got.stderr.strip().split('\n')[-1])
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


def raise_file_limit():
    import resource
    wanted = 20000  # nginx has two for each of 4,000 requests that it passes on
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


# ---- Measuring ----------------------------------------------------------------------------------


class Bench:

    def __init__(self, args, server, core):
        self.args, self.server, self.core = args, server, core

    def once(self, name, peer, lengths=1, tool=()):
        """Run a process and return its figures; with lengths=2, one that does twice as much."""
        scenario, args = SCENARIOS[name], self.args
        if scenario.kind == 'imports':
            return self._output([
                sys.executable, os.path.join(HERE, 'imports.py'), peer,
                '' if self.core is None else str(self.core), self._folder(peer)])

        transfers = scenario.unit == 'MB'
        count = args.size if transfers else lengths * requests(scenario, peer, args.cut)
        server = self.server
        port = server.tls if scenario.tls else server.plain
        origin = '%s://127.0.0.1:%d' % ('https' if scenario.tls else 'http', port)
        spec = {
            'scenario': name, 'peer': peer, 'loop': args.loop, 'core': self.core, 'port': port,
            'origin': origin, 'url': origin + scenario.path, 'certificate': server.certificate,
            'count': count, 'warm_up': max(scenario.in_flight, count // lengths // 10),
            'repeat': lengths if transfers else 1,
            'checksum': server.checksum, 'uploaded': server.path('files/uploads/data'),
        }
        return self._output([
            *tool, sys.executable, os.path.join(HERE, 'client.py'), json.dumps(spec)])

    def _folder(self, peer):
        return {'lowhaio': os.path.dirname(HERE), 'published': self._published()}.get(peer, HERE)

    def _published(self):
        return getattr(self.args, 'published', '')

    def _output(self, command):
        environment = {**os.environ, 'LOWHAIO_PUBLISHED': self._published()}
        environment.pop('PYTHONPATH', None)
        try:
            got = subprocess.run(
                command, env=environment, timeout=SECONDS, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True)
        except subprocess.TimeoutExpired:
            return {'error': 'not done after %d seconds' % SECONDS}
        if got.returncode:
            return {'error': (got.stderr.strip() or 'status %d' % got.returncode)}
        return json.loads(got.stdout)

    def syscalls(self, name, peer):
        return self._counted(name, peer, ['strace', '-f', '-c', '-o', '%s'], strace_counts)

    def instructions(self, name, peer):
        return self._counted(
            name, peer, ['valgrind', '--tool=callgrind', '--callgrind-out-file=%s'],
            callgrind_counts)

    def _counted(self, name, peer, tool, read):
        """Return counts per unit, as the difference of two run lengths."""
        counts, units = [], []
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, 'counts')
            for lengths in 1, 2:
                figures = self.once(
                    name, peer, lengths, [part.replace('%s', path) for part in tool])
                if 'error' in figures:
                    return figures
                with open(path) as file:
                    counts.append(read(file.read()))
                units.append(figures['units'])
        each = {key: (counts[1][key] - counts[0].get(key, 0)) / (units[1] - units[0])
                for key in counts[1]}
        return {'total': each.pop('total'), 'each': each}


def strace_counts(text):
    counts = {}
    for line in text.split('\n')[2:]:
        fields = line.split()
        if len(fields) >= 5 and fields[3].isdigit():
            counts[fields[-1]] = int(fields[3])
    return counts


def callgrind_counts(text):
    return {'total': int(re.search('^(?:summary|totals): ([0-9]+)', text, re.MULTILINE)[1])}


def requests(scenario, peer, cut):
    """Return how many requests, or idle connections, to make."""
    if scenario.kind == 'idle':
        return scenario.count
    slower = 1 if peer != 'httpx' else 4 if scenario.in_flight == 1 else 40  # To shorten a run
    return max(scenario.in_flight, scenario.count // cut // slower)


def reason_against(peer, scenario):
    """Return why a peer can't take part, or nothing."""
    if peer == 'blocking' and not scenario.blocking:
        return 'for one connection at a time'
    if peer == 'bare' and not scenario.bare:
        return 'it knows nothing of chunks'
    if scenario.kind == 'get_hosts' and peer in ('bare', 'httpx'):
        return 'it takes no resolver'
    if peer == 'httpx' and max(scenario.in_flight, scenario.idle, scenario.kind == 'idle'
                               and scenario.count) > 64:
        return 'each request would look at each pair of idle connections, for minutes'
    return ''


def can(peer, name):
    return not reason_against(peer, SCENARIOS[name])


def measure(bench, peers, say):
    """Return {scenario: {peer: [figures of each round]}}."""
    args = bench.args
    results = {}
    for name in args.scenarios:
        able = [peer for peer in peers if can(peer, name)]
        runs = results[name] = {peer: [] for peer in able}
        for number in range(args.rounds):
            say('%s, round %d of %d' % (SCENARIOS[name].title, number + 1, args.rounds))
            for peer in random.sample(able, len(able)):
                runs[peer].append(bench.once(name, peer))
        print(report.table(name, runs), flush=True)
        for peer in set(peers) - set(able) - {'blocking'}:
            print('  %s: left out, %s' % (TITLES[peer], reason_against(peer, SCENARIOS[name])))
    return results


def count(bench, peers, method, say):
    results = {}
    for name in bench.args.scenarios:
        if SCENARIOS[name].unit in ('request', 'MB'):
            results[name] = {}
            for peer in peers:
                if can(peer, name):
                    say('%s, %s' % (SCENARIOS[name].title, TITLES[peer]))
                    results[name][peer] = method(name, peer)
    return results


def main():
    args = options()
    missing = missing_tools(args)
    if missing:
        raise SystemExit('\n'.join(missing))
    versions, missing = available_peers(args)
    print(''.join(line + '\n' for line in missing), end='', file=sys.stderr)
    if args.output and not is_installed('matplotlib'):
        print('No picture, for matplotlib is missing:', INSTALL_BENCH, file=sys.stderr)

    files = raise_file_limit()
    server_core, client_core = cores()
    if client_core is None:
        print('Client and server are not pinned to cores of their own', file=sys.stderr)
    else:
        os.sched_setaffinity(0, {server_core})  # And what it starts, but for the clients

    def say(line):
        print(line, file=sys.stderr, flush=True)

    from server import Server
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    server = Server(args.size << 20, files)
    try:
        bench = Bench(args, server, client_core)
        if args.syscalls or args.instructions:
            what, method = ('system calls', bench.syscalls) if args.syscalls else \
                ('instructions', bench.instructions)
            results = count(bench, versions, method, say)
            text = report.counts(what, results)
            print(text)
            errors = report.errors({
                name: {peer: [figures] for peer, figures in runs.items()}
                for name, runs in results.items()})
        else:
            about = {
                'python': platform.python_version(), 'loop': args.loop, 'machine': machine(),
                'nginx': nginx_version(), 'versions': versions, 'rounds': args.rounds,
                'size': args.size,
                'command': 'python benchmarks/run.py' + ''.join(
                    ' ' + argument for argument in sys.argv[1:]),
            }
            print(report.introduction(about), flush=True)
            results = measure(bench, versions, say)
            if args.output:
                report.write(args.output, about, results)
            errors = report.errors(results)
    finally:
        server.close()
    print(errors, end='', file=sys.stderr)
    sys.exit(bool(errors))


def machine():
    name = platform.processor() or platform.machine()
    try:
        with open('/proc/cpuinfo') as file:
            name = re.search('^model name\\s*: (.*)', file.read(), re.MULTILINE)[1]
    except (OSError, TypeError):
        pass
    return '%s, %d cores, %s' % (name, os.cpu_count(), platform.system())


def nginx_version():
    from server import binary
    got = subprocess.run([binary(), '-v'], stderr=subprocess.PIPE, text=True)
    return got.stderr.strip().rpartition('/')[2]


if __name__ == '__main__':
    main()
