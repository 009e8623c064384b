"""The worker: runs handlers and writes what they say into streams."""

from tailrace.worker.answer import Controller, StateController
from tailrace.worker.app import Worker
from tailrace.worker.handlers import Handler, InvalidHandler, RunContext, by_name, handler, load
from tailrace.worker.run import Pace

__all__ = [
    "Controller",
    "Handler",
    "InvalidHandler",
    "Pace",
    "RunContext",
    "StateController",
    "Worker",
    "by_name",
    "handler",
    "load",
]
