"""One file a benchmark; each has `run(options)`, which gives a `Result`."""
