"""A TURN client written for these tests (RFC 8656 over UDP, long-term credentials). Standard library only.

    turn.py refuse  SERVER USER PASSWORD WITNESSPORT PEER[:PORT] ...
        tries CreatePermission, ChannelBind and Send to each peer; prints one JSON object a peer
    turn.py others  SERVER USER PASSWORD GOODPEER BADPEER ...
        an echo through GOODPEER between packets to each BADPEER, by Send and by channel; prints one JSON object
    turn.py hold    SERVER USER PASSWORD
        allocates, prints "held", stays
    turn.py witness PORT
        prints each datagram that comes to PORT
    turn.py echo    ADDRESS:PORT
        sends back what comes

An address is HOST:PORT; a host in brackets is IPv6.
"""

import hashlib
import hmac
import ipaddress
import json
import os
import socket
import struct
import sys
import time
import zlib

COOKIE = 0x2112A442
ALLOCATE, REFRESH, SEND, DATA, PERMIT, BIND = 0x003, 0x004, 0x016, 0x017, 0x008, 0x009
CHANNEL_NUMBER, LIFETIME, XOR_PEER, PAYLOAD, XOR_RELAYED, TRANSPORT = 0x0C, 0x0D, 0x12, 0x13, 0x16, 0x19
ICMP = 0x8004
USERNAME, INTEGRITY, ERROR, REALM, NONCE, FINGERPRINT = 0x06, 0x08, 0x09, 0x14, 0x15, 0x8028


def split(address, port=None):
    host, colon, number = address.rpartition(":")
    if not colon or (port is not None and address.endswith("]")):
        host, number = address, port
    return host.strip("[]"), int(number)


def attribute(kind, value):
    return struct.pack("!HH", kind, len(value)) + value + b"\0" * (-len(value) % 4)


def xor_address(address, transaction):
    host, port = address
    ip = ipaddress.ip_address(host)
    mask = struct.pack("!I", COOKIE) + transaction
    packed = bytes(a ^ b for a, b in zip(ip.packed, mask))
    return struct.pack("!BBH", 0, 1 if ip.version == 4 else 2, port ^ (COOKIE >> 16)) + packed


def read_xor_address(value, transaction):
    port = struct.unpack("!H", value[2:4])[0] ^ (COOKIE >> 16)
    mask = struct.pack("!I", COOKIE) + transaction
    return str(ipaddress.ip_address(bytes(a ^ b for a, b in zip(value[4:], mask)))), port


def attributes(message):
    found, at = {}, 20
    while at + 4 <= len(message):
        kind, length = struct.unpack("!HH", message[at : at + 4])
        found.setdefault(kind, message[at + 4 : at + 4 + length])
        at += 4 + length + -length % 4
    return found


class Refused(Exception):
    def __init__(self, code):
        super().__init__(code)
        self.code = code


UDP, TCP = 17, 6


class Client:
    """Whoever asks the server something from one socket, by UDP or with `stream` by TCP."""

    def __init__(self, server, user, password, stream=False):
        self.server, self.user, self.password = server, user, password
        self.key = self.realm = self.nonce = None
        self.early = []
        self.icmp = []
        self.move(stream)

    def move(self, stream=False):
        """Takes a new socket and returns the one before."""
        before = getattr(self, "socket", None)
        family = socket.AF_INET6 if ":" in self.server[0] else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
        self.socket.connect(self.server)
        self.stream, self.unread = stream, b""
        return before

    def request(self, method, values):
        """Asks, with credentials as soon as the server has named its realm; returns the answer's attributes."""
        for _ in range(3):
            transaction = os.urandom(12)
            body = b""
            for kind, value in values:
                body += attribute(kind, xor_address(value, transaction) if kind == XOR_PEER else value)
            if self.realm is not None:
                body += attribute(USERNAME, self.user) + attribute(REALM, self.realm) + attribute(NONCE, self.nonce)
                head = struct.pack("!HHI", method, len(body) + 24, COOKIE) + transaction
                body += attribute(INTEGRITY, hmac.digest(self.key, head + body, "sha1"))
            head = struct.pack("!HHI", method, len(body) + 8, COOKIE) + transaction
            body += attribute(FINGERPRINT, struct.pack("!I", zlib.crc32(head + body) ^ 0x5354554E))
            kind, found = self.exchange(head + body, transaction)
            if kind == method | 0x100:
                return found, transaction
            code = found[ERROR][2] * 100 + found[ERROR][3]
            if code not in (401, 438) or (code == 401 and self.realm is not None):
                raise Refused(code)
            self.realm, self.nonce = found[REALM], found[NONCE]
            self.key = hashlib.md5(b":".join((self.user, self.realm, self.password))).digest()
        raise Refused(code)

    def exchange(self, packet, transaction):
        for wait in (10,) if self.stream else (0.5, 1, 2, 4):
            self.socket.send(packet)
            deadline = time.monotonic() + wait
            while (message := self.receive(deadline)) is not None:
                if message[:1] in b"\0\1" and message[8:20] == transaction:
                    self.answer = message
                    return struct.unpack("!H", message[:2])[0], attributes(message)
                self.early.append(message)
        raise SystemExit("the server does not answer")

    def receive(self, deadline):
        while (message := self.whole()) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self.socket.settimeout(left)
            try:
                read = self.socket.recv(4096)
            except (TimeoutError, ConnectionError):
                return None
            if not self.stream or not read:
                return read or None
            self.unread += read
        return message

    def whole(self):
        """The next frame of a stream, if it is all there."""
        if len(self.unread) < 4:
            return None
        kind, length = struct.unpack("!HH", self.unread[:4])
        length = length + -length % 4 + 4 if kind & 0x4000 else length + 20
        if len(self.unread) < length:
            return None
        message, self.unread = self.unread[:length], self.unread[length:]
        return message

    def outcome(self, method, values):
        try:
            self.request(method, values)
            return 200
        except Refused as refusal:
            return refusal.code


class Allocation(Client):
    def __init__(self, server, user, password, transport=UDP, stream=False, wants=()):
        super().__init__(server, user, password, stream)
        answer, transaction = self.request(ALLOCATE, [(TRANSPORT, bytes([transport, 0, 0, 0])), *wants])
        self.relayed = read_xor_address(answer[XOR_RELAYED], transaction)

    def permit(self, peer):
        return self.outcome(PERMIT, [(XOR_PEER, peer)])

    def bind(self, number, peer):
        return self.outcome(BIND, [(CHANNEL_NUMBER, struct.pack("!HH", number, 0)), (XOR_PEER, peer)])

    def send(self, peer, data):
        transaction = os.urandom(12)
        body = attribute(XOR_PEER, xor_address(peer, transaction)) + attribute(PAYLOAD, data)
        self.socket.sendall(struct.pack("!HHI", SEND | 0x10, len(body), COOKIE) + transaction + body)

    def send_channel(self, number, data):
        self.socket.sendall(struct.pack("!HH", number, len(data)) + data + b"\0" * (-len(data) % 4 * self.stream))

    def relayed_data(self, within):
        """The next (peer or channel, data) that came through the relay."""
        deadline = time.monotonic() + within
        while True:
            message = self.early.pop(0) if self.early else self.receive(deadline)
            if message is None:
                return None
            if message[0] & 0xC0 == 0x40:
                number, length = struct.unpack("!HH", message[:4])
                return number, message[4 : 4 + length]
            if struct.unpack("!H", message[:2])[0] == DATA | 0x10:
                found = attributes(message)
                if ICMP in found:
                    self.icmp.append((read_xor_address(found[XOR_PEER], message[8:20]), found[ICMP]))
                    continue
                return read_xor_address(found[XOR_PEER], message[8:20]), found[PAYLOAD]


def refuse(allocation, port, peers):
    for number, text in enumerate(peers):
        peer = split(text, port)
        permit, bind = allocation.permit(peer), allocation.bind(0x4000 + number, peer)
        for _ in range(3):
            allocation.send(peer, b"forbidden by Send")
            allocation.send_channel(0x4000 + number, b"forbidden by channel")
        echoed = allocation.relayed_data(0.2)
        print(json.dumps({"peer": text, "permit": permit, "bind": bind, "echoed": echoed is not None}), flush=True)


def others(allocation, good, bad):
    good, bad = split(good), [split(text) for text in bad]
    result = {"good": allocation.permit(good), "bad": [allocation.permit(peer) for peer in bad]}
    result["send"] = sum(echo(allocation, good, bad, number) for number in range(100))
    result["good bind"] = allocation.bind(0x4000, good)
    result["bad bind"] = [allocation.bind(0x4001 + i, peer) for i, peer in enumerate(bad)]
    result["channel"] = sum(echo(allocation, 0x4000, range(0x4001, 0x4001 + len(bad)), number) for number in range(100))
    result["icmp"] = sorted({(peer[0], value[2] >> 1, value[3]) for peer, value in allocation.icmp})
    result["refresh"] = allocation.outcome(REFRESH, [(LIFETIME, struct.pack("!I", 600))])
    print(json.dumps(result))


def echo(allocation, good, bad, number):
    """Whether the good peer answered although the bad ones were written to."""
    put = allocation.send_channel if isinstance(good, int) else allocation.send
    for peer in bad:
        put(peer, b"lost %d" % number)
    put(good, b"kept %d" % number)
    for peer in bad:
        put(peer, b"lost %d again" % number)
    return allocation.relayed_data(1) == (good, b"kept %d" % number)


def bound(host, port):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((host, port))
    print("ready", flush=True)
    return sock


def main(verb, *rest):
    if verb == "witness":
        sock = bound("0.0.0.0", int(rest[0]))
        while True:
            data, source = sock.recvfrom(2048)
            print(f"received {data!r} from {source}", flush=True)
    if verb == "echo":
        sock = bound(*split(rest[0]))
        while True:
            data, source = sock.recvfrom(2048)
            sock.sendto(data, source)
    server, user, password, *rest = rest
    allocation = Allocation(split(server), user.encode(), password.encode())
    if verb == "refuse":
        refuse(allocation, int(rest[0]), rest[1:])
    elif verb == "others":
        others(allocation, rest[0], rest[1:])
    elif verb == "hold":
        print("held", flush=True)
        time.sleep(600)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
