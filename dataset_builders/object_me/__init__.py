from .object_me import ObjectMe


__all__ = ["ObjectMe"]
