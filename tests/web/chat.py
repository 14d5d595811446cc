"""A client with Python's websockets: several sessions, one after the other, keeping the cookies between them.

    python3 chat.py ws://HOST:PORT SESSIONS     (or wss://)

Prints what it saw as JSON; ends with a traceback if an answer is wrong.
"""

import asyncio
import json
import sys
from http.cookies import SimpleCookie

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedOK

SIZES = [0, 1, 125, 126, 127, 65_535, 65_536, 1 << 20]


async def session(url, jar):
    cookie = "; ".join(f"{name}={morsel.value}" for name, morsel in jar.items())
    headers = {"Cookie": cookie} if cookie else {}
    async with connect(f"{url}/ws", additional_headers=headers, max_size=1 << 22) as socket:
        backend = socket.response.headers["x-backend"]
        assert await socket.recv() == f"hello {backend}"
        # A person reads before it writes; then the edge may hand the connection over.
        await asyncio.sleep(0.5)
        for size in SIZES:
            await socket.send(bytes(size))
            assert await socket.recv() == bytes(size), size
            await socket.send("ü" * (size // 2))
            assert await socket.recv() == "ü" * (size // 2), size
        # An iterable is sent as the fragments of one message.
        await socket.send(["one, ", "two, ", "three"])
        assert await socket.recv() == "one, two, three"
        # Messages on their way in both directions at once.
        burst = [f"message {n}" for n in range(500)]
        sending = asyncio.create_task(send_all(socket, burst))
        assert [await socket.recv() for _ in burst] == burst
        await sending
        await (await socket.ping("are you there?"))
        for header in socket.response.headers.get_all("set-cookie"):
            jar.load(header)
        await socket.send("close 1000")
        try:
            await socket.recv()
            raise AssertionError("a message after the close")
        except ConnectionClosedOK as closed:
            assert closed.rcvd.reason == "as you wish", closed
        return {"backend": backend, "cookies": sorted(jar)}


async def send_all(socket, messages):
    for message in messages:
        await socket.send(message)


async def main(url, sessions):
    jar = SimpleCookie()
    seen = [await session(url, jar) for _ in range(sessions)]
    print(json.dumps(seen))


asyncio.run(asyncio.wait_for(main(sys.argv[1], int(sys.argv[2])), 60))
