// Types of ginnel.js. What each of them does: web/README.md.

/** What kind of thing went wrong. The first eleven are the server's codes 201 to 211, in this order. */
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

/** Where it went wrong: at the server, while paths were checked, or on the open channel. */
export type Stage = "signal" | "check" | "channel";

/** What a relay has answered, or 701 where it has not: RTCPeerConnectionIceErrorEvent has these fields. */
export interface RelayError {
  readonly url: string;
  readonly errorCode: number;
  readonly errorText: string;
}

export class GinnelError extends Error {
  constructor(kind: ErrorKind, message: string, more?: { code?: number; stage?: Stage; relay?: RelayError });
  readonly kind: ErrorKind;
  /** The server's, 201 to 211; 0 where it did not come from there. */
  readonly code: number;
  readonly stage: Stage;
  /** With `no-path`: what was wrong with the relay, as far as the browser tells. */
  readonly relay?: RelayError;
}

export interface Options {
  /** `host`, `host:port` (3478 by default) or a URL; in a page by default the page's own origin. */
  server?: string;
  /**
   * A JWT that the server takes, or an access key where nobody else reads it, or a function that returns one and is asked at each registration. Without
   * it there is no relay.
   */
  key?: string | (() => string | undefined | Promise<string | undefined>);
  /** 22 to 128 random characters that own the tag; by default a new one, which `Client.secret` tells. */
  secret?: string;
  /** An Ed25519 key pair that owns the tag instead of a secret. */
  identity?: CryptoKeyPair;
  /** `relay`: never a direct path. Default `all`. */
  iceTransportPolicy?: RTCIceTransportPolicy;
  /** In place of those that the server gives, or a function that returns them and is asked at each registration. */
  iceServers?: RTCIceServer[] | (() => RTCIceServer[] | Promise<RTCIceServer[]>);
  /** Milliseconds from a lost path to giving it up. Default 120 000. */
  patience?: number;
  /** By default the global one. */
  RTCPeerConnection?: any;
  /** By default the global one. */
  WebSocket?: any;
}

export interface CallOptions extends RTCDataChannelInit {
  /** Default `ginnel`. */
  label?: string;
  /** Milliseconds until the channel has to be open. Default 30 000. */
  timeout?: number;
}

export interface ListenOptions {
  /** Says whether a call is taken; within five seconds, else it is refused. By default every call is. */
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

/** Makes a key pair whose private key never leaves this browser; `undefined` where there is no Ed25519, or the page is not secure. */
export function createIdentity(): Promise<CryptoKeyPair | undefined>;

/** Registers at a server; rejects with a {@link GinnelError} where the first registration fails. */
export function connect(options?: Options): Promise<Client>;

export interface Client extends Source<ClientEvents> {
  readonly tag: string;
  /** What owns the tag; `undefined` where an identity does. */
  readonly secret?: string;
  readonly state: ClientState;
  readonly iceServers: RTCIceServer[];
  call(tag: string, options?: CallOptions): Promise<Channel>;
  /** Who is online now; changes come as events `presence`. */
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
  /** Unknown while it is interrupted. */
  readonly path?: Path;
  readonly bufferedAmount: number;
  readonly connection: RTCPeerConnection;
  send(data: string | Blob | ArrayBuffer | ArrayBufferView): void;
  /** Resolves once at most 1 MiB waits to be sent. */
  drained(): Promise<void>;
  close(): void;
  onmessage: Handler<ChannelEvents, "message">;
  onstate?: Handler<ChannelEvents, "state">;
  onerror?: Handler<ChannelEvents, "error">;
  onclose?: Handler<ChannelEvents, "close">;
}
