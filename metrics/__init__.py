"""The modules of `evaluate`, installed as `megl.metrics`: `evaluate.load(metric_path("saliency"))`."""
