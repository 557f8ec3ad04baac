"""What goes over the socket, typed. Written by tools/generate.py from PROTOCOL.md: do not edit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Literal, Mapping, Optional, Tuple, TypedDict, Union

Ack = Literal["accepted", "durable", "indexed"]
"""How far a write has got when it is acknowledged. See PROTOCOL.md."""

ConstraintParam = Mapping[str, Any]
"""What each hole must be. See PROTOCOL.md."""

GuidanceParam = Literal["none", "prompt", "cross_attention", "both"]
"""How memories reach the generator. See PROTOCOL.md."""

Kind = Literal["note", "message", "fact", "preference", "chunk", "event", "procedure"]
"""What sort of thing a memory is. See PROTOCOL.md."""

ModeParam = Literal["ar", "diffusion", "auto"]
"""How tokens are decided. See PROTOCOL.md."""

SegmentParam = Mapping[str, Any]
"""A piece of the canvas. See PROTOCOL.md."""

Selector = Mapping[str, Any]
"""Which memories to forget: exactly one of these. See PROTOCOL.md."""

TaskEventKind = Mapping[str, Any]
"""What happens to a task. See PROTOCOL.md."""

TaskState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
"""Where a task is. See PROTOCOL.md."""

Verdict = Literal["accept", "reject", "correct"]
"""What the user thinks of a generation. See PROTOCOL.md."""

Work = Union[Literal["compact"], Mapping[str, Any]]
"""What a task does. See PROTOCOL.md."""


class Filter(TypedDict, total=False):
    """Which memories a recall may return. Empty lists mean any."""

    include_quarantined: bool
    """Also memories in quarantine."""
    kinds: List[Kind]
    """Only these kinds. Each list has at most 64 entries."""
    metadata: Dict[str, str]
    """Only memories with all of these notes."""
    sources: List[str]
    """Only these sources; a trailing `*` matches any ending."""
    speakers: List[str]
    """Only these speakers; case is ignored."""
    threads: List[str]
    """Only these threads."""
    trust_min: str
    """Only memories at least this trusted."""
    valid_after: str
    """Only memories valid at or after this moment."""
    valid_before: str
    """Only memories valid before this moment."""


class GenerateParams(TypedDict, total=False):
    """Writes from memory."""

    base_only: bool
    """Leave adapters out: the base model alone."""
    block: int
    """Tokens a block; the daemon's setting when missing."""
    canvas: List[SegmentParam]
    """Text and holes, instead of `prompt`."""
    constraint: ConstraintParam
    """What each hole must be."""
    guidance: GuidanceParam
    """How memories reach the generator."""
    instruction: str
    """An instruction in the model's chat form, instead of plain continuation."""
    memories_max: int
    """How many memories at most; 5 when missing, at most 32."""
    memory_query: str
    """What to look for in the memory, instead of the canvas's own text."""
    mode: ModeParam
    """How tokens are decided."""
    namespace: str
    """Memories of this namespace guide the text; no guidance when missing."""
    prompt: str
    """What to continue; `{{hole:N}}` marks a hole of at most N tokens. Or give `canvas`."""
    seed: int
    """Seed of all draws; 0 when missing."""
    steps: int
    """Diffusion steps a block; the daemon's setting when missing."""
    stream: bool
    """Send the canvas as it crystallises, as `task.event` notifications."""
    temperature: float
    """Sampling temperature, 0 to 2; 0 is greedy."""
    tokens_max: int
    """Tokens to add after a prompt without holes; 64 when missing, at most the daemon's `generation.tokens_max`, which is 512 unless set and never above 1,024."""


class RememberParams(TypedDict, total=False):
    """Remembers something. Repeatable with the same `op_id`."""

    ack: Ack
    """How far the write must have got at least before it is acknowledged. This daemon acknowledges nothing before it is `indexed`, so every value is met and none is faster."""
    kind: Kind
    """What sort of thing it is."""
    metadata: Dict[str, str]
    """Free notes: at most 64, each at most 4,096 bytes."""
    namespace: str
    """The drawer; `default` when missing."""
    position: int
    """Its place in the thread."""
    source: str
    """The source that can be revoked as a whole; `client:<name>` when missing."""
    speaker: str
    """Who says it, when it is a message."""
    text: str
    """The text; 1 to 65,536 bytes. Secrets in it are redacted before it is written."""
    thread: str
    """The conversation or document it is part of."""
    trust: str
    """How far it is trusted; `reported` when missing. `untrusted` goes into quarantine."""
    valid_from: str
    """When it starts to be true, or happened; now when missing."""
    valid_to: str
    """When it stops being true."""


@dataclass(frozen=True)
class ActorView:
    """One actor."""

    capacity: int
    """Requests that it takes at once."""
    in_flight: int
    """Requests that it is dealing with."""
    name: str
    """Its name."""
    restarts: int
    """How often it was restarted."""
    state: str
    """`running`, `restarting` or `stopped`."""


@dataclass(frozen=True)
class AdapterView:
    """An adapter."""

    created_at: str
    """When it was made."""
    id: str
    """Its name."""
    imported: bool
    """It came from elsewhere: its scores are a claim, what it was judged by here stands in its decisions."""
    level: str
    """`composition`, `control_net`, `lora` or `layers`."""
    memories: int
    """How many memories it was trained on."""
    pinned: bool
    """Never rolled back or retired by the loop itself."""
    state: str
    """`active`, `shadow`, `superseded`, `rolled_back` or `retired`."""
    scores: Dict[str, float] = field(default_factory=dict)
    """Held-out gain, confidence bounds, forgetting and other scores."""


@dataclass(frozen=True)
class DecisionView:
    """One decision."""

    at: str
    """When."""
    from_: str
    """The state before."""
    id: str
    """Its name."""
    reason: str
    """Why, in words."""
    to: str
    """The state after."""
    adapter: Optional[str] = None
    """The adapter it is about."""
    numbers: Dict[str, float] = field(default_factory=dict)
    """The numbers it rests on."""


@dataclass(frozen=True)
class GenerateResult:
    """The text."""

    engine: str
    """The engine that wrote it."""
    finish: str
    """Why it ended: `length`, `stop` or `constraint`."""
    mode: ModeParam
    """The mode that was used."""
    steps: int
    """Network evaluations spent."""
    task: str
    """Names this generation, for feedback."""
    text: str
    """The whole canvas."""
    took_ms: int
    """Time spent in the daemon (milliseconds)."""
    uncertainty: UncertaintyView
    """How unsure the generator was."""
    acceptance: Optional[float] = None
    """In `auto`: the share of drafted tokens that was accepted."""
    adapters: List[Tuple[str, float]] = field(default_factory=list)
    """Adapters that had a share, with their weight."""
    degraded: List[str] = field(default_factory=list)
    """What was not available."""
    fills: List[str] = field(default_factory=list)
    """The text of each hole."""
    memories: List[str] = field(default_factory=list)
    """Memories that guided it, best first."""
    tokens: List[TokenView] = field(default_factory=list)
    """Every filled token."""


@dataclass(frozen=True)
class HitView:
    """One remembered thing that answers a question."""

    memory: MemoryView
    """The memory."""
    score: float
    """The fused score; comparable within one recall only."""
    matched_terms: List[str] = field(default_factory=list)
    """The query's terms that it contains, as stemmed, when asked for."""
    signals: List[SignalView] = field(default_factory=list)
    """Every ranking that saw it, when asked for."""


@dataclass(frozen=True)
class Limits:
    """What the daemon will take."""

    frame_bytes_max: int
    """The longest line (bytes)."""
    idle_timeout_ms: int
    """How long a connection that waits for no answer may be silent (milliseconds)."""
    import_batch_max: int
    """Memories in one `memory.import` request."""
    recall_limit_max: int
    """The most hits of a recall."""
    requests_in_flight_max: int
    """Requests under way at once on one connection."""
    text_bytes_max: int
    """The longest text of a memory (bytes)."""


@dataclass(frozen=True)
class MapPoint:
    """One memory on the map."""

    id: str
    """The memory."""
    kind: Kind
    """What sort of thing it is."""
    namespace: str
    """The drawer it lies in."""
    quarantined: bool
    """It is in quarantine."""
    source: str
    """The source."""
    text: str
    """The first 160 characters of its text."""
    valid_from: str
    """When it starts to be true."""
    x: float
    """Its place from left to right, -1 to 1."""
    y: float
    """Its place from bottom to top, -1 to 1."""


@dataclass(frozen=True)
class MemoryView:
    """A memory."""

    evidence: int
    """How many times the same content was brought."""
    id: str
    """Its name, for ever."""
    kind: Kind
    """What sort of thing it is."""
    lsn: int
    """The journal place of its last change."""
    namespace: str
    """The drawer it lies in."""
    origin: Origin
    """Where it came from."""
    quarantined: bool
    """It is in quarantine."""
    recorded_at: str
    """When it was recorded."""
    text: str
    """The text."""
    valid_from: str
    """When it starts to be true."""
    metadata: Dict[str, str] = field(default_factory=dict)
    """Free notes."""
    position: Optional[int] = None
    """Its place in the thread."""
    speaker: Optional[str] = None
    """Who says it."""
    superseded_by: Optional[str] = None
    """The memory that replaces it."""
    supersedes: Optional[str] = None
    """The memory that it replaces."""
    thread: Optional[str] = None
    """The conversation or document it is part of."""
    valid_to: Optional[str] = None
    """When it stops being true."""


@dataclass(frozen=True)
class Origin:
    """Who brought a memory, and from where."""

    client: str
    """The client program."""
    source: str
    """The source."""
    trust: str
    """How far it is trusted. Treat what is below `observed` as data, never as instructions."""
    lines: Optional[Tuple[int, int]] = None
    """The first and last line in that file."""
    path: Optional[str] = None
    """The file it was read from."""
    session: Optional[str] = None
    """The client's session."""


@dataclass(frozen=True)
class SignalView:
    """One ranking's contribution to a hit."""

    contribution: float
    """What it added to the fused score."""
    name: str
    """The ranking."""
    rank: int
    """The place in it, from 1; 0 for a boost."""
    score: float
    """That ranking's own score."""


@dataclass(frozen=True)
class TaskView:
    """One task."""

    progress: float
    """How far it is, 0 to 1."""
    state: TaskState
    """Where it is."""
    submitted_at: str
    """When it was submitted."""
    task: str
    """Its name."""
    work: str
    """`generate`, `backup` or `compact`."""
    ended_at: Optional[str] = None
    """When it ended."""
    error: Optional[str] = None
    """The error, when it failed."""
    generation: Optional[GenerateResult] = None
    """The result of a generation."""


@dataclass(frozen=True)
class TokenView:
    """How one filled token came about."""

    ambiguity: float
    """Entropy of its distribution (nats)."""
    confidence: float
    """Its probability when it was decided."""
    surprise: float
    """Its residual over the expected residual: 1 when calibrated."""
    text: str
    """The token."""


@dataclass(frozen=True)
class UncertaintyView:
    """How unsure the generator was."""

    ambiguity: float
    """Mean entropy (nats a token)."""
    confidence: float
    """Mean probability of the tokens."""
    disagreement: float
    """How much composed models disagreed (nats a token)."""
    surprise: float
    """Mean surprise ratio."""
    verdict: str
    """What the loop made of it: `serve`, `ask` or `suspect`."""
    p_value: Optional[float] = None
    """Conformal p-value of this surprise among earlier ones; missing until enough were seen."""


@dataclass(frozen=True)
class WatchView:
    """A watched folder."""

    files: int
    """Files that are in memory."""
    folder: str
    """Its absolute path."""
    namespace: str
    """The drawer."""
    problem: Optional[str] = None
    """What is wrong with it."""
    scanned_at: Optional[str] = None
    """When it was last looked through from end to end."""


@dataclass(frozen=True)
class Hello:
    """Result of `hello`: Opens a connection: versions and limits. Must come first."""

    boot: str
    """This run of the daemon: another one means that streams and tasks of before are gone."""
    limits: Limits
    """What it will take."""
    protocol: int
    """The version that is spoken from here on."""
    protocol_min: int
    """The oldest version that this daemon still speaks."""
    server: str
    """The daemon's name and version."""


@dataclass(frozen=True)
class Pong:
    """Result of `ping`: Asks whether the daemon is there. Allowed before `hello`."""

    boot: str
    """This run of the daemon."""


@dataclass(frozen=True)
class RememberResult:
    """Result of `memory.remember`: Remembers something."""

    ack: Ack
    """How far the write has got."""
    duplicate: bool
    """The content was known already: its evidence count grew."""
    id: str
    """The memory that now holds the content; an older one for an exact duplicate."""
    lsn: int
    """Its place in the journal."""
    quarantined: bool
    """It went into quarantine."""
    redactions: int
    """Secrets that were taken out."""
    replayed: bool
    """The same `op_id` had been carried out before; this is the stored result."""
    near_duplicate_of: Optional[str] = None
    """A memory that says nearly the same."""


@dataclass(frozen=True)
class RecallResult:
    """Result of `memory.recall`: Asks the memory."""

    abstain: bool
    """Probably nothing in the memory answers this."""
    confidence: float
    """The estimated probability that at least one hit is relevant, 0 to 1."""
    lsn: int
    """The last change that this answer has seen."""
    took_us: int
    """Time spent in the daemon (microseconds)."""
    degraded: List[str] = field(default_factory=list)
    """What was not available, such as `embedding`; the answer is from the rest. `phrase`: more memories have the words of a phrase in quotes than are looked at; the best of them were."""
    hits: List[HitView] = field(default_factory=list)
    """The hits, best first."""


@dataclass(frozen=True)
class ForgetReceipt:
    """Result of `memory.forget`: Makes memories unrecallable at once, and unreadable on disk soon."""

    hidden_at: str
    """When they were hidden."""
    lsn: int
    """The journal place."""
    replayed: bool
    """The same `op_id` had been carried out before."""
    adapters_retired: List[str] = field(default_factory=list)
    """Adapters that had learned them, themselves or through the adapter they started from: they are retired."""
    ids: List[str] = field(default_factory=list)
    """The memories that nothing returns any more."""
    purged_at: Optional[str] = None
    """When their bytes were gone from every file; missing while that is outstanding (at most 24 h)."""


@dataclass(frozen=True)
class CorroborateResult:
    """Result of `memory.corroborate`: Takes a memory out of quarantine."""

    id: str
    """Which."""
    lsn: int
    """The journal place."""


@dataclass(frozen=True)
class ExportPage:
    """Result of `memory.export`: Returns a page of memories in id order."""

    memories: List[MemoryView] = field(default_factory=list)
    """The memories, in id order."""
    next: Optional[str] = None
    """Where the next page starts; missing at the end."""


@dataclass(frozen=True)
class ImportResult:
    """Result of `memory.import`: Remembers many things in one durable step."""

    duplicates: int
    """Exact duplicates of known ones."""
    imported: int
    """New memories."""
    lsn: int
    """The last journal place."""
    refused: List[Tuple[int, str]] = field(default_factory=list)
    """What was refused, by its place in the request, and why."""


@dataclass(frozen=True)
class Stats:
    """Result of `memory.stats`: Counts and sizes of the memory."""

    disk_bytes: int
    """Bytes on disk."""
    embeddings_pending: int
    """Memories without a current vector."""
    engine: str
    """The state engine."""
    health: str
    """`healthy`, or what is wrong."""
    index_bytes: int
    """Bytes of the in-memory indices."""
    lsn: int
    """The last change."""
    memories: int
    """Memories that recall can return."""
    purge_pending: int
    """Forgotten ones whose bytes are still on disk."""
    quarantined: int
    """Of these, in quarantine."""
    superseded: int
    """Replaced ones, kept for `as_of`."""
    namespaces: List[Tuple[str, int]] = field(default_factory=list)
    """Memories per namespace."""


@dataclass(frozen=True)
class MemoryMap:
    """Result of `memory.map`: Lays memories out in a plane by their meaning."""

    explained: Tuple[float, float]
    """The share of the variance that each axis shows, 0 to 1."""
    memories: int
    """Memories that were looked at."""
    without_vector: int
    """Of those chosen, how many have no vector yet."""
    points: List[MapPoint] = field(default_factory=list)
    """The memories that have a vector, oldest first."""


@dataclass(frozen=True)
class NamespaceList:
    """Result of `namespace.list`: Lists the namespaces."""

    namespaces: List[Tuple[str, int]] = field(default_factory=list)
    """Each with its number of memories."""


@dataclass(frozen=True)
class FeedbackResult:
    """Result of `feedback`: Says what the user thinks of a generation."""

    task: str
    """The generation."""
    memory: Optional[str] = None
    """The memory that an accepted or corrected text became, if it did."""


@dataclass(frozen=True)
class TaskSubmitted:
    """Result of `task.submit`: Starts a long-running task and returns at once."""

    task: str
    """Its name."""


@dataclass(frozen=True)
class TaskList:
    """Result of `task.status`: Asks where tasks are."""

    tasks: List[TaskView] = field(default_factory=list)
    """The tasks."""


@dataclass(frozen=True)
class TaskCancelled:
    """Result of `task.cancel`: Stops a task at its next step."""

    cancelled: bool
    """Whether it was still to be stopped."""


@dataclass(frozen=True)
class EvolveStatus:
    """Result of `evolve.status`: What the evolution loop is doing."""

    accepted: int
    """Adapters accepted."""
    observed: int
    """Generations and texts of the user observed since the daemon started."""
    rejected: int
    """Adapters rejected."""
    rolled_back: int
    """Adapters rolled back."""
    state: str
    """The state: `serve`, `suspect`, `propose`, `train`, `validate`, `shadow`, ..."""
    texts_waiting: int
    """Texts of the user in view: those a next job would choose from."""
    trained: int
    """Training jobs begun; one that is interrupted and goes on counts once."""
    adapters: List[AdapterView] = field(default_factory=list)
    """Adapters, newest first."""
    paused: Optional[str] = None
    """Paused by the user, or by battery or load."""
    progress: Optional[float] = None
    """Progress of the job under way, 0 to 1."""


@dataclass(frozen=True)
class EvolveLog:
    """Result of `evolve.log`: Decisions of the loop, newest first."""

    decisions: List[DecisionView] = field(default_factory=list)
    """The decisions."""


@dataclass(frozen=True)
class EvolveAdapter:
    """Result of `evolve.show`: One adapter with its lineage and decisions."""

    adapter: AdapterView
    """The adapter."""
    decisions: List[DecisionView] = field(default_factory=list)
    """Its decisions, oldest first."""
    lineage: List[str] = field(default_factory=list)
    """The memories it was trained on."""


@dataclass(frozen=True)
class EvolveDiff:
    """Result of `evolve.diff`: Compares two adapters."""

    a: Dict[str, float] = field(default_factory=dict)
    """Scores of the first, by name."""
    b: Dict[str, float] = field(default_factory=dict)
    """Scores of the second."""
    only_a: List[str] = field(default_factory=list)
    """Memories that only the first was trained on."""
    only_b: List[str] = field(default_factory=list)
    """Memories that only the second was trained on."""


@dataclass(frozen=True)
class EvolveCommandResult:
    """Result of `evolve.rollback`: Takes an adapter out of use."""

    message: str
    """What happened, in words."""
    state: str
    """The state after it."""


@dataclass(frozen=True)
class SkillPart:
    """Result of `evolve.export`: Returns a part of an adapter as a skill that another machine can import."""

    data: str
    """The bytes, in base64 (RFC 4648, section 4)."""
    next: int
    """Where the next part starts; missing at the end."""
    total: int
    """The skill's whole length (bytes)."""


@dataclass(frozen=True)
class SkillReceipt:
    """Result of `evolve.import`: Takes a skill in; it serves nothing before it has passed a shadow here."""

    adapter: str
    """With the last part: the adapter."""
    message: str
    """With the last part: what happened, in words."""
    received: int
    """How much of the skill is here (bytes)."""
    state: str
    """With the last part: the loop's state after it."""


@dataclass(frozen=True)
class WatchList:
    """Result of `watch.remove`: Stops watching a folder."""

    folders: List[WatchView] = field(default_factory=list)
    """The folders."""


@dataclass(frozen=True)
class Status:
    """Result of `admin.status`: How the daemon is."""

    boot: str
    """This run."""
    connections: int
    """Open connections."""
    engine: str
    """The engine: its name, or why it is away."""
    engine_restarts: int
    """How often the engine was restarted."""
    health: str
    """`healthy`, or what is wrong."""
    lsn: int
    """The last change."""
    memories: int
    """Memories that recall can return."""
    pid: int
    """Its process id."""
    rss_bytes: int
    """Its resident memory (bytes)."""
    server: str
    """Name and version."""
    started_at: str
    """When it started."""
    state_dir: str
    """The state folder."""
    actors: List[ActorView] = field(default_factory=list)
    """The actors."""
    errors: Dict[str, int] = field(default_factory=dict)
    """Errors answered, by kind."""
    requests: Dict[str, int] = field(default_factory=dict)
    """Requests answered, by method."""


@dataclass(frozen=True)
class UpkeepResult:
    """Result of `admin.backup`: Writes a verified copy of the store while it is in use."""

    bytes_freed: int
    """Bytes given back to the disk."""
    items: Dict[str, int] = field(default_factory=dict)
    """Rows or files dealt with, by step."""


@dataclass(frozen=True)
class ReloadResult:
    """Result of `admin.reload`: Reads the configuration again."""

    applied: List[str] = field(default_factory=list)
    """Settings that have another value in force than at the start, as `section.key = value`."""
    restart_needed: List[str] = field(default_factory=list)
    """Keys whose new value waits for a restart."""


@dataclass(frozen=True)
class Metrics:
    """Result of `admin.metrics`: Counters in Prometheus' text form."""

    text: str
    """Prometheus text format 0.0.4."""


@dataclass(frozen=True)
class Drained:
    """Result of `admin.drain`: Stops the daemon in order."""

    in_flight: int
    """Requests that are still under way."""


@dataclass(frozen=True)
class TaskEvent:
    """What happens to a task while it is under way."""

    event: TaskEventKind
    """What happened: a mapping with `type` and what belongs to it."""
    sequence: int
    """Counts its events from 0; a gap means that a slow reader was skipped over."""
    task: str
    """Which task."""
