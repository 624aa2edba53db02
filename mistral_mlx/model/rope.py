"""Rotary positions (arXiv 2104.09864), plain and stretched by YaRN (arXiv 2309.00071)."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from mistral_mlx.config import ModelConfig, Yarn


class RotaryEmbedding:
    """Turns each pair of dimensions (i, i + head_dim/2) by an angle that grows with the absolute position.

    Attributes:
        magnitude: what YaRN multiplies the cosines and sines by. Both queries and keys carry it, so attention folds
            its square into the softmax scale and nothing is multiplied here.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.head_dim = config.head_dim
        self.theta = config.rope_theta
        self.magnitude = config.yarn.attention_factor if config.yarn else 1.0
        self.periods = mx.array(yarn_periods(config.yarn, self.theta, self.head_dim)) if config.yarn else None

    def __call__(self, x: mx.array, offset: int | mx.array) -> mx.array:
        """Rotate x (B, heads, T, head_dim), whose first row is at position `offset`."""
        return mx.fast.rope(
            x,
            self.head_dim,
            traditional=False,
            base=self.theta if self.periods is None else None,
            scale=1.0,
            offset=offset,
            freqs=self.periods,
        )


def yarn_periods(yarn: Yarn, theta: float, dim: int) -> np.ndarray:
    """Positions per radian of each rotated pair, (dim/2,) float32 (YaRN, section 3.2).

    Pairs that turn often within the trained length keep their period; those that turn seldom have it stretched by
    `factor`; between the two boundaries a linear ramp mixes the frequencies.
    """

    def pair_that_turns(rotations: float) -> float:
        return dim * math.log(yarn.original_context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_that_turns(yarn.beta_fast), pair_that_turns(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    stretched = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
    periods = theta ** (np.arange(0, dim, 2) / dim)
    return (1 / ((1 - stretched) / periods + stretched / (yarn.factor * periods))).astype(np.float32)
