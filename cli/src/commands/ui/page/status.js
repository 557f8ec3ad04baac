// How the daemon is.

import { call } from "/api.js";
import { bytes, count, h, show, when } from "/dom.js";

export function status(view, report) {
  const head = h("section", { className: "card", id: "health" });
  const requests = h("section", { className: "card wide" });
  const actors = h("section", { className: "card wide" });
  function tell(now) {
    show(head, h("div", { className: "row spread" }, h("h1", {}, now.server), h("span", { className: now.health === "healthy" ? "tag accent" : "tag warm" }, now.health)),
      h("div", { className: "numbers" },
        [["memories", count(now.memories)], ["last change", count(now.lsn)], ["open connections", count(now.connections)], ["resident memory", bytes(now.rss_bytes)], ["running since", when(now.started_at)], ["engine restarts", count(now.engine_restarts)]]
          .map(([name, value]) => h("div", {}, h("b", {}, value), h("span", {}, name)))),
      h("p", { className: "small", style: { "margin-top": ".8rem" } }, "engine: ", now.engine, h("br"), "state: ", now.state_dir));
    const busiest = Object.entries(now.requests).sort((a, b) => b[1] - a[1]);
    show(requests, h("h2", {}, "Requests answered"), h("table", {}, h("tbody", {}, busiest.map(([name, size]) => h("tr", {}, h("td", { className: "mono" }, name), h("td", { className: "num" }, count(size)))),
      Object.entries(now.errors).map(([kind, size]) => h("tr", {}, h("td", {}, h("span", { className: "tag bad" }, kind)), h("td", { className: "num" }, count(size)))))));
    show(actors, h("h2", {}, "Actors"), h("table", {}, h("thead", {}, h("tr", {}, h("th", {}, "Actor"), h("th", {}, "State"), h("th", { className: "num" }, "In flight"), h("th", { className: "num" }, "Restarts"))),
      h("tbody", {}, now.actors.map((actor) => h("tr", {}, h("td", {}, actor.name), h("td", {}, actor.state), h("td", { className: "num" }, `${actor.in_flight} of ${actor.capacity}`), h("td", { className: "num" }, actor.restarts))))));
  }
  const listen = (event) => tell(event.detail);
  document.addEventListener("daemon", listen);
  view.append(head, requests, actors);
  call("admin.status").then(tell, report);
  return () => document.removeEventListener("daemon", listen);
}
