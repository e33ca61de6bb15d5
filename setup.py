"""Packaging of lowhaio: one module, and its type stubs beside it."""

import re
from glob import glob
from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist


class SdistWithTests(sdist):
    """The source distribution carries the docs, the examples, and what it takes to test them."""

    def make_distribution(self):
        self.filelist.extend([
            'test.py', *glob('examples/*.py'), *glob('docs/*.md'), 'benchmarks/README.md',
            *glob('benchmarks/*.svg')])
        super().make_distribution()


def description_for_the_index():
    """README with the names of files for links to them, which would lead nowhere there, and
    without pictures, which would not be found."""
    readme = re.sub(
        r'!\[.*\n\n', '', Path('README.md').read_text(encoding='utf-8'))
    return re.sub(
        r'\[([^]]*)\]\((?!https?:|#)([^)#]*)[^)]*\)',
        lambda link: link[1] if link[2].endswith(link[1]) else '%s (%s)' % (link[1], link[2]),
        readme,
    ).replace('\n## More\n', '\n## More\n\nAll these files are in the source distribution.\n')


setup(
    name='lowhaio',
    version='0.1.0',
    description='A low-level, streaming HTTP/1.1 client for asyncio',
    long_description=description_for_the_index(),
    long_description_content_type='text/markdown',
    author='the lowhaio authors',
    project_urls={
        'Source with docs, examples and tests': 'https://pypi.org/project/lowhaio/#files',
        'Release history': 'https://pypi.org/project/lowhaio/#history',
    },
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
        *('Programming Language :: Python :: 3.%d' % minor for minor in range(8, 16)),
        'Programming Language :: Python :: Implementation :: CPython',
        'Topic :: Internet :: WWW/HTTP',
        'Typing :: Typed',
    ],
    py_modules=['lowhaio'],
    packages=['lowhaio-stubs'],
    package_data={'lowhaio-stubs': ['*.pyi']},
    python_requires='>=3.8',
    install_requires=['aiodnsresolver>=0.0.157'],
    extras_require={  # CI: .ci/noxfile.py. Benchmarks: their requirements.txt.
        'test': [
            'aiohttp',
            'brotli>=1.2',
            'flask',  # For moto's server: its own extra has much more
            'flask-cors',
            'h11',
            'httpx',
            'lowhaio-aws-sigv4-unsigned-payload==0.0.4',
            'lowhaio-aws-sigv4==0.0.4',
            'lowhaio-chunked==0.0.5',
            'lowhaio-redirect==0.0.1',
            'lowhaio-retry==0.0.5',
            'mobius3==0.0.36',
            'moto[s3]',
            'openai',
            'trustme',
            'uvloop; platform_system != "Windows"',
        ],
    },
    cmdclass={'sdist': SdistWithTests},
)
