"""A TURN client over WebSocket (docs/wire/turn-websocket.md), handshake and framing by hand. Standard library only.

    turn_websocket.py echo URL USER PASSWORD PEER [ROOT]
        allocates, binds a channel to PEER, which sends back what comes, and prints "echoed N" after N payloads
    turn_websocket.py code URL text|two|half|huge
        sends one message that is not one frame; prints the code that the server closes with

URL is ws://HOST:PORT/turn or wss://…; ROOT is a PEM file with the authority of a wss: server.
"""

import base64
import hashlib
import os
import socket
import ssl
import struct
import sys
import urllib.parse

import turn

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class Closed(Exception):
    pass


class WebSocket:
    """What a turn.Allocation needs of a socket: one message a frame."""

    def __init__(self, url, root=None):
        parts = urllib.parse.urlsplit(url)
        self.stream = socket.create_connection((parts.hostname, parts.port), 5)
        if parts.scheme == "wss":
            context = ssl.create_default_context(cafile=root)
            context.set_alpn_protocols(["http/1.1"])
            self.stream = context.wrap_socket(self.stream, server_hostname=parts.hostname)
        self.buffer = b""
        key = base64.b64encode(os.urandom(16))
        self.stream.sendall(
            f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: turn\r\nSec-WebSocket-Key: {key.decode()}\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self.buffer:
            self.more()
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest()).decode()
        assert " 101 " in status + " " and headers["sec-websocket-accept"] == accept, head
        assert headers["sec-websocket-protocol"] == "turn", head

    def more(self):
        data = self.stream.recv(65536)
        if not data:
            raise Closed("without a code")
        self.buffer += data

    def settimeout(self, seconds):
        self.stream.settimeout(seconds)

    def send(self, payload, kind=BINARY):
        length = len(payload)
        head = bytes([0x80 | kind])
        if length < 126:
            head += bytes([0x80 | length])
        elif length < 65536:
            head += struct.pack("!BH", 0x80 | 126, length)
        else:
            head += struct.pack("!BQ", 0x80 | 127, length)
        mask = os.urandom(4)
        stretched = (mask * (length // 4 + 1))[:length]
        masked = (int.from_bytes(payload, "big") ^ int.from_bytes(stretched, "big")).to_bytes(length, "big")
        self.stream.sendall(head + mask + masked)

    sendall = send

    def recv(self, _size=None):
        while True:
            kind, payload = self.message()
            if kind == BINARY:
                return payload
            if kind == PING:
                self.send(payload, PONG)
            elif kind == CLOSE:
                raise Closed(struct.unpack("!H", payload[:2])[0] if payload else "without a code")

    def message(self):
        # Until a message is whole nothing is taken off, so that a time-out in between loses nothing.
        while True:
            if len(self.buffer) >= 2:
                length, start = self.buffer[1], 2
                if length == 126:
                    length, start = int.from_bytes(self.buffer[2:4], "big"), 4
                elif length == 127:
                    length, start = int.from_bytes(self.buffer[2:10], "big"), 10
                if len(self.buffer) >= start + length:
                    kind, payload = self.buffer[0] & 15, self.buffer[start : start + length]
                    self.buffer = self.buffer[start + length :]
                    return kind, payload
            self.more()


class Allocation(turn.Allocation):
    """One whose server is a WebSocket that is there already."""

    def move(self, stream=False):
        self.socket, self.stream, self.unread = self.server, False, b""


def echo(url, user, password, peer, root=None):
    allocation = Allocation(WebSocket(url, root), user.encode(), password.encode())
    assert allocation.bind(0x4001, turn.split(peer)) == 200
    count = 0
    for size in [1, 2, 3, 4, 5, 100, 1000, 1400] * 10:
        payload = os.urandom(size)
        allocation.send_channel(0x4001, payload)
        assert allocation.relayed_data(5) == (0x4001, payload), f"{size} bytes"
        count += 1
    assert allocation.outcome(turn.REFRESH, [(turn.LIFETIME, b"\0\0\0\0")]) == 200
    print(f"echoed {count}", flush=True)


def code(url, what):
    leg = WebSocket(url)
    binding = struct.pack("!HHI", 1, 0, turn.COOKIE) + os.urandom(12)
    message = {"two": binding * 2, "half": binding[:10], "huge": b"\x40\x01\xff\xff" + b"\0" * 70000}.get(what, b"hello")
    try:
        leg.send(message, TEXT if what == "text" else BINARY)
        leg.recv()
    except Closed as closed:
        print(f"closed {closed}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 4 or sys.argv[1] not in ("echo", "code"):
        sys.exit(__doc__)
    {"echo": echo, "code": code}[sys.argv[1]](*sys.argv[2:])
