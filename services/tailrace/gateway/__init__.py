"""The HTTP gateway: any number of them serve the same streams."""

from tailrace.gateway.app import App, create_app

__all__ = ["App", "create_app"]
