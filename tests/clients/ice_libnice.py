"""libnice on loopback, driven by JSON lines: `ice_libnice.py controlling|controlled udp|tcp`."""

import ctypes
import json
import sys

import gi

gi.require_version("Nice", "0.1")
from gi.repository import GLib, Nice  # noqa: E402

ROLE, PROTOCOL = sys.argv[1:3]
DATA = b"\x80"


def report(news, **fields):
    print(json.dumps({"news": news, **fields}), flush=True)


loop = GLib.MainLoop()
agent = Nice.Agent.new_full(
    loop.get_context(),
    Nice.Compatibility.RFC5245,
    Nice.AgentOption.ICE_TRICKLE | Nice.AgentOption.SUPPORT_RENOMINATION | Nice.AgentOption.CONSENT_FRESHNESS,
)
agent.set_property("controlling-mode", ROLE == "controlling")
agent.set_property("ice-udp", PROTOCOL == "udp")
agent.set_property("ice-tcp", PROTOCOL == "tcp")
agent.set_property("upnp", False)
loopback = Nice.Address.new()
loopback.set_from_string("127.0.0.1")
agent.add_local_address(loopback)
stream = agent.add_stream(1)


def describe():
    _, ufrag, password = agent.get_local_credentials(stream)
    report("credentials", ufrag=ufrag, password=password)


def report_candidate(candidate):
    report("candidate", candidate=agent.generate_local_candidate_sdp(candidate).removeprefix("a="))


def on_candidate(_, candidate):
    report_candidate(candidate)


def on_gathered(_, number):
    report("end")


def on_state(_, number, component, state):
    state = Nice.ComponentState(state)
    if state in (Nice.ComponentState.CONNECTED, Nice.ComponentState.READY):
        report("connected", connected=True)
    elif state in (Nice.ComponentState.DISCONNECTED, Nice.ComponentState.FAILED):
        report("connected", connected=False)


def text(address):
    return "%s:%d" % (address.dup_string(), address.get_port())


def on_pair(_, number, component, local, remote):
    report("pair", local=text(local.addr), remote=text(remote.addr))


# The bindings leave out the function that receives, and take only text to send.
library = ctypes.CDLL("libnice.so.10")
pointer = ctypes.c_void_p(hash(agent))


@ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)
def on_data(_, number, component, length, buffer, user_data):
    report("data", data=ctypes.string_at(buffer, length)[1:].decode())


def on_order(source, condition):
    line = sys.stdin.readline()
    if not line:
        loop.quit()
        return False
    order = json.loads(line)
    if order["order"] == "remote":
        agent.set_remote_credentials(stream, order["ufrag"], order["password"])
    elif order["order"] == "candidate":
        candidate = agent.parse_remote_candidate_sdp(stream, "a=" + order["candidate"])
        agent.set_remote_candidates(stream, 1, [candidate])
    elif order["order"] == "end":
        agent.peer_candidate_gathering_done(stream)
    elif order["order"] == "restart":
        agent.restart_stream(stream)
        describe()
        for candidate in agent.get_local_candidates(stream, 1):
            report_candidate(candidate)
        report("end")
    elif order["order"] == "send":
        data = DATA + order["data"].encode()
        library.nice_agent_send(pointer, stream, 1, len(data), data)
    return True


agent.connect("new-candidate-full", on_candidate)
agent.connect("candidate-gathering-done", on_gathered)
agent.connect("component-state-changed", on_state)
agent.connect("new-selected-pair-full", on_pair)
library.nice_agent_attach_recv(pointer, stream, 1, None, on_data, None)
describe()
agent.gather_candidates(stream)
GLib.io_add_watch(sys.stdin.fileno(), GLib.IO_IN | GLib.IO_HUP, on_order)
loop.run()
