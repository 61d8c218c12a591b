"""`python -m tests.benchmarks NAME`: run one benchmark, print its line of JSON."""

from __future__ import annotations

import argparse
from importlib import import_module

from tests.benchmarks.options import Options
from tests.benchmarks.result import Result

# The module of each benchmark; "import" is a keyword.
MODULES = {
    "drain": "drain",
    "latency": "latency",
    "link": "link",
    "poison": "poison",
    "memory": "memory",
    "submit": "submit",
    "recovery": "recovery",
    "import": "importing",
    "receipt": "receipt",
    "read": "read",
    "replica": "replica",
}


def main() -> None:
    arguments = _parser().parse_args()
    options = Options(arguments.n, arguments.rounds, arguments.batch, arguments.profile)
    names = list(MODULES) if arguments.name == "all" else [arguments.name]
    results = {name: _run(name, options) for name in names}
    if arguments.name == "all":
        _table(results)


def _run(name: str, options: Options) -> Result:
    result: Result = import_module(f"tests.benchmarks.cases.{MODULES[name]}").run(options)
    print(result.line(), flush=True)
    return result


def _table(results: dict[str, Result]) -> None:
    print(f"\n{'benchmark':<10} {'figure':>12} {'limit':>12} {'ratio':>8}  unit")
    for name, each in results.items():
        print(f"{name:<10} {each.figure:>12,.4g} {each.limit:>12,.4g} {each.ratio:>8.3f}"
              f"  {each.unit}")  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("name", choices=[*MODULES, "all"])
    parser.add_argument("-n", type=int, help="transactions (or samples) a round")
    parser.add_argument("--rounds", type=int, help="how often figure and limit take turns")
    parser.add_argument("--batch", type=int, help="batch.entries, where the default is not wanted")
    parser.add_argument("--profile", action="store_true",
                        help="print what the drain thread did to stderr")  # fmt: skip
    return parser


if __name__ == "__main__":
    main()
