"""The steps of .ci/run, each of which can be called by itself: see docs/contributing.md.

A step works in a copy of the checkout, so that steps can run side by side, and leaves the
checkout as it was.
"""

import os
import re
import shutil
import subprocess
from glob import glob
from pathlib import Path

import nox
from nox.command import CommandFailed

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ['3.%d' % minor for minor in range(8, 16)]
IN_DEBIAN = ['3.14', '3.15']  # Where no other package of them may be at hand
LOOPS = ['asyncio', 'uvloop']
STRICT = ['python', '-W', 'error', '-X', 'dev']
PYENV = os.path.expanduser(os.environ.get('PYENV_ROOT', '~/.pyenv'))

# Before pyenv's own commands, which only find the versions that it was told to use
os.environ['PATH'] = os.pathsep.join([
    *sorted(glob(PYENV + '/versions/3.*/bin'), reverse=True), os.environ['PATH'], '/usr/sbin'])
os.environ.update(PIP_DISABLE_PIP_VERSION_CHECK='1', PIP_NO_INPUT='1', PIP_QUIET='2')
nox.options.default_venv_backend = 'uv|venv'
nox.options.sessions = ['lint', 'types']


def is_usable(version):
    program = 'import ensurepip, sys, venv; sys.exit("%d.%d" % sys.version_info[:2] != "{}")'
    python = shutil.which('python' + version)
    return bool(python) and subprocess.run(
        [python, '-c', program.format(version)], stderr=subprocess.DEVNULL,
        check=False).returncode == 0


PYTHONS = list(filter(is_usable, VERSIONS))
TOOLS = '3.11' if '3.11' in PYTHONS else PYTHONS[-1]  # The Python of what is run on one alone


def enter_copy(session, *packages):
    """Go to a copy of what is committed or would be, and install what the step needs."""
    folder = Path(session.create_tmp()).resolve() / 'checkout'
    shutil.rmtree(folder, ignore_errors=True)
    ignored = [line.rstrip('/') for line in (ROOT / '.gitignore').read_text().split()]
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns('.git', *ignored))
    session.chdir(folder)
    if packages:
        session.install(*packages)
    return folder


def readme_command(number):
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    return re.findall(r'^```bash\n(.*?)^```$', readme, re.DOTALL | re.MULTILINE)[number - 1]


def run_readme_command(session, number, **environment):
    session.run('bash', '-c', readme_command(number), env=environment, external=True)


def apt_install(command, package):
    """Whether a command is there, or could be installed."""
    if shutil.which(command):
        return True
    as_root = [] if os.geteuid() == 0 else ['sudo', '--non-interactive']
    # Run level 1 keeps a package from starting its server.
    return subprocess.run(
        ['sh', '-c', '"$@" apt-get update && "$@" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 '
         'apt-get install --yes ' + package, 'sh', *as_root], check=False).returncode == 0


@nox.session(python=False)
def nginx(session):
    """Install nginx, without which tests are skipped."""
    if not apt_install('nginx', 'nginx'):
        (session.error if os.environ.get('CI') else session.skip)('nginx can not be installed')


@nox.session(python=PYTHONS, venv_backend='venv')
def tests(session):
    """README's second command, on both event loops or on those that are named."""
    enter_copy(session)
    # pip takes minutes to find and get what uv gets in seconds. What uv can't, pip does.
    if shutil.which('uv'):
        session.run('uv', 'pip', 'install', '--quiet', '--python', session.virtualenv.location,
                    '.[test]', external=True, success_codes=range(256))
    failed = []
    for loop in session.posargs or LOOPS:
        try:
            run_readme_command(session, 2, LOWHAIO_TEST_LOOP=loop)
        except CommandFailed:
            failed.append(loop)
    if failed:
        session.error('Tests failed on %s' % ' and '.join(failed))


@nox.session(python=PYTHONS, venv_backend='venv')
def quickstart(session):
    """README's first command, with pip alone."""
    enter_copy(session)
    run_readme_command(session, 1)


@nox.session(python=False)
def debian(session):
    """Tests on Pythons of Debian's unstable: those that this machine has not, or: -- VERSION..."""
    versions = session.posargs or [
        version for version in IN_DEBIAN if version not in PYTHONS]
    if not versions:
        session.skip('this machine has %s itself' % ' and '.join(IN_DEBIAN))
    if os.geteuid() != 0 or not apt_install('debootstrap', 'debootstrap'):
        (session.error if os.environ.get('CI') else session.skip)(
            '%s were NOT TESTED: it takes root, and debootstrap' % ' and '.join(versions))
    folder = session.create_tmp()
    session.run('unshare', '--mount', '--pid', '--fork', '--kill-child', 'bash',
                str(ROOT / '.ci/debian'), str(Path(folder).resolve()), *versions,
                external=True)


@nox.session(python=TOOLS)
def coverage(session):
    """How much of lowhaio.py the tests run, on asyncio."""
    enter_copy(session, '.[test]', 'coverage')
    command = readme_command(2).split('&& ')[-1].replace(
        '-m unittest', '-m coverage run --rcfile=.ci/coveragerc -m unittest')
    session.run('bash', '-c', command, external=True, env={'LOWHAIO_TEST_LOOP': 'asyncio'})
    session.run('coverage', 'report', '--rcfile=.ci/coveragerc')


@nox.session(python=TOOLS)
def docs(session):
    """What README, docs/ and examples/ say: a part of the tests."""
    enter_copy(session, '.[test]')
    session.run(*STRICT, '-m', 'unittest', '-k', 'TestDocs', '-k', 'TestPages', '-k', 'Example')


@nox.session(python=TOOLS)
def lint(session):
    enter_copy(session, 'ruff')
    session.run('ruff', 'check', '--no-cache', '--config', '.ci/ruff.toml', '.')


@nox.session(python=TOOLS)
def types(session):
    copy = enter_copy(session, '.[test]', 'mypy', 'pyright[nodejs]')
    mypy = ['mypy', '--config-file', str(copy / '.ci/mypy.ini')]
    session.run(*mypy, 'lowhaio.py')

    # Where only the installed module and its stubs are found, as its users have them
    folder = copy.parent / 'user'
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(copy / 'examples', folder)
    shutil.copy(copy / '.ci/typed.py', folder)
    session.chdir(folder)
    session.run('python', str(copy / '.ci/blocks.py'), 'blocks')
    session.run(*mypy, '.')
    session.run('pyright', '.')
    session.run('python', '-m', 'mypy.stubtest', 'lowhaio',
                '--allowlist', str(copy / '.ci/stubtest.allowlist'))
    session.run('python', str(copy / '.ci/drift.py'), 'drift')
    session.run('python', '-c', 'import pathlib, re, lowhaio\n'
                'unused = set(lowhaio.__all__) - set('
                're.findall(r"\\w+", pathlib.Path("typed.py").read_text()))\n'
                'assert not unused, "typed.py has no %s" % unused')
    session.chdir(folder / 'drift')
    session.run(*mypy, 'drift_of_types.py')


@nox.session(python=TOOLS)
def fuzz(session):
    """Generated responses, from a fixed seed and from a random one, or: -- SECONDS [SEED]."""
    search(session, '.ci/fuzz.py')


@nox.session(python=TOOLS)
def chaos(session):
    """A server that misbehaves at random, from a fixed seed and from another: -- as of fuzz."""
    search(session, '.ci/chaos.py')


def search(session, program):
    enter_copy(session, '.[test]', 'hypothesis')
    for loop, seed in zip(LOOPS, (['1'], [])):
        session.run(*STRICT, program, *(session.posargs or ['20', *seed]),
                    env={'LOWHAIO_TEST_LOOP': loop})


@nox.session(python=TOOLS)
def bench(session):
    """A quick run of the benchmarks, to see that they work."""
    enter_copy(session, '.[test]')
    session.run('python', 'benchmarks/run.py', '--quick')


@nox.session(python=TOOLS)
def package(session):
    """Build it, and install what was built where nothing else is."""
    copy = enter_copy(session, 'build', 'twine')
    output = session.run('python', '-m', 'build', '--installer', 'uv', silent=True)
    if 'deprecat' in output.lower():
        session.error(output)
    session.run('twine', 'check', '--strict', *glob('dist/*'))

    python = str(copy.parent / 'fresh/bin/python')
    session.run('python', '-m', 'venv', '--clear', str(copy.parent / 'fresh'))
    session.run(python, '-m', 'pip', 'install', *glob(str(copy / 'dist/*.whl')), external=True)
    session.chdir(copy.parent)
    session.run(python, '-m', 'pip', 'check', external=True, env={'PIP_QUIET': '0'})
    session.run(python, '-c', 'import lowhaio, importlib.metadata as metadata; '
                'print("Built lowhaio", metadata.version("lowhaio"))', external=True)


@nox.session(python=TOOLS)
def circleci(session):
    enter_copy(session, 'check-jsonschema')
    session.run('check-jsonschema', '--builtin-schema', 'vendor.circle-ci',
                '.circleci/config.yml')


@nox.session(python=TOOLS)
def mutation(session):
    """Whether the tests notice each small fault: takes hours, so it is no part of .ci/run."""
    enter_copy(session, '.[test]', 'coverage', 'mutmut')
    session.run('python', '-W', 'error', '.ci/mutation.py', *session.posargs)
