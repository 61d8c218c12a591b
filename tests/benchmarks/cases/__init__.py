"""One file for each benchmark, with `run(options)`, which returns a `Result`."""
