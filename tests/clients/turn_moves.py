"""A client of RFC 8016 (mobility), written for these tests, for which the server grants one allocation. Standard library only.

    turn_moves.py all SERVER USER PASSWORD RESTSECRET
        prints one JSON object: the result of each move
"""

import base64
import hmac
import json
import socket
import struct
import sys
import time

from turn import LIFETIME, REFRESH, Allocation, Client, Refused, attributes, split

TICKET = 0x8030
MOVES = 32
CHANNEL = 0x4000
TRIES = 5


def ask(client, ticket, lifetime=600):
    """Refresh with a ticket; returns the next ticket, or the error code."""
    try:
        return client.request(REFRESH, [(LIFETIME, struct.pack("!I", lifetime)), (TICKET, ticket)])[0].get(TICKET)
    except Refused as refusal:
        return refusal.code


def echoes(allocation, peer):
    """Whether words pass both ways, by channel and by Send."""
    return all(any(echo(allocation, peer, channel) for _ in range(TRIES)) for channel in (CHANNEL, None))


def echo(allocation, peer, channel):
    word = b"%f" % time.monotonic()
    if channel:
        allocation.send_channel(channel, word)
    else:
        allocation.send(peer.getsockname(), word)
    try:
        received, source = peer.recvfrom(64)
    except TimeoutError:
        return False
    # Data of the peer arrives by the channel as long as there is one.
    peer.sendto(received, source)
    return source == allocation.relayed and allocation.relayed_data(1) == (CHANNEL, word)


def silent(sock):
    sock.setblocking(False)
    try:
        return sock.recv(2048) == b""
    except (BlockingIOError, ConnectionError):
        return True


def other_user(server, secret):
    name = b"%d:other user" % (time.time() + 600)
    return Client(server, name, base64.b64encode(hmac.digest(secret, name, "sha1")))


def main(verb, server, user, password, secret):
    if verb != "all":
        sys.exit(__doc__)
    server, user, password = split(server), user.encode(), password.encode()
    peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    peer.bind(("127.0.0.1", 0))
    peer.settimeout(1)
    allocation = Allocation(server, user, password, wants=[(TICKET, b"")])
    ticket = allocation.request(REFRESH, [(TICKET, attributes(allocation.answer)[TICKET])])[0][TICKET]
    result = {"bind": allocation.bind(CHANNEL, peer.getsockname()), "before": echoes(allocation, peer)}

    moved = 0
    for _ in range(MOVES):
        before, old = ticket, allocation.move()
        ticket = ask(allocation, ticket)
        if not isinstance(ticket, bytes):
            result["refused"] = ticket
            break
        moved += echoes(allocation, peer) and silent(old)
        old.close()
    result["moved"] = moved

    stranger = Client(server, user, password)
    result["old ticket"] = ask(stranger, before)
    result["forged"] = [ask(stranger, forged(ticket, at)) for at in range(0, len(ticket), 9)] + [ask(stranger, b"x")]
    result["another user"] = ask(other_user(server, secret.encode()), ticket)
    result["second allocation"] = code(lambda: Allocation(server, user, password))
    result["still there"] = echoes(allocation, peer)

    result["streams"] = []
    for stream in (True, False, True, True, False):
        old = allocation.move(stream)
        ticket = ask(allocation, ticket)
        old.close()
        time.sleep(0.1)
        result["streams"].append(isinstance(ticket, bytes) and echoes(allocation, peer))
    result["second allocation again"] = code(lambda: Allocation(server, user, password))
    result["end"] = code(lambda: allocation.request(REFRESH, [(LIFETIME, bytes(4))]))
    result["after the end"] = ask(Client(server, user, password), ticket)
    result["a new one"] = code(lambda: Allocation(server, user, password))
    print(json.dumps(result))


def forged(ticket, at):
    return ticket[:at] + bytes([ticket[at] ^ 1]) + ticket[at + 1 :]


def code(act):
    try:
        act()
        return 200
    except Refused as refusal:
        return refusal.code


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    main(*sys.argv[1:])
