"""The commands of `tailrace`, one module an idea. `tailrace.cli` names them."""
