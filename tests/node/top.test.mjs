// `mneme top` in a real terminal of tmux: drawn, resized, a daemon that goes away and comes back, and its end.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { after, before, describe, test } from "node:test";

import { Daemon, eventually, mneme, MNEME } from "./daemon.mjs";

const hasTmux = spawnSync("tmux", ["-V"]).status === 0;
const tmux = (...args) => spawnSync("tmux", ["-L", `mneme-top-${process.pid}`, ...args], { encoding: "utf8" });
const screen = () => tmux("capture-pane", "-p", "-t", "0").stdout;
const shows = (what) => eventually(`the screen shows ${what}`, () => what.test(screen()));

let daemon;
before(async () => {
  daemon = await new Daemon().start();
  await daemon.diary(0, 20);
  await daemon.call("generate", { prompt: "Up betimes and {{hole:4}}" });
});
after(async () => { await daemon?.stop(); });

describe("in a terminal", { skip: hasTmux ? false : "no tmux here" }, () => {
  before(() => tmux("new-session", "-d", "-x", "100", "-y", "30", `env MNEME_SOCKET=${daemon.socket} ${MNEME} top --every 0.2; echo ended with $?; sleep 60`));
  after(() => tmux("kill-server"));

  test("traffic, memories, uncertainty, training and adapters are drawn", async () => {
    await shows(/● healthy[^]*requests\/s[^]*memories +20/);
    await shows(/Uncertainty[^]*Training[^]*verdict[^]*Adapters/);
  });

  test("another size is drawn anew, however small", async () => {
    tmux("resize-window", "-x", "60", "-y", "16");
    await shows(/^ mneme top +● healthy/);
    assert.ok(screen().split("\n").every((line) => line.length <= 60));
    tmux("resize-window", "-x", "2", "-y", "2");
    tmux("resize-window", "-x", "110", "-y", "32");
    await shows(/● healthy[^]*Decisions/);
  });

  test("a daemon that is killed is told, and its return too", async () => {
    await daemon.kill();
    await shows(/● daemon is away[^]*memories +20/);
    await daemon.start();
    await shows(/● healthy/);
  });

  test("keys open help and end it", async () => {
    tmux("send-keys", "-t", "0", "?");
    await shows(/freeze and go on/);
    tmux("send-keys", "-t", "0", "Escape");
    await eventually("the help is closed", () => !/freeze and go on/.test(screen()));
    tmux("send-keys", "-t", "0", "q");
    await shows(/ended with 0/);
  });
});

test("without a terminal it says what to do, and --once and --json print", async () => {
  const piped = await mneme(daemon, "top");
  assert.equal(piped.code, 64);
  assert.match(piped.err, /--once/);
  const once = await mneme(daemon, "top", "--once", "--every", "0.1");
  assert.match(once.out, /mneme top[^]*● healthy[^]*Memory/);
  const json = JSON.parse((await mneme(daemon, "top", "--json", "--every", "0.1")).out);
  assert.equal(json.memory.memories, 20);
  assert.equal((await mneme(daemon, "top", "--every", "0")).code, 64);
});
