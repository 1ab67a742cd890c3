"""Functions that write tables."""

from statistics import mean, stdev


def markdown(head: list[str], lines: list[list[str]]) -> str:
    """Returns a table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])


def spread(values: list[float]) -> str:
    """Returns the mean and the standard deviation in percent."""
    return f"{mean(values):.2%}" + (f" ± {stdev(values):.2%}" if len(values) > 1 else "")
