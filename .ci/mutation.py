"""Breaks lowhaio.py in one place after another, and tells which of that no test notices.

    pip install '.[test]' coverage mutmut
    python -W error .ci/mutation.py --sample 100
    python -W error .ci/mutation.py --section 'Response head'

The mutants are those of mutmut's operators. Each is tried in a process of its own, forked from one
that has imported all else, on the tests that run its line (coverage.py knows which): those that
caught others in the same function first, then the fast ones, until one fails. What was found is
kept in a folder for this lowhaio.py and this test.py, so that a run goes on where one was stopped.
"""

import argparse
import collections
import ctypes
import difflib
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import unittest
from pathlib import Path

import coverage
import libcst as cst
from libcst.metadata import MetadataWrapper, ParentNodeProvider, PositionProvider
from mutmut.mutation.mutators import mutation_operators, operator_string

ROOT = Path(__file__).resolve().parent.parent
LOGGING = ('log', 'debug')
ALIASES = ('TypeVar', 'Union', 'Callable', 'Tuple', 'Dict', 'Optional', 'Generator')


class Mutants(cst.CSTVisitor):
    """Finds all of them, as pairs of nodes, but those that change no behaviour."""

    METADATA_DEPENDENCIES = (PositionProvider, ParentNodeProvider)

    def __init__(self):
        super().__init__()
        self.found = []

    def on_visit(self, node):
        if is_noise(node):
            return False
        for kind, operator in mutation_operators:
            if isinstance(node, kind) and not (operator is operator_string and is_prose(node)):
                self.found += [self._mutant(node, mutated) for mutated in operator(node)
                               if not is_false_as_before(node, mutated)]
        return True

    def _mutant(self, node, mutated):
        parents, parent = [node], node
        while not isinstance(parent, cst.Module):
            parent = self.get_metadata(ParentNodeProvider, parent)
            parents.append(parent)
        spans = []  # From the node itself to the outermost statement around it
        for parent in parents[:-1]:
            position = self.get_metadata(PositionProvider, parent)
            spans.append((position.start.line, position.end.line))
        names = [parent.name.value for parent in parents
                 if isinstance(parent, (cst.FunctionDef, cst.ClassDef))]
        if not names and isinstance(parents[-3], (cst.Assign, cst.AnnAssign)):
            names = re.findall(r'\w+', cst.Module([]).code_for_node(parents[-3]))[:1]
        in_function = any(isinstance(parent, cst.FunctionDef) for parent in parents)
        return node, mutated, spans, names, in_function


def is_noise(node):
    if isinstance(node, (cst.Annotation, cst.Decorator, cst.Import, cst.ImportFrom)):
        return True
    if isinstance(node, cst.Call):
        return getattr(node.func, 'value', '') in LOGGING
    if isinstance(node, cst.Assign):
        target, value = node.targets[0].target, node.value
        value = getattr(value, 'func', getattr(value, 'value', None))
        return getattr(target, 'value', '') in ('__all__', '__slots__', '_REPEATED') or \
            getattr(value, 'value', '') in ALIASES
    return False


def is_false_as_before(node, mutated):
    """Whether a name gets None for False, which only code that looks at it could tell."""
    return isinstance(node, (cst.Assign, cst.AnnAssign)) and \
        getattr(node.value, 'value', '') == 'False' and \
        getattr(mutated.value, 'value', '') == 'None'


def is_prose(string):
    """Whether it is part of a message: tests look for some of its words."""
    return isinstance(string, cst.SimpleString) and ' ' in string.value and \
        'b' not in string.prefix


def all_mutants(source):
    wrapper = MetadataWrapper(cst.parse_module(source))
    visitor = Mutants()
    wrapper.visit(visitor)
    banners = [(number, match[1]) for number, line in enumerate(source.splitlines(), 1)
               for match in [re.match(r'# ---- ([\w ]+?) (?:\(.*\) )?-+$', line)] if match]
    mutants, seen = [], collections.Counter()
    for node, mutated, spans, names, in_function in visitor.found:
        line = spans[0][0]
        section = ([name for number, name in banners if number <= line] or ['Imports'])[-1]
        key = '%s: %s -> %s' % ('.'.join(reversed(names)), wrapper.module.code_for_node(node),
                                wrapper.module.code_for_node(mutated))
        seen[key] += 1
        mutants.append({
            'key': '%s #%d' % (key, seen[key]), 'section': section, 'line': line, 'spans': spans,
            'names': names, 'in_function': in_function,
            'source': lambda nodes=(node, mutated): wrapper.module.deep_replace(*nodes).code})
    return mutants


# ---- The processes that run tests


class Result(unittest.TestResult):
    """Notes each test's time, and ends the process if one takes far too long."""

    def __init__(self, report, before, seconds, failed):
        super().__init__()
        self.report, self.before, self.seconds, self.on_failure = report, before, seconds, failed
        self.times = {}

    def startTest(self, test):
        super().startTest(test)
        self.report(test.id() + '\n')
        self.before(test.id())
        signal.setitimer(signal.ITIMER_REAL, self.seconds(test.id()))
        self.started = time.perf_counter()

    def stopTest(self, test):
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.times[test.id()] = time.perf_counter() - self.started

    def addFailure(self, test, err):
        self.on_failure(test.id())

    def addError(self, test, err):
        self.on_failure(test.id())

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self.on_failure(test.id())


def import_all():
    """Import all that the tests need, then drop what has a part of lowhaio."""
    import lowhaio  # noqa: PLC0415
    importlib.import_module('test')
    for name, module in list(sys.modules.items()):
        if any(value is lowhaio or getattr(value, '__module__', '') == 'lowhaio'
               for value in list(vars(module).values())) or name in ('lowhaio', 'test'):
            del sys.modules[name]


def in_child(function, folder, source):
    """Start a function in a process of its own, which has this as its lowhaio.py."""
    (folder / 'lowhaio.py').write_text(source)
    (folder / 'report').write_text('')
    (folder / 'tmp').mkdir(exist_ok=True)
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.chdir(folder)
        tempfile.tempdir = os.environ['TMPDIR'] = str(folder / 'tmp')
        output = os.open('output', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        with open('report', 'a', buffering=1) as report:
            status = function(report.write)
    except BaseException as exception:  # An error at import is a mutant that is caught, too
        print(repr(exception), flush=True)
    finally:
        os._exit(status)


def end_children(folder):
    """End the servers and scripts that tests have started, and drop their files."""
    children = Path('/proc/self/task/%d/children' % os.getpid())
    while children.read_text():
        for child in map(int, children.read_text().split()):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    shutil.rmtree(folder / 'tmp')


def measured(report):
    """Run all tests, and write which of them runs which line, and how long it takes."""
    tracer = coverage.Coverage(data_file=None, config_file=False, include=['*/lowhaio.py'])
    tracer.start()
    suite = unittest.defaultTestLoader.loadTestsFromName('test')
    failed = set()
    result = Result(report, tracer.switch_context, lambda _: 120, failed.add)
    suite(result)
    tracer.stop()
    data = tracer.get_data()
    [name] = data.measured_files()
    lines = {line: sorted(set(contexts) & set(result.times))
             for line, contexts in data.contexts_by_lineno(name).items()}
    Path('../map').write_text(json.dumps(
        {'seconds': result.times, 'lines': lines, 'failed': sorted(failed & set(result.times))}))
    return 0


def run_tests(names, seconds):
    def run(report):
        result = Result(report, str, lambda name: 5 + 5 * seconds[name], lambda _: os._exit(1))
        unittest.defaultTestLoader.loadTestsFromNames(names)(result)
        return 0
    return run


# ---- Which tests, and what came out


def tests_for(mutant, tests, source):
    for first, last in mutant['spans'] if mutant['in_function'] else []:
        found = {test for line in range(first, last + 1) for test in tests['lines'].get(line, ())}
        if found:
            return found
    pattern = re.compile(r'\b(?:%s)\b' % '|'.join(mutant['names'] or ['$']))
    return {test for line, text in enumerate(source.splitlines(), 1) if pattern.search(text)
            for test in tests['lines'].get(line, ())}


def load_tests_map(folder, source):
    if not (folder / 'map').exists():
        print('Measuring which tests run which lines: this takes as long as all of them',
              flush=True)
        os.waitpid(in_child(measured, folder / 'copy', source), 0)
        end_children(folder / 'copy')
    tests = json.loads((folder / 'map').read_text())
    for name in tests['failed']:  # Some are only too slow while they are traced
        run = run_tests([name], tests['seconds'])
        status = os.waitpid(in_child(run, folder / 'copy', source), 0)[1]
        end_children(folder / 'copy')
        if status:
            print('Left out, since it fails before anything is changed:', name)
            for names in tests['lines'].values():
                names[:] = set(names) - {name}
    return {**tests, 'lines': {int(line): names for line, names in tests['lines'].items()}}


def try_mutant(mutant, names, seconds, folder, source):
    """Return what caught it, or '', and the seconds that took."""
    started = time.monotonic()
    mutated = mutant['source']()
    process = in_child(run_tests(names, seconds), folder / 'copy', mutated)
    limit = started + 20 + 5 * sum(seconds[name] for name in names)
    status = None
    try:
        while status is None:
            time.sleep(.02)
            ended, waited = os.waitpid(process, os.WNOHANG)
            if ended:
                status = waited
            elif time.monotonic() > limit:
                os.kill(process, signal.SIGKILL)
    finally:
        end_children(folder / 'copy')
    ran = (folder / 'copy/report').read_text().split('\n')[:-1]
    diff = ''.join(list(difflib.unified_diff(
        source.splitlines(True), mutated.splitlines(True), n=0))[2:])
    return {'key': mutant['key'], 'section': mutant['section'], 'line': mutant['line'],
            'caught_by': '' if not status else ran[-1] if ran else 'import',
            'by_time': os.WIFSIGNALED(status), 'tests': len(ran), 'diff': diff,
            'seconds': round(time.monotonic() - started, 1)}


def wanted(mutants, options):
    first, last = map(int, options.lines.split('-')) if options.lines else (1, sys.maxsize)
    mutants = [mutant for mutant in mutants if first <= mutant['line'] <= last
               and any(mutant['section'].startswith(name) for name in options.section or [''])
               and not any(mutant['section'].startswith(name) for name in options.but or [])]
    # A larger sample has all of a smaller one, and a change of lowhaio.py leaves most the same
    mutants.sort(key=lambda mutant: hashlib.sha256(
        ('%d %s' % (options.seed, mutant['key'])).encode()).digest())
    return mutants[:options.sample]


def show(results):
    print('\n%-26s %8s %8s %8s' % ('', 'mutants', 'killed', 'share'))
    sections = collections.defaultdict(list)
    for result in results:
        sections[result['section']].append(bool(result['caught_by']))
    sections['All'] = [bool(result['caught_by']) for result in results]
    for section, killed in sections.items():
        print('%-26s %8d %8d %7.1f%%' % (
            section, len(killed), sum(killed), 100 * sum(killed) / max(1, len(killed))))
    for result in results:
        if not result['caught_by']:
            print('\nSurvives %d of %d tests: %s\n%s' % (
                result['tests'], result['of'], result['section'], result['diff']), end='')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--section', action='append', help='start of a banner of lowhaio.py')
    parser.add_argument('--but', action='append', help='a section to leave out')
    parser.add_argument('--lines', metavar='A-B')
    parser.add_argument('--sample', type=int, metavar='N', help='so many mutants rather than all')
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--seconds', type=float, default=60, help='of tests for a mutant')
    parser.add_argument('--list', action='store_true', help='count the mutants, and run none')
    parser.add_argument('--again', action='store_true', help='try those that survived again')
    parser.add_argument('--folder', type=Path, help='where results are kept')
    options = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: see end_children
    os.environ['PYTHONDONTWRITEBYTECODE'] = '1'  # One of the same size would be taken for another
    sys.dont_write_bytecode = True
    source = (ROOT / 'lowhaio.py').read_text()
    mutants = wanted(all_mutants(source), options)
    if options.list:
        print(json.dumps(collections.Counter(mutant['section'] for mutant in mutants), indent=1))
        return
    state = hashlib.sha256((source + (ROOT / 'test.py').read_text()).encode()).hexdigest()[:12]
    folder = options.folder or Path(tempfile.gettempdir(), 'lowhaio-mutation-' + state)
    shutil.rmtree(folder / 'copy', ignore_errors=True)
    shutil.copytree(ROOT, folder / 'copy', ignore=shutil.ignore_patterns('.git', '__pycache__'))
    os.chdir(folder / 'copy')
    sys.path[0] = str(folder / 'copy')
    import_all()
    tests = load_tests_map(folder, source)
    run_all(mutants, tests, folder, source, options)


def run_all(mutants, tests, folder, source, options):
    (folder / 'results').touch()
    results = {result['key']: result
               for result in map(json.loads, (folder / 'results').read_text().splitlines())}
    catches = collections.Counter((result['key'].partition(':')[0], result['caught_by'])
                                  for result in results.values())
    seconds = tests['seconds']
    for number, mutant in enumerate(mutants, 1):
        key = mutant['key']
        if key in results and (results[key]['caught_by'] or not options.again):
            continue
        place = key.partition(':')[0]
        names, time_left = [], options.seconds
        covering = tests_for(mutant, tests, source)
        for name in sorted(covering, key=lambda name: (
                -catches[place, name], seconds[name])):
            time_left -= seconds[name]
            if time_left > 0 or not names:
                names.append(name)
        result = results[key] = try_mutant(mutant, names, seconds, folder, source)
        result['of'] = len(covering)
        catches[place, result['caught_by']] += 1
        with open(folder / 'results', 'a') as file:
            file.write(json.dumps(result) + '\n')
        print('%d/%d %5.1f s, line %d: %s' % (
            number, len(mutants), result['seconds'], mutant['line'],
            result['caught_by'] or 'SURVIVES'), flush=True)
    show([results[mutant['key']] for mutant in mutants if mutant['key'] in results])


if __name__ == '__main__':
    main()
