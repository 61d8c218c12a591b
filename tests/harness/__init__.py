"""What the tests stand on: real servers, proxies, processes, checkers."""
