// The client of a ginnel server, for browsers and for Node with a WebRTC package. One module, nothing to build.
// Usage: web/README.md. Protocol: docs/wire/signaling.md.

const REGISTER = 1, HEARTBEAT = 2, CALL = 4, CHALLENGE = 5, NOTIFY = 51, ANSWERED = 52, STATUS = 53, TRICKLE = 54, END = 55, WATCH = 60;

const MS = {
  heartbeat: 15_000,
  answer: 10_000, // from a request to its answer
  proof: 3_000, // the same for a heartbeat after the network has changed
  open: 10_000, // opening a WebSocket
  consent: 5_000, // the server's time limit for a callee is 7.5 s
  offer: 9_000, // from an acknowledged offer to its answer, for the same reason
  call: 30_000, // from t=4 to an open channel
  patience: 120_000, // from a lost path to the end of the channel
  linger: 5_000, // a closed channel sends what is queued
  gather: 10, // candidates found within this time share a message
  quiet: 30_000, // a registration of this age resets the back-off
  fresh: 12 * 3600_000, // ICE servers; their credentials expire after 24 h
};
const BACK_OFF = { first: 500, most: 30_000, urgent: 4_000 }; // urgent: while a path is interrupted
const RENEWALS = 8; // restarts of a path that stays connected
const MAX = {
  sessions: 64, // the server's limit for one tag
  waiting: 16, // channels that the iterator of listen() has not returned
  watched: 256, // tags; the server's limit for one connection
  watchBatch: 256, // tags per request
  requests: 256, // requests without an answer
  candidates: 64, // queued in each direction
  jobs: 64, // messages waiting for one connection
  batch: 32, // candidates per message
  candidate: 256, // bytes
  sdp: 49_152, // bytes
  inbox: 1 << 20, // bytes of messages before there is a listener
  overhead: 64, // bytes added for each of them
  unsent: 1 << 20, // bytes queued for the WebSocket
  buffered: 8 << 20, // bytes queued for a channel
  relayErrors: 8, // kept per gathering
};

/** @type {Record<number, [import("./ginnel.js").ErrorKind, string]>} */
const CODES = {
  201: ["malformed", "the server could not read a message"],
  202: ["unknown-tag", "the server no longer has this client's tag"],
  203: ["not-online", "this tag is not online"],
  204: ["not-allowed", "refused: the access key is wrong, or the other side does not accept the call"],
  205: ["bad-token", "this call is over"],
  206: ["too-many", "too many at once: try later"],
  207: ["no-answer", "the other side is registered and did not answer"],
  208: ["unsupported", "the server does not support this message"],
  209: ["internal", "the server failed"],
  210: ["replaced", "a newer client has registered with the same secret"],
  211: ["revoked", "an operator has revoked this client's tag"],
};

const NOT_ALLOWED = 204;
const REPLACED = 210;
const REVOKED = 211;
/** With these codes the offer has not reached the other side. */
const UNDELIVERED = [201, 202, 203, 204, 206, 208];

/** An error: `kind`, the server's `code` or 0, `stage`, and a message for users. */
export class GinnelError extends Error {
  /**
   * @param {import("./ginnel.js").ErrorKind} kind
   * @param {string} message
   * @param {{ code?: number, stage?: import("./ginnel.js").Stage, relay?: import("./ginnel.js").RelayError }} [more]
   */
  constructor(kind, message, { code = 0, stage = "signal", relay } = {}) {
    super(message);
    this.name = "GinnelError";
    this.kind = kind;
    this.code = code;
    this.stage = stage;
    this.relay = relay;
  }
}

function refusal({ code, em }) {
  const [kind, text] = CODES[code] ?? ["internal", `the server answered ${code}`];
  return new GinnelError(kind, em ? `${text} (${code} ${em})` : `${text} (${code})`, { code });
}

class FieldEvent extends Event {
  constructor(type, fields) {
    super(type);
    for (const [name, value] of Object.entries(fields)) Object.defineProperty(this, name, { value, enumerable: true });
  }
}

class Emitter extends EventTarget {
  /** Calls the handler `on…`, then the listeners. */
  _emit(type, fields) {
    const event = new FieldEvent(type, fields);
    try {
      this["on" + type]?.(event);
    } catch (error) {
      // As for a listener: the page sees the error, and this module continues.
      queueMicrotask(() => {
        throw error;
      });
    }
    this.dispatchEvent(event);
  }
}

/** A promise with its resolve and reject functions. */
function deferred() {
  const ends = {};
  ends.promise = new Promise((resolve, reject) => Object.assign(ends, { resolve, reject }));
  ends.promise.catch(() => {}); // a rejection without a waiter is no error
  return ends;
}

/** `promise`, or the error after `ms`. */
function within(promise, ms, error) {
  let timer;
  const late = new Promise((_, reject) => (timer = setTimeout(() => reject(error()), ms)));
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

const tokenOf = (message) => message.token ?? message.params?.token ?? message.extra?.token;

/** Converts `host`, `host:port` or a URL to the URL of the WebSocket. */
function socketUrl(server) {
  const page = globalThis.location;
  if (server === undefined && !page?.host) throw new GinnelError("malformed", "`server` is missing");
  const text = String(server ?? page.origin);
  const bare = !/^[a-z]+:\/\//i.test(text);
  let url;
  try {
    url = new URL(bare ? `${page?.protocol === "https:" ? "https" : "http"}://${text}` : text);
  } catch {
    throw new GinnelError("malformed", `not a host, host:port or URL: ${text}`);
  }
  if (bare && !/:\d+$/.test(text)) url.port = "3478";
  const secure = url.protocol === "https:" || url.protocol === "wss:";
  return `${secure ? "wss" : "ws"}://${url.host}${url.pathname === "/" ? "/ws" : url.pathname}`;
}

/** Bytes as base64url without padding. */
function base64(bytes) {
  return btoa(String.fromCharCode(...new Uint8Array(bytes))).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function freshSecret() {
  return base64(globalThis.crypto.getRandomValues(new Uint8Array(24)));
}

/** Creates a key pair for `connect({ identity })`; `undefined` without Ed25519 or in an insecure context. */
export async function createIdentity() {
  try {
    return await globalThis.crypto.subtle.generateKey("Ed25519", false, ["sign", "verify"]);
  } catch {
    return undefined;
  }
}

/** The identity of an SDP session: its origin and its certificates. */
function sessionOf(sdp) {
  const origin = /^o=(\S+ \S+)/m.exec(sdp)?.[1];
  const prints = [...sdp.matchAll(/^a=fingerprint:(\S+ \S+)/gm)].map(([, print]) => print.toLowerCase());
  return `${origin} ${[...new Set(prints)].sort()}`;
}

/** Error codes of a relay (RFC 8656 section 19, RFC 8489 section 14.8); 701 is the browser's. */
const RELAY_ERRORS = {
  400: "the relay does not understand this browser",
  401: "the relay refused the credentials: the key or the `iceServers` are wrong or have expired",
  403: "the relay refused: forbidden",
  437: "the relay already has an allocation for this address",
  438: "the relay refused every nonce as stale",
  441: "the relay refused the credentials: they belong to another allocation",
  486: "the relay has no more allocations for this user: close connections, or raise its limit",
  508: "the relay has no more ports or memory: try later",
  701: "the relay does not answer: is its port, or UDP, blocked?",
};

/** The most useful error of a relay: a refusal rather than a timeout. */
const relayError = (errors) => errors.find(({ errorCode }) => errorCode < 700) ?? errors[0];

/** The path in use: `relay` if either end is relayed. */
async function pathOf(connection) {
  const stats = await connection.getStats();
  const entries = [...stats.values()];
  const chosen = entries.find(({ type, selectedCandidatePairId }) => type === "transport" && selectedCandidatePairId);
  const pair = chosen
    ? stats.get(chosen.selectedCandidatePairId)
    : entries.find((entry) => entry.type === "candidate-pair" && entry.state === "succeeded" && (entry.selected ?? entry.nominated));
  if (!pair) return undefined;
  const ends = [pair.localCandidateId, pair.remoteCandidateId].map((id) => stats.get(id)?.candidateType);
  return ends.includes("relay") ? "relay" : "direct";
}

/** The signalling connection: registers, sends requests and heartbeats, and reconnects. */
class SignalingConnection {
  tag = "";
  iceServers = [];
  isOnline = false;
  #options;
  #hooks;
  #url;
  #socket;
  #pending = new Map(); // mid → the request without an answer
  #mid = 0;
  #attempts = 0;
  #since = 0; // time of the registration
  #online = deferred();
  #ever = false;
  #closed = false;
  #retry;
  #beat;
  #epoch; // the number of this client's session
  #proving = false;
  #onNetwork = ({ type }) => this.#networkChanged(type);

  constructor(options, hooks) {
    this.#options = options;
    this.#hooks = hooks;
    this.#url = socketUrl(options.server);
    for (const change of ["online", "offline"]) globalThis.addEventListener?.(change, this.#onNetwork);
  }

  /** Checks whether the server still answers. */
  async probe() {
    if (!this.isOnline || this.#proving) return;
    this.#proving = true;
    await this.#heartbeat(MS.proof);
    this.#proving = false;
  }

  /** Opens the WebSocket and registers. */
  open() {
    // A reconnecting client is newer than its former session.
    if (this.#epoch !== undefined) this.#epoch += 1;
    this.#hooks.state("connecting");
    const done = deferred();
    let socket;
    try {
      socket = new this.#options.WebSocket(this.#url);
    } catch (error) {
      done.reject(new GinnelError("unreachable", `no WebSocket to ${this.#url}: ${error.message}`));
      return done.promise;
    }
    this.#socket = socket;
    const late = setTimeout(() => socket.close(), MS.open);
    socket.onopen = () => {
      clearTimeout(late);
      this.register().then(done.resolve, (error) => {
        done.reject(error);
        this.#drop(socket);
      });
    };
    socket.onmessage = ({ data }) => this.#read(socket, data);
    socket.onerror = () => {};
    socket.onclose = () => {
      clearTimeout(late);
      done.reject(new GinnelError("unreachable", `no WebSocket to ${this.#url}: is the server running?`));
      this.#lost(socket);
    };
    return done.promise;
  }

  /** Registers, or fetches new ICE servers for the same tag. */
  async register() {
    const own = await this.#ownIceServers();
    const { extra } = await this.request({ t: REGISTER, params: await this.#registration() });
    this.tag = extra.tag;
    this.#epoch = extra.epoch ?? this.#epoch;
    this.iceServers = own ?? extra.ice_servers ?? [];
    this.#since = Date.now();
    this.#ever = true;
    this.isOnline = true;
    clearInterval(this.#beat);
    this.#beat = setInterval(() => this.#heartbeat(), MS.heartbeat);
    this.#online.resolve();
    this.#hooks.state("online");
  }

  /** The proof of ownership of the tag: the secret, or a signature by the identity. */
  async #registration() {
    const { secret, identity } = this.#options;
    const key = await this.#key();
    if (!identity) return { key, secret, epoch: this.#epoch };
    const { nonce } = (await this.request({ t: CHALLENGE })).extra;
    const { subtle } = globalThis.crypto;
    const pub = base64(await subtle.exportKey("raw", identity.publicKey));
    const epoch = this.#epoch;
    const text = ["ginnel register", pub, nonce, epoch ?? ""].join("\n");
    const sig = base64(await subtle.sign("Ed25519", identity.privateKey, new TextEncoder().encode(text)));
    return { key, pub, nonce, sig, epoch };
  }

  /** The current key; a function is called at each registration. */
  async #key() {
    const { key } = this.#options;
    return typeof key === "function" ? await key() : key;
  }

  /** The page's own ICE servers; a function is called at each registration. */
  async #ownIceServers() {
    const { iceServers } = this.#options;
    return typeof iceServers === "function" ? await iceServers() : iceServers;
  }

  /** Resolves while the client is registered. */
  online() {
    return this.#online.promise;
  }

  /** Renews ICE servers whose credentials are old. */
  async renewIceServers() {
    if (Date.now() - this.#since > MS.fresh) await this.register();
  }

  /** Sends a request; `early` is called with the answer before any later message is read. */
  request(message, early, ms = MS.answer) {
    const { promise, resolve, reject } = deferred();
    if (this.#pending.size >= MAX.requests) {
      reject(new GinnelError("too-many", "too many requests without an answer"));
      return promise;
    }
    const mid = ++this.#mid;
    const late = () => {
      this.#pending.delete(mid);
      reject(new GinnelError("timeout", "the server did not answer in time"));
    };
    this.#pending.set(mid, { resolve, reject, early, timer: setTimeout(late, ms) });
    if (!this.send({ ...message, mid })) this.#settle(mid, (entry) => entry.reject(this.#offline()));
    return promise;
  }

  /** Sends a message; returns whether it was sent. */
  send(message) {
    const socket = this.#socket;
    if (socket?.readyState !== 1) return false;
    if (socket.bufferedAmount > MAX.unsent) {
      socket.close(); // the server does not read
      return false;
    }
    socket.send(JSON.stringify(message));
    return true;
  }

  close() {
    this.#closed = true;
    for (const change of ["online", "offline"]) globalThis.removeEventListener?.(change, this.#onNetwork);
    clearTimeout(this.#retry);
    clearInterval(this.#beat);
    this.#online.reject(new GinnelError("closed", "this client was closed"));
    this.#socket?.close();
  }

  #offline() {
    return new GinnelError("unreachable", "the connection to the server is lost");
  }

  #settle(mid, act) {
    const entry = this.#pending.get(mid);
    if (!entry) return false;
    this.#pending.delete(mid);
    clearTimeout(entry.timer);
    act(entry);
    return true;
  }

  #read(socket, data) {
    if (socket !== this.#socket) return;
    let message;
    try {
      message = JSON.parse(data);
    } catch {
      return;
    }
    if (message === null || typeof message !== "object") return;
    if (message.code === undefined && !(message.t < 0)) return this.#hooks.request(message);
    const good = (message.code ?? 200) === 200;
    const waited = this.#settle(message.mid, (entry) => {
      if (!good) return entry.reject(refusal(message));
      entry.early?.(message);
      entry.resolve(message);
    });
    if (waited || good) return;
    if ([REPLACED, REVOKED].includes(message.code)) this.#hooks.over(refusal(message));
    else this.#hooks.failure(message);
  }

  async #heartbeat(ms) {
    const socket = this.#socket;
    try {
      await this.request({ t: HEARTBEAT, tag: this.tag }, undefined, ms);
    } catch (error) {
      if (error.code === 202) await this.register().catch(() => this.#drop(socket));
      else if (error.kind === "timeout") this.#drop(socket);
    }
  }

  /** Closes a socket without waiting for the closing handshake. */
  #drop(socket) {
    socket.close();
    this.#lost(socket);
  }

  /** A socket of the former network may be dead, and a failed attempt may work now. */
  #networkChanged(type) {
    if (this.isOnline) return void this.probe();
    if (type !== "online" || !this.#ever) return;
    this.#attempts = 0;
    const socket = this.#socket;
    if (socket) this.#drop(socket);
    this.#now();
  }

  #lost(socket) {
    if (socket !== this.#socket) return;
    this.#socket = undefined;
    clearInterval(this.#beat);
    for (const mid of [...this.#pending.keys()]) this.#settle(mid, (entry) => entry.reject(this.#offline()));
    if (this.#closed || !this.#ever) return;
    if (this.isOnline) {
      if (Date.now() - this.#since > MS.quiet) this.#attempts = 0;
      this.isOnline = false;
      this.#online = deferred();
    }
    this.#hooks.state("offline");
    const cap = this.#hooks.isUrgent() ? BACK_OFF.urgent : BACK_OFF.most;
    const most = Math.min(cap, BACK_OFF.first * 2 ** this.#attempts++);
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => this.#now(), most * (0.5 + Math.random() / 2));
  }

  #now() {
    if (this.#closed || !this.#ever || this.#socket) return;
    clearTimeout(this.#retry);
    this.open().catch((error) => {
      // Another attempt would have the same answer.
      if ([201, 204, REPLACED, REVOKED].includes(error.code)) this.#hooks.over(error);
    });
  }
}

/**
 * The state of one connection's offers and answers (RFC 8829 section 4.1.8.2), without I/O. Times are passed in as milliseconds.
 *
 * An offer is *pending* from `begin` until its answer or `end`. If both sides offer, the caller's offer wins while the server has acknowledged it
 * and its answer is not overdue; otherwise it yields. An offer that was rolled back may have reached the other side; the two sides then
 * *disagree* until an exchange is complete.
 */
class Negotiation {
  #isCaller;
  #offer; // { id, at, acknowledged }
  #ids = 0;
  #disagrees = false;

  constructor(isCaller) {
    this.#isCaller = isCaller;
  }

  /** Whether an own offer waits for its answer. */
  get isPending() {
    return this.#offer !== undefined;
  }

  /** Whether the server has acknowledged it. */
  get isAcknowledged() {
    return this.#offer?.acknowledged ?? false;
  }

  get id() {
    return this.#offer?.id;
  }

  get disagrees() {
    return this.#disagrees;
  }

  /** Starts an offer; returns its id. */
  begin(now) {
    this.#offer = { id: ++this.#ids, at: now, acknowledged: false };
    return this.#ids;
  }

  /** The server has acknowledged an offer; `false` if it is no longer pending and must be cancelled. */
  acknowledge(id, now) {
    if (this.#offer?.id !== id) {
      this.#disagrees = true;
      return false;
    }
    Object.assign(this.#offer, { at: now, acknowledged: true });
    return true;
  }

  /** An offer has failed; returns whether it was pending and is to be rolled back. */
  end(id, wasDelivered) {
    if (this.#offer === undefined || this.#offer.id !== id) return false;
    this.#offer = undefined;
    this.#disagrees ||= wasDelivered;
    return true;
  }

  /** The other side offers: returns `accept`, `yield` (roll back the own offer and accept) or `refuse`. */
  handleOffer(now) {
    if (this.#offer === undefined) return "accept";
    const { at, acknowledged } = this.#offer;
    return this.#isCaller && acknowledged && now - at < MS.offer ? "refuse" : "yield";
  }

  /** An answer was applied, own or remote. */
  complete() {
    this.#offer = undefined;
    this.#disagrees = false;
  }
}

/** One peer connection with its channel, from the call to the end. Each ICE restart is another call at the server. */
class PeerSession {
  token;
  #client;
  #rtc;
  #isCaller;
  #offers;
  #opened = deferred();
  #channel;
  #session; // the other side's SDP session
  #mid = "0"; // the id of the media section
  #gathered = [];
  #done = false;
  #flush;
  #earlyCandidates = []; // candidates that arrived before their description
  #relayErrors = [];
  #answer; // the last answer: { token, extra }
  #jobs = Promise.resolve();
  #jobCount = 0;
  #lostAt = 0;
  #renews = false; // the relay may have lost the path before ICE detects it
  #repairs = 0;
  #repair;
  #overdue; // timer of an acknowledged offer
  #over = false;

  constructor(client, peer, isCaller) {
    this.#client = client;
    this.peer = peer;
    this.#isCaller = isCaller;
    this.#offers = new Negotiation(isCaller);
  }

  get connection() {
    return this.#rtc;
  }

  get isInterrupted() {
    return this.#lostAt !== 0;
  }

  /** Calls; returns the open channel. */
  async call({ label = "ginnel", timeout = MS.call, ...init }) {
    const late = () => this.#pathError("no path was found in time");
    try {
      await within(this.#start(label, init), timeout, late);
      return await within(this.#opened.promise, timeout, late);
    } catch (error) {
      this.end(error);
      throw error;
    }
  }

  async #start(label, init) {
    await this.#client.wire.online();
    await this.#client.wire.renewIceServers();
    this.#createConnection();
    this.#setChannel(this.#rtc.createDataChannel(label, init));
    await this.#offer(false);
  }

  /** Answers a call if it is accepted; returns the open channel or `undefined`. */
  async answer({ mid, params }, isWanted) {
    const decision = Promise.resolve().then(() => isWanted(this.peer));
    const wanted = await within(decision, MS.consent, () => new Error("too slow")).catch(() => false);
    if (!wanted || this.#over) {
      this.#client.refuse(mid, "not accepted");
      this.end();
      return undefined;
    }
    try {
      this.#createConnection();
      await this.#enqueue(() => this.#accept(mid, params));
      return await within(this.#opened.promise, MS.call, () => this.#pathError("no path was found in time"));
    } catch (error) {
      this.end(error);
      throw error;
    }
  }

  /** Returns whether an offer belongs to this session. */
  isOffer(peer, sdp) {
    return !this.#over && this.peer === peer && this.#session === sessionOf(sdp);
  }

  /** Handles an offer that restarts ICE. */
  handleOffer({ mid, token, params }) {
    return this.#enqueue(async () => {
      const verdict = this.#offers.handleOffer(Date.now());
      if (verdict === "refuse") {
        this.#client.unroute(token);
        return this.#client.refuse(mid, "offered at the same time");
      }
      // The own offer is void, and both sides agree once this exchange is complete.
      this.#offers.end(this.#offers.id, true);
      clearTimeout(this.#overdue);
      this.#client.bind(this, token);
      try {
        await this.#rollBack();
        await this.#accept(mid, params);
      } catch {
        this.#client.bind(this, undefined);
        this.#client.refuse(mid, "this offer cannot be applied");
        await this.#rollBack();
        return this.#repairIn(1_000);
      }
      this.#agreed();
    });
  }

  /** Repeats an answer that may have been lost. */
  repeatAnswer(mid, token) {
    if (this.#answer?.token === token) this.#client.wire.send({ t: -NOTIFY, mid, token, code: 200, extra: this.#answer.extra });
  }

  /** t=52. */
  handleAnswer(token, { sdp, cands = [] }) {
    return this.#enqueue(async () => {
      if (token !== this.token || !this.#offers.isPending || !sdp) return;
      await this.#describe("answer", sdp, cands);
      this.#agreed();
    }).catch((error) => {
      // An invalid answer ends a call; a connection that was open tries again.
      if (!this.#channel?.wasOpen) this.end(error);
      else this.#offerFailed(this.#offers.id, error);
    });
  }

  /** t=54. */
  handleTrickle(token, { cands = [] }) {
    return this.#enqueue(() => (token === this.token ? this.#add(cands) : undefined));
  }

  /** t=53. */
  async handleStatus(mid, token) {
    const state = this.#state();
    const path = { connected: () => pathOf(this.#rtc), failed: () => "failed" }[state];
    const extra = { punching: !["connected", "failed", "closed"].includes(state), path: await path?.() };
    this.#client.wire.send({ t: -STATUS, mid, token, code: 200, extra });
  }

  /** t=55, or a second answer to t=4: the call at the server has ended. A working connection continues. */
  handleCallEnd(token, error) {
    if (token !== this.token) return;
    this.#client.bind(this, undefined);
    if (!this.#channel?.wasOpen) this.end(error);
    else this.#offerFailed(this.#offers.id, error);
  }

  /** The client is registered again. */
  onSignalingUp() {
    if (this.#over || !this.#channel?.wasOpen) return;
    // A restarted relay has lost the path, and ICE detects it only after seconds.
    if (this.#channel.path !== "direct") this.#renews = true;
    this.#repairs = 0;
    if (this.#needsRestart) this.#repairIn(this.#isCaller ? 0 : 500);
  }

  /** The connection to the server is lost, and this side's calls with it. */
  onSignalingDown() {
    if (this.#channel?.wasOpen) this.#offerFailed(this.#offers.id, new GinnelError("unreachable", "the connection to the server is lost"));
  }

  /** Ends the session. */
  end(error, linger = 0) {
    if (this.#over) return;
    this.#over = true;
    clearTimeout(this.#repair);
    clearTimeout(this.#overdue);
    clearTimeout(this.#flush);
    if (this.token !== undefined) {
      const params = { reason: (error?.message ?? "closed").slice(0, 120) };
      this.#client.wire.request({ t: END, token: this.token, params }).catch(() => {});
    }
    this.#client.forget(this);
    this.#opened.reject(error ?? new GinnelError("closed", "the call was ended"));
    setTimeout(() => this.#rtc?.close(), linger);
    this.#channel?.onEnd(error);
  }

  #createConnection() {
    const { RTCPeerConnection, iceTransportPolicy } = this.#client.options;
    const rtc = new RTCPeerConnection({ iceServers: this.#client.iceServers(), iceTransportPolicy });
    this.#rtc = rtc;
    rtc.onicecandidate = ({ candidate }) => this.#gather(candidate);
    rtc.onicecandidateerror = ({ url, errorCode, errorText }) => {
      if (!/^turns?:/.test(url ?? "")) return;
      this.#relayErrors = [{ url, errorCode, errorText }, ...this.#relayErrors].slice(0, MAX.relayErrors);
    };
    rtc.onconnectionstatechange = () => this.#changed();
    rtc.oniceconnectionstatechange = () => this.#changed();
    rtc.ondatachannel = ({ channel }) => {
      if (!this.#channel) this.#setChannel(channel);
    };
  }

  #setChannel(raw) {
    const opened = async () => {
      // The selected pair may change without a change of the state.
      const transport = this.#rtc.sctp?.transport?.iceTransport;
      transport?.addEventListener?.("selectedcandidatepairchange", () => this.#changed());
      // A later update overrides an earlier one.
      while (this.#channel.state === "connecting") await this.#channel.setPath("connected", pathOf(this.#rtc));
      this.#opened.resolve(this.#channel);
      this.#changed();
    };
    this.#channel = new Channel(this, raw, opened);
  }

  #state() {
    if (this.#over) return "closed";
    const rtc = this.#rtc;
    if (!rtc) return "new";
    if (rtc.connectionState) return rtc.connectionState;
    return { checking: "connecting", completed: "connected" }[rtc.iceConnectionState] ?? rtc.iceConnectionState;
  }

  #pathError(what) {
    const count = (sdp) => (sdp?.match(/^a=candidate:/gm) ?? []).length;
    const [ours, theirs] = [count(this.#rtc?.localDescription?.sdp), count(this.#rtc?.remoteDescription?.sdp)];
    const message = `${what} (${ours} candidates here, ${theirs} there); ${this.#advice()}`;
    const relay = this.#relayError();
    return new GinnelError("no-path", message, { stage: this.#rtc?.remoteDescription ? "check" : "signal", relay });
  }

  #isRelayed(description) {
    return / typ relay /.test(description?.sdp ?? "");
  }

  /** Why this side has no relayed address, if it has none. */
  #relayError() {
    return this.#isRelayed(this.#rtc?.localDescription) ? undefined : relayError(this.#relayErrors);
  }

  /** The likely reason for a missing path. */
  #advice() {
    if (!this.#client.iceServers().some(({ urls }) => String(urls).includes("turn"))) {
      return "without an access key there is no relay: pass `key`.";
    }
    const error = this.#relayError();
    if (error) {
      const { url, errorCode, errorText } = error;
      const meaning = RELAY_ERRORS[errorCode] ?? "the relay refused";
      return `${meaning} (${errorCode}${errorText ? ` ${errorText}` : ""}, ${url}).`;
    }
    if (this.#isRelayed(this.#rtc?.localDescription)) {
      return "the relay works, but no data arrived through it: it may refuse the other side's addresses (403, see `allow_peers`).";
    }
    return "is UDP or the relay's port blocked?";
  }

  /** Runs jobs one after the other. */
  #enqueue(job) {
    if (this.#over || this.#jobCount >= MAX.jobs) return Promise.resolve();
    this.#jobCount += 1;
    const done = this.#jobs.then(() => (this.#over ? undefined : job()));
    this.#jobs = done.catch(() => {}).then(() => void (this.#jobCount -= 1));
    return done;
  }

  /** Offers; resolves once the server has acknowledged it. */
  async #offer(iceRestart) {
    let taken;
    await this.#enqueue(async () => {
      if (this.#offers.isPending || (iceRestart && !this.#needsRestart)) return;
      const rtc = this.#rtc;
      const offer = await rtc.createOffer(iceRestart ? { iceRestart } : undefined);
      this.#client.bind(this, undefined);
      this.#refresh();
      await rtc.setLocalDescription(offer);
      const { sdp } = rtc.localDescription;
      if (sdp.length > MAX.sdp) throw new GinnelError("malformed", "the description is too long for the server");
      // Messages that arrive meanwhile must not wait for the server's answer.
      taken = this.#propose(sdp, iceRestart ? MS.proof : MS.answer);
      taken.catch(() => {});
    });
    await taken;
  }

  async #propose(sdp, ms) {
    const { wire, bind, unbind } = this.#client;
    const id = this.#offers.begin(Date.now());
    const early = (answer) => {
      const token = tokenOf(answer);
      if (this.#offers.acknowledge(id, Date.now())) {
        bind(this, token);
        this.#overdue = setTimeout(() => this.#offerFailed(id, new GinnelError("no-answer", "the other side did not answer")), MS.offer);
        return;
      }
      unbind(token);
      this.#repairIn(0);
    };
    try {
      await wire.request({ t: CALL, params: { tag: wire.tag, rtag: this.peer, sdp } }, early, ms);
    } catch (error) {
      this.#offerFailed(id, error);
      throw error;
    }
    this.#flushIn(0);
  }

  /** Rolls a failed offer back, and schedules another one if it is needed. */
  #offerFailed(id, error) {
    if (this.#over || !this.#offers.end(id, !UNDELIVERED.includes(error.code))) return;
    clearTimeout(this.#overdue);
    if (this.token !== undefined) this.#client.unbind(this.token);
    this.#client.bind(this, undefined);
    this.#enqueue(() => (this.#offers.isPending ? undefined : this.#rollBack())).catch(() => {});
    if (!this.#channel?.wasOpen) return;
    // If both offered at once, the other side's offer is in flight.
    const wait = error.code === NOT_ALLOWED ? 2_000 : Math.min(500 * 2 ** this.#repairs, 8_000);
    this.#repairIn(wait + (this.#isCaller ? 0 : 500));
  }

  async #rollBack() {
    const rtc = this.#rtc;
    if (rtc.signalingState === "have-local-offer") await rtc.setLocalDescription({ type: "rollback" });
    if (rtc.signalingState === "have-remote-offer") await rtc.setRemoteDescription({ type: "rollback" });
    this.#refresh();
  }

  async #accept(mid, { sdp, cands = [] }) {
    await this.#describe("offer", sdp, cands);
    await this.#rtc.setLocalDescription(await this.#rtc.createAnswer());
    const extra = { sdp: this.#rtc.localDescription.sdp };
    this.#answer = { token: this.token, extra };
    this.#client.wire.send({ t: -NOTIFY, mid, token: this.token, code: 200, extra });
    this.#flushIn(0);
  }

  async #describe(type, sdp, cands) {
    await this.#rtc.setRemoteDescription({ type, sdp });
    this.#session = sessionOf(sdp);
    this.#mid = /^a=mid:(\S+)/m.exec(sdp)?.[1] ?? "0";
    await this.#add([...cands, ...this.#earlyCandidates.splice(0)]);
  }

  async #add(cands) {
    const rtc = this.#rtc;
    if (!rtc?.remoteDescription || rtc.signalingState === "have-local-offer") {
      this.#earlyCandidates.push(...cands.slice(0, Math.max(0, MAX.candidates - this.#earlyCandidates.length)));
      return;
    }
    for (const candidate of cands) {
      // An unusable candidate does not affect the others.
      await Promise.resolve(rtc.addIceCandidate({ candidate, sdpMid: this.#mid, sdpMLineIndex: 0 })).catch(() => {});
    }
  }

  /** Drops the candidates of the former call. */
  #refresh() {
    this.#gathered = [];
    this.#done = false;
    this.#earlyCandidates = [];
    this.#relayErrors = [];
  }

  #gather(candidate) {
    const text = candidate?.candidate;
    if (!candidate) this.#done = true;
    else if (text && text.length <= MAX.candidate && this.#gathered.length < MAX.candidates) this.#gathered.push(text);
    this.#flushIn(MS.gather);
    // Without an own candidate a relay-only call cannot succeed.
    const none = !candidate && !/^a=candidate:/m.test(this.#rtc.localDescription?.sdp ?? "");
    if (none && !this.#channel?.wasOpen && this.#relayError()) this.end(this.#pathError("there is no path"));
  }

  #flushIn(ms) {
    if (!this.#over) this.#flush ??= setTimeout(() => this.#trickle(), ms);
  }

  async #trickle() {
    this.#flush = undefined;
    const { token } = this;
    if (token === undefined || (this.#gathered.length === 0 && !this.#done)) return;
    const cands = this.#gathered.splice(0, MAX.batch);
    const done = this.#done && this.#gathered.length === 0;
    if (done) this.#done = false;
    try {
      await this.#client.wire.request({ t: TRICKLE, token, params: { cands, ...(done && { done }) } });
    } catch (error) {
      // With another code the call has ended, or is repaired as a whole.
      if (error.code === 206 && token === this.token) {
        this.#gathered.unshift(...cands);
        this.#done ||= done;
        return this.#flushIn(1_100);
      }
    }
    if (this.#gathered.length > 0) this.#flushIn(0);
  }

  #changed() {
    const state = this.#state();
    if (this.#over) return;
    if (!this.#channel?.wasOpen) {
      if (state === "failed") this.end(this.#pathError("every path failed"));
      return;
    }
    if (state === "closed") return this.end();
    if (state === "connected") {
      // Checks may succeed with an offer that the other side has not applied; data on such a pair is lost.
      if (this.#lostAt && (this.#offers.isPending || this.#offers.disagrees || !this.#isOfThisExchange())) return;
      this.#connected();
    } else if (state === "disconnected" || state === "failed") {
      if (!this.#lostAt) this.#client.wire.probe();
      this.#lostAt ||= Date.now();
      this.#channel.setPath("interrupted");
      // The caller restarts; the callee only if the caller does not.
      const wait = (state === "failed" ? 0 : 2_000) + (this.#isCaller ? 0 : 4_000);
      if (this.#repair === undefined) this.#repairIn(wait);
    }
  }

  /** Whether ICE must be restarted: the path is lost, may be lost, or the two sides disagree about it. */
  get #needsRestart() {
    return this.#lostAt !== 0 || this.#renews || this.#offers.disagrees;
  }

  /** Whether the pair in use belongs to the descriptions that both sides have. */
  #isOfThisExchange() {
    const { local, remote } = this.#rtc.sctp?.transport?.iceTransport?.getSelectedCandidatePair?.() ?? {};
    const isOf = (candidate, description) =>
      !candidate?.usernameFragment || (description?.sdp ?? "").includes(`a=ice-ufrag:${candidate.usernameFragment}\r`);
    return isOf(local, this.#rtc.localDescription) && isOf(remote, this.#rtc.remoteDescription);
  }

  #connected() {
    this.#lostAt = 0;
    if (!this.#needsRestart) this.#settled();
    this.#channel.setPath("connected", pathOf(this.#rtc));
  }

  /** Both sides have the same descriptions. */
  #agreed() {
    clearTimeout(this.#overdue);
    this.#offers.complete();
    this.#renews = false;
    if (this.#channel?.wasOpen) this.#changed();
    if (this.#lostAt) this.#repairIn(Math.min(3_000 * 2 ** this.#repairs, 15_000) + (this.#isCaller ? 0 : 2_000));
  }

  #settled() {
    this.#repairs = 0;
    clearTimeout(this.#repair);
    this.#repair = undefined;
  }

  #repairIn(ms) {
    clearTimeout(this.#repair);
    if (!this.#over) this.#repair = setTimeout(() => this.#restart(), ms);
  }

  /** Restarts ICE repeatedly until it is connected or `patience` ends. */
  async #restart() {
    this.#repair = undefined;
    const { wire, options } = this.#client;
    if (this.#over) return;
    if (this.#state() === "connected" && !this.#offers.isPending && !this.#offers.disagrees && !this.#renews) return this.#connected();
    if (this.#lostAt && Date.now() - this.#lostAt > options.patience) {
      return this.end(this.#pathError("the path was lost and did not come back"));
    }
    if (!this.#lostAt && this.#repairs >= RENEWALS) return;
    this.#repairIn(Math.min(3_000 * 2 ** this.#repairs++, 15_000) + (this.#isCaller ? 0 : 2_000));
    // A pending offer has its own timeout.
    if (!wire.isOnline || this.#offers.isPending) return;
    try {
      await wire.renewIceServers();
      this.#rtc.setConfiguration?.({ iceServers: this.#client.iceServers(), iceTransportPolicy: options.iceTransportPolicy });
      await this.#offer(true);
    } catch {
      // The next attempt is already scheduled.
    }
  }
}

/** User-Initiated Abort (RFC 9260 3.3.10.12): the other side has closed its connection. */
const CLOSED_BY_USER = 12;

/** An open data channel to a peer. */
export class Channel extends Emitter {
  wasOpen = false;
  #session;
  #raw;
  #path;
  #state = "connecting";
  #turn = 0; // the number of the newest path update
  #inbox = [];
  #inboxBytes = 0;
  #hasListener = false;
  #onmessage = null;
  #closed = deferred();
  #error;

  constructor(session, raw, opened) {
    super();
    this.#session = session;
    this.#raw = raw;
    raw.binaryType = "arraybuffer";
    raw.bufferedAmountLowThreshold = MAX.unsent;
    raw.onopen = () => {
      if (this.wasOpen) return;
      this.wasOpen = true;
      opened();
    };
    raw.onmessage = ({ data }) => this.#receive(data);
    raw.onclose = () => session.end(this.#error);
    raw.onerror = ({ error }) => {
      if (error?.sctpCauseCode === CLOSED_BY_USER) return;
      this.#error = new GinnelError("closed", error?.message ?? "the data channel failed", { stage: "channel" });
    };
    if (raw.readyState === "open") queueMicrotask(raw.onopen);
  }

  /** @returns {string} the other side's tag */
  get peer() {
    return this.#session.peer;
  }

  /** @returns {string} */
  get label() {
    return this.#raw.label;
  }

  /** @returns {RTCDataChannelState} */
  get readyState() {
    return this.#state === "closed" ? "closed" : this.#raw.readyState;
  }

  /** @returns {number} bytes */
  get bufferedAmount() {
    return this.#raw.bufferedAmount;
  }

  /** @returns {import("./ginnel.js").ChannelState} */
  get state() {
    return this.#state;
  }

  /** @returns {import("./ginnel.js").Path | undefined} */
  get path() {
    return this.#path;
  }

  /** @returns {RTCPeerConnection} */
  get connection() {
    return this.#session.connection;
  }

  get onmessage() {
    return this.#onmessage;
  }

  set onmessage(handler) {
    this.#onmessage = handler;
    if (handler) this.#flow();
  }

  addEventListener(type, listener, options) {
    super.addEventListener(type, listener, options);
    if (type === "message" && listener) this.#flow();
  }

  /** @param {string | Blob | ArrayBuffer | ArrayBufferView} data */
  send(data) {
    const size = typeof data === "string" ? data.length : (data.byteLength ?? data.size);
    if (this.readyState !== "open") throw new GinnelError("closed", "this channel is closed", { stage: "channel" });
    const most = this.connection.sctp?.maxMessageSize ?? 65_536;
    if (size > most) throw new GinnelError("too-big", `a message may have at most ${most} bytes`, { stage: "channel" });
    if (this.bufferedAmount + size > MAX.buffered) {
      const text = `${MAX.buffered} bytes are queued: await drained()`;
      throw new GinnelError("queue-full", text, { stage: "channel" });
    }
    this.#raw.send(data);
  }

  /** Resolves once at most 1 MiB is queued. */
  async drained() {
    while (this.readyState === "open" && this.bufferedAmount > MAX.unsent) {
      const low = new Promise((resolve) => (this.#raw.onbufferedamountlow = resolve));
      await Promise.race([low, this.#closed.promise]);
    }
    if (this.readyState !== "open") throw new GinnelError("closed", "this channel is closed", { stage: "channel" });
  }

  /** Closes it after the queued messages were sent. */
  close() {
    if (this.#state === "closed") return;
    // The connection stays open until the other side has received everything.
    this.#raw.close();
    setTimeout(() => this.#session.end(), MS.linger);
  }

  /** Sets state and path. */
  async setPath(state, path) {
    const turn = ++this.#turn;
    const found = await Promise.resolve(path).catch(() => undefined);
    if (turn !== this.#turn || this.#state === "closed") return;
    if (this.#state === state && this.#path === found) return;
    this.#state = state;
    this.#path = found;
    this._emit("state", { state, path: found });
  }

  /** The session has ended. */
  onEnd(error) {
    if (this.#state === "closed") return;
    const wasOpen = this.wasOpen;
    this.#state = "closed";
    this.#closed.resolve();
    if (!wasOpen) return;
    if (error) this._emit("error", { error });
    this._emit("state", { state: "closed", path: undefined });
    this._emit("close", { error });
  }

  #receive(data) {
    if (this.#hasListener) return this._emit("message", { data });
    // The other side may send before the application has this channel.
    this.#inboxBytes += MAX.overhead + (typeof data === "string" ? data.length : data.byteLength);
    if (this.#inboxBytes > MAX.inbox) {
      const text = "messages arrived without a listener for `message`";
      return this.#session.end(new GinnelError("queue-full", text, { stage: "channel" }));
    }
    this.#inbox.push(data);
  }

  /** Delivers queued messages to the first listener. */
  #flow() {
    if (this.#hasListener) return;
    queueMicrotask(() => {
      if (this.#hasListener) return;
      this.#hasListener = true;
      for (const data of this.#inbox.splice(0)) this._emit("message", { data });
    });
  }
}

/** A registered client. */
export class Client extends Emitter {
  #options;
  #wire;
  #state = "connecting";
  #sessions = new Set();
  #calls = new Map(); // token → session
  #client;
  #listening; // { accept, queue, waiting }
  #watched = new Map(); // tag → online

  /** @param {import("./ginnel.js").Options} options */
  constructor(options) {
    super();
    const { RTCPeerConnection, WebSocket } = globalThis;
    const policy = { iceTransportPolicy: "all", patience: MS.patience };
    this.#options = { RTCPeerConnection, WebSocket, ...policy, ...defined(options) };
    const { secret, identity } = this.#options;
    if (identity && secret) throw new GinnelError("malformed", "a tag is owned by `identity` or by `secret`, not by both");
    if (!identity) this.#options.secret ??= freshSecret();
    for (const name of ["RTCPeerConnection", "WebSocket"]) {
      if (!this.#options[name]) throw new GinnelError("unsupported", `there is no ${name} here: pass one`);
    }
    this.#wire = new SignalingConnection(this.#options, {
      state: (state) => this.#setState(state),
      request: (message) => this.#handleRequest(message).catch((error) => this.#emitError(error)),
      failure: (message) => this.#failed(message),
      over: (error) => this.#end(error),
      isUrgent: () => [...this.#sessions].some((session) => session.isInterrupted),
    });
    this.#client = {
      options: this.#options,
      wire: this.#wire,
      iceServers: () => this.#wire.iceServers,
      refuse: (mid, em) => this.#wire.send({ t: NOTIFY, mid, code: 204, em }),
      bind: (session, token) => this.#bind(session, token),
      unbind: (token) => this.#unbind(token),
      unroute: (token) => this.#calls.delete(token),
      forget: (session) => this.#forget(session),
    };
  }

  /** @returns {string} the tag that others call */
  get tag() {
    return this.#wire.tag;
  }

  /** @returns {string | undefined} the secret that owns the tag, without an identity */
  get secret() {
    return this.#options.secret;
  }

  /** @returns {import("./ginnel.js").ClientState} */
  get state() {
    return this.#state;
  }

  /** @returns {RTCIceServer[]} */
  get iceServers() {
    return this.#client.iceServers();
  }

  /** Registers for the first time. */
  async _open() {
    try {
      await this.#wire.open();
    } catch (error) {
      this.#end();
      throw error;
    }
    return this;
  }

  /**
   * Calls the client that is registered as `tag`.
   *
   * @param {string} tag
   * @param {import("./ginnel.js").CallOptions} [options]
   * @returns {Promise<Channel>} open
   */
  async call(tag, options = {}) {
    if (this.#state === "closed") throw new GinnelError("closed", "this client was closed");
    if (typeof tag !== "string" || tag === "") throw new GinnelError("malformed", "a tag is a string");
    if (this.#sessions.size >= MAX.sessions) throw new GinnelError("too-many", `at most ${MAX.sessions} calls at a time`);
    const session = new PeerSession(this.#client, tag, true);
    this.#sessions.add(session);
    return await session.call(options);
  }

  /**
   * Accepts calls: each is an event `call`, and an element of the returned iterable.
   *
   * @param {import("./ginnel.js").ListenOptions} [options]
   * @returns {import("./ginnel.js").Listening}
   */
  listen({ accept = () => true } = {}) {
    this.#stopListening();
    const listening = { accept, queue: undefined, waiting: [] };
    this.#listening = listening;
    const over = { done: true, value: undefined };
    const stop = async () => {
      if (this.#listening === listening) this.#stopListening();
      return over;
    };
    const next = async () => {
      if (listening.queue?.length) return { done: false, value: listening.queue.shift() };
      if (this.#listening !== listening) return over;
      return await new Promise((resolve) => listening.waiting.push(resolve));
    };
    return {
      [Symbol.asyncIterator]() {
        listening.queue ??= [];
        return { next, return: stop };
      },
      stop: () => void stop(),
    };
  }

  /**
   * Watches tags; changes are events `presence`.
   *
   * @param {string[]} tags
   * @returns {Promise<Map<string, boolean>>} which tags are online now
   */
  async watch(tags) {
    const news = tags.filter((tag) => !this.#watched.has(tag));
    if (this.#watched.size + news.length > MAX.watched) {
      throw new GinnelError("too-many", `at most ${MAX.watched} tags`);
    }
    await this.#wire.online();
    await this.#requestWatch(tags);
    return new Map(tags.map((tag) => [tag, this.#watched.get(tag) ?? false]));
  }

  /** @param {string[]} tags */
  async unwatch(tags) {
    for (const tag of tags) this.#watched.delete(tag);
    if (this.#state === "online") await this.#requestWatch(tags, false);
  }

  /** Closes channels, connection and client. */
  close() {
    this.#end();
  }

  async #requestWatch(tags, watch) {
    for (let at = 0; at < tags.length; at += MAX.watchBatch) {
      const params = { tags: tags.slice(at, at + MAX.watchBatch), watch };
      await this.#wire.request({ t: WATCH, params }, ({ extra }) => this.#updatePresence(extra, watch !== false));
    }
  }

  /** Handles the presence of tags. The first value of a tag is no event. */
  #updatePresence({ online = [], offline = [] } = {}, isAnswer) {
    for (const [tags, isThere] of [[online, true], [offline, false]]) {
      for (const tag of tags) {
        const was = this.#watched.get(tag);
        if (was === isThere || (was === undefined && !isAnswer)) continue;
        this.#watched.set(tag, isThere);
        if (was !== undefined) this._emit("presence", { tag, online: isThere });
      }
    }
  }

  /** Stops listening; channels that were not taken are closed. */
  #stopListening() {
    const listening = this.#listening;
    this.#listening = undefined;
    for (const resolve of listening?.waiting.splice(0) ?? []) resolve({ done: true, value: undefined });
    for (const channel of listening?.queue?.splice(0) ?? []) channel.close();
  }

  #setState(state) {
    if (this.#state === "closed" || this.#state === state) return;
    this.#state = state;
    this._emit("state", { state });
    if (state === "offline") for (const session of [...this.#sessions]) session.onSignalingDown();
    if (state !== "online") return;
    this._emit("open", { tag: this.tag });
    for (const session of [...this.#sessions]) session.onSignalingUp();
    // Watches ended with the connection; changes since then become events.
    if (this.#watched.size > 0) this.#requestWatch([...this.#watched.keys()]).catch((error) => this.#emitError(error));
  }

  #emitError(error) {
    this._emit("error", { error });
  }

  #end(error) {
    if (this.#state === "closed") return;
    this.#stopListening();
    for (const session of [...this.#sessions]) session.end(error);
    this.#wire.close();
    this.#state = "closed";
    if (error) this.#emitError(error);
    this._emit("state", { state: "closed" });
    this._emit("close", { error });
  }

  #bind(session, token) {
    if (session.token !== token) this.#calls.delete(session.token);
    session.token = token;
    if (token === undefined) return;
    if (this.#sessions.has(session)) this.#calls.set(token, session);
    // The session ended before its token arrived.
    else this.#unbind(token);
  }

  /** Ends a call that belongs to no session. */
  #unbind(token) {
    this.#calls.delete(token);
    this.#wire.request({ t: END, token }).catch(() => {});
  }

  #forget(session) {
    this.#bind(session, undefined);
    // Offers that were not handled yet.
    for (const [token, of] of this.#calls) if (of === session) this.#calls.delete(token);
    this.#sessions.delete(session);
  }

  /** Handles a failure that answers no pending request: the second answer to t=4. */
  #failed(message) {
    const session = this.#calls.get(tokenOf(message));
    if (session && message.t === CALL) session.handleCallEnd(tokenOf(message), refusal(message));
  }

  /** Handles a request of the server. */
  async #handleRequest(message) {
    const { t, mid, params, extra } = message;
    const token = tokenOf(message);
    if (t === WATCH) return this.#updatePresence(params, false);
    if (t === NOTIFY) return await this.#handleNotify({ mid, token, params });
    const session = this.#calls.get(token);
    if (t === STATUS && session) return await session.handleStatus(mid, token);
    if (![ANSWERED, STATUS, TRICKLE, END].includes(t)) return;
    if (!session) return void this.#wire.send({ t, mid, token, code: 205, em: "no such call" });
    // Without a mid the server does not wait for an answer.
    if (mid !== undefined) this.#wire.send({ t: -t, mid, token, code: 200 });
    if (t === ANSWERED) await session.handleAnswer(token, extra ?? {});
    if (t === TRICKLE) await session.handleTrickle(token, params ?? {});
    if (t === END) {
      const reason = params?.reason ? `: ${params.reason}` : "";
      session.handleCallEnd(token, new GinnelError("ended", `the other side ended the call${reason}`));
    }
  }

  /** t=51: a new call, or a new offer of an existing session. */
  async #handleNotify({ mid, token, params = {} }) {
    const { ltag, sdp } = params;
    const refuse = (why) => void this.#client.refuse(mid, why);
    const bound = this.#calls.get(token);
    if (bound) return bound.repeatAnswer(mid, token);
    if (typeof sdp !== "string" || typeof ltag !== "string") return refuse("no SDP: this is a WebRTC client");
    const known = [...this.#sessions].find((session) => session.isOffer(ltag, sdp));
    if (known) {
      this.#calls.set(token, known); // its candidates may arrive before the offer is handled
      return await known.handleOffer({ mid, token, params });
    }
    const listening = this.#listening;
    if (!listening) return refuse("not listening");
    if (this.#sessions.size >= MAX.sessions || listening.queue?.length >= MAX.waiting) return refuse("busy");
    const session = new PeerSession(this.#client, ltag, false);
    this.#sessions.add(session);
    this.#bind(session, token);
    const channel = await session.answer({ mid, params }, listening.accept);
    if (channel) this.#deliver(listening, channel);
  }

  #deliver(listening, channel) {
    if (this.#listening !== listening) return channel.close();
    const next = listening.waiting.shift();
    if (next) next({ done: false, value: channel });
    else listening.queue?.push(channel);
    this._emit("call", { channel, from: channel.peer });
  }
}

function defined(options) {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
}

/**
 * Registers at a ginnel server.
 *
 * @param {import("./ginnel.js").Options} [options]
 * @returns {Promise<Client>}
 */
export async function connect(options = {}) {
  return await new Client(options)._open();
}
