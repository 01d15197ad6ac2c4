"""aioice on loopback, driven by JSON lines: `ice_aioice.py controlling|controlled`."""

import asyncio
import json
import sys

import aioice
from aioice import ice

ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]
DATA = b"\x80"


def report(news, **fields):
    print(json.dumps({"news": news, **fields}), flush=True)


async def receive(connection):
    while True:
        data = await connection.recv()
        report("data", data=data[1:].decode())


async def connect(connection):
    await connection.connect()
    pair = connection._nominated[1]
    report("connected", connected=True)
    report(
        "pair",
        local="%s:%d" % pair.local_addr,
        remote="%s:%d" % pair.remote_addr,
    )
    await receive(connection)


async def main():
    connection = aioice.Connection(ice_controlling=sys.argv[1] == "controlling", use_ipv6=False)
    await connection.gather_candidates()
    report("credentials", ufrag=connection.local_username, password=connection.local_password)
    for candidate in connection.local_candidates:
        report("candidate", candidate="candidate:" + candidate.to_sdp())
    report("end")
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    tasks = []
    while line := await reader.readline():
        order = json.loads(line)
        if order["order"] == "remote":
            connection.remote_username = order["ufrag"]
            connection.remote_password = order["password"]
        elif order["order"] == "candidate":
            text = order["candidate"].removeprefix("candidate:")
            await connection.add_remote_candidate(aioice.Candidate.from_sdp(text))
            if not tasks:
                tasks.append(asyncio.create_task(connect(connection)))
        elif order["order"] == "end":
            await connection.add_remote_candidate(None)
        elif order["order"] == "send":
            await connection.send(DATA + order["data"].encode())


asyncio.run(main())
