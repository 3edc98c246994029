"""mappings.py PORT STACKS: gives each connection STACKS stacks, each of two mappings.

A stack of a coroutine is a mapping with a guard page below it. vm.max_map_count (65,530) is met
with little memory in use; what comes then is closed.
"""

import asyncio
import mmap
import sys

from upgrade import answer

PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def make_stacks(count):
    """That many stacks, or none.

    Raises:
        OSError: ENOMEM.
    """
    made = []
    try:
        for _ in range(count):
            made.append(mmap.mmap(-1, 16384, flags=PRIVATE))
            made.append(mmap.mmap(-1, 4096, flags=PRIVATE, prot=mmap.PROT_READ))
    except OSError:
        for each in made:  # the interpreter needs some itself
            each.close()
        raise
    return made


async def serve(reader, writer):
    """One connection."""
    stacks = []
    try:
        stacks = make_stacks(int(sys.argv[2]))
        writer.write(answer(await reader.readuntil(b"\r\n\r\n")))
        while await reader.read(4096):
            pass
    except OSError as error:
        print("no stack:", error, file=sys.stderr, flush=True)
    except asyncio.IncompleteReadError:
        pass
    finally:
        writer.close()
        for each in stacks:
            each.close()


async def main():
    """Serves until it is ended."""
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), backlog=1024)
    await server.serve_forever()


asyncio.run(main())
