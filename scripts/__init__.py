"""The commands, installed as `megl.scripts`: `python scripts/train_megl.py` and `megl train` are one program."""
