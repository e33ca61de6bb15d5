"""Figures as text, Markdown, JSON and a picture."""

import json
import statistics

from scenarios import SCENARIOS, TITLES

GOALS_OF = ('bare', 'published', 'aiohttp', 'pyreqwest', 'blocking')


# ---- Figures ------------------------------------------------------------------------------------


def value(name, figures):
    """Return what one run cost: microseconds or bytes per unit."""
    if 'error' in figures:
        return None
    scenario = SCENARIOS[name]
    if scenario.metric == 'bytes':
        return figures['bytes'] / figures['units']
    return figures['cpu'] / figures['units'] * 1e6


def median(name, runs):
    values = [value(name, figures) for figures in runs]
    return statistics.median(values) if None not in values else None


def ratios(name, runs, ours):
    """Return median, least and greatest of what a peer cost divided by what lowhaio cost."""
    pairs = [(value(name, theirs), value(name, own)) for theirs, own in zip(runs, ours)]
    if any(None in pair for pair in pairs):
        return None
    each = [theirs / own for theirs, own in pairs]
    return statistics.median(each), min(each), max(each)


def throughput(runs):
    rates = [figures['units'] / figures['wall'] for figures in runs if figures.get('wall')]
    return statistics.median(rates) if rates else None


def errors(results):
    return ''.join(
        '%s, %s: %s\n' % (SCENARIOS[name].title, TITLES[peer], figures['error'])
        for name, peers in results.items() for peer, runs in peers.items()
        for figures in runs[:1] + [f for f in runs[1:] if 'error' in f][:1] if 'error' in figures)


def cost(name, number):
    scenario = SCENARIOS[name]
    if number is None:
        return 'failed'
    if scenario.unit == 'import':
        return '%.1f MB' % (number / 1e6) if scenario.metric == 'bytes' else \
            '%.0f ms' % (number / 1e3)
    if scenario.metric == 'bytes':
        return '%.1f KB' % (number / 1e3)
    return '%.0f us' % number


def what(name):
    scenario = SCENARIOS[name]
    if scenario.unit == 'import':
        return 'memory' if scenario.metric == 'bytes' else 'CPU time'
    return '%s/%s' % ('memory' if scenario.metric == 'bytes' else 'CPU', scenario.unit)


# ---- Text ---------------------------------------------------------------------------------------


def caption(about):
    return 'Python %s, %s, nginx %s; %s; %s. Median of %d rounds.' % (
        about['python'], about['loop'], about['nginx'], about['machine'], ', '.join(
            '%s %s' % (peer, version) for peer, version in about['versions'].items()
            if version and peer not in ('lowhaio', 'published')) or 'no other client',
        about['rounds'])


def introduction(about):
    return '%s\n%s\n%s' % (
        about['command'], caption(about), 'Ratio: what a peer costs divided by what lowhaio '
        'costs in the same round (median, least, greatest).')


def table(name, peers):
    """Return the figures of one scenario."""
    ours = peers.get('lowhaio')
    lines = ['', '%-44s %12s %12s  %-20s %5s' % (
        SCENARIOS[name].title, what(name), SCENARIOS[name].unit + 's/s', 'ratio', 'goal')]
    for peer, runs in peers.items():
        rate = throughput(runs) if SCENARIOS[name].unit != 'import' else None
        ratio = ratios(name, runs, ours) if ours and peer != 'lowhaio' else None
        goal = SCENARIOS[name].goals.get(peer)
        line = '  %-42s %12s %12s  %-20s %5s %s' % (
            TITLES[peer], cost(name, median(name, runs)),
            format(rate, ',.0f') if rate else '',
            '%.2f (%.2f to %.2f)' % ratio if ratio else '',
            goal or '', '' if not goal or not ratio else
            'met' if ratio[0] >= goal else 'MISSED')
        lines.append(line.rstrip())
    return '\n'.join(lines)


def markdown(about, results):
    """Return the table for README: ratios with goals, and what lowhaio itself costs."""
    peers = [peer for peer in TITLES if any(peer in runs for runs in results.values())]
    others = [peer for peer in peers if peer != 'lowhaio']
    lines = [
        '| | lowhaio | %s |' % ' | '.join(TITLES[peer] for peer in others),
        '| --- |%s' % (' ---: |' * (1 + len(others))),
    ]
    for name, runs in results.items():
        if 'lowhaio' not in runs:
            continue
        cells = [SCENARIOS[name].title, cost(name, median(name, runs['lowhaio']))]
        for peer in others:
            ratio = ratios(name, runs[peer], runs['lowhaio']) if peer in runs else None
            goal = SCENARIOS[name].goals.get(peer)
            cells.append('' if not ratio else '%.2f' % ratio[0] if not goal else
                         '%.2f (%s)' % (ratio[0], goal))
        lines.append('| %s |' % ' | '.join(cells))
    return '\n'.join([*lines, '', '`%s`' % about['command'], '', caption(about), ''])


def counts(unit, results):
    """Return system calls or instructions per request or megabyte, and which ones."""
    lines = []
    for name, peers in results.items():
        lines += ['', '%s: %s per %s' % (SCENARIOS[name].title, unit, SCENARIOS[name].unit)]
        for peer, figures in peers.items():
            if 'error' in figures:
                lines.append('  %-42s failed' % TITLES[peer])
                continue
            each = sorted(figures['each'].items(), key=lambda item: -item[1])
            lines.append('  %-42s %12s  %s' % (
                TITLES[peer],
                format(figures['total'], ',.0f' if unit == 'instructions' else '.2f'),
                ', '.join('%s %.2f' % item for item in each if item[1] >= 0.01)))
    return '\n'.join(lines[1:])


# ---- Files --------------------------------------------------------------------------------------


def write(prefix, about, results):
    with open(prefix + '.json', 'w') as file:
        json.dump({'about': about, 'results': results}, file, indent=1)
        file.write('\n')
    with open(prefix + '.md', 'w') as file:
        file.write(markdown(about, results))
    picture(prefix + '.svg', about, results)


PANELS = (
    ('CPU time per small request, 64 in flight', 'microseconds', ('small-64', 'small-64-tls')),
    ('CPU time per MB downloaded', 'microseconds', ('download', 'download-tls')),
)
LIGHT = {'paper': '#ffffff', 'ink': '#24292f', 'ours': '#0969da', 'ours-tls': '#80b3ee',
         'theirs': '#6e7781', 'theirs-tls': '#b9bfc6'}
DARK = {'paper': '#0d1117', 'ink': '#e6edf3', 'ours': '#58a6ff', 'ours-tls': '#2b5c94',
        'theirs': '#8b949e', 'theirs-tls': '#4b535d'}


def picture(path, about, results):
    """Draw bars, if the figures are there."""
    panels = [panel for panel in PANELS if set(panel[2]) <= set(results)]
    try:
        import matplotlib
    except ImportError:
        return
    if not panels:
        return
    matplotlib.use('svg')
    from matplotlib import pyplot
    pyplot.rcParams.update({
        'svg.fonttype': 'none', 'svg.hashsalt': 'lowhaio', 'font.family': 'sans-serif',
        'font.size': 9, **dict.fromkeys((
            'text.color', 'axes.labelcolor', 'xtick.color', 'ytick.color', 'axes.edgecolor'),
            LIGHT['ink'])})

    figure, all_axes = pyplot.subplots(
        1, len(panels), figsize=(9, 4.2), squeeze=False, facecolor=LIGHT['paper'])
    for axes, panel in zip(all_axes[0], panels):
        draw_panel(axes, panel, results)
    figure.suptitle('What HTTP costs: less is better', x=0.02, ha='left', weight='bold', size=12)
    words = caption(about).replace('; ', ';\n', 1)
    figure.text(0.02, 0.02, words, size=7, va='bottom')
    figure.tight_layout(rect=(0, 0.08, 1, 0.97))
    figure.savefig(path, metadata={'Date': None, 'Creator': None})
    pyplot.close(figure)
    add_dark_mode(path)


def draw_panel(axes, panel, results):
    title, unit, names = panel
    peers = [peer for peer in TITLES if all(
        peer in results[name] and median(name, results[name][peer]) for name in names)]
    # One that is many times longer would leave the others no room: it is cut, and says so
    longest = sorted(median(name, results[name][peer]) for peer in peers for name in names)
    limit = 1.5 * next((number for number in reversed(longest) if number < 12 * longest[0]), 1)
    for offset, name, suffix in zip((-0.2, 0.2), names, ('', '-tls')):
        for place, peer in enumerate(peers):
            number = median(name, results[name][peer])
            shown = min(number, limit)
            axes.barh(place + offset, shown, 0.36, color=LIGHT[
                ('ours' if peer == 'lowhaio' else 'theirs') + suffix])
            axes.text(shown, place + offset, ' %s%s%s' % (
                format(number, ',.0f'), ' TLS' if suffix else '',
                ' (cut)' if number > limit else ''), va='center', size=8)
    axes.set_yticks(range(len(peers)), [TITLES[peer] for peer in peers])
    axes.set_title(title, loc='left', size=10)
    axes.set_xlabel(unit)
    axes.invert_yaxis()
    axes.margins(x=0.4)
    axes.set_facecolor('none')
    axes.spines[['top', 'right', 'left']].set_visible(False)
    axes.tick_params(axis='y', length=0)


def add_dark_mode(path):
    """Add a style sheet that takes other colours where the reader prefers dark."""
    rules = ' '.join(
        '[style*="%s: %s"] { %s: %s !important; }' % (what, LIGHT[name], what, DARK[name])
        for name in LIGHT for what in ('fill', 'stroke'))
    with open(path) as file:
        head, tag, rest = file.read().partition('<defs>')
    with open(path, 'w') as file:
        file.write('%s<style>@media (prefers-color-scheme: dark) { %s }</style>\n %s%s' % (
            head, rules, tag, rest))
