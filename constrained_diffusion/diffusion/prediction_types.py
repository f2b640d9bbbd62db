"""What a network may predict, and the algebra between that, the clean sample and the noise.

With x_t = s x_0 + sigma eps every kind of output is linear in the two. `s` and `sigma` broadcast against the samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class PredictionType(ABC):
    """One kind of output: what it should be, and how it is read."""

    @abstractmethod
    def target(self, clean: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """Return what the network should output for this clean sample and noise."""

    @abstractmethod
    def to_clean(self, output: Tensor, noisy: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """Return the clean sample that the output means."""

    @abstractmethod
    def to_noise(self, output: Tensor, noisy: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """Return the noise that the output means."""

    @abstractmethod
    def from_clean(self, clean: Tensor, noisy: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """Return the output that means the clean sample `clean`: the inverse of `to_clean`, affine in `clean`."""

    @abstractmethod
    def weight(self, of_clean: Tensor, snr: Tensor, sigma: Tensor) -> Tensor:
        """Return what a squared error of the output weighs where one of the clean sample weighs `of_clean`."""


class Epsilon(PredictionType):
    """The noise itself."""

    def target(self, clean: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return noise

    def to_clean(self, output: Tensor, noisy: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return (noisy - sigma * output) / signal

    def to_noise(self, output: Tensor, noisy: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return output

    def from_clean(self, clean: Tensor, noisy: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return (noisy - signal * clean) / sigma

    def weight(self, of_clean: Tensor, snr: Tensor, sigma: Tensor) -> Tensor:
        return of_clean / snr


class Sample(PredictionType):
    """The clean sample itself."""

    def target(self, clean: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return clean

    def to_clean(self, output: Tensor, noisy: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return output

    def to_noise(self, output: Tensor, noisy: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return (noisy - signal * output) / sigma

    def from_clean(self, clean: Tensor, noisy: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return clean

    def weight(self, of_clean: Tensor, snr: Tensor, sigma: Tensor) -> Tensor:
        return of_clean


class Velocity(PredictionType):
    """v = s eps - sigma x_0 where s^2 + sigma^2 = 1 (Salimans and Ho 2022, arXiv 2202.00512, appendix D)."""

    def target(self, clean: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return signal * noise - sigma * clean

    def to_clean(self, output: Tensor, noisy: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return signal * noisy - sigma * output

    def to_noise(self, output: Tensor, noisy: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return sigma * noisy + signal * output

    def from_clean(self, clean: Tensor, noisy: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return (signal * noisy - clean) / sigma

    def weight(self, of_clean: Tensor, snr: Tensor, sigma: Tensor) -> Tensor:
        return of_clean / (snr + 1)


class Flow(PredictionType):
    """eps - x_0, where s + sigma = 1 (Liu et al. 2022, arXiv 2209.03003; Lipman et al. 2022, arXiv 2210.02747)."""

    def target(self, clean: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return noise - clean

    def to_clean(self, output: Tensor, noisy: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return noisy - sigma * output

    def to_noise(self, output: Tensor, noisy: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return noisy + signal * output

    def from_clean(self, clean: Tensor, noisy: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        return (noisy - clean) / sigma

    def weight(self, of_clean: Tensor, snr: Tensor, sigma: Tensor) -> Tensor:
        return of_clean * sigma.square()


@dataclass(frozen=True)
class Preconditioned(PredictionType):
    """F of x_0 = c_skip x + c_out F, for s = 1 (Karras et al. 2022, arXiv 2206.00364, table 1).

    Args:
        sigma_data: standard deviation of the data, in network units.
        sigma_min: where the clean sample is x itself: that of consistency models (Song et al. 2023, arXiv 2303.01469,
            appendix C), whose clean sample keeps noise of that size; 0 for EDM.
        sign: of c_out; -1 for what diffusers calls the v_prediction of EDM.
    """

    sigma_data: float = 0.5
    sigma_min: float = 0.0
    sign: float = 1.0

    def _above(self, sigma: Tensor) -> Tensor:
        above = sigma - self.sigma_min
        return above.masked_fill(above < 1e-5 * self.sigma_min, 0.0)  # sigma_min itself, but for rounding

    def _factors(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        above, variance = self._above(sigma), self.sigma_data**2
        skip = variance / (above.square() + variance)
        return skip, self.sign * above * self.sigma_data / (sigma.square() + variance).sqrt()

    # Target and noise are written out, for (x_0 - c_skip x) / c_out loses its digits at low noise.
    def target(self, clean: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        above, variance = self._above(sigma), self.sigma_data**2
        numerator = above * (clean + self.sigma_min * noise) - variance * noise
        scale = (sigma.square() + variance).sqrt() / (above.square() + variance)
        return self.sign / self.sigma_data * scale * numerator

    def to_clean(self, output: Tensor, noisy: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        skip, out = self._factors(sigma)
        return skip * noisy + out * output

    def to_noise(self, output: Tensor, noisy: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        above, variance = self._above(sigma), self.sigma_data**2
        of_noisy = above / (above.square() + variance)
        return of_noisy * noisy - self.sign * self.sigma_data / (sigma.square() + variance).sqrt() * output

    def from_clean(self, clean: Tensor, noisy: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        skip, out = self._factors(sigma)
        return (clean - skip * noisy) / out.masked_fill(out == 0, torch.inf)  # at sigma_min any output means x itself

    def weight(self, of_clean: Tensor, snr: Tensor, sigma: Tensor) -> Tensor:
        return of_clean * self._factors(sigma)[1].square()


NAMED: dict[str, PredictionType] = {
    "epsilon": Epsilon(),
    "sample": Sample(),
    "v_prediction": Velocity(),
    "flow": Flow(),
}
