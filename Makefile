# `make run` and `make test` do their own set-up; see README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OFFSHOOT_HOME ?= $(CURDIR)/offshoot-home
PORT ?= 8501

.PHONY: run test test-all demo demo-model gpu gpu-quality bench pictures check format clean

$(VENV)/run.stamp: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/test.stamp: requirements-dev.txt $(VENV)/run.stamp
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

## Sets everything up (packages, sample images, demo model) and serves the workbench on 127.0.0.1.
run: $(VENV)/run.stamp
	$(BIN)/python -m core setup
	$(BIN)/streamlit run Home.py --server.port $(PORT)

## The same main job without a browser: import the demo model, prune, retrain, evaluate, benchmark, compare.
demo: $(VENV)/run.stamp
	$(BIN)/python -m core demo

## Lint, types and the tests, the browser's included; coverage must stay over 85 %.
test: TESTS = not slow
## The same with the slow tests, which repeat on more shapes what a quicker one proves.
test-all: TESTS = slow or not slow
test test-all: check
	chromium="$$(scripts/chromium)" && OFFSHOOT_CHROMIUM="$$chromium" OMP_NUM_THREADS=1 \
		$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "$(TESTS)" --cov --cov-fail-under 85

check: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

## Trains the shipped demo model anew from scratch, with this project's own retrain job (hours on a CPU).
demo-model: $(VENV)/run.stamp
	$(BIN)/python -m core demo-model

## On a machine with a GPU: checks and benchmarks on CUDA, meant to take under 9 minutes; results go to benchmarks/RESULTS-gpu.json.
gpu:
	$(PYTHON) -m benchmarks.gpu

## There too, some 45 minutes: a model trained from scratch, pruned to a sixth of its decode latency and retrained; into RESULTS.md.
gpu-quality: $(VENV)/run.stamp
	$(BIN)/python -m benchmarks.trained_and_pruned --device cuda:0 --minutes 20 --batch-size 64 --dtype bfloat16

## Every benchmark that needs no GPU; results go to benchmarks/RESULTS.md.
bench: $(VENV)/run.stamp
	$(BIN)/python -m benchmarks.main_job
	$(BIN)/python -m benchmarks.one_shot
	$(BIN)/python -m benchmarks.large_model
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.fast_decoder
	$(BIN)/python -m benchmarks.solver
	$(BIN)/python -m benchmarks.pareto
	$(BIN)/python -m benchmarks.retrain_speed
	$(BIN)/python -m benchmarks.store_speed
	$(BIN)/python -m benchmarks.forest
	$(BIN)/python -m benchmarks.compare_speed

## The README's pictures, of the store that OFFSHOOT_HOME names.
pictures: $(VENV)/test.stamp
	chromium="$$(scripts/chromium)" && OFFSHOOT_CHROMIUM="$$chromium" $(BIN)/python scripts/pictures.py

clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
