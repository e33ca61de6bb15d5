"""Writes each Python block of README.md and docs/ to a file of its own, for type checkers.

    python .ci/blocks.py FOLDER
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(folder):
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    for page in (ROOT / 'README.md', *(ROOT / 'docs').glob('*.md')):
        text = page.read_text(encoding='utf-8')
        for block in re.finditer(r'^```python\n(.*?)^```$', text, re.DOTALL | re.MULTILINE):
            line = text.count('\n', 0, block.start()) + 1
            name = '%s_%d.py' % (page.stem.lower(), line + 1)
            (folder / name).write_text('\n' * line + block[1], encoding='utf-8')


if __name__ == '__main__':
    main(*sys.argv[1:])
