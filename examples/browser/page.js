// What the page does with its two forms; how peers find each other stands in peer.js.

import { Peer } from "./peer.js";

const query = new URLSearchParams(location.search);
const element = (id) => document.getElementById(id);
const log = (line) => element("log").append(line + "\n");

const peer = new Peer({
  server: query.get("server") ?? location.host,
  key: query.get("key") ?? undefined,
  policy: query.get("policy") ?? "all",
});

peer.addEventListener("tag", () => (element("tag").value = peer.tag));
peer.addEventListener("state", ({ detail }) => log(`· ${detail}`));
peer.addEventListener("open", () => log("· connected"));
peer.addEventListener("message", ({ detail }) => log(`< ${detail}`));

element("call").addEventListener("submit", (event) => {
  event.preventDefault();
  peer.call(event.target.elements.tag.value.trim()).catch((error) => log(`! ${error.message}`));
});

element("say").addEventListener("submit", (event) => {
  event.preventDefault();
  const { text } = event.target.elements;
  peer.send(text.value);
  log(`> ${text.value}`);
  text.value = "";
});

// For the browser's console.
window.peer = peer;
