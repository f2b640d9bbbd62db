"""The parts of `benchmarks/speed.py`: each module has a `rows(given)` that measures and yields the table's rows."""
