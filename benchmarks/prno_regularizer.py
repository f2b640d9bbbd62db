"""The probability regulariser at Stable Diffusion's size: time against a plain loop, agreement, and variance.

    python benchmarks/prno_regularizer.py [--size 835584] [--orders 100] [--repeat 5]

Both sides draw fresh orders, go forward and backward. The plain loop is the authors' program's: a `randperm` and
a gather per order. The last table compares the variance of the estimate over draws: our orders move blocks of numbers.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time

import torch
from torch import Tensor
from tqdm.auto import tqdm

from constrained_diffusion.noise_optimization.concentration import log_bounds, prno
from constrained_diffusion.noise_optimization.orders import block_length, draw_orders

K = 2


def plain(z: Tensor, orders: list[Tensor]) -> Tensor:
    """Return the mean over orders of log p1 + log p2, one order after the other."""
    m, total = len(z) // K, z.new_zeros(())
    for order in orders:
        rows = z[order].view(m, K)
        mean = rows.mean(0).norm()
        excess = torch.linalg.matrix_norm(rows.T @ rows / m - torch.eye(K, dtype=z.dtype), 2)
        total = total + (math.log(2) - m * mean**2 / (2 * K)).clamp(max=0)
        delta = ((1 + excess).sqrt() - 1 - math.sqrt(K / m)).clamp(min=0)
        total = total + (math.log(2) - m * delta**2 / 2).clamp(max=0)
    return total / len(orders)


def main() -> None:
    """Print the three comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=835_584)
    parser.add_argument("--orders", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--draws", type=int, default=4000, help="draws of all orders for the variance")
    given = parser.parse_args()
    n, q = given.size, given.orders
    for name, scale in (("Gaussian", 1.0), ("drifted: scaled by 1.02", 1.02)):
        z = scale * torch.randn(n, generator=torch.Generator().manual_seed(0))
        ours, theirs = [], []
        for repeat in range(given.repeat):
            start, given_z = time.perf_counter(), z[None].clone().requires_grad_(True)
            bounds = log_bounds(given_z, draw_orders(n, K, q, (repeat,)), K)
            torch.autograd.grad(prno(bounds, 0.0).sum() + 0 * given_z.sum(), given_z)
            ours.append(time.perf_counter() - start)
            start, flat = time.perf_counter(), z.clone().requires_grad_(True)
            torch.autograd.grad(plain(flat, [torch.randperm(n) for _ in range(q)]) + 0 * flat.sum(), flat)
            theirs.append(time.perf_counter() - start)
        a, b = statistics.median(ours), statistics.median(theirs)
        print(f"{name}, n = {n:,}, {q} orders: {a:.2f} s, plain loop {b:.2f} s: {b / a:.1f} times faster (aim >= 8)")

    z, orders = 1.02 * torch.randn(n, generator=torch.Generator().manual_seed(0)), draw_orders(n, K, q, (0,))
    single, double = z[None].clone().requires_grad_(True), z.double().requires_grad_(True)
    value = prno(log_bounds(single, orders, K), 0.0).sum()
    (gradient,) = torch.autograd.grad(value, single)
    reference = plain(double, list(orders.indices(K)))
    (expected,) = torch.autograd.grad(reference, double)
    error = float((gradient[0] - expected).abs().max() / expected.abs().max())
    off = abs(float(value.detach() / reference.detach()) - 1)
    print(f"same orders: value off by {off:.1e} (aim <= 1e-5), gradient by {error:.1e}")

    small = 65_536
    length = block_length(small, K)
    print(
        f"\nvariance of the {q}-order estimate, n = {small:,}, {small // length:,} blocks of {length}, "
        f"{given.draws} draws; to be expected: {1 + q * length / small:.3f} times that of full permutations"
    )
    print("| noise | full permutations | blocks | ratio | 95 % interval |\n|---|---|---|---|---|")
    for seed in range(3):
        z = 1.02 * torch.randn(1, small, generator=torch.Generator().manual_seed(seed))

        def values(draw: int, block: int | None) -> Tensor:
            """Return log p1 + log p2 of each order."""
            return log_bounds(z, draw_orders(small, K, q, (seed, draw), block), K)[0, 1:].sum(-1)  # noqa: B023

        # Full permutations are independent of each other, so each order is a draw of its own.
        single = torch.cat([values(i, 1) for i in range(given.draws // 10)])
        means = torch.stack([values(i, None).mean() for i in tqdm(range(given.draws), leave=False)])
        full, blocks = float(single.var()) / q, float(means.var())
        ratio, error = blocks / full, 1.96 * math.hypot(_relative_error(single), _relative_error(means))
        within = f"{ratio * (1 - error):.3f} to {ratio * (1 + error):.3f}"
        print(f"| seed {seed} | {full:.3g} | {blocks:.3g} | {ratio:.3f} | {within} |", flush=True)


def _relative_error(values: Tensor) -> float:
    """Return the standard error of a variance, relative to it, from the fourth moment."""
    centred = values.double() - values.double().mean()
    return float((centred.pow(4).mean() / centred.square().mean().square() - 1).sqrt()) / math.sqrt(len(values))


if __name__ == "__main__":
    main()
