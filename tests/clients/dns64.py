"""A DNS server of an IPv6-only network: it answers for ipv4only.arpa with an address in the NAT64's prefix (RFC 7050).

    dns64.py ADDRESS PREFIX     such as: dns64.py 2001:db8::64 2001:db8:64:ff9b::

Standard library only.
"""

import ipaddress
import socket
import struct
import sys

AAAA = 28


def answer(query, prefix):
    end = query.index(b"\0", 12) + 5
    name = query[12 : end - 4].lower()
    kind = struct.unpack(">H", query[end - 4 : end - 2])[0]
    records = b""
    if name == b"\x08ipv4only\x04arpa\0" and kind == AAAA:
        address = int(prefix) | int(ipaddress.IPv4Address("192.0.0.170"))
        records = struct.pack(">HHHIH", 0xC00C, AAAA, 1, 60, 16) + address.to_bytes(16, "big")
    header = query[:2] + struct.pack(">HHHHH", 0x8180, 1, 1 if records else 0, 0, 0)
    return header + query[12:end] + records


def serve(address, prefix):
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.bind((address, 53))
    print("ready", flush=True)
    while True:
        query, source = sock.recvfrom(1500)
        sock.sendto(answer(query, prefix), source)


if __name__ == "__main__":
    serve(sys.argv[1], ipaddress.IPv6Address(sys.argv[2]))
