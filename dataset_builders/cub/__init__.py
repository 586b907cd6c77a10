from .cub import Cub


__all__ = ["Cub"]
