"""A proxy for tests: HTTP CONNECT, also inside TLS, or SOCKS 5. Standard library only.

    proxy.py http|https|socks5 PORT [--user USER:PASSWORD] [--host NAME=ADDRESS] [--only PORT] [--certificate FILE --key FILE]

Listens on all addresses, prints "ready", and then "connect HOST PORT" for each connection that it opens. NAME is resolved to ADDRESS. With --only
HTTP connections to other ports are refused.
"""

import argparse
import base64
import socket
import ssl
import struct
import threading


class Refused(Exception):
    """The bytes to answer before the connection is closed."""


def exactly(client, count):
    data = b""
    while len(data) < count:
        part = client.recv(count - len(data))
        if not part:
            raise Refused(b"")
        data += part
    return data


def http(client, user, only):
    header = b""
    while not header.endswith(b"\r\n\r\n"):
        header += exactly(client, 1)
    lines = header.decode().split("\r\n")
    method, authority, _ = lines[0].split(" ")
    if method != "CONNECT":
        raise Refused(b"HTTP/1.1 405 Method Not Allowed\r\n\r\n")
    expected = user and "Proxy-Authorization: Basic " + base64.b64encode(user.encode()).decode()
    if expected and expected not in lines:
        raise Refused(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
    host, port = authority.rsplit(":", 1)
    if only and int(port) != only:
        raise Refused(b"HTTP/1.1 403 Forbidden\r\n\r\n")
    return host.strip("[]"), int(port), b"HTTP/1.1 200 Connection established\r\n\r\n"


def socks5(client, user, _only):
    version, count = exactly(client, 2)
    methods = exactly(client, count)
    method = 2 if user else 0
    if version != 5 or method not in methods:
        raise Refused(b"\x05\xff")
    client.sendall(bytes([5, method]))
    if user:
        exactly(client, 1)
        name = exactly(client, exactly(client, 1)[0])
        password = exactly(client, exactly(client, 1)[0])
        if name + b":" + password != user.encode():
            raise Refused(b"\x01\x01")
        client.sendall(b"\x01\x00")
    _, command, _, kind = exactly(client, 4)
    if command != 1 or kind not in (1, 3):
        raise Refused(b"\x05\x07\x00\x01" + bytes(6))
    if kind == 1:
        host = socket.inet_ntoa(exactly(client, 4))
    else:
        host = exactly(client, exactly(client, 1)[0]).decode()
    (port,) = struct.unpack("!H", exactly(client, 2))
    return host, port, b"\x05\x00\x00\x01" + bytes(6)


def copy(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        pass
    for end in (source, sink):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def serve(client, options):
    try:
        if options.protocol == "https":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(options.certificate, options.key)
            client = context.wrap_socket(client, server_side=True)
        handshake = socks5 if options.protocol == "socks5" else http
        host, port, answer = handshake(client, options.user, options.only)
        name, _, address = (options.host or "=").partition("=")
        server = socket.create_connection((address if host == name else host, port), timeout=10)
        server.settimeout(None)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        print("connect", host, port, flush=True)
        client.sendall(answer)
    except Refused as refused:
        client.sendall(refused.args[0])
        client.close()
        return
    threading.Thread(target=copy, args=(server, client), daemon=True).start()
    copy(client, server)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("protocol", choices=["http", "https", "socks5"])
    parser.add_argument("port", type=int)
    parser.add_argument("--user")
    parser.add_argument("--host")
    parser.add_argument("--only", type=int)
    parser.add_argument("--certificate")
    parser.add_argument("--key")
    options = parser.parse_args()
    listener = socket.create_server(("", options.port))
    print("ready", flush=True)
    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve, args=(client, options), daemon=True).start()


main()
