from .pets import Pets


__all__ = ["Pets"]
