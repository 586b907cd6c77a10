from .waterbirds import Waterbirds


__all__ = ["Waterbirds"]
