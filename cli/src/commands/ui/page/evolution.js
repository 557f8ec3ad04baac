// The loop: where it is, the adapters, and every decision with its reason and numbers.

import { call } from "/api.js";
import { curve } from "/chart.js";
import { confirm, count, figure, h, note, show, when } from "/dom.js";

const STAGES = ["serve", "suspect", "propose", "train", "validate", "shadow", "commit"];
const DOWN = new Set(["reject", "rollback", "roll_back", "rolled_back", "retire", "retired"]);
const UP = new Set(["commit", "active"]);
const POLL_MS = 2000;

/** The numbers of the decisions that have one by this name, oldest first, with its bounds. */
export function series(decisions, name) {
  return decisions.filter((row) => name in row.numbers).reverse().map((row) => ({
    at: row.at, value: row.numbers[name], lower: row.numbers[`${name}_lower`], upper: row.numbers[`${name}_upper`],
    good: UP.has(row.to) || row.to === "shadow" ? true : DOWN.has(row.to) ? false : undefined, words: `${row.from} → ${row.to}`,
  }));
}

export function evolution(view, report) {
  const head = h("section", { className: "card", id: "loop" });
  const adapters = h("section", { className: "card wide", id: "adapters" });
  const curves = h("section", { className: "card", id: "curves" });
  const timeline = h("section", { className: "card", id: "timeline" });
  const choice = h("select", { "aria-label": "Which number" });
  let shown = "", alive = true, timer = 0;

  const act = async (method, params, words) => {
    try { const done = await call(method, params); note(done.message || words); await load(true); }
    catch (failure) { report(failure); }
  };
  async function rollback(adapter) {
    const body = h("div", {}, h("p", {}, "It stops serving at once, and the generator goes on without it. The decision is kept in the log."), h("blockquote", { className: "mono" }, adapter.id));
    if (await confirm({ title: "Roll this adapter back?", body, action: "Roll back" })) await act("evolve.rollback", { adapter: adapter.id }, "Rolled back.");
  }

  function tellLoop(now) {
    show(head,
      h("div", { className: "row spread" }, h("h1", {}, "The loop"),
        h("div", { className: "row" },
          now.paused ? h("button", { onclick: () => act("evolve.resume", {}, "Resumed.") }, "Resume") : h("button", { onclick: () => act("evolve.pause", {}, "Paused.") }, "Pause"),
          h("button", { onclick: () => act("evolve.run", {}, "Proposed; its gates stay.") }, "Propose a training now"))),
      h("ol", { className: "stages", "aria-label": "State" }, [...new Set([...STAGES, now.state])].map((stage) => h("li", { className: stage === now.state ? "now" : "" }, stage))),
      now.paused && h("p", {}, h("span", { className: "tag warm" }, `paused: ${now.paused}`)),
      now.progress != null && h("div", { className: "progress" }, h("i", { style: { width: `${now.progress * 100}%` } })),
      h("div", { className: "numbers" },
        [["observed", now.observed], ["texts waiting", now.texts_waiting], ["trainings", now.trained], ["accepted", now.accepted], ["rejected", now.rejected], ["rolled back", now.rolled_back]]
          .map(([name, value]) => h("div", {}, h("b", {}, count(value)), h("span", {}, name)))));
  }

  function tellAdapters(list) {
    const gain = (scores) => {
      const name = Object.keys(scores).find((key) => /^gain.*(nats|prompt|base)?$/.test(key) && !/_(lower|upper|texts)$/.test(key));
      if (!name) return "—";
      const [lower, upper] = [scores[`${name}_lower`], scores[`${name}_upper`]];
      return h("span", { title: name }, figure(scores[name]), lower !== undefined && h("small", {}, ` [${figure(lower)}, ${figure(upper)}]`));
    };
    const alive = (state) => state === "active" || state === "shadow";
    show(adapters, h("h2", {}, "Adapters"),
      list.length === 0 ? h("p", { className: "small" }, "None yet: one is made when what you write differs from what the generator expects, and kept when it proves a gain on texts that it has not seen.") :
        h("table", {}, h("thead", {}, h("tr", {}, ["Adapter", "Level", "State", "Made", "Learned from", "Gain", ""].map((name) => h("th", { className: name === "Gain" ? "num" : "" }, name)))),
          h("tbody", {}, list.map((adapter) => h("tr", { "data-adapter": adapter.id },
            h("td", { className: "mono", title: adapter.id }, `…${adapter.id.slice(-8)}`), h("td", {}, adapter.level),
            h("td", {}, h("span", { className: adapter.state === "active" ? "tag accent" : adapter.state === "shadow" ? "tag warm" : "tag" }, adapter.state), adapter.pinned && h("span", { className: "tag" }, "pinned")),
            h("td", {}, when(adapter.created_at)), h("td", {}, `${count(adapter.memories)} memories`), h("td", { className: "num" }, gain(adapter.scores)),
            h("td", { className: "num" }, alive(adapter.state) && [
              h("button", { className: "quiet", onclick: () => act("evolve.pin", { adapter: adapter.id, pinned: !adapter.pinned }, "Done.") }, adapter.pinned ? "Unpin" : "Pin"),
              h("button", { className: "danger", onclick: () => rollback(adapter) }, "Roll back…")]))))));
  }

  function tellCurves(decisions) {
    const names = [...new Set(decisions.flatMap((row) => Object.keys(row.numbers)))].filter((name) => !/_(lower|upper|texts)$/.test(name)).sort();
    if (names.length === 0) { show(curves, h("h2", {}, "Curves"), h("p", { className: "small" }, "No decision has numbers yet.")); return; }
    const before = choice.value;
    show(choice, names.map((name) => h("option", { value: name }, name.replaceAll("_", " "))));
    choice.value = names.includes(before) ? before : names.find((name) => name.startsWith("gain")) ?? names[0];
    const plot = h("div", {});
    const paint = () => show(plot, curve(series(decisions, choice.value), choice.value));
    choice.onchange = paint;
    show(curves, h("div", { className: "row spread" }, h("h2", { style: { margin: "0" } }, "Over the decisions"), choice), plot,
      h("p", { className: "small" }, "Bars are confidence bounds; filled marks went on, red ones were turned down."));
    paint();
  }

  function tellTimeline(decisions) {
    show(timeline, h("h2", {}, "Decisions, newest first"),
      decisions.length === 0 ? h("p", { className: "small" }, "None yet.") :
        h("ol", { className: "timeline" }, decisions.map((row) => h("li", { className: UP.has(row.to) ? "up" : DOWN.has(row.to) ? "down" : "" },
          h("div", { className: "facts" }, h("strong", {}, row.from === row.to ? row.to : `${row.from} → ${row.to}`), h("span", {}, when(row.at)), row.adapter && h("span", { className: "mono", title: row.adapter }, `…${row.adapter.slice(-8)}`)),
          h("p", {}, row.reason),
          h("div", { className: "figures" }, Object.entries(row.numbers).map(([name, value]) => h("span", {}, `${name.replaceAll("_", " ")} ${figure(value)}`)))))));
  }

  async function load(always = false) {
    const [now, log] = await Promise.all([call("evolve.status"), call("evolve.log", { limit: 200 })]);
    const key = JSON.stringify([now, log.decisions.length, log.decisions[0]?.id]);
    if (!alive || (key === shown && !always)) return;
    shown = key;
    tellLoop(now);
    tellAdapters(now.adapters);
    tellCurves(log.decisions);
    tellTimeline(log.decisions);
  }
  async function poll() {
    if (!document.hidden && !document.getElementById("dialog").open) await load().catch((failure) => { if (!shown || failure.status === 401) report(failure); });
    if (alive) timer = setTimeout(poll, POLL_MS);
  }
  view.append(head, adapters, curves, timeline);
  poll();
  return () => { alive = false; clearTimeout(timer); };
}
