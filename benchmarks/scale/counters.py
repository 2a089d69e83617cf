"""What do the pods of nodes on paper serve? The counters of one program that does nothing but compute."""

import asyncio

from amdahl_loop.domain.knob_values import Knobs
from fakes import Truth, compute_bound
from hollow import METRICS_PORT, Program

ADDRESS = "127.77.0.1"
"""Every such pod has it: the operator asks an address, and does not mind who else has the same."""


async def serve() -> asyncio.Server:
    """Answer every request with the counters as they stand."""
    program = Program(Truth(phases_s=compute_bound), Knobs(dataloader_workers=4))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        content = program.render().encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(content)}\r\nConnection: close\r\n"
        writer.write(head.encode() + b"\r\n" + content)
        await writer.drain()
        writer.close()

    return await asyncio.start_server(answer, ADDRESS, METRICS_PORT, backlog=1024)
