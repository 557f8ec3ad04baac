// `mneme mcp` under the Inspector's command line, in both eras. Each call is a process of its own, so that each is a handshake too.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { after, before, describe, test } from "node:test";

import { Daemon, MNEME } from "./daemon.mjs";

const INSPECTOR = join(dirname(createRequire(import.meta.url).resolve("@modelcontextprotocol/inspector/package.json")), "clients/launcher/build/index.js");

let daemon;
before(async () => { daemon = await new Daemon().start(); });
after(async () => { await daemon?.stop(); });

async function inspect(era, ...args) {
  // Without a browser's or a person's storage: everything it keeps lies in the daemon's own folder.
  const child = spawn(process.execPath, [INSPECTOR, "--cli", MNEME, "mcp", "-e", `MNEME_SOCKET=${daemon.socket}`, "--protocol-era", era, "--format", "json", "--quiet", ...args],
    { env: daemon.environment, stdio: ["ignore", "pipe", "pipe"] });
  let [out, err] = ["", ""];
  child.stdout.on("data", (text) => { out += text; });
  child.stderr.on("data", (text) => { err += text; });
  const [code] = await once(child, "close");
  return { code, out, err };
}

/** Calls a tool that must succeed. */
async function tool(era, name, args) {
  const { code, out, err } = await inspect(era, "--method", "tools/call", "--tool-name", name, "--tool-args-json", JSON.stringify(args));
  assert.equal(code, 0, `${name}: ${out}${err}`);
  const answer = JSON.parse(out);
  const result = answer.result ?? answer;
  assert.ok(!result.isError, out);
  return result.structuredContent;
}

for (const era of ["modern", "legacy"]) {
  describe(`the Inspector's command line in its ${era} era`, () => {
    test("lists tools without a complaint about their schemas", async () => {
      const { code, out, err } = await inspect(era, "--method", "tools/list", "--strict");
      assert.equal(code, 0, out + err);
      const answer = JSON.parse(out);
      const tools = (answer.result ?? answer).tools;
      assert.deepEqual(tools.map((entry) => entry.name), ["remember", "recall", "forget", "generate", "feedback", "status"]);
    });

    test("drives every tool", async () => {
      const namespace = `inspector/${era}`;
      const kept = await tool(era, "remember", { text: "the gate code is 1660", namespace });
      const found = await tool(era, "recall", { query: "gate code", namespaces: [namespace] });
      assert.equal(found.hits[0].id, kept.id);
      const written = await tool(era, "generate", { prompt: "The gate is {{hole:3}}", seed: 1 });
      assert.ok(written.text.startsWith("The gate is "));
      assert.equal((await tool(era, "feedback", { task: written.task, verdict: "reject" })).task, written.task);
      assert.deepEqual((await tool(era, "forget", { ids: [kept.id] })).ids, [kept.id]);
      assert.equal((await tool(era, "status", {})).health, "healthy");
    });

    test("reads a resource and a prompt", async () => {
      const read = await inspect(era, "--method", "resources/read", "--uri", "mneme://status");
      assert.equal(read.code, 0, read.err);
      assert.match(read.out, /healthy/);
      const prompt = await inspect(era, "--method", "prompts/get", "--prompt-name", "recall-first", "--prompt-args", "task=plan the trip");
      assert.equal(prompt.code, 0, prompt.err);
      assert.match(prompt.out, /plan the trip/);
    });
  });
}
