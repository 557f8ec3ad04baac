"""The asynchronous client's methods. Written by tools/generate.py from PROTOCOL.md: do not edit."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional, Sequence, Type, TypeVar, Union

from . import _types as types
from ._wire import selector

T = TypeVar("T")


class AsyncApi:
    """Every method of the protocol. Each takes `op_id` (names a change: sent again, it is made once; drawn when
    missing), `timeout` in seconds (the client's usual one when missing) and `min_lsn` (the answer must have seen
    this change), and raises `MnemeError`."""

    async def _call(
        self,
        method: str,
        params: Mapping[str, Any],
        result: Type[T],
        *,
        op_id: Optional[str],
        timeout: Optional[float],
        min_lsn: Optional[int],
    ) -> T:
        raise NotImplementedError

    async def ping(
        self,
        *,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.Pong:
        """Asks whether the daemon is there. Allowed before `hello`."""
        params: Dict[str, Any] = {}
        return await self._call("ping", params, types.Pong, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def remember(
        self,
        text: str,
        *,
        ack: Optional[types.Ack] = None,
        kind: Optional[types.Kind] = None,
        metadata: Optional[Mapping[str, str]] = None,
        namespace: Optional[str] = None,
        position: Optional[int] = None,
        source: Optional[str] = None,
        speaker: Optional[str] = None,
        thread: Optional[str] = None,
        trust: Optional[str] = None,
        valid_from: Optional[str] = None,
        valid_to: Optional[str] = None,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.RememberResult:
        """Remembers something.

        - text: The text; 1 to 65,536 bytes. Secrets in it are redacted before it is written.
        - ack: How far the write must have got at least before it is acknowledged. This daemon acknowledges
          nothing before it is `indexed`, so every value is met and none is faster.
        - kind: What sort of thing it is.
        - metadata: Free notes: at most 64, each at most 4,096 bytes.
        - namespace: The drawer; `default` when missing.
        - position: Its place in the thread.
        - source: The source that can be revoked as a whole; `client:<name>` when missing.
        - speaker: Who says it, when it is a message.
        - thread: The conversation or document it is part of.
        - trust: How far it is trusted; `reported` when missing. `untrusted` goes into quarantine.
        - valid_from: When it starts to be true, or happened; now when missing.
        - valid_to: When it stops being true.
        """
        params: Dict[str, Any] = {
            "text": text,
            "ack": ack,
            "kind": kind,
            "metadata": None if metadata is None else dict(metadata),
            "namespace": namespace,
            "position": position,
            "source": source,
            "speaker": speaker,
            "thread": thread,
            "trust": trust,
            "valid_from": valid_from,
            "valid_to": valid_to,
        }
        return await self._call("memory.remember", params, types.RememberResult, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def recall(
        self,
        query: str,
        *,
        as_of: Optional[str] = None,
        diversity: Optional[float] = None,
        explain: Optional[bool] = None,
        filter: Optional[types.Filter] = None,
        limit: Optional[int] = None,
        namespaces: Optional[Sequence[str]] = None,
        reference_time: Optional[str] = None,
        rerank: Optional[bool] = None,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.RecallResult:
        """Asks the memory.

        - query: What is asked; 1 to 16,384 bytes. Phrases in double quotes must occur as they stand.
        - as_of: Answer as the memory stood at this moment of recording.
        - diversity: 0 is pure relevance, 1 pure variety.
        - explain: Say for each hit how it came to its place.
        - filter: Which memories may be returned.
        - limit: How many hits at most; 10 when missing.
        - namespaces: The drawers to look in; `default` when empty.
        - reference_time: The moment that "yesterday" is counted from; now when missing.
        - rerank: Let the generator judge the best 30 candidates too: seconds slower, and of little use on
          chats.
        """
        params: Dict[str, Any] = {
            "query": query,
            "as_of": as_of,
            "diversity": diversity,
            "explain": explain,
            "filter": filter,
            "limit": limit,
            "namespaces": None if namespaces is None else list(namespaces),
            "reference_time": reference_time,
            "rerank": rerank,
        }
        return await self._call("memory.recall", params, types.RecallResult, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def get(
        self,
        id: str,
        *,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.MemoryView:
        """Returns one memory.

        - id: Which.
        """
        params: Dict[str, Any] = {
            "id": id,
        }
        return await self._call("memory.get", params, types.MemoryView, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def forget(
        self,
        select: Union[str, Sequence[str], types.Selector],
        *,
        purge_now: Optional[bool] = None,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.ForgetReceipt:
        """Makes memories unrecallable at once, and unreadable on disk soon.

        - select: Which.
        - purge_now: Wait until the bytes are gone from every file, or until the deadline is near: then
          `purged_at` is missing.
        """
        params: Dict[str, Any] = {
            "select": selector(select),
            "purge_now": purge_now,
        }
        return await self._call("memory.forget", params, types.ForgetReceipt, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def supersede(
        self,
        id: str,
        by: types.RememberParams,
        *,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.RememberResult:
        """Puts something in the place of an older memory.

        - id: The older memory.
        - by: What replaces it.
        """
        params: Dict[str, Any] = {
            "id": id,
            "by": by,
        }
        return await self._call("memory.supersede", params, types.RememberResult, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def corroborate(
        self,
        id: str,
        *,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.CorroborateResult:
        """Takes a memory out of quarantine.

        - id: Which.
        """
        params: Dict[str, Any] = {
            "id": id,
        }
        return await self._call("memory.corroborate", params, types.CorroborateResult, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def export_page(
        self,
        *,
        after: Optional[str] = None,
        limit: Optional[int] = None,
        namespace: Optional[str] = None,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.ExportPage:
        """Returns a page of memories in id order.

        - after: Start after this id.
        - limit: At most this many, 1 to 1,000; 500 when missing. A page also ends when it has 2 MiB of
          text.
        - namespace: Only this namespace.
        """
        params: Dict[str, Any] = {
            "after": after,
            "limit": limit,
            "namespace": namespace,
        }
        return await self._call("memory.export", params, types.ExportPage, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def import_memories(
        self,
        memories: Sequence[types.RememberParams],
        *,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.ImportResult:
        """Remembers many things in one durable step.

        - memories: What to remember, 1 to 1,000.
        """
        params: Dict[str, Any] = {
            "memories": list(memories),
        }
        return await self._call("memory.import", params, types.ImportResult, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def stats(
        self,
        *,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.Stats:
        """Counts and sizes of the memory."""
        params: Dict[str, Any] = {}
        return await self._call("memory.stats", params, types.Stats, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def map(
        self,
        *,
        limit: Optional[int] = None,
        namespace: Optional[str] = None,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.MemoryMap:
        """Lays memories out in a plane by their meaning.

        - limit: At most this many, 1 to 5,000; 1,000 when missing. Of more, some are chosen evenly over
          time.
        - namespace: Only this namespace.
        """
        params: Dict[str, Any] = {
            "limit": limit,
            "namespace": namespace,
        }
        return await self._call("memory.map", params, types.MemoryMap, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def namespaces(
        self,
        *,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.NamespaceList:
        """Lists the namespaces."""
        params: Dict[str, Any] = {}
        return await self._call("namespace.list", params, types.NamespaceList, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def generate(
        self,
        prompt: Optional[str] = None,
        *,
        base_only: Optional[bool] = None,
        block: Optional[int] = None,
        canvas: Optional[Sequence[types.SegmentParam]] = None,
        constraint: Optional[types.ConstraintParam] = None,
        guidance: Optional[types.GuidanceParam] = None,
        instruction: Optional[str] = None,
        memories_max: Optional[int] = None,
        memory_query: Optional[str] = None,
        mode: Optional[types.ModeParam] = None,
        namespace: Optional[str] = None,
        seed: Optional[int] = None,
        steps: Optional[int] = None,
        stream: Optional[bool] = None,
        temperature: Optional[float] = None,
        tokens_max: Optional[int] = None,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.GenerateResult:
        """Writes from memory; streams when asked to.

        - prompt: What to continue; `{{hole:N}}` marks a hole of at most N tokens. Or give `canvas`.
        - base_only: Leave adapters out: the base model alone.
        - block: Tokens a block; the daemon's setting when missing.
        - canvas: Text and holes, instead of `prompt`.
        - constraint: What each hole must be.
        - guidance: How memories reach the generator.
        - instruction: An instruction in the model's chat form, instead of plain continuation.
        - memories_max: How many memories at most; 5 when missing, at most 32.
        - memory_query: What to look for in the memory, instead of the canvas's own text.
        - mode: How tokens are decided.
        - namespace: Memories of this namespace guide the text; no guidance when missing.
        - seed: Seed of all draws; 0 when missing.
        - steps: Diffusion steps a block; the daemon's setting when missing.
        - stream: Send the canvas as it crystallises, as `task.event` notifications.
        - temperature: Sampling temperature, 0 to 2; 0 is greedy.
        - tokens_max: Tokens to add after a prompt without holes; 64 when missing, at most the daemon's
          `generation.tokens_max`, which is 512 unless set and never above 1,024.
        """
        params: Dict[str, Any] = {
            "prompt": prompt,
            "base_only": base_only,
            "block": block,
            "canvas": None if canvas is None else list(canvas),
            "constraint": constraint,
            "guidance": guidance,
            "instruction": instruction,
            "memories_max": memories_max,
            "memory_query": memory_query,
            "mode": mode,
            "namespace": namespace,
            "seed": seed,
            "steps": steps,
            "stream": stream,
            "temperature": temperature,
            "tokens_max": tokens_max,
        }
        return await self._call("generate", params, types.GenerateResult, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def feedback(
        self,
        task: str,
        verdict: types.Verdict,
        *,
        correction: Optional[str] = None,
        trust: Optional[str] = None,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.FeedbackResult:
        """Says what the user thinks of a generation.

        - task: The generation.
        - verdict: The opinion.
        - correction: What it should have been; with `correct` only.
        - trust: How far the text that is kept of it may be trusted: `user`, unless somebody else than the
          user speaks. Only what is `user` is learned from.
        """
        params: Dict[str, Any] = {
            "task": task,
            "verdict": verdict,
            "correction": correction,
            "trust": trust,
        }
        return await self._call("feedback", params, types.FeedbackResult, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def task_submit(
        self,
        work: types.Work,
        *,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.TaskSubmitted:
        """Starts a long-running task and returns at once.

        - work: What to do.
        """
        params: Dict[str, Any] = {
            "work": work,
        }
        return await self._call("task.submit", params, types.TaskSubmitted, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def task_status(
        self,
        task: Optional[str] = None,
        *,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.TaskList:
        """Asks where tasks are.

        - task: Which; all recent ones when missing.
        """
        params: Dict[str, Any] = {
            "task": task,
        }
        return await self._call("task.status", params, types.TaskList, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def task_cancel(
        self,
        task: str,
        *,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.TaskCancelled:
        """Stops a task at its next step.

        - task: Which.
        """
        params: Dict[str, Any] = {
            "task": task,
        }
        return await self._call("task.cancel", params, types.TaskCancelled, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def evolve_status(
        self,
        *,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.EvolveStatus:
        """What the evolution loop is doing."""
        params: Dict[str, Any] = {}
        return await self._call("evolve.status", params, types.EvolveStatus, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def evolve_log(
        self,
        *,
        before: Optional[str] = None,
        limit: Optional[int] = None,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.EvolveLog:
        """Decisions of the loop, newest first.

        - before: Only decisions before this row.
        - limit: At most this many; 50 when missing, at most 1,000.
        """
        params: Dict[str, Any] = {
            "before": before,
            "limit": limit,
        }
        return await self._call("evolve.log", params, types.EvolveLog, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def evolve_show(
        self,
        adapter: str,
        *,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.EvolveAdapter:
        """One adapter with its lineage and decisions.

        - adapter: Which.
        """
        params: Dict[str, Any] = {
            "adapter": adapter,
        }
        return await self._call("evolve.show", params, types.EvolveAdapter, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def evolve_diff(
        self,
        a: str,
        *,
        b: Optional[str] = None,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.EvolveDiff:
        """Compares two adapters.

        - a: The first.
        - b: The second; the base when missing.
        """
        params: Dict[str, Any] = {
            "a": a,
            "b": b,
        }
        return await self._call("evolve.diff", params, types.EvolveDiff, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def evolve_rollback(
        self,
        adapter: str,
        *,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.EvolveCommandResult:
        """Takes an adapter out of use.

        - adapter: Which.
        """
        params: Dict[str, Any] = {
            "adapter": adapter,
        }
        return await self._call("evolve.rollback", params, types.EvolveCommandResult, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def evolve_retire(
        self,
        adapter: str,
        *,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.EvolveCommandResult:
        """Takes an adapter out of use for good and removes its file.

        - adapter: Which.
        """
        params: Dict[str, Any] = {
            "adapter": adapter,
        }
        return await self._call("evolve.retire", params, types.EvolveCommandResult, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def evolve_pin(
        self,
        adapter: str,
        pinned: bool,
        *,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.EvolveCommandResult:
        """Pins or unpins an adapter.

        - adapter: Which.
        - pinned: Pinned or not.
        """
        params: Dict[str, Any] = {
            "adapter": adapter,
            "pinned": pinned,
        }
        return await self._call("evolve.pin", params, types.EvolveCommandResult, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def evolve_pause(
        self,
        *,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.EvolveCommandResult:
        """Stops the loop from training."""
        params: Dict[str, Any] = {}
        return await self._call("evolve.pause", params, types.EvolveCommandResult, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def evolve_resume(
        self,
        *,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.EvolveCommandResult:
        """Lets the loop train again."""
        params: Dict[str, Any] = {}
        return await self._call("evolve.resume", params, types.EvolveCommandResult, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def evolve_run(
        self,
        *,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.EvolveCommandResult:
        """Proposes a training job now; its gates stay."""
        params: Dict[str, Any] = {}
        return await self._call("evolve.run", params, types.EvolveCommandResult, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def evolve_export(
        self,
        adapter: str,
        *,
        offset: Optional[int] = None,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.SkillPart:
        """Returns a part of an adapter as a skill that another machine can import.

        - adapter: Which.
        - offset: Where the part starts (bytes); 0 when missing.
        """
        params: Dict[str, Any] = {
            "adapter": adapter,
            "offset": offset,
        }
        return await self._call("evolve.export", params, types.SkillPart, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def evolve_import(
        self,
        data: str,
        hash: str,
        offset: int,
        total: int,
        *,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.SkillReceipt:
        """Takes a skill in; it serves nothing before it has passed a shadow here.

        - data: The part, in base64 (RFC 4648, section 4).
        - hash: BLAKE3 of the whole skill (hexadecimal): names the upload.
        - offset: Where this part starts (bytes).
        - total: Its whole length (bytes).
        """
        params: Dict[str, Any] = {
            "data": data,
            "hash": hash,
            "offset": offset,
            "total": total,
        }
        return await self._call("evolve.import", params, types.SkillReceipt, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def watch_add(
        self,
        folder: str,
        *,
        namespace: Optional[str] = None,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.WatchView:
        """Keeps a folder's text files in memory as they change.

        - folder: Absolute path of the folder.
        - namespace: The drawer; `default` when missing.
        """
        params: Dict[str, Any] = {
            "folder": folder,
            "namespace": namespace,
        }
        return await self._call("watch.add", params, types.WatchView, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def watch_remove(
        self,
        folder: str,
        *,
        forget: Optional[bool] = None,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.WatchList:
        """Stops watching a folder.

        - folder: Absolute path of the folder.
        - forget: Forget what was read from it.
        """
        params: Dict[str, Any] = {
            "folder": folder,
            "forget": forget,
        }
        return await self._call("watch.remove", params, types.WatchList, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def watch_list(
        self,
        *,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.WatchList:
        """Lists watched folders."""
        params: Dict[str, Any] = {}
        return await self._call("watch.list", params, types.WatchList, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def status(
        self,
        *,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.Status:
        """How the daemon is."""
        params: Dict[str, Any] = {}
        return await self._call("admin.status", params, types.Status, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def backup(
        self,
        folder: str,
        *,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.UpkeepResult:
        """Writes a verified copy of the store while it is in use.

        - folder: Absolute path of the folder.
        """
        params: Dict[str, Any] = {
            "folder": folder,
        }
        return await self._call("admin.backup", params, types.UpkeepResult, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def compact(
        self,
        *,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.UpkeepResult:
        """Purges forgotten bytes and compacts the store now."""
        params: Dict[str, Any] = {}
        return await self._call("admin.compact", params, types.UpkeepResult, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def reload(
        self,
        *,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.ReloadResult:
        """Reads the configuration again."""
        params: Dict[str, Any] = {}
        return await self._call("admin.reload", params, types.ReloadResult, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def metrics(
        self,
        *,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.Metrics:
        """Counters in Prometheus' text form."""
        params: Dict[str, Any] = {}
        return await self._call("admin.metrics", params, types.Metrics, op_id=op_id, timeout=timeout, min_lsn=min_lsn)

    async def drain(
        self,
        *,
        op_id: Optional[str] = None,
        timeout: Optional[float] = None,
        min_lsn: Optional[int] = None,
    ) -> types.Drained:
        """Stops the daemon in order."""
        params: Dict[str, Any] = {}
        return await self._call("admin.drain", params, types.Drained, op_id=op_id, timeout=timeout, min_lsn=min_lsn)
