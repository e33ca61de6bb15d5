"""What fuzz.py and chaos.py share: a loop that is watched, seeds, and what is said at the end."""

import argparse
import asyncio
import collections
import contextlib
import faulthandler
import gc
import logging
import random
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import lowhaio
import test

END_SECONDS = 5  # Until a connection has ended, on a busy machine


class Search:
    """A loop, what came of all that was tried on it, and the faults.

    It is what test.Server takes for its test.
    """

    def __init__(self, caught, logged):
        self.caught, self.logged = caught, logged
        self.loop = test.Loop()
        self.loop.set_debug(False)  # Its tracebacks take half of the time
        self.tasks = []
        self.outcomes = collections.Counter()
        self.faults = 0
        self.files = test.open_files()
        sys.unraisablehook = lambda unraisable: self.loop.faults.append(
            'unraisable: %r in %r' % (unraisable.exc_value, unraisable.object))

    def spawn(self, coroutine):
        self.tasks.append(self.loop.create_task(coroutine))
        return self.tasks[-1]

    def fault(self, text, shown):
        self.faults += 1
        if self.faults == 1:
            text = '\n'.join([repr(text), *map(str, self.loop.faults)])
            print('\nFault: %.3000s\n%s\n' % (text, shown), flush=True)

    async def check_connections(self):
        """Wait until the tasks of the servers have ended: each of its connections has."""
        gc.collect()
        tasks, self.tasks = self.tasks, []
        _, pending = await asyncio.wait(tasks, timeout=END_SECONDS)
        for task in pending:
            task.cancel()
        assert not pending, 'open: %s' % [test.where(task) for task in pending]

    def check_leftovers(self):
        """Look at what was left behind, and what was noticed of it, since the last time."""
        gc.collect()
        loop = self.loop
        faults = loop.faults + ['a warning: %s' % warning for warning in self.caught] + [
            'asyncio logged: %s' % message for message in self.logged.messages()] + [
            'a timer: %r' % timer for timer in loop.active_timers()] + [
            'a %s of %d' % item for item in loop.watched] + [
            'a task: %s' % test.where(task) for task in asyncio.all_tasks(loop)] + [
            'a file: %d, %s' % item for item in test.open_files().items()
            if item not in self.files.items()]
        for leftovers in (loop.faults, loop.library_timers, self.caught, self.logged.records):
            leftovers.clear()
        assert not faults, '\n'.join(faults)


async def next_chunk(body):
    """Of a response; b'' at the end. What has ended or failed must stay so."""
    try:
        chunk = await body.__anext__()
        assert type(chunk) is bytes and chunk, chunk
        return chunk
    except StopAsyncIteration:
        assert await lowhaio.buffered(body) == b'', 'a body that has ended goes on'
        return b''
    except (lowhaio.HttpError, asyncio.CancelledError):
        with contextlib.suppress(lowhaio.HttpDataError):
            await lowhaio.buffered(body)
            raise AssertionError('a body that has failed just ends') from None
        raise


def main(run):
    """Call run(search, seconds, seed), which ends at the first fault."""
    parser = argparse.ArgumentParser()
    parser.add_argument('seconds', type=float)
    parser.add_argument('seed', type=int, nargs='?', default=random.randrange(1000000))
    arguments = parser.parse_args()
    print('seed %d' % arguments.seed, flush=True)

    faulthandler.dump_traceback_later(arguments.seconds + 600, exit=True)
    start = time.monotonic()
    with warnings.catch_warnings(record=True) as caught, \
            test.LogRecords('asyncio', logging.WARNING) as logged:
        warnings.simplefilter('always')
        search = Search(caught, logged)
        run(search, arguments.seconds, arguments.seed)

    count = sum(search.outcomes.values())
    print('seed %d: %s in %d requests, %.0f a second: %s' % (
        arguments.seed, 'a fault' if search.faults else 'no fault', count,
        count / (time.monotonic() - start),
        ', '.join('%d %s' % (count, name) for name, count in search.outcomes.most_common())))
    sys.exit(min(search.faults, 1))
