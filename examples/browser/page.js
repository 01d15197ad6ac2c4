// What the page does with its two forms; how peers find each other stands in the server's ginnel.js.

const query = new URLSearchParams(location.search);
const element = (id) => document.getElementById(id);
const log = (line) => element("log").append(line + "\n");

const server = query.get("server") ?? location.host;
const { connect } = await import(`${location.protocol}//${server}/ginnel.js`);

let channel;

function adopt(opened) {
  channel?.close();
  channel = opened;
  log(`· connected to ${channel.peer}`);
  channel.onmessage = ({ data }) => log(`< ${data}`);
  channel.onstate = ({ state, path }) => log(`· ${state} ${path ?? ""}`);
  channel.onerror = ({ error }) => log(`! ${error.message}`);
  window.channel = channel;
}

const client = await connect({
  server,
  key: query.get("key") ?? undefined,
  iceTransportPolicy: query.get("policy") ?? "all",
}).catch((error) => {
  log(`! ${error.message}`);
  throw error;
});
element("tag").value = client.tag;
client.onstate = ({ state }) => log(`· server: ${state}`);
client.onerror = ({ error }) => log(`! ${error.message}`);
client.oncall = ({ channel }) => adopt(channel);
client.listen();

element("call").addEventListener("submit", (event) => {
  event.preventDefault();
  client.call(event.target.elements.tag.value.trim()).then(adopt, (error) => log(`! ${error.message}`));
});

element("say").addEventListener("submit", (event) => {
  event.preventDefault();
  const { text } = event.target.elements;
  if (channel?.readyState !== "open") return log("! call a tag first");
  channel.send(text.value);
  log(`> ${text.value}`);
  text.value = "";
});

// For the browser's console.
window.client = client;
