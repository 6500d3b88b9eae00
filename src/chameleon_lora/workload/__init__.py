"""Timed requests for simulators and benchmarks: when, which adapter, how long."""
