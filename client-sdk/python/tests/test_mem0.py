"""The stand-in for mem0, held to that library's documented behaviour."""

from __future__ import annotations

from typing import Iterator

import pytest

import mneme
from conftest import Daemon
from mneme.compat.mem0 import Memory


@pytest.fixture()
def memory(shared_daemon: Daemon) -> Iterator[Memory]:
    kept = Memory.from_config({"vector_store": {"provider": "any"}}, client=mneme.Client(shared_daemon.socket))
    yield kept
    kept.reset()
    kept.close()


def test_add_gives_an_entry_for_each_message_and_passes_over_the_system_prompt(memory: Memory) -> None:
    added = memory.add(
        [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "I love science fiction"},
            {"role": "assistant", "content": "I will suggest some"},
        ],
        user_id="alice",
        metadata={"category": "movies", "stars": 5},
    )["results"]
    assert [(entry["memory"], entry["event"]) for entry in added] == [
        ("I love science fiction", "ADD"),
        ("I will suggest some", "ADD"),
    ]
    kept = memory.get(added[0]["id"])
    assert kept is not None
    assert kept["memory"] == "I love science fiction"
    assert kept["metadata"] == {"category": "movies", "stars": 5}
    assert (kept["user_id"], kept["role"]) == ("alice", "user")
    assert {"id", "hash", "created_at", "updated_at"} <= kept.keys()


def test_a_plain_string_is_a_memory_too_and_the_same_again_is_none(memory: Memory) -> None:
    first = memory.add("Likes tea", user_id="alice")["results"][0]
    again = memory.add("Likes tea", user_id="alice")["results"][0]
    assert (first["event"], again["event"]) == ("ADD", "NONE")
    assert first["id"] == again["id"]


def test_a_scope_is_required(memory: Memory) -> None:
    for call in (lambda: memory.add("x"), lambda: memory.search("x"), memory.get_all, memory.delete_all):
        with pytest.raises(ValueError):
            call()


def test_search_stays_in_its_scope_and_has_scores(memory: Memory) -> None:
    memory.add("Allergic to nuts", user_id="alice")
    memory.add("Allergic to nuts", user_id="bob/../alice", agent_id="a b")
    found = memory.search("nuts", user_id="alice")["results"]
    assert [entry["user_id"] for entry in found] == ["alice"]
    assert found[0]["score"] > 0
    assert [entry["user_id"] for entry in memory.search("nuts", agent_id="a b")["results"]] == ["bob/../alice"]
    assert memory.search("nuts", user_id="carol")["results"] == []
    assert memory.search("nuts", user_id="alice", threshold=1e9)["results"] == []


def test_a_narrower_scope_is_found_from_a_wider_one(memory: Memory) -> None:
    memory.add("Prefers trains", user_id="alice", run_id="trip")
    assert len(memory.search("trains", user_id="alice")["results"]) == 1
    assert len(memory.get_all(user_id="alice", run_id="trip")["results"]) == 1
    assert memory.get_all(user_id="alice", run_id="other")["results"] == []


def test_filters_name_scopes_and_metadata(memory: Memory) -> None:
    memory.add("Likes red wine", user_id="alice", metadata={"topic": "wine", "year": 1})
    memory.add("Likes red paint", user_id="alice", metadata={"topic": "paint"})
    found = memory.search("red", filters={"user_id": "alice", "topic": "wine", "year": 1})["results"]
    assert [entry["memory"] for entry in found] == ["Likes red wine"]
    assert len(memory.get_all(filters={"user_id": "alice", "topic": "paint"})["results"]) == 1
    with pytest.raises(ValueError):
        memory.search("red", user_id="alice", filters={"year": {"gte": 1}})


def test_limits_are_kept(memory: Memory) -> None:
    memory.add([{"role": "user", "content": f"tea number {number}"} for number in range(5)], user_id="alice")
    assert len(memory.search("tea", user_id="alice", limit=2)["results"]) == 2
    assert len(memory.get_all(user_id="alice", limit=3)["results"]) == 3


def test_an_update_keeps_the_id_and_tells_its_history(memory: Memory) -> None:
    identifier = memory.add("Lives in Rome", user_id="alice", metadata={"k": "v"})["results"][0]["id"]
    assert memory.update(identifier, "Lives in Oslo") == {"message": "Memory updated successfully!"}
    memory.update(memory_id=identifier, data="Lives in Kyiv")
    kept = memory.get(identifier)
    assert kept is not None
    assert (kept["id"], kept["memory"], kept["metadata"]) == (identifier, "Lives in Kyiv", {"k": "v"})
    assert kept["updated_at"] is not None
    assert [entry["memory"] for entry in memory.get_all(user_id="alice")["results"]] == ["Lives in Kyiv"]
    assert [entry["id"] for entry in memory.search("where lives", user_id="alice")["results"]] == [identifier]
    told = [(entry["event"], entry["old_memory"], entry["new_memory"]) for entry in memory.history(identifier)]
    assert told == [
        ("ADD", None, "Lives in Rome"),
        ("UPDATE", "Lives in Rome", "Lives in Oslo"),
        ("UPDATE", "Lives in Oslo", "Lives in Kyiv"),
    ]


def test_delete_forgets_the_memory_and_what_it_replaced(memory: Memory) -> None:
    identifier = memory.add("Secret", user_id="alice")["results"][0]["id"]
    memory.update(identifier, "Still secret")
    assert memory.delete(identifier) == {"message": "Memory deleted successfully!"}
    assert memory.get(identifier) is None
    assert memory.history(identifier) == []
    assert memory.get_all(user_id="alice")["results"] == []
    with pytest.raises(ValueError):
        memory.delete(identifier)


def test_delete_all_empties_one_scope_only(memory: Memory) -> None:
    memory.add("one", user_id="alice")
    memory.add("two", user_id="bob")
    memory.delete_all(user_id="alice")
    assert memory.get_all(user_id="alice")["results"] == []
    assert len(memory.get_all(user_id="bob")["results"]) == 1


def test_long_names_of_users_are_told_apart(memory: Memory) -> None:
    memory.add("first", user_id="ü" * 200)
    memory.add("second", user_id="ü" * 201)
    assert [entry["memory"] for entry in memory.get_all(user_id="ü" * 200)["results"]] == ["first"]


def test_an_update_of_the_metadata_alone_is_made(memory: Memory) -> None:
    identifier = memory.add("Likes tea", user_id="alice", metadata={"stars": 1})["results"][0]["id"]
    memory.update(identifier, "Likes tea", metadata={"stars": 2, "cup": "blue"})
    kept = memory.get(identifier)
    assert kept is not None
    assert (kept["id"], kept["memory"], kept["metadata"]) == (identifier, "Likes tea", {"stars": 2, "cup": "blue"})
    assert len(memory.history(identifier)) == 2


def test_an_update_to_the_words_of_another_memory_leaves_that_one_alone(memory: Memory) -> None:
    first = memory.add("Lives in Rome", user_id="alice", metadata={"n": 1})["results"][0]["id"]
    second = memory.add("Lives in Oslo", user_id="alice", metadata={"n": 2})["results"][0]["id"]
    memory.update(first, "Lives in Oslo")
    for identifier, number in ((first, 1), (second, 2)):
        kept = memory.get(identifier)
        assert kept is not None
        assert (kept["id"], kept["memory"], kept["metadata"]) == (identifier, "Lives in Oslo", {"n": number})
    memory.delete(first)
    assert memory.get(first) is None
    assert [entry["id"] for entry in memory.get_all(user_id="alice")["results"]] == [second]


def test_a_search_reaches_more_scopes_than_one_recall_takes(memory: Memory) -> None:
    for number in range(65):
        memory.add(f"prefers train number {number}", user_id="alice", run_id=f"trip {number:02}")
    found = memory.search("train", user_id="alice", limit=100)["results"]
    assert {entry["run_id"] for entry in found} == {f"trip {number:02}" for number in range(65)}
    scores = [entry["score"] for entry in found]
    assert scores == sorted(scores, reverse=True)
    assert len(memory.search("train", user_id="alice", limit=3)["results"]) == 3
    for number in (0, 64):
        assert memory.search(f"prefers train number {number}", user_id="alice", limit=5)["results"]


def test_metadata_that_cannot_be_read_any_more_is_text(memory: Memory) -> None:
    kept = memory.add("Likes tea", user_id="alice", metadata={"broken": "x", "whole": 1})["results"][0]["id"]
    memory.update(kept, "Likes tea", metadata={})
    scope = memory._client.get(kept)
    namespace = scope.namespace
    notes = {**scope.metadata, "broken": 'json:{"key": "[gone', "mem0.id": "other"}
    memory._client.remember("Likes coffee", namespace=namespace, metadata=notes)
    told = {entry["memory"]: entry["metadata"] for entry in memory.get_all(user_id="alice")["results"]}
    assert told["Likes coffee"] == {"broken": '{"key": "[gone', "whole": 1}
    assert told["Likes tea"] == {"broken": "x", "whole": 1}
