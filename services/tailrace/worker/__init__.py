"""The worker: runs handlers and writes what they yield into streams."""

from tailrace.worker.app import Worker
from tailrace.worker.handlers import Handler, InvalidHandler, RunContext, by_name, handler, load
from tailrace.worker.run import Pace

__all__ = ["Handler", "InvalidHandler", "Pace", "RunContext", "Worker", "by_name", "handler", "load"]
