"""The processor in gunicorn: `gunicorn -c gunicorn.conf.py module:application`.

Each worker process runs one thread. The first worker to start owns the lanes and drains them; the
others stand by and take over when it ends. Every worker can submit. --preload makes no difference.
"""

import processor


def post_worker_init(worker):
    # Not earlier: only now is the application loaded and has it called processor.configure().
    processor.start()


def worker_exit(server, worker):
    # Finishes the current batch, within stop_timeout, which is below graceful_timeout.
    processor.stop()
