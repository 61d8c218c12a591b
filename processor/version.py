"""The version of this release; `setup.cfg` and `CHANGELOG.rst` state the same one."""

__version__ = "0.2.0"
