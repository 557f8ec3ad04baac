"""Writes the typed half of the package from PROTOCOL.md, so that it cannot differ from what the daemon speaks.

`python3 tools/generate.py` writes `_types.py`, `_sync_api.py` and `_async_api.py`; a test runs it and compares.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

ROOT = Path(__file__).resolve().parent.parent
PROTOCOL = ROOT.parent.parent / "PROTOCOL.md"
PACKAGE = ROOT / "src" / "mneme"

# PROTOCOL.md does not say which members of a result may be missing; these may.
OPTIONAL = {
    "DecisionView": {"adapter"},
    "EvolveStatus": {"paused", "progress"},
    "ExportPage": {"next"},
    "FeedbackResult": {"memory"},
    "ForgetReceipt": {"purged_at"},
    "GenerateResult": {"acceptance"},
    "MemoryView": {"position", "speaker", "superseded_by", "supersedes", "thread", "valid_to"},
    "Origin": {"session", "path", "lines"},
    "RememberResult": {"near_duplicate_of"},
    "TaskView": {"ended_at", "error", "generation"},
    "UncertaintyView": {"p_value"},
    "WatchView": {"problem", "scanned_at"},
}
# Named types that clients send: dictionaries, whose members may all be left out.
INPUTS = {"RememberParams", "GenerateParams", "Filter"}
# Method -> name in Python; what is missing keeps its own name with dots as underscores.
METHODS = {
    "memory.remember": "remember",
    "memory.recall": "recall",
    "memory.get": "get",
    "memory.forget": "forget",
    "memory.supersede": "supersede",
    "memory.corroborate": "corroborate",
    "memory.export": "export_page",
    "memory.import": "import_memories",
    "memory.stats": "stats",
    "memory.map": "map",
    "namespace.list": "namespaces",
    "admin.status": "status",
    "admin.backup": "backup",
    "admin.compact": "compact",
    "admin.reload": "reload",
    "admin.metrics": "metrics",
    "admin.drain": "drain",
}
# The connection does these itself.
SKIPPED = {"hello", "task.events"}
RESULTS = {
    "hello": "Hello",
    "ping": "Pong",
    "memory.remember": "RememberResult",
    "memory.recall": "RecallResult",
    "memory.forget": "ForgetReceipt",
    "memory.corroborate": "CorroborateResult",
    "memory.export": "ExportPage",
    "memory.import": "ImportResult",
    "memory.stats": "Stats",
    "memory.map": "MemoryMap",
    "namespace.list": "NamespaceList",
    "feedback": "FeedbackResult",
    "task.submit": "TaskSubmitted",
    "task.status": "TaskList",
    "task.cancel": "TaskCancelled",
    "evolve.status": "EvolveStatus",
    "evolve.log": "EvolveLog",
    "evolve.show": "EvolveAdapter",
    "evolve.diff": "EvolveDiff",
    "evolve.rollback": "EvolveCommandResult",
    "evolve.retire": "EvolveCommandResult",
    "evolve.export": "SkillPart",
    "evolve.import": "SkillReceipt",
    "watch.remove": "WatchList",
    "admin.status": "Status",
    "admin.backup": "UpkeepResult",
    "admin.reload": "ReloadResult",
    "admin.metrics": "Metrics",
    "admin.drain": "Drained",
}
KEYWORDS = {"from": "from_", "import": "import_"}
PLAIN = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "any": "Any"}


class Field(NamedTuple):
    """One row of a table."""

    name: str
    type: str
    text: str

    @property
    def required(self) -> bool:
        return self.text.endswith("(required)")


class Method(NamedTuple):
    """One method: what it says about itself, what it takes and gives."""

    name: str
    text: str
    params: List[Field]
    result: List[Field]


def python_type(text: str) -> str:
    """The Python type of a type as the page words it."""
    text = re.sub(r"\[(\w+)\]\(#\w+\)", r"\1", text.strip())
    if text.startswith("list of "):
        return f"List[{python_type(text[8:])}]"
    if text.startswith("map to "):
        return f"Dict[str, {python_type(text[7:])}]"
    if text.startswith("["):
        return f"Tuple[{', '.join(python_type(part) for part in text[1:-1].split(','))}]"
    return PLAIN.get(text, text)


def rows(block: str) -> List[Field]:
    found = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+) \|$", block, re.M)
    return [Field(name, python_type(kind), text.strip()) for name, kind, text in found]


def parse(page: str) -> Tuple[List[Method], Dict[str, str]]:
    """The methods, and the named types by their block of text."""
    methods_part = page.split("\n## Methods\n")[1].split("\n## Notification")[0]
    types_part = page.split("\n## Types\n")[1]
    methods = []
    for chunk in re.split(r"^### ", methods_part, flags=re.M)[1:]:
        head, _, rest = chunk.partition("\n")
        before, _, after = rest.partition("\nResult:\n")
        text = before.strip().split("\n")[0]
        methods.append(Method(head.strip("` "), text, rows(before), rows(after)))
    types = {}
    for chunk in re.split(r"^### ", types_part, flags=re.M)[1:]:
        head, _, rest = chunk.partition("\n")
        types[head.strip()] = rest.strip()
    return methods, types


def docstring(text: str, indent: str) -> str:
    lines = textwrap.wrap(text, 110 - len(indent))
    return f'{indent}"""' + f"\n{indent}".join(lines) + '"""\n'


def dataclass_of(name: str, text: str, fields: List[Field]) -> str:
    optional = OPTIONAL.get(name, set())
    unknown = optional - {field.name for field in fields}
    assert not unknown, f"{name} has no {unknown}"
    out = f"@dataclass(frozen=True)\nclass {name}:\n" + docstring(text, "    ")
    required, defaulted = [], []
    for field in fields:
        attribute = KEYWORDS.get(field.name, field.name)
        said = f'    """{field.text}"""\n'
        if field.name in optional:
            defaulted.append(f"    {attribute}: Optional[{field.type}] = None\n{said}")
        elif field.type.startswith("List["):
            defaulted.append(f"    {attribute}: {field.type} = field(default_factory=list)\n{said}")
        elif field.type.startswith("Dict["):
            defaulted.append(f"    {attribute}: {field.type} = field(default_factory=dict)\n{said}")
        else:
            required.append(f"    {attribute}: {field.type}\n{said}")
    return out + "\n" + "".join(required + defaulted) + "\n\n"


def typed_dict_of(name: str, text: str, fields: List[Field]) -> str:
    out = f"class {name}(TypedDict, total=False):\n" + docstring(text, "    ") + "\n"
    return out + "".join(f'    {field.name}: {field.type}\n    """{field.text}"""\n' for field in fields) + "\n\n"


def write_types(methods: List[Method], types: Dict[str, str]) -> Tuple[str, Dict[str, str]]:
    head = (
        '"""What goes over the socket, typed. Written by tools/generate.py from PROTOCOL.md: do not edit."""\n\n'
        "from __future__ import annotations\n\n"
        "from dataclasses import dataclass, field\n"
        "from typing import Any, Dict, List, Literal, Mapping, Optional, Tuple, TypedDict, Union\n\n"
    )
    aliases, inputs, records = "", "", ""
    known: Dict[Tuple[Field, ...], str] = {}
    for name, block in types.items():
        text = block.split("\n")[0]
        fields = rows(block)
        if fields and name in INPUTS:
            inputs += typed_dict_of(name, text, fields)
        elif fields:
            known[tuple(fields)] = name
            records += dataclass_of(name, text, fields)
        else:
            choices = re.findall(r"^- `(\w+)`: ", block, re.M)
            kinds = [f"Literal[{', '.join(repr(choice) for choice in choices)}]".replace("'", '"')] if choices else []
            kinds += ["Mapping[str, Any]"] if "- {" in block else []
            kind = kinds[0] if len(kinds) == 1 else f"Union[{', '.join(kinds)}]"
            aliases += f'{name} = {kind}\n"""{text} See PROTOCOL.md."""\n\n'
    results: Dict[str, str] = {}
    for method in methods:
        key = tuple(method.result)
        if key not in known:
            name = RESULTS[method.name]
            known[key] = name
            records += dataclass_of(name, f"Result of `{method.name}`: {method.text}", method.result)
        results[method.name] = known[key]
    records += dataclass_of(
        "TaskEvent",
        "What happens to a task while it is under way.",
        [
            Field("event", "TaskEventKind", "What happened: a mapping with `type` and what belongs to it."),
            Field("sequence", "int", "Counts its events from 0; a gap means that a slow reader was skipped over."),
            Field("task", "str", "Which task."),
        ],
    )
    return head + aliases + "\n" + inputs + records.rstrip() + "\n", results


def signature(method: Method) -> Tuple[List[str], List[str], List[str]]:
    """Arguments, their documentation, and the lines that build the parameters."""
    positional, keywords, said, build = [], [], [], []
    for item in sorted(method.params, key=lambda field: (field.name not in LEADING, not field.required, field.name != "id")):
        name = KEYWORDS.get(item.name, item.name)
        kind = re.sub(r"\b(?!List|Dict|Tuple|Any)([A-Z]\w+)", r"types.\1", item.type)
        value = name
        if kind == "types.Selector":
            kind, value = "Union[str, Sequence[str], types.Selector]", "selector(select)"
        elif kind.startswith("List["):
            kind = "Sequence[" + kind[5:]
            value = f"list({name})" if item.required else f"None if {name} is None else list({name})"
        elif kind.startswith("Dict["):
            kind = "Mapping[" + kind[5:]
            value = f"dict({name})" if item.required else f"None if {name} is None else dict({name})"
        if item.required:
            positional.append(f"{name}: {kind}")
        elif item.name in LEADING:
            positional.append(f"{name}: Optional[{kind}] = None")
        else:
            keywords.append(f"{name}: Optional[{kind}] = None")
        said.append(f"{name}: {item.text.replace(' (required)', '')}")
        build.append(f'"{item.name}": {value},')
    keywords += ["op_id: Optional[str] = None", "timeout: Optional[float] = None", "min_lsn: Optional[int] = None"]
    return positional + ["*"] + keywords, said, build


# An optional parameter that is natural to give by position.
LEADING = {"prompt", "task"}


def write_api(methods: List[Method], results: Dict[str, str], asynchronous: bool) -> str:
    maybe_async, maybe_await = ("async ", "await ") if asynchronous else ("", "")
    what = "asynchronous" if asynchronous else "blocking"
    bodies = ""
    for method in methods:
        if method.name in SKIPPED:
            continue
        arguments, said, build = signature(method)
        name = METHODS.get(method.name, method.name.replace(".", "_"))
        result = results[method.name]
        bodies += f"\n    {maybe_async}def {name}(\n        self,\n"
        bodies += "".join(f"        {argument},\n" for argument in arguments)
        bodies += f"    ) -> types.{result}:\n"
        lines = textwrap.wrap(method.text, 100)
        for entry in said:
            lines += textwrap.wrap(entry, 100, initial_indent="- ", subsequent_indent="  ")
        if said:
            lines.insert(len(textwrap.wrap(method.text, 100)), "")
            bodies += '        """' + "\n        ".join(lines).replace("\n        \n", "\n\n") + '\n        """\n'
        else:
            bodies += '        """' + "\n        ".join(lines) + '"""\n'
        bodies += "        params: Dict[str, Any] = {" + ("\n" if build else "")
        bodies += "".join(f"            {line}\n" for line in build) + ("        }\n" if build else "}\n")
        bodies += (
            f'        return {maybe_await}self._call("{method.name}", params, types.{result}, '
            "op_id=op_id, timeout=timeout, min_lsn=min_lsn)\n"
        )
    kind = "Async" if asynchronous else "Sync"
    return (
        f'"""The {what} client\'s methods. Written by tools/generate.py from PROTOCOL.md: do not edit."""\n\n'
        "from __future__ import annotations\n\n"
        "from typing import Any, Dict, Mapping, Optional, Sequence, Type, TypeVar, Union\n\n"
        "from . import _types as types\n"
        "from ._wire import selector\n\n"
        'T = TypeVar("T")\n\n\n'
        f"class {kind}Api:\n"
        f'    """Every method of the protocol. Each takes `op_id` (names a change: sent again, it is made once; drawn when\n'
        f"    missing), `timeout` in seconds (the client's usual one when missing) and `min_lsn` (the answer must have seen\n"
        f'    this change), and raises `MnemeError`."""\n\n'
        f"    {maybe_async}def _call(\n"
        "        self,\n        method: str,\n        params: Mapping[str, Any],\n        result: Type[T],\n        *,\n"
        "        op_id: Optional[str],\n        timeout: Optional[float],\n        min_lsn: Optional[int],\n"
        "    ) -> T:\n        raise NotImplementedError\n" + bodies
    )


def outputs(page: Optional[str] = None) -> Dict[Path, str]:
    """Every generated file with its text."""
    methods, kinds = parse(PROTOCOL.read_text(encoding="utf-8") if page is None else page)
    text, results = write_types(methods, kinds)
    return {
        PACKAGE / "_types.py": text,
        PACKAGE / "_sync_api.py": write_api(methods, results, asynchronous=False),
        PACKAGE / "_async_api.py": write_api(methods, results, asynchronous=True),
    }


if __name__ == "__main__":
    for path, content in outputs().items():
        path.write_text(content, encoding="utf-8")
