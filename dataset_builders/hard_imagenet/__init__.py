from .hard_imagenet import HardImageNet


__all__ = ["HardImageNet"]
