"""The suite's plug-ins, one for each thing outside: servers, network, processes."""

pytest_plugins = (
    "tests.fix_servers",
    "tests.fix_proxy",
    "tests.fix_process",
    "tests.fix_tls",
    "tests.fix_site",
    "tests.fix_replicas",
    "tests.fix_failover",
    "tests.fix_pooler",
    "tests.fix_service",
    "tests.fix_cli",
)
