"""The policy in simulated time: the object that drives vLLM drives a model of an engine here."""
