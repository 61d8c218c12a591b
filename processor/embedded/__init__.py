"""Real local servers for the demo, the tests and the benchmarks: no docker, no root, no set-up.

`RedisServer`, `PostgresServer` and `Standby` each run in a temporary directory of their own and
leave neither process nor directory behind, also when the program that started them is killed with
-9.
Linux only: processes are found through /proc.

Inside, from the ground: `guardian` (ends what a dead parent left) and `binaries` (where the
programs are); `server` (one process, its directory); `redis_server`, `postgres_server`; `standby`.
"""

from processor.embedded.postgres_server import PostgresServer
from processor.embedded.redis_server import RedisServer
from processor.embedded.standby import Standby

__all__ = ["PostgresServer", "RedisServer", "Standby"]
