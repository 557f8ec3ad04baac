// The configuration snippets of the docs and of the README are what `mneme install --print` prints.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { Daemon, mneme } from "./daemon.mjs";

const read = (path) => readFileSync(fileURLToPath(new URL(`../../${path}`, import.meta.url)), "utf8");
const CLIENTS = ["claude-code", "claude-desktop", "cursor", "vscode", "codex"];

/** What is printed, with the program's name instead of its path. */
async function printed(client) {
  // No daemon is needed: nothing is started, and the usual socket is not told in the arguments.
  const folder = new Daemon();
  const environment = { PATH: process.env.PATH, HOME: folder.folder };
  const { code, out, err } = await mneme({ environment }, "install", client, "--print");
  assert.equal(code, 0, err);
  return out.replace(/"[^"]*\/[^"/]*mneme"/, '"mneme"');
}

for (const client of CLIENTS) {
  test(`the snippet of ${client} is what is printed, four lines of configuration`, async () => {
    const page = read("docs/clients/agents.md");
    const snippet = new RegExp(`<!-- print: ${client} -->\n\`\`\`[a-z]+\n([^]*?)\`\`\``).exec(page);
    assert.ok(snippet, "the page has it");
    const told = await printed(client);
    assert.equal(snippet[1], told);
    assert.ok(told.trim().split("\n").length <= 5);
  });
}

test("the README's snippet means what is printed for Claude Desktop and Cursor", async () => {
  const snippet = /```json\n(\{"mcpServers"[^]*?)```/.exec(read("README.md"));
  assert.ok(snippet);
  for (const client of ["claude-desktop", "cursor"]) assert.deepEqual(JSON.parse(snippet[1]), JSON.parse(await printed(client)));
});
