// Types of ginnel.js. Documentation: web/README.md.

/** The kind of an error. The first eleven are the server's codes 201 to 211, in this order. */
export type ErrorKind =
  | "malformed"
  | "unknown-tag"
  | "not-online"
  | "not-allowed"
  | "bad-token"
  | "too-many"
  | "no-answer"
  | "unsupported"
  | "internal"
  | "replaced"
  | "revoked"
  | "unreachable"
  | "timeout"
  | "no-path"
  | "ended"
  | "closed"
  | "queue-full"
  | "too-big";

/** The stage of an error: signalling, connectivity checks, or the open channel. */
export type Stage = "signal" | "check" | "channel";

/** The error of a relay, or 701 without an answer; the fields of RTCPeerConnectionIceErrorEvent. */
export interface RelayError {
  readonly url: string;
  readonly errorCode: number;
  readonly errorText: string;
}

export class GinnelError extends Error {
  constructor(kind: ErrorKind, message: string, more?: { code?: number; stage?: Stage; relay?: RelayError });
  readonly kind: ErrorKind;
  /** The server's code, 201 to 211; otherwise 0. */
  readonly code: number;
  readonly stage: Stage;
  /** With `no-path`: the relay's error, if the browser reports it. */
  readonly relay?: RelayError;
}

export interface Options {
  /** `host`, `host:port` (3478 by default) or a URL; in a page by default the page's own origin. */
  server?: string;
  /**
   * A JWT that the server accepts, or an access key if nobody else can read it, or a function that returns one; it is called at each registration.
   * Without a key there is no relay.
   */
  key?: string | (() => string | undefined | Promise<string | undefined>);
  /** 22 to 128 random characters that own the tag; by default a new one; see `Client.secret`. */
  secret?: string;
  /** An Ed25519 key pair that owns the tag instead of a secret. */
  identity?: CryptoKeyPair;
  /** `relay`: never a direct path. Default `all`. */
  iceTransportPolicy?: RTCIceTransportPolicy;
  /** Replaces the server's, or a function that returns them; it is called at each registration. */
  iceServers?: RTCIceServer[] | (() => RTCIceServer[] | Promise<RTCIceServer[]>);
  /** Milliseconds from a lost path to the end of the channel. Default 120 000. */
  patience?: number;
  /** By default the global one. */
  RTCPeerConnection?: any;
  /** By default the global one. */
  WebSocket?: any;
}

export interface CallOptions extends RTCDataChannelInit {
  /** Default `ginnel`. */
  label?: string;
  /** Milliseconds until the channel must be open. Default 30 000. */
  timeout?: number;
}

export interface ListenOptions {
  /** Returns whether a call is accepted, within five seconds; otherwise it is refused. By default all are accepted. */
  accept?: (from: string) => boolean | Promise<boolean>;
}

export interface Listening extends AsyncIterable<Channel> {
  /** Refuses calls from now on. */
  stop(): void;
}

export type ClientState = "connecting" | "online" | "offline" | "closed";

export interface ClientEvents {
  open: Event & { readonly tag: string };
  state: Event & { readonly state: ClientState };
  presence: Event & { readonly tag: string; readonly online: boolean };
  call: Event & { readonly channel: Channel; readonly from: string };
  error: Event & { readonly error: Error };
  close: Event & { readonly error?: Error };
}

export type ChannelState = "connecting" | "connected" | "interrupted" | "closed";
export type Path = "direct" | "relay";

export interface ChannelEvents {
  message: Event & { readonly data: string | ArrayBuffer };
  state: Event & { readonly state: ChannelState; readonly path?: Path };
  error: Event & { readonly error: Error };
  close: Event & { readonly error?: Error };
}

type Handler<Events, Type extends keyof Events> = ((event: Events[Type]) => void) | null;

interface Source<Events> extends EventTarget {
  addEventListener<Type extends keyof Events & string>(
    type: Type,
    listener: (event: Events[Type]) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
}

/** Creates a key pair whose private key cannot be exported; `undefined` without Ed25519 or in an insecure context. */
export function createIdentity(): Promise<CryptoKeyPair | undefined>;

/** Registers at a server; rejects with a {@link GinnelError} if the first registration fails. */
export function connect(options?: Options): Promise<Client>;

export interface Client extends Source<ClientEvents> {
  readonly tag: string;
  /** The secret that owns the tag; `undefined` with an identity. */
  readonly secret?: string;
  readonly state: ClientState;
  readonly iceServers: RTCIceServer[];
  call(tag: string, options?: CallOptions): Promise<Channel>;
  /** Returns which tags are online; changes are events `presence`. */
  watch(tags: string[]): Promise<Map<string, boolean>>;
  unwatch(tags: string[]): Promise<void>;
  listen(options?: ListenOptions): Listening;
  close(): void;
  onopen?: Handler<ClientEvents, "open">;
  onstate?: Handler<ClientEvents, "state">;
  onpresence?: Handler<ClientEvents, "presence">;
  oncall?: Handler<ClientEvents, "call">;
  onerror?: Handler<ClientEvents, "error">;
  onclose?: Handler<ClientEvents, "close">;
}

export interface Channel extends Source<ChannelEvents> {
  /** The other side's tag. */
  readonly peer: string;
  readonly label: string;
  readonly readyState: RTCDataChannelState;
  readonly state: ChannelState;
  /** `undefined` while the channel is interrupted. */
  readonly path?: Path;
  readonly bufferedAmount: number;
  readonly connection: RTCPeerConnection;
  send(data: string | Blob | ArrayBuffer | ArrayBufferView): void;
  /** Resolves once at most 1 MiB is queued. */
  drained(): Promise<void>;
  close(): void;
  onmessage: Handler<ChannelEvents, "message">;
  onstate?: Handler<ChannelEvents, "state">;
  onerror?: Handler<ChannelEvents, "error">;
  onclose?: Handler<ChannelEvents, "close">;
}
