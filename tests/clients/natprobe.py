"""Judges a NAT from inside, by its mapping and its filtering (RFC 4787), with a wire of its own.

    natprobe.py serve ADDRESS ADDRESS     answers on ports 4001 and 4002 of both addresses
    natprobe.py ask   ADDRESS ADDRESS     asks them, prints one JSON object
    natprobe.py knock ADDRESS PORT LOCALPORT [COUNT]   writes from LOCALPORT to ADDRESS:PORT
    natprobe.py punch ADDRESS PORT LOCALPORT           writes and listens until an answer comes; prints its source
    natprobe.py void  ADDRESS             writes to an address that nobody has; prints what came back

A request is "FROM <address index> <port index>": from which of the four sockets the answer, the seen source, is to
come. Standard library only.
"""

import json
import select
import socket
import sys
import time

PORTS = (4001, 4002)


def serve(addresses):
    sockets = {}
    for i, address in enumerate(addresses):
        for j, port in enumerate(PORTS):
            sockets[i, j] = udp(address, port)
    listener = socket.create_server((addresses[0], PORTS[0]))
    print("ready", flush=True)
    while True:
        for ready in select.select([*sockets.values(), listener], [], [])[0]:
            if ready is listener:
                listener.accept()[0].close()
                continue
            data, source = ready.recvfrom(2048)
            words = data.split()
            if words[:1] == [b"FROM"]:
                answer = f"{source[0]} {source[1]}".encode()
                sockets[int(words[1]), int(words[2])].sendto(answer, source)


def udp(address, port):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, port))
    return sock


def question(sock, target, answer_from):
    """The source that the server saw, or None if no answer came in."""
    for _ in range(3):
        sock.sendto(b"FROM %d %d" % answer_from, target)
        if select.select([sock], [], [], 0.3)[0]:
            host, port = sock.recvfrom(2048)[0].split()
            return host.decode(), int(port)
    return None


def ask(addresses):
    sock = udp("0.0.0.0", 0)
    seen = [
        question(sock, (address, port), (i, j))
        for i, address in enumerate(addresses)
        for j, port in enumerate(PORTS)
    ]
    # Filtering is asked from a fresh socket, which wrote to one place only.
    fresh = udp("0.0.0.0", 0)
    here = (addresses[0], PORTS[0])
    plain, other_port, other_address = (question(fresh, here, place) for place in ((0, 0), (0, 1), (1, 0)))
    try:
        socket.create_connection(here, timeout=3).close()
        tcp = True
    except OSError:
        tcp = False
    if plain is None:
        mapping = filtering = "blocked"
    else:
        mapping = "same" if len(set(seen)) == 1 else "changes" if len(set(seen)) == len(seen) else "mixed"
        filtering = "none" if other_address else "address" if other_port else "port"
    print(json.dumps({"mapping": mapping, "filtering": filtering, "tcp": tcp, "seen": seen,
                      "local": sock.getsockname()[1]}))


def knock(target, local_port, count):
    sock = udp("0.0.0.0", local_port)
    for _ in range(count):
        sock.sendto(b"knock", target)
        time.sleep(0.05)
    print("done")


def punch(target, local_port):
    sock = udp("0.0.0.0", local_port)
    deadline = time.monotonic() + 8
    source = None
    while time.monotonic() < deadline:
        sock.sendto(b"punch" if source is None else b"received", source or target)
        if not select.select([sock], [], [], 0.1)[0]:
            continue
        data, source = sock.recvfrom(2048)
        if data == b"received":
            for _ in range(3):
                sock.sendto(b"received", source)
            break
    else:
        source = None
    print(json.dumps({"source": source}))


def void(address):
    sock = udp("0.0.0.0", 0)
    sock.connect((address, 9))
    sock.settimeout(0.3)
    came = []
    for _ in range(3):
        try:
            sock.send(b"hello")
            sock.recv(2048)
            came.append("an answer")
        except TimeoutError:
            pass
        except OSError as error:
            came.append(str(error))
    print(json.dumps({"came": came}))


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    if verb == "serve":
        serve(rest)
    elif verb == "ask":
        ask(rest)
    elif verb == "knock":
        knock((rest[0], int(rest[1])), int(rest[2]), int((rest[3:] or ["3"])[0]))
    elif verb == "punch":
        punch((rest[0], int(rest[1])), int(rest[2]))
    elif verb == "void":
        void(rest[0])
    else:
        sys.exit(__doc__)
