// The optional door for a Prometheus on this machine, and the same text by `mneme metrics`.

import assert from "node:assert/strict";
import { request } from "node:http";
import { createServer } from "node:net";
import { test } from "node:test";
import { once } from "node:events";

import { Daemon, eventually, mneme } from "./daemon.mjs";

/** A port that was free a moment ago. */
async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

function get(port, path, headers = {}) {
  return new Promise((resolve, reject) => {
    const sent = request({ host: "127.0.0.1", port, path, headers }, (response) => {
      let text = "";
      response.on("data", (piece) => { text += piece; });
      response.on("end", () => resolve({ status: response.statusCode, type: response.headers["content-type"], text }));
    });
    sent.on("error", reject);
    sent.end();
  });
}

test("a configured port answers a scrape with what 'mneme metrics' prints, and no other host", async () => {
  const port = await freePort();
  const daemon = await new Daemon([`metrics.port=${port}`]).start();
  try {
    await daemon.call("memory.remember", { text: "a secret that no meter shows" });
    const scraped = await eventually("the door is open", () => get(port, "/metrics").catch(() => null));
    assert.equal(scraped.status, 200);
    assert.match(scraped.type, /^text\/plain; version=0\.0\.4/);
    assert.match(scraped.text, /^mneme_memories 1$/m);
    assert.match(scraped.text, /mneme_request_seconds_count\{method="memory.remember"\} 1/);
    assert.doesNotMatch(scraped.text, /secret/);
    const printed = await mneme(daemon, "metrics");
    const names = (text) => [...text.matchAll(/^# TYPE (\S+)/gm)].map((match) => match[1]);
    assert.deepEqual(names(printed.out), names(scraped.text));
    assert.equal((await get(port, "/metrics", { Host: "evil.example" })).status, 421);
    assert.equal((await get(port, "/")).status, 404);
  } finally { await daemon.stop(); }
});
