"""Packaging of lowhaio: one module, and its type stubs beside it."""

from glob import glob
from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist


class SdistWithTests(sdist):
    """The source distribution carries what it takes to test it."""

    def make_distribution(self):
        self.filelist.extend(['test.py', *glob('examples/*.py')])
        super().make_distribution()


setup(
    name='lowhaio',
    version='0.1.0',
    description='A low-level, streaming HTTP/1.1 client for asyncio',
    long_description=Path('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='the lowhaio authors',
    license='MIT',  # read by setuptools before 77
    license_expression='MIT',
    license_files=['LICENSE'],
    classifiers=[
        'Development Status :: 4 - Beta',
        'Framework :: AsyncIO',
        'Intended Audience :: Developers',
        'Operating System :: MacOS',
        'Operating System :: POSIX',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3 :: Only',
        *('Programming Language :: Python :: 3.%d' % minor for minor in range(8, 15)),
        'Programming Language :: Python :: Implementation :: CPython',
        'Topic :: Internet :: WWW/HTTP',
        'Typing :: Typed',
    ],
    py_modules=['lowhaio'],
    packages=['lowhaio-stubs'],
    package_data={'lowhaio-stubs': ['*.pyi']},
    python_requires='>=3.8',
    install_requires=['aiodnsresolver>=0.0.157'],
    extras_require={
        'bench': [
            'aiohttp', 'httpx', 'matplotlib', 'pyreqwest; python_version >= "3.11"', 'trustme',
            'uvloop; platform_system != "Windows"',
        ],
        'test': [
            'aiohttp',
            'brotli>=1.2',
            'flask',  # For moto's server: its own extra has much more
            'flask-cors',
            'h11',
            'lowhaio-aws-sigv4-unsigned-payload==0.0.4',
            'lowhaio-aws-sigv4==0.0.4',
            'lowhaio-chunked==0.0.5',
            'lowhaio-redirect==0.0.1',
            'lowhaio-retry==0.0.5',
            'mobius3==0.0.36',
            'moto[s3]',
            'trustme',
            'uvloop; platform_system != "Windows"',
        ],
        'dev': [
            'build', 'check-jsonschema', 'coverage', 'mypy', 'pyright[nodejs]', 'ruff', 'twine',
        ],
    },
    cmdclass={'sdist': SdistWithTests},
)
