"""`processor submit`: which lines are accepted or refused, and where to resume."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.harness.cli import Cli, Program, line, lines, on_terminal
from tests.harness.site import Site, merged
from tests.harness.wait import wait_until


def test_a_file_is_submitted_in_order_and_its_ids_are_printed(
    at_site: Cli, site: Site, tmp_path: Path
) -> None:
    path = tmp_path / "transactions.jsonl"
    path.write_text("\ufeff" + lines(1, 2) + "\n \r\n" + line(3), encoding="utf-8")
    site.start()
    said = at_site("submit", str(path))
    assert (said.code, said.err) == (0, "")
    site.commits(1, 2, 3)
    ledger = site.execute("select id::text from processor.ledger order by split_part(entry, '-', 1)"
                          "::bigint, split_part(entry, '-', 2)::bigint")
    assert said.lines == [row[0] for row in ledger]


def test_the_json_of_a_receipt_has_line_lane_and_entry(at_site: Cli, site: Site) -> None:
    first, second = at_site("submit", "--json", stdin=lines(1) + lines(2, delay=60)).records
    assert (first["line"], first["lane"]) == (1, "default:0")
    assert site.redis.xrange(site.lane().stream)[0][0].decode() == first["entry"]
    assert first["buffer"] == site.redis.get("processor:buffer").decode()
    assert (second["line"], second["entry"]) == (2, "")


def test_the_lines_of_an_open_pipe_are_submitted_at_once(program: Program, site: Site) -> None:
    environ = os.environ | {"PROCESSOR_REDIS_URL": site.mapping["redis"]["url"]}
    process = program("submit", env=environ)
    assert process.stdin is not None
    assert process.stdout is not None
    for n in (1, 2):
        process.stdin.write(lines(n).encode())
        process.stdin.flush()
        assert process.stdout.readline().strip()
        assert site.depth() == n
    process.stdin.close()
    assert process.wait(20) == 0


def test_an_invalid_line_is_named_and_all_lines_before_it_are_accepted(
    at_site: Cli, site: Site
) -> None:
    bad = '{"operations": [{"op": "insert", "table": "", "values": {"n": 3}}]}\n'
    said = at_site("submit", stdin=lines(1, 2) + bad + lines(4))
    assert said.code == 1
    first, last = said.err.splitlines()
    assert first.startswith("processor: line 3: operations[0].table: ")
    assert last == "processor: 2 accepted; resume with --from 3"
    assert len(said.lines) == site.depth() == 2
    again = at_site("submit", "--from", "4", stdin=lines(1, 2) + bad + lines(4))
    assert again.code == 0
    assert site.depth() == 3


def test_a_line_that_the_producer_refuses_is_named(at_site: Cli, site: Site) -> None:
    said = at_site("submit", stdin=lines(1) + lines(2, queue="hihg") + lines(3))
    assert said.code == 1
    assert said.err.startswith("processor: line 2: queue: 'hihg' is not configured: one of ")
    assert len(said.lines) == site.depth() == 1


def test_keep_going_skips_invalid_lines_and_counts_them(at_site: Cli, site: Site) -> None:
    content = lines(1) + "{\n" + lines(2) + lines(3, queue="none") + "[]\n" + lines(4)
    said = at_site("submit", "--keep-going", stdin=content)
    assert said.code == 1
    *bad, last = said.err.splitlines()
    assert [each.split(": ")[1] for each in bad] == ["line 2", "line 4", "line 5"]
    assert last == "processor: 3 accepted, 3 refused"
    assert len(said.lines) == site.depth() == 3


def test_a_full_buffer_names_the_line_and_wait_waits_for_room(cli: Cli, site_of: Any) -> None:
    site = site_of(buffer={"limit": 400})
    cli.use(site.mapping)
    said = cli("submit", stdin=lines(*range(1, 701)))
    assert said.code == 69
    first, last = said.err.splitlines()
    assert first.startswith("processor: line 501: lane default:0 holds 500 entries")
    assert last == "processor: 500 accepted; resume with --from 501"
    site.start()
    assert cli("submit", "--wait", "--from", "501", stdin=lines(*range(1, 1501))).code == 0
    wait_until(lambda: site.tape() == list(range(1, 1501)), message=lambda: site.tale())


def test_an_unavailable_redis_names_the_line(cli: Cli) -> None:
    said = cli.use({"redis": {"url": "redis://127.0.0.1:1/0"}})("submit", stdin=lines(1))
    assert said.code == 69
    expected = "processor: line 1: Redis at 127.0.0.1:1 is unavailable"
    assert said.err.splitlines()[0].startswith(expected)


def test_a_file_without_line_ends_is_refused_before_it_fills_the_memory(
    cli: Cli, site: Site
) -> None:
    cli.use(merged(site.mapping, {"buffer": {"transaction_bytes": 1024}}))
    said = cli("submit", stdin=lines(1) + "x" * 600_000)
    assert said.code == 2
    assert "line 2 is longer than" in said.error
    assert "one transaction per line" in said.error


def test_a_large_file_has_a_progress_bar_on_a_terminal_and_none_in_a_pipe(
    site: Site, tmp_path: Path, program: Program
) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text(lines(*range(3000)))
    environ = {"PROCESSOR_REDIS_URL": site.mapping["redis"]["url"], "TERM": "xterm"}
    with open(tmp_path / "ids", "wb") as ids:
        bar = on_terminal("submit", str(path), stdout=ids.fileno(), **environ)
    assert "━" in bar
    assert len((tmp_path / "ids").read_text().splitlines()) == 3000
    process = program("submit", str(path), env=os.environ | environ)
    out, err = process.communicate(timeout=20)
    assert err == b""
    assert len(out.splitlines()) == 3000
