"""A client of RFC 6062 (TCP between server and peers) written for these tests. Standard library only.

    turn_tcp.py all SERVER USER PASSWORD
        prints one JSON object: the result of each try with peers on the server's own IP address
"""

import hashlib
import json
import os
import socket
import struct
import sys
import threading
import time

from turn import ALLOCATE, COOKIE, ERROR, LIFETIME, REFRESH, TCP, TRANSPORT, XOR_PEER
from turn import Allocation, Client, Refused, attributes, read_xor_address, split

CONNECT, CONNECTION_BIND, CONNECTION_ATTEMPT = 0x00A, 0x00B, 0x01C
CONNECTION_ID = 0x2A
MEGABYTE = 1 << 20
SHORT = 10


def listener(host="127.0.0.1"):
    sock = socket.create_server((host, 0))
    sock.settimeout(SHORT)
    return sock


def read_all(sock):
    found = b""
    sock.settimeout(SHORT)
    while read := sock.recv(65536):
        found += read
    return found


def digest(data):
    return hashlib.sha256(data).hexdigest()


def connect(control, peer):
    """Returns the connection's name, or the error code."""
    try:
        return control.request(CONNECT, [(XOR_PEER, peer)])[0][CONNECTION_ID]
    except Refused as refusal:
        return refusal.code


def bind(control, name, user=None, password=None):
    """Returns a connection of the client's own that carries the peer's bytes, or the error code."""
    data = Client(control.server, user or control.user, password or control.password, stream=True)
    if user is None:
        # As coturn's clients do: with the control connection's nonce.
        data.realm, data.nonce, data.key = control.realm, control.nonce, control.key
    code = data.outcome(CONNECTION_BIND, [(CONNECTION_ID, name)])
    return data if code == 200 else code


def attempt(control):
    """The name of a connection that a peer has opened, and the peer; nothing if none comes."""
    message = control.early.pop(0) if control.early else control.receive(time.monotonic() + 1)
    if message is None:
        return None
    assert struct.unpack("!H", message[:2])[0] == CONNECTION_ATTEMPT, message
    found = attributes(message)
    return found[CONNECTION_ID], read_xor_address(found[XOR_PEER], message[8:20])


def carry(control):
    """A megabyte each way at the same time, and a word after the client has ended its half."""
    listening = listener()
    name = connect(control, listening.getsockname())
    peer, source = listening.accept()
    up, down = os.urandom(MEGABYTE), os.urandom(MEGABYTE)
    peer.sendall(b"early")
    data = bind(control, name)
    received = {}

    def answer():
        received["up"] = digest(read_all(peer))
        peer.sendall(b"last word")
        peer.close()

    def push():
        data.socket.sendall(up)
        data.socket.shutdown(socket.SHUT_WR)

    threads = [threading.Thread(target=job) for job in (answer, push, lambda: peer.sendall(down))]
    threads[2].start()
    threads[2].join(0.1)
    threads[1].start()
    got = data.unread
    data.socket.settimeout(SHORT)
    while len(got) < 5 + MEGABYTE:
        got += data.socket.recv(65536)
    threads[0].start()
    rest = read_all(data.socket)
    for thread in threads:
        thread.join(SHORT)
    return {
        "from": source == control.relayed,
        "up": received.get("up") == digest(up),
        "down": got == b"early" + down,
        "half": rest.decode(),
    }


def stranger(control):
    """A peer without permission."""
    peer = socket.create_connection(control.relayed, SHORT)
    try:
        closed = peer.recv(1) == b""
    except ConnectionResetError:
        closed = True
    return {"closed": closed, "reported": attempt(control) is not None}


def incoming(control):
    permitted = control.permit(("127.0.0.1", 0))
    peer = socket.create_connection(control.relayed, SHORT)
    address = peer.getsockname()
    name, named = attempt(control)
    data = bind(control, name)
    peer.sendall(b"hello")
    data.socket.settimeout(SHORT)
    there = data.unread or data.socket.recv(64)
    data.socket.sendall(b"and back")
    back = peer.recv(64)
    peer.close()
    ended = data.socket.recv(1) == b""
    return {
        "permitted": permitted,
        "named": named == address,
        "words": [there.decode(), back.decode()],
        "ended": ended,
    }


def closed_port(control):
    with listener() as sock:
        address = sock.getsockname()
    return connect(control, address)


def twice(control):
    listening = listener()
    name = connect(control, listening.getsockname())
    again = connect(control, listening.getsockname())
    bound = bind(control, name)
    return {"again": again, "bound": isinstance(bound, Client), "twice": bind(control, name)}


def usurpers(control):
    """Whoever may not bind a pending connection leaves it as it is."""
    listening = listener()
    name = connect(control, listening.getsockname())
    peer, _ = listening.accept()
    bare = Client(control.server, control.user, control.password, stream=True)
    transaction = os.urandom(12)
    body = struct.pack("!HH", CONNECTION_ID, 4) + name
    _, found = bare.exchange(struct.pack("!HHI", CONNECTION_BIND, len(body), COOKIE) + transaction + body, transaction)
    codes = {
        "bare": found[ERROR][2] * 100 + found[ERROR][3],
        "wrong password": bind(control, name, control.user, b"wrong"),
        "nobody": bind(control, name, b"nobody", b"wrong"),
        "unknown name": bind(control, os.urandom(4)),
        "by the control connection": control.outcome(CONNECTION_BIND, [(CONNECTION_ID, name)]),
    }
    data = bind(control, name)
    peer.sendall(b"still here")
    data.socket.settimeout(SHORT)
    codes["right"] = (data.unread or data.socket.recv(64)).decode()
    return codes


def own_listeners(control):
    host, port = control.server
    spellings = [(host, port), (host, port + 1), (f"::ffff:{host}", port), ("0.0.0.0", port), ("::", port)]
    return [connect(control, peer) for peer in spellings]


def ends(control):
    """Data connections end with their control connection, pending ones too."""
    listeners = [listener(), listener()]
    names = [connect(control, listening.getsockname()) for listening in listeners]
    peers = [listening.accept()[0] for listening in listeners]
    data = bind(control, names[0])
    control.socket.close()
    return [read_all(sock).decode() for sock in (data.socket, *peers)]


def not_a_stream(server, user, password):
    client = Client(server, user, password)
    return client.outcome(ALLOCATE, [(TRANSPORT, bytes([TCP, 0, 0, 0]))])


def main(verb, server, user, password):
    if verb != "all":
        sys.exit(__doc__)
    server, user, password = split(server), user.encode(), password.encode()

    def control():
        return Allocation(server, user, password, TCP, stream=True)

    first = control()
    result = {
        "stranger": stranger(first),
        "carry": carry(first),
        "incoming": incoming(first),
        "closed port": closed_port(first),
        "twice": twice(first),
        "usurpers": usurpers(first),
        "own listeners": own_listeners(first),
        "refresh": first.outcome(REFRESH, [(LIFETIME, struct.pack("!I", 600))]),
        "ends": ends(first),
        "allocate by udp": not_a_stream(server, user, password),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
