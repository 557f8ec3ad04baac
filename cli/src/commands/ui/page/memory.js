// Search: what the memory answers, from where, and why it came to its place.

import { call } from "/api.js";
import { confirm, count, figure, h, note, show, when } from "/dom.js";

const LONG = 420;

/** Asks, forgets, and says what became of it. Resolves to whether it was forgotten. */
export async function forget(memory, report) {
  const purge = h("input", { type: "checkbox", checked: true });
  const body = h("div", {},
    h("p", {}, "Nothing returns it from this moment on, and adapters that learned it are retired. This cannot be undone."),
    h("blockquote", {}, memory.text),
    h("label", {}, purge, "wait until its bytes are gone from every file"));
  if (!(await confirm({ title: "Forget this memory?", body, action: "Forget" }))) return false;
  try {
    const receipt = await call("memory.forget", { select: { ids: [memory.id] }, purge_now: purge.checked });
    const retired = receipt.adapters_retired?.length ?? 0;
    const bytes = receipt.purged_at ? " and purged from every file" : purge.checked ? "; its bytes are still being removed, within 24 h" : ", hidden at once";
    note(`Forgotten${bytes}${retired ? `; ${retired} adapter${retired > 1 ? "s" : ""} retired` : ""}.`);
    return true;
  } catch (failure) { report(failure); return false; }
}

/** One memory with its source. */
export function memoryCard(memory, { hit, onForgotten, report, asks, open } = {}) {
  const origin = memory.origin;
  const place = origin.path ? `${origin.path}${origin.lines ? `:${origin.lines[0]}–${origin.lines[1]}` : ""}` : null;
  const text = h("p", { className: memory.text.length > LONG ? "text cut" : "text" }, memory.text);
  const card = h("article", { className: "hit", "data-id": memory.id });
  const trustClass = origin.trust === "user" ? "tag accent" : origin.trust === "untrusted" ? "tag bad" : "tag";
  card.append(
    text,
    h("div", { className: "facts" },
      h("span", { className: "tag", title: "kind" }, memory.kind),
      h("span", { className: trustClass, title: "trust" }, origin.trust),
      memory.quarantined && h("span", { className: "tag warm" }, "quarantine"),
      memory.speaker && h("span", {}, memory.speaker),
      h("span", { title: "when it is true from" }, when(memory.valid_from)),
      h("span", { title: `brought by ${origin.client}` }, place ?? origin.source),
      h("span", { title: "namespace" }, memory.namespace),
      memory.evidence > 0 && h("span", {}, `brought ${memory.evidence + 1} times`),
      hit && h("span", { className: "num", title: "fused score, comparable within one answer" }, `score ${figure(hit.score)}`)),
    h("div", { className: "row" },
      memory.text.length > LONG && h("button", { className: "quiet", onclick: (event) => {
        text.classList.toggle("cut");
        event.target.textContent = text.classList.contains("cut") ? "Show all" : "Show less";
      } }, "Show all"),
      memory.quarantined && h("button", { className: "quiet", onclick: async () => {
        try { await call("memory.corroborate", { id: memory.id }); note("Taken out of quarantine."); asks?.(); }
        catch (failure) { report(failure); }
      } }, "Take out of quarantine"),
      h("button", { className: "quiet", onclick: async () => {
        if (await forget(memory, report)) { card.remove(); onForgotten?.(); }
      } }, "Forget…")));
  if (hit?.signals?.length) card.append(signals(hit, open));
  return card;
}

function signals(hit, open) {
  const reach = Math.max(...hit.signals.map((signal) => Math.abs(signal.contribution)), 1e-9);
  return h("details", { className: "why", open }, h("summary", {}, "why it is here"),
    h("div", { className: "signals" }, hit.signals.map((signal) => [
      h("span", {}, signal.name),
      h("span", { className: "num" }, signal.rank ? `#${signal.rank}` : "boost"),
      h("span", { className: "track" }, h("i", { style: { width: `${(Math.abs(signal.contribution) / reach) * 100}%` } })),
      h("span", { className: "num" }, `${signal.contribution >= 0 ? "+" : "−"}${figure(Math.abs(signal.contribution))}`),
    ])),
    hit.matched_terms?.length ? h("p", { className: "small" }, "matched: ", hit.matched_terms.join(", ")) : null);
}

export function memory(view, report) {
  const query = h("input", { type: "search", id: "query", placeholder: "Ask your memory…", autocomplete: "off", "aria-label": "Question", maxLength: 4000 });
  const namespace = h("select", { "aria-label": "Namespace", id: "namespace" }, h("option", { value: "" }, "default"));
  const explain = h("input", { type: "checkbox", id: "explain", checked: true });
  const quarantined = h("input", { type: "checkbox", id: "quarantined" });
  const results = h("section", { className: "card", id: "results", "aria-live": "polite" });
  let turn = 0;

  async function ask() {
    const text = query.value.trim();
    if (!text) return overview();
    const mine = ++turn;
    try {
      const answer = await call("memory.recall", {
        query: text, limit: 20, explain: explain.checked, namespaces: namespace.value ? [namespace.value] : [],
        filter: { include_quarantined: quarantined.checked },
      });
      if (mine !== turn) return;
      const hits = answer.hits.map((hit, place) => memoryCard(hit.memory, { hit, report, asks: ask, open: place === 0 }));
      show(results,
        h("div", { className: "row spread facts" },
          h("span", {}, `${hits.length} found in ${figure(answer.took_us / 1000)} ms`),
          h("span", {}, `confidence ${Math.round(answer.confidence * 100)} %`,
            answer.abstain && h("span", { className: "tag warm", style: { "margin-left": ".6rem" } }, "probably nothing here answers this"),
            answer.degraded?.map((what) => h("span", { className: "tag warm", style: { "margin-left": ".6rem" } }, `without ${what}`)))),
        hits.length ? hits : h("p", { className: "empty" }, "Nothing found."));
    } catch (failure) { report(failure); }
  }

  async function overview() {
    const mine = ++turn;
    try {
      const stats = await call("memory.stats");
      if (mine !== turn) return;
      show(results, h("h2", {}, "In this memory"),
        h("div", { className: "numbers" },
          [["memories", stats.memories], ["in quarantine", stats.quarantined], ["replaced", stats.superseded], ["waiting for a vector", stats.embeddings_pending], ["waiting to be purged", stats.purge_pending]]
            .map(([name, value]) => h("div", {}, h("b", {}, count(value)), h("span", {}, name)))),
        h("h2", { style: { "margin-top": "1.4rem" } }, "Namespaces"),
        h("div", { className: "row" }, stats.namespaces.map(([name, size]) => h("button", { onclick: () => { namespace.value = name; query.focus(); } }, `${name} · ${count(size)}`)),
          stats.namespaces.length === 0 && h("p", { className: "small" }, "Nothing is remembered yet. ‘mneme remember \"tea is at four\"’ is a start.")));
    } catch (failure) { report(failure); }
  }

  call("namespace.list").then(({ namespaces }) => {
    for (const [name] of namespaces) if (name !== "default") namespace.append(h("option", { value: name }, name));
  }, () => {});
  const form = h("form", { className: "card", onsubmit: (event) => { event.preventDefault(); ask(); } },
    h("div", { className: "row" }, query, namespace, h("button", { className: "primary" }, "Ask")),
    h("div", { className: "row", style: { "margin-top": ".7rem" } },
      h("label", {}, explain, "explain the order"), h("label", {}, quarantined, "also what is in quarantine")));
  for (const box of [explain, quarantined, namespace]) box.addEventListener("change", () => query.value.trim() && ask());
  view.append(form, results);
  query.focus();
  overview();
}
