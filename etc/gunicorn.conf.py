"""The processor in gunicorn: `gunicorn -c gunicorn.conf.py module:application`.

Each worker process runs one thread; the first to come owns the lanes and drains, the others stand
by and take over when it ends. Every worker can submit. It is the same with and without --preload.
"""

import processor


def post_worker_init(worker):
    # Only here is the application loaded, and with it whatever it gave to processor.configure().
    processor.start()


def worker_exit(server, worker):
    # Finishes the batch in hand; bounded by stop_timeout, which is below graceful_timeout.
    processor.stop()
