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
  answer: (request: Record<string, unknown>, count: number) => object | undefined | Promise<object>,
  work: (client: Client, seen: Record<string, unknown>[]) => Promise<void>,
): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "mneme-"));
  let connections = 0;
  const seen: Record<string, unknown>[] = [];
  const server = createServer((peer) => {
    const connection = ++connections;
    peer.on("error", () => undefined);
    const take = async (line: string): Promise<void> => {
      const request = JSON.parse(line) as Record<string, unknown>;
      const greeting = request["method"] === "hello";
      if (!greeting) seen.push({ ...request, connection });
      const reply = greeting ? { result: { limits: { frame_bytes_max: 4096 } } } : await answer(request, seen.length);
      if (reply === undefined) peer.destroy();
      else peer.write(`${JSON.stringify({ jsonrpc: "2.0", id: request["id"], ...reply })}\n`);
    };
    peer.on("data", (data) => data.toString().trim().split("\n").forEach((line) => void take(line)));
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

test("what no op_id makes once is not sent twice", async () => {
  for (const method of ["generate", "evolve.run", "evolve.rollback", "watch.add", "admin.backup", "admin.drain"]) {
    await scripted(() => undefined, async (client, seen) => {
      await assert.rejects(client.call(method), (error: MnemeError) => error.kind === "disconnected");
      assert.equal(seen.length, 1, method);
    });
  }
});

test("a daemon that shuts down is left: the call goes to the next one, and what is under way is still answered", async () => {
  let release: (reply: object) => void = () => undefined;
  let arrived: () => void = () => undefined;
  const slow = new Promise<object>((resolve) => (release = resolve));
  const both = new Promise<void>((resolve) => (arrived = resolve));
  const script = (request: Record<string, unknown>, count: number): object | Promise<object> => {
    if (request["method"] === "memory.get") return arrived(), slow;
    return count < 4 ? both.then(() => failure("shutting_down", { retry_after_ms: 1 })) : { result: { id: "m" } };
  };
  await scripted(script, async (client, seen) => {
    const [kept, found] = await Promise.all([
      client.remember("x").then((result) => (release({ result: { id: "g" } }), result)),
      client.get("g"),
    ]);
    assert.deepEqual([kept.id, found.id], ["m", "g"]);
    const asked = seen.filter((request) => request["method"] === "memory.remember");
    assert.equal(asked.length, 3);
    assert.equal(new Set(asked.map((request) => request["op_id"])).size, 1);
    assert.equal(new Set(asked.map((request) => request["connection"])).size, asked.length);
  });
});

test("a drain is not meant for the daemon after the one that shuts down", async () => {
  await scripted(() => failure("shutting_down", { retry_after_ms: 1 }), async (client, seen) => {
    await assert.rejects(client.call("admin.drain"), (error: MnemeError) => error.kind === "shutting_down");
    assert.equal(seen.length, 1);
  });
});

test("a request that is too long is refused before it is sent, and the others are answered", async () => {
  await scripted(() => ({ result: { id: "m" } }), async (client, seen) => {
    const [long, short] = await Promise.allSettled([client.remember("ü".repeat(2048)), client.remember("x")]);
    assert.equal(long.status === "rejected" && (long.reason as MnemeError).kind, "frame_too_large");
    assert.equal(short.status, "fulfilled");
    assert.equal(seen.length, 1);
  });
});

test("an error about a line that nobody can name is no other caller's", async () => {
  const nameless = { id: null, ...failure("frame_too_large") };
  await scripted((_, count) => (count === 2 ? nameless : count < 3 ? new Promise(() => undefined) : { result: { id: "m" } }), async (client, seen) => {
    const kept = await Promise.all([client.remember("x"), client.remember("y")]);
    assert.deepEqual(kept.map((result) => result.id), ["m", "m"]);
    assert.equal(new Set(seen.map((request) => request["op_id"])).size, 2);
  });
  await scripted(() => nameless, async (client) => {
    await assert.rejects(client.remember("x"), (error: MnemeError) => error.kind === "frame_too_large");
  });
});

test("a setting that is undefined is one that is missing, and no time is too long for a timer", async () => {
  await assert.rejects(new Client({ socket: "/nonexistent/s", client: undefined, retry: undefined }).call("ping"));
  const environment = process.env["MNEME_SOCKET"];
  process.env["MNEME_SOCKET"] = "/nonexistent/usual";
  try {
    const usual = new Client({ socket: undefined, timeoutMs: undefined, connectTimeoutMs: undefined });
    await assert.rejects(usual.call("ping"), /not running at \/nonexistent\/usual/);
  } finally {
    if (environment === undefined) delete process.env["MNEME_SOCKET"];
    else process.env["MNEME_SOCKET"] = environment;
  }
  await scripted(() => ({ result: { id: "m" } }), async (client) => {
    assert.equal((await client.remember("x", { timeoutMs: Infinity })).id, "m");
    assert.equal((await client.remember("x", { timeoutMs: 2 ** 40 })).id, "m");
    assert.equal((await client.remember("x", { timeoutMs: undefined })).id, "m");
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
