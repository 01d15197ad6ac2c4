// Types of messages.js. Documentation: web/README.md.

/** The kind of an error: a code of docs/wire/messages.md, or one of the module. */
export type MessagesErrorKind =
  | "malformed"
  | "unknown_type"
  | "not_logged_in"
  | "tls_required"
  | "wrong_credentials"
  | "name_taken"
  | "registration_closed"
  | "try_again_later"
  | "invalid"
  | "not_found"
  | "devices_changed"
  | "plaintext_refused"
  | "mailbox_full"
  | "sender_share_full"
  | "storage_full"
  | "disk_full"
  | "contacts_only"
  | "contact_exists"
  | "too_many_devices"
  | "too_many_contacts"
  | "too_large"
  | "unavailable"
  | "unsupported"
  | "unreachable"
  | "offline"
  | "timeout"
  | "too-many"
  | "storage"
  | "untrusted";

export class MessagesError extends Error {
  constructor(kind: MessagesErrorKind, message: string, options?: { cause?: unknown });
  readonly kind: MessagesErrorKind;
}

/** A message that was received. */
export interface Message {
  /** `user:NAME`, or `dev:ID` for a device of the TCP protocol. */
  readonly from: string;
  readonly id: string;
  readonly text: string;
  /** Whether only the two ends can have read it. */
  readonly encrypted: boolean;
  /** Not encrypted, though the sender has keys: the server could have written it. */
  readonly isForgeable?: boolean;
  /** The sender has removed the device that signed it since: whoever has the device may have written it. */
  readonly isOfRemovedDevice?: boolean;
  /** When the server stored it, in Unix milliseconds. */
  readonly at: number;
  /** When the sender sent it; encrypted messages only. */
  readonly sentAt?: number;
}

/** What became of a message that this browser sent. */
export interface Receipt {
  readonly id: string;
  readonly from: string;
  readonly state: "delivered" | "expired";
}

/** A message that was not delivered because it cannot be trusted; `from` is null if the server refuses this browser's keys. */
export interface Refused {
  readonly from: string | null;
  readonly id?: string;
  readonly reason: string;
}

export interface Mailbox {
  readonly user: string;
  /** Of this user's identity key; compare it with what others see. */
  readonly fingerprint: string;
  /** A message is acknowledged, and not delivered again, when the returned promise resolves. */
  onmessage: ((message: Message) => unknown) | null;
  onreceipt: ((receipt: Receipt) => unknown) | null;
  onrefused: ((refused: Refused) => unknown) | null;
  onstate: ((state: "online" | "offline") => unknown) | null;
  /** Resolves when the server has stored the message. */
  send(to: string, text: string): Promise<{ id: string; state: "stored"; encrypted: boolean }>;
  /** The fingerprint of another user's identity key; undefined if the user has no keys. */
  fingerprintOf(name: string): Promise<string | undefined>;
  close(): void;
}

export interface MailboxOptions {
  user: string;
  /** Host and port; by default the page's own. */
  server?: string;
  /** Whether to connect by `wss:`; by default as the page was loaded. */
  secure?: boolean;
  /** The name of this device. */
  label?: string;
  /** Handlers, in place before the first message can arrive. */
  onmessage?: Mailbox["onmessage"];
  onreceipt?: Mailbox["onreceipt"];
  onrefused?: Mailbox["onrefused"];
  onstate?: Mailbox["onstate"];
}

/** The messages that were received; for tests. */
export class ReplayWindow {
  constructor(most?: number, floors?: Record<string, number>);
  readonly floors: Map<string, number>;
  has(from: string, id: string): boolean;
  isTooOld(from: string, sentAt: number): boolean;
  add(from: string, id: string, sentAt: number): [from: string, id: string][];
}

export function openMailbox(options: MailboxOptions): Promise<Mailbox>;
/** HPKE of RFC 9180, as messages use it: encrypts to an X25519 key. */
export function seal(publicKey: Uint8Array, plaintext: Uint8Array): Promise<Uint8Array>;
export function open(privateKey: CryptoKey, publicKey: Uint8Array, body: Uint8Array): Promise<Uint8Array>;
