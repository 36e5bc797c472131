"""Loops over cells by genes that numba compiles to vector instructions: one pass each, single precision.

Nothing imports this file before it is needed, see :mod:`cplmixvi._compiled`. What call each other are in one file: that
of the caller is all that numba looks at for changes when it takes compiled code from its cache on disk.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, uint32, uint64
from numpy.polynomial import Polynomial
from numpy.polynomial.chebyshev import Chebyshev
from scipy.special import gammaln, psi

# Sums in any order, so that they are vectorised; values that are not finite are kept, because training looks for them.
_OPTIONS = {"fastmath": {"reassoc", "contract", "arcp", "nsz"}, "error_model": "numpy"}


def compiled(function):
    """``function`` compiled at its first call, from a cache on disk where that can be written."""
    try:
        return njit(cache=True, nogil=True, **_OPTIONS)(function)
    except RuntimeError:
        return njit(nogil=True, **_OPTIONS)(function)


def _inlined(function):
    return njit(**_OPTIONS)(function)


def _coefficients(function, degree: int, low: float, high: float) -> tuple[np.float32, ...]:
    """Of a polynomial that is near a function between two points, the highest first."""
    near = Chebyshev.interpolate(function, degree, [low, high]).convert(kind=Polynomial)
    return tuple(np.float32(value) for value in near.coef[::-1])


def _log_gamma_rest(t: np.ndarray) -> np.ndarray:
    x = 1 / t - 1
    return gammaln(x + 1) - (x + 0.5) * np.log(x + 1) + x


def _digamma_rest(t: np.ndarray) -> np.ndarray:
    x = 1 / t - 1
    return (np.log(x + 1) - psi(x + 1)) / t


# By their series: exp(r) = 1 + r + r^2 p(r), log(1 + f) = f - f^2 / 2 + f^3 p(f).
_EXP = _coefficients(Polynomial([1 / math.factorial(k + 2) for k in range(15)]), 4, -math.log(2) / 2, math.log(2) / 2)
_LOG = _coefficients(Polynomial([(-1) ** k / (k + 3) for k in range(80)]), 8, math.sqrt(0.5) - 1, math.sqrt(2) - 1)
# With t = 1 / (x + 1): log Gamma(x + 1) = (x + 1/2) log(x + 1) - x + p(t), and psi(x + 1) = log(x + 1) - t p(t).
_LOG_GAMMA = _coefficients(_log_gamma_rest, 6, 1e-6, 1)
_DIGAMMA = _coefficients(_digamma_rest, 7, 1e-6, 1)
_ZERO, _HALF, _ONE, _LOWEST = np.float32(0), np.float32(0.5), np.float32(1), np.float32(-87)
_LOG_2, _LOG2_E = np.float32(math.log(2)), np.float32(1 / math.log(2))
#: Exponent of 1 in single precision, where the exponent begins, and the bits of the root of a half.
_BIAS, _SHIFT, _ROOT = np.int32(127), np.int32(23), np.float32(math.sqrt(0.5)).view(np.int32)
#: Odd constants of the generator splitmix64, which makes independent numbers of a counter.
_STEP, _MIX, _MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@_inlined
def _exp_of_negative(x):
    x = max(x, _LOWEST)
    n = np.int32(x * _LOG2_E - _HALF)
    r = x - np.float32(n) * _LOG_2
    p = _EXP[0]
    for degree in range(1, 5):
        p = p * r + _EXP[degree]
    return (p * r * r + r + _ONE) * np.int32((n + _BIAS) << _SHIFT).view(np.float32)


@_inlined
def _log1p(y):
    # 1 + y = 2^k (1 + f) with f around zero. No digits are lost: f is y itself where k is zero.
    k = np.int32((np.float32(_ONE + y).view(np.int32) - _ROOT) >> _SHIFT)
    scale = np.int32((_BIAS - k) << _SHIFT).view(np.float32)
    f = y * scale + (scale - _ONE)
    p = _LOG[0]
    for degree in range(1, 9):
        p = p * f + _LOG[degree]
    return np.float32(k) * _LOG_2 + (f + f * f * (p * f - _HALF))


@_inlined
def _in_order(bits):
    # Numbers by their bits have the order of integers, but for the negative ones, which have that of their size.
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@_inlined
def _largest(x):
    # As integers, because LLVM cannot find the largest of several numbers at once if one may be nan (which is largest).
    bits = x.view(np.int32)
    found = _in_order(bits[0])
    for g in range(len(bits)):
        found = max(found, _in_order(bits[g]))
    return np.int32(_in_order(found)).view(np.float32)


@_inlined
def _log_gamma_polynomial(t):
    p = _LOG_GAMMA[0]
    for degree in range(1, 7):
        p = p * t + _LOG_GAMMA[degree]
    return p


@_inlined
def _digamma_polynomial(t):
    p = _DIGAMMA[0]
    for degree in range(1, 8):
        p = p * t + _DIGAMMA[degree]
    return p * t


def _score(logits, x, library, weights, theta, score, to_genes):
    n_cells, n_genes = x.shape
    u, log_r, inverse = np.empty_like(theta), np.empty_like(theta), np.empty_like(theta)
    log_theta, rest, slope_rest = np.empty_like(theta), np.empty_like(theta), np.empty_like(theta)
    log_ratio = np.empty_like(theta)
    count, size, constant = np.empty_like(theta), np.empty_like(theta), np.empty_like(theta)
    slope, index = np.empty_like(theta), np.empty(n_genes, np.int32)
    to_theta, to_bias = to_genes[0], to_genes[1]
    for g in range(n_genes):
        # What depends on the gene only.
        inverse[g] = _ONE / theta[g]
        of_size = _ONE / (theta[g] + _ONE)
        log_theta_1 = _log1p(theta[g])
        log_theta[g] = log_theta_1 - _log1p(inverse[g])
        rest[g] = _HALF * log_theta_1 + _log_gamma_polynomial(of_size)
        slope_rest[g] = inverse[g] + _digamma_polynomial(of_size)
        to_theta[g], to_bias[g] = _ZERO, _ZERO
    for i in range(n_cells):
        counts, share, weight = x[i], logits[i], weights[i]
        largest = _largest(share)
        powers, gamma, total, sum_u = _ZERO, _ZERO, _ZERO, _ZERO
        for g in range(n_genes):
            logit = share[g] - largest
            log_ratio[g] = logit - log_theta[g]
            share[g] = _exp_of_negative(logit)
            total += share[g]
        depth = library[i] / total
        log_depth = np.float32(math.log(depth))
        # Few arrays per loop: with more, LLVM gives up to prove that they do not overlap, and does not vectorise.
        for g in range(n_genes):
            mu = share[g] * depth
            log_r[g] = mu * inverse[g]
            u[g] = (counts[g] - mu) / (_ONE + log_r[g])
            sum_u += u[g]
        # Logarithms of probabilities, which are small where counts are large: sums of their parts would lose digits.
        for g in range(n_genes):
            log_r[g] = _log1p(log_r[g])
            powers += counts[g] * (log_ratio[g] + log_depth - log_r[g]) - theta[g] * log_r[g]
        for g in range(n_genes):
            to_theta[g] -= weight * (log_r[g] + u[g] * inverse[g])
        # Gamma functions of counts that are not zero, which are put side by side.
        n = 0
        for g in range(n_genes):
            index[n] = g
            n += np.int64(counts[g] != _ZERO)
        for j in range(n):
            count[j], size[j], constant[j] = counts[index[j]], theta[index[j]], rest[index[j]]
        for j in range(n):
            z = count[j] + size[j]
            # 1 / (z (z + 1)), of which 1 / z and 1 / (z + 1) are made, and so on.
            of_z, of_size = _ONE / (z * (z + _ONE)), _ONE / (size[j] * (size[j] + _ONE))
            of_count = _ONE / (count[j] + _ONE)
            log_z = _log1p(count[j] * size[j] * of_size)
            gamma += (count[j] + _HALF) * _log1p(size[j] * of_count) + size[j] * log_z - constant[j]
            gamma -= _log1p(count[j] * (size[j] + _ONE) * of_size)
            gamma += _log_gamma_polynomial(z * of_z) - _log_gamma_polynomial(of_count)
            slope[j] = log_z - _digamma_polynomial(z * of_z) - (z + _ONE) * of_z
        for j in range(n):
            to_theta[index[j]] += weight * (slope[j] + slope_rest[index[j]])
        mean_u = sum_u / total
        for g in range(n_genes):
            share[g] = u[g] - share[g] * mean_u
            to_bias[g] += weight * share[g]
        score[i] = powers + gamma


def _scaled_log1p(x, factor, out):
    for i in range(x.shape[0]):
        for g in range(x.shape[1]):
            out[i, g] = _log1p(x[i, g] * factor[i])


def _standardised(x, group, out, mean, inverse_scale):
    for i in range(x.shape[0]):
        own = mean[group[i]]
        for g in range(x.shape[1]):
            out[i, g] = max(min((x[i, g] - own[g]) * inverse_scale[g], _ONE), -_ONE)


@_inlined
def _mixed(counter, seed):
    drawn = seed + counter * _STEP
    drawn = (drawn ^ (drawn >> uint64(30))) * _MIX
    drawn = (drawn ^ (drawn >> uint64(27))) * _MIX_2
    return drawn ^ (drawn >> uint64(31))


def _look_up(x, first, seed, table, n_bins, largest, out, undecided, bits):
    n_undecided = 0
    n_rows, mask = np.float32(largest + 1), uint64(n_bins - 1)
    for word in range((len(x) + 3) // 4):
        # Four numbers of 16 bits from each of 64.
        drawn = _mixed(uint64(first // 4 + word + 1), seed)
        for part in range(4):
            i = 4 * word + part
            if i == len(x):
                break
            own = uint32((drawn >> uint64(16 * part)) & mask)
            # Nothing outside the table is read, whatever the values.
            row = x[i] if _ZERO <= x[i] < n_rows else n_rows
            value = table[uint32(row) * uint32(n_bins) + own]
            out[i] = value
            if value < 0:
                undecided[n_undecided], bits[n_undecided] = i, own
                n_undecided += 1
    return n_undecided


score, scaled_log1p = compiled(_score), compiled(_scaled_log1p)
standardised, look_up = compiled(_standardised), compiled(_look_up)
