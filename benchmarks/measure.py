"""How a client is measured, while it does what it is told."""

import collections
import glob
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
import zlib

from nginx import Server
from others import NAME_SERVER, Servers
from scenarios import DNS_NAME, KIB, MIB, SCENARIOS, TITLES

HERE = os.path.dirname(os.path.abspath(__file__))
SECONDS = 120  # That a batch may take
BATCH = 0.2  # Seconds that a batch of CPU time takes, about
QUIET = 0.08  # Of a core, that others may use during a round
# glibc copies large pieces by an instruction of which valgrind counts each byte
GLIBC = ':'.join('glibc.cpu.x86_rep_%s_threshold=1000000000' % name for name in ('movsb', 'stosb'))
REST = 12  # Seconds until the timers of connections that were made before have come
TICK = os.sysconf('SC_CLK_TCK')


class Failed(Exception):
    pass


class Client:
    """A process that does batches of requests. With names, it has a name server of its own."""

    def __init__(self, bench, peer, tool=()):
        args = bench.args
        environment = {
            **os.environ, 'LOWHAIO': args.lowhaio, 'LOWHAIO_PUBLISHED': args.published,
            'PYTHONHASHSEED': '0', **({'GLIBC_TUNABLES': GLIBC} if tool else {})}
        environment.pop('PYTHONPATH', None)
        self.bench = bench
        self.errors = tempfile.TemporaryFile('w+')  # noqa: SIM115
        self.process = subprocess.Popen(
            [*bench.names, *tool, sys.executable, os.path.join(HERE, 'client.py'), peer, args.loop,
             '' if bench.core is None else str(bench.core)],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
            text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def batch(self, spec, count):
        """Do that many, and return the figures."""
        try:
            self.process.stdin.write(json.dumps({**spec, 'count': count}) + '\n')
            self.process.stdin.flush()
            line = ''
            output = select.poll()  # And not select(): the servers may have a thousand files
            output.register(self.process.stdout, select.POLLIN)
            if output.poll(1000 * SECONDS):
                line = self.process.stdout.readline()
        except BrokenPipeError:
            pass
        if line:
            return json.loads(line)
        raise Failed(self.failure())

    def failure(self):
        try:
            code = self.process.wait(1)
        except subprocess.TimeoutExpired:
            return 'not done after %d seconds' % SECONDS
        self.errors.seek(0)
        return self.errors.read().strip().rpartition('\n')[2] or 'ended with %d' % code


class Bench:

    def __init__(self, args, peers, core, files, say):
        self.args, self.peers, self.core, self.say = args, peers, core, say
        self.errors = []
        self.counting = {}  # Clients that valgrind runs, by peer
        self.folder = tempfile.TemporaryDirectory(prefix='lowhaio-benchmark-')
        self.seen = os.path.join(self.folder.name, 'seen')
        counts = args.instructions and not args.cpu
        self.others = Servers(self.seen, 0.005 if counts else 0.0001, can_mount())
        self.server = Server(files, self.others.port)
        self.names = self._names() if self.others.has_name_server else ()
        if not self.names:
            say('%s: left out, for it needs root, port 53 and a mount namespace'
                % SCENARIOS['dns'].title)

    def _names(self):
        """A command for a process that has an /etc/resolv.conf of its own."""
        path = os.path.join(self.folder.name, 'resolv.conf')
        with open(path, 'w') as file:
            file.write('nameserver %s\n' % NAME_SERVER)
        return (
            'unshare', '--mount', 'sh', '-c',
            'mount --bind "$0" /etc/resolv.conf && exec "$@"', path)

    def close(self):
        for client in self.counting.values():
            client.end()
        self.server.close()
        self.folder.cleanup()

    def able(self, name):
        scenario = SCENARIOS[name]
        if scenario.host == DNS_NAME and not self.names:
            return []
        return [peer for peer in self.peers if peer not in scenario.without.split()]

    def spec(self, name):
        scenario, server = SCENARIOS[name], self.server
        port = self.others.streams if scenario.kind in ('events', 'duplex') else \
            server.tls if scenario.tls else server.plain
        origin = '%s://%s:%d' % ('https' if scenario.tls else 'http', scenario.host, port)
        stored = scenario.kind == 'upload'
        return {
            'key': name, 'scenario': name, 'certificate': server.certificate, 'origin': origin,
            'urls': [origin + scenario.path], 'seen': self.seen,
            'fill': scenario.in_flight if scenario.in_flight > 1 else 0,
            'checksum': server.checksums.get(scenario.size),
            **({'uploaded': server.path('files' + scenario.path)} if stored else {})}

    def failed(self, name, peer, error):
        self.errors.append('%s, %s: %s' % (name, TITLES[peer], error))

    def each_scenario(self, method):
        """Return {scenario: {peer: figures}}."""
        results = {}
        for name in self.args.scenarios:
            self.say(SCENARIOS[name].title)
            results[name] = method(name)
        return {name: figures for name, figures in results.items() if figures}

    # ---- Whether it works -----------------------------------------------------------------------

    def quick(self):
        for peer in self.peers:
            with Client(self, peer) as client:
                for name in self.args.scenarios:
                    if peer in self.able(name) and SCENARIOS[name].kind != 'import':
                        try:
                            client.batch(self.spec(name), max(3, SCENARIOS[name].in_flight))
                        except Failed as failure:
                            self.failed(name, peer, failure)
                            break
            print('%s: done' % TITLES[peer], flush=True)

    # ---- Instructions and system calls ----------------------------------------------------------

    def instructions(self, name):
        """Return {peer: {'instructions': ..., 'calls': {name: ...}}} per unit."""
        scenario = SCENARIOS[name]
        if scenario.kind in ('idle', 'import'):
            return {}
        results = {}
        for peer in self.able(name):
            slow = 4 if peer == 'httpx' and scenario.in_flight == 1 else 1
            batch = max(scenario.in_flight, scenario.batch // slow)
            try:
                results[peer] = {
                    'instructions': self.counted(peer, self.spec(name), batch),
                    'calls': self.calls(peer, self.spec(name), batch)}
                self.say('  %s: %d instructions, %s' % (TITLES[peer], results[peer][
                    'instructions'], ', '.join('%s %.2f' % call for call in sorted(
                        results[peer]['calls'].items(), key=lambda call: -call[1]))))
            except Failed as failure:
                self.failed(name, peer, failure)
        return results

    def counted(self, peer, spec, batch, warm_up=None, rest=0):
        """Return instructions per unit: a long batch less a short one, in one process."""
        if peer not in self.counting:
            self.counting[peer] = Client(self, peer, (
                'valgrind', '--tool=callgrind', '--fair-sched=yes', '--instr-atstart=no',
                '--callgrind-out-file=' + os.path.join(self.folder.name, 'counts-%p')))
        client, counts = self.counting[peer], []
        try:
            client.batch({**spec, 'rest': rest}, warm_up or batch)
            vgdb(client, 'instrumentation', 'on')
            for factor in 1, 1, 3:
                units = client.batch(spec, factor * batch)['units']
                counts.append((self.dumped(client), units))
            vgdb(client, 'instrumentation', 'off')
        except Failed:
            self.counting.pop(peer).end()
            raise
        (_, (short, short_units), (long, long_units)) = counts
        return (long - short) / (long_units - short_units)

    def dumped(self, client):
        """Return the instructions since the last time."""
        vgdb(client, 'dump')
        prefix = os.path.join(self.folder.name, 'counts-%d.' % client.process.pid)
        paths = glob.glob(prefix + '*')
        total = 0
        for path in paths:
            with open(path) as file:
                total += int(re.search('^(?:summary|totals): ([0-9]+)', file.read(), re.M)[1])
            os.remove(path)
        return total

    def calls(self, peer, spec, batch):
        """Return system calls per unit by name: a long batch less a short one, in one process."""
        with Client(self, peer) as client:
            client.batch(spec, batch)
            counts = []
            for factor in 1, 3:
                with Strace(client.process.pid) as strace:
                    units = client.batch(spec, factor * batch)['units']
                counts.append((strace.counts, units))
        (short, short_units), (long, long_units) = counts
        each = {call: (long[call] - short[call]) / (long_units - short_units) for call in long}
        return {call: number for call, number in each.items() if number >= 0.005}

    # ---- CPU time -------------------------------------------------------------------------------

    def cpu(self, name):
        """Return {'rounds': [{peer: cost}], 'again': ..., 'disturbed': ...}."""
        scenario = SCENARIOS[name]
        if scenario.kind == 'import':
            return self.rounds(self.able(name), lambda peer: self.imported(name, peer))
        if scenario.kind == 'idle':
            return self.rounds(self.able(name), lambda peer: self.once(name, peer))
        clients, counts, spec = {}, {}, self.spec(name)
        try:
            for peer in self.able(name):
                clients[peer] = Client(self, peer)
                try:
                    counts[peer] = self.fitting(clients[peer], spec, scenario)
                except Failed as failure:
                    self.failed(name, peer, failure)

            def cost(peer):
                figures = clients[peer].batch(spec, counts[peer])
                return figures['cpu'] / figures['units'] * 1e6

            return self.rounds(list(counts), cost)
        except Failed as failure:
            self.failed(name, 'lowhaio', failure)
            return {}
        finally:
            for client in clients.values():
                client.end()

    def fitting(self, client, spec, scenario):
        """Warm up, and return how many take as long as a batch should."""
        count = scenario.least
        for _ in range(6):
            figures = client.batch(spec, count)
            if figures['wall'] > BATCH / 3:
                break
            count = min(int(count * BATCH / figures['wall']) + 1, count * 8)
        each = figures['wall'] / figures['units']
        return max(scenario.least, int(BATCH / each))

    def rounds(self, peers, cost):
        """Run rounds until enough were quiet, or twice as many have been run."""
        wanted = self.args.rounds
        rounds = []  # How much others did, and the costs
        while sum(load < QUIET for load, _ in rounds) < wanted and len(rounds) < 2 * wanted:
            watch = Watch()
            costs = {peer: cost(peer) for peer in random.sample(peers, len(peers))}
            rounds.append((watch.load(), costs))
        kept = sorted(rounds, key=lambda each: each[0])[:wanted]
        return {
            'rounds': [costs for _, costs in kept], 'again': len(rounds) - len(kept),
            'disturbed': sum(load >= QUIET for load, _ in kept)}

    def once(self, name, peer):
        with Client(self, peer) as client:
            figures = client.batch(self.spec(name), SCENARIOS[name].batch)
            return figures['bytes'] / figures['units']

    def imported(self, name, peer):
        folder = {'lowhaio': self.args.lowhaio, 'published': self.args.published}.get(peer, HERE)
        got = subprocess.run(
            [sys.executable, os.path.join(HERE, 'imports.py'), peer,
             '' if self.core is None else str(self.core), folder],
            stdout=subprocess.PIPE, text=True, check=True)
        figures = json.loads(got.stdout)
        return figures['bytes'] if name == 'import-memory' else figures['cpu'] * 1e6

    # ---- Growth ---------------------------------------------------------------------------------

    def growth(self):
        """Return {picture: {peer: [(x, instructions)]}}."""
        pictures = {
            'connections': ([64, 1000, 4000, 16000], self.pooled),
            'hosts': ([64, 1000, 4000, 16000], self.hosts),
            'fields': ([5, 20, 60], self.fields),
            'download': ([size * KIB for size in (1, 4, 16, 64, 256, 1024)], self.chunks),
            'upload': ([size * KIB for size in (1, 4, 16, 64, 256, 1024)], self.pieces),
        }
        results = {}
        for name, (numbers, method) in pictures.items():
            results[name] = {}
            for peer in self.peers:
                points = results[name][peer] = []
                for number in numbers:
                    self.say('%s, %d, %s' % (name, number, TITLES[peer]))
                    try:
                        points.append((number, method(peer, number)))
                    except Failed as failure:
                        self.failed('%s, %d' % (name, number), peer, failure)
                if peer in self.counting:
                    self.counting.pop(peer).end()  # And its connections
        return results

    def of_others(self, scenario, target, **more):
        origin = 'http://127.0.0.1:%d' % self.others.port
        return {
            'key': target, 'scenario': scenario, 'certificate': self.server.certificate,
            'origin': origin, 'urls': [origin + target], **more}

    def pooled(self, peer, number):
        return self.counted(peer, self.of_others('get', '/small', fill=number), 200, rest=REST)

    def hosts(self, peer, number):
        spec = self.of_others('get', '/small')
        spec['urls'] = ['http://127.1.%d.%d:%d/small' % (n // 250, n % 250 + 1, self.others.port)
                        for n in range(number)]
        # A batch asks the first hosts, whose connections are the oldest
        return self.counted(peer, spec, 64, warm_up=number, rest=REST)

    def fields(self, peer, number):
        return self.counted(peer, self.of_others('get', '/fields/%d' % number), 100)

    def chunks(self, peer, size):
        checksum = zlib.crc32(b'.' * (8 * MIB))
        return self.counted(peer, self.of_others(
            'chunked', '/chunks/%d' % size, checksum=checksum), 16)

    def pieces(self, peer, size):
        return self.counted(peer, self.of_others('upload', '/pieces', piece=size), 16)


# ---- What looks at a process --------------------------------------------------------------------


def vgdb(client, *words):
    got = subprocess.run(
        ['vgdb', '--pid=%d' % client.process.pid, *words], stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True)
    if got.returncode:
        raise Failed(got.stderr.strip())


class Strace:
    """Counts the system calls of a process, all its threads, while it is entered."""

    def __init__(self, pid):
        self.pid = pid

    def __enter__(self):
        self.output = tempfile.NamedTemporaryFile('r')
        self.process = subprocess.Popen(
            ['strace', '-f', '-c', '-o', self.output.name, '-p', str(self.pid)],
            stderr=subprocess.PIPE, text=True)
        if 'attached' not in self.process.stderr.readline():
            raise Failed('strace does not attach')
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        self.process.communicate()
        self.counts = collections.Counter()
        for line in self.output:
            fields = line.split()
            if len(fields) >= 5 and fields[3].isdigit() and fields[-1] != 'total':
                self.counts[fields[-1]] = int(fields[3])
        self.output.close()


class Watch:
    """Looks at how much of the machine others use meanwhile: programs, and the hypervisor."""

    def __init__(self):
        self.wall, (self.busy, self.own) = time.perf_counter(), self._now()

    def _now(self):
        with open('/proc/stat') as file:
            user, nice, system, _, _, _, _, steal = map(int, file.readline().split()[1:9])
        return (user + nice + system + steal) / TICK, own_cpu(os.getpid())

    def load(self):
        wall, (busy, own) = time.perf_counter() - self.wall, self._now()
        return (busy - self.busy - (own - self.own)) / wall


def own_cpu(parent):
    """Return the CPU seconds of a process and of all below it, those that have ended too."""
    children, times = collections.defaultdict(list), {}
    for name in os.listdir('/proc'):
        if name.isdigit():
            try:
                with open('/proc/%s/stat' % name) as file:
                    fields = file.read().rpartition(')')[2].split()
            except OSError:
                continue
            children[int(fields[1])].append(int(name))
            times[int(name)] = sum(map(int, fields[11:15])) / TICK
    processes, total = [parent], 0
    while processes:
        process = processes.pop()
        total += times.get(process, 0)
        processes += children[process]
    return total


def can_mount():
    try:
        return os.geteuid() == 0 and not subprocess.run(
            ['unshare', '--mount', 'true'], stderr=subprocess.DEVNULL).returncode
    except OSError:
        return False
