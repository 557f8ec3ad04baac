// `mneme mcp` under the official TypeScript client, in both revisions: every tool, resources, prompts, and a killed daemon.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { Client } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";

import { Daemon, MNEME } from "./daemon.mjs";

const REVISIONS = [
  { name: "2026-07-28", era: "modern", negotiation: { mode: { pin: "2026-07-28" } } },
  { name: "2025-11-25", era: "legacy", negotiation: { mode: "legacy" } },
];
const TOOLS = ["remember", "recall", "forget", "generate", "feedback", "status"];

async function connected(daemon, negotiation, extra = []) {
  const client = new Client({ name: "typescript-suite", version: "1.0.0" }, { versionNegotiation: negotiation });
  await client.connect(new StdioClientTransport({ command: MNEME, args: [...extra, "mcp"], env: daemon.environment, stderr: "ignore" }));
  return client;
}

/** Calls a tool that must succeed; the client itself holds the answer to the tool's schema. */
async function ok(client, name, args) {
  const result = await client.callTool({ name, arguments: args });
  assert.ok(!result.isError, JSON.stringify(result.content));
  assert.deepEqual(JSON.parse(result.content.at(-1).text), result.structuredContent, "the text says the same as the structure");
  return result.structuredContent;
}

for (const { name, era, negotiation } of REVISIONS) {
  describe(`the official TypeScript client in revision ${name}`, () => {
    let daemon, client;
    before(async () => {
      daemon = await new Daemon().start();
      client = await connected(daemon, negotiation);
    });
    after(async () => {
      await client?.close();
      await daemon?.stop();
    });

    test("speaks that revision and sees every tool with its annotations", async () => {
      assert.equal(client.getProtocolEra(), era);
      assert.equal(client.getNegotiatedProtocolVersion(), name);
      const { tools } = await client.listTools();
      assert.deepEqual(tools.map((tool) => tool.name), TOOLS);
      const by = Object.fromEntries(tools.map((tool) => [tool.name, tool.annotations]));
      assert.equal(by.recall.readOnlyHint, true);
      assert.equal(by.forget.destructiveHint, true);
      assert.ok(tools.every((tool) => tool.outputSchema), "every tool says what it gives back");
    });

    test("every tool does its work", async () => {
      const namespace = `ts/${era}`;
      const kept = await ok(client, "remember", { text: "Ada drinks tea at four", namespace, kind: "fact" });
      const found = await ok(client, "recall", { query: "when does Ada drink tea?", namespaces: [namespace] });
      assert.equal(found.hits[0].id, kept.id);
      const newer = await ok(client, "remember", { text: "Ada drinks tea at five", namespace, supersedes: kept.id });
      const again = await ok(client, "recall", { query: "when does Ada drink tea?", namespaces: [namespace] });
      assert.deepEqual(again.hits.map((hit) => hit.id), [newer.id]);
      const written = await ok(client, "generate", { prompt: "Tea is at {{hole:4}}", seed: 1 });
      assert.ok(written.text.startsWith("Tea is at "));
      assert.equal((await ok(client, "feedback", { task: written.task, verdict: "accept" })).task, written.task);
      assert.deepEqual((await ok(client, "forget", { ids: [newer.id] })).ids, [newer.id]);
      assert.equal((await ok(client, "status", {})).health, "healthy");
    });

    test("resources and prompts are read", async () => {
      const { resources } = await client.listResources();
      assert.deepEqual(resources.map((resource) => resource.uri).sort(), ["mneme://namespaces", "mneme://status"]);
      const { contents } = await client.readResource({ uri: "mneme://status" });
      assert.equal(JSON.parse(contents[0].text).health, "healthy");
      const { prompts } = await client.listPrompts();
      assert.deepEqual(prompts.map((prompt) => prompt.name), ["recall-first", "remember-session"]);
      const prompt = await client.getPrompt({ name: "recall-first", arguments: { task: "plan the trip" } });
      assert.ok(prompt.messages[0].content.text.endsWith("plan the trip"));
    });

    test("wrong arguments are an error that the model can read", async () => {
      const result = await client.callTool({ name: "recall", arguments: { query: "" } });
      assert.ok(result.isError && result.content[0].text.length > 0);
    });
  });

  test(`a killed daemon is a clear tool error within its deadline, and the next call after its restart works (${name})`, async () => {
    const daemon = await new Daemon().start();
    // The deadline of a call is five seconds; a refused connection is told at once.
    const client = await connected(daemon, negotiation, ["--timeout", "5"]);
    try {
      const kept = await ok(client, "remember", { text: "survives a kill" });
      await daemon.kill();
      const failed = await client.callTool({ name: "recall", arguments: { query: "survives" } }, { timeout: 8_000 });
      assert.ok(failed.isError);
      assert.match(failed.content[0].text, /not running[^]*hint: /);
      await daemon.start();
      const found = await ok(client, "recall", { query: "survives a kill" });
      assert.equal(found.hits[0].id, kept.id);
      // A daemon that hangs is told within the deadline too, and goes on afterwards.
      daemon.process.kill("SIGSTOP");
      const hung = await client.callTool({ name: "recall", arguments: { query: "survives" } }, { timeout: 20_000 });
      daemon.process.kill("SIGCONT");
      assert.ok(hung.isError);
      assert.match(hung.content[0].text, /within|deadline|time/i);
      assert.equal((await ok(client, "recall", { query: "survives a kill" })).hits[0].id, kept.id);
    } finally {
      daemon.process.kill("SIGCONT");
      await client.close();
      await daemon.stop();
    }
  });
}
