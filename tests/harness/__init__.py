"""Support for the tests: real servers, proxies, processes, checkers."""
