// Makes elements. Text always goes in as text: there is no way from a string to markup in this page.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.entries(value).forEach(([key, entry]) => element.style.setProperty(key, entry));
    else if (name in element && !(element instanceof SVGElement)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child === undefined || child === null || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

/** An HTML element: `h("p", { className: "x" }, "text", child)`. */
export const h = (tag, properties, ...children) => fill(document.createElement(tag), properties, children);

/** An SVG element. */
export const s = (tag, properties, ...children) => fill(document.createElementNS(SVG, tag), properties, children);

/** Puts children in the place of what an element holds. */
export function show(element, ...children) {
  element.replaceChildren();
  return fill(element, {}, children);
}

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** A moment for people, in their own time zone. */
export function when(text) {
  const date = new Date(text);
  if (Number.isNaN(date.getTime())) return String(text);
  const day = date.toLocaleDateString(undefined, { year: "numeric", month: "short", day: "numeric" });
  return date.getHours() + date.getMinutes() + date.getSeconds() === 0
    ? day : `${day}, ${date.toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" })}`;
}

export const count = (value) => Number(value).toLocaleString();

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit + 1 < units.length) { value /= 1024; unit += 1; }
  return `${unit ? value.toFixed(1) : value} ${units[unit]}`;
}

/** A number with as many digits as help. */
export function figure(value) {
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return String(value);
  if (size >= 1000) return Math.round(value).toLocaleString();
  return size >= 100 ? value.toFixed(1) : size >= 0.01 || value === 0 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
}

/** A remark in the corner, gone after a while. */
export function note(text, bad = false) {
  const element = h("div", { className: bad ? "note bad" : "note" }, text);
  document.getElementById("notes").append(element);
  setTimeout(() => element.remove(), bad ? 9000 : 5000);
}

/** Asks before something that cannot be taken back. Resolves to whether it was confirmed. */
export function confirm({ title, body, action, danger = true }) {
  const dialog = document.getElementById("dialog");
  return new Promise((resolve) => {
    const end = (value) => { dialog.close(); resolve(value); };
    show(dialog,
      h("h1", { id: "dialog-title" }, title), body,
      h("div", { className: "row" },
        h("button", { type: "button", onclick: () => end(false), autofocus: true }, "Keep"),
        h("button", { type: "button", className: danger ? "primary danger" : "primary", onclick: () => end(true) }, action)));
    dialog.oncancel = (event) => { event.preventDefault(); end(false); };
    dialog.showModal();
  });
}
