"""The parts of `benchmarks/same_numbers.py`: the jobs, the two trees, what a run left, the comparison."""
