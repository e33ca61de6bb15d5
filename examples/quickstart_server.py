"""The server of quickstart.py: it keeps one file, which a PUT replaces and a GET returns."""

from __future__ import annotations

import asyncio
import contextlib
import re
import tempfile
from typing import AsyncIterator, BinaryIO, Set

CHUNK_BYTES = 65536


@contextlib.asynccontextmanager
async def running_server() -> AsyncIterator[str]:
    """Serve on a free port as long as the block runs. The value is the URL of the file."""
    connections: Set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            connections.add(task)
        with contextlib.suppress(EOFError, ConnectionError), contextlib.closing(writer):
            while True:
                await answer(reader, writer, file)

    with tempfile.TemporaryFile() as file:
        server = await asyncio.start_server(connected, '127.0.0.1', 0)
        try:
            yield f'http://127.0.0.1:{server.sockets[0].getsockname()[1]}/file'
        finally:
            server.close()
            await asyncio.gather(*connections)  # Each ends with its connection


async def answer(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, file: BinaryIO) -> None:
    head = await reader.readuntil(b'\r\n\r\n')
    if head.startswith(b'PUT '):
        length = re.search(rb'(?i)\r\ncontent-length: *([0-9]+)', head)
        file.seek(0)
        file.truncate()
        for left in range(int(length[1]) if length else 0, 0, -CHUNK_BYTES):
            file.write(await reader.readexactly(min(left, CHUNK_BYTES)))
        file.flush()
        writer.write(b'HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n')
    else:
        size = file.seek(0, 2)
        writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n' % size)
        file.seek(0)
        while chunk := file.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
