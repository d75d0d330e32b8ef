"""Whole numbers that the sizes of kernels are made of. Triton's own functions of these names take 5 µs a call."""


def ceil_div(number: int, by: int) -> int:
    """Return how many times `by`, at least 1, takes to reach `number`."""
    return -(-number // by)


def power_of_two(number: int) -> int:
    """Return the least power of two that is `number`, at least 1, or more."""
    return 1 << (number - 1).bit_length()
