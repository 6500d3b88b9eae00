"""The paper's evaluation, row by row, on the simulator: what it claims, what we find, a verdict."""
