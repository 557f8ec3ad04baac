// The page of `mneme ui` as a person and as an attacker see it, in headless Chromium against a real daemon.

import assert from "node:assert/strict";
import { request } from "node:http";
import { after, before, describe, test } from "node:test";

import { browserProgram, openBrowser, PageServer } from "./browser.mjs";
import { Daemon, eventually } from "./daemon.mjs";

const HOSTILE = `<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>&lt;b&gt; javascript:alert(1) "quoted" \u202e`;

/** A request by hand, with any headers. */
function ask(link, { path = "/", method = "GET", headers = {}, body } = {}) {
  const url = new URL(link);
  return new Promise((resolve, reject) => {
    const sent = request({ host: url.hostname, port: url.port, path, method, headers: { Host: url.host, ...headers }, setHost: false }, (response) => {
      let text = "";
      response.on("data", (piece) => { text += piece; });
      response.on("end", () => resolve({ status: response.statusCode, headers: response.headers, text }));
    });
    sent.on("error", reject);
    sent.end(body);
  });
}

const token = (link) => new URL(link).hash.slice("#token=".length);

describe("the page's server", () => {
  let daemon, server, link, origin;
  before(async () => {
    daemon = await new Daemon().start();
    server = new PageServer(daemon);
    link = await server.link();
    origin = `http://${new URL(link).host}`;
  });
  after(async () => {
    server?.stop();
    await daemon?.stop();
  });
  const post = (path, body, headers = {}) => ask(link, { path, method: "POST", headers: { "Content-Type": "application/json", Origin: origin, ...headers }, body: JSON.stringify(body) });

  test("listens on the loopback and says no to other hosts and origins", async () => {
    assert.equal(new URL(link).hostname, "127.0.0.1");
    assert.equal((await ask(link)).status, 200);
    for (const host of ["evil.example", "127.0.0.1", "127.0.0.1:1", ""]) assert.equal((await ask(link, { headers: { Host: host } })).status, 421, host);
    for (const other of ["http://evil.example", "null", origin.replace("http", "https")]) {
      assert.equal((await post("/api/session", { token: token(link) }, { Origin: other })).status, 421, other);
    }
    const form = await ask(link, { path: "/api/session", method: "POST", headers: { "Content-Type": "text/plain", Origin: origin }, body: "{}" });
    assert.equal(form.status, 415, "what a form of another site can send is not taken");
    const bare = await ask(link, { path: "/api/session", method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" });
    assert.equal(bare.status, 421, "a POST without an origin is not a browser's");
  });

  test("a token opens once, a wrong or stale one never, and nothing is told without a key", async () => {
    assert.equal((await post("/api/call", { method: "memory.stats" })).status, 401);
    assert.equal((await post("/api/generate", { prompt: "x" })).status, 401);
    assert.equal((await post("/api/session", { token: "0".repeat(48) })).status, 403);
    const fresh = await server.link();
    assert.equal((await post("/api/session", { token: token(link) })).status, 403, "a newer link makes the older one worthless");
    const { key } = JSON.parse((await post("/api/session", { token: token(fresh) })).text);
    assert.equal((await post("/api/session", { token: token(fresh) })).status, 403, "once only");
    const known = { Authorization: `Bearer ${key}` };
    assert.equal((await post("/api/call", { method: "memory.stats" }, known)).status, 200);
    assert.equal((await post("/api/call", { method: "admin.drain" }, known)).status, 404, "the page cannot stop the daemon");
    assert.equal((await post("/api/call", { method: "memory.recall", params: { nonsense: 1 } }, known)).status, 400);
    assert.equal((await post("/api/call", { method: "memory.stats" }, { Authorization: `Bearer ${token(fresh)}` })).status, 401);
  });

  test("every answer forbids inline script, outside resources, frames and caches", async () => {
    for (const path of ["/", "/app.js", "/missing"]) {
      const { headers } = await ask(link, { path });
      const policy = headers["content-security-policy"];
      assert.match(policy, /default-src 'none'/);
      assert.match(policy, /script-src 'self'(;|$)/);
      assert.match(policy, /frame-ancestors 'none'/);
      assert.doesNotMatch(policy, /unsafe|\*/);
      assert.equal(headers["cache-control"], "no-store");
      assert.equal(headers["x-content-type-options"], "nosniff");
    }
    assert.equal((await ask(link, { path: "/../Cargo.toml" })).status, 404);
  });

  test("a daemon that is away is an error in words, and the next call after its return works", async () => {
    const { key } = JSON.parse((await post("/api/session", { token: token(await server.link()) })).text);
    const status = () => post("/api/call", { method: "admin.status" }, { Authorization: `Bearer ${key}` });
    await daemon.kill();
    const away = await status();
    assert.equal(away.status, 400);
    assert.match(away.text, /not_running|connection/);
    await daemon.start();
    await eventually("it answers again", async () => (await status()).status === 200);
  });
});

describe("the page in a browser", { skip: browserProgram() ? false : "no Chromium here" }, () => {
  let daemon, server, browser, page, adapter;
  const complaints = [];
  before(async () => {
    daemon = await new Daemon(["evolution.load_max=1"]).start();
    server = new PageServer(daemon);
    browser = await openBrowser();
    adapter = await daemon.commitAnAdapter();
    await daemon.call("memory.remember", { text: `A page said: ${HOSTILE}`, namespace: "hostile", source: HOSTILE.slice(0, 60), speaker: "<b>Eve</b>" });
    await eventually("every memory has a vector", async () => (await daemon.call("memory.stats")).embeddings_pending === 0);
    page = await browser.context.newPage();
    page.on("console", (message) => { if (["error", "warning"].includes(message.type())) complaints.push(message.text()); });
    page.on("pageerror", (error) => complaints.push(error.message));
    page.on("request", (sent) => { if (!sent.url().startsWith("http://127.0.0.1:")) complaints.push(`asks ${sent.url()}`); });
    await page.goto(await server.link());
    await page.waitForSelector("#results .numbers");
  });
  after(async () => {
    await browser?.close();
    server?.stop();
    await daemon?.stop();
  });

  const view = (name) => page.click(`nav a[href="#${name}"]`);
  async function search(text, namespace) {
    await view("memory");
    if (namespace) {
      await page.waitForSelector(`#namespace option[value="${namespace}"]`, { state: "attached" });
      await page.selectOption("#namespace", namespace);
    }
    await page.fill("#query", text);
    await page.keyboard.press("Enter");
    await page.waitForSelector("#results .hit");
  }

  test("the token leaves the address at once", async () => {
    assert.ok(!page.url().includes("token"), page.url());
  });

  test("a search shows memories with source and the reasons of their order", async () => {
    await search("dinner at my Lord's");
    assert.ok((await page.locator("#results .hit").count()) > 3);
    const first = page.locator("#results .hit").first();
    assert.match(await first.innerText(), /user/);
    assert.ok((await first.locator(".signals .track").count()) >= 2);
    await page.fill("#query", "zebra spaceship quantum flux");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => /probably nothing|Nothing found/.test(document.querySelector("#results").innerText));
  });

  test("a hostile memory stays text", async () => {
    await search("A page said", "hostile");
    const { id, text } = (await daemon.call("memory.recall", { query: "A page said", namespaces: ["hostile"] })).hits[0].memory;
    const card = page.locator(`#results .hit[data-id="${id}"]`);
    await card.waitFor();
    assert.ok(text.includes("<script>window.pwned=1</script>"));
    assert.equal(await card.locator(".text").textContent(), text, "every letter as the daemon has it");
    assert.equal(await card.locator("img, script, b").count(), 0);
    assert.match(await card.innerText(), /<b>Eve<\/b>/);
    assert.equal(await page.evaluate(() => window.pwned), undefined);
    await view("map");
    await page.waitForSelector("#map canvas[data-points]");
    await page.fill("main input[type=search]", "A page said");
    await page.selectOption("main select", "hostile");
    await page.keyboard.press("Enter");
    await page.click("main button");
    await page.waitForSelector("#side .hit");
    assert.equal(await page.evaluate(() => window.pwned), undefined);
  });

  test("the map has a point for every memory with a vector, and a point opens", async () => {
    await view("memory");
    await view("map");
    const canvas = page.locator("#map canvas");
    await page.waitForFunction(() => Number(document.querySelector("#map canvas")?.dataset.points) >= 235);
    await page.waitForTimeout(100);
    // The nearest point to the middle of the picture is found by moving over it.
    const box = await canvas.boundingBox();
    search: for (let ring = 0; ring < 30; ring += 1) {
      for (let turn = 0; turn < 12; turn += 1) {
        const [x, y] = [box.width / 2 + ring * 9 * Math.cos(turn), box.height / 2 + ring * 9 * Math.sin(turn)];
        await page.mouse.move(box.x + x, box.y + y);
        if (await page.locator("#map .tip:not([hidden])").count()) {
          await page.mouse.down();
          await page.mouse.up();
          break search;
        }
      }
    }
    await page.waitForSelector("#side .hit");
  });

  test("the map marks what answers in every namespace, however many there are", async () => {
    const names = Array.from({ length: 65 }, (_, place) => `drawer-${String(place).padStart(2, "0")}`);
    const told = names.map((namespace) => ({ text: `the otter of ${namespace} sleeps`, namespace, trust: "user" }));
    await daemon.call("memory.import", { memories: told });
    for (const [question, text] of [["otter drawer-00", told[0].text], ["otter drawer-64", told[64].text]]) {
      await view("memory");
      await view("map");
      await page.waitForSelector("#map canvas[data-points]");
      await page.fill("main input[type=search]", question);
      await page.click("main button");
      await page.waitForSelector("#side .hit");
      assert.ok((await page.locator("#side .hit .text").allTextContents()).includes(text), question);
    }
  });

  test("the canvas crystallises live and ends with its uncertainty as colour", async () => {
    await view("canvas");
    // The view draws itself when the page has heard of its new name.
    await page.waitForSelector("#writing", { state: "attached" });
    await page.evaluate(() => {
      window.frames_seen = [];
      new MutationObserver(() => window.frames_seen.push(document.querySelector("#writing").innerText))
        .observe(document.querySelector("#writing"), { childList: true });
    });
    await page.fill("#prompt", "Up betimes, and to my office, where {{hole:24}} and so home.");
    await page.click("#write");
    await page.waitForSelector("#writing[data-state=done]");
    const frames = await page.evaluate(() => window.frames_seen);
    const masks = frames.map((text) => [...text].filter((letter) => letter === "░").length);
    assert.equal(Math.max(...masks), 24, "all masked at first");
    assert.equal(masks.at(-1), 0, "none masked at the end");
    // The stand-in engine writes faster than a busy page draws: how many of its steps are drawn is the machine's affair.
    assert.ok(masks.some((count) => count > 0 && count < 24), `steps between are seen: ${masks}`);
    const tokens = page.locator("#writing .token");
    assert.equal(await tokens.count(), 24);
    const colours = await tokens.evaluateAll((all) => all.map((token) => getComputedStyle(token).backgroundColor));
    assert.ok(new Set(colours).size > 2, "different confidence, different colour");
    assert.match(await tokens.first().getAttribute("title"), /confidence \d+ %/);
    await page.waitForSelector("#used .hit");
  });

  test("a generation can be stopped", async () => {
    await view("canvas");
    await page.selectOption("#guided", "");
    await page.fill("#prompt", "and then {{hole:500}}");
    // Both clicks in one turn of the page: the stand-in engine is faster than a hand.
    await page.evaluate(() => {
      document.querySelector("#write").click();
      [...document.querySelectorAll("button")].find((button) => button.textContent === "Stop").click();
    });
    await page.waitForFunction(() => ["failed", "done"].includes(document.querySelector("#writing").dataset.state));
    const { tasks } = await daemon.call("task.status");
    assert.ok(["cancelled", "succeeded"].includes(tasks[0].state), tasks[0].state);
  });

  test("forgetting asks first, and then the memory is gone from the page and from the daemon", async () => {
    const { id } = await daemon.call("memory.remember", { text: "the vault code is 4711", trust: "user" });
    await eventually("it has its vector", async () => (await daemon.call("memory.stats")).embeddings_pending === 0);
    await search("the vault code is 4711");
    const card = page.locator(`.hit[data-id="${id}"]`);
    await card.locator("text=Forget…").click();
    await page.click("#dialog >> text=Keep");
    await daemon.call("memory.get", { id });
    await card.locator("text=Forget…").click();
    await page.locator("#dialog .danger").click();
    await card.waitFor({ state: "detached" });
    await assert.rejects(daemon.call("memory.get", { id }), /does not exist|not found|no memory/i);
  });

  test("the evolution shows why, and an adapter is rolled back after a question", async () => {
    await view("evolution");
    await page.waitForSelector("#timeline .timeline li");
    assert.match(await page.locator("#timeline").innerText(), /commit[^]*gained/);
    assert.ok((await page.locator("#curves svg circle").count()) >= 1);
    const row = page.locator(`tr[data-adapter="${adapter}"]`);
    await row.locator("text=Roll back…").click();
    await page.locator("#dialog .danger").click();
    await eventually("it is rolled back", async () => (await daemon.call("evolve.status")).adapters.find((entry) => entry.id === adapter).state === "rolled_back");
    await page.waitForFunction((id) => /rolled_back/.test(document.querySelector(`tr[data-adapter="${id}"]`)?.innerText ?? ""), adapter);
  });

  test("a daemon that goes away and comes back is told", async () => {
    await daemon.kill();
    await page.waitForSelector("#daemon.bad");
    await daemon.start();
    await page.waitForSelector("#daemon.good");
  });

  test("nothing was asked outside, and the browser had nothing to complain of but the daemon's absence and turned down calls", () => {
    const unexpected = complaints.filter((text) => !/status of (400|401|403)/.test(text));
    assert.deepEqual(unexpected, []);
  });

  test("a used link locks the page and says what to do", async () => {
    const used = await server.link();
    const other = await browser.context.newPage();
    await other.goto(used);
    await other.waitForSelector("#results .numbers");
    const third = await browser.context.newPage();
    await third.goto(used);
    await third.waitForSelector("#locked");
    assert.match(await third.locator("#locked").innerText(), /Enter/);
    await other.close();
    await third.close();
  });
});
