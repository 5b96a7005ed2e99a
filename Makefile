# Two commands do everything: `make demo` and `make test`.
.PHONY: env demo test check fast-tests quick-tests test-slow lint hooks bench serve clean

PYTHON_ENV := .venv/bin/python
# Two processes: what waits for Ray, the engine or a command leaves a core to the other tests. The
# order is kept: the integration tests, which take longest, begin.
TEST_PROCESSES := -n 2 --no-loadscope-reorder
# A run and a test session start dozens of Python processes: without kept bytecode each compiles
# Ray, PyTorch and vLLM anew, most of a minute. Container images often switch it off.
unexport PYTHONDONTWRITEBYTECODE
# The environment of a machine with a GPU has no CPU engine: the demo runs on the GPU there.
GPU_PRESET = $(shell grep -q '^gpu ' .venv/.eag-rl && echo configs/presets/one_gpu.yaml)

env: ## create .venv from the pinned requirements (CPU, or GPU where there is one)
	@bash requirements/install.sh

demo: env ## an experiment on embedded defaults: every stage, four arms; prints table, words and page
	@$(PYTHON_ENV) -m training.cli learn configs/demo.yaml $(GPU_PRESET)

lint: env ## format check, lint, types, import layers
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/basedpyright --level error
	@.venv/bin/lint-imports --no-cache

# Side by side: tests that wait for Ray or the engine leave a core to the type check.
test: env ## lint, types and all tests that are not marked slow
	@$(MAKE) --no-print-directory --jobs=2 lint fast-tests

# While one works: no Ray, no engine. About two minutes; nearly every test is below three seconds.
check: env ## lint, types, unit and property tests; test has the integration tests too
	@$(MAKE) --no-print-directory --jobs=2 lint quick-tests

quick-tests: env
	@$(PYTHON_ENV) -m pytest -q -m "not slow and not gpu" $(TEST_PROCESSES) \
		tests/unit tests/property

hooks: env ## git looks at format, lint and import layers before a commit, and runs check before a push
	@git config core.hooksPath .githooks

fast-tests: env
	@$(PYTHON_ENV) -m pytest -q -m "not slow and not gpu" --durations=15 $(TEST_PROCESSES)

test-slow: env ## the tests marked slow; with MINUTES=40 those that begin within as many
	@$(PYTHON_ENV) -m pytest -q -m "slow and not gpu" --durations=40 $(MINUTES:%=--start-within=%) \
		$(TEST_PROCESSES) tests/unit tests/property tests/integration

bench: env ## every benchmark this machine can run; writes benchmarks/results/*.json
	@$(PYTHON_ENV) -m benchmarks

serve: env ## the services on this machine; trains the demo expert first if there is none
	@$(PYTHON_ENV) -m training.cli serve configs/demo.yaml $(GPU_PRESET)

clean: ## remove caches; run folders and .venv stay
	@rm -rf .ruff_cache .hypothesis build *.egg-info
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
