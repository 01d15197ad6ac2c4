// Messages through a ginnel server, encrypted end to end, for browsers. One module, nothing to build.
// Protocol: docs/wire/messages.md. Keys and pinned identities are kept in IndexedDB; private keys cannot be exported from it.

const MS = {
  answer: 20_000, // from a request to its answer
  open: 10_000, // opening a WebSocket
  old: 40 * 86_400_000, // age at which a message is refused; the server keeps messages for 30 days
  remembered: 45 * 86_400_000, // how long the ids of received messages are kept
};
const BACK_OFF = { first: 500, most: 30_000 };
const MAX = {
  text: 48_000, // bytes of one message
  requests: 256, // requests without an answer
  attempts: 4, // to encrypt for devices that change meanwhile
  page: 100, // messages in one answer
  events: 2000, // events that wait to be handled; a server sends at most 1000 before an acknowledgement
  received: 16_384, // ids of received messages that are kept
  floors: 1024, // senders of whom ids were forgotten
};
const BLOCK = 256; // lengths of content are rounded up to a multiple
const INFO = "ginnel message v1";

const utf8 = new TextEncoder();
const text = new TextDecoder("utf-8", { fatal: true });
const subtle = globalThis.crypto?.subtle;

/** What went wrong: `kind` is a code of the protocol, or one of this module. */
export class MessagesError extends Error {
  constructor(kind, message, options) {
    super(message, options);
    this.name = "MessagesError";
    this.kind = kind;
  }
}

// --- bytes -------------------------------------------------------------------------------------------------------------------------

const concat = (...parts) => {
  const bytes = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
};

const toBase64 = (bytes) =>
  btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""))
    .replaceAll("+", "-")
    .replaceAll("/", "_")
    .replaceAll("=", "");

const fromBase64 = (encoded) => {
  try {
    return Uint8Array.from(atob(encoded.replaceAll("-", "+").replaceAll("_", "/")), (char) => char.charCodeAt(0));
  } catch {
    throw new MessagesError("malformed", "the server sent a value that is not base64url");
  }
};

const uint = (value, length) =>
  Uint8Array.from({ length }, (_, at) => Math.floor(value / 256 ** (length - 1 - at)) % 256);

const isSame = (left, right) => left.length === right.length && left.every((byte, at) => byte === right[at]);

/** The bytes that are signed: domain, 0, and each field behind its length. */
const signedBytes = (domain, ...fields) =>
  concat(utf8.encode(domain), uint(0, 1), ...fields.flatMap((field) => [uint(field.length, 4), field]));

// --- keys --------------------------------------------------------------------------------------------------------------------------

const exportKey = async (key) => new Uint8Array(await subtle.exportKey("raw", key));

const sign = async (key, ...signed) => new Uint8Array(await subtle.sign("Ed25519", key, signedBytes(...signed)));

const verify = async (key, signature, ...signed) => {
  try {
    const imported = await subtle.importKey("raw", key, "Ed25519", false, ["verify"]);
    return await subtle.verify("Ed25519", imported, signature, signedBytes(...signed));
  } catch {
    return false;
  }
};

const deviceKey = "ginnel device key v1";

const isCertified = (user, identity, device) =>
  verify(identity, device.signature, deviceKey, utf8.encode(user), device.signing, device.encryption);

const fingerprint = async (identity) => {
  const hash = new Uint8Array(await subtle.digest("SHA-256", identity)).slice(0, 16);
  const hex = Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.match(/.{4}/g).join(" ");
};

// --- HPKE (RFC 9180): base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM ------------------------------------------------

const VERSION = utf8.encode("HPKE-v1");
const KEM = concat(utf8.encode("KEM"), uint(0x0020, 2));
const SUITE = concat(utf8.encode("HPKE"), uint(0x0020, 2), uint(0x0001, 2), uint(0x0002, 2));
const NOTHING = new Uint8Array(0);

const hmac = async (key, data) => {
  // A key of zero bytes is the same to HMAC as no key, which WebCrypto does not import.
  const raw = key.length ? key : new Uint8Array(32);
  const imported = await subtle.importKey("raw", raw, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  return new Uint8Array(await subtle.sign("HMAC", imported, data));
};

const extract = (suite, salt, label, secret) => hmac(salt, concat(VERSION, suite, utf8.encode(label), secret));

const expand = async (suite, key, label, info, length) => {
  const labeled = concat(uint(length, 2), VERSION, suite, utf8.encode(label), info);
  return (await hmac(key, concat(labeled, uint(1, 1)))).slice(0, length);
};

const sharedSecret = async (privateKey, publicKey, context) => {
  const imported = await subtle.importKey("raw", publicKey, "X25519", false, []);
  const bits = await subtle.deriveBits({ name: "X25519", public: imported }, privateKey, 256);
  const extracted = await extract(KEM, NOTHING, "eae_prk", new Uint8Array(bits));
  return expand(KEM, extracted, "shared_secret", context, 32);
};

const aead = async (shared, usage) => {
  const hashes = [
    await extract(SUITE, NOTHING, "psk_id_hash", NOTHING),
    await extract(SUITE, NOTHING, "info_hash", utf8.encode(INFO)),
  ];
  const context = concat(uint(0, 1), ...hashes);
  const secret = await extract(SUITE, shared, "secret", NOTHING);
  const raw = await expand(SUITE, secret, "key", context, 32);
  const iv = await expand(SUITE, secret, "base_nonce", context, 12);
  return [{ name: "AES-GCM", iv }, await subtle.importKey("raw", raw, "AES-GCM", false, [usage])];
};

/** Encrypts to an X25519 key: the encapsulated key, then the ciphertext. */
export const seal = async (publicKey, plaintext) => {
  const ephemeral = await subtle.generateKey("X25519", false, ["deriveBits"]);
  const encapsulated = await exportKey(ephemeral.publicKey);
  const shared = await sharedSecret(ephemeral.privateKey, publicKey, concat(encapsulated, publicKey));
  const [algorithm, key] = await aead(shared, "encrypt");
  return concat(encapsulated, new Uint8Array(await subtle.encrypt(algorithm, key, plaintext)));
};

/** Decrypts what {@link seal} made. */
export const open = async (privateKey, publicKey, body) => {
  const encapsulated = body.slice(0, 32);
  const shared = await sharedSecret(privateKey, encapsulated, concat(encapsulated, publicKey));
  const [algorithm, key] = await aead(shared, "decrypt");
  return new Uint8Array(await subtle.decrypt(algorithm, key, body.slice(32)));
};

// --- what lasts --------------------------------------------------------------------------------------------------------------------

const STORES = ["account", "peers", "received"];

const promised = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(new MessagesError("storage", "the browser's storage failed", { cause: request.error }));
  });

/** The IndexedDB database of one account at one server. */
class Storage {
  static async open(name) {
    const request = indexedDB.open(name, 1);
    request.onupgradeneeded = () => STORES.forEach((store) => request.result.createObjectStore(store));
    const storage = new Storage();
    storage.database = await promised(request);
    return storage;
  }

  get(store, key) {
    return promised(this.database.transaction(store).objectStore(store).get(key));
  }

  /** Resolves when the value is on disk. */
  put(store, key, value) {
    const transaction = this.database.transaction(store, "readwrite", { durability: "strict" });
    transaction.objectStore(store).put(value, key);
    return new Promise((resolve, reject) => {
      transaction.oncomplete = () => resolve();
      transaction.onerror = transaction.onabort = () =>
        reject(new MessagesError("storage", "the browser's storage failed", { cause: transaction.error }));
    });
  }

  /** The keys and values of a store. */
  async entries(store) {
    const objects = this.database.transaction(store).objectStore(store);
    const [keys, values] = await Promise.all([promised(objects.getAllKeys()), promised(objects.getAll())]);
    return keys.map((key, at) => [key, values[at]]);
  }

  /** Resolves when the values are removed. */
  remove(store, keys) {
    const objects = this.database.transaction(store, "readwrite").objectStore(store);
    return Promise.all(keys.map((key) => promised(objects.delete(key))));
  }

  close() {
    this.database.close();
  }
}

// --- received before? ----------------------------------------------------------------------------------------------------------------

/**
 * The messages that were received, by sender and id. Full, it forgets an old one of the sender with most of them, and refuses what that
 * sender sent before: a sender who floods it harms itself only.
 */
export class ReplayWindow {
  #most;
  #senders = new Map();
  #size = 0;

  constructor(most = MAX.received, floors = {}) {
    this.#most = most;
    this.floors = new Map(Object.entries(floors));
  }

  has(from, id) {
    return this.#senders.get(from)?.has(id) ?? false;
  }

  /** Whether a message was sent so long ago that its id may be forgotten. */
  isTooOld(from, sentAt) {
    return sentAt <= (this.floors.get(from) ?? 0);
  }

  /** Adds a message; returns the sender and id of those that are forgotten. */
  add(from, id, sentAt) {
    if (!this.#senders.has(from)) this.#senders.set(from, new Map());
    const ids = this.#senders.get(from);
    this.#size += ids.has(id) ? 0 : 1;
    ids.set(id, sentAt);
    const forgotten = [];
    while (this.#size > this.#most) forgotten.push(this.#forget());
    return forgotten;
  }

  #forget() {
    const [from, ids] = [...this.#senders].reduce((most, sender) => (sender[1].size > most[1].size ? sender : most));
    const [id, sentAt] = ids.entries().next().value;
    ids.delete(id);
    this.#size--;
    if (!ids.size) this.#senders.delete(from);
    const floor = Math.max(sentAt, this.floors.get(from) ?? 0);
    this.floors.delete(from);
    this.floors.set(from, floor);
    if (this.floors.size > MAX.floors) this.floors.delete(this.floors.keys().next().value);
    return [from, id];
  }
}

const receivedKey = (from, id) => `${from} ${id}`;

// --- message ids -------------------------------------------------------------------------------------------------------------------

const CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/** A ULID: 48 bits of time, 80 random bits. */
const messageId = () => {
  const time = Array.from({ length: 10 }, (_, at) => CROCKFORD[Math.floor(Date.now() / 32 ** (9 - at)) % 32]);
  const random = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => CROCKFORD[byte % 32]);
  return [...time, ...random].join("");
};

// --- the connection ----------------------------------------------------------------------------------------------------------------

/** Requests and answers over one WebSocket. */
class Connection {
  #socket;
  #waiting = new Map();
  #next = 0;

  /** Resolves with the connection after the server's hello. */
  static connect(url, onevent, onclose) {
    const connection = new Connection();
    const socket = (connection.#socket = new WebSocket(url));
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => socket.close(), MS.open);
      const failed = () => new MessagesError("unreachable", `${url} does not answer; is messaging enabled there?`);
      socket.onmessage = ({ data }) => {
        const object = JSON.parse(data);
        if (object.type === "hello") {
          clearTimeout(timer);
          connection.challenge = fromBase64(object.challenge);
          resolve(connection);
        } else if (object.id === undefined) onevent(object);
        else connection.#answer(object);
      };
      socket.onclose = () => {
        clearTimeout(timer);
        reject(failed());
        for (const { fail } of connection.#waiting.values()) fail(failed());
        connection.#waiting.clear();
        onclose(connection);
      };
    });
  }

  request(type, fields = {}) {
    if (this.#waiting.size >= MAX.requests) throw new MessagesError("too-many", "too many requests without an answer");
    const id = ++this.#next;
    return new Promise((done, fail) => {
      const timer = setTimeout(() => {
        this.#waiting.delete(id);
        fail(new MessagesError("timeout", `no answer to ${type}`));
        this.close();
      }, MS.answer);
      const stop = (end) => (value) => {
        clearTimeout(timer);
        end(value);
      };
      this.#waiting.set(id, { done: stop(done), fail: stop(fail) });
      this.#socket.send(JSON.stringify({ ...fields, id, type }));
    });
  }

  #answer(object) {
    const waiting = this.#waiting.get(object.id);
    this.#waiting.delete(object.id);
    if (object.type === "ok") waiting?.done(object);
    else waiting?.fail(Object.assign(new MessagesError(object.code, object.message), { answer: object }));
  }

  close() {
    this.#socket.close();
  }
}

// --- the mailbox -------------------------------------------------------------------------------------------------------------------

const party = (name) => (/^(user|dev):/.test(name) ? name : `user:${name}`);

/** Opens the mailbox of a user in this browser; registers the user, with keys made here, if the browser has none for that name. */
export async function openMailbox({
  user,
  server = location.host,
  secure = location.protocol === "https:",
  label = "browser",
  ...handlers
}) {
  if (!subtle || !globalThis.indexedDB) {
    throw new MessagesError("unsupported", "this page needs https: or localhost, for the browser's cryptography and storage");
  }
  const mailbox = new Mailbox(user, `${secure ? "wss" : "ws"}://${server}/messages`, label);
  for (const name of ["onmessage", "onreceipt", "onrefused", "onstate"]) mailbox[name] = handlers[name] ?? null;
  await mailbox.start(`ginnel messages ${server} ${user}`);
  return mailbox;
}

class Mailbox {
  /** Called with each new message; it is acknowledged when the returned promise resolves. */
  onmessage = null;
  /** Called when a device of the recipient has received a message, or when it has expired. */
  onreceipt = null;
  /** Called with what was refused because it cannot be trusted. */
  onrefused = null;
  /** Called with "online" and "offline". */
  onstate = null;

  #url;
  #label;
  #storage;
  #account;
  #connection;
  #isClosed = false;
  #work = Promise.resolve();
  #events = 0;
  #received;

  constructor(user, url, label) {
    this.user = user;
    this.#url = url;
    this.#label = label;
  }

  async start(database) {
    this.#storage = await Storage.open(database);
    try {
      this.#account = (await this.#storage.get("account", "keys")) ?? (await this.#makeKeys());
      await this.#loadReceived();
      this.fingerprint = await fingerprint(this.#account.identityKey);
      await this.#connect();
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** Sends a text. Resolves when the server has stored it. */
  async send(to, body) {
    const recipient = party(to);
    if (utf8.encode(body).length > MAX.text) throw new MessagesError("too_large", `a message has at most ${MAX.text} bytes`);
    const id = messageId();
    let answer = await this.#request("devices", { party: recipient });
    for (let attempt = 1; ; attempt++) {
      const devices = await this.#trusted(recipient, answer);
      try {
        const fields = devices.length
          ? { copies: await this.#encrypt(recipient, id, body, devices) }
          : { text: body };
        await this.#request("send", { to: recipient, message_id: id, ...fields });
        return { id, state: "stored", encrypted: devices.length > 0 };
      } catch (error) {
        if (error.kind !== "devices_changed" || attempt === MAX.attempts) throw error;
        answer = error.answer;
      }
    }
  }

  /** The fingerprint of another user's identity key. */
  async fingerprintOf(name) {
    const recipient = party(name);
    await this.#trusted(recipient, await this.#request("devices", { party: recipient }));
    const pinned = await this.#storage.get("peers", recipient);
    return pinned && fingerprint(pinned);
  }

  /** Closes the mailbox. What arrives from now on waits at the server. */
  close() {
    this.#isClosed = true;
    this.#connection?.close();
    this.#storage?.close();
  }

  /** Loads the ids of received messages; removes those of messages that are refused for their age by now. */
  async #loadReceived() {
    const entries = await this.#storage.entries("received");
    const isOld = ([, sentAt]) => sentAt < Date.now() - MS.remembered;
    const removed = entries.filter(isOld).map(([key]) => key);
    this.#received = new ReplayWindow(MAX.received, this.#account.floors);
    for (const [key, sentAt] of entries.filter((entry) => !isOld(entry)).sort((left, right) => left[1] - right[1])) {
      const end = key.lastIndexOf(" ");
      const forgotten = this.#received.add(key.slice(0, end), key.slice(end + 1), sentAt);
      removed.push(...forgotten.map(([from, id]) => receivedKey(from, id)));
    }
    await this.#storage.remove("received", removed);
  }

  async #remember(from, id, sentAt) {
    await this.#storage.put("received", receivedKey(from, id), sentAt);
    const forgotten = this.#received.add(from, id, sentAt);
    // Saved with the cursor.
    this.#account.floors = Object.fromEntries(this.#received.floors);
    if (forgotten.length) await this.#storage.remove("received", forgotten.map(([from, id]) => receivedKey(from, id)));
  }

  async #makeKeys() {
    const identity = await subtle.generateKey("Ed25519", false, ["sign", "verify"]);
    const signing = await subtle.generateKey("Ed25519", false, ["sign", "verify"]);
    const encryption = await subtle.generateKey("X25519", false, ["deriveBits"]);
    const account = {
      identity: identity.privateKey,
      signing: signing.privateKey,
      encryption: encryption.privateKey,
      identityKey: await exportKey(identity.publicKey),
      signingKey: await exportKey(signing.publicKey),
      encryptionKey: await exportKey(encryption.publicKey),
      isRegistered: false,
      epoch: null,
      cursor: 0,
    };
    // Before the registration: an account whose keys were lost could never be used.
    await this.#storage.put("account", "keys", account);
    return account;
  }

  async #connect() {
    const connection = await Connection.connect(
      this.#url,
      (event) => this.#onevent(event),
      (closed) => this.#onclose(closed),
    );
    this.#connection = connection;
    const account = this.#account;
    if (!account.isRegistered) await this.#register(connection);
    const signature = await sign(account.signing, "ginnel login v1", connection.challenge, utf8.encode(this.user), account.signingKey);
    const login = { user: this.user, device_key: toBase64(account.signingKey), signature: toBase64(signature) };
    const { epoch } = await connection.request("login", login);
    if (account.epoch !== epoch || !account.isRegistered) {
      Object.assign(account, { epoch, cursor: 0, isRegistered: true });
      await this.#storage.put("account", "keys", account);
    }
    await connection.request("follow", { after: account.cursor });
    this.onstate?.("online");
  }

  async #register(connection) {
    const account = this.#account;
    const name = utf8.encode(this.user);
    const proof = await sign(account.identity, "ginnel register v1", connection.challenge, name, account.identityKey);
    const signature = await sign(account.identity, deviceKey, name, account.signingKey, account.encryptionKey);
    await connection.request("register", {
      user: this.user,
      identity_key: toBase64(account.identityKey),
      proof: toBase64(proof),
      device: {
        label: this.#label,
        signing_key: toBase64(account.signingKey),
        encryption_key: toBase64(account.encryptionKey),
        signature: toBase64(signature),
      },
    }).catch((error) => {
      // The answer to an earlier attempt was lost, or the name belongs to someone else: the login tells.
      if (error.kind !== "name_taken") throw error;
    });
  }

  async #onclose(closed) {
    // A connection that failed before its login is retried by the loop below, or reported by openMailbox().
    if (this.#isClosed || closed !== this.#connection) return;
    this.#connection = null;
    this.onstate?.("offline");
    for (let pause = BACK_OFF.first; !this.#isClosed; pause = Math.min(2 * pause, BACK_OFF.most)) {
      await new Promise((go) => setTimeout(go, pause * (0.5 + Math.random())));
      if (this.#isClosed) return;
      try {
        return await this.#connect();
      } catch (error) {
        this.#connection?.close();
        this.#connection = null;
        if (error.kind === "wrong_credentials") return this.onrefused?.({ from: null, reason: error.message });
      }
    }
  }

  #request(type, fields) {
    if (!this.#connection) throw new MessagesError("offline", "not connected; try again");
    return this.#connection.request(type, fields);
  }

  /** Verifies a list of devices against the pinned identity. Throws if it cannot be trusted. */
  async #trusted(recipient, answer) {
    const pinned = await this.#storage.get("peers", recipient);
    const identity = answer.identity_key && fromBase64(answer.identity_key);
    if (pinned && (!identity || answer.legacy || answer.devices.length === 0)) {
      throw new MessagesError("untrusted", `${recipient} had keys before, and the server no longer returns them: nothing is sent in plaintext`);
    }
    if (!identity) return [];
    if (answer.devices.length === 0) {
      throw new MessagesError("untrusted", `${recipient} has an identity key and no device: nothing is sent in plaintext`);
    }
    if (pinned && !isSame(pinned, identity)) {
      throw new MessagesError("untrusted", `the identity key of ${recipient} has changed: ${await fingerprint(identity)}`);
    }
    const devices = answer.devices.map(({ device, signing_key, encryption_key, signature }) => ({
      device,
      signing: fromBase64(signing_key),
      encryption: fromBase64(encryption_key),
      signature: fromBase64(signature),
    }));
    for (const device of devices) {
      if (!(await isCertified(recipient.replace("user:", ""), identity, device))) {
        throw new MessagesError("untrusted", `a device key of ${recipient} is not signed by its identity key`);
      }
    }
    if (!pinned) await this.#storage.put("peers", recipient, identity);
    return devices;
  }

  async #encrypt(to, id, body, devices) {
    const account = this.#account;
    const signature = await sign(account.identity, deviceKey, utf8.encode(this.user), account.signingKey, account.encryptionKey);
    // Shows that this device is the user's, also after it was removed.
    const certificate = { encryption_key: toBase64(account.encryptionKey), signature: toBase64(signature) };
    const others = devices.filter(({ signing }) => !isSame(signing, this.#account.signingKey));
    return Promise.all(
      others.map(async ({ device, encryption }) => {
        const content = JSON.stringify({
          from: `user:${this.user}`,
          from_key: toBase64(this.#account.signingKey),
          to,
          to_key: toBase64(encryption),
          message_id: id,
          sent_at: Date.now(),
          certificate,
          text: body,
        });
        const length = utf8.encode(content).length;
        const padded = utf8.encode(content + " ".repeat((BLOCK - (length % BLOCK)) % BLOCK));
        const signature = await sign(this.#account.signing, INFO, padded);
        return { device, body: toBase64(await seal(encryption, concat(signature, padded))) };
      }),
    );
  }

  #onevent(event) {
    // In order, and an acknowledgement covers only what was handled.
    if (event.type === "message" || event.type === "receipt") {
      const connection = this.#connection;
      // A server that sends more than it may would fill the memory of a page that handles messages slowly.
      if (++this.#events > MAX.events) connection?.close();
      else this.#work = this.#work.then(() => this.#receive(connection, event)).catch(() => connection?.close());
      this.#work = this.#work.then(() => this.#events--);
    }
  }

  async #receive(connection, event) {
    if (event.sequence <= this.#account.cursor || this.#isClosed) return;
    if (event.type === "receipt") await this.onreceipt?.({ id: event.message_id, from: event.from, state: event.state });
    else await this.#deliver(event);
    if (this.#isClosed) return;
    this.#account.cursor = event.sequence;
    await this.#storage.put("account", "keys", this.#account);
    await connection.request("ack", { up_to: event.sequence });
  }

  async #deliver(event) {
    if (this.#received.has(event.from, event.message_id)) return;
    const message = { from: event.from, id: event.message_id, encrypted: event.encrypted, at: event.stored_at };
    if (event.encrypted) {
      try {
        Object.assign(message, await this.#decrypt(event));
      } catch (error) {
        if (error.kind === "unreachable" || error.kind === "timeout" || error.kind === "offline") throw error;
        const reason = error instanceof MessagesError ? error.message : "it cannot be decrypted";
        return this.onrefused?.({ from: event.from, id: event.message_id, reason });
      }
    } else {
      message.text = event.text;
      // Anyone who controls the server could have written it.
      message.isForgeable = (await this.#storage.get("peers", event.from)) !== undefined;
    }
    await this.onmessage?.(message);
    await this.#remember(event.from, event.message_id, message.sentAt ?? event.stored_at);
  }

  async #decrypt(event) {
    const account = this.#account;
    const plaintext = await open(account.encryption, account.encryptionKey, fromBase64(event.body));
    const [signature, bytes] = [plaintext.slice(0, 64), plaintext.slice(64)];
    const content = JSON.parse(text.decode(bytes));
    const signing = fromBase64(content.from_key);
    const refuse = (holds, reason) => {
      if (!holds) throw new MessagesError("untrusted", reason);
    };
    refuse(await verify(signing, signature, INFO, bytes), "its signature is wrong");
    refuse(content.from === event.from, "another sender has signed it");
    refuse(content.message_id === event.message_id, "it was signed under another message id");
    refuse(content.to === `user:${this.user}`, "it was signed for another recipient");
    refuse(isSame(fromBase64(content.to_key), account.encryptionKey), "it was signed for another device");
    refuse(content.sent_at > Date.now() - MS.old, "it is too old");
    refuse(!this.#received.isTooOld(event.from, content.sent_at), "it was received before, or is too old to tell");
    const devices = await this.#trusted(event.from, await this.#request("devices", { party: event.from }));
    const isListed = devices.some((device) => isSame(device.signing, signing));
    refuse(isListed || (await this.#wasDevice(event.from, signing, content.certificate)), "the device that signed it does not belong to the sender");
    const message = { text: content.text, sentAt: content.sent_at };
    return isListed ? message : { ...message, isOfRemovedDevice: true };
  }

  /** Whether the pinned identity of the sender has signed a device that is not listed any more. */
  async #wasDevice(from, signing, certificate) {
    const identity = await this.#storage.get("peers", from);
    if (!identity || !certificate) return false;
    const [encryption, signature] = [certificate.encryption_key, certificate.signature].map(fromBase64);
    return isCertified(from.replace("user:", ""), identity, { signing, encryption, signature });
  }
}
