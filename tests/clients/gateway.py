#!/usr/bin/env python3
"""An endpoint of the gateway's wire (S2), standard library only, written from its description only.

    gateway.py [OPTIONS] echo HOST:PORT            waits to be dialled and returns what arrives
    gateway.py [OPTIONS] call HOST:PORT REMOTE     dials REMOTE and sends messages, each of which must return once and in order
    gateway.py [OPTIONS] pause HOST:PORT           sends a Ping, and never reads
    gateway.py [OPTIONS] raw HOST:PORT HEX...      sends these bytes unchanged, and reports what arrives until the end

A client, or with --id and --key a server: by the MD5 handshake, with --hmac by the other one, and then with credit. --tls ROOT does it all
inside TLS, --certificate and --private-key show a certificate of its own there, --web PATH makes each piece a message of a WebSocket.
Events go to stdout, one JSON object a line: ready, accepted, closed, refused, report, ended. Exit code 0, or 1 with a reason on stderr.
"""
import argparse
import base64
import collections
import hashlib
import hmac
import json
import os
import select
import socket
import ssl
import struct
import sys
import time

NEW, OPEN, DIAL, REFUSE, ACCEPT, CLOSE, PING, CREDIT, TOKEN = range(9)
WINDOW = 64 * 1024                                      # bytes that the other side may send at first, where there is credit
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"          # RFC 6455 section 1.3
RETRY = 0.1                                             # seconds after which a refused dial is tried again


class Ended(Exception):
    """The gateway has closed the connection."""


def event(name, **fields):
    print(json.dumps({"event": name, **fields}), flush=True)


def frame(conn, message):
    return struct.pack("<II", 4 + len(message), conn) + message


def command(kind, *arguments):
    return frame(0, struct.pack("<B%dI" % len(arguments), kind, *arguments))


class Stream:
    """TCP, or TLS in it. It never blocks, so that both directions flow whatever the gateway does."""

    def __init__(self, sock):
        self.sock, self.inp, self.out, self.over = sock, bytearray(), bytearray(), False
        sock.setblocking(False)

    def write(self, piece):
        self.out += piece
        self.flush()

    def flush(self):
        try:
            while self.out:
                del self.out[: self.sock.send(self.out[: 1 << 16])]
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except OSError:
            self.over = True

    def pump(self, wait):
        """Moves what can be moved within `wait` seconds."""
        pending = isinstance(self.sock, ssl.SSLSocket) and self.sock.pending()
        select.select([self.sock], [self.sock] if self.out else [], [], 0 if pending else wait)
        self.flush()
        try:
            data = self.sock.recv(1 << 16)
            self.inp += data
            self.over |= not data
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError:
            self.over = True

    def piece(self, size):
        """So many bytes, once they are there."""
        if len(self.inp) < size:
            return None
        taken = bytes(self.inp[:size])
        del self.inp[:size]
        return taken

    def whole_frame(self):
        if len(self.inp) < 4:
            return None
        return self.piece(4 + struct.unpack_from("<I", self.inp)[0])


class Web(Stream):
    """RFC 6455: one binary message is one piece."""

    def __init__(self, sock, path, host):
        super().__init__(sock)
        key = base64.b64encode(os.urandom(16))
        super().write(
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key.decode()}\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self.inp:
            if self.over:
                raise Ended("before the upgrade: %r" % bytes(self.inp))
            self.pump(1)
        head, _, rest = bytes(self.inp).partition(b"\r\n\r\n")
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        if b" 101 " not in head.split(b"\r\n")[0] + b" " or accept not in head:
            raise Ended("no upgrade: %r" % head)
        self.inp = bytearray(rest)

    def write(self, piece, kind=2):
        length, mask = len(piece), os.urandom(4)
        if length < 126:
            head = struct.pack("!BB", 0x80 | kind, 0x80 | length)
        elif length < 65536:
            head = struct.pack("!BBH", 0x80 | kind, 0x80 | 126, length)
        else:
            head = struct.pack("!BBQ", 0x80 | kind, 0x80 | 127, length)
        stretched = (mask * (length // 4 + 1))[:length]
        masked = (int.from_bytes(piece, "big") ^ int.from_bytes(stretched, "big")).to_bytes(length, "big")
        super().write(head + mask + masked)

    def message(self):
        while len(self.inp) >= 2:
            first, length, start = self.inp[0], self.inp[1], 2
            if length >= 126:
                start = 4 if length == 126 else 10
                length = int.from_bytes(self.inp[2:start], "big")
            if len(self.inp) < start + length:
                return None
            payload = bytes(self.inp[start : start + length])
            del self.inp[: start + length]
            if first == 0x82:
                return payload
            if first == 0x89:
                self.write(payload, 10)
            elif first == 0x88:
                self.over = True
            elif first != 0x8A:
                sys.exit("neither a whole binary message nor a ping: %#x" % first)
        return None

    def piece(self, size):
        message = self.message()
        if message is not None and len(message) != size:
            sys.exit("a message of %d bytes where %d were due" % (len(message), size))
        return message

    def whole_frame(self):
        message = self.message()
        if message is not None and (len(message) < 8 or struct.unpack_from("<I", message)[0] != len(message) - 4):
            sys.exit("a message that is not one frame: %r" % message[:32])
        return message


class Endpoint:
    """What clients and servers have in common."""

    def __init__(self, line, deadline, answers_pings=True):
        self.line, self.deadline, self.answers_pings, self.pings = line, deadline, answers_pings, 0

    def await_(self, what, look):
        """The first thing other than None that `look` sees."""
        while True:
            found = look()
            if found is not None:
                return found
            if self.line.over:
                raise Ended("the connection has ended while waiting for " + what)
            if time.monotonic() > self.deadline:
                sys.exit("no %s in time" % what)
            self.line.pump(0.2)

    def command(self, kind, *arguments):
        self.line.write(command(kind, *arguments))

    def send(self, conn, message):
        self.line.write(frame(conn, message))

    def accepted(self, conn):
        """For those who have more to do."""

    def next(self):
        """The next event as (kind, connection, what); data has no kind. Pings are answered at once (S2-12)."""
        while True:
            whole = self.await_("frame", self.line.whole_frame)
            conn, message = struct.unpack_from("<I", whole, 4)[0], whole[8:]
            if conn:
                return self.on_data(conn, message)
            kind, arguments = message[0], struct.unpack("<%dI" % (len(message) // 4), message[1:])
            if kind == PING:
                self.pings += 1
                if self.answers_pings:
                    self.command(PING)
            elif kind == ACCEPT:
                self.accepted(arguments[0])
                return kind, arguments[0], arguments[1]
            elif kind in (OPEN, REFUSE, CLOSE):
                return kind, arguments[0], None
            elif not self.granted(kind, arguments):
                sys.exit("unexpected command %d %r" % (kind, arguments))

    def on_data(self, conn, message):
        return None, conn, message

    def granted(self, kind, arguments):
        return False


class Server(Endpoint):
    """S2-15 to S2-18: MD5 over the challenge as it was sent and the raw key."""

    def shake(self, key, number):
        challenge = self.await_("challenge", lambda: self.line.piece(8))
        self.line.write(hashlib.md5(challenge + key).digest() + struct.pack("<I", number))


class HmacServer(Endpoint):
    """Authentication with HMAC-SHA256: both sides prove their key, and both keep to the credit."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.mine, self.theirs, self.taken = {}, {}, {}
        self.waiting = collections.defaultdict(collections.deque)

    def shake(self, key, number):
        challenge = self.await_("challenge", lambda: self.line.piece(32))
        nonce, named = os.urandom(32), struct.pack("<I", number)
        code = hmac.digest(key, b"ginnel gateway, server v1" + challenge + nonce + named, "sha256")
        self.line.write(nonce + named + code)
        proof = self.await_("proof", lambda: self.line.piece(32))
        if not hmac.compare_digest(proof, hmac.digest(key, b"ginnel gateway, gateway v1" + nonce + challenge + named, "sha256")):
            sys.exit("this is not the gateway that has our key")

    def accepted(self, conn):
        self.mine.setdefault(conn, 0)
        self.theirs[conn], self.taken[conn] = WINDOW, 0
        self.command(CREDIT, conn, WINDOW)

    def send(self, conn, message):
        self.waiting[conn].append(message)
        while self.waiting[conn] and self.mine.get(conn, 0) > 0:
            message = self.waiting[conn].popleft()
            self.mine[conn] -= 8 + len(message)
            super().send(conn, message)

    def granted(self, kind, arguments):
        if kind != CREDIT:
            return False
        conn, count = arguments
        self.mine[conn] = self.mine.get(conn, 0) + count
        if self.waiting[conn]:
            self.send(conn, self.waiting[conn].pop())
        return True

    def on_data(self, conn, message):
        if self.theirs.get(conn, 0) <= 0:
            sys.exit("the gateway sends without credit")
        self.theirs[conn] -= 8 + len(message)
        self.taken[conn] += 8 + len(message)
        if self.taken[conn] >= WINDOW // 2:
            self.command(CREDIT, conn, self.taken[conn])
            self.theirs[conn] += self.taken[conn]
            self.taken[conn] = 0
        return None, conn, message


def connect(args):
    host, port = args.gateway.rsplit(":", 1)
    host = host.strip("[]")
    sock = socket.create_connection((host, int(port)), 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if args.tls:
        context = ssl.create_default_context(cafile=args.tls)
        if args.certificate:
            context.load_cert_chain(args.certificate, args.private_key)
        if args.web:
            context.set_alpn_protocols(["http/1.1"])
        sock = context.wrap_socket(sock, server_hostname=host)
    line = Web(sock, args.web, args.gateway) if args.web else Stream(sock)
    kind = Endpoint if args.id is None else HmacServer if args.hmac else Server
    endpoint = kind(line, time.monotonic() + args.timeout, not args.mute)
    if args.id is not None:
        endpoint.shake(args.key.encode(), args.id)
    if args.token:
        code = args.token.removeprefix("gt_")
        line.write(frame(0, bytes([TOKEN]) + base64.urlsafe_b64decode(code + "=" * (-len(code) % 4))))
    if args.greet:
        endpoint.command(PING)
    return endpoint


def echo(endpoint, args):
    counts = {}
    event("ready")
    while True:
        kind, conn, what = endpoint.next()
        if kind == ACCEPT:
            counts[conn] = 0
            event("accepted", conn=conn, remote=what)
        elif kind == CLOSE:
            counts.pop(conn, None)
            event("closed", conn=conn, left=len(counts))
        elif kind is None and conn in counts:
            endpoint.send(conn, what)
            counts[conn] += 1
            if counts[conn] == args.close_after:
                endpoint.command(CLOSE, conn)
        elif kind is not None:
            sys.exit("command %d where none was due" % kind)


def dial(endpoint, remote):
    """A virtual connection. Who is not there yet is tried again."""
    while True:
        endpoint.command(NEW)
        kind, conn, _ = endpoint.next()
        assert kind == OPEN and conn, (kind, conn)
        endpoint.command(DIAL, conn, remote)
        kind, same, who = endpoint.next()
        assert same == conn, (kind, conn, same)
        if kind == ACCEPT:
            assert who == remote, who
            event("accepted", conn=conn, remote=who)
            return conn
        assert kind == REFUSE, kind
        event("refused", conn=conn)
        time.sleep(RETRY)


def message(conn, number, size):
    """The first one is empty, which is a message too."""
    return (struct.pack("<II", conn, number) + os.urandom(size))[:size] if number else b""


def call(endpoint, args):
    conns = [dial(endpoint, args.remote) for _ in range(args.connections)]
    sent = {conn: [message(conn, number, args.size) for number in range(args.messages)] for conn in conns}
    returned, open_ = dict.fromkeys(conns, 0), set(conns)
    for number in range(args.messages):
        for conn in conns:
            endpoint.send(conn, sent[conn][number])
    while open_:
        kind, conn, what = endpoint.next()
        if kind is None:
            assert what == sent[conn][returned[conn]], "message %d of %d is another one" % (returned[conn], conn)
            returned[conn] += 1
            if returned[conn] == args.messages and not args.wait_for_close:
                endpoint.command(CLOSE, conn)
        else:
            assert kind == CLOSE and returned[conn] == args.messages, (kind, conn, returned)
            open_.remove(conn)
            event("closed", conn=conn, left=len(open_))
    event("report", ids=conns, messages=sum(returned.values()), pings=endpoint.pings)


def pause(endpoint, args):
    endpoint.command(PING)
    event("ready")
    while True:
        time.sleep(1)


def raw(endpoint, args):
    for part in args.bytes:
        endpoint.line.write(bytes.fromhex(part))
    while not endpoint.line.over and time.monotonic() < endpoint.deadline:
        endpoint.line.pump(0.2)
    event("report", received=bytes(endpoint.line.inp).hex(), ended=endpoint.line.over)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--id", type=int, help="be this server")
    parser.add_argument("--key", help="the servers' key; its bytes are those of this text")
    parser.add_argument("--hmac", action="store_true")
    parser.add_argument("--token", help="a gateway token, gt_…")
    parser.add_argument("--tls", metavar="ROOT.pem")
    parser.add_argument("--certificate", metavar="PEM")
    parser.add_argument("--private-key", metavar="PEM")
    parser.add_argument("--web", metavar="PATH")
    parser.add_argument("--greet", action="store_true", help="begin with a Ping, so that the gateway detects the protocol at once")
    parser.add_argument("--mute", action="store_true", help="never answer a Ping")
    parser.add_argument("--timeout", type=float, default=60, metavar="SECONDS")
    actions = parser.add_subparsers(dest="action", required=True)
    for name, act in (("echo", echo), ("call", call), ("pause", pause), ("raw", raw)):
        action = actions.add_parser(name)
        action.add_argument("gateway", metavar="HOST:PORT")
        action.set_defaults(act=act)
        if name == "echo":
            action.add_argument("--close-after", type=int, metavar="MESSAGES")
        elif name == "call":
            action.add_argument("remote", type=int)
            action.add_argument("--connections", type=int, default=1)
            action.add_argument("--messages", type=int, default=10)
            action.add_argument("--size", type=int, default=100, help="bytes of a message")
            action.add_argument("--wait-for-close", action="store_true", help="let the other end close")
        elif name == "raw":
            action.add_argument("bytes", nargs="*", metavar="HEX")
    args = parser.parse_args()
    try:
        args.act(connect(args), args)
    except Ended as ended:
        event("ended", reason=str(ended))
        sys.exit(0 if args.action == "echo" else 1)


if __name__ == "__main__":
    main()
