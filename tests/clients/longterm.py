"""A client of STUN's long-term credentials, written from RFC 8489 sections 9.2 and 14. Standard library only.

    longterm.py right   SERVER USER PASSWORD
        allocates in every way the RFC allows; prints one JSON object, way -> [code, integrity attribute of the answer]
    longterm.py attack  SERVER USER PASSWORD
        bids down, strips, alters, guesses; prints one JSON object, attack -> code
    longterm.py refuse  SERVER USER PASSWORD
        wrong password, unknown user, wrong realm; prints one JSON object, what -> [code, length]
    longterm.py sizes   SERVER
        the length of the answer to a bare Allocate of 20 bytes, and what is in it
    longterm.py try     SERVER USER PASSWORD [SECONDS]
        one allocation as browsers make it; prints its code, or "silence" after SECONDS (default 5)
    longterm.py hook
        an HTTP server that knows users: POST {user, realm}; prints its port and then each question
"""

import base64
import hashlib
import hmac
import json
import os
import socket
import struct
import sys
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COOKIE = 0x2112A442
ALLOCATE, REFRESH = 0x003, 0x004
USERNAME, INTEGRITY, ERROR, UNKNOWN, LIFETIME, REALM, NONCE = 0x06, 0x08, 0x09, 0x0A, 0x0D, 0x14, 0x15
TRANSPORT, INTEGRITY_SHA256, ALGORITHM, USERHASH, FINGERPRINT, ALGORITHMS = 0x19, 0x1C, 0x1D, 0x1E, 0x8028, 0x8002
MD5, SHA256 = b"\0\1\0\0", b"\0\2\0\0"


def attribute(kind, value):
    return struct.pack("!HH", kind, len(value)) + value + b"\0" * (-len(value) % 4)


def attributes(message):
    found, at = [], 20
    while at + 4 <= len(message):
        kind, length = struct.unpack("!HH", message[at : at + 4])
        found.append((kind, message[at + 4 : at + 4 + length], at))
        at += 4 + length + -length % 4
    assert at == len(message) == 20 + struct.unpack("!H", message[2:4])[0], "the lengths disagree"
    return found


def header(method, length, transaction):
    return struct.pack("!HHI", method, length, COOKIE) + transaction


def seal(method, body, transaction, kind, key, keep=None):
    """Appends an integrity attribute (14.5, 14.6)."""
    digest, length = ("sha1", 20) if kind == INTEGRITY else ("sha256", keep or 32)
    tag = hmac.digest(key, header(method, len(body) + 4 + length, transaction) + body, digest)
    return body + attribute(kind, tag[:length])


def verify(message, key):
    """The integrity attribute of an answer, if it is right (9.2.5); an answer has one at most."""
    sealed = [a for a in attributes(message) if a[0] in (INTEGRITY, INTEGRITY_SHA256)]
    if not sealed:
        return None
    [(kind, value, at)] = sealed
    head = message[:2] + struct.pack("!H", at + 4 + len(value) - 20) + message[4:20]
    right = hmac.digest(key, head + message[20:at], "sha1" if kind == INTEGRITY else "sha256")
    assert right[: len(value)] == value, "the answer's integrity is wrong"
    return "sha1" if kind == INTEGRITY else "sha256"


class Client:
    def __init__(self, server, user, password):
        host, _, port = server.rpartition(":")
        self.user, self.password = user.encode(), password.encode()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.connect((host, int(port)))
        self.socket.settimeout(5)
        self.bare = self.exchange(ALLOCATE, b"")[0]
        found = {kind: value for kind, value, _ in attributes(self.bare)}
        self.realm, self.nonce, self.offer = found[REALM], found[NONCE], found.get(ALGORITHMS)
        self.features = None
        if self.nonce.startswith(b"obMatJos2"):
            self.features = base64.b64decode(self.nonce[9:13])[0]
            # 9.2.5: the bit without the list is somebody on the path.
            assert not self.features & 0x80 or self.offer, "the offer was taken away"

    def exchange(self, method, body, transaction=None):
        transaction = transaction or os.urandom(12)
        self.socket.send(header(method, len(body), transaction) + body)
        while True:
            answer = self.socket.recv(2048)
            if answer[8:20] == transaction:
                break
        kind = struct.unpack("!H", answer[:2])[0]
        error = [value for a, value, _ in attributes(answer) if a == ERROR]
        code = error[0][2] * 100 + error[0][3] if error else 200
        assert (kind == method | 0x100) == (code == 200), "class and code disagree"
        return answer, code

    def key(self, algorithm, realm=None, user=None):
        text = b":".join((user or self.user, realm or self.realm, self.password))
        return (hashlib.md5 if algorithm == MD5 else hashlib.sha256)(text).digest()

    def ask(self, method=ALLOCATE, hashed=False, echo="offer", choice=SHA256, integrity=INTEGRITY_SHA256, **other):
        """A request in the long-term mechanism; returns (answer, code, key)."""
        realm, nonce = other.get("realm", self.realm), other.get("nonce", self.nonce)
        key = other.get("key") or self.key(choice or MD5)
        transaction = os.urandom(12)
        body = other.get("front", attribute(TRANSPORT, b"\x11\0\0\0") if method == ALLOCATE else b"")
        if hashed:
            body += attribute(USERHASH, hashlib.sha256(self.user + b":" + self.realm).digest())
        else:
            body += attribute(USERNAME, other.get("user", self.user))
        body += attribute(REALM, realm) + attribute(NONCE, nonce)
        echo = self.offer if echo == "offer" else echo
        if echo:
            body += attribute(ALGORITHMS, echo)
        if choice:
            body += attribute(ALGORITHM, choice)
        for kind in integrity if isinstance(integrity, tuple) else (integrity,):
            body = seal(method, body, transaction, kind, key, other.get("keep"))
        body += other.get("behind", b"")
        if other.get("fingerprint"):
            crc = zlib.crc32(header(method, len(body) + 8, transaction) + body) ^ 0x5354554E
            body += attribute(FINGERPRINT, struct.pack("!I", crc))
        answer, code = self.exchange(method, body, transaction)
        return answer, code, key


LEGACY = {"echo": None, "choice": None, "integrity": INTEGRITY}


def right(make):
    ways = {
        "sha256": {},
        "sha256 by hash": {"hashed": True},
        "sha256 with fingerprint": {"fingerprint": True},
        "md5 by choice": {"choice": MD5},
        "as browsers do": LEGACY,
        "as browsers do, by hash": LEGACY | {"hashed": True},
        "both attributes, no choice": LEGACY | {"integrity": (INTEGRITY, INTEGRITY_SHA256)},
    }
    result = {}
    for name, way in ways.items():
        answer, code, key = make().ask(**way)
        result[name] = [code, verify(answer, key)]
    return result


def attack(make):
    result = {}

    def note(name, client, **way):
        result[name] = client.ask(**way)[1]

    client = make()
    for name, features in (("no features", "AAAA"), ("no algorithms", "QAAA"), ("more features", "/AAA")):
        note(f"nonce bits: {name}", make(), nonce=client.nonce[:9] + features.encode() + client.nonce[13:])
    note("nonce without cookie", make(), nonce=client.nonce[13:])
    note("nonce of another port", make(), nonce=client.nonce)
    note("no list", make(), echo=None)
    note("no choice", make(), choice=None, key=client.key(SHA256))
    note("list cut to md5, md5 chosen", make(), echo=MD5, choice=MD5)
    note("list turned round, md5 chosen", make(), echo=MD5 + SHA256, choice=MD5)
    note("list with a stranger, md5 chosen", make(), echo=client.offer + b"\0\3\0\0", choice=MD5)
    note("a choice that was not offered", make(), choice=b"\0\3\0\0", key=client.key(SHA256))
    note("sha256 chosen, md5's key", make(), key=client.key(MD5))
    note("sha256 chosen, sha1 integrity", make(), integrity=INTEGRITY)
    note("integrity cut to 16 bytes", make(), keep=16)
    note("sha256's key as browsers would", make(), **LEGACY | {"key": client.key(SHA256)})
    client = make()
    assert client.ask()[1] == 200
    strange = attribute(0x7F01, b"x") + attribute(0x7F02, b"")
    answer, code, key = client.ask(REFRESH, front=strange)
    listed = [value for kind, value, _ in attributes(answer) if kind == UNKNOWN]
    result["unknown attributes"] = [code, listed[0].hex(), verify(answer, key)]
    behind = attribute(LIFETIME, b"\0\0\0\0") + attribute(0x7F01, b"x")
    answer, code, key = client.ask(REFRESH, behind=behind)
    lifetime = [struct.unpack("!I", value)[0] for kind, value, _ in attributes(answer) if kind == LIFETIME]
    result["lifetime 0 and worse behind the integrity"] = [code, lifetime[0]]
    return result


def refuse(make):
    result = {}
    for name, base in (("browser", LEGACY), ("rfc 8489", {})):
        client = make()
        algorithm = base.get("choice", SHA256) or MD5
        for what, way in {
            "wrong password": {"key": b"wrong"},
            "unknown user": {"user": b"n" * len(client.user), "key": client.key(algorithm, user=b"n" * len(client.user))},
            "wrong realm": {"realm": b"elsewhere", "key": client.key(algorithm, realm=b"elsewhere")},
        }.items():
            answer, code, _ = client.ask(**base | way)
            result[f"{name}: {what}"] = [code, len(answer)]
    return result


def sizes(server):
    client = Client(server, "", "")
    return {
        "asked": 20,
        "answered": len(client.bare),
        "kinds": [f"{kind:04x}" for kind, _, _ in attributes(client.bare)],
        "realm": client.realm.decode(),
        "nonce": len(client.nonce),
        "features": client.features,
    }


def once(server, user, password, patience):
    client = Client(server, user, password)
    client.socket.settimeout(0.5)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            return client.ask(**LEGACY)[1]
        except TimeoutError:
            continue
    return "silence"


class Users(BaseHTTPRequestHandler):
    """Knows `known` and `keyed`, is slow about `slow`, fails on `broken`, lies about `liar`; nobody else is there."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        user, realm = question["user"], question["realm"]
        print(f"asked {user} {realm}", flush=True)
        if user == "slow":
            time.sleep(3)
        digest = hashlib.md5(f"{user}:{realm}:secret".encode()).hexdigest()
        answer = {
            "known": (200, {"password": "secret"}),
            "slow": (200, {"password": "secret"}),
            "keyed": (200, {"md5": digest}),
            "over": (200, {"password": "secret", "expires": 1}),
            "broken": (500, {}),
            "liar": (200, {"md5": "none"}),
        }.get(user, (404, {}))
        body = json.dumps(answer[1]).encode()
        try:
            self.send_response(answer[0])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            pass

    def log_message(self, *_):
        pass


def main(verb, *rest):
    if verb == "hook":
        server = ThreadingHTTPServer(("127.0.0.1", 0), Users)
        print(f"port {server.server_port}", flush=True)
        server.serve_forever()
    elif verb == "sizes":
        print(json.dumps(sizes(*rest)))
    elif verb == "try":
        print(once(*rest[:3], float(rest[3]) if len(rest) > 3 else 5))
    elif verb in ("right", "attack", "refuse"):
        print(json.dumps({"right": right, "attack": attack, "refuse": refuse}[verb](lambda: Client(*rest))))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
