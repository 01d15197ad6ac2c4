// Runs what web/README.md shows of a page's backend against a server:
//
//     node backend.mjs README SERVER     GINNEL_KEY and GINNEL_JWT_SECRET stand in the environment, as there
//
// Prints what the token of a user and what the backend's `/ice` get from the server, one JSON object a line.
import { readFile } from "node:fs/promises";

const [file, server] = process.argv.slice(2);
const blocks = [...(await readFile(file, "utf8")).matchAll(/```js\n([\s\S]*?)```/g)].map(([, code]) => code);
const run = async (part, call) => {
  const code = blocks.find((block) => block.includes(part)).replaceAll("https://ginnel.example", `http://${server}`);
  const module = await import(`data:text/javascript,${encodeURIComponent(`${code}\nexport { ${call} };`)}`);
  return module[call];
};

const token = (await run("createHmac", "token"))("alice");
const answer = await fetch(`http://${server}/ice`, { headers: { Authorization: `Bearer ${token}` } });
console.log(JSON.stringify({ event: "token", status: answer.status, ...(await answer.json()) }));
console.log(JSON.stringify({ event: "ice", ...(await (await run("Authorization", "ice"))()) }));
