import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import { Client, MnemeError, defaultSocket } from "../src/index.js";

const program = process.env["MNEMED"];

describe("against a daemon", { skip: program ? false : "MNEMED names no daemon program" }, () => {
  const folder = mkdtempSync(join(tmpdir(), "mneme-"));
  const socket = join(folder, "run", "mneme.sock");
  const client = new Client({ socket, client: "node-test" });
  let daemon: ChildProcess;

  before(async () => {
    const env = { ...process.env, MNEME_PATHS__STATE_DIR: join(folder, "state"), MNEME_PATHS__RUNTIME_DIR: join(folder, "run") };
    daemon = spawn(program as string, ["--set", "engine.program=fake"], { env, stdio: "ignore" });
    for (let tries = 0; tries < 1000; tries++) {
      try {
        await client.call("ping");
        return;
      } catch {
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    }
    throw new Error("the daemon does not start");
  });

  after(async () => {
    await client.close();
    daemon.kill("SIGTERM");
    await new Promise((resolve) => daemon.once("exit", resolve));
    rmSync(folder, { recursive: true });
  });

  test("what was remembered is recalled, generated from and forgotten", async () => {
    const kept = await client.remember({ text: "Ada drinks tea at four", kind: "fact" });
    const found = await client.recall("when does Ada drink tea?", {}, { minLsn: kept.lsn });
    assert.equal(found.hits[0]?.memory.id, kept.id);
    assert.equal(found.hits[0]?.memory.origin.client, "node-test");
    const written = await client.generate("Tea is at {{hole:4}}", { seed: 1 });
    assert.ok(written.text.startsWith("Tea is at "));
    await client.feedback(written.task, "reject");
    const newer = await client.supersede(kept.id, { text: "Ada drinks tea at five" });
    assert.deepEqual((await client.forget(newer.id)).ids, [newer.id]);
    await assert.rejects(client.get(newer.id), (error: MnemeError) => error.kind === "not_found");
  });

  test("calls run side by side and a change sent again is made once", async () => {
    const opId = "0123456789abcdef0123456789abcdef";
    const both = [await client.remember("once", { opId }), await client.remember("once", { opId })];
    assert.deepEqual(both.map((result) => result.replayed), [false, true]);
    const kept = await Promise.all(Array.from({ length: 50 }, (_, number) => client.remember(`note ${number}`)));
    assert.equal(new Set(kept.map((result) => result.id)).size, 50);
  });
});

/** A peer that greets and then answers as told; `undefined` hangs up. */
async function scripted(
  answer: (request: Record<string, unknown>, count: number) => object | undefined,
  work: (client: Client, seen: Record<string, unknown>[]) => Promise<void>,
): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "mneme-"));
  const seen: Record<string, unknown>[] = [];
  const server = createServer((peer) => {
    peer.on("error", () => undefined);
    peer.on("data", (data) => {
      for (const line of data.toString().trim().split("\n")) {
        const request = JSON.parse(line) as Record<string, unknown>;
        const greeting = request["method"] === "hello";
        if (!greeting) seen.push(request);
        const reply = greeting ? { result: {} } : answer(request, seen.length);
        if (reply === undefined) peer.destroy();
        else peer.write(`${JSON.stringify({ jsonrpc: "2.0", id: request["id"], ...reply })}\n`);
      }
    });
  });
  const socket = join(folder, "s");
  await new Promise<void>((resolve) => server.listen(socket, resolve));
  const client = new Client({ socket });
  try {
    await work(client, seen);
  } finally {
    await client.close();
    server.close();
    rmSync(folder, { recursive: true });
  }
}

const failure = (kind: string, more: object = {}): object => ({ error: { code: -1, message: "no", data: { kind, ...more } } });

test("a lost connection is opened again and the change keeps its op_id", async () => {
  await scripted((_, count) => (count < 3 ? undefined : { result: { id: "m" } }), async (client, seen) => {
    assert.equal((await client.remember("x")).id, "m");
    assert.equal(new Set(seen.map((request) => request["op_id"])).size, 1);
    assert.equal(seen.length, 3);
  });
});

test("busy is waited for, other errors are not", async () => {
  await scripted((_, count) => failure(count < 2 ? "busy" : "conflict", { retry_after_ms: 1 }), async (client, seen) => {
    await assert.rejects(client.remember("x"), (error: MnemeError) => error.kind === "conflict");
    assert.equal(seen.length, 2);
  });
});

test("a generation is not sent twice", async () => {
  await scripted(() => undefined, async (client, seen) => {
    await assert.rejects(client.generate("x"), (error: MnemeError) => error.kind === "disconnected");
    assert.equal(seen.length, 1);
  });
});

test("a daemon that is not there is named with what to do", async () => {
  await assert.rejects(new Client({ socket: "/nonexistent/s" }).call("ping"), (error: MnemeError) => {
    assert.equal(error.kind, "not_running");
    assert.match(error.hint ?? "", /mnemed/);
    return true;
  });
});

test("the socket is where the daemon puts it", () => {
  assert.equal(defaultSocket({ MNEME_SOCKET: "/a" }), "/a");
  assert.equal(defaultSocket({ XDG_RUNTIME_DIR: "/x" }), "/x/mneme/mneme.sock");
  assert.equal(defaultSocket({ XDG_RUNTIME_DIR: "x", XDG_STATE_HOME: "/s" }), "/s/mneme/run/mneme.sock");
});
