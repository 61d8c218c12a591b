"""The drain thread of the process, and the threads beside it.

doorbell         wakes the drain thread when another process adds an entry
overlay_sweep    finds what was never accepted, which the overlay cleaner removes
overlay_cleaner  removes pending writes from the overlay once every server has them
observer         observes both servers for pages, metrics and `processor.state()`
side_threads     the threads beside the drain thread
uwsgi_master     uWSGI: its master runs no thread, each worker starts its own
run              one life of the drain thread: its loop, its passes, the hooks around them
drain_thread     the one drain thread of the process: start, stop, reload, state
"""
