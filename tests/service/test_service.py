"""The service: its messages to systemd, its signals, and failures that do not stop the work."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis as redis_driver

import processor
from processor.config.loader import configure
from tests.harness.proxy import Proxy
from tests.harness.service import HOLD, Service, Systemd
from tests.harness.wait import wait_until

Start = Callable[..., Service]

# A statement that takes as long as its transaction asks, and then has an effect.
SLOW = {"slow": "insert into effect select %(n)s from pg_sleep(%(seconds)s)"}


@pytest.fixture
def submit(redis_url: str) -> Callable[[dict[str, Any]], Any]:
    """Submit operations from this process, which does not drain."""
    configure({"redis": {"url": redis_url}})

    def submit(operation: dict[str, Any]) -> Any:
        return processor.submit({"operations": [operation]})

    return submit


Submit = Callable[[dict[str, Any]], Any]


def insert(n: int) -> dict[str, Any]:
    return {"op": "insert", "table": "effect", "values": {"n": n}}


def slow(n: int, seconds: float) -> dict[str, Any]:
    return {"op": "statement", "name": "slow", "params": {"n": n, "seconds": seconds}}


def in_progress(service: Service) -> bool:
    """Whether PostgreSQL is executing a slow statement for the service."""
    return service.database.sleeps()


# READY and STATUS.


def test_systemd_is_notified_once_of_readiness_and_gets_the_status(
    service: Start, submit: Submit
) -> None:
    running = service().started()
    submit(insert(1))

    wait_until(lambda: running.systemd.status == "running: 1 committed, 0 waiting, 0 dead",
               message=lambda: f"{running.systemd.status}\n{running.process.output}")
    assert running.process.terminate() == 0
    assert running.systemd.notifications == ["READY", "STOPPING"]


@pytest.mark.parametrize("unreachable", ["postgresql", "redis"])
def test_the_service_is_ready_even_if_a_server_is_unreachable(
    unreachable: str, service: Start, free_address: str
) -> None:
    changes = {
        "postgresql": {"database": {"dsn": f"postgresql://{free_address}/app"}},
        "redis": {"redis": {"url": f"redis://{free_address}/0"}},
    }[unreachable]
    running = service(**changes).started()

    assert running.systemd.status.startswith("outage")
    assert running.process.terminate() == 0
    assert running.systemd.notifications == ["READY", "STOPPING"]


def test_without_systemd_nothing_is_sent(service: Start, submit: Submit) -> None:
    running = service(environ={"NOTIFY_SOCKET": ""})
    submit(insert(1))

    wait_until(lambda: running.effects() == [1], ignore=Exception)
    assert running.process.terminate() == 0
    assert running.systemd.messages == []


# The watchdog (rule 31).

# Every call must be shorter than the watchdog.
BRISK = {"call_timeout": 1.4, "statement_timeout": 1.2, "lock_timeout": 0.5, "connect_timeout": 1.0}


def test_the_watchdog_is_fed_with_progress_and_not_while_the_thread_hangs(
    service: Start, systemd: Systemd, tmp_path: Path
) -> None:
    hang = tmp_path / "hang"
    systemd.watchdog(1.6)
    running = service(HOLD.format(path=str(hang)), database=BRISK).started()
    begun = time.monotonic()
    wait_until(lambda: len(systemd.times("WATCHDOG")) > 5)
    assert systemd.longest_silence(begun, time.monotonic()) < 0.8

    hang.touch()
    wait_until(lambda: systemd.silence() > 1.7, message="the watchdog is not fed any more")

    assert running.process.running
    hang.unlink()
    wait_until(lambda: systemd.silence() < 0.4, message="the watchdog is fed after the hang")


def longest_silence_during_a_call_of(
    seconds: float, watchdog: float, service: Start, systemd: Systemd, submit: Submit
) -> float:
    """The longest time without feeding while one permitted call takes `seconds`."""
    systemd.watchdog(watchdog)
    limits = {"call_timeout": watchdog * 0.96, "statement_timeout": watchdog * 0.92,
              "lock_timeout": 0.5, "connect_timeout": 1.0}  # fmt: skip
    running = service(database=limits, statements=SLOW, stop_timeout=60.0).started()
    wait_until(lambda: systemd.times("WATCHDOG"))
    begun = time.monotonic()
    submit(slow(1, seconds))
    wait_until(lambda: running.effects() == [1], seconds + 10)
    ended = time.monotonic()
    assert ended - begun >= seconds
    return systemd.longest_silence(begun, ended)


def test_the_watchdog_is_fed_while_one_permitted_call_takes_long(
    service: Start, systemd: Systemd, submit: Submit
) -> None:
    assert longest_silence_during_a_call_of(2.0, 2.4, service, systemd, submit) < 1.0


@pytest.mark.soak
def test_the_watchdog_is_fed_while_one_permitted_call_takes_20_seconds(
    service: Start, systemd: Systemd, submit: Submit
) -> None:
    assert longest_silence_during_a_call_of(20.0, 24.0, service, systemd, submit) < 2.0


def test_a_frozen_postgresql_is_an_outage_and_not_a_hang(
    service: Start, systemd: Systemd, submit: Submit, own_postgres: Callable[..., Any]
) -> None:
    postgres = own_postgres()
    systemd.watchdog(1.6)
    running = service(database={**BRISK, "dsn": postgres.dsn}).started()
    wait_until(lambda: systemd.status.startswith("running"))
    begun = time.monotonic()
    postgres.freeze()

    wait_until(lambda: systemd.status.startswith("outage"))
    wait_until(lambda: time.monotonic() - begun > 3.5)
    assert systemd.longest_silence(begun, time.monotonic()) < 1.6
    postgres.thaw()
    wait_until(lambda: systemd.status.startswith("running"))
    assert running.process.running


def test_a_watchdog_shorter_than_a_permitted_call_is_refused_at_the_start(
    service: Start, systemd: Systemd
) -> None:
    systemd.watchdog(30)
    refused = service(database={"call_timeout": 30.0})

    assert refused.process.wait() == 78
    assert "database.call_timeout = 30 s must be below WatchdogSec = 30 s" in refused.process.output
    assert systemd.notifications == []


def test_the_watchdog_of_another_process_is_not_fed(service: Start, systemd: Systemd) -> None:
    systemd.watchdog(1)
    running = service(environ={"WATCHDOG_PID": "1"}).started()

    wait_until(lambda: running.systemd.status.startswith("running"))
    assert running.process.terminate() == 0
    assert systemd.times("WATCHDOG") == []


# Stopping.


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_service_at_once_with_exit_code_0(
    signum: signal.Signals, service: Start
) -> None:
    running = service(interval=50.0).started()
    begun = time.monotonic()

    running.process.send(signum)

    assert running.process.wait() == 0
    assert time.monotonic() - begun < 2.0
    assert running.systemd.notifications == ["READY", "STOPPING"]


def test_sigterm_finishes_and_settles_the_current_batch(
    service: Start, submit: Submit, redis: redis_driver.Redis
) -> None:
    running = service(statements=SLOW).started()
    submit(slow(1, 3.0))
    wait_until(lambda: in_progress(running))

    running.process.send(signal.SIGTERM)

    assert running.process.wait() == 0
    assert running.effects() == [1]
    assert redis.xlen("processor:{default:0}:stream") == 0


def test_a_second_sigterm_cuts_the_call_and_the_next_start_does_the_work_once(
    service: Start, submit: Submit, redis: redis_driver.Redis
) -> None:
    running = service(statements=SLOW).started()
    receipt = submit(slow(1, 15.0))
    wait_until(lambda: in_progress(running))
    begun = time.monotonic()
    running.process.send(signal.SIGTERM)
    running.process.expect("stopping")
    assert running.process.running

    running.process.send(signal.SIGTERM)

    assert running.process.wait() == 1
    assert time.monotonic() - begun < 5.0
    assert running.effects() == []
    assert redis.xlen("processor:{default:0}:stream") == 1

    quick = {"slow": "insert into effect select %(n)s where %(seconds)s > 0"}
    again = service(statements=quick)
    wait_until(lambda: again.effects() == [1])
    assert again.process.terminate() == 0
    ledger = again.database.execute("select id::text, outcome from processor.ledger")
    assert ledger == [(receipt.id, "applied")]


def test_sigterm_ends_the_service_with_exit_code_0_while_the_network_drops_all_packets(
    service: Start, postgres_server: Any, database: Any, proxy_to: Callable[..., Proxy]
) -> None:
    proxy = proxy_to(postgres_server)
    running = service(database={**BRISK, "dsn": proxy.dsn_of(database.name)}).started()
    proxy.hold()
    wait_until(lambda: running.systemd.status.startswith("outage"))
    begun = time.monotonic()

    assert running.process.terminate() == 0
    assert time.monotonic() - begun < BRISK["call_timeout"] + 1.5


def test_two_sigterms_at_once_end_the_service(service: Start) -> None:
    running = service().started()

    running.process.send(signal.SIGTERM)
    running.process.send(signal.SIGTERM)

    assert running.process.wait() in (0, 1)


def test_a_thread_that_hangs_does_not_delay_the_end_beyond_stop_timeout(
    service: Start, tmp_path: Path
) -> None:
    hang = tmp_path / "hang"
    limits = {"statement_timeout": 0.3, "lock_timeout": 0.1}
    running = service(HOLD.format(path=str(hang)), database=limits, stop_timeout=0.5).started()
    hang.touch()
    running.process.expect("the drain thread is held")

    assert running.process.terminate() == 1
    assert "not finished within stop_timeout" in running.process.output


def test_a_closed_terminal_stops_nothing(
    service: Start, submit: Submit, spawn: Any, systemd: Systemd
) -> None:
    running = service("os.close(0); os.close(1); os.close(2)").started()
    running.process.send(signal.SIGPIPE)

    submit(insert(1))

    wait_until(lambda: running.effects() == [1])
    assert running.process.terminate() == 0


# Reloading.


def test_sighup_applies_new_settings_and_logs_which_need_a_restart(
    service: Start, submit: Submit, systemd: Systemd
) -> None:
    running = service(log={"format": "text"}).started()
    running.change(statements=SLOW, namespace="other", redis={"timeout": 1.5},
                   log={"format": "json"})  # fmt: skip

    running.reload()
    submit(slow(7, 0.0))

    wait_until(lambda: running.effects() == [7])
    assert systemd.notifications == ["READY", "RELOADING", "READY"]
    assert re.fullmatch(r"\d+", next(m["MONOTONIC_USEC"] for _, m in systemd.messages
                                     if "RELOADING" in m))  # fmt: skip
    kept = '"message": "these need a restart to take effect: namespace, redis.timeout"'
    assert kept in running.process.output


@pytest.mark.parametrize(("text", "message"), [
    ("interval: [", "reload refused"),
    ("intervall: 3.0", "unknown setting (did you mean interval?)"),
    ("statements: {wrong: 'select 1; drop table effect'}", "reload refused"),
    ("", "database.call_timeout = 30 s must be below WatchdogSec = 25 s"),
    (None, "reload refused"),
])  # fmt: skip
def test_sighup_with_wrong_settings_keeps_the_old_ones_and_logs_why(
    text: str | None, message: str, service: Start, submit: Submit, systemd: Systemd
) -> None:
    systemd.watchdog(25)
    running = service(database={"call_timeout": 22.0}, stop_timeout=25.0).started()
    if text is None:
        running.path.unlink()
    else:
        running.path.write_text(text)

    running.reload()
    submit(insert(1))

    wait_until(lambda: running.effects() == [1])
    running.process.expect(message)
    assert any("reload refused" in m.get("STATUS", "") for _, m in systemd.messages)
    assert running.process.terminate() == 0


# Failures inside.


def test_a_thread_that_died_is_restarted_and_continues(
    service: Start, submit: Submit, tmp_path: Path
) -> None:
    die = tmp_path / "die"
    running = service(f"""
def die():
    if os.path.exists({str(die)!r}):
        os.unlink({str(die)!r})
        raise SystemExit

drain_thread.hooks.before_pass.append(die)
""").started()
    die.touch()
    running.process.expect("the drain thread died: restarting it (1 of 3)")

    submit(insert(1))

    wait_until(lambda: running.effects() == [1])
    assert running.systemd.notifications == ["READY"]


def test_a_thread_that_dies_several_times_in_a_row_ends_the_service_with_exit_code_1(
    service: Start
) -> None:
    running = service("""
def die():
    raise SystemExit

drain_thread.hooks.before_pass.append(die)
""")

    assert running.process.wait() == 1
    assert "giving up" in running.process.output


def test_a_taken_port_delays_no_work_and_is_served_once_it_is_free(
    service: Start, submit: Submit, taken_port: Any
) -> None:
    bind = f"127.0.0.1:{taken_port.getsockname()[1]}"
    running = service("foreground._PORT_RETRY = 0.3", health={"bind": bind}).started()
    submit(insert(1))
    wait_until(lambda: running.effects() == [1])
    line = running.process.expect("cannot listen on")
    assert f"cannot listen on {bind}: Address already in use (change health.bind)" in line

    taken_port.close()

    assert running.health()["status"] == "running"


def test_a_standby_with_a_long_interval_is_no_outage_and_takes_over_soon(
    service: Start
) -> None:
    patient = {"interval": 50.0, "database": {"takeover": 2.0}}
    owner = service(environ={"NOTIFY_SOCKET": ""}, **patient)
    owner.process.expect("started: running")
    standby = service(**patient).started()
    begun = time.monotonic()
    wait_until(lambda: time.monotonic() - begun > 3.0)
    assert standby.systemd.status.startswith("standby")
    assert "outage" not in standby.process.output

    owner.process.kill()

    wait_until(lambda: standby.systemd.status.startswith("running"), 4.0)


# Pages, log and status.


def test_pages_log_and_status_show_no_password_and_no_value(
    service: Start, submit: Submit, database: Any, redis_url: str, free_address: str
) -> None:
    database.execute("alter table effect add check (n <> 4111)")
    running = service(health={"bind": free_address},
                      database={"dsn": f"{database.dsn}?password=canary-word"},
                      log={"level": "debug"}, retry={"attempts": 1}).started()  # fmt: skip
    submit(insert(4111))
    submit(insert(5))
    wait_until(lambda: running.effects() == [5])
    wait_until(lambda: running.health()["dead"] == 1)

    texts = [running.page(page)[1] for page in ("/health", "/health/live", "/metrics")]
    texts += [running.process.output, str(running.systemd.messages)]

    assert not [text for text in texts if "canary-word" in text or "4111" in text]
    assert "processor_committed_total 1.0" in texts[2]


def test_a_thousand_slow_clients_of_the_pages_delay_no_work(
    service: Start, submit: Submit, free_address: str
) -> None:
    running = service(health={"bind": free_address}).started()
    host, _, port = free_address.partition(":")
    assert running.page("/health")[0] == 200
    slow_ones = []
    try:
        for _ in range(1000):
            client = socket.socket()
            slow_ones.append(client)
            client.setblocking(False)
            client.connect_ex((host, int(port)))
        for client in slow_ones:
            with contextlib.suppress(OSError):
                client.send(b"GET /health HTTP/1.1\r\nX: ")
        begun = time.monotonic()
        for n in range(100):
            submit(insert(n))
        wait_until(lambda: running.effects() == list(range(100)))
        assert time.monotonic() - begun < 3.0
    finally:
        for client in slow_ones:
            client.close()
    assert running.page("/health")[0] == 200


def test_an_outage_is_shown_on_the_pages_until_the_server_is_back(
    service: Start, postgres_server: Any, database: Any, proxy_to: Callable[..., Proxy],
    free_address: str,
) -> None:
    proxy = proxy_to(postgres_server)
    running = service(
        health={"bind": free_address}, database={"dsn": proxy.dsn_of(database.name)}
    ).started()
    assert running.page("/health/ready")[0] == 200

    proxy.off()
    wait_until(lambda: running.health()["status"] == "outage")
    assert [running.page(page)[0] for page in ("/health", "/health/live", "/health/ready")] == [
        200, 200, 503,
    ]  # fmt: skip
    proxy.on()

    wait_until(lambda: running.page("/health/ready")[0] == 200)


def test_a_stuck_thread_is_unhealthy_on_the_pages(
    service: Start, tmp_path: Path, free_address: str
) -> None:
    hang = tmp_path / "hang"
    running = service(
        HOLD.format(path=str(hang)), health={"bind": free_address}, database={"call_timeout": 1.5,
        "statement_timeout": 1.0, "lock_timeout": 0.5, "connect_timeout": 1.0},
        watchdog={"limit": 2.0},
    ).started()  # fmt: skip
    hang.touch()

    wait_until(lambda: running.page("/health")[0] == 503)
    assert running.health()["status"] == "stuck"
    hang.unlink()
    wait_until(lambda: running.page("/health")[0] == 200)
