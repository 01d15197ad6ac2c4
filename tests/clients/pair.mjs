// Two clients of ginnel.js in Node, with werift's RTCPeerConnection and ws's WebSocket:
//
//     node pair.mjs SERVER KEY FOLDER     FOLDER has node_modules and, as ginnel.mjs, the module
//
// The callee's tag belongs to an Ed25519 key. One calls the other, each sends a line, and the callee returns with its key from a second
// client, which gets the same tag and replaces the first. Events go to stdout, one JSON object a line; exit code 0, or 1 with a reason.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

globalThis.crypto ??= (await import("node:crypto")).webcrypto; // before Node 19
const [server, key, folder] = process.argv.slice(2);
const require = createRequire(pathToFileURL(`${folder}/`));
const { RTCPeerConnection } = require("werift");
const WebSocket = require("ws");
const { connect, createIdentity } = await import(pathToFileURL(`${folder}/ginnel.mjs`));

const event = (name, fields) => console.log(JSON.stringify({ event: name, ...fields }));
const failed = (reason) => {
  event("failed", { reason: String(reason?.stack ?? reason) });
  process.exit(1);
};
process.on("unhandledRejection", failed);
setTimeout(() => failed("time limit"), 45_000).unref();

const options = { server, key, RTCPeerConnection, WebSocket };
const nextMessage = (channel) => new Promise((resolve) => (channel.onmessage = ({ data }) => resolve(data)));

const identity = await createIdentity();
const callee = await connect({ ...options, identity });
const caller = await connect(options);
event("registered", { callee: callee.tag, caller: caller.tag, secrets: [callee.secret !== undefined, caller.secret !== undefined] });

const taken = new Promise((resolve) => (callee.oncall = ({ channel }) => resolve(channel)));
callee.listen();
const out = await caller.call(callee.tag);
const back = await taken;
const lines = Promise.all([nextMessage(back), nextMessage(out)]);
out.send("hello from the caller");
back.send("hello from the callee");
event("exchanged", { lines: await lines, path: out.path, peers: [back.peer === caller.tag, out.peer === callee.tag] });

const over = new Promise((resolve) => (callee.onclose = ({ error }) => resolve(error.kind)));
const again = await connect({ ...options, identity });
event("again", { same: again.tag === callee.tag, older: await over });
for (const client of [again, caller]) client.close();
process.exit(0);
