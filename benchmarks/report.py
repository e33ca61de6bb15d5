"""Figures as Markdown, JSON and pictures."""

import json
import os
import statistics

import pictures
from scenarios import SCENARIOS, TITLES

SPREAD = 0.15  # Of the median, that the quartiles of a figure may be apart: more makes it a range


def about_line(about):
    return 'Python %s, %s, nginx %s; %s; %s.' % (
        about['python'], about['loop'], about['nginx'], about['machine'], ', '.join(
            '%s %s' % (peer, version) for peer, version in about['versions'].items()
            if version and peer != 'published') or 'no other client')


def table(first, results, cell):
    """Return a table of scenarios by peers."""
    peers = [peer for peer in TITLES if any(peer in row for row in results.values())]
    lines = ['| %s | %s |' % (first, ' | '.join(TITLES[peer] for peer in peers)),
             '| --- |%s' % (' ---: |' * len(peers))]
    for name, row in results.items():
        lines.append('| %s | %s |' % (SCENARIOS[name].title, ' | '.join(
            cell(name, peer, row) if peer in row else '' for peer in peers)))
    return '\n'.join(lines)


# ---- Instructions and system calls --------------------------------------------------------------


def instructions_table(about, results):
    def cell(name, peer, row):
        instructions = row[peer]['instructions']
        words = '%.2f M' % (instructions / 1e6) if instructions > 999500 else \
            '%.3g k' % (instructions / 1e3)
        return '%s (%.1f)' % (words, sum(row[peer]['calls'].values()))

    return '%s\n\n%s\n' % (about_line(about), table(
        'instructions (system calls)', results, cell))


# ---- CPU time -----------------------------------------------------------------------------------


def quartiles(values):
    if len(values) < 3:
        return min(values), statistics.median(values), max(values)
    first, median, third = statistics.quantiles(values, n=4, method='inclusive')
    return first, median, third


def spread(values, word):
    """Return the median in words, or both quartiles where they are too far apart."""
    first, median, third = quartiles(values)
    if third - first <= SPREAD * median:
        return word(median)
    return '%s to %s' % (word(first), word(third))


def costs(name, row):
    """Return what a row has for each peer: its cost in each round."""
    peers = row['rounds'][0]
    return {peer: [costs[peer] for costs in row['rounds']] for peer in peers}


def cpu_cell(name, peer, row):
    if peer == 'lowhaio' or 'lowhaio' not in row:
        return spread(row[peer], lambda number: cost(name, number))
    ratios = [theirs / ours for theirs, ours in zip(row[peer], row['lowhaio'])]
    return spread(ratios, lambda ratio: '%.3g' % ratio if ratio >= 10 else '%.2f' % ratio)


def cost(name, number):
    """Return it with its unit: microseconds, or bytes."""
    if name == 'idle':
        return '%.1f KB' % (number / 1e3)
    if name == 'import-memory':
        return '%.1f MB' % (number / 1e6)
    if number > 9999:
        return '%.0f ms' % (number / 1e3)
    return '%.0f µs' % number if number >= 10 else '%.1f µs' % number


def cpu_table(about, results):
    again = sum(row['again'] for row in results.values())
    disturbed = {name: row['disturbed'] for name, row in results.items() if row['disturbed']}
    notes = '%d rounds. %d more were run, since others used the machine in some; %s.' % (
        about['rounds'], again, 'so they did in these that count: ' + ', '.join(
            '%s (%d)' % item for item in disturbed.items()) if disturbed
        else 'those that count were quiet')
    return '%s %s\n\n%s\n' % (about_line(about), notes, table(
        'CPU time', {name: costs(name, row) for name, row in results.items()}, cpu_cell))


# ---- Files --------------------------------------------------------------------------------------


def write(prefix, results):
    about = results['about']
    parts = ['`%s`' % about['command']]
    if 'instructions' in results:
        parts.append(instructions_table(about, results['instructions']))
    if 'cpu' in results:
        parts.append(cpu_table(about, results['cpu']))
        rows = {name: {peer: quartiles(values)[1] for peer, values in costs(name, row).items()}
                for name, row in results['cpu'].items()}
        pictures.write(prefix + '.svg', pictures.bars(rows))
    with open(prefix + '.md', 'w') as file:
        file.write('\n\n'.join(parts))
    with open(prefix + '.json', 'w') as file:
        json.dump(results, file)
        file.write('\n')


def write_growth(folder, about, results):
    print(about_line(about))
    for name, peers in results.items():
        for peer, points in peers.items():
            print('%s, %s: %s' % (name, TITLES[peer], ', '.join(
                '%d: %s' % (x, format(y, ',.0f')) for x, y in points)), flush=True)
        pictures.write(
            os.path.join(folder, 'growth-%s.svg' % name), pictures.lines(name, peers))
