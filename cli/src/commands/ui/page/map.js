// The map: memories in a plane, what is near in meaning lies near. Drawn on a canvas; 5,000 points stay smooth.

import { call } from "/api.js";
import { colour, count, h, show, when } from "/dom.js";
import { memoryCard } from "/memory.js";

const KINDS = ["note", "message", "fact", "preference", "chunk", "event", "procedure"];
const RADIUS = 4.2;
const REACH = 12;
/** Namespaces of one question, as many as the daemon takes. */
const NAMESPACES_MAX = 64;
const MARKED = 20;

export function map(view, report) {
  const canvas = h("canvas", { tabIndex: 0, role: "img", "aria-label": "Map of memories; search to mark some of them" });
  const tip = h("div", { className: "tip", hidden: true });
  const legend = h("div", { className: "legend" });
  const frame = h("div", { className: "card map", id: "map" }, canvas, legend, tip);
  const side = h("aside", { className: "card side", id: "side" }, h("p", { className: "empty" }, "Choose a point."));
  const query = h("input", { type: "search", placeholder: "Mark what answers…", "aria-label": "Mark what answers" });
  const namespace = h("select", { "aria-label": "Namespace" }, h("option", { value: "" }, "all namespaces"));
  const about = h("span", { className: "small", id: "map-about" });
  const state = { points: [], marked: new Map(), chosen: null, hover: null, zoom: 1, x: 0, y: 0 };

  const size = () => ({ width: canvas.clientWidth, height: canvas.clientHeight });
  function place(point) {
    const { width, height } = size();
    const unit = Math.min(width, height) * 0.46 * state.zoom;
    return [width / 2 + (point.x - state.x) * unit * Math.max(1, width / height * 0.8), height / 2 - (point.y - state.y) * unit];
  }

  function draw() {
    const { width, height } = size();
    const ratio = devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const colours = Object.fromEntries(KINDS.map((kind) => [kind, colour(`--k-${kind}`)]));
    const ink = colour("--ink");
    const accent = colour("--warm");
    const dimmed = state.marked.size > 0;
    for (const point of state.points) {
      const [x, y] = place(point);
      if (x < -9 || y < -9 || x > width + 9 || y > height + 9) continue;
      const rank = state.marked.get(point.id);
      pen.globalAlpha = dimmed && rank === undefined ? 0.16 : point.quarantined ? 0.4 : 0.72;
      pen.fillStyle = colours[point.kind] ?? colours.note;
      pen.beginPath();
      pen.arc(x, y, rank === undefined ? RADIUS : RADIUS + 2.5, 0, 2 * Math.PI);
      pen.fill();
      pen.globalAlpha = 1;
      if (rank !== undefined || point === state.chosen || point === state.hover) {
        pen.strokeStyle = rank !== undefined ? accent : ink;
        pen.lineWidth = 2;
        pen.stroke();
      }
      if (rank !== undefined && rank <= 5) {
        pen.fillStyle = ink;
        pen.font = "600 12px system-ui, sans-serif";
        pen.fillText(String(rank), x + 9, y + 4);
      }
    }
  }

  function nearest(event) {
    const box = canvas.getBoundingClientRect();
    const [px, py] = [event.clientX - box.left, event.clientY - box.top];
    let best = null, bestDistance = REACH;
    for (const point of state.points) {
      const [x, y] = place(point);
      const distance = Math.hypot(x - px, y - py);
      if (distance < bestDistance) { best = point; bestDistance = distance; }
    }
    return { point: best, px, py };
  }

  async function choose(point) {
    state.chosen = point;
    draw();
    try {
      const memory = await call("memory.get", { id: point.id });
      show(side, h("h2", {}, "Memory"), memoryCard(memory, { report, onForgotten: () => {
        state.points = state.points.filter((other) => other !== point);
        state.chosen = null;
        show(side, h("p", { className: "empty" }, "Choose a point."));
        draw();
      } }));
    } catch (failure) { report(failure); }
  }

  async function load() {
    show(about, "reading…");
    try {
      const answer = await call("memory.map", { limit: 2000, ...(namespace.value ? { namespace: namespace.value } : {}) });
      state.points = answer.points;
      const shown = answer.points.length;
      const [a, b] = answer.explained;
      show(about, answer.memories === 0 ? "Nothing is remembered yet." :
        `${count(shown)} of ${count(answer.memories)} memories; the two axes show ${Math.round((a + b) * 100)} % of their variance` +
        (answer.without_vector ? `; ${count(answer.without_vector)} still wait for a vector` : ""));
      const kinds = KINDS.filter((kind) => answer.points.some((point) => point.kind === kind));
      show(legend, kinds.map((kind) => h("span", {}, h("i", { style: { background: `var(--k-${kind})` } }), kind)));
      canvas.dataset.points = String(shown);
      draw();
    } catch (failure) { report(failure); }
  }

  /** What answers in the chosen namespace, or in all of them: a question reaches some of them only, so they are asked in turn. */
  async function answers(text) {
    const names = namespace.value ? [namespace.value] : (await call("namespace.list")).namespaces.map(([name]) => name);
    const hits = [];
    for (let first = 0; first < Math.max(names.length, 1); first += NAMESPACES_MAX) {
      const answer = await call("memory.recall", { query: text, limit: MARKED, namespaces: names.slice(first, first + NAMESPACES_MAX) });
      hits.push(...answer.hits);
    }
    // Places of one answer are its own; with more than one, the scores are the nearest thing to a common measure.
    if (names.length > NAMESPACES_MAX) hits.sort((one, other) => other.score - one.score);
    return hits.slice(0, MARKED);
  }

  async function mark(event) {
    event.preventDefault();
    state.marked.clear();
    if (query.value.trim()) {
      try {
        const hits = await answers(query.value.trim());
        hits.forEach((hit, place) => state.marked.set(hit.memory.id, place + 1));
        show(side, h("h2", {}, `${hits.length} marked`), hits.slice(0, 8).map((hit) => memoryCard(hit.memory, { hit, report, onForgotten: load })));
      } catch (failure) { report(failure); }
    } else show(side, h("p", { className: "empty" }, "Choose a point."));
    draw();
  }

  let drag = null;
  canvas.addEventListener("pointerdown", (event) => { drag = { x: event.clientX, y: event.clientY, moved: false }; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointermove", (event) => {
    if (drag && (drag.moved || Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > 3)) {
      const { width, height } = size();
      const unit = Math.min(width, height) * 0.46 * state.zoom;
      state.x -= (event.clientX - drag.x) / (unit * Math.max(1, width / height * 0.8));
      state.y += (event.clientY - drag.y) / unit;
      drag = { x: event.clientX, y: event.clientY, moved: true };
      canvas.classList.add("drag");
      tip.hidden = true;
      return draw();
    }
    const { point, px, py } = nearest(event);
    if (point !== state.hover) { state.hover = point; draw(); }
    tip.hidden = !point;
    if (point) {
      show(tip, point.text, h("br"), h("small", {}, `${point.source} · ${when(point.valid_from)}`));
      tip.style.left = `${Math.min(px + 14, size().width - 220)}px`;
      tip.style.top = `${Math.min(py + 14, size().height - 70)}px`;
    }
  });
  canvas.addEventListener("pointerup", (event) => {
    const moved = drag?.moved;
    drag = null;
    canvas.classList.remove("drag");
    const { point } = nearest(event);
    if (!moved && point) choose(point);
  });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    state.zoom = Math.min(40, Math.max(0.6, state.zoom * Math.exp(-event.deltaY * 0.0015)));
    draw();
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const step = 0.15 / state.zoom;
    const keys = { ArrowLeft: () => { state.x -= step; }, ArrowRight: () => { state.x += step; }, ArrowUp: () => { state.y += step; }, ArrowDown: () => { state.y -= step; },
      "+": () => { state.zoom = Math.min(40, state.zoom * 1.3); }, "-": () => { state.zoom = Math.max(0.6, state.zoom / 1.3); }, 0: () => { Object.assign(state, { zoom: 1, x: 0, y: 0 }); } };
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); draw(); }
  });
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", draw);
  const resized = new ResizeObserver(draw);
  resized.observe(canvas);

  call("namespace.list").then(({ namespaces }) => {
    for (const [name] of namespaces) namespace.append(h("option", { value: name }, name));
  }, () => {});
  namespace.addEventListener("change", load);
  view.append(
    h("form", { className: "row toolbar", style: { "margin-bottom": "1rem" }, onsubmit: mark }, query, namespace, h("button", {}, "Mark"), about),
    h("div", { className: "grid" }, frame, side));
  load();
  return () => { resized.disconnect(); dark.removeEventListener("change", draw); };
}
