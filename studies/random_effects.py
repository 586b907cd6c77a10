"""Means over seeds and images, both drawn from many: their standard errors, t intervals and tests; Holm's correction.

A figure of several seeds, each evaluated on the same images, varies with the seeds, with the images, and with what a
seed makes of an image. Resampling a handful of seeds misses most of the first; the analysis of variance does not.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from megl.evaluation.bootstrap import LEVEL, ROUNDING


@dataclass(frozen=True)
class Estimate:
    """A mean, its standard error, the degrees of freedom of that, and how many seeds it is of."""

    mean: float
    error: float
    freedom: float
    seeds: int

    def interval(self):
        """`[low, high]`, at 95 %."""
        half = self.error * student.ppf((1 + LEVEL) / 2, self.freedom)
        return [float(self.mean - half), float(self.mean + half)]

    def p(self, against=0.0):
        """Two-sided p of the mean's being `against`."""
        if self.error <= ROUNDING:
            return 1.0
        return float(2 * student.sf(abs(self.mean - against) / self.error, self.freedom))


def contrast(first, second, factors=(1, -1)):
    """A sum of two arrays of influences, each with its factor: NaN where an image counts in neither."""
    total = factors[0] * np.nan_to_num(first) + factors[1] * np.nan_to_num(second)
    return np.where(np.isnan(first) & np.isnan(second), np.nan, total)


def estimate(figures, influences):
    """
    The mean of a figure, or of a difference of two, over seeds and images.

    Seeds and images are two crossed random factors without replication, as readers and cases are in studies of
    diagnostic tests: the variance of the mean is (MS_seeds + max(MS_images - MS_rest, 0)) / (seeds * images), and its
    degrees of freedom are Satterthwaite's (Dorfman, Berbaum and Metz 1992; Hillis 2007). For these alone MS_seeds
    counts (f + 4) / f times, f being its own degrees of freedom: with few seeds it is often far too small by chance,
    and Satterthwaite's figure then far too large. Of equal methods with three seeds his own calls up to 8 % different
    rather than 5 %, and this one 4 to 6 % (tests/test_random_effects.py); with two seeds it is up to 13 and 8 %.

    Args:
        figures (`np.ndarray` of shape `(seeds,)`): The figure of each seed.
        influences (`np.ndarray` of shape `(seeds, images)`): As `bootstrap.influences` gives them, NaN where an image
            does not count.

    Returns:
        [`Estimate`], of one seed with the variance over images alone; `None` where less than two images count, and
        where nothing varies but all is not 0, which says nothing about other seeds and images.
    """
    shares = np.nan_to_num(influences[:, ~np.isnan(influences).all(axis=0)])
    seeds, images = shares.shape
    if images < 2:
        return None
    mean = figures.mean()
    values = figures[:, None] + images * shares - mean
    of_seeds, of_images = values.mean(axis=1), values.mean(axis=0)
    images_square = seeds * np.sum(of_images**2) / (images - 1)
    if seeds == 1:
        error = float(np.sqrt(images_square / images))
        return Estimate(float(mean), error, images - 1, 1) if error > ROUNDING else _constant(mean, images - 1, 1)
    freedom = seeds - 1
    rest_freedom = freedom * (images - 1)
    seeds_square = images * np.sum(of_seeds**2) / freedom
    rest_square = np.sum((values - of_seeds[:, None] - of_images) ** 2) / rest_freedom
    from_images = max(images_square - rest_square, 0)
    error = np.sqrt((seeds_square + from_images) / (seeds * images))
    if error <= ROUNDING:
        return _constant(mean, freedom, seeds)
    corrected = seeds_square * (freedom + 4) / freedom
    parts = corrected**2 / freedom + images_square**2 / (images - 1) + rest_square**2 / rest_freedom
    return Estimate(float(mean), float(error), float((corrected + from_images) ** 2 / parts), seeds)


def _constant(mean, freedom, seeds):
    """Of runs that are alike in everything: no difference, and nothing that speaks for one. `None` of all else."""
    return Estimate(0.0, 0.0, freedom, seeds) if abs(mean) <= ROUNDING else None


def holm(p_values):
    """The p values as adjusted by Holm (1979), which keeps the chance of any false alarm among them at the level."""
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = least
    return adjusted
