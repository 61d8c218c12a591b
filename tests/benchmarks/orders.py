"""The order workload: insert one order with a uuid key, add to one of 1,000 accounts."""

from __future__ import annotations

import random
from collections.abc import Iterator

import processor

ACCOUNTS = 1000

TABLES = """
    CREATE TABLE orders (
        id uuid PRIMARY KEY, account int NOT NULL, amount int NOT NULL CHECK (amount > 0));
    CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL DEFAULT 0);
"""
EMPTY = f"""
    TRUNCATE orders, account;
    INSERT INTO account (id) SELECT * FROM generate_series(1, {ACCOUNTS});
"""

Order = tuple[str, int, int]


def orders(count: int, *, poison: float = 0.0, seed: int = 1) -> Iterator[Order]:
    """Return (id, account, amount) of orders; a share of `poison` violates the CHECK."""
    chance = random.Random(seed)
    for _ in range(count):
        bad = poison and chance.random() < poison
        yield processor.new_id(), chance.randint(1, ACCOUNTS), 0 if bad else chance.randint(1, 99)


def transaction(order: Order) -> processor.Transaction:
    """Return an order as a producer submits it."""
    id, account, amount = order
    return (
        processor.Transaction()
        .insert("orders", {"id": id, "account": account, "amount": amount})
        .update("account", add={"balance": amount}, where={"id": account})
    )
