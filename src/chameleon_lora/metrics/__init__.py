"""What a run's records say: latencies, rates, comparisons. Pure: values in, values out."""
