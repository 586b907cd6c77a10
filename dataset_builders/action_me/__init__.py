from .action_me import ActionMe


__all__ = ["ActionMe"]
