// The page: which view is shown, how the daemon is, and what to do when the key is stale.

import { call, enter } from "/api.js";
import { h, note, show } from "/dom.js";
import { memory } from "/memory.js";
import { map } from "/map.js";
import { canvas } from "/canvas.js";
import { evolution } from "/evolution.js";
import { status } from "/status.js";

const VIEWS = { memory, map, canvas, evolution, status };
const POLL_MS = 2000;
const view = document.getElementById("view");
let leave = null;
let locked = false;

function lock(failure) {
  locked = true;
  leave?.();
  leave = null;
  daemon("bad", "locked");
  show(view, h("div", { className: "card empty", id: "locked" }, h("h1", {}, "This link is used up"), h("p", {}, failure.message),
    h("p", { className: "small" }, failure.hint ?? "")));
}

/** Tells what went wrong; a stale key locks the page. */
export function report(failure) {
  if (failure.status === 401 || failure.status === 403) lock(failure);
  else note(failure.words ?? String(failure), true);
}

function daemon(state, words) {
  const element = document.getElementById("daemon");
  element.className = `daemon ${state}`;
  element.lastElementChild.textContent = words;
}

function route() {
  if (locked) return;
  const name = location.hash.slice(1).split("?")[0];
  const chosen = VIEWS[name] ? name : "memory";
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === `#${chosen}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  leave?.();
  show(view);
  document.title = `${chosen[0].toUpperCase()}${chosen.slice(1)} · Mneme`;
  leave = VIEWS[chosen](view, report) ?? null;
}

async function poll() {
  if (!locked && !document.hidden) {
    try {
      const now = await call("admin.status");
      const healthy = now.health === "healthy";
      daemon(healthy ? "good" : "warn", healthy ? `${now.memories.toLocaleString()} memories` : now.health);
      document.dispatchEvent(new CustomEvent("daemon", { detail: now }));
    } catch (failure) {
      if (failure.status === 401) lock(failure);
      else daemon("bad", failure.kind === "page_away" ? "page server has ended" : failure.kind === "not_running" ? "daemon is away" : failure.message);
    }
  }
  setTimeout(poll, POLL_MS);
}

try {
  await enter();
  addEventListener("hashchange", route);
  route();
  poll();
} catch (failure) {
  lock(failure);
}
