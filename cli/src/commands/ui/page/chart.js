// Small line charts over decisions: a value, its bounds where there are any, and the zero line.

import { figure, s, when } from "/dom.js";

const WIDTH = 1100, HEIGHT = 230, LEFT = 52, RIGHT = 14, TOP = 14, BOTTOM = 28;

/** `rows`: oldest first, each `{ at, value, lower, upper, good, words }`. */
export function curve(rows, title) {
  const chart = s("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title });
  if (rows.length === 0) return chart;
  const values = rows.flatMap((row) => [row.value, row.lower ?? row.value, row.upper ?? row.value]);
  let low = Math.min(0, ...values), high = Math.max(0, ...values);
  if (high - low < 1e-9) high = low + 1;
  const pad = (high - low) * 0.06;
  if (low < 0) low -= pad;
  high += pad;
  const x = (place) => LEFT + (rows.length === 1 ? 0.5 : place / (rows.length - 1)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => TOP + (1 - (value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  for (const part of [0, 0.5, 1]) {
    const value = low + (high - low) * part;
    chart.append(
      s("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
      s("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, figure(Number(value.toPrecision(2)))));
  }
  if (low < 0) chart.append(s("line", { class: "zero", x1: LEFT, x2: WIDTH - RIGHT, y1: y(0), y2: y(0) }));
  rows.forEach((row, place) => {
    if (row.lower !== undefined && row.upper !== undefined) {
      chart.append(s("line", { class: "band", x1: x(place), x2: x(place), y1: y(row.lower), y2: y(row.upper) }));
    }
  });
  chart.append(s("path", { class: "line", d: rows.map((row, place) => `${place ? "L" : "M"}${x(place).toFixed(1)} ${y(row.value).toFixed(1)}`).join("") }));
  rows.forEach((row, place) => {
    chart.append(s("circle", { class: row.good === undefined ? "mark" : row.good ? "mark good" : "mark bad", cx: x(place), cy: y(row.value), r: 4 },
      s("title", {}, `${when(row.at)}\n${figure(row.value)}${row.words ? `\n${row.words}` : ""}`)));
  });
  chart.append(
    s("text", { x: LEFT, y: HEIGHT - 6 }, when(rows[0].at)),
    s("text", { x: WIDTH - RIGHT, y: HEIGHT - 6, "text-anchor": "end" }, rows.length > 1 ? when(rows[rows.length - 1].at) : ""));
  return chart;
}
