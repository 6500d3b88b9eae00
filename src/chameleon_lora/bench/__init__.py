"""Measures a running OpenAI-compatible server from outside: over HTTP, in real time."""
