"""A Gaussian process for numerical and categorical features: a linear trend and a Matern residual."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_STEPS = 30


@dataclass(frozen=True)
class Hyperparameters:
    """Hyperparameters of the kernel ``trend x.x' + matern52(r)`` and of the noise, relative to an amplitude of 1.

    Args:
        log_weights: Logarithm of the squared inverse length scales, one per feature, shape (d,).
        log_trend: Logarithm of the linear trend's variance.
        log_noise: Logarithm of the noise variance.
    """

    log_weights: Floats
    log_trend: float
    log_noise: float


def fit_hyperparameters(
    features: Floats, n_numerical: int, targets: Floats, error: Floats | float = 0.0
) -> Hyperparameters:
    """Return hyperparameters of high posterior density, with the amplitude profiled out.

    It takes thirty steps of resilient back-propagation (Rprop) on the gradient of the log posterior, from the mode of
    the prior. This is deterministic, and a bad fit ends near the prior.

    Args:
        features: Features, shape (n, d), numerical ones first.
        n_numerical: Number of numerical features; the others are compared for equality only.
        targets: Standardised targets, shape (n,).
        error: Known standard deviation of each target's error, in addition to the noise of all, shape (n,) or ().
    """
    d = features.shape[1]
    distances = squared_distances(features, features, n_numerical)
    centred = features[:, :n_numerical] - 0.5
    linear = centred @ centred.T
    mode = _prior_mode(d)
    theta = mode.copy()
    step, last = np.full(d + 2, 0.3), np.zeros(d + 2)
    best, best_density = theta, -np.inf
    for _ in range(_STEPS):
        density, gradient = _log_posterior(theta, mode, distances, linear, targets, error)
        if density > best_density:
            best, best_density = theta.copy(), density
        agreement = np.sign(gradient) * np.sign(last)
        step = np.clip(np.where(agreement > 0, step * 1.3, np.where(agreement < 0, step * 0.5, step)), 1e-3, 1.0)
        theta = np.clip(theta + np.sign(gradient) * step, -12.0, 8.0)
        last = gradient
    return Hyperparameters(best[:d], float(best[d]), float(best[d + 1]))


def _prior_mode(d: int) -> Floats:
    # The squared distance of uniform features is about d / 6; the residual should vary on that scale for any d.
    return np.concatenate([np.full(d, np.log(6.0 / max(d, 1)) - 1.0), [0.0], [np.log(1e-3)]])


def _log_posterior(
    theta: Floats, mode: Floats, distances: Floats, linear: Floats, targets: Floats, error: Floats | float
) -> tuple[float, Floats]:
    d, n = len(distances), len(targets)
    weights = np.exp(theta[:d])
    squared = np.tensordot(weights, distances, axes=1)
    radius = np.sqrt(5.0 * squared)
    decay = np.exp(-radius)
    trend, noise = np.exp(theta[d]), np.exp(theta[d + 1])
    kernel = trend * linear + (1.0 + radius + radius**2 / 3.0) * decay
    kernel[np.diag_indices(n)] += noise + np.square(error) + 1e-8
    try:
        factor = np.linalg.cholesky(kernel)
    except np.linalg.LinAlgError:
        return -np.inf, np.sign(mode - theta)
    inverse = np.linalg.inv(kernel)
    alpha = inverse @ targets
    quadratic = float(targets @ alpha) + 1e-9
    # Amplitude profiled out: log p = -n/2 log(y' K^-1 y) - sum log L_ii. Priors are normal in the logarithms.
    spread = np.concatenate([np.full(d, 1.5), [2.0], [2.0]])
    offset = (theta - mode) / spread
    density = -0.5 * n * np.log(quadratic) - np.log(np.diag(factor)).sum() - 0.5 * float(offset @ offset)
    outer = 0.5 * (n / quadratic * np.outer(alpha, alpha) - inverse)
    slope = -(5.0 / 6.0) * (1.0 + radius) * decay * outer
    gradient = np.empty(d + 2)
    gradient[:d] = weights * np.einsum("dij,ij->d", distances, slope)
    gradient[d] = trend * np.sum(outer * linear)
    gradient[d + 1] = noise * np.trace(outer)
    return float(density), gradient - offset / spread


def squared_distances(left: Floats, right: Floats, n_numerical: int) -> Floats:
    """Return the squared distances in each feature, 0 or 1 in categorical ones, shape (d, n_left, n_right)."""
    distances = np.square(left.T[:, :, None] - right.T[:, None, :])
    distances[n_numerical:] = distances[n_numerical:] > 0
    return distances


class GaussianProcess:
    """Predicts a target from features.

    Args:
        features: Features of the training rows, shape (n, d), numerical ones first.
        n_numerical: Number of numerical features.
        targets: Targets of the training rows, shape (n,).
        hyperparameters: Hyperparameters that were fitted to these rows, or to some of them.
        error: Known standard deviation of each target's error, in addition to the noise of all, shape (n,) or ().
    """

    def __init__(
        self,
        features: Floats,
        n_numerical: int,
        targets: Floats,
        hyperparameters: Hyperparameters,
        error: Floats | float = 0.0,
    ) -> None:
        self._features, self._n_numerical, self._hyperparameters = features, n_numerical, hyperparameters
        kernel = self._kernel(features)
        kernel[np.diag_indices(len(kernel))] += np.exp(hyperparameters.log_noise) + np.square(error) + 1e-8
        self._inverse = np.linalg.inv(kernel)
        weights = np.broadcast_to(1.0 / (1.0 + np.square(error)), targets.shape)
        self._mean = float(np.average(targets, weights=weights))
        self._alpha = self._inverse @ (targets - self._mean)
        # Shrunk towards the plain variance, as if by one more row: two or three rows alone estimate it badly.
        variance = float(np.average(np.square(targets - self._mean), weights=weights))
        quadratic = float((targets - self._mean) @ self._alpha) + variance
        self._amplitude = quadratic / (len(targets) + 1)

    def _kernel(self, features: Floats) -> Floats:
        n, weights = self._n_numerical, np.exp(self._hyperparameters.log_weights)
        left, right = features[:, :n] * np.sqrt(weights[:n]), self._features[:, :n] * np.sqrt(weights[:n])
        squared = np.sum(left**2, axis=1)[:, None] + np.sum(right**2, axis=1) - 2.0 * left @ right.T
        for weight, mine, theirs in zip(weights[n:], features[:, n:].T, self._features[:, n:].T, strict=True):
            squared += weight * (mine[:, None] != theirs)
        radius = np.sqrt(5.0 * np.maximum(squared, 0.0))
        matern: Floats = (1.0 + radius + radius**2 / 3.0) * np.exp(-radius)
        linear: Floats = (features[:, :n] - 0.5) @ (self._features[:, :n] - 0.5).T
        kernel: Floats = matern + np.exp(self._hyperparameters.log_trend) * linear
        return kernel

    def predict(self, features: Floats) -> tuple[Floats, Floats]:
        """Return means and standard deviations of the noiseless target, shape (b,) each."""
        cross = self._kernel(features)
        centred = features[:, : self._n_numerical] - 0.5
        prior = 1.0 + np.exp(self._hyperparameters.log_trend) * np.sum(centred**2, axis=1)
        variance = prior - np.sum((cross @ self._inverse) * cross, axis=1)
        return self._mean + cross @ self._alpha, np.sqrt(self._amplitude * np.maximum(variance, 1e-10))
