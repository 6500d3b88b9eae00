# The project's verbs. Each sets up what it needs first, so any of them works on a bare machine.
bin := .venv/bin
.DEFAULT_GOAL := check
.PHONY: setup check fast test test-long faults soak demo report vllm

# .venv with vLLM for CPUs, this package and the tools; under 2 s when nothing has changed.
setup:
	@scripts/setup.sh

# Format, lint, types, architecture, spelling.
check: setup
	$(bin)/ruff format --check --quiet
	$(bin)/ruff check --quiet
	$(bin)/mypy
	$(bin)/lint-imports --no-logo
	$(bin)/codespell

# The tests that need no engine and take no time.
fast: setup
	$(bin)/pytest -m "not slow and not vllm and not long"

# What guards behaviour, the live tests on a real vLLM included, on two processes.
test: check
	$(bin)/pytest -n 2

# Before a release: all of it, with many and fresh examples; coverage goes to build/coverage. The policy's is
# all of it, and the whole's no less than a part of the tests gives (docs/lab-notes.md).
test-long: check
	$(bin)/pytest -n 2 -m "" --hypothesis-profile=long --cov --cov-report=
	$(bin)/coverage report --include='src/chameleon_lora/policy/*' --fail-under=100
	$(bin)/coverage report --format=total --fail-under=75

# What goes wrong in production, done to real servers; `test` leaves out the faults that take longest.
faults: setup
	$(bin)/pytest -p no:randomly -m "" tests/faults

# Half an hour of load and faults on one server, and what it leaks.
soak: setup
	$(bin)/python -m faults

# A small real model, 24 adapters, and what Chameleon does with them.
demo: setup
	$(bin)/chameleon demo

# Which lines the last `make test-long` did not run; as a page in build/coverage/html.
report: setup build/coverage/data
	$(bin)/coverage html --quiet
	$(bin)/coverage report

build/coverage/data:
	$(MAKE) test-long

# Whether Chameleon runs on another vLLM's Python code (VERSION=0.33.0); on a CPU, so not on its own kernels.
vllm: setup
	@scripts/other_vllm.sh $(VERSION)
