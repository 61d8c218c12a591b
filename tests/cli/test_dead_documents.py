"""Dead letters with what a later envelope says: they are shown, edited and retried with it."""

from __future__ import annotations

import json
from pathlib import Path

from processor.transaction.builder import Transaction
from processor.transaction.values import Json
from tests.harness.cli import Cli
from tests.harness.site import Site
from tests.harness.wait import wait_until


def test_a_payload_is_shown_with_its_order_and_an_edit_may_add_what_is_new(
    site: Site, cli: Cli, tmp_path: Path
) -> None:
    site.execute("create table doc (n int primary key, doc json)")
    cli.use(site.mapping)
    site.start()
    first = Transaction(attempts=1).insert("doc", {"n": "x", "doc": {"b": 1, "a": 2}})
    second = Transaction(attempts=1).insert("doc", {"n": "x", "doc": Json({"b": 1, "a": 2})})
    site.submit(first, second)
    wait_until(lambda: len(site.dead()) == 2, message=site.tale)
    assert dict(site.execute("select id::text, version from processor.dead_letter")) == {
        first.id: 1, second.id: 2,
    }  # fmt: skip

    payloads = []
    for one in (first, second):
        (shown,) = cli("dead", "show", one.id, "--values", "--json").records
        assert "cache" not in shown["payload"]
        payloads.append(shown["payload"])
    assert [*payloads[0]["operations"][0]["values"]["doc"]] == ["b", "a"]
    assert payloads[1]["operations"][0]["json"] == {"values": ["doc"]}

    payloads[0]["operations"][0] |= {"values": {"n": 1, "doc": "null"}, "json": {"values": ["doc"]}}
    payloads[1]["operations"][0]["values"]["n"] = 2
    for one, payload in zip((first, second), payloads, strict=True):
        file = tmp_path / "edited.json"
        file.write_text(json.dumps(payload))
        assert cli("dead", "edit", one.id, "--file", str(file), "--wait", "10s").code == 0
    # Release 0.1 must not take the edited payload for one that it can read.
    assert site.execute("select distinct version from processor.dead_letter") == [(2,)]
    assert site.execute("select n, doc::text from doc order by n") == [
        (1, "null"), (2, '{"b":1,"a":2}'),
    ]  # fmt: skip
