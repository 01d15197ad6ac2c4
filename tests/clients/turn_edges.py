"""Mistakes of other servers, tried by a TURN client written for these tests. Standard library only.

    turn_edges.py ended SERVER USER PASSWORD
        what peers and client receive from each other after Refresh with lifetime 0 was answered
    turn_edges.py framing SERVER USER PASSWORD
        the longest ChannelData and the longest STUN message over TCP, with a Binding right behind each
    turn_edges.py nowhere SERVER USER PASSWORD
        relaying by one allocation before and after packets to port 0 and to peers without a route
    turn_edges.py listeners SERVER USER PASSWORD
        relaying to the server's own listeners

prints one JSON object
"""

import json
import os
import socket
import struct
import sys
import time

from turn import ALLOCATE, COOKIE, LIFETIME, REFRESH, TRANSPORT, XOR_RELAYED
from turn import Allocation, attribute, attributes, read_xor_address, split

BINDING = 0x001
CHANNEL = 0x4000
ROUNDS = 20


def binding():
    transaction = os.urandom(12)
    return struct.pack("!HHI", BINDING, 0, COOKIE) + transaction, transaction


def peer_socket():
    peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    peer.bind(("127.0.0.1", 0))
    peer.settimeout(1)
    return peer


def receive(sock, within=1):
    sock.settimeout(within)
    try:
        return sock.recv(2048)
    except (TimeoutError, ConnectionError):
        return None


def both_ways(allocation, peer, word):
    allocation.send_channel(CHANNEL, word)
    there = receive(peer) == word
    peer.sendto(word, allocation.relayed)
    return there and allocation.relayed_data(1) == (CHANNEL, word)


def ended(allocation):
    peer, counts = peer_socket(), {"before": 0, "leaked": 0, "refused": 0, "again": 0}
    for number in range(ROUNDS):
        allocation.bind(CHANNEL, peer.getsockname())
        counts["before"] += both_ways(allocation, peer, b"%d" % number)
        relayed = allocation.relayed
        allocation.request(REFRESH, [(LIFETIME, bytes(4))])
        allocation.send_channel(CHANNEL, b"after the end")
        allocation.send(peer.getsockname(), b"after the end")
        peer.sendto(b"after the end", relayed)
        refused = [allocation.permit(peer.getsockname()), allocation.bind(CHANNEL, peer.getsockname())]
        counts["refused"] += refused == [437, 437]
        counts["leaked"] += receive(peer, 0.05) is not None
        counts["leaked"] += allocation.relayed_data(0.05) is not None
        counts["again"] += allocation.outcome(ALLOCATE, [(TRANSPORT, b"\x11\0\0\0")]) == 200
        answer = allocation.answer
        allocation.relayed = read_xor_address(attributes(answer)[XOR_RELAYED], answer[8:20])
    return counts


def framing(server, user, password):
    result = {}
    for name, frame in (
        ("channel data without a channel", struct.pack("!HH", CHANNEL, 0xFFFF) + bytes(0x10000)),
        ("channel data", struct.pack("!HH", CHANNEL, 0xFFFF) + bytes(0x10000)),
        ("message", struct.pack("!HHI", BINDING, 0xFFFC, COOKIE) + os.urandom(12) + attribute(0x8022, bytes(0xFFF8))),
    ):
        allocation = Allocation(server, user, password, stream=True)
        if name == "channel data":
            allocation.bind(CHANNEL, peer_socket().getsockname())
        request, transaction = binding()
        allocation.socket.sendall(frame)
        # In pieces too, since a stream may be cut anywhere.
        for number in range(ROUNDS):
            allocation.socket.sendall(frame[:40000])
            time.sleep(0.001)
            allocation.socket.sendall(frame[40000:])
        kind, _ = allocation.exchange(request, transaction)
        result[name] = [hex(kind), allocation.outcome(REFRESH, [(LIFETIME, struct.pack("!I", 600))])]
    return result


def nowhere(allocation):
    peer, counts = peer_socket(), {"channel": 0, "send": 0}
    bad = [("127.0.0.1", 0), ("9.9.9.9", 9), ("9.9.9.9", 0), ("127.0.0.1", 1)]
    counts["permitted"] = [allocation.permit(address) for address in (peer.getsockname(), *bad)]
    counts["bound"] = [allocation.bind(CHANNEL, peer.getsockname())]
    counts["bound"] += [allocation.bind(CHANNEL + 1 + at, address) for at, address in enumerate(bad)]
    for number in range(ROUNDS):
        for at, address in enumerate(bad):
            allocation.send(address, b"nowhere")
            allocation.send_channel(CHANNEL + 1 + at, b"nowhere")
        counts["channel"] += both_ways(allocation, peer, b"%d" % number)
        allocation.send(peer.getsockname(), b"sent")
        counts["send"] += receive(peer) == b"sent"
    counts["refresh"] = allocation.outcome(REFRESH, [(LIFETIME, struct.pack("!I", 600))])
    return counts


def listeners(allocation):
    """The server would answer a Binding that it is relayed."""
    host, port = allocation.server
    result = {"permitted": [], "bound": [], "answered": 0}
    hosts = [host, allocation.relayed[0], f"::ffff:{host}", "0.0.0.0", "::"]
    for at, peer in enumerate((each, number) for each in hosts for number in (port, port + 1)):
        result["permitted"].append(allocation.permit(peer))
        result["bound"].append(allocation.bind(CHANNEL + at, peer))
        for _ in range(3):
            allocation.send(peer, binding()[0])
            allocation.send_channel(CHANNEL + at, binding()[0])
        result["answered"] += allocation.relayed_data(0.1) is not None
    return {name: sorted(set(value)) if isinstance(value, list) else value for name, value in result.items()}


def main(verb, server, user, password):
    server, user, password = split(server), user.encode(), password.encode()
    if verb == "framing":
        result = framing(server, user, password)
    elif verb in ("ended", "nowhere", "listeners"):
        result = {"ended": ended, "nowhere": nowhere, "listeners": listeners}[verb](Allocation(server, user, password))
    else:
        sys.exit(__doc__)
    print(json.dumps(result))


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
