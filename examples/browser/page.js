// What the page does with its two forms; how peers find each other stands in the server's ginnel.js.

const query = new URLSearchParams(location.search);
const element = (id) => document.getElementById(id);
const log = (line) => element("log").append(line + "\n");
const failed = (error) => log(`! ${error.message}`);

const server = query.get("server") ?? location.host;

let channel;
let attempts = 0;
let starting; // a promise of the client, for the browser's console `client`

/** The client; where there is none, another attempt to have one. */
function start() {
  starting ??= register().catch((error) => {
    starting = undefined;
    throw error;
  });
  return starting;
}

async function register() {
  // A browser caches a failed module import; another URL is fetched again.
  const module = `${location.protocol}//${server}/ginnel.js${attempts++ ? `?${attempts}` : ""}`;
  const { connect } = await import(module);
  const client = await connect({
    server,
    key: query.get("key") ?? undefined,
    iceTransportPolicy: query.get("policy") ?? "all",
  });
  window.client = client;
  element("tag").value = client.tag;
  client.onstate = ({ state }) => log(`· server: ${state}`);
  client.onerror = ({ error }) => failed(error);
  client.onclose = () => (starting = undefined);
  client.oncall = ({ channel }) => adopt(channel);
  client.listen();
  return client;
}

function adopt(opened) {
  channel?.close();
  channel = opened;
  log(`· connected to ${channel.peer}, ${channel.path}`);
  channel.onmessage = ({ data }) => log(`< ${data}`);
  channel.onstate = ({ state, path }) => log(`· ${state} ${path ?? ""}`);
  channel.onerror = ({ error }) => failed(error);
  window.channel = channel;
}

// The forms are handled before anything can fail: the browser would send them, and leave this page.
element("call").addEventListener("submit", (event) => {
  event.preventDefault();
  const tag = event.target.elements.tag.value.trim();
  start()
    .then((client) => client.call(tag))
    .then(adopt, failed);
});

element("say").addEventListener("submit", (event) => {
  event.preventDefault();
  const { text } = event.target.elements;
  if (channel?.readyState !== "open") return log("! call a tag first");
  channel.send(text.value);
  log(`> ${text.value}`);
  text.value = "";
});

start().catch((error) => {
  failed(error);
  log("· Call tries again");
});
