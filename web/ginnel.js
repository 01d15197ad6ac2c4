// The client of a ginnel server, for browsers and for Node with a WebRTC package. One module, nothing to build.
// How it is used: web/README.md. What it says on the wire: docs/wire/signaling.md.

const REGISTER = 1, HEARTBEAT = 2, CALL = 4, CHALLENGE = 5, NOTIFY = 51, ANSWERED = 52, QUESTION = 53, TRICKLE = 54, END = 55, WATCH = 60;

const MS = {
  heartbeat: 15_000,
  answer: 10_000, // from a request to its answer
  proof: 3_000, // the same for a heartbeat after the network has changed
  open: 10_000, // of a WebSocket
  consent: 5_000, // the server gives a callee 7.5 s
  offer: 9_000, // from an acknowledged offer to its answer, for the same reason
  call: 30_000, // from t=4 to an open channel
  patience: 120_000, // from a lost path to giving it up
  linger: 5_000, // of a closed channel that still has to send
  gather: 10, // candidates that come together travel together
  quiet: 30_000, // a registration that lasted so long begins the back-off anew
  fresh: 12 * 3600_000, // ICE servers; their credentials end after 24 h
};
const BACK_OFF = { first: 500, most: 30_000, urgent: 4_000 }; // urgent: while a path is interrupted
const RENEWALS = 8; // restarts of a path that is connected all the while
const MAX = {
  links: 64, // as many as the server has for one tag
  waiting: 16, // channels that listen() has not handed out
  watched: 256, // tags; the server takes no more of one connection
  watchBatch: 256, // of one request
  asked: 256, // requests without their answer
  candidates: 64, // held in either direction
  jobs: 64, // messages waiting for one connection
  batch: 32, // candidates of one message
  candidate: 256, // bytes
  sdp: 49_152, // bytes
  inbox: 1 << 20, // bytes of messages that nobody listens to yet
  overhead: 64, // bytes that each of them counts besides its own
  unsent: 1 << 20, // bytes waiting for the WebSocket
  buffered: 8 << 20, // bytes waiting for a channel
  relayErrors: 8, // remembered of one gathering
};

/** @type {Record<number, [import("./ginnel.js").ErrorKind, string]>} */
const CODES = {
  201: ["malformed", "the server could not read a message"],
  202: ["unknown-tag", "the server does not know this client's tag any more"],
  203: ["not-online", "nobody is registered under this tag at the moment"],
  204: ["not-allowed", "refused: the access key is wrong, or the other side does not take the call"],
  205: ["bad-token", "this call is over"],
  206: ["too-many", "too many at once: try later"],
  207: ["no-answer", "the other side is registered and did not answer"],
  208: ["unsupported", "the server does not know this kind of message"],
  209: ["internal", "the server failed"],
  210: ["replaced", "a newer client has registered with the same secret"],
  211: ["revoked", "an operator has taken this client's tag back"],
};

const NOT_ALLOWED = 204;
const REPLACED = 210;
const REVOKED = 211;
/** After these the other side has not taken the offer, and never will. */
const UNDELIVERED = [201, 202, 203, 204, 206, 208];

/** What went wrong: `kind` for programs, `code` of the server or 0, `stage`, and a message for people. */
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

class Notice extends Event {
  constructor(type, fields) {
    super(type);
    for (const [name, value] of Object.entries(fields)) Object.defineProperty(this, name, { value, enumerable: true });
  }
}

class Target extends EventTarget {
  /** Tells the handler `on…`, then the listeners. */
  _emit(type, fields) {
    const event = new Notice(type, fields);
    try {
      this["on" + type]?.(event);
    } catch (error) {
      // As for a listener: the page hears of it, and this module goes on.
      queueMicrotask(() => {
        throw error;
      });
    }
    this.dispatchEvent(event);
  }
}

/** A promise with its ends outside. */
function deferred() {
  const ends = {};
  ends.promise = new Promise((resolve, reject) => Object.assign(ends, { resolve, reject }));
  ends.promise.catch(() => {}); // whoever waits hears of it; nobody has to
  return ends;
}

/** `promise`, or the error after `ms`. */
function within(promise, ms, error) {
  let timer;
  const late = new Promise((_, reject) => (timer = setTimeout(() => reject(error()), ms)));
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

const tokenOf = (message) => message.token ?? message.params?.token ?? message.extra?.token;

/** `host`, `host:port` or a URL, to the address of its WebSocket. */
function socketUrl(server) {
  const page = globalThis.location;
  if (server === undefined && !page?.host) throw new GinnelError("malformed", "`server` is missing");
  const text = String(server ?? page.origin);
  const bare = !/^[a-z]+:\/\//i.test(text);
  let url;
  try {
    url = new URL(bare ? `${page?.protocol === "https:" ? "https" : "http"}://${text}` : text);
  } catch {
    throw new GinnelError("malformed", `this is neither host, host:port nor URL: ${text}`);
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

/** A new key pair for `connect({ identity })`; nothing where there is no Ed25519, or the page is not secure. */
export async function createIdentity() {
  try {
    return await globalThis.crypto.subtle.generateKey("Ed25519", false, ["sign", "verify"]);
  } catch {
    return undefined;
  }
}

/** Which session an SDP belongs to: a new offer of the same session has the same origin and the same certificate. */
function sessionOf(sdp) {
  const origin = /^o=(\S+ \S+)/m.exec(sdp)?.[1];
  const prints = [...sdp.matchAll(/^a=fingerprint:(\S+ \S+)/gm)].map(([, print]) => print.toLowerCase());
  return `${origin} ${[...new Set(prints)].sort()}`;
}

/** What the errors of a relay mean (RFC 8656 section 19, RFC 8489 section 14.8); 701 is the browser's own. */
const RELAY_ERRORS = {
  400: "the relay does not understand this browser",
  401: "the relay refused the credentials: the key or the `iceServers` are wrong or have expired",
  403: "the relay refused: forbidden",
  437: "the relay already has an allocation for this address",
  438: "the relay kept asking for a newer nonce",
  441: "the relay refused the credentials: they belong to another allocation",
  486: "the relay has no more allocations for this user: close connections, or raise its limit",
  508: "the relay has no more ports or memory: try later",
  701: "the relay does not answer: is its port, or UDP, blocked?",
};

/** The error that says most about a relay: a refusal tells more than silence. */
const relayError = (errors) => errors.find(({ errorCode }) => errorCode < 700) ?? errors[0];

/** The path in use: relayed where either end is known to be. */
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

/** The WebSocket: registers, asks, beats, and comes back. */
class Wire {
  tag = "";
  iceServers = [];
  isOnline = false;
  #options;
  #hooks;
  #url;
  #socket;
  #waiting = new Map(); // mid → what waits for its answer
  #mid = 0;
  #attempts = 0;
  #since = 0; // of the registration
  #online = deferred();
  #ever = false;
  #closed = false;
  #retry;
  #beat;
  #epoch; // which of this client's sessions has the tag
  #proving = false;
  #wake = ({ type }) => this.#networkChanged(type);

  constructor(options, hooks) {
    this.#options = options;
    this.#hooks = hooks;
    this.#url = socketUrl(options.server);
    for (const change of ["online", "offline"]) globalThis.addEventListener?.(change, this.#wake);
  }

  /** Finds out at once whether the WebSocket still leads to the server. */
  async probe() {
    if (!this.isOnline || this.#proving) return;
    this.#proving = true;
    await this.#heartbeat(MS.proof);
    this.#proving = false;
  }

  /** Opens the WebSocket and registers. */
  open() {
    // One that comes back proves itself newer than what it was before.
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
      done.reject(new GinnelError("unreachable", `no WebSocket to ${this.#url}: is the server there?`));
      this.#lost(socket);
    };
    return done.promise;
  }

  /** Registers, or gets fresh ICE servers for the same tag. */
  async register() {
    const own = await this.#ownIceServers();
    const { extra } = await this.ask({ t: REGISTER, params: await this.#claim() });
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

  /** What shows whose the tag is: the secret, or a signature by the identity. */
  async #claim() {
    const { secret, identity } = this.#options;
    const key = await this.#key();
    if (!identity) return { key, secret, epoch: this.#epoch };
    const { nonce } = (await this.ask({ t: CHALLENGE })).extra;
    const { subtle } = globalThis.crypto;
    const pub = base64(await subtle.exportKey("raw", identity.publicKey));
    const epoch = this.#epoch;
    const text = ["ginnel register", pub, nonce, epoch ?? ""].join("\n");
    const sig = base64(await subtle.sign("Ed25519", identity.privateKey, new TextEncoder().encode(text)));
    return { key, pub, nonce, sig, epoch };
  }

  /** The key at the moment: one that runs out is asked for anew each time. */
  async #key() {
    const { key } = this.#options;
    return typeof key === "function" ? await key() : key;
  }

  /** Those of the page's own, which may be asked for anew each time, as their credentials end. */
  async #ownIceServers() {
    const { iceServers } = this.#options;
    return typeof iceServers === "function" ? await iceServers() : iceServers;
  }

  /** Resolves while there is a registration. */
  online() {
    return this.#online.promise;
  }

  /** ICE servers whose credentials last. */
  async freshen() {
    if (Date.now() - this.#since > MS.fresh) await this.register();
  }

  /** Sends a request; `early` sees the answer before any later message is read. */
  ask(message, early, ms = MS.answer) {
    const { promise, resolve, reject } = deferred();
    if (this.#waiting.size >= MAX.asked) {
      reject(new GinnelError("too-many", "too many requests without an answer"));
      return promise;
    }
    const mid = ++this.#mid;
    const late = () => {
      this.#waiting.delete(mid);
      reject(new GinnelError("timeout", "the server did not answer in time"));
    };
    this.#waiting.set(mid, { resolve, reject, early, timer: setTimeout(late, ms) });
    if (!this.send({ ...message, mid })) this.#settle(mid, (entry) => entry.reject(this.#offline()));
    return promise;
  }

  /** Sends a message as it is; says whether it went. */
  send(message) {
    const socket = this.#socket;
    if (socket?.readyState !== 1) return false;
    if (socket.bufferedAmount > MAX.unsent) {
      socket.close(); // a server that takes nothing in is as good as gone
      return false;
    }
    socket.send(JSON.stringify(message));
    return true;
  }

  close() {
    this.#closed = true;
    for (const change of ["online", "offline"]) globalThis.removeEventListener?.(change, this.#wake);
    clearTimeout(this.#retry);
    clearInterval(this.#beat);
    this.#online.reject(new GinnelError("closed", "this client was closed"));
    this.#socket?.close();
  }

  #offline() {
    return new GinnelError("unreachable", "the connection to the server is lost");
  }

  #settle(mid, act) {
    const entry = this.#waiting.get(mid);
    if (!entry) return false;
    this.#waiting.delete(mid);
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
      await this.ask({ t: HEARTBEAT, tag: this.tag }, undefined, ms);
    } catch (error) {
      if (error.code === 202) await this.register().catch(() => this.#drop(socket));
      else if (error.kind === "timeout") this.#drop(socket);
    }
  }

  /** Closes a socket without waiting for the goodbye of a server that may be gone. */
  #drop(socket) {
    socket.close();
    this.#lost(socket);
  }

  /** A socket of the network before may be dead, and what has failed there may work here. */
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
    for (const mid of [...this.#waiting.keys()]) this.#settle(mid, (entry) => entry.reject(this.#offline()));
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
      // Asking again would get the same answer.
      if ([201, 204, REPLACED, REVOKED].includes(error.code)) this.#hooks.over(error);
    });
  }
}

/**
 * Whose offer counts, and for how long: what one connection knows of its offers and answers (RFC 8829 section 4.1.8.2). It has no clock and no
 * network: times come in as milliseconds, and what it returns says what to do.
 *
 * An offer *pends* from `begin` until its answer or `end`. The caller's own one wins over the other side's while it is acknowledged by the server
 * and its answer is not overdue; every other one gives way. An offer that was taken back may have reached the other side, which then has what
 * this side has not: the two *disagree* until an exchange is complete.
 */
class Negotiation {
  #isCaller;
  #offer; // { id, at, acknowledged }
  #ids = 0;
  #disagrees = false;

  constructor(isCaller) {
    this.#isCaller = isCaller;
  }

  /** Whether an offer of ours waits for its answer. */
  get isPending() {
    return this.#offer !== undefined;
  }

  /** Whether the server has taken it. */
  get isAcknowledged() {
    return this.#offer?.acknowledged ?? false;
  }

  get id() {
    return this.#offer?.id;
  }

  get disagrees() {
    return this.#disagrees;
  }

  /** An offer leaves; returns its id. */
  begin(now) {
    this.#offer = { id: ++this.#ids, at: now, acknowledged: false };
    return this.#ids;
  }

  /** The server has taken an offer; false where it no longer counts: the other side must be told. */
  acknowledge(id, now) {
    if (this.#offer?.id !== id) {
      this.#disagrees = true;
      return false;
    }
    Object.assign(this.#offer, { at: now, acknowledged: true });
    return true;
  }

  /** An offer has come to nothing; true where it was the one that pends, which is to be rolled back. */
  end(id, wasDelivered) {
    if (this.#offer === undefined || this.#offer.id !== id) return false;
    this.#offer = undefined;
    this.#disagrees ||= wasDelivered;
    return true;
  }

  /** The other side offers: `accept`, `yield` (roll ours back and accept) or `refuse`. */
  meet(now) {
    if (this.#offer === undefined) return "accept";
    const { at, acknowledged } = this.#offer;
    return this.#isCaller && acknowledged && now - at < MS.offer ? "refuse" : "yield";
  }

  /** An answer was taken, theirs or ours. */
  complete() {
    this.#offer = undefined;
    this.#disagrees = false;
  }
}

/** One peer connection with its one channel, from the call to the end, over as many acts of the server as it takes. */
class Link {
  token;
  #home;
  #rtc;
  #isCaller;
  #offers;
  #opened = deferred();
  #channel;
  #session; // of the other side
  #mid = "0"; // the media section's, not a message's
  #gathered = [];
  #done = false;
  #flush;
  #held = []; // candidates from before their description
  #relayErrors = [];
  #answer; // the last one that was given: { token, extra }
  #jobs = Promise.resolve();
  #jobCount = 0;
  #lostAt = 0;
  #renews = false; // whether the relay may have lost the path without ICE knowing it yet
  #repairs = 0;
  #repair;
  #overdue; // of an acknowledged offer
  #over = false;

  constructor(home, peer, isCaller) {
    this.#home = home;
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
    const late = () => this.#unreached("no path was found in time");
    try {
      await within(this.#start(label, init), timeout, late);
      return await within(this.#opened.promise, timeout, late);
    } catch (error) {
      this.end(error);
      throw error;
    }
  }

  async #start(label, init) {
    await this.#home.wire.online();
    await this.#home.wire.freshen();
    this.#begin();
    this.#adopt(this.#rtc.createDataChannel(label, init));
    await this.#offer(false);
  }

  /** Answers a call, if it is wanted; returns the open channel, or nothing. */
  async answer({ mid, params }, isWanted) {
    const asked = Promise.resolve().then(() => isWanted(this.peer));
    const wanted = await within(asked, MS.consent, () => new Error("too slow")).catch(() => false);
    if (!wanted || this.#over) {
      this.#home.refuse(mid, "not accepted");
      this.end();
      return undefined;
    }
    try {
      this.#begin();
      await this.#do(() => this.#accept(mid, params));
      return await within(this.#opened.promise, MS.call, () => this.#unreached("no path was found in time"));
    } catch (error) {
      this.end(error);
      throw error;
    }
  }

  /** Says whether an offer is a new one of this connection's other side. */
  isAt(peer, sdp) {
    return !this.#over && this.peer === peer && this.#session === sessionOf(sdp);
  }

  /** Takes an offer that restarts ICE. */
  reoffer({ mid, token, params }) {
    return this.#do(async () => {
      const verdict = this.#offers.meet(Date.now());
      if (verdict === "refuse") {
        this.#home.unroute(token);
        return this.#home.refuse(mid, "offered at the same time");
      }
      // Nobody will take this side's own one any more, and both agree once this exchange is complete.
      this.#offers.end(this.#offers.id, true);
      clearTimeout(this.#overdue);
      this.#home.bind(this, token);
      try {
        await this.#rollBack();
        await this.#accept(mid, params);
      } catch {
        this.#home.bind(this, undefined);
        this.#home.refuse(mid, "this offer cannot be taken");
        await this.#rollBack();
        return this.#repairIn(1_000);
      }
      this.#agreed();
    });
  }

  /** The server asks again for an answer that may have been lost with a connection. */
  answerAgain(mid, token) {
    if (this.#answer?.token === token) this.#home.wire.send({ t: -NOTIFY, mid, token, code: 200, extra: this.#answer.extra });
  }

  /** t=52. */
  answered(token, { sdp, cands = [] }) {
    return this.#do(async () => {
      if (token !== this.token || !this.#offers.isPending || !sdp) return;
      await this.#describe("answer", sdp, cands);
      this.#agreed();
    }).catch((error) => {
      // One that cannot be used ends a call; a connection that had opened tries anew.
      if (!this.#channel?.wasOpen) this.end(error);
      else this.#fell(this.#offers.id, error);
    });
  }

  /** t=54. */
  trickled(token, { cands = [] }) {
    return this.#do(() => (token === this.token ? this.#add(cands) : undefined));
  }

  /** t=53. */
  async question(mid, token) {
    const state = this.#state();
    const path = { connected: () => pathOf(this.#rtc), failed: () => "failed" }[state];
    const extra = { punching: !["connected", "failed", "closed"].includes(state), path: await path?.() };
    this.#home.wire.send({ t: -QUESTION, mid, token, code: 200, extra });
  }

  /** t=55, or a second answer to t=4: of an act; a connection that is well goes on. */
  actEnded(token, error) {
    if (token !== this.token) return;
    this.#home.bind(this, undefined);
    if (!this.#channel?.wasOpen) this.end(error);
    else this.#fell(this.#offers.id, error);
  }

  /** The server is there again. */
  signalled() {
    if (this.#over || !this.#channel?.wasOpen) return;
    // A relay that was restarted knows nothing of the path that led over it, and ICE does not notice for seconds.
    if (this.#channel.path !== "direct") this.#renews = true;
    this.#repairs = 0;
    if (this.#isWanting) this.#repairIn(this.#isCaller ? 0 : 500);
  }

  /** The connection to the server is lost, and this side's acts with it. */
  unsignalled() {
    if (this.#channel?.wasOpen) this.#fell(this.#offers.id, new GinnelError("unreachable", "the connection to the server is lost"));
  }

  /** Ends all of it. */
  end(error, linger = 0) {
    if (this.#over) return;
    this.#over = true;
    clearTimeout(this.#repair);
    clearTimeout(this.#overdue);
    clearTimeout(this.#flush);
    if (this.token !== undefined) {
      const params = { reason: (error?.message ?? "closed").slice(0, 120) };
      this.#home.wire.ask({ t: END, token: this.token, params }).catch(() => {});
    }
    this.#home.forget(this);
    this.#opened.reject(error ?? new GinnelError("closed", "the call was ended"));
    setTimeout(() => this.#rtc?.close(), linger);
    this.#channel?.ended(error);
  }

  #begin() {
    const { RTCPeerConnection, iceTransportPolicy } = this.#home.options;
    const rtc = new RTCPeerConnection({ iceServers: this.#home.iceServers(), iceTransportPolicy });
    this.#rtc = rtc;
    rtc.onicecandidate = ({ candidate }) => this.#gather(candidate);
    rtc.onicecandidateerror = ({ url, errorCode, errorText }) => {
      if (!/^turns?:/.test(url ?? "")) return;
      this.#relayErrors = [{ url, errorCode, errorText }, ...this.#relayErrors].slice(0, MAX.relayErrors);
    };
    rtc.onconnectionstatechange = () => this.#changed();
    rtc.oniceconnectionstatechange = () => this.#changed();
    rtc.ondatachannel = ({ channel }) => {
      if (!this.#channel) this.#adopt(channel);
    };
  }

  #adopt(raw) {
    const opened = async () => {
      // Another pair may be chosen while the state stays.
      const transport = this.#rtc.sctp?.transport?.iceTransport;
      transport?.addEventListener?.("selectedcandidatepairchange", () => this.#changed());
      // A later word goes before an earlier one.
      while (this.#channel.state === "connecting") await this.#channel.moved("connected", pathOf(this.#rtc));
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

  #unreached(what) {
    const count = (sdp) => (sdp?.match(/^a=candidate:/gm) ?? []).length;
    const [ours, theirs] = [count(this.#rtc?.localDescription?.sdp), count(this.#rtc?.remoteDescription?.sdp)];
    const message = `${what} (${ours} candidates here, ${theirs} there); ${this.#advice()}`;
    const relay = this.#relayError();
    return new GinnelError("no-path", message, { stage: this.#rtc?.remoteDescription ? "check" : "signal", relay });
  }

  #isRelayed(description) {
    return / typ relay /.test(description?.sdp ?? "");
  }

  /** What keeps this side from having a relayed address, where it has none. */
  #relayError() {
    return this.#isRelayed(this.#rtc?.localDescription) ? undefined : relayError(this.#relayErrors);
  }

  /** Why there may be no path, as far as this side knows. */
  #advice() {
    if (!this.#home.iceServers().some(({ urls }) => String(urls).includes("turn"))) {
      return "without an access key there is no relay: pass `key`.";
    }
    const error = this.#relayError();
    if (error) {
      const { url, errorCode, errorText } = error;
      const meaning = RELAY_ERRORS[errorCode] ?? "the relay refused";
      return `${meaning} (${errorCode}${errorText ? ` ${errorText}` : ""}, ${url}).`;
    }
    if (this.#isRelayed(this.#rtc?.localDescription)) {
      return "the relay works, but nothing came through it: it may refuse the other side's addresses (403, see `allow_peers`).";
    }
    return "is UDP or the relay's port blocked?";
  }

  /** What comes in is done one after the other. */
  #do(job) {
    if (this.#over || this.#jobCount >= MAX.jobs) return Promise.resolve();
    this.#jobCount += 1;
    const done = this.#jobs.then(() => (this.#over ? undefined : job()));
    this.#jobs = done.catch(() => {}).then(() => void (this.#jobCount -= 1));
    return done;
  }

  /** Offers; resolves once the server has taken it. */
  async #offer(iceRestart) {
    let taken;
    await this.#do(async () => {
      if (this.#offers.isPending || (iceRestart && !this.#isWanting)) return;
      const rtc = this.#rtc;
      const offer = await rtc.createOffer(iceRestart ? { iceRestart } : undefined);
      this.#home.bind(this, undefined);
      this.#refresh();
      await rtc.setLocalDescription(offer);
      const { sdp } = rtc.localDescription;
      if (sdp.length > MAX.sdp) throw new GinnelError("malformed", "the description is too long for the server");
      // What comes in meanwhile must not wait for the server's answer.
      taken = this.#propose(sdp, iceRestart ? MS.proof : MS.answer);
      taken.catch(() => {});
    });
    await taken;
  }

  async #propose(sdp, ms) {
    const { wire, bind, unbind } = this.#home;
    const id = this.#offers.begin(Date.now());
    const early = (answer) => {
      const token = tokenOf(answer);
      if (this.#offers.acknowledge(id, Date.now())) {
        bind(this, token);
        this.#overdue = setTimeout(() => this.#fell(id, new GinnelError("no-answer", "the other side did not answer")), MS.offer);
        return;
      }
      unbind(token);
      this.#repairIn(0);
    };
    try {
      await wire.ask({ t: CALL, params: { tag: wire.tag, rtag: this.peer, sdp } }, early, ms);
    } catch (error) {
      this.#fell(id, error);
      throw error;
    }
    this.#flushIn(0);
  }

  /** An offer has come to nothing: it is rolled back, and another one made if one is still wanted. */
  #fell(id, error) {
    if (this.#over || !this.#offers.end(id, !UNDELIVERED.includes(error.code))) return;
    clearTimeout(this.#overdue);
    if (this.token !== undefined) this.#home.unbind(this.token);
    this.#home.bind(this, undefined);
    this.#do(() => (this.#offers.isPending ? undefined : this.#rollBack())).catch(() => {});
    if (!this.#channel?.wasOpen) return;
    // Where both offered at once, the other side's is on its way.
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
    this.#home.wire.send({ t: -NOTIFY, mid, token: this.token, code: 200, extra });
    this.#flushIn(0);
  }

  async #describe(type, sdp, cands) {
    await this.#rtc.setRemoteDescription({ type, sdp });
    this.#session = sessionOf(sdp);
    this.#mid = /^a=mid:(\S+)/m.exec(sdp)?.[1] ?? "0";
    await this.#add([...cands, ...this.#held.splice(0)]);
  }

  async #add(cands) {
    const rtc = this.#rtc;
    if (!rtc?.remoteDescription || rtc.signalingState === "have-local-offer") {
      this.#held.push(...cands.slice(0, Math.max(0, MAX.candidates - this.#held.length)));
      return;
    }
    for (const candidate of cands) {
      // One that this end cannot use says nothing about the others.
      await Promise.resolve(rtc.addIceCandidate({ candidate, sdpMid: this.#mid, sdpMLineIndex: 0 })).catch(() => {});
    }
  }

  /** Forgets the candidates of the act before. */
  #refresh() {
    this.#gathered = [];
    this.#done = false;
    this.#held = [];
    this.#relayErrors = [];
  }

  #gather(candidate) {
    const text = candidate?.candidate;
    if (!candidate) this.#done = true;
    else if (text && text.length <= MAX.candidate && this.#gathered.length < MAX.candidates) this.#gathered.push(text);
    this.#flushIn(MS.gather);
    // Without a candidate of its own a call by relay alone would wait for nothing.
    const none = !candidate && !/^a=candidate:/m.test(this.#rtc.localDescription?.sdp ?? "");
    if (none && !this.#channel?.wasOpen && this.#relayError()) this.end(this.#unreached("there is no path"));
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
      await this.#home.wire.ask({ t: TRICKLE, token, params: { cands, ...(done && { done }) } });
    } catch (error) {
      // With another code the act is over, or will be repaired as a whole.
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
      if (state === "failed") this.end(this.#unreached("every path failed"));
      return;
    }
    if (state === "closed") return this.end();
    if (state === "connected") {
      // Checks of an offer that the other side has not seen succeed too, and what goes over such a pair is lost.
      if (this.#lostAt && (this.#offers.isPending || this.#offers.disagrees || !this.#isOfThisExchange())) return;
      this.#connected();
    } else if (state === "disconnected" || state === "failed") {
      if (!this.#lostAt) this.#home.wire.probe();
      this.#lostAt ||= Date.now();
      this.#channel.moved("interrupted");
      // The caller restarts; the callee only where the caller does not.
      const wait = (state === "failed" ? 0 : 2_000) + (this.#isCaller ? 0 : 4_000);
      if (this.#repair === undefined) this.#repairIn(wait);
    }
  }

  /** Whether a restart of ICE is wanted: there is no path, there may be none, or the two sides disagree about it. */
  get #isWanting() {
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
    if (!this.#isWanting) this.#settled();
    this.#channel.moved("connected", pathOf(this.#rtc));
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

  /** Restarts ICE, again and again, until it is connected or patience ends. */
  async #restart() {
    this.#repair = undefined;
    const { wire, options } = this.#home;
    if (this.#over) return;
    if (this.#state() === "connected" && !this.#offers.isPending && !this.#offers.disagrees && !this.#renews) return this.#connected();
    if (this.#lostAt && Date.now() - this.#lostAt > options.patience) {
      return this.end(this.#unreached("the path was lost and did not come back"));
    }
    if (!this.#lostAt && this.#repairs >= RENEWALS) return;
    this.#repairIn(Math.min(3_000 * 2 ** this.#repairs++, 15_000) + (this.#isCaller ? 0 : 2_000));
    // One that pends has an end of its own.
    if (!wire.isOnline || this.#offers.isPending) return;
    try {
      await wire.freshen();
      this.#rtc.setConfiguration?.({ iceServers: this.#home.iceServers(), iceTransportPolicy: options.iceTransportPolicy });
      await this.#offer(true);
    } catch {
      // The next attempt is set already.
    }
  }
}

/** User-Initiated Abort (RFC 9260 3.3.10.12): the other side has closed its connection. */
const CLOSED_BY_USER = 12;

/** An open data channel to a peer. */
export class Channel extends Target {
  wasOpen = false;
  #link;
  #raw;
  #path;
  #state = "connecting";
  #turn = 0; // of the words about it, some of which take time
  #inbox = [];
  #inboxBytes = 0;
  #hears = false;
  #onmessage = null;
  #closed = deferred();
  #error;

  constructor(link, raw, opened) {
    super();
    this.#link = link;
    this.#raw = raw;
    raw.binaryType = "arraybuffer";
    raw.bufferedAmountLowThreshold = MAX.unsent;
    raw.onopen = () => {
      if (this.wasOpen) return;
      this.wasOpen = true;
      opened();
    };
    raw.onmessage = ({ data }) => this.#heard(data);
    raw.onclose = () => link.end(this.#error);
    raw.onerror = ({ error }) => {
      if (error?.sctpCauseCode === CLOSED_BY_USER) return;
      this.#error = new GinnelError("closed", error?.message ?? "the data channel failed", { stage: "channel" });
    };
    if (raw.readyState === "open") queueMicrotask(raw.onopen);
  }

  /** @returns {string} the other side's tag */
  get peer() {
    return this.#link.peer;
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
    return this.#link.connection;
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
    if (size > most) throw new GinnelError("too-big", `one message holds ${most} bytes`, { stage: "channel" });
    if (this.bufferedAmount + size > MAX.buffered) {
      const text = `${MAX.buffered} bytes wait to be sent: await drained()`;
      throw new GinnelError("queue-full", text, { stage: "channel" });
    }
    this.#raw.send(data);
  }

  /** Resolves once at most 1 MiB waits to be sent. */
  async drained() {
    while (this.readyState === "open" && this.bufferedAmount > MAX.unsent) {
      const low = new Promise((resolve) => (this.#raw.onbufferedamountlow = resolve));
      await Promise.race([low, this.#closed.promise]);
    }
    if (this.readyState !== "open") throw new GinnelError("closed", "this channel is closed", { stage: "channel" });
  }

  /** Closes it after what was sent has gone. */
  close() {
    if (this.#state === "closed") return;
    // The connection stays until the other side has all of it and knows that it is over.
    this.#raw.close();
    setTimeout(() => this.#link.end(), MS.linger);
  }

  /** The link's word about the path. */
  async moved(state, path) {
    const turn = ++this.#turn;
    const found = await Promise.resolve(path).catch(() => undefined);
    if (turn !== this.#turn || this.#state === "closed") return;
    if (this.#state === state && this.#path === found) return;
    this.#state = state;
    this.#path = found;
    this._emit("state", { state, path: found });
  }

  /** The link's last word. */
  ended(error) {
    if (this.#state === "closed") return;
    const wasOpen = this.wasOpen;
    this.#state = "closed";
    this.#closed.resolve();
    if (!wasOpen) return;
    if (error) this._emit("error", { error });
    this._emit("state", { state: "closed", path: undefined });
    this._emit("close", { error });
  }

  #heard(data) {
    if (this.#hears) return this._emit("message", { data });
    // The other side may begin while the path is still being read and the application does not have this channel yet.
    this.#inboxBytes += MAX.overhead + (typeof data === "string" ? data.length : data.byteLength);
    if (this.#inboxBytes > MAX.inbox) {
      const text = "messages came in and nobody listens to `message`";
      return this.#link.end(new GinnelError("queue-full", text, { stage: "channel" }));
    }
    this.#inbox.push(data);
  }

  /** From the first listener on nothing waits. */
  #flow() {
    if (this.#hears) return;
    queueMicrotask(() => {
      if (this.#hears) return;
      this.#hears = true;
      for (const data of this.#inbox.splice(0)) this._emit("message", { data });
    });
  }
}

/** A registered client. */
export class Client extends Target {
  #options;
  #wire;
  #state = "connecting";
  #links = new Set();
  #acts = new Map(); // token → link
  #home;
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
    this.#wire = new Wire(this.#options, {
      state: (state) => this.#turned(state),
      request: (message) => this.#serve(message).catch((error) => this.#told(error)),
      failure: (message) => this.#failed(message),
      over: (error) => this.#end(error),
      isUrgent: () => [...this.#links].some((link) => link.isInterrupted),
    });
    this.#home = {
      options: this.#options,
      wire: this.#wire,
      iceServers: () => this.#wire.iceServers,
      refuse: (mid, em) => this.#wire.send({ t: NOTIFY, mid, code: 204, em }),
      bind: (link, token) => this.#bind(link, token),
      unbind: (token) => this.#unbind(token),
      unroute: (token) => this.#acts.delete(token),
      forget: (link) => this.#forget(link),
    };
  }

  /** @returns {string} what others call */
  get tag() {
    return this.#wire.tag;
  }

  /** @returns {string | undefined} what owns the tag, where no identity does */
  get secret() {
    return this.#options.secret;
  }

  /** @returns {import("./ginnel.js").ClientState} */
  get state() {
    return this.#state;
  }

  /** @returns {RTCIceServer[]} */
  get iceServers() {
    return this.#home.iceServers();
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
   * Calls whoever is registered as `tag`.
   *
   * @param {string} tag
   * @param {import("./ginnel.js").CallOptions} [options]
   * @returns {Promise<Channel>} open
   */
  async call(tag, options = {}) {
    if (this.#state === "closed") throw new GinnelError("closed", "this client was closed");
    if (typeof tag !== "string" || tag === "") throw new GinnelError("malformed", "a tag is a text");
    if (this.#links.size >= MAX.links) throw new GinnelError("too-many", `${MAX.links} calls at once are the most`);
    const link = new Link(this.#home, tag, true);
    this.#links.add(link);
    return await link.call(options);
  }

  /**
   * Takes calls from now on: each is an event `call`, and an element of what this returns.
   *
   * @param {import("./ginnel.js").ListenOptions} [options]
   * @returns {import("./ginnel.js").Listening}
   */
  listen({ accept = () => true } = {}) {
    this.#deaf();
    const listening = { accept, queue: undefined, waiting: [] };
    this.#listening = listening;
    const over = { done: true, value: undefined };
    const stop = async () => {
      if (this.#listening === listening) this.#deaf();
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
   * Tells from now on, as events `presence`, when these tags come and go.
   *
   * @param {string[]} tags
   * @returns {Promise<Map<string, boolean>>} who is online now
   */
  async watch(tags) {
    const news = tags.filter((tag) => !this.#watched.has(tag));
    if (this.#watched.size + news.length > MAX.watched) {
      throw new GinnelError("too-many", `${MAX.watched} tags are the most`);
    }
    await this.#wire.online();
    await this.#askWatch(tags);
    return new Map(tags.map((tag) => [tag, this.#watched.get(tag) ?? false]));
  }

  /** @param {string[]} tags */
  async unwatch(tags) {
    for (const tag of tags) this.#watched.delete(tag);
    if (this.#state === "online") await this.#askWatch(tags, false);
  }

  /** Closes channels, connection and client. */
  close() {
    this.#end();
  }

  async #askWatch(tags, watch) {
    for (let at = 0; at < tags.length; at += MAX.watchBatch) {
      const params = { tags: tags.slice(at, at + MAX.watchBatch), watch };
      await this.#wire.ask({ t: WATCH, params }, ({ extra }) => this.#seen(extra, watch !== false));
    }
  }

  /** What the server says of tags; before the first word about one nothing is told of it. */
  #seen({ online = [], offline = [] } = {}, asked) {
    for (const [tags, isThere] of [[online, true], [offline, false]]) {
      for (const tag of tags) {
        const was = this.#watched.get(tag);
        if (was === isThere || (was === undefined && !asked)) continue;
        this.#watched.set(tag, isThere);
        if (was !== undefined) this._emit("presence", { tag, online: isThere });
      }
    }
  }

  /** Listens no more; channels that were not taken are closed. */
  #deaf() {
    const listening = this.#listening;
    this.#listening = undefined;
    for (const resolve of listening?.waiting.splice(0) ?? []) resolve({ done: true, value: undefined });
    for (const channel of listening?.queue?.splice(0) ?? []) channel.close();
  }

  #turned(state) {
    if (this.#state === "closed" || this.#state === state) return;
    this.#state = state;
    this._emit("state", { state });
    if (state === "offline") for (const link of [...this.#links]) link.unsignalled();
    if (state !== "online") return;
    this._emit("open", { tag: this.tag });
    for (const link of [...this.#links]) link.signalled();
    // Watches ended with the connection; what has changed meanwhile is told.
    if (this.#watched.size > 0) this.#askWatch([...this.#watched.keys()]).catch((error) => this.#told(error));
  }

  #told(error) {
    this._emit("error", { error });
  }

  #end(error) {
    if (this.#state === "closed") return;
    this.#deaf();
    for (const link of [...this.#links]) link.end(error);
    this.#wire.close();
    this.#state = "closed";
    if (error) this.#told(error);
    this._emit("state", { state: "closed" });
    this._emit("close", { error });
  }

  #bind(link, token) {
    if (link.token !== token) this.#acts.delete(link.token);
    link.token = token;
    if (token === undefined) return;
    if (this.#links.has(link)) this.#acts.set(token, link);
    // It was ended while its token was on the way.
    else this.#unbind(token);
  }

  /** Ends an act that belongs to no connection, or no longer. */
  #unbind(token) {
    this.#acts.delete(token);
    this.#wire.ask({ t: END, token }).catch(() => {});
  }

  #forget(link) {
    this.#bind(link, undefined);
    // Offers that have not had their turn.
    for (const [token, of] of this.#acts) if (of === link) this.#acts.delete(token);
    this.#links.delete(link);
  }

  /** A failure that answers no waiting request: the second answer to t=4, or one to a message of ours that needs none. */
  #failed(message) {
    const link = this.#acts.get(tokenOf(message));
    if (link && message.t === CALL) link.actEnded(tokenOf(message), refusal(message));
  }

  /** What the server asks. */
  async #serve(message) {
    const { t, mid, params, extra } = message;
    const token = tokenOf(message);
    if (t === WATCH) return this.#seen(params, false);
    if (t === NOTIFY) return await this.#rung({ mid, token, params });
    const link = this.#acts.get(token);
    if (t === QUESTION && link) return await link.question(mid, token);
    if (![ANSWERED, QUESTION, TRICKLE, END].includes(t)) return;
    if (!link) return void this.#wire.send({ t, mid, token, code: 205, em: "no such call" });
    // Without a mid the server does not wait for an answer.
    if (mid !== undefined) this.#wire.send({ t: -t, mid, token, code: 200 });
    if (t === ANSWERED) await link.answered(token, extra ?? {});
    if (t === TRICKLE) await link.trickled(token, params ?? {});
    if (t === END) {
      const reason = params?.reason ? `: ${params.reason}` : "";
      link.actEnded(token, new GinnelError("ended", `the other side ended the call${reason}`));
    }
  }

  /** t=51: a new call, or a new offer of one that there is. */
  async #rung({ mid, token, params = {} }) {
    const { ltag, sdp } = params;
    const refuse = (why) => void this.#home.refuse(mid, why);
    const bound = this.#acts.get(token);
    if (bound) return bound.answerAgain(mid, token);
    if (typeof sdp !== "string" || typeof ltag !== "string") return refuse("no SDP: this is a WebRTC client");
    const known = [...this.#links].find((link) => link.isAt(ltag, sdp));
    if (known) {
      this.#acts.set(token, known); // its candidates may come before the offer's turn
      return await known.reoffer({ mid, token, params });
    }
    const listening = this.#listening;
    if (!listening) return refuse("not listening");
    if (this.#links.size >= MAX.links || listening.queue?.length >= MAX.waiting) return refuse("busy");
    const link = new Link(this.#home, ltag, false);
    this.#links.add(link);
    this.#bind(link, token);
    const channel = await link.answer({ mid, params }, listening.accept);
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
