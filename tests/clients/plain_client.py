#!/usr/bin/env python3
"""A plain client of signalling (S0): JSON over UDP, standard library only, no field of ginnel's own.

    plain_client.py --server IP:PORT listen         registers and waits to be called
    plain_client.py --server IP:PORT call TAG       calls TAG, or the first one of the list: call first

Two UDP sockets as in S0-28 to S0-30: `main` registers, heartbeats, lists and is notified; `hole` calls, answers the
notification and punches. Once punched, both sides send 100 numbered datagrams through the hole until all are
acknowledged. Where no hole opens within `--give-up` seconds, each reports that when the server asks (step 10), and ends.
With `--tcp` both announce a TCP port and inner addresses (S0-A11, S0-A18), and open a stream after the punch (S0-23): from that port
to the other's, while listening there, so that SYNs that cross meet. 64 KiB go each way through it. With `--inner` both register with the
inner address of `hole` (S1-4), send to all addresses of the other that the server sends, and keep to the one that answers first (S1-5, S1-7). With
`--silence` seconds only the caller's 102 passes the hole for that long (S0-22), and after it the caller sends first. Events go to stdout, one JSON object a line; exit code 0, or 1 with a reason after the time limit.
"""
import argparse
import errno
import json
import select
import socket
import sys
import time

COUNT = 100          # datagrams to exchange
STREAM = 64 * 1024   # bytes of the stream, each way
LINGER = 3.0         # seconds to go on acknowledging after the own part is done
RESEND = 0.5         # seconds between repetitions of whatever is unanswered
HEARTBEAT = 15.0     # S0-A17
KEEP = 2.0           # seconds between two 102 that keep the hole open


class Client:
    def __init__(self, server, timeout, patience, tcp, inner, silence):
        family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
        self.server, self.deadline, self.mid = server, time.monotonic() + timeout, 0
        self.main, self.hole = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(2))
        self.tag = self.token = self.callee = None
        self.targets = set()      # where to send 101 or 102: the address that the server sent, and S0-A19's
        self.opened = 0           # copies of 101 sent; five at most
        self.patience, self.tries_until = patience, None
        self.port = None          # our TCP port
        self.streams = []         # where the peer's may be reached, the likeliest first
        self.extras = {}          # extension fields for the peer
        self.inner = inner        # whether the server sends our inner address to the peer, and we try the peer's
        self.laddrs = []
        self.silence = silence    # how long only 102 keeps the hole open before anything else passes
        if tcp or inner:
            self.hole.connect(server)
            own = self.hole.getsockname()
            self.hole.close()
            self.hole = socket.socket(family, socket.SOCK_DGRAM)
            self.hole.bind(("", own[1]))
            self.laddrs = ["%s:%d" % own[:2]]
        if tcp:
            self.port = own[1]
            self.extras = {"tport": self.port, "laddrs": self.laddrs}
        self.peer = None          # the address the hole leads to, once a round trip has shown it
        self.acked, self.received = set(), set()

    def event(self, name, **fields):
        print(json.dumps({"event": name, **fields}), flush=True)

    def send(self, sock, message, to=None):
        try:
            sock.sendto(json.dumps(message).encode(), to or self.server)
        except OSError:
            pass  # unreachable for now; whatever matters is repeated

    def receive(self, wait):
        """Yields (socket, source, message) for what arrives within `wait` seconds."""
        if time.monotonic() > self.deadline:
            stage = "exchanging" if self.peer else "punching" if self.targets else "signalling"
            self.event("failed", reason="time limit while " + stage)
            sys.exit(1)
        for sock in select.select([self.main, self.hole], [], [], wait)[0]:
            try:
                data, source = sock.recvfrom(2048)
                message = json.loads(data)
            except (OSError, ValueError):
                continue
            if isinstance(message, dict) and isinstance(message.get("t"), int):
                yield sock, source[:2], message

    def ask(self, sock, t, **fields):
        """Sends a request to the server until its answer comes, and returns it; a failure keeps t positive (S0-A1)."""
        self.mid += 1
        mid, due = self.mid, 0
        while True:
            if time.monotonic() >= due:
                self.send(sock, {"t": t, "mid": mid, **fields})
                due = time.monotonic() + RESEND
            for on, source, message in self.receive(0.1):
                if message.get("mid") == mid and abs(message["t"]) == t and source == self.server:
                    if message.get("code", 200) != 200:
                        self.event("refused", t=t, code=message["code"], em=message.get("em"))
                        sys.exit(1)
                    return message.get("extra") or {}
                self.handle(on, source, message)

    def register(self):
        registered_as = self.ask(self.main, 1, params={"laddrs": self.laddrs}) if self.inner else self.ask(self.main, 1)
        self.tag = registered_as["tag"]
        self.ask(self.main, 2, tag=self.tag)
        self.event("registered", **{name: registered_as[name] for name in ("tag", "addr", "nat") if name in registered_as})

    def call(self, callee):
        while callee == "first":
            tags = self.ask(self.main, 3, params={"tag": self.tag})["tags"]
            self.event("listed", tags=tags)
            callee = tags[0] if tags else "first"
            time.sleep(0 if tags else RESEND)
        self.callee = callee
        self.token = self.ask(self.hole, 4, params={"tag": self.tag, "rtag": callee, **self.extras})["token"]
        self.event("calling", tag=callee)

    def handle(self, sock, source, message):
        """Handles one message of the server or of the peer."""
        t, mid = message["t"], message.get("mid")
        params, token = message.get("params") or {}, message.get("token")
        if t in (4, 51, 52, 53) and source[0] != self.server[0]:
            return  # a forged notification could name any address
        if t == 51 and not self.callee and self.token in (None, token):  # we are the callee, S0-14 to S0-19
            if self.token is None:
                self.event("notified", tag=params["ltag"])
            self.token = token
            self.targets.add((params["host"], params["port"]))
            self.learn(params["host"], params.get("tport"), params.get("laddrs") or [])
            answer = {"t": -51, "mid": mid, "token": token, "code": 200}
            self.send(self.hole, {**answer, "extra": self.extras} if self.extras else answer)
        elif t == 52 and token == self.token:  # we are the caller, S0-17 to S0-20
            extra = message.get("extra") or params
            self.targets.add((extra["rhost"], extra["rport"]))
            self.learn(extra["rhost"], extra.get("rtport"), extra.get("laddrs") or [])
            self.send(self.hole, {"t": -52, "mid": mid, "token": token, "code": 200})
        elif t == 53 and token == self.token:  # step 10, S0-A8
            hopeless = self.peer is None and self.tries_until is not None and time.monotonic() > self.tries_until
            extra = {"punching": False, "path": "failed"} if hopeless else {"punching": True}
            if self.peer:
                extra["path"] = "direct"
            self.send(sock, {"t": -53, "mid": mid, "token": token, "code": 200, "extra": extra}, source)
            if hopeless:
                self.event("failed", reason="no hole")
                sys.exit(1)
        elif t == 4 and token == self.token:  # the call cannot go on, S0-A20
            self.event("failed", reason=message.get("em"), code=message.get("code"))
            sys.exit(1)
        elif t == 101 and self.callee:  # the callee's true address towards us, S0-A19
            self.targets.add(source)
        elif t == 102 and self.token and params.get("token") == self.token:  # S0-21
            self.punched(source)
            self.send(self.hole, {"t": -103, "mid": mid, "token": self.token, "code": 200}, source)
        elif t in (-103, -102) and token == self.token and self.token:
            self.punched(source)
        elif source == self.peer and "n" in message:  # the datagrams that are exchanged through the hole
            if t == 200:
                self.received.add(message["n"])
                self.send(self.hole, {"t": -200, "n": message["n"]}, source)
            elif t == -200:
                self.acked.add(message["n"])

    def learn(self, host, port, inner):
        """Stores where the peer's stream, and its hole on the same network, may be reached."""
        inner = [(ip, int(hole)) for ip, hole in (address.rsplit(":", 1) for address in inner)]
        if self.port and port:
            self.streams = [(ip, port) for ip, _ in inner] + [(host, port)]
        if self.inner or self.streams:
            self.targets.update(inner)

    def stream(self):
        """Opens the stream, moves bytes both ways, and reports who connected."""
        def bound():
            sock = socket.socket(self.hole.family, socket.SOCK_STREAM)
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                sock.setsockopt(socket.SOL_SOCKET, option, 1)
            sock.bind(("", self.port))
            sock.setblocking(False)
            return sock

        listener, found = bound(), None
        listener.listen()
        while not found:
            if time.monotonic() > self.deadline:
                self.event("failed", reason="time limit while opening the stream")
                sys.exit(1)
            tries = {}
            for address in self.streams:
                sock = bound()
                if sock.connect_ex(address) in (0, errno.EINPROGRESS):
                    tries[sock] = address
            until = time.monotonic() + 3
            while tries and not found and time.monotonic() < until:
                readable, writable, _ = select.select([listener], list(tries), [], 0.1)
                for sock in writable:
                    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                        found = ("connected", sock, tries[sock])
                    del tries[sock]
                if readable:
                    sock, address = listener.accept()
                    found = ("accepted", sock, address[:2])
            for sock in tries:
                if not found or sock is not found[1]:
                    sock.close()
            time.sleep(0 if found else 0.2)
        how, sock, address = found
        sock.setblocking(True)
        sock.settimeout(10)
        sock.sendall(b"x" * STREAM)
        received = 0
        while received < STREAM:
            received += len(sock.recv(65536)) or sys.exit("the stream ended early")
        self.event("stream", how=how, peer="%s:%d" % address, received=received)
        time.sleep(1)  # what the peer has not read yet

    def punched(self, source):
        if self.peer is None:
            self.peer = source
            self.event("punched", peer="%s:%d" % source)

    def run(self):
        """Punches, then exchanges; returns when both directions are through."""
        due = beat = keep = 0
        done = first_at = None
        while done is None or time.monotonic() < done:
            now = time.monotonic()
            if now >= beat:
                self.send(self.main, {"t": 2, "tag": self.tag})
                beat = now + HEARTBEAT
            if self.targets and self.tries_until is None:
                self.tries_until = now + self.patience
            if self.peer and first_at is None:
                first_at = now + self.silence
            if now >= due:
                due = now + RESEND
                if self.callee and self.peer is None:
                    for target in self.targets:
                        self.mid += 1
                        self.send(self.hole, {"t": 102, "mid": self.mid, "params": {"token": self.token}}, target)
                elif self.peer is None and self.targets and self.opened < 5:
                    self.opened += 1
                    for target in self.targets:
                        self.send(self.hole, {"t": 101}, target)
                elif self.peer and now < first_at and self.callee and now >= keep:
                    keep = now + KEEP
                    self.mid += 1
                    self.send(self.hole, {"t": 102, "mid": self.mid, "params": {"token": self.token}}, self.peer)
                elif self.peer and now >= first_at and len(self.acked) < COUNT and (self.callee or self.received or not self.silence):
                    for n in set(range(COUNT)) - self.acked:
                        self.send(self.hole, {"t": 200, "n": n}, self.peer)
            for sock, source, message in self.receive(0.05):
                self.handle(sock, source, message)
            if done is None and len(self.acked) == len(self.received) == COUNT:
                self.event("exchanged", sent=len(self.acked), received=len(self.received))
                done = time.monotonic() + LINGER


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, metavar="IP:PORT")
    parser.add_argument("--timeout", type=float, default=60, metavar="SECONDS")
    parser.add_argument("--give-up", type=float, default=30, metavar="SECONDS")
    parser.add_argument("--tcp", action="store_true")
    parser.add_argument("--inner", action="store_true")
    parser.add_argument("--silence", type=float, default=0, metavar="SECONDS")
    parser.add_argument("role", choices=["listen", "call"])
    parser.add_argument("tag", nargs="?", default="first")
    args = parser.parse_args()
    host, port = args.server.rsplit(":", 1)
    client = Client((host.strip("[]"), int(port)), args.timeout, args.give_up, args.tcp, args.inner, args.silence)
    client.register()
    if args.role == "call":
        client.call(args.tag)
    client.run()
    if client.port:
        client.stream()


main()
