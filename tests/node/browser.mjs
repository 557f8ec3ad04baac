// The page of `mneme ui` in headless Chromium.

import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

import { chromium } from "playwright-core";

import { MNEME } from "./daemon.mjs";

/** The program of the browser, or null where there is none. */
export function browserProgram() {
  const named = process.env.CHROMIUM;
  if (named) return named;
  const found = spawnSync("sh", ["-c", "command -v chromium || command -v chromium-browser || command -v google-chrome"], { encoding: "utf8" });
  return found.stdout.trim() || null;
}

/** A browser with a profile of its own that looks for nothing outside. */
export async function openBrowser() {
  const profile = mkdtempSync(join(tmpdir(), "mneme-chromium-"));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: browserProgram(), headless: true, viewport: { width: 1240, height: 900 },
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  });
  context.setDefaultTimeout(20_000);
  return { context, close: async () => { await context.close(); rmSync(profile, { recursive: true, force: true }); } };
}

/** `mneme ui`, and the links that it prints. */
export class PageServer {
  constructor(daemon) {
    this.process = spawn(MNEME, ["--json", "ui"], { env: daemon.environment, stdio: ["pipe", "pipe", "ignore"] });
    this.lines = createInterface({ input: this.process.stdout })[Symbol.asyncIterator]();
    this.fresh = true;
  }

  /** A link that nobody has opened. */
  async link() {
    if (!this.fresh) this.process.stdin.write("\n");
    this.fresh = false;
    return JSON.parse((await this.lines.next()).value).link;
  }

  stop() { this.process.kill("SIGTERM"); }
}
