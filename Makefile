# Everything runs through dev.py, which makes .venv by itself; this file only gives the jobs short names.
PYTHON ?= python3

.PHONY: demo test test-all lint format bench setup clean

demo:    ## forget on real digits with every method, and write out/demo/report.html
	@$(PYTHON) dev.py demo
test:    ## linters, type checker, test-suite
	@$(PYTHON) dev.py test
test-all:    ## the same, with the tests that take minutes
	@$(PYTHON) dev.py test-all
lint:
	@$(PYTHON) dev.py lint
format:
	@$(PYTHON) dev.py format
bench:   ## ratios to bare loops, in one process
	@$(PYTHON) dev.py bench
setup:
	@$(PYTHON) dev.py setup
clean:
	rm -rf .venv out .pytest_cache .mypy_cache .ruff_cache
