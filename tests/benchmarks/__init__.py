"""Benchmarks, each beside what the servers themselves achieve in the same minute.

`python -m tests.benchmarks drain|latency|link|poison|memory|submit|recovery|import` prints one line
of JSON with `figure`, `unit`, `limit` and `ratio`; `all` runs all and prints a table. Figure and
limit are measured in turns, so that a machine that slows down slows both.

From the ground: `result` (what is printed), `options`, `cpu`, `commits`, `sentences`; `orders` (the
work); `stage` (servers and tables); `replay` (the limit of a drain), `engine` (a processor in this
process), `program` and `child` (one in another); `cases`, a file for each benchmark; `__main__`.
"""
