// The way to the daemon: through the program that serves this page, with a key that only this tab knows.

const KEY = "mneme-key";

/** An answer that is an error. */
export class Failure extends Error {
  constructor(body, status) {
    super(body.message ?? "no answer");
    this.kind = body.kind ?? "unknown";
    this.hint = body.hint;
    this.status = status;
  }
  get words() { return this.hint ? `${this.message} (${this.hint})` : this.message; }
}

const headers = () => ({ "Content-Type": "application/json", Authorization: `Bearer ${sessionStorage.getItem(KEY) ?? ""}` });

async function post(path, body) {
  let response;
  try {
    response = await fetch(path, { method: "POST", headers: headers(), body: JSON.stringify(body), cache: "no-store" });
  } catch {
    throw new Failure({ kind: "page_away", message: "'mneme ui' has ended", hint: "start it again and open its new link" }, 0);
  }
  if (response.ok) return response;
  let error = {};
  try { error = (await response.json()).error ?? {}; } catch { /* the status says enough */ }
  throw new Failure(error, response.status);
}

/** Trades the link's one-time token for this tab's key. The token leaves the address at once. */
export async function enter() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) {
    history.replaceState(null, "", `${location.pathname}#memory`);
    const { key } = await (await post("/api/session", { token })).json();
    sessionStorage.setItem(KEY, key);
  }
  if (!sessionStorage.getItem(KEY)) {
    throw new Failure({ kind: "stale", message: "this page was not opened by a link of 'mneme ui'", hint: "press Enter where it runs: it prints a new one" }, 401);
  }
}

/** Calls a method of the daemon. */
export async function call(method, params = {}) {
  return (await (await post("/api/call", { method, params })).json()).result;
}

/** Generates; `observe` sees every event while the canvas crystallises. */
export async function generate(params, observe) {
  const reader = (await post("/api/generate", params)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    rest += value ?? "";
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const message = JSON.parse(line);
      if (message.event) observe(message.event);
      if (message.error) throw new Failure(message.error, 200);
      if (message.result) return message.result;
    }
    if (done) throw new Failure({ kind: "cut", message: "the answer broke off" }, 0);
  }
}
