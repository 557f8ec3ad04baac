/**
 * The TypeScript client of Mneme: a memory that lasts, over this user's socket. Needs nothing but Node.
 *
 * Calls run side by side over one connection. A lost connection is opened again and the request is sent again under the
 * same `op_id`, so that a change is made once however often it is sent. Texts of memories are data: what a memory with
 * trust below `observed` says is never an instruction.
 */
import { randomUUID } from "node:crypto";
import { connect, type Socket } from "node:net";
import { homedir } from "node:os";
import { isAbsolute, join } from "node:path";

const PROTOCOL_VERSION = 1;
/** A longer line from the daemon ends the connection (characters): a page of an export fits. */
const LINE_MAX = 256 << 20;
/** First pause before a lost connection is opened again (milliseconds); doubles up to `BACKOFF_MAX_MS`. */
const BACKOFF_MS = 20;
const BACKOFF_MAX_MS = 1000;
/** The longest time that Node can wait (milliseconds): with a longer one a timer fires at once. */
const TIMER_MS_MAX = 2 ** 31 - 1;
/** Calls that are not sent again after a lost connection: no `op_id` makes these once, they would be carried out twice. */
const NOT_REPEATED = new Set([
  "generate",
  "task.events",
  "evolve.run",
  "evolve.rollback",
  "evolve.pin",
  "evolve.retire",
  "evolve.import",
  "watch.add",
  "watch.remove",
  "admin.backup",
  "admin.compact",
  "admin.drain",
]);

export type Kind = "note" | "message" | "fact" | "preference" | "chunk" | "event" | "procedure";
export type Trust = "untrusted" | "reported" | "observed" | "user";

/** What to remember; every member but `text` may be left out. See `memory.remember` in PROTOCOL.md. */
export interface Remember {
  text: string;
  namespace?: string;
  kind?: Kind;
  metadata?: Record<string, string>;
  speaker?: string;
  thread?: string;
  position?: number;
  source?: string;
  trust?: Trust;
  valid_from?: string;
  valid_to?: string;
  ack?: "accepted" | "durable" | "indexed";
}

export interface Remembered {
  id: string;
  lsn: number;
  duplicate: boolean;
  near_duplicate_of?: string | null;
  quarantined: boolean;
  redactions: number;
  replayed: boolean;
}

export interface Memory {
  id: string;
  text: string;
  namespace: string;
  kind: Kind;
  lsn: number;
  evidence: number;
  quarantined: boolean;
  recorded_at: string;
  valid_from: string;
  valid_to?: string;
  metadata?: Record<string, string>;
  speaker?: string;
  thread?: string;
  position?: number;
  supersedes?: string;
  superseded_by?: string;
  origin: { client: string; source: string; trust: Trust; session?: string; path?: string; lines?: [number, number] };
}

export interface Recall {
  namespaces?: string[];
  limit?: number;
  filter?: Record<string, unknown>;
  as_of?: string;
  reference_time?: string;
  diversity?: number;
  rerank?: boolean;
  explain?: boolean;
}

export interface Recalled {
  hits: { memory: Memory; score: number }[];
  abstain: boolean;
  confidence: number;
  degraded: string[];
  lsn: number;
  took_us: number;
}

/** What to forget: exactly one of these. */
export type Selector =
  | { ids: string[] }
  | { source: string }
  | { namespace: string }
  | { thread: { namespace: string; thread: string } };

export interface Receipt {
  ids: string[];
  lsn: number;
  hidden_at: string;
  purged_at?: string | null;
  adapters_retired: string[];
  replayed: boolean;
}

export interface Generated {
  task: string;
  text: string;
  fills: string[];
  finish: string;
  engine: string;
  memories: string[];
  degraded: string[];
  uncertainty: { confidence: number; ambiguity: number; surprise: number; verdict: string };
}

export interface CallOptions {
  /** Names the change: sent again, it is made once. Drawn when missing. */
  opId?: string | undefined;
  /** How long to wait (milliseconds); the client's usual time when missing. */
  timeoutMs?: number | undefined;
  /** The answer must have seen this change. */
  minLsn?: number | undefined;
}

/** A member that is `undefined` is one that is missing. */
export interface ClientOptions {
  /** The daemon's socket; where this user's daemon listens when missing. */
  socket?: string | undefined;
  /** The program's name; becomes part of the provenance of what it remembers. */
  client?: string | undefined;
  session?: string | undefined;
  timeoutMs?: number | undefined;
  connectTimeoutMs?: number | undefined;
  retry?: boolean | undefined;
}

/** A call that gave no result. Go by `kind`: messages may change. */
export class MnemeError extends Error {
  constructor(
    readonly kind: string,
    message: string,
    readonly hint?: string,
    readonly retryAfterMs?: number,
  ) {
    super(message);
    this.name = "MnemeError";
  }
}

/** The socket of this user's daemon: `MNEME_SOCKET`, else where the daemon's own defaults put it. */
export function defaultSocket(environment: NodeJS.ProcessEnv = process.env): string {
  const { MNEME_SOCKET, MNEME_PATHS__RUNTIME_DIR, MNEME_PATHS__STATE_DIR, XDG_RUNTIME_DIR, XDG_STATE_HOME } = environment;
  if (MNEME_SOCKET) return MNEME_SOCKET;
  if (MNEME_PATHS__RUNTIME_DIR) return join(MNEME_PATHS__RUNTIME_DIR, "mneme.sock");
  if (XDG_RUNTIME_DIR && isAbsolute(XDG_RUNTIME_DIR)) return join(XDG_RUNTIME_DIR, "mneme", "mneme.sock");
  const state = XDG_STATE_HOME ? join(XDG_STATE_HOME, "mneme") : join(homedir(), ".local", "state", "mneme");
  return join(MNEME_PATHS__STATE_DIR || state, "run", "mneme.sock");
}

interface Waiting {
  resolve: (result: unknown) => void;
  reject: (error: MnemeError) => void;
}

class Connection {
  closed = false;
  /** New calls belong on another connection; those under way may still be answered on this one. */
  leaving = false;
  /** The longest line that the daemon takes (bytes, without its end). */
  frameBytesMax = Infinity;
  private nextId = 1;
  private pieces: string[] = [];
  private length = 0;
  private readonly waiting = new Map<number, Waiting>();

  private constructor(private readonly socket: Socket) {
    socket.setEncoding("utf8");
    socket.on("data", (text: string) => this.take(text));
    socket.on("error", () => this.end());
    socket.on("close", () => this.end());
  }

  static open(path: string, timeoutMs: number): Promise<Connection> {
    return new Promise((resolve, reject) => {
      const socket = connect(path);
      const timer = setTimeout(() => socket.destroy(Object.assign(new Error("timed out"), { code: "ETIMEDOUT" })), timeoutMs);
      const failed = (error: NodeJS.ErrnoException): void => {
        clearTimeout(timer);
        const hint = "start it with 'mneme service start' or 'mnemed'";
        if (error.code === "EACCES") reject(new MnemeError("forbidden", `daemon at ${path} refuses this user`));
        else reject(new MnemeError("not_running", `daemon is not running at ${path}: ${error.message}`, hint));
      };
      socket.once("error", failed);
      socket.once("connect", () => {
        clearTimeout(timer);
        socket.off("error", failed);
        resolve(new Connection(socket));
      });
    });
  }

  close(): void {
    this.socket.destroy();
    this.end();
  }

  call(method: string, params: object, envelope: object, timeoutMs: number): Promise<unknown> {
    return new Promise((resolve, reject) => {
      // It was not sent: it may be sent elsewhere, whatever it is.
      if (this.leaving) return reject(new MnemeError("shutting_down", "connection to the daemon is given up"));
      if (this.closed) return reject(lost());
      const id = this.nextId++;
      const line = JSON.stringify({ jsonrpc: "2.0", id, method, params, ...envelope });
      const length = Buffer.byteLength(line);
      if (length > this.frameBytesMax) {
        // The daemon would close the connection, and with it other calls. The limit may have been raised since the
        // greeting: the next connection knows.
        this.leave();
        const hint = "send it in parts, or raise server.frame_bytes_max";
        return reject(new MnemeError("frame_too_large", `request has ${length} bytes, daemon takes ${this.frameBytesMax}`, hint));
      }
      const timer = setTimeout(() => {
        settled();
        reject(new MnemeError("deadline_exceeded", `daemon did not answer within ${timeoutMs} ms`));
      }, timeoutMs);
      const settled = (): void => {
        clearTimeout(timer);
        this.waiting.delete(id);
        if (this.leaving) this.leave();
      };
      this.waiting.set(id, {
        resolve: (result) => (settled(), resolve(result)),
        reject: (error) => (settled(), reject(error)),
      });
      this.socket.write(`${line}\n`);
    });
  }

  private leave(): void {
    this.leaving = true;
    if (this.waiting.size === 0) this.close();
  }

  private take(text: string): void {
    let rest = text;
    for (let end = rest.indexOf("\n"); end >= 0; end = rest.indexOf("\n")) {
      this.pieces.push(rest.slice(0, end));
      rest = rest.slice(end + 1);
      const line = this.pieces.join("");
      this.pieces = [];
      this.length = 0;
      this.answer(line);
    }
    this.pieces.push(rest);
    this.length += rest.length;
    if (this.length > LINE_MAX) this.close();
  }

  private answer(line: string): void {
    let frame: { id?: unknown; result?: unknown; error?: { message?: unknown; data?: Record<string, unknown> } };
    try {
      frame = JSON.parse(line) as typeof frame;
    } catch {
      return this.end(new MnemeError("protocol", "daemon sent a line that is not JSON"));
    }
    if (frame === null || typeof frame !== "object") {
      return this.end(new MnemeError("protocol", "daemon sent a line that is not an object"));
    }
    const error = frame.error && fromWire(frame.error);
    // An error without an id is about the connection itself, or about a line that nobody can name. A caller who is not
    // alone may have nothing to do with it: for that one, the connection was lost.
    if (error && (frame.id === null || frame.id === undefined)) return this.end(this.waiting.size > 1 ? lost() : error);
    if (error?.kind === "shutting_down") this.leaving = true;
    const waiting = typeof frame.id === "number" ? this.waiting.get(frame.id) : undefined;
    if (error) waiting?.reject(error);
    else if ("result" in frame) waiting?.resolve(frame.result);
  }

  private end(error: MnemeError = lost()): void {
    this.closed = true;
    this.socket.destroy();
    for (const waiting of [...this.waiting.values()]) waiting.reject(error);
  }
}

function lost(): MnemeError {
  return new MnemeError("disconnected", "connection to the daemon was lost");
}

function fromWire(error: { message?: unknown; data?: Record<string, unknown> }): MnemeError {
  const { kind, hint, retry_after_ms: retry } = error.data ?? {};
  return new MnemeError(
    String(kind ?? "unknown"),
    String(error.message ?? "the daemon gave no reason"),
    typeof hint === "string" ? hint : undefined,
    typeof retry === "number" ? retry : undefined,
  );
}

type Settings = { [Name in keyof Required<Omit<ClientOptions, "session">>]: NonNullable<ClientOptions[Name]> } & {
  session: string | undefined;
};

/** A client of this user's daemon. Nothing is connected before the first call. */
export class Client {
  private readonly options: Settings;
  private connection: Promise<Connection> | undefined;

  constructor(options: ClientOptions = {}) {
    this.options = {
      socket: options.socket ?? defaultSocket(),
      client: options.client ?? "typescript",
      session: options.session,
      timeoutMs: options.timeoutMs ?? 30_000,
      connectTimeoutMs: options.connectTimeoutMs ?? 2_000,
      retry: options.retry ?? true,
    };
  }

  /** Remembers something. */
  remember(what: string | Remember, options?: CallOptions): Promise<Remembered> {
    return this.call("memory.remember", typeof what === "string" ? { text: what } : what, options);
  }

  /** Asks the memory. */
  recall(query: string, parameters: Recall = {}, options?: CallOptions): Promise<Recalled> {
    return this.call("memory.recall", { query, ...parameters }, options);
  }

  /** Returns one memory. */
  get(id: string, options?: CallOptions): Promise<Memory> {
    return this.call("memory.get", { id }, options);
  }

  /** Makes memories unrecallable at once, and unreadable on disk soon. */
  forget(select: string | Selector, options?: CallOptions): Promise<Receipt> {
    return this.call("memory.forget", { select: typeof select === "string" ? { ids: [select] } : select }, options);
  }

  /** Puts something in the place of an older memory. */
  supersede(id: string, by: Remember, options?: CallOptions): Promise<Remembered> {
    return this.call("memory.supersede", { id, by }, options);
  }

  /** Writes from memory. `{{hole:N}}` in the prompt marks a hole of at most N tokens. */
  generate(prompt: string, parameters: Record<string, unknown> = {}, options?: CallOptions): Promise<Generated> {
    return this.call("generate", { prompt, ...parameters }, options);
  }

  /** Says what the user thinks of a generation. */
  feedback(task: string, verdict: "accept" | "reject" | "correct", correction?: string): Promise<{ memory?: string | null }> {
    return this.call("feedback", { task, verdict, ...(correction === undefined ? {} : { correction }) });
  }

  /** Calls any method of PROTOCOL.md. */
  async call<Result>(method: string, params: object = {}, options: CallOptions = {}): Promise<Result> {
    const timeout = Math.min(options.timeoutMs ?? this.options.timeoutMs, TIMER_MS_MAX);
    const until = performance.now() + timeout;
    const opId = options.opId ?? randomUUID();
    for (let pause = BACKOFF_MS; ; pause = Math.min(pause * 2, BACKOFF_MAX_MS)) {
      const left = Math.max(1, Math.floor(until - performance.now()));
      const envelope = {
        op_id: opId,
        deadline_ms: left,
        ...(options.minLsn === undefined ? {} : { min_lsn: options.minLsn }),
      };
      try {
        const connection = await this.connected(Math.min(left, this.options.connectTimeoutMs));
        return (await connection.call(method, params, envelope, left)) as Result;
      } catch (error) {
        const wait = error instanceof MnemeError && this.options.retry ? pauseAfter(error, method, pause) : undefined;
        if (wait === undefined || performance.now() + wait >= until) throw error;
        await new Promise((resolve) => setTimeout(resolve, wait));
      }
    }
  }

  /** Closes the connection. The client may be used again; it then connects anew. */
  async close(): Promise<void> {
    const connection = this.connection;
    this.connection = undefined;
    (await connection?.catch(() => undefined))?.close();
  }

  private async connected(timeoutMs: number): Promise<Connection> {
    const before = this.connection;
    const known = await before?.catch(() => undefined);
    if (known && !known.closed && !known.leaving) return known;
    // Calls that come meanwhile wait for the same connection.
    if (this.connection === before || this.connection === undefined) this.connection = this.open(timeoutMs);
    return this.connection;
  }

  private async open(timeoutMs: number): Promise<Connection> {
    const connection = await Connection.open(this.options.socket, timeoutMs);
    const { client, session } = this.options;
    const greeting = { protocol: PROTOCOL_VERSION, client, ...(session === undefined ? {} : { session }) };
    try {
      const hello = (await connection.call("hello", greeting, {}, timeoutMs)) as { limits?: { frame_bytes_max?: number } };
      connection.frameBytesMax = hello.limits?.frame_bytes_max ?? Infinity;
    } catch (error) {
      connection.close();
      throw error;
    }
    return connection;
  }
}

function pauseAfter(error: MnemeError, method: string, pause: number): number | undefined {
  if (error.kind === "busy") return Math.max(error.retryAfterMs ?? 50, pause);
  // It was refused before anything was done: whoever listens next may take it. A drain is not meant for that one.
  if (error.kind === "shutting_down" && method !== "admin.drain") return Math.max(error.retryAfterMs ?? 0, pause);
  if (error.kind === "disconnected" && !NOT_REPEATED.has(method)) return pause;
  // The daemon may be restarting. Before the first pause it never was there.
  if (error.kind === "not_running" && pause > BACKOFF_MS) return pause;
  return undefined;
}
