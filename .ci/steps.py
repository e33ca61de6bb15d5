"""Runs steps of noxfile.py side by side; shows what a step printed only if it failed.

    python steps.py FOLDER [STEP...]

FOLDER takes what the steps need, and is removed at the end. A step may have arguments: 'fuzz 60'.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from noxfile import LOOPS, PYTHONS, TOOLS

NOX = [sys.executable, '-m', 'nox', '-f', str(Path(__file__).with_name('noxfile.py'))]
# The tests wait for half of their time.
AT_ONCE = 2 * (os.cpu_count() or 1)
# What is long comes first. The coverage is measured on one of the runs of the tests.
STEPS = [
    'debian', 'coverage',
    *('tests-%s %s' % (version, loop) for version in PYTHONS for loop in LOOPS
      if (version, loop) != (TOOLS, 'asyncio')),
    'types', 'chaos', 'fuzz', 'bench', *sorted({'quickstart-' + PYTHONS[0],
                                                'quickstart-' + PYTHONS[-1]}),
    'package', 'lint', 'circleci']


def main(folder, *steps):
    waiting, running, totals = list(steps or STEPS), [], [0, 0]
    try:
        run_all(['nginx'], Path(folder), running, totals)
        run_all(waiting, Path(folder), running, totals)
    finally:
        for _, process, _, _ in running:
            end(process)
        shutil.rmtree(folder, ignore_errors=True)
    print('%d passed, %d failed' % tuple(totals))
    return 1 if totals[1] else 0


def run_all(waiting, folder, running, totals):
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            running.append(start(waiting.pop(0), folder))
        for job in [job for job in running if job[1].poll() is not None]:
            running.remove(job)
            end(job[1])
            report(*job, totals)
        time.sleep(0.1)


def start(step, folder):
    name, *arguments = step.split()
    log = folder / step.replace(' ', '-')
    # SIGABRT makes Python's development mode print where it hung. timeout makes a group of
    # processes, which is what is killed later, so that nothing a step started outlives it.
    command = ['timeout', '--signal=ABRT', '--kill-after=10s', '20m', *NOX,
               '--envdir', '%s.env' % log, '-s', name, '--', *arguments]
    with log.open('wb') as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    return step, process, log, time.monotonic()


def end(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def report(step, process, log, start, totals):
    text = log.read_text(encoding='utf-8', errors='replace')
    ran = sum(map(int, re.findall(r'^Ran (\d+) test', text, re.M)))
    broken = sum(map(int, re.findall(
        r'\b(?:failures|errors|unexpected successes)=(\d+)',
        '\n'.join(re.findall(r'^FAILED \(.*', text, re.M)))))
    status = process.returncode
    if os.environ.get('CI') and re.search(r'^(?:OK|FAILED) \(.*skipped=', text, re.M):
        status, text = 1, text + 'No test may be skipped in CI\n'
    if step.startswith('tests-') and ran == 0:
        status, text = 1, text + 'No test was run\n'

    totals[0] += max(ran - broken, 0)
    totals[1] += 0 if status == 0 else broken or 1
    shutil.rmtree('%s.env' % log, ignore_errors=True)
    print('%s: %s (%d s)' % (step, 'FAILED, status %d' % status if status else 'ok',
                             time.monotonic() - start))
    shown = r'.*NOT TESTED.*|^(?:Ran \d+ test|OK|TOTAL|Built lowhaio|seed \d).*|.* skipped: .*'
    print(text if status else ''.join(
        line + '\n' for line in re.findall(shown, text, re.M)), end='', flush=True)


if __name__ == '__main__':
    # A shell's job in the background ignores SIGINT
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    sys.exit(main(*sys.argv[1:]))
