// Two clients of ginnel.js whose networks and server fail in every way, with a clock, a server and an RTCPeerConnection that are simulated:
//
//     node repairs.mjs MODULE [SEEDS [FIRST]]     MODULE is web/ginnel.js
//
// Named scenarios first, then random ones by seed. Exit code 0, or 1 with what failed and the log before it.
import { readFile } from "node:fs/promises";

const [file, seeds = "150", first = "1"] = process.argv.slice(2);
const source = await readFile(file);
const { setImmediate: immediate } = globalThis;
globalThis.crypto ??= (await import("node:crypto")).webcrypto; // before Node 19

// ---- the clock

const clock = { now: 1_700_000_000_000, timers: new Map(), ids: 0 };
const timer = (act, ms, every) => {
  const id = ++clock.ids;
  clock.timers.set(id, { at: clock.now + Math.max(0, ms ?? 0), act, every });
  return id;
};
globalThis.setTimeout = (act, ms) => timer(act, ms);
globalThis.setInterval = (act, ms) => timer(act, ms, ms);
globalThis.clearTimeout = globalThis.clearInterval = (id) => void clock.timers.delete(id);
Date.now = () => clock.now;
const settle = () => new Promise((go) => immediate(go));

async function run(ms, until = () => false) {
  const end = clock.now + ms;
  for (;;) {
    await settle();
    if (until()) return true;
    let next;
    for (const [id, entry] of clock.timers) if (entry.at <= end && (!next || entry.at < next[1].at)) next = [id, entry];
    if (!next) break;
    const [id, entry] = next;
    clock.now = Math.max(clock.now, entry.at);
    if (entry.every) entry.at += entry.every;
    else clock.timers.delete(id);
    entry.act();
  }
  clock.now = end;
  return false;
}

let random;
function seeded(seed) {
  let state = seed * 2654435761 + 1;
  return () => {
    state = (Math.imul(state ^ (state >>> 15), 2246822519) + 3266489917) | 0;
    return ((state ^ (state >>> 13)) >>> 0) / 2 ** 32;
  };
}
const between = (low, high) => low + random() * (high - low);
const trace = [];
const note = (...words) => trace.push(`${((clock.now - world.began) / 1000).toFixed(2)} ${words.join(" ")}`);

// ---- the network and the server

let world;

/** A host: `up` is whether anything passes, `address` which of its sockets are alive. */
class Host {
  up = true;
  address = 0;
  listeners = [];
  constructor(name) {
    this.name = name;
  }
  emit(type) {
    for (const [of, act] of this.listeners) if (of === type) act({ type });
  }
  move() {
    this.address += 1;
  }
}

class Hub {
  up = true;
  life = 0; // of the relay
  tags = new Map();
  secrets = new Map();
  acts = new Map();
  serial = 0;

  stop() {
    this.up = false;
    this.life += 1;
    for (const socket of [...world.sockets]) if (socket.atServer) socket.gone();
    this.tags.clear();
    this.acts.clear();
  }

  send(socket, message) {
    socket?.deliver(message);
  }

  handle(socket, message) {
    const { t, mid, params = {}, token } = message;
    const answer = (fields) => mid !== undefined && this.send(socket, { t: -t, mid, code: 200, ...fields });
    const fail = (code) => mid !== undefined && this.send(socket, { t, mid, code, em: String(code) });
    const act = this.acts.get(token);
    if (t === 1) {
      const tag = this.secrets.get(params.secret) ?? `tag${this.secrets.size}`;
      this.secrets.set(params.secret, tag);
      const before = this.tags.get(tag);
      socket.tag = tag;
      this.tags.set(tag, socket);
      answer({ extra: { tag, epoch: (params.epoch ?? 0) + 1, ice_servers: [{ urls: ["turn:relay"] }] } });
      if (before && before !== socket) before.gone();
      for (const waits of this.acts.values()) if (waits.callee === tag && !waits.answered) this.send(socket, waits.notice);
    } else if (t === 2) {
      if (this.tags.get(socket.tag) === socket) answer({});
      else fail(202);
    } else if (t === 4) {
      const callee = this.tags.get(params.rtag);
      if (!callee) return fail(203);
      const fresh = `token${++this.serial}`;
      const notice = { t: 51, mid: 1e9 + this.serial, token: fresh, params: { ltag: params.tag, sdp: params.sdp } };
      this.acts.set(fresh, { caller: socket, callee: params.rtag, mid, notice, answered: false });
      answer({ extra: { token: fresh } });
      this.send(callee, notice);
      setTimeout(() => this.over(fresh, 207), 7_500);
    } else if (t === -51 && act && !act.answered) {
      act.answered = true;
      this.send(act.caller, { t: 52, mid: 2e9 + ++this.serial, token, extra: message.extra });
    } else if (t === 51) {
      const [refused] = [...this.acts].find(([, { notice }]) => notice.mid === mid) ?? [];
      if (refused) this.over(refused, message.code);
    } else if (t === 54 || t === 55) {
      if (!act) return fail(205);
      const other = socket === act.caller ? this.tags.get(act.callee) : act.caller;
      answer({ token });
      this.send(other, { t, token, params, ...(!act.answered && { mid: 3e9 + ++this.serial }) });
      if (t === 55) this.acts.delete(token);
    }
  }

  over(token, code) {
    const act = this.acts.get(token);
    if (!act || act.answered) return;
    this.acts.delete(token);
    this.send(act.caller, { t: 4, mid: act.mid, token, code, em: String(code) });
  }

  left(socket) {
    if (this.tags.get(socket.tag) === socket) this.tags.delete(socket.tag);
    for (const [token, act] of this.acts) if (act.caller === socket) this.acts.delete(token);
  }
}

const socketOf = (host) =>
  class {
    readyState = 0;
    bufferedAmount = 0;
    atServer = false;
    #last = [0, 0];
    #address = host.address;

    constructor() {
      note(host.name, "socket");
      world.sockets.add(this);
      setTimeout(() => {
        if (!this.alive || this.readyState > 0) return;
        if (!world.hub.up) return this.gone();
        this.readyState = 1;
        this.atServer = true;
        this.onopen?.();
      }, between(20, 60));
      if (!host.up && host.refuses) setTimeout(() => this.gone(), 1);
    }
    get alive() {
      return host.up && this.#address === host.address;
    }
    /** Runs after the wire's latency and in order, if both ends are there by then. */
    #later(way, act) {
      this.#last[way] = Math.max(this.#last[way] + 0.001, clock.now + between(5, 40));
      setTimeout(() => this.alive && act(), this.#last[way] - clock.now);
    }
    send(data) {
      if (!this.alive) return void (this.bufferedAmount += data.length);
      this.#later(0, () => {
        if (!this.atServer) return;
        const message = JSON.parse(data);
        if (Math.abs(message.t) !== 2) note(host.name, ">", data.slice(0, 90));
        world.hub.handle(this, message);
      });
    }
    deliver(message) {
      this.#later(1, () => {
        if (this.readyState !== 1) return;
        if (Math.abs(message.t) !== 2) note(host.name, "<", JSON.stringify(message).slice(0, 90));
        this.onmessage?.({ data: JSON.stringify(message) });
      });
    }
    /** The page closes it. */
    close() {
      if (this.readyState === 3) return;
      const { alive } = this;
      this.readyState = 3;
      setTimeout(() => this.onclose?.(), alive ? 20 : 2_000);
      // A server that is not notified keeps the tag.
      if (alive) this.gone();
    }
    /** It ends at the server. */
    gone() {
      if (this.atServer) world.hub.left(this);
      this.atServer = false;
      world.sockets.delete(this);
      if (!this.alive && world.hub.up) return;
      setTimeout(() => {
        if (this.readyState === 3) return;
        this.readyState = 3;
        this.onclose?.();
      }, between(5, 40));
    }
  };

// ---- the browser: ICE and one data channel, over a relay alone

class Connection {
  signalingState = "stable";
  connectionState = "new";
  iceConnectionState = "new";
  #id = ++world.serial;
  #local; // { ufrag, life, address }: of both current descriptions
  #remote;
  #pending;
  #before; // what a rollback returns to
  #ufrag;
  #silence = 0;
  #pair; // { local, remote } in use
  #chosen; // called when another pair is chosen
  raw;
  sctp = {
    transport: {
      iceTransport: {
        getSelectedCandidatePair: () => this.#pair && { local: { usernameFragment: this.#pair.local }, remote: { usernameFragment: this.#pair.remote } },
        addEventListener: (_, act) => (this.#chosen = act),
      },
    },
  };

  constructor(host) {
    this.host = host;
    world.connections.push(this);
    host.connection = this;
    this.watch = setInterval(() => this.#look(), 100);
  }
  get localDescription() {
    return this.#pending ?? this.#local;
  }
  get remoteDescription() {
    return this.#remote;
  }
  #describe(type, ufrag) {
    const sdp = `v=0\r\no=- ${this.#id} 2 IN IP4 0\r\na=mid:0\r\na=ice-ufrag:${ufrag}\r\na=fingerprint:sha-256 ${this.#id}\r\n`;
    return { type, sdp, ufrag };
  }
  async createOffer({ iceRestart } = {}) {
    return this.#describe("offer", iceRestart || !this.#ufrag ? `u${++world.serial}` : this.#ufrag);
  }
  async createAnswer() {
    return this.#describe("answer", `u${++world.serial}`);
  }
  #turn(state) {
    this.signalingState = state;
    note(this.host.name, state);
  }
  async setLocalDescription(description) {
    if (description.type === "rollback") {
      if (this.signalingState !== "have-local-offer") throw new Error(`rollback in ${this.signalingState}`);
      this.#pending = undefined;
      return this.#turn("stable");
    }
    const gathered = { ...description, life: world.hub.life, address: this.host.address };
    if (description.type === "offer") {
      if (!["stable", "have-local-offer"].includes(this.signalingState)) throw new Error(`offer in ${this.signalingState}`);
      this.#pending = gathered;
      this.#turn("have-local-offer");
    } else {
      if (this.signalingState !== "have-remote-offer") throw new Error(`answer in ${this.signalingState}`);
      this.#local = gathered;
      this.#turn("stable");
    }
    this.#ufrag = description.ufrag;
    setTimeout(() => this.onicecandidate?.({ candidate: { candidate: `candidate:${description.ufrag} typ relay ` } }), 40);
    setTimeout(() => this.onicecandidate?.({ candidate: null }), 60);
  }
  async setRemoteDescription({ type, sdp }) {
    const ufrag = /ice-ufrag:(\S+)/.exec(sdp)?.[1];
    if (type === "offer") {
      if (this.signalingState !== "stable") throw new Error(`remote offer in ${this.signalingState}`);
      this.#turn("have-remote-offer");
    } else if (type === "answer") {
      if (this.signalingState !== "have-local-offer") throw new Error(`remote answer in ${this.signalingState}`);
      this.#local = this.#pending;
      this.#pending = undefined;
      this.#turn("stable");
    } else throw new Error(type);
    this.#remote = { type, sdp, ufrag, candidates: 0 };
  }
  async addIceCandidate({ candidate }) {
    if (candidate.includes(this.#remote.ufrag)) this.#remote.candidates += 1;
  }
  setConfiguration() {}
  async getStats() {
    const entries = [
      { id: "t", type: "transport", selectedCandidatePairId: "p" },
      { id: "p", localCandidateId: "l", remoteCandidateId: "r" },
      { id: "l", candidateType: "relay" },
      { id: "r", candidateType: "relay" },
    ];
    return new Map(entries.map((entry) => [entry.id, entry]));
  }
  createDataChannel(label) {
    return (this.raw = new Raw(this, label));
  }
  close() {
    clearInterval(this.watch);
    this.connectionState = this.iceConnectionState = "closed";
  }
  #reaches({ life, address }) {
    return this.host.up && world.hub.up && address === this.host.address && life === world.hub.life;
  }
  get usable() {
    return this.#local !== undefined && this.#reaches(this.#local);
  }
  /** Whether data passes to and from the other one. */
  passes(other) {
    const agree = (left, right) => left.#local?.ufrag !== undefined && left.#local.ufrag === right.#remote?.ufrag;
    const found = this.#remote?.candidates > 0 || other.#remote?.candidates > 0;
    return agree(this, other) && agree(other, this) && found && this.usable && other.usable;
  }
  #look() {
    const other = world.connections.find((entry) => entry !== this);
    const passes = other !== undefined && this.passes(other);
    // The other side answers checks whose offer it has not seen; what is sent over such a pair is lost.
    const seems = this.#pending !== undefined && this.#remote !== undefined && this.#reaches(this.#pending) && other.usable;
    this.#silence = passes || seems ? 0 : this.#silence + 100;
    if (passes) this.#use(this.#local.ufrag);
    else if (seems) this.#use(this.#pending.ufrag);
    if (passes || seems) this.#become("connected");
    else if (this.connectionState === "connected" && this.#silence >= 6_000) this.#become("disconnected");
    else if (this.connectionState === "disconnected" && this.#silence >= 25_000) this.#become("failed");
    if (!passes) return;
    this.raw?.open();
    if (!other.raw && this.raw) {
      other.raw = new Raw(other, this.raw.label);
      other.ondatachannel?.({ channel: other.raw });
    }
    if (other.raw?.readyState === "open") for (const data of this.raw?.queue.splice(0) ?? []) other.raw.onmessage?.({ data });
  }
  #use(local) {
    const remote = this.#remote.ufrag;
    if (this.#pair?.local === local && this.#pair.remote === remote) return;
    this.#pair = { local, remote };
    this.#chosen?.();
  }
  #become(state) {
    if (this.connectionState === state) return;
    this.connectionState = this.iceConnectionState = state;
    note(this.host.name, "ICE", state);
    this.onconnectionstatechange?.();
  }
}

const connectionOf = (host) =>
  class extends Connection {
    constructor() {
      super(host);
    }
  };

class Raw {
  readyState = "connecting";
  bufferedAmount = 0;
  queue = [];
  constructor(connection, label) {
    Object.assign(this, { connection, label });
  }
  open() {
    if (this.readyState !== "connecting") return;
    this.readyState = "open";
    this.onopen?.();
  }
  send(data) {
    this.queue.push(data);
  }
  close() {
    this.readyState = "closed";
  }
}

// ---- two clients and what happens to them

const { connect } = await import(`data:text/javascript;base64,${source.toString("base64")}`);

class Failure extends Error {}
const check = (holds, what) => {
  if (!holds) throw new Failure(what);
};

/** A caller and a callee with an open channel, on which both count up. */
async function pair(seed) {
  random = seeded(seed);
  Math.random = () => random();
  clock.timers.clear();
  trace.length = 0;
  world = { hub: new Hub(), hosts: [new Host("caller"), new Host("callee")], sockets: new Set(), connections: [], serial: 0, began: clock.now };
  for (const host of world.hosts) {
    globalThis.addEventListener = (type, act) => host.listeners.push([type, act]);
    const opening = connect({ server: "server:1", WebSocket: socketOf(host), RTCPeerConnection: connectionOf(host) });
    await run(500);
    host.client = await opening;
    host.client.onstate = ({ state }) => {
      note(host.name, "client", state);
      if (state === "online") host.registered = clock.now;
    };
  }
  const [caller, callee] = world.hosts;
  callee.client.oncall = ({ channel }) => keep(callee, channel);
  callee.client.listen();
  caller.client.call(callee.client.tag).then((channel) => keep(caller, channel), (error) => note("call", error));
  check(await run(5_000, () => caller.channel && callee.channel), "the call does not open");
  await run(1_000);
  return world.hosts;
}

function keep(host, channel) {
  Object.assign(host, { channel, sent: 0, received: 0 });
  channel.onstate = ({ state }) => note(host.name, "channel", state);
  channel.onclose = ({ error }) => note(host.name, "channel closed", error);
  channel.onmessage = ({ data }) => {
    check(Number(data) === host.received, `${host.name} received ${data} instead of ${host.received}`);
    host.received += 1;
  };
  setInterval(() => channel.readyState === "open" && channel.send(String(host.sent++)), 100);
}

const passes = () => world.connections[0].passes(world.connections[1]);
const settled = () => world.hosts.every(({ channel, connection }) => channel.state === "connected" && connection.signalingState === "stable") && passes();

/** Waits until all is well and has been for ten seconds, and all that was sent has come. */
async function recovers(ms) {
  check(await run(ms, settled), `no path within ${ms} ms`);
  const took = clock.now;
  await run(10_000);
  check(await run(5_000, settled), "the path does not last"); // a renewal may be under way
  const [caller, callee] = world.hosts;
  const missing = [caller.sent - callee.received, callee.sent - caller.received];
  check(missing.every((count) => count <= 2), `${missing} messages are missing`);
  return took;
}

/** Nothing passes for `ms`, then there is another address; `notified` is whether the browser notices, `refuses` whether sockets fail at once. */
async function outage(host, ms, { notified = false, moved = true, refuses = notified } = {}) {
  note(host.name, "down");
  host.up = false;
  host.refuses = refuses;
  if (notified) host.emit("offline");
  await run(ms);
  host.up = true;
  if (moved) host.move();
  note(host.name, "up");
  if (notified) host.emit("online");
}

async function restart(ms) {
  note("server down");
  world.hub.stop();
  await run(ms);
  world.hub.up = true;
  note("server up");
}

const scenarios = {
  async "a new address of the caller after five silent seconds"() {
    const [caller] = await pair(1);
    await outage(caller, 5_000);
    await recovers(12_000);
  },
  async "a new address of the callee after five silent seconds"() {
    const [, callee] = await pair(2);
    await outage(callee, 5_000);
    await recovers(12_000);
  },
  async "a channel does not report connected while its offer has not been seen"() {
    const [caller] = await pair(3);
    await outage(caller, 5_000);
    let lied = false;
    // Until ICE has missed the path, nobody can know.
    check(await run(10_000, () => caller.channel.state === "interrupted"), "never interrupted");
    await run(20_000, () => {
      lied ||= caller.channel.state === "connected" && !passes();
      return settled();
    });
    check(!lied, "connected, and nothing passes");
    await recovers(1_000);
  },
  async "data passes within three seconds after both are registered again at a restarted server"() {
    for (const down of [100, 1_000, 3_000, 20_000]) {
      const hosts = await pair(4);
      for (const host of hosts) host.registered = undefined;
      await restart(down);
      check(await run(60_000, () => hosts.every(({ registered }) => registered)), "not registered");
      await recovers(3_000);
    }
  },
  async "an interrupted path probes the WebSocket at once"() {
    const [caller] = await pair(5);
    await outage(caller, 0);
    check(await run(10_000, () => caller.channel.state === "interrupted"), "never interrupted");
    await recovers(5_000);
  },
  async "the next try comes at once when the network is back after 45 seconds"() {
    for (const [ms, refuses] of [[45_000, true], [45_000, false], [35_000, false], [40_000, false]]) {
      const [caller] = await pair(6);
      await outage(caller, ms, { notified: true, refuses });
      check(await run(200, () => caller.client.state === "online"), "not back within 200 ms");
      await recovers(3_000);
    }
  },
  async "the next try comes within four seconds when the browser does not notice that the network is back"() {
    for (const ms of [45_000, 60_000, 75_000, 90_000]) {
      const [caller] = await pair(7);
      await outage(caller, ms);
      // A try that began before takes ten seconds to fail.
      check(await run(14_200, () => caller.client.state === "online"), "not back");
      await recovers(5_000);
    }
  },
  async "offers that still wait when a call ends leave nothing behind"() {
    const [caller, callee] = await pair(9);
    const { hub, connections } = world;
    const unknown = new Set();
    const handle = hub.handle.bind(hub);
    hub.handle = (socket, message) => (message.code === 205 ? void unknown.add(message.token) : handle(socket, message));
    connections[1].createAnswer = () => new Promise(() => {}); // the first is being answered, the others wait for that
    const notify = (message) => hub.send(hub.tags.get(callee.client.tag), message);
    const { sdp } = connections[0].localDescription;
    const tokens = ["late1", "late2", "late3"];
    tokens.forEach((token, at) => notify({ t: 51, mid: 5e9 + at, token, params: { ltag: caller.client.tag, sdp } }));
    await run(1_000);
    callee.channel.close();
    await run(10_000, () => callee.channel.readyState === "closed");
    await run(10_000);
    for (const token of tokens) notify({ t: 53, token });
    await run(1_000);
    check(tokens.every((token) => unknown.has(token)), `only ${[...unknown]} are forgotten`);
  },
  async "both offer in the same moment"() {
    await pair(8);
    for (const host of world.hosts) host.move();
    await recovers(20_000);
  },
};

async function byChance(seed) {
  const hosts = await pair(seed);
  const events = 1 + Math.floor(random() * 4);
  for (let event = 0; event < events; event++) {
    await run(between(0, 15_000));
    const host = hosts[random() < 0.6 ? 0 : 1];
    const options = { notified: random() < 0.4, moved: random() < 0.7 };
    const kind = random();
    if (kind < 0.5) await outage(host, between(0, 20_000), options);
    else if (kind < 0.7) await restart(between(50, 5_000));
    else if (kind < 0.85) host.move();
    else for (const socket of [...world.sockets]) if (random() < 0.6) socket.gone();
  }
  const began = clock.now;
  return (await recovers(45_000)) - began;
}

async function attempt(name, act) {
  try {
    return await act();
  } catch (error) {
    console.log([...trace.slice(-150), `FAILED ${name}: ${error instanceof Failure ? error.message : error.stack}`].join("\n"));
    process.exit(1);
  }
}
process.on("uncaughtException", (error) => {
  console.log([...trace.slice(-150), `FAILED: ${error.stack}`].join("\n"));
  process.exit(1);
});

let count = 0;
for (const [name, act] of Object.entries(scenarios)) {
  await attempt(name, act);
  count += 1;
}
let longest = 0;
for (let seed = Number(first); seed < Number(first) + Number(seeds); seed++) longest = Math.max(longest, await attempt(`seed ${seed}`, () => byChance(seed)));
console.log(JSON.stringify({ event: "recovered", scenarios: count, seeds: Number(seeds), longest: Math.round(longest) }));
