"""Finds where lowhaio-stubs and lowhaio.py's own annotations have drifted apart.

    python .ci/drift.py FOLDER

mypy.stubtest sees only what the module has at run time: neither the closures of Pool nor any type.
Names, order, defaults and docstrings are compared here. For the types, two files are written to
the folder, for mypy: a copy of the module in which Pool must return the stub's Request and Close,
and assignments in which each public function must be what the stub says.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STUB = ROOT / 'lowhaio-stubs/__init__.pyi'
MODULE = ROOT / 'lowhaio.py'


def named(nodes):
    return {node.name: node for node in nodes if hasattr(node, 'name')}


def public_pairs(stub, module):
    """Yield the name, the stub's definition and the module's, of all that users can call."""
    ours, theirs = named(module.body), named(stub.body)
    for name, node in theirs.items():
        if name in ours and not name.startswith('_'):
            yield name, node, ours[name]
    closures = named(ours['Pool'].body)
    for protocol, closure in (('Request', 'request'), ('Close', 'close')):
        yield closure, named(theirs[protocol].body)['__call__'], closures[closure]
    for name, node in named(theirs['ResponseBody'].body).items():
        yield name, node, named(ours['_ResponseBody'].body)[name]


def parameters(function):
    """Yield the name and the default of each parameter but self."""
    args = function.args
    positional = args.posonlyargs + args.args
    defaults = [None] * (len(positional) - len(args.defaults)) + args.defaults
    for arg, default in [*zip(positional, defaults), *zip(args.kwonlyargs, args.kw_defaults)]:
        if arg.arg != 'self':
            yield arg.arg, default and ast.unparse(default)


def drift(name, stub, module):
    if ast.get_docstring(stub) != ast.get_docstring(module):
        yield '%s: the docstrings differ' % name
    if isinstance(stub, ast.ClassDef):
        bases = [[ast.unparse(base).partition('[')[0] for base in node.bases]
                 for node in (stub, module)]
        if bases[0] != bases[1]:
            yield '%s: the bases differ: %s, %s' % (name, *bases)
        return
    theirs, ours = list(parameters(stub)), list(parameters(module))
    if [parameter for parameter, _ in theirs] != [parameter for parameter, _ in ours]:
        yield '%s: the parameters differ: %s, %s' % (name, theirs, ours)
    for (parameter, default), (_, real) in zip(theirs, ours):
        # A private default has no name that a stub could give
        if default != real and not (default == '...' and real.lstrip('_').startswith('get_')):
            yield '%s: the default of %s is %s in the stub, and %s' % (
                name, parameter, default, real)


def write_for_mypy(folder, source, names):
    """Write the module with the stub's types as what Pool returns, and a use of its functions."""
    returns = named(ast.parse(source).body)['Pool'].returns
    lines = source.splitlines(keepends=True)
    line = lines[returns.lineno - 1]
    lines[returns.lineno - 1] = (
        line[:returns.col_offset] + 'Tuple[lowhaio.Request, lowhaio.Close]'
        + line[returns.end_col_offset:])
    lines.insert(lines.index('import asyncio\n'), 'import lowhaio\n')
    folder.mkdir(exist_ok=True)
    (folder / 'lowhaio_module.py').write_text(''.join(lines), encoding='utf-8')
    # Of two assignments, mypy infers the type from the first and checks the second
    (folder / 'drift_of_types.py').write_text('import lowhaio\nimport lowhaio_module\n' + ''.join(
        f'{name} = lowhaio.{name}\n{name} = lowhaio_module.{name}\n' for name in names))


def main(folder):
    stub = ast.parse(STUB.read_text(encoding='utf-8'))
    source = MODULE.read_text(encoding='utf-8')
    module = ast.parse(source)
    pairs = list(public_pairs(stub, module))
    found = [line for pair in pairs for line in drift(*pair)]
    functions = [name for name, node, _ in pairs if name in named(module.body)
                 and not isinstance(node, ast.ClassDef)]
    write_for_mypy(Path(folder), source, functions)
    print('%d public names compared' % len(pairs), *found, sep='\n')
    return bool(found)


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
