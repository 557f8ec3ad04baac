// Makes the pictures of the docs: the page in both themes, and `mneme top` in a terminal of tmux. Real data: the shipped diary, with
// the engine that MNEME_ENGINE names, on the models of MNEME_ASSETS (the stand-in when it names none).
//
//   MNEMED=... MNEME=... MNEME_ENGINE_FAKE=... node screenshots.mjs FOLDER

import { spawnSync } from "node:child_process";
import { mkdirSync, statSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";

import { openBrowser, PageServer } from "./browser.mjs";
import { Daemon, eventually, MNEME } from "./daemon.mjs";

const BYTES_MAX = 200_000;
const folder = resolve(process.argv[2] ?? ".");
mkdirSync(folder, { recursive: true });

/** The sixteen colours of a terminal, dark. */
const COLOURS = ["#14181a", "#ee8a7d", "#77c596", "#e2ab60", "#8ea5ea", "#c79ad9", "#6cbcb2", "#e6eaea"];

/** A terminal's lines with their colours as a page: what tmux captured, each run of a colour a span. */
function terminalPage(text) {
  const escape = (piece) => piece.replace(/&/g, "&amp;").replace(/</g, "&lt;");
  let style = {}, html = "";
  for (const piece of text.split(/(\x1b\[[0-9;]*m)/)) {
    const codes = /^\x1b\[([0-9;]*)m$/.exec(piece);
    if (!codes) {
      const fore = style.reverse ? style.back ?? COLOURS[0] : style.fore;
      const back = style.reverse ? style.fore ?? COLOURS[7] : style.back;
      const css = [fore && `color:${fore}`, back && `background:${back}`, style.bold && "font-weight:600", style.dim && "opacity:.62"].filter(Boolean).join(";");
      html += css ? `<span style="${css}">${escape(piece)}</span>` : escape(piece);
      continue;
    }
    const list = (codes[1] || "0").split(";").map(Number);
    while (list.length) {
      const code = list.shift();
      if ((code === 38 || code === 48) && list[0] === 5) {
        // Of the 256 colours only the sixteen named ones are used.
        style[code === 38 ? "fore" : "back"] = COLOURS[list[1] % 8];
        list.splice(0, 2);
        continue;
      }
      if (code === 0) style = {};
      else if (code === 1) style.bold = true;
      else if (code === 2) style.dim = true;
      else if (code === 7) style.reverse = true;
      else if (code === 22) style.bold = style.dim = false;
      else if (code === 39) style.fore = undefined;
      else if (code === 49) style.back = undefined;
      else if (code >= 30 && code <= 37) style.fore = COLOURS[code - 30];
      else if (code >= 40 && code <= 47) style.back = COLOURS[code - 40];
      else if (code >= 90 && code <= 97) style.fore = COLOURS[code - 90];
    }
  }
  return `<!doctype html><meta charset="utf-8"><body style="margin:0;background:#14181a"><pre style="display:inline-block;margin:0;padding:16px 18px;background:#14181a;color:#e6eaea;font:14px/1.25 'DejaVu Sans Mono',monospace">${html}</pre>`;
}

const engine = process.env.MNEME_ENGINE;
const daemon = await new Daemon(["evolution.load_max=1", ...(engine ? [`engine.program=${engine}`, `paths.assets_dir=${process.env.MNEME_ASSETS}`] : [])]).start();
const server = new PageServer(daemon);
const browser = await openBrowser();
const tmux = (...args) => spawnSync("tmux", ["-L", `mneme-${process.pid}`, ...args], { encoding: "utf8" });
try {
  if (engine) await daemon.diary(0, 234);
  else await daemon.commitAnAdapter();
  for (const [text, kind] of [["Elizabeth likes her tea without milk", "preference"], ["The gate of the garden is locked at nine", "fact"], ["Council of the Navy on Tuesday, bring the accounts", "event"]]) {
    await daemon.call("memory.remember", { text, kind, trust: "user" });
  }
  await eventually("every memory has its vector", async () => (await daemon.call("memory.stats")).embeddings_pending === 0, 300_000);
  const page = await browser.context.newPage();
  await page.setViewportSize({ width: 1180, height: 780 });
  const shot = async (name) => {
    await page.waitForTimeout(600);
    const path = join(folder, name);
    await page.screenshot({ path });
    const { size } = statSync(path);
    if (size > BYTES_MAX) throw new Error(`${name} has ${size} bytes, at most ${BYTES_MAX} are allowed`);
    console.log(`${name}: ${size} bytes`);
  };
  await page.goto(await server.link());
  await page.fill("#query", "what did we have for dinner at my Lord's?");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#results .hit");
  await shot("page-memory.png");
  await page.click('nav a[href="#map"]');
  await page.waitForSelector("#map canvas[data-points]");
  await page.fill("main input[type=search]", "a sermon on the Lord's day");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#side .hit");
  await shot("page-map.png");
  await page.click('nav a[href="#canvas"]');
  await page.click("#write");
  await page.waitForSelector("#writing[data-state=done]", { timeout: 120_000 });
  await shot("page-canvas.png");
  await page.emulateMedia({ colorScheme: "dark" });
  await page.click('nav a[href="#evolution"]');
  await page.waitForSelector("#timeline");
  await shot("page-evolution-dark.png");

  tmux("new-session", "-d", "-x", "118", "-y", "34", `env -u NO_COLOR COLORTERM=truecolor MNEME_SOCKET=${daemon.socket} ${MNEME} top --every 0.5`);
  for (let round = 0; round < 12; round += 1) {
    await daemon.call("generate", { prompt: `Up betimes, on day ${round}, and {{hole:8}}`, namespace: "default", seed: round });
    for (let times = 0; times < 6; times += 1) await daemon.call("memory.recall", { query: "dinner" });
    await page.waitForTimeout(350);
  }
  const captured = await eventually("top is drawn", () => {
    const { stdout } = tmux("capture-pane", "-p", "-e", "-t", "0");
    return stdout.includes("requests/s") && stdout.includes("memory.recall") ? stdout : null;
  });
  const terminal = await browser.context.newPage();
  await terminal.setContent(terminalPage(captured.trimEnd()));
  const path = join(folder, "top.png");
  await (await terminal.$("pre")).screenshot({ path });
  console.log(`top.png: ${statSync(path).size} bytes`);
  writeFileSync(join(folder, "top.txt"), `${tmux("capture-pane", "-p", "-t", "0").stdout.trimEnd()}\n`);
} finally {
  tmux("kill-server");
  await browser.close();
  server.stop();
  await daemon.stop();
}
