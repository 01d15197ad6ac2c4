"""Many clients of one server at once. Standard library only.

    turn_crowd.py many SERVER USER PASSWORD COUNT SAMPLE PID
        allocates COUNT times from as many sockets, and exchanges data between SAMPLE of them and a peer each; PID is the server's
    turn_crowd.py same SERVER USER PASSWORD COUNT
        COUNT clients exchange data with one peer
    turn_crowd.py first SERVER USER PASSWORD COUNT
        COUNT clients permit one address and send nothing; a peer for each sends first, is answered, and continues from another port
    turn_crowd.py mutual SERVER USER PASSWORD
        two clients exchange data through their relayed addresses, by Send and by channel
    turn_crowd.py until SERVER RESTSECRET LIFETIME
        an allocation whose credentials are good for LIFETIME seconds: until when data of its peer and of its own arrives

prints one JSON object
"""

import base64
import hmac
import json
import os
import resource
import socket
import sys
import time

from turn import Allocation, split

CHANNEL = 0x4000
TRIES = 5


def peer_socket():
    peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    peer.bind(("127.0.0.1", 0))
    peer.settimeout(1)
    return peer


def sockets_of(pid):
    """How many sockets a process has."""
    links = (os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd"))
    return sum(link.startswith("socket:[") for link in links)


def exchange(client, peer, word):
    """Whether a payload passes in both directions through the client's relayed address; returns the source that the peer has seen."""
    address = peer.getsockname()
    for _ in range(TRIES):
        client.send(address, word)
        try:
            received, source = peer.recvfrom(64)
        except TimeoutError:
            continue
        peer.sendto(received.upper(), source)
        if received == word and client.relayed_data(1) == (address, word.upper()):
            return source
    return None


def many(server, user, password, count, sample, pid):
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    before = sockets_of(pid)
    clients = [Allocation(server, user, password) for _ in range(count)]
    ports = {client.relayed for client in clients}
    sockets = sockets_of(pid) - before
    chosen = clients[:: count // sample][:sample]
    peers = [peer_socket() for _ in chosen]
    permitted = [client.permit(peer.getsockname()) for client, peer in zip(chosen, peers)]
    talked = [exchange(client, peer, b"word %d" % number) for number, (client, peer) in enumerate(zip(chosen, peers))]
    print(
        json.dumps(
            {
                "allocations": len(clients),
                "ports": len(ports),
                "sockets": sockets,
                "permitted": permitted.count(200),
                "talked": sum(source is not None for source in talked),
                "by their own address": sum(s == c.relayed for s, c in zip(talked, chosen)),
            }
        )
    )


def same(server, user, password, count):
    """The peer knows each client by its own relayed address, the second time too."""
    peer = peer_socket()
    clients = [Allocation(server, user, password) for _ in range(count)]
    permitted = [client.permit(peer.getsockname()) for client in clients].count(200)
    own = sum(exchange(client, peer, b"client %d" % number) == client.relayed for number, client in enumerate(clients))
    again = sum(exchange(client, peer, b"again %d" % number) == client.relayed for number, client in enumerate(clients))
    print(json.dumps({"permitted": permitted, "own": own, "again": again}))


def first(server, user, password, count):
    clients = [Allocation(server, user, password) for _ in range(count)]
    permitted = [client.permit(("127.0.0.1", 1)) for client in clients].count(200)
    seen = {"permitted": permitted, "first": 0, "answered": 0, "moved": 0, "strange": 0}
    for number, client in enumerate(clients):
        peer, word = peer_socket(), b"first %d" % number
        expected = (peer.getsockname(), word)
        seen["first"] += arrives(client, expected, lambda: peer.sendto(word, client.relayed))
        client.send(peer.getsockname(), b"answer %d" % number)
        seen["answered"] += peer.recvfrom(64) == (b"answer %d" % number, client.relayed)
        moved, word = peer_socket(), b"moved %d" % number
        seen["moved"] += arrives(client, (moved.getsockname(), word), lambda: moved.sendto(word, client.relayed))
    # A payload that was sent again may arrive again; one of another client never.
    for number, client in enumerate(clients):
        while received := client.relayed_data(0.01):
            seen["strange"] += not received[1].endswith(b" %d" % number)
    print(json.dumps(seen))


def mutual(server, user, password):
    one, two = (Allocation(server, user, password) for _ in range(2))
    result = {"permit": [one.permit(two.relayed), two.permit(one.relayed)], "send": 0, "channel": 0}
    for number in range(100):
        result["send"] += arrives(two, (one.relayed, b"%d" % number), lambda: one.send(two.relayed, b"%d" % number))
        result["send"] += arrives(one, (two.relayed, b"%d" % number), lambda: two.send(one.relayed, b"%d" % number))
    result["bind"] = [one.bind(CHANNEL, two.relayed), two.bind(CHANNEL + 1, one.relayed)]
    for number in range(100):
        word = b"%d" % number
        result["channel"] += arrives(two, (CHANNEL + 1, word), lambda: one.send_channel(CHANNEL, word))
        result["channel"] += arrives(one, (CHANNEL, word), lambda: two.send_channel(CHANNEL + 1, word))
    print(json.dumps(result))


def arrives(client, expected, act):
    for _ in range(TRIES):
        act()
        if client.relayed_data(1) == expected:
            return True
    return False


def until(server, secret, lifetime):
    end = int(time.time()) + lifetime
    name = b"%d:guest" % end
    password = base64.b64encode(hmac.digest(secret, name, "sha1"))
    client, peer = Allocation(server, name, password), peer_socket()
    client.permit(peer.getsockname())
    client.bind(CHANNEL, peer.getsockname())
    peer.settimeout(0.02)
    last = {"peer": 0, "client": 0}
    while time.time() < end + 3:
        client.send_channel(CHANNEL, b"on")
        peer.sendto(b"back", client.relayed)
        try:
            peer.recv(64)
            last["peer"] = time.time() - end
        except TimeoutError:
            pass
        if client.relayed_data(0.02):
            last["client"] = time.time() - end
    print(json.dumps({who: round(when, 2) for who, when in last.items()}))


def main(verb, server, *rest):
    server = split(server)
    if verb == "until":
        return until(server, rest[0].encode(), int(rest[1]))
    user, password, *numbers = rest
    user, password, numbers = user.encode(), password.encode(), [int(number) for number in numbers]
    verbs = {"many": many, "same": same, "first": first, "mutual": mutual}
    if verb not in verbs:
        sys.exit(__doc__)
    verbs[verb](server, user, password, *numbers)


if __name__ == "__main__":
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
