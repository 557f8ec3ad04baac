"""Both clients against a real daemon."""

from __future__ import annotations

import asyncio
import threading
from typing import List

import pytest

import mneme
from conftest import Daemon


def test_what_was_remembered_is_recalled_with_its_origin(client: mneme.Client, namespace: str) -> None:
    done = client.remember("Ada drinks tea at four", namespace=namespace, metadata={"topic": "tea"}, speaker="Ada")
    found = client.recall("when does Ada drink tea", namespaces=[namespace], explain=True, min_lsn=done.lsn)
    hit = found.hits[0]
    assert hit.memory.id == done.id
    assert hit.memory.metadata == {"topic": "tea"}
    assert (hit.memory.origin.client, hit.memory.origin.trust) == ("pytest", "reported")
    assert hit.signals[0].name
    assert client.get(done.id) == hit.memory


def test_a_change_sent_again_under_its_op_id_is_made_once(client: mneme.Client, namespace: str) -> None:
    name = mneme.new_op_id()
    first = client.remember("once", namespace=namespace, op_id=name)
    again = client.remember("once", namespace=namespace, op_id=name)
    assert not first.replayed and again.replayed
    assert again.id == first.id
    assert client.get(first.id).evidence == 0


def test_forgetting_gives_a_receipt_and_the_memory_is_gone(client: mneme.Client, namespace: str) -> None:
    first = client.remember("first", namespace=namespace).id
    second = client.remember("second", namespace=namespace, source="letters").id
    assert client.forget(first).ids == [first]
    assert client.forget({"source": "letters"}).ids == [second]
    with pytest.raises(mneme.errors.NotFound):
        client.get(first)


def test_a_superseded_memory_stays_readable_and_names_its_successor(client: mneme.Client, namespace: str) -> None:
    old = client.remember("tea is at four", namespace=namespace).id
    new = client.supersede(old, {"text": "tea is at five", "namespace": namespace}).id
    assert client.get(old).superseded_by == new
    assert client.get(new).supersedes == old
    assert {memory.id for memory in client.export(namespace, page=1)} == {old, new}


def test_import_says_what_it_refused(client: mneme.Client, namespace: str) -> None:
    done = client.import_memories([{"text": "good", "namespace": namespace}, {"text": "", "namespace": namespace}])
    assert done.imported == 1
    assert [place for place, _ in done.refused] == [1]


def test_a_stream_ends_with_the_result_that_the_call_gives(client: mneme.Client) -> None:
    prompt = "Tea is at {{hole:4}} today"
    *events, result = client.generate_stream(prompt, seed=3)
    assert isinstance(result, mneme.GenerateResult)
    assert all(isinstance(event, mneme.TaskEvent) for event in events)
    assert "canvas" in {event.event["type"] for event in events if isinstance(event, mneme.TaskEvent)}
    assert result.text == client.generate(prompt, seed=3).text
    assert client.feedback(result.task, "accept").task == result.task


def test_leaving_a_stream_early_leaves_the_client_usable(client: mneme.Client) -> None:
    for _ in client.generate_stream("Tea is at {{hole:64}} today"):
        break
    assert client.ping().boot


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda client: client.recall(""), mneme.errors.InvalidParams),
        (lambda client: client.get("no id"), mneme.errors.InvalidParams),
        (lambda client: client.feedback("01a20c67-fdb9-7001-b43f-248525e23be8", "accept"), mneme.errors.NotFound),
        (lambda client: client.remember("x" * 70_000), mneme.errors.InvalidParams),
    ],
)
def test_refusals_have_the_class_of_their_kind(client: mneme.Client, call: object, error: type) -> None:
    with pytest.raises(error) as raised:
        call(client)  # type: ignore[operator]
    assert raised.value.message


def test_a_request_that_is_too_long_says_so(client: mneme.Client) -> None:
    with pytest.raises(mneme.errors.FrameTooLarge):
        client.remember("x" * (5 << 20))
    assert client.ping().boot


def test_threads_share_a_client(client: mneme.Client, namespace: str) -> None:
    failures: List[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                client.remember(f"thread {number} turn {turn}", namespace=namespace)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert dict(client.namespaces().namespaces)[namespace] == 40


def test_a_daemon_that_is_not_there_is_named_with_what_to_do() -> None:
    with pytest.raises(mneme.errors.NotRunning) as raised:
        mneme.Client("/nonexistent/mneme.sock").ping()
    assert "/nonexistent/mneme.sock" in raised.value.message
    assert raised.value.hint and "mnemed" in raised.value.hint

    async def attempt() -> None:
        await mneme.AsyncClient("/nonexistent/mneme.sock").ping()

    with pytest.raises(mneme.errors.NotRunning):
        asyncio.run(attempt())


def test_a_killed_daemon_is_an_error_and_the_next_call_after_its_restart_works(own_daemon: Daemon) -> None:
    with mneme.Client(own_daemon.socket) as client:
        remembered = client.remember("survives").id
        own_daemon.kill()
        with pytest.raises(mneme.errors.ConnectionFailed):
            client.recall("survives", timeout=0.3)
        own_daemon.start()
        assert client.get(remembered).text == "survives"


def test_async_calls_run_side_by_side_over_one_connection(shared_daemon: Daemon, namespace: str) -> None:
    async def scenario() -> None:
        async with mneme.AsyncClient(shared_daemon.socket) as client:
            before = (await client.status()).connections
            done = await asyncio.gather(
                *(client.remember(f"note number {number}", namespace=namespace) for number in range(100))
            )
            assert len({result.id for result in done}) == 100
            assert (await client.status()).connections == before
            assert len([memory async for memory in client.export(namespace, page=30)]) == 100
            with pytest.raises(mneme.errors.InvalidParams):
                await client.recall("")
            events = [event async for event in client.generate_stream("Tea is at {{hole:4}}", seed=1)]
            assert isinstance(events[-1], mneme.GenerateResult)
            assert any(isinstance(event, mneme.TaskEvent) for event in events)
            assert events[-1].text == (await client.generate("Tea is at {{hole:4}}", seed=1)).text

    asyncio.run(scenario())


def test_a_cancelled_async_call_leaves_the_connection_usable(shared_daemon: Daemon) -> None:
    async def scenario() -> None:
        async with mneme.AsyncClient(shared_daemon.socket) as client:
            await client.ping()
            call = asyncio.ensure_future(client.generate("{{hole:512}}"))
            await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert (await client.ping()).boot

    asyncio.run(scenario())
