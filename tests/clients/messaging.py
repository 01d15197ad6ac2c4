#!/usr/bin/env python3
"""A client of the messaging wire (S4), with its own protobuf; `cryptography` only for RSA and AES.

    messaging.py session HOST:PORT        a user and a device use every command once; the report has the results
    messaging.py dispatch HOST:PORT ID    what the dispatcher answers

The report goes to stdout as one JSON object. Exit code 0, or 1 with a reason on stderr.
"""
import argparse
import hashlib
import json
import os
import socket
import struct
import sys
import urllib.request
import uuid

HEARTBEAT, SERVER_KEY, SESSION_KEY, ERROR = range(4)
LOGIN, DEVICE_AUTH, REGISTER, CONFLICT, LOGOUT = range(100, 105)
SEND, PUSH, FETCH, ADD_DEVICE, REMOVE_DEVICE = range(200, 205)
OK, NOT_LOGGED_IN, USER_EXISTS, WRONG_ACCOUNT, ALREADY_ADDED, NOT_ADDED = 100, 300, 1001, 1002, 2001, 2002


def varint(number):
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def read_varint(data, at):
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number, at


def encode(cmd=0, msg_id="", is_encrypt=False, data=b""):
    out = b""
    if cmd:
        out += b"\x08" + varint(cmd)
    if msg_id:
        out += b"\x12" + varint(len(msg_id.encode())) + msg_id.encode()
    if is_encrypt:
        out += b"\x18\x01"
    if data:
        out += b"\x22" + varint(len(data)) + data
    return struct.pack(">I", len(out)) + out


def decode(data):
    cmd, msg_id, is_encrypt, body, at = 0, "", False, b"", 0
    while at < len(data):
        key, at = read_varint(data, at)
        if key & 7 == 0:
            number, at = read_varint(data, at)
            if key >> 3 == 1:
                cmd = number
            elif key >> 3 == 3:
                is_encrypt = bool(number)
        else:
            length, at = read_varint(data, at)
            value, at = data[at:at + length], at + length
            if key >> 3 == 2:
                msg_id = value.decode()
            elif key >> 3 == 4:
                body = value
    return cmd, msg_id, is_encrypt, body


def password_text(password):
    """Lower-case hexadecimal without leading zeros, as the original client writes it."""
    return "%x" % int.from_bytes(hashlib.md5(password.encode()).digest(), "big")


class Client:
    """One connection. `is_encrypted` clients agree on a key and encrypt what the original ones encrypt."""

    def __init__(self, address, is_encrypted):
        self.sock = socket.create_connection(address, timeout=30)
        self.key = None
        cmd, _, _, der = self.receive()
        assert (cmd, der[:4]) == (SERVER_KEY, b"\x30\x82\x01\x22"), (cmd, der[:4])
        if is_encrypted:
            self.exchange(der)

    def exchange(self, der):
        from cryptography.hazmat.primitives.asymmetric import padding
        from cryptography.hazmat.primitives.serialization import load_der_public_key
        key = os.urandom(16)
        self.sock.sendall(encode(SESSION_KEY, data=load_der_public_key(der).encrypt(key, padding.PKCS1v15())))
        cmd, _, is_encrypt, body = self.receive()
        assert (cmd, is_encrypt, json.loads(body)["code"]) == (SESSION_KEY, False, OK), (cmd, body)
        self.key = key

    def cipher(self):
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
        return Cipher(algorithms.AES(self.key), modes.ECB())

    def send(self, cmd, body=None, msg_id="", plain=False):
        data = b"" if body is None else json.dumps(body).encode()
        is_encrypt = self.key is not None and not plain
        if is_encrypt and data:
            padding = 16 - len(data) % 16
            encryptor = self.cipher().encryptor()
            data = encryptor.update(data + bytes([padding]) * padding) + encryptor.finalize()
        self.sock.sendall(encode(cmd, msg_id, is_encrypt, data))

    def read(self, length):
        out = b""
        while len(out) < length:
            piece = self.sock.recv(length - len(out))
            if not piece:
                raise EOFError
            out += piece
        return out

    def receive(self):
        cmd, msg_id, is_encrypt, data = decode(self.read(struct.unpack(">I", self.read(4))[0]))
        if is_encrypt and data:
            decryptor = self.cipher().decryptor()
            data = decryptor.update(data) + decryptor.finalize()
            data = data[:-data[-1]]
        return cmd, msg_id, is_encrypt, data

    def code(self, cmd, body, msg_id="", plain=False):
        self.send(cmd, body, msg_id, plain)
        got, got_id, is_encrypt, data = self.receive()
        assert (got, got_id) == (cmd, msg_id), (got, got_id, data)
        assert is_encrypt == (self.key is not None and not plain)
        return json.loads(data)["code"]

    def is_closed(self):
        try:
            return self.sock.recv(1) == b""
        except ConnectionError:
            return True


def session(address):
    users = {"username": "alice-" + uuid.uuid4().hex[:8], "password": password_text("363")}
    assert users["password"] == "411460f7c92d2124a67ea0f4cb5f85"
    device = {"version": "1.0", "id": "lamp-" + uuid.uuid4().hex[:8], "abilities": ["light"]}
    report = {}
    alice = Client(address, True)
    report["before_login"] = alice.code(FETCH, None, plain=True)
    report["register"] = [alice.code(REGISTER, users) for _ in range(2)]
    report["wrong"] = alice.code(LOGIN, {**users, "version": "1", "password": "0" + users["password"]})
    report["login"] = alice.code(LOGIN, {**users, "version": "1"})
    report["add"] = [alice.code(cmd, {"deviceId": device["id"]}) for cmd in
                     (REMOVE_DEVICE, ADD_DEVICE, ADD_DEVICE, REMOVE_DEVICE, ADD_DEVICE)]
    lamp = Client(address, False)
    report["device"] = lamp.code(DEVICE_AUTH, device)
    lamp.sock.close()
    ids = [str(uuid.uuid4()) for _ in range(5)]
    acknowledged = 0
    for index, msg_id in enumerate(ids):
        alice.send(SEND, {"to": device["id"], "msg": "message %d \u00fc" % index}, msg_id)
        cmd, got_id, is_encrypt, data = alice.receive()
        acknowledged += (cmd, got_id, is_encrypt, data) == (SEND, msg_id, True, b"")
    report["acknowledged"] = acknowledged
    lamp = Client(address, True)
    report["device"] = lamp.code(DEVICE_AUTH, device)
    lamp.send(FETCH, plain=True)
    cmd, _, is_encrypt, data = lamp.receive()
    fetched = json.loads(data)
    report["fetched"] = [message["msg"] for message in fetched]
    assert (cmd, is_encrypt, [message["msgid"] for message in fetched]) == (PUSH, True, ids)
    assert all((message["from"], message["to"]) == (users["username"], device["id"]) for message in fetched)
    lamp.send(PUSH, [{"msgid": msg_id} for msg_id in ids[:4]], plain=True)
    lamp.send(HEARTBEAT, plain=True)
    assert lamp.receive()[:1] == (HEARTBEAT,)
    lamp.send(FETCH, plain=True)
    fetched = json.loads(lamp.receive()[3])
    report["fetched_again"] = [message["msg"] for message in fetched]
    lamp.send(PUSH, [{"msgid": ids[4]}], plain=True)
    reply = str(uuid.uuid4())
    lamp.send(SEND, {"to": users["username"], "msg": "on"}, reply)
    assert lamp.receive()[:2] == (SEND, reply)
    cmd, _, is_encrypt, data = alice.receive()
    report["pushed"] = [cmd, is_encrypt, json.loads(data)[0]["msg"]]
    newer = Client(address, True)
    report["login_elsewhere"] = newer.code(LOGIN, {**users, "version": "1"})
    report["conflict"] = [alice.receive()[0], alice.is_closed()]
    newer.send(LOGOUT)
    report["logout"] = newer.is_closed()
    print(json.dumps(report), flush=True)


def dispatch(address, name):
    with urllib.request.urlopen("http://%s:%d/?id=%s" % (*address, name), timeout=30) as response:
        print(json.dumps({"type": response.headers["content-type"], **json.load(response)}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["session", "dispatch"])
    parser.add_argument("address")
    parser.add_argument("id", nargs="?", default="")
    arguments = parser.parse_args()
    host, port = arguments.address.rsplit(":", 1)
    address = (host, int(port))
    if arguments.action == "session":
        session(address)
    else:
        dispatch(address, arguments.id)


if __name__ == "__main__":
    sys.exit(main())
