from .imagenet_s import ImageNetS


__all__ = ["ImageNetS"]
