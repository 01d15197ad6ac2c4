// A peer: registers at the server's WebSocket, calls or is called, and has one data channel.
//
// The wire is that of docs/wire/signaling.md. `t` says what a message is; an answer has `-t`, the same `mid` and a
// `code`, 200 for yes. The offer travels as `sdp` in t=4 and reaches the other side in t=51; its answer travels back in
// the reply to that and comes out in t=52. Candidates trickle in t=54.

const REGISTER = 1, HEARTBEAT = 2, CALL = 4, NOTIFY = 51, ANSWERED = 52, QUESTION = 53, TRICKLE = 54, END = 55;
const HEARTBEAT_MS = 15_000;

/** Events: `tag` (registered), `state` (a line for people), `open`, `message`, `close`. */
export class Peer extends EventTarget {
  #socket;
  #waiting = new Map(); // mid → the promise of its answer
  #mid = 0;
  #iceServers = [];
  #policy;
  #token; // the call's; unknown to the caller until t=4 is answered
  #early = []; // candidates of ours from before that
  #remote = []; // candidates of theirs from before their description

  constructor({ server, key, policy }) {
    super();
    this.#policy = policy;
    this.#socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${server}/ws`);
    this.#socket.onopen = () => this.#register(key).catch((error) => this.#tell("state", error.message));
    this.#socket.onmessage = ({ data }) => this.#receive(JSON.parse(data));
    this.#socket.onclose = () => this.#tell("state", "the server closed the connection");
  }

  /** Calls the peer that has registered as `tag`. */
  async call(tag) {
    this.#connect();
    this.#adopt(this.connection.createDataChannel("talk"));
    await this.connection.setLocalDescription();
    const { sdp } = this.connection.localDescription;
    const { extra } = await this.#ask({ t: CALL, params: { tag: this.tag, rtag: tag, sdp } });
    this.#token = extra.token;
    this.#trickle(this.#early.splice(0));
  }

  /** Sends one message over the data channel. */
  send(text) {
    this.channel.send(text);
  }

  async #register(key) {
    const { extra } = await this.#ask({ t: REGISTER, params: key === undefined ? {} : { key } });
    this.tag = extra.tag;
    this.#iceServers = extra.ice_servers ?? [];
    setInterval(() => this.#ask({ t: HEARTBEAT, tag: this.tag }), HEARTBEAT_MS);
    this.#tell("tag");
  }

  #connect() {
    this.connection?.close();
    this.#token = undefined;
    this.#early = [];
    this.#remote = [];
    const connection = new RTCPeerConnection({ iceServers: this.#iceServers, iceTransportPolicy: this.#policy });
    connection.onicecandidate = ({ candidate }) => {
      if (candidate?.candidate) this.#trickle([candidate.candidate]);
    };
    connection.onicecandidateerror = ({ url, errorCode, errorText }) =>
      this.#tell("state", `${url}: ${errorCode} ${errorText}`);
    connection.onconnectionstatechange = () => this.#tell("state", connection.connectionState);
    connection.ondatachannel = ({ channel }) => this.#adopt(channel);
    this.connection = connection;
  }

  #adopt(channel) {
    this.channel = channel;
    channel.onopen = () => this.#tell("open");
    channel.onmessage = ({ data }) => this.#tell("message", data);
    channel.onclose = () => this.#tell("close");
  }

  #trickle(cands) {
    if (cands.length === 0) return;
    if (this.#token === undefined) this.#early.push(...cands);
    else this.#ask({ t: TRICKLE, token: this.#token, params: { cands } }).catch((error) => this.#tell("state", error.message));
  }

  async #describe(type, sdp, cands = []) {
    await this.connection.setRemoteDescription({ type, sdp });
    for (const candidate of [...cands, ...this.#remote.splice(0)]) await this.#add(candidate);
  }

  #add(candidate) {
    return this.connection.addIceCandidate({ candidate, sdpMLineIndex: 0 });
  }

  #receive(message) {
    const asked = this.#waiting.get(message.mid);
    if (message.code !== undefined || message.t < 0) {
      this.#waiting.delete(message.mid);
      if ((message.code ?? 200) === 200) asked?.resolve(message);
      else asked?.reject(new Error(`${message.code} ${message.em}`));
      return;
    }
    this.#serve(message).catch((error) => this.#tell("state", error.message));
  }

  async #serve({ t, mid, token, params, extra }) {
    if (t === NOTIFY) {
      const again = token === this.#token;
      if (!again) {
        this.#connect();
        this.#token = token;
        await this.#describe("offer", params.sdp, params.cands);
        await this.connection.setLocalDescription();
      }
      this.#answer(t, mid, token, { sdp: this.connection.localDescription.sdp });
      return;
    }
    if (token !== this.#token) return;
    if (t === QUESTION) {
      const state = this.connection.connectionState;
      const punching = state !== "failed" && state !== "closed";
      this.#answer(t, mid, token, { punching });
      return;
    }
    this.#answer(t, mid, token);
    if (t === ANSWERED && this.connection.signalingState === "have-local-offer") {
      await this.#describe("answer", extra.sdp, extra.cands);
    }
    if (t === TRICKLE) {
      for (const candidate of params.cands ?? []) {
        if (this.connection.remoteDescription) await this.#add(candidate);
        else this.#remote.push(candidate);
      }
    }
    if (t === END) this.connection.close();
  }

  #answer(t, mid, token, extra) {
    this.#socket.send(JSON.stringify({ t: -t, mid, token, code: 200, extra }));
  }

  #ask(message) {
    const mid = ++this.#mid;
    this.#socket.send(JSON.stringify({ ...message, mid }));
    return new Promise((resolve, reject) => this.#waiting.set(mid, { resolve, reject }));
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
