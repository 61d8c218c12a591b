"""`processor dead`: shown without values, decided by the owner of the lane."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from processor.runtime import drain_thread
from processor.transaction.builder import Transaction
from tests.harness.cli import UNKNOWN, Cli, Role, line, on_terminal, poison
from tests.harness.process import ROOT
from tests.harness.site import Site, merged, write
from tests.harness.wait import wait_until


def test_dead_letters_are_listed_by_lane_sqlstate_and_time(at_site: Cli, dead_site: Site) -> None:
    (first,) = poison(dead_site)
    (second,) = poison(dead_site, queue="high")

    def listed(*filters: str) -> list[str]:
        return [row["id"] for row in at_site.json("dead", "list", *filters)]

    state = dead_site.dead()[0][1]
    assert listed() == sorted([first, second])
    assert listed("--lane", "high:0") == [second]
    assert listed("--sqlstate", state) == listed("--sqlstate", state[:2]) == listed()
    assert listed("--sqlstate", "40") == []
    assert listed("--since", "1h") == listed()
    assert listed("--since", "2100-01-01T00:00:00Z") == []
    said = at_site("dead", "list", "--limit", "1")
    assert len(said.lines) == 2
    assert said.error == "1 of 2 dead letters: see --limit"


def test_a_dead_letter_is_shown_with_its_values_only_on_request(
    at_site: Cli, dead_site: Site
) -> None:
    (dead,) = poison(dead_site, key="order-1")
    for form in ([], ["--json"]):
        hidden = at_site("dead", "show", dead, *form)
        assert "canary" not in hidden.out + hidden.err + at_site("dead", "list", *form).out
        assert "order-1" in hidden.out
        assert "text of 13" in hidden.out
        assert "canary" in at_site("dead", "show", dead, "--values", *form).out


@pytest.mark.parametrize("columns", [150, 80, 50])
def test_nothing_is_cut_off_on_a_narrow_terminal(
    at_site: Cli, dead_site: Site, columns: int
) -> None:
    dead = poison(dead_site, 2)
    wait_until(lambda: dead_site.redis.keys("processor:state:*"))
    environ = {"PROCESSOR_CONFIG": at_site.head[1], "COLUMNS": str(columns), "TERM": "dumb"}
    listed, status = (
        on_terminal(*command, stderr=subprocess.DEVNULL, **environ)
        for command in (["dead", "list"], ["status"])
    )
    assert max(map(len, (listed + status).splitlines())) <= columns
    # An id is in one piece, so that it can be copied.
    assert all(each in listed for each in dead)
    assert re.search(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d", status)
    assert "reason" in listed
    assert "reason" in status
    assert dead_site.dead()[0][2] in " ".join(listed.split())


def test_a_retry_is_carried_out_by_the_owner(at_site: Cli, dead_site: Site) -> None:
    # It fails because of a missing table, which the operator then creates.
    lost = Transaction().insert("later", {"n": 1})
    dead_site.submit(lost)
    wait_until(dead_site.dead)
    said = at_site("dead", "retry", lost.id, "--wait", "20s")
    assert said.code == 1
    assert said.out.startswith(f"{lost.id}  failed again: ")
    dead_site.execute("create table later (n int)")
    said = at_site("dead", "retry", lost.id, "--wait", "20s", "--json")
    assert said.code == 0
    assert said.records == [{"id": lost.id, "lane": "default:0", "outcome": "applied"}]
    assert dead_site.one("select n from later") == 1
    again = at_site("dead", "retry", lost.id)
    assert again.code == 1
    assert again.error == f"{lost.id} is already applied"


def test_a_discard_releases_the_transactions_behind_the_dead_letter(
    at_site: Cli, dead_site: Site
) -> None:
    (dead,) = poison(dead_site, key="order-1")
    dead_site.submit(write(1, key="order-1"))
    wait_until(lambda: dead_site.parked() == 1)
    unconfirmed = at_site("dead", "discard", dead)
    assert unconfirmed.code == 2
    assert "--yes" in unconfirmed.error
    assert dead_site.parked() == 1
    said = at_site("dead", "discard", dead, "--yes", "--wait", "20")
    assert (said.code, said.out) == (0, f"{dead}  discarded\n")
    dead_site.commits(1)


def test_an_edit_replaces_the_payload_and_must_keep_the_id(
    at_site: Cli, dead_site: Site, tmp_path: Path
) -> None:
    (dead,) = poison(dead_site)
    edited = tmp_path / "edited.json"
    edited.write_text(json.dumps({"id": UNKNOWN, "operations": json.loads(line(5))["operations"]}))
    said = at_site("dead", "edit", dead, "--file", str(edited))
    assert (said.code, said.error) == (
        1, f"id: differs from that of the dead letter: write {dead}"
    )
    edited.write_text(edited.read_text().replace(UNKNOWN, dead))
    said = at_site("dead", "edit", dead, "--file", str(edited), "--wait", "20s")
    assert said.code == 0, said
    assert dead_site.tape() == [5]
    assert at_site("explain", dead, "--json").records[0]["place"] == "applied"


def test_the_payload_opens_in_an_editor_and_the_result_is_applied(
    at_site: Cli, dead_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (dead,) = poison(dead_site)
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nexec sed -i s/secret-canary/12/ \"$1\"\n")
    editor.chmod(0o755)
    environ = {"PROCESSOR_CONFIG": at_site.head[1], "VISUAL": str(editor)}
    here, there = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "processor", "dead", "edit", dead, "--wait", "20s"],
        cwd=ROOT, stdin=there, capture_output=True, env=os.environ | environ, timeout=60,
    )
    os.close(here)
    os.close(there)
    assert done.returncode == 0, done
    assert dead_site.one("select balance from account where id = 7") == 12


def test_a_request_by_filter_is_counted_and_confirmed(
    at_site: Cli, dead_site: Site
) -> None:
    ids = poison(dead_site, 3) + poison(dead_site, 1, queue="high")
    said = at_site("dead", "retry", "--lane", "default:0", "--dry-run")
    assert said.lines == [f"{each}  would retry" for each in sorted(ids[:3])]
    said = at_site("dead", "discard", "--all")
    assert said.code == 2
    assert said.error.startswith("discard 4 dead letters: not a terminal, confirm with --yes")
    assert len(dead_site.dead()) == 4
    assert at_site("dead", "discard", "--lane", "default:0", "--yes").code == 0
    wait_until(lambda: [each[0] for each in dead_site.dead()] == ids[3:])
    said = at_site("dead", "discard", "--lane", "default:0", "--yes")
    assert (said.code, said.error) == (
        1, "no dead letter matches: see `processor dead list`"
    )
    assert len(at_site.json("dead", "list", "--all")) == 4


def test_a_request_waits_for_the_next_processor(at_site: Cli, dead_site: Site) -> None:
    (dead,) = poison(dead_site)
    assert drain_thread.stop()
    said = at_site("dead", "discard", dead, "--yes", "--wait", "1")
    assert said.code == 1
    assert said.out == f"{dead}  discard requested, not carried out yet\n"
    (row,) = at_site.json("dead", "list")
    assert row["request"] == "discard"
    assert "@" in row["requested_by"]
    dead_site.start()
    wait_until(lambda: not dead_site.dead())


VERBS = (["list"], ["show", UNKNOWN], ["retry", UNKNOWN], ["discard", "--all", "--yes"],
         ["edit", UNKNOWN, "--file", "/dev/null"])  # fmt: skip


def test_before_init_db_each_command_suggests_it(cli: Cli, site: Site) -> None:
    site.execute("drop schema processor cascade")
    cli.use(site.mapping)
    for each in (["verify"], *(["dead", *verb] for verb in VERBS)):
        said = cli(*each)
        assert said.code == 69, each
        assert re.fullmatch("there is no schema processor at [^ ]+: run `processor init-db` .*",
                            said.error), each


def test_a_role_without_privileges_gets_the_grants_it_needs(
    cli: Cli, site: Site, lowly: Role
) -> None:
    cli.use(merged(site.mapping, {"database": {"dsn": lowly.dsn}}))
    for grant in ("", f"grant usage on schema processor to {lowly.name}",
                   f"grant select on processor.meta to {lowly.name}"):  # fmt: skip
        site.execute(grant or "select 1")
        for each in (["verify"], *(["dead", *verb] for verb in VERBS)):
            said = cli(*each)
            assert said.code == 69, each
            assert re.match("the role lacks privileges on schema processor at [^ ]+: "
                            "SQLSTATE 42501: grant ", said.error), each
            assert "`processor print schema`" in said.error, each


def test_an_unknown_dead_letter_is_an_error_with_a_remedy(
    at_site: Cli, dead_site: Site
) -> None:
    for verb in (["show"], ["retry"], ["discard", "--yes"], ["edit", "--file", "/dev/null"]):
        said = at_site("dead", *verb, UNKNOWN)
        assert said.code == 1
        assert said.error == f"{UNKNOWN} is not a dead letter: see `processor explain {UNKNOWN}`"
