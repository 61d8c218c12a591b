"""Dead letters of another buffer: shown as such, left unchanged, and adopted if it is gone.

A buffer is gone when Redis was rebuilt empty or lost its identity: no processor carries out
requests for its dead letters any more (rule 1). The buffer of a second site looks the same from
here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from processor.drain.drain import Drain
from processor.ledger import dead_letters
from processor.runtime import drain_thread
from processor.transaction.builder import Transaction
from processor.transaction.ids import new_id
from tests.harness.cli import Cli, line, poison
from tests.harness.site import Site, step, write
from tests.harness.wait import wait_until


def identity(site: Site) -> str:
    found = site.redis.get("processor:buffer")
    assert isinstance(found, bytes)
    return found.decode()


def flushed(site: Site) -> None:
    """Redis is rebuilt empty."""
    site.redis.flushall()


def nameless(site: Site) -> None:
    """Only the identity is lost; all waiting entries remain."""
    site.redis.delete("processor:buffer")


def replaced(site: Site, lose: Callable[[Site], None]) -> str:
    """Lose the buffer and wait for its successor; returns the identity that is gone."""
    gone = identity(site)
    lose(site)
    drain_thread.singleton.event.set()
    loss = f"from {gone} to "
    wait_until(lambda: loss in str(drain_thread.state()["background_processor"]["loss"]))
    wait_until(lambda: drain_thread.state()["lanes"]["default:0"]["owner"])
    return gone


def retriable(site: Site, **options: Any) -> Transaction:
    """A transaction that is dead because of a missing table, which exists now."""
    dead = Transaction(attempts=1, **options).insert("later", {"n": 1})
    site.submit(dead)
    wait_until(site.dead, message=site.tale)
    site.execute("create table later (n int)")
    return dead


def agree(cli: Cli) -> None:
    """Redis and PostgreSQL agree, once the decided transactions are settled."""
    wait_until(lambda: cli("verify").code == 0, message=lambda: cli("verify").out)


def pass_until(condition: Callable[[], Any], *drains: Drain) -> None:
    """Run passes of these drains until the condition holds; only some passes look for requests."""
    def passed() -> Any:
        for drain in drains:
            step(drain)
        return condition()

    wait_until(passed)


# Shown as belonging to another buffer.


def test_the_list_names_the_buffer_of_dead_letters_of_other_buffers(
    at_site: Cli, dead_site: Site
) -> None:
    (old,) = poison(dead_site)
    assert "BUFFER" not in at_site("dead", "list").lines[0]
    gone = replaced(dead_site, flushed)
    (new,) = poison(dead_site)
    listed = {row["id"]: (row["buffer"], row["of_this_buffer"])
            for row in at_site.json("dead", "list")}  # fmt: skip
    assert listed == {old: (gone, False), new: (identity(dead_site), True)}
    head, first, second = at_site("dead", "list").lines
    assert "BUFFER" in head
    assert gone in first
    assert "this one" in second


def test_a_dead_letter_is_shown_with_whether_it_belongs_to_this_buffer(
    at_site: Cli, dead_site: Site
) -> None:
    (old,) = poison(dead_site)
    assert at_site.json("dead", "show", old)[0]["of_this_buffer"] is True
    gone = replaced(dead_site, flushed)
    (shown,) = at_site.json("dead", "show", old)
    assert (shown["buffer"], shown["of_this_buffer"]) == (gone, False)
    rows = [row.split() for row in at_site("dead", "show", old).lines]
    assert ["of_this_buffer", "no"] in rows
    assert at_site.json("explain", old)[0]["release"].endswith(
        f", with the settings of the buffer to which it belongs, {gone}"
    )


def test_a_processor_logs_the_dead_letters_of_other_buffers_once(
    dead_site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    poison(dead_site, 2)

    def messages() -> list[str]:
        return [text for each in caplog.records if "other buffers" in (text := each.getMessage())]

    assert messages() == []
    gone = replaced(dead_site, flushed)
    wait_until(messages)
    assert drain_thread.stop()
    dead_site.start()
    wait_until(lambda: len(messages()) == 2)
    dead_site.submit(write(1))
    dead_site.commits(1)
    expected = ("open dead letters of other buffers, which this processor does not decide:"
                f" 2 of {gone}: see `processor dead list`")  # fmt: skip
    assert messages() == [expected] * 2


# Left unchanged.


@pytest.mark.parametrize(
    "verb", [("retry",), ("discard", "--yes"), ("edit", "--file", "/dev/null")]
)
def test_a_request_for_another_buffer_is_refused_with_a_remedy(
    at_site: Cli, dead_site: Site, verb: tuple[str, ...]
) -> None:
    (dead,) = poison(dead_site)
    gone = replaced(dead_site, flushed)
    said = at_site("dead", *verb, dead)
    assert said.code == 1
    assert said.error.startswith(f"{dead} belongs to buffer {gone} (site main, last seen 2")
    here = identity(dead_site)
    assert f"no processor of this buffer, {here}, would carry out the request" in said.error
    assert said.error.endswith(
        "use the settings of that site, or, if that buffer no longer exists,"
        f" adopt the dead letter with --adopt {gone}"
    )
    assert at_site.json("dead", "list")[0]["request"] is None


def test_a_filter_selects_dead_letters_of_this_buffer_only(
    cli: Cli, site_of: Callable[..., Site], own_redis: Callable[..., Any]
) -> None:
    here, there = site_of(), site_of(own_redis())
    drains = [each.drain() for each in (here, there)]
    bad = [Transaction().insert("account", {"id": 7, "balance": "x"}) for _ in range(2)]
    for each, drain, dying in zip((here, there), drains, bad, strict=True):
        each.submit(dying)
        step(drain)
    said = cli.use(here.mapping)("dead", "discard", "--all", "--yes")
    assert (said.code, said.lines) == (0, [f"{bad[0].id}  discard requested"])
    assert said.error == "1 dead letter of other buffers left unchanged: see `processor dead list`"
    pass_until(lambda: [row[0] for row in here.dead()] == [bad[1].id], *drains)
    said = cli("dead", "discard", "--all", "--yes")
    assert said.code == 1
    assert said.error.startswith("no dead letter matches (1 dead letter of other buffers")

    assert cli.use(there.mapping)("dead", "discard", bad[1].id, "--yes").code == 0
    pass_until(lambda: here.dead() == [], *drains)


def test_a_buffer_that_a_processor_drains_cannot_be_adopted(
    cli: Cli, site_of: Callable[..., Site], own_redis: Callable[..., Any]
) -> None:
    """The transactions behind its dead letter wait in its own Redis and would never be released."""
    here, there = site_of(), site_of(own_redis())
    drains = [each.drain() for each in (here, there)]
    bad = Transaction(key="k").insert("account", {"id": 7, "balance": "x"})
    there.submit(bad, write(1, key="k"))
    for drain in drains:
        step(drain)
    cli.use(here.mapping)
    command = ["dead", "discard", bad.id, "--yes", "--adopt", identity(there)]
    said = cli(*command)
    assert (said.code, said.error) == (
        1, f"buffer {identity(there)} still exists: a processor is draining it:"
        " use the settings of its site",
    )
    assert here.one("select request from processor.dead_letter") is None
    drains[1].leave()
    assert cli(*command).code == 0
    pass_until(lambda: not here.dead(), drains[0])


def test_without_redis_dead_letters_are_shown_but_not_decided(
    cli: Cli, site_of: Callable[..., Site], own_redis: Callable[..., Any]
) -> None:
    server = own_redis()
    site = site_of(server)
    drain = site.drain()
    bad = Transaction().insert("account", {"id": 7, "balance": "x"})
    site.submit(bad)
    step(drain)
    server.kill()
    cli.use(site.mapping)
    said = cli("dead", "list", "--json")
    assert (said.code, said.records[0]["of_this_buffer"]) == (0, None)
    assert said.error.endswith("cannot tell which dead letters belong to this buffer")
    assert cli("dead", "show", bad.id).code == 0
    for ask in (["retry", bad.id], ["retry", "--all"], ["discard", bad.id, "--yes"]):
        said = cli("dead", *ask)
        assert said.code == 69
        assert "nothing was requested" in said.error
    assert site.one("select request from processor.dead_letter") is None


def test_a_redis_without_a_buffer_adopts_nothing(at_site: Cli, dead_site: Site) -> None:
    (dead,) = poison(dead_site)
    gone = identity(dead_site)
    assert drain_thread.stop()
    dead_site.redis.flushall()
    for more in ([], ["--adopt", gone]):
        said = at_site("dead", "retry", dead, *more)
        assert said.code == 1
        assert said.error.startswith("Redis holds no buffer, so no processor would carry out")
    assert dead_site.redis.keys("*") == []


def test_a_value_that_is_not_a_buffer_id_is_refused(at_site: Cli, dead_site: Site) -> None:
    said = at_site("dead", "retry", new_id(), "--adopt", "this one")
    assert said.code == 2
    assert "'this one' is not a buffer id" in said.error


# Adopted.


@pytest.mark.parametrize("lose", [flushed, nameless])
def test_an_adopted_dead_letter_is_applied_once_by_the_owner_of_this_buffer(
    at_site: Cli, dead_site: Site, lose: Callable[[Site], None]
) -> None:
    dead = retriable(dead_site, key="order-1")
    gone = replaced(dead_site, lose)
    said = at_site("dead", "retry", dead.id, "--adopt", gone, "--wait", "20s")
    assert (said.code, said.out) == (0, f"{dead.id}  applied\n")
    assert dead_site.one("select count(*) from later") == 1
    assert dead_site.execute("select outcome, buffer::text from processor.ledger") == [
        ("applied", identity(dead_site))
    ]
    agree(at_site)
    again = at_site("dead", "retry", dead.id, "--adopt", gone)
    assert again.error == f"{dead.id} is already applied"


@pytest.mark.parametrize("verb", ["retry", "discard"])
def test_the_transactions_behind_an_adopted_dead_letter_are_released(
    at_site: Cli, dead_site: Site, verb: str
) -> None:
    dead = retriable(dead_site, key="order-1")
    dead_site.submit(write(1, key="order-1"), write(2, key="order-1"))
    dead_site.parks(2)
    gone = replaced(dead_site, nameless)
    dead_site.submit(write(3, key="order-1"), write(4))
    dead_site.commits(4)
    more = ["--yes"] if verb == "discard" else []
    assert at_site("dead", verb, dead.id, "--adopt", gone, "--wait", "20s", *more).code == 0
    dead_site.commits(4, 1, 2, 3)
    dead_site.empties()
    agree(at_site)


def test_an_edited_payload_is_applied_in_place_of_the_adopted_one(
    at_site: Cli, dead_site: Site, tmp_path: Path
) -> None:
    (dead,) = poison(dead_site)
    gone = replaced(dead_site, flushed)
    edited = tmp_path / "edited.json"
    edited.write_text(json.dumps({"id": dead, "operations": json.loads(line(5))["operations"]}))
    said = at_site("dead", "edit", dead, "--file", str(edited), "--adopt", gone, "--wait", "20s")
    assert said.code == 0, said
    assert dead_site.tape() == [5]
    agree(at_site)


def test_an_adopted_dead_letter_that_fails_again_holds_its_key_in_this_buffer(
    at_site: Cli, dead_site: Site
) -> None:
    (dead,) = poison(dead_site, key="order-1")
    gone = replaced(dead_site, flushed)
    dead_site.submit(write(1, key="order-1"))
    dead_site.commits(1)
    said = at_site("dead", "retry", dead, "--adopt", gone, "--wait", "20s")
    assert said.code == 1
    assert "failed again" in said.out
    agree(at_site)
    dead_site.submit(write(2, key="order-1"))
    dead_site.parks(1)
    assert at_site("dead", "discard", dead, "--yes", "--wait", "20s").code == 0
    dead_site.commits(1, 2)
    agree(at_site)


def test_a_filter_adopts_the_dead_letters_of_one_buffer_only(
    at_site: Cli, dead_site: Site
) -> None:
    first = poison(dead_site, 2)
    gone = replaced(dead_site, flushed)
    second = poison(dead_site, 1)
    replaced(dead_site, flushed)
    third = poison(dead_site, 1)
    said = at_site("dead", "discard", "--all", "--adopt", gone, "--yes", "--wait", "20s")
    assert said.lines == [f"{each}  discarded" for each in sorted(first)]
    assert [row[0] for row in dead_site.dead()] == second + third
    agree(at_site)


def test_the_lane_of_an_adopted_dead_letter_is_drained_even_if_it_is_new_here(
    at_site: Cli, dead_site: Site
) -> None:
    (dead,) = poison(dead_site)
    gone = replaced(dead_site, flushed)
    dead_site.execute("update processor.dead_letter set lane = 'former:0'")
    dead_site.execute("update processor.ledger set lane = 'former:0'")
    said = at_site("dead", "discard", dead, "--adopt", gone, "--yes", "--wait", "20s")
    assert (said.code, said.out) == (0, f"{dead}  discarded\n")
    assert dead_site.redis.sismember("processor:lanes", "former:0")
    agree(at_site)


def test_the_former_owner_does_not_decide_an_adopted_dead_letter(
    cli: Cli, site_of: Callable[..., Site], own_redis: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has already read a request when its dead letter is adopted.

    It uses another namespace, so the adopting side cannot see that it is alive.
    """
    here, there = site_of(namespace="other"), site_of(own_redis())
    drains = [each.drain() for each in (here, there)]
    for drain in drains:
        step(drain)
    bad = write(1, "x", attempts=1)
    there.execute("alter table tape add constraint narrow check (scope is null)")
    there.submit(bad)
    step(drains[1])
    there.execute("alter table tape drop constraint narrow")
    there.ask(bad.id, "retry")
    requests, codes = dead_letters.open_requests, []
    cli.use(here.mapping)

    def read_too_early(*arguments: Any) -> list[dead_letters.DeadLetter]:
        found = requests(*arguments)
        if found:
            said = cli("dead", "discard", bad.id, "--adopt", identity(there), "--yes")
            codes.append(said.code)
        return found

    monkeypatch.setattr(dead_letters, "open_requests", read_too_early)
    pass_until(lambda: codes, drains[1])
    monkeypatch.undo()
    assert codes == [0]
    assert here.tape() == []
    assert here.execute("select outcome, request from processor.dead_letter") == [
        ("dead", "discard")
    ]
    pass_until(lambda: not here.dead(), *drains)
    assert here.one("select outcome from processor.ledger") == "discarded"
    assert here.one("select outcome from processor.dead_letter") == "discarded"
    assert here.tape() == []
