// The canvas: text with holes crystallises before one's eyes; afterwards every word wears how unsure the generator was of it.

import { call, generate } from "/api.js";
import { figure, h, note, show } from "/dom.js";
import { memoryCard } from "/memory.js";

const MASK = "░";

/** Where two texts begin to differ, and where they agree again at the end: what is new in between. */
function changed(before, after) {
  let head = 0;
  const most = Math.min(before.length, after.length);
  while (head < most && before[head] === after[head]) head += 1;
  let tail = 0;
  while (tail < most - head && before[before.length - 1 - tail] === after[after.length - 1 - tail]) tail += 1;
  return [head, after.length - tail];
}

/** The canvas while it crystallises: masks are faint, what was just decided is marked. */
export function live(former, text) {
  const [from, to] = changed(former, text);
  const parts = [];
  let run = "", kind = null;
  const flush = () => { if (run) parts.push(h("span", { className: kind }, run)); run = ""; };
  [...text].reduce((place, letter) => {
    const next = letter === MASK ? "mask" : place >= from && place < to && former ? "fresh" : "";
    if (next !== kind) { flush(); kind = next; }
    run += letter;
    return place + letter.length;
  }, 0);
  flush();
  return parts;
}

/** How warm a word is: nothing at confidence 1, full at 0. */
export const heat = (confidence) => (0.62 * Math.min(1, Math.max(0, 1 - confidence))).toFixed(3);

/** The finished text, each filled token in the colour of its uncertainty. Falls back on plain text where tokens do not add up. */
export function finished(result) {
  const parts = [];
  let rest = result.text;
  let next = 0;
  const word = (token) => h("span", {
    className: "token", style: { "background-color": `rgb(var(--heat) / ${heat(token.confidence)})` },
    title: `confidence ${Math.round(token.confidence * 100)} %\nambiguity ${figure(token.ambiguity)} nats\nsurprise ${figure(token.surprise)}`,
  }, token.text);
  for (const text of result.fills) {
    const at = text ? rest.indexOf(text) : -1;
    if (at < 0) continue;
    if (at > 0) parts.push(h("span", { className: "given" }, rest.slice(0, at)));
    let left = text;
    while (left && next < result.tokens.length) {
      const token = result.tokens[next];
      if (token.text && left.startsWith(token.text)) { parts.push(word(token)); left = left.slice(token.text.length); }
      else if (token.text.trim() && left.includes(token.text)) {
        const skip = left.indexOf(token.text);
        parts.push(left.slice(0, skip), word(token));
        left = left.slice(skip + token.text.length);
      }
      next += 1;
    }
    if (left) parts.push(left);
    rest = rest.slice(at + text.length);
  }
  if (rest) parts.push(h("span", { className: "given" }, rest));
  return parts;
}

export function canvas(view, report) {
  const prompt = h("textarea", { id: "prompt", "aria-label": "Prompt", spellcheck: false }, "Up betimes, and to my office, where {{hole:12}} and so home to dinner.");
  const namespace = h("select", { id: "guided" }, h("option", { value: "" }, "no memory"), h("option", { value: "default", selected: true }, "default"));
  const mode = h("select", {}, ["auto", "diffusion", "ar"].map((name) => h("option", { value: name }, name)));
  const number = (value, min, max, step) => h("input", { type: "number", value, min, max, step });
  const tokens = number(48, 1, 1024, 1), temperature = number(0, 0, 2, 0.1), seed = number(0, 0, 4294967295, 1);
  const stop = h("button", { type: "button", disabled: true }, "Stop");
  const go = h("button", { className: "primary", id: "write" }, "Write");
  const text = h("div", { className: "writing", id: "writing", "aria-live": "off" }, h("span", { className: "mask" }, MASK.repeat(48)));
  const bar = h("i");
  const progress = h("span", { className: "small", id: "step" }, "{{hole:N}} marks a hole of at most N tokens");
  const outcome = h("section", {});
  let task = null, stopping = false;

  const cancel = () => call("task.cancel", { task }).catch(report);
  stop.addEventListener("click", () => {
    stopping = true;
    if (task) cancel();
  });

  async function write(event) {
    event.preventDefault();
    go.disabled = true;
    stop.disabled = false;
    show(outcome);
    show(text, h("span", { className: "given" }, prompt.value.replace(/\{\{hole:(\d{1,4})\}\}/g, (_, count) => MASK.repeat(Math.min(Number(count), 400)))));
    text.dataset.state = "writing";
    bar.style.width = "0";
    let former = "", frames = 0;
    try {
      const result = await generate({
        prompt: prompt.value, mode: mode.value, tokens_max: Number(tokens.value), temperature: Number(temperature.value), seed: Number(seed.value),
        ...(namespace.value ? { namespace: namespace.value } : {}),
      }, ({ task: name, event: now }) => {
        if (!task && stopping) { task = name; cancel(); }
        task = name;
        if (now.type !== "canvas") return;
        show(text, live(former, now.canvas));
        former = now.canvas;
        frames += 1;
        bar.style.width = `${(now.decided / Math.max(1, now.holes)) * 100}%`;
        show(progress, `step ${now.step} of ${now.steps_total} · ${now.decided} of ${now.holes} tokens decided`);
      });
      bar.style.width = "100%";
      show(text, finished(result));
      text.dataset.state = "done";
      text.dataset.frames = String(frames);
      show(progress, `${result.tokens.length} tokens in ${result.steps} evaluations and ${figure(result.took_ms / 1000)} s, ${result.mode}${result.acceptance != null ? `, ${Math.round(result.acceptance * 100)} % of the draft accepted` : ""}, ended by ${result.finish}`);
      await tell(result);
    } catch (failure) {
      text.dataset.state = "failed";
      if (failure.kind === "cancelled") note("Stopped.");
      else report(failure);
    } finally {
      go.disabled = false;
      stop.disabled = true;
      task = null;
      stopping = false;
    }
  }

  async function tell(result) {
    const u = result.uncertainty;
    const judge = async (verdict) => {
      try { await call("feedback", { task: result.task, verdict }); note(verdict === "accept" ? "Accepted: it may be learned from." : "Rejected."); }
      catch (failure) { report(failure); }
    };
    const memories = await Promise.all(result.memories.map((id) => call("memory.get", { id }).catch(() => null)));
    show(outcome,
      h("div", { className: "card" },
        h("div", { className: "row spread" },
          h("div", { className: "scale" }, "sure", h("i"), "unsure"),
          h("div", { className: "row" }, h("button", { onclick: () => judge("accept") }, "Good: may be learned from"), h("button", { onclick: () => judge("reject") }, "Not good"))),
        h("div", { className: "numbers", style: { "margin-top": "1rem" } },
          [["mean confidence", `${Math.round(u.confidence * 100)} %`], ["ambiguity (nats a token)", figure(u.ambiguity)], ["surprise (1 is calibrated)", figure(u.surprise)],
            ["disagreement", figure(u.disagreement)], ["p-value", u.p_value == null ? "—" : figure(u.p_value)], ["verdict", u.verdict]]
            .map(([name, value]) => h("div", {}, h("b", {}, value), h("span", {}, name)))),
        result.adapters.length ? h("p", { className: "small", style: { "margin-top": ".8rem" } }, "adapters: ", result.adapters.map(([id, weight]) => `${id} (${figure(weight)})`).join(", ")) : null,
        result.degraded?.length ? h("p", { className: "small" }, "without: ", result.degraded.join(", ")) : null),
      h("div", { className: "card", id: "used" }, h("h2", {}, "Memories that guided it"),
        memories.filter(Boolean).map((memory) => memoryCard(memory, { report })),
        memories.length === 0 && h("p", { className: "small" }, "None.")));
  }

  call("namespace.list").then(({ namespaces }) => {
    for (const [name] of namespaces) if (name !== "default") namespace.append(h("option", { value: name }, name));
  }, () => {});
  view.append(
    h("form", { className: "card", onsubmit: write }, prompt,
      h("div", { className: "row", style: { "margin-top": ".8rem" } },
        h("label", {}, "guided by", namespace), h("label", {}, "mode", mode), h("label", {}, "tokens", tokens), h("label", {}, "temperature", temperature), h("label", {}, "seed", seed),
        h("span", { style: { flex: "1" } }), stop, go)),
    h("section", { className: "card" }, progress, h("div", { className: "progress" }, bar), text),
    outcome);
  outcome.style.setProperty("margin-top", "1rem");
}
