"""A client of both address families and of other features of RFC 8656, written for these tests. Standard library only.

    turn_families.py all V4SERVER V6SERVER USER PASSWORD
        prints one JSON object: the result of each way from one family to the other
"""

import json
import socket
import struct
import sys

from turn import LIFETIME, REFRESH, XOR_RELAYED, Allocation, Refused, read_xor_address, split

REQUESTED_FAMILY, ADDITIONAL_FAMILY = 0x17, 0x8000
V4, V6 = b"\1\0\0\0", b"\2\0\0\0"
TRIES = 5


def relayed(message):
    """Every relayed address that an answer names."""
    found, at = [], 20
    while at + 4 <= len(message):
        kind, length = struct.unpack("!HH", message[at : at + 4])
        if kind == XOR_RELAYED:
            found.append(read_xor_address(message[at + 4 : at + 4 + length], message[8:20]))
        at += 4 + length + -length % 4
    return found


def exchange(allocation, host, number):
    """What CreatePermission gives for a peer on `host`, and whether data passes by Send and by a channel, in both directions."""
    peer = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    peer.bind((host, 0))
    peer.settimeout(1)
    address = peer.getsockname()[:2]
    codes = [allocation.permit(address)]
    for channel in (None, number):
        if channel is not None:
            codes.append(allocation.bind(channel, address))
        codes.append(echoes(allocation, peer, address, channel))
    return codes


def echoes(allocation, peer, address, channel):
    for number in range(TRIES):
        word = b"word %d" % number
        if channel is None:
            allocation.send(address, word)
        else:
            allocation.send_channel(channel, word)
        try:
            received, source = peer.recvfrom(64)
        except TimeoutError:
            continue
        peer.sendto(received.upper(), source)
        if allocation.relayed_data(1) == (channel or address, word.upper()):
            return True
    return False


def main(verb, v4, v6, user, password):
    if verb != "all":
        sys.exit(__doc__)
    v4, v6, user, password = split(v4), split(v6), user.encode(), password.encode()

    def allocate(server, *wants, stream=False):
        return Allocation(server, user, password, stream=stream, wants=wants)

    result = {}
    for name, server, family, host in (
        ("4 by 6", v4, V6, "::1"),
        ("6 by 4", v6, V4, "127.0.0.1"),
        ("6 by 6", v6, V6, "::1"),
    ):
        allocation = allocate(server, (REQUESTED_FAMILY, family))
        result[name] = [":" in allocation.relayed[0], *exchange(allocation, host, 0x4001)]
    both = allocate(v4, (ADDITIONAL_FAMILY, V6))
    families = [":" in host for host, _ in relayed(both.answer)]
    result["both"] = [families, *exchange(both, "127.0.0.1", 0x4001), *exchange(both, "::1", 0x4002)]
    ten_minutes = (LIFETIME, struct.pack("!I", 600))
    result["refresh of each"] = [
        both.outcome(REFRESH, [ten_minutes, (REQUESTED_FAMILY, family)]) for family in (V4, V6)
    ]
    both.request(REFRESH, [(LIFETIME, bytes(4)), (REQUESTED_FAMILY, V6)])
    result["after the end of one"] = [
        both.outcome(REFRESH, [ten_minutes, (REQUESTED_FAMILY, family)]) for family in (V4, V6)
    ]
    for name, stream in (("later", False), ("later by tcp", True)):
        later = allocate(v4, stream=stream)
        families = [":" in host for host, _ in relayed(later.answer)]
        result[name] = [families, *exchange(later, "::1", 0x4001), *exchange(later, "127.0.0.1", 0x4002)]
    try:
        allocate(v4, (REQUESTED_FAMILY, V6), (ADDITIONAL_FAMILY, V6))
        result["both attributes"] = 200
    except Refused as refusal:
        result["both attributes"] = refusal.code
    print(json.dumps(result))


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    main(*sys.argv[1:])
