"""Pictures without a library: bars and lines, as SVG that is light or dark as the page is."""

import math

from scenarios import TITLES

HEAD = """<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" \
viewBox="0 0 {width} {height}" role="img" font-family="sans-serif" font-size="12">
<title>{title}</title>
<style>
.paper {{ fill: #fff }} text {{ fill: #24292f }} .grid {{ stroke: #d0d7de }}
.p0 {{ color: #0969da }} .p1 {{ color: #6e7781 }} .p2 {{ color: #bf5700 }}
rect, circle {{ fill: currentColor }} polyline {{ fill: none; stroke: currentColor }}
@media (prefers-color-scheme: dark) {{
.paper {{ fill: #0d1117 }} text {{ fill: #e6edf3 }} .grid {{ stroke: #30363d }}
.p0 {{ color: #58a6ff }} .p1 {{ color: #8b949e }} .p2 {{ color: #ffa657 }}
}}
</style>
<rect class="paper" width="{width}" height="{height}"/>
"""


def head(title, width, height):
    return HEAD.format(title=title, width=width, height=height) + text(16, 24, title, bold=True)


def text(x, y, words, anchor='start', bold=False):
    return '<text x="%.1f" y="%.1f" text-anchor="%s"%s>%s</text>\n' % (
        x, y, anchor, ' font-weight="bold"' if bold else '', words)


def write(path, svg):
    if svg:
        with open(path, 'w', encoding='utf-8') as file:
            file.write(svg + '</svg>\n')


# ---- Bars: CPU time -----------------------------------------------------------------------------

PANELS = (('get-64', 'µs a small GET, 64 in flight'), ('tls', 'µs a small GET, TLS'),
          ('new', 'µs a request on a new connection'), ('download', 'µs a MiB down'),
          ('upload', 'µs a MiB up'))


def bars(rows):
    """Draw {scenario: {peer: cost}}; what is more than four times ours is cut, and says so."""
    panels = [(name, title) for name, title in PANELS if 'lowhaio' in rows.get(name, ())]
    parts, y = [], 52
    for name, title in panels:
        row, ours = rows[name], rows[name]['lowhaio']
        peers = [peer for peer in ('lowhaio', 'published', 'aiohttp', 'httpx', 'pyreqwest')
                 if peer in row]
        parts.append(text(16, y, title, bold=True))
        for peer in peers:
            y += 20
            width = 90 * min(row[peer] / ours, 4.4)
            parts.append(text(150, y, TITLES[peer], 'end'))
            parts.append('<rect class="p%d" x="158" y="%d" width="%.1f" height="13"/>\n' % (
                peer != 'lowhaio', y - 11, width))
            parts.append(text(164 + width, y, '%s%s' % (
                format(row[peer], ',.0f'), ' (cut)' if row[peer] > 4.4 * ours else '')))
        y += 36
    return head('CPU time: less is better', 660, y - 10) + ''.join(parts) if panels else ''


# ---- Lines: growth ------------------------------------------------------------------------------

LINES = {
    'connections': ('Instructions a GET, by pooled connections of one host', 'connections'),
    'hosts': ('Instructions a GET, by hosts with a pooled connection each', 'hosts'),
    'fields': ('Instructions a GET, by header fields of the response', 'fields'),
    'download': ('Instructions a MiB down, by size of its chunks', 'bytes'),
    'upload': ('Instructions a MiB up, by size of the pieces that the program gives', 'bytes'),
}
LEFT, TOP, WIDTH, HEIGHT = 70, 50, 400, 190


def short(number):
    for size, word in ((1 << 20, ' Mi'), (1 << 10, ' Ki')):
        if number >= size and number % size == 0:
            return '%d%s' % (number // size, word)
    return format(number, ',')


def large(number):
    return '0' if not number else '%g M' % (number / 1e6) if number >= 1e6 else \
        '%g k' % (number / 1e3)


def lines(name, peers):
    """Draw {peer: [(x, y)]}; both axes are logarithmic, but for that of few fields."""
    points = [point for line in peers.values() for point in line]
    if not points:
        return ''
    xs = sorted({x for x, _ in points})
    is_linear = name in ('fields', 'connections', 'hosts')
    top = max(y for _, y in points)
    step = 10 ** math.floor(math.log10(top)) / 2
    top = (top // step + 1) * step
    low = 0 if is_linear else min(y for _, y in points)

    def place(x, y):
        across = (x - xs[0]) / (xs[-1] - xs[0]) if name == 'fields' else \
            math.log(x / xs[0]) / math.log(xs[-1] / xs[0])
        up = y / top if is_linear else \
            math.log(y / floor) / math.log(ceiling / floor)
        return LEFT + across * WIDTH, TOP + (1 - up) * HEIGHT

    if is_linear:
        ticks = [n * step for n in range(int(top / step) + 1)]
        ticks = ticks[::max(1, len(ticks) // 5)]
    else:
        floor, ceiling = (10 ** edge(math.log10(each)) for edge, each in (
            (math.floor, low), (math.ceil, max(y for _, y in points))))
        ticks = [10 ** n for n in range(
            round(math.log10(floor)), round(math.log10(ceiling)) + 1)]

    title, word = LINES[name]
    parts = [head(title, 620, 300)]
    for tick in ticks:
        _, y = place(xs[0], tick)
        parts.append('<path class="grid" d="M%d %.1fh%d"/>\n' % (LEFT, y, WIDTH))
        parts.append(text(LEFT - 6, y + 4, large(tick), 'end'))
    for x in xs:
        parts.append(text(place(x, ticks[-1])[0], TOP + HEIGHT + 18, short(x), 'middle'))
    parts.append(text(LEFT + WIDTH / 2, TOP + HEIGHT + 38, word, 'middle'))
    for number, (peer, line) in enumerate(peers.items()):
        if line:
            places = ' '.join('%.1f,%.1f' % place(*point) for point in line)
            parts.append('<polyline class="p%d" points="%s"/>\n' % (number % 3, places))
            for point in line:
                parts.append('<circle class="p%d" cx="%.1f" cy="%.1f" r="3"/>\n' % (
                    number % 3, *place(*point)))
            parts.append(text(LEFT + WIDTH + 10, place(*line[-1])[1] + 4, TITLES[peer]))
    return ''.join(parts)
