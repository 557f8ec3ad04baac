// A daemon of its own for a suite, with the stand-in engine, in a folder of its own; and what the suites ask it directly.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

export const PATIENCE_MS = 30_000;
export const MNEME = process.env.MNEME;

/** Waits until something holds; what it last threw is told when it never does. */
export async function eventually(what, holds, patience = PATIENCE_MS) {
  const until = Date.now() + patience;
  let last;
  for (;;) {
    try {
      const value = await holds();
      if (value) return value;
    } catch (error) { last = error; }
    if (Date.now() > until) throw new Error(`${what}: not within ${patience} ms`, { cause: last });
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

export class Daemon {
  constructor(settings = []) {
    // A socket's path has at most 107 bytes.
    this.folder = mkdtempSync(join(tmpdir(), "mneme-"));
    this.socket = join(this.folder, "run", "mneme.sock");
    this.settings = settings;
  }

  get environment() {
    return { PATH: process.env.PATH, HOME: this.folder, MNEME_SOCKET: this.socket,
      MNEME_PATHS__STATE_DIR: join(this.folder, "state"), MNEME_PATHS__RUNTIME_DIR: join(this.folder, "run") };
  }

  async start() {
    const engine = process.env.MNEME_ENGINE_FAKE ?? "fake";
    const settings = [`engine.program=${engine}`, ...this.settings].flatMap((setting) => ["--set", setting]);
    this.process = spawn(process.env.MNEMED, settings, { env: this.environment, stdio: ["ignore", "ignore", "pipe"] });
    this.log = "";
    this.process.stderr.on("data", (text) => { this.log += text; });
    const answers = await eventually("the daemon answers", () =>
      this.process.exitCode !== null ? "never" : this.call("ping").then(() => "yes", () => false));
    if (answers === "never") throw new Error(`daemon ended: ${this.log}`);
    return this;
  }

  /** Ends it as a crash would. */
  async kill() {
    const ended = once(this.process, "exit");
    this.process.kill("SIGKILL");
    await ended;
  }

  async stop() {
    if (this.process && this.process.exitCode === null && this.process.signalCode === null) {
      const ended = once(this.process, "exit");
      this.process.kill("SIGTERM");
      await ended;
    }
    rmSync(this.folder, { recursive: true, force: true });
  }

  /** Calls a method over a connection of its own. */
  async call(method, params = {}) {
    const socket = connect(this.socket);
    try {
      await once(socket, "connect");
      const send = (id, name, body) => socket.write(`${JSON.stringify({ jsonrpc: "2.0", id, method: name, params: body })}\n`);
      send(1, "hello", { protocol: 1, client: "suite" });
      send(2, method, params);
      for await (const line of createInterface({ input: socket })) {
        const answer = JSON.parse(line);
        if (answer.id === 2) {
          if (answer.error) throw new Error(answer.error.message);
          return answer.result;
        }
      }
      throw new Error("connection closed");
    } finally { socket.destroy(); }
  }

  /** Some days of a person's diary. */
  async diary(from, to) {
    const text = readFileSync(fileURLToPath(new URL("../data/pepys-1660.jsonl", import.meta.url)), "utf8");
    const memories = text.trim().split("\n").slice(from, to).map((line) => JSON.parse(line));
    return this.call("memory.import", { memories });
  }

  /** Lets the loop train until an adapter serves. */
  async commitAnAdapter() {
    await this.diary(0, 160);
    await eventually("the texts are in view", async () => (await this.call("evolve.status")).texts_waiting >= 160);
    await this.call("evolve.run");
    const entered = (station) => async () => (await this.call("evolve.log")).decisions.some((row) => row.to === station);
    await eventually("its gates hold", entered("shadow"));
    await this.diary(160, 234);
    await eventually("it is committed", entered("commit"));
    return (await this.call("evolve.status")).adapters.find((adapter) => adapter.state === "active").id;
  }
}

/** Runs `mneme` and gives its status and words. */
export async function mneme(daemon, ...args) {
  const child = spawn(MNEME, args, { env: daemon.environment, stdio: ["ignore", "pipe", "pipe"] });
  let [out, err] = ["", ""];
  child.stdout.on("data", (text) => { out += text; });
  child.stderr.on("data", (text) => { err += text; });
  // Its words may arrive after its end.
  const [code] = await once(child, "close");
  return { code, out, err };
}
