"""What every part stands on: files, random numbers, precision, ranks, networks on disk, rows of data."""
