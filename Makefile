# make                              sets up .venv and says how to go on (each of those below does it too)
# make shell                        a shell in which `python` and `torchrun` are those of .venv
# make demo                         from raw EDF to a table of answers, on simulated recordings (minutes on 2 cores)
# make demo RAW=/path/to/eegmat     the same on the real recordings
# make test                         the tests, each promise by its quickest one (minutes on 2 cores)
# make test-all                     all of them, also those marked slow
# make test PYTHON=python3.12       the tests under another Python, in .venv-python3.12
# make lint                         the linter
# make bench                        the tables of docs/performance.md: each hot path against the plain way
# make gpu                          ten minutes with a GPU: its tests, then training steps of each size, into gpu.json and gpu.md
# make gpu GPU_PYTHON=python3       the same with a python that has torch already, and without a network
# make gpu DEVICE=cpu SIZE=tiny     a rehearsal
# make adapters                     the encoders in NeuralBench, braindecode and OpenEEGBench (Python 3.12, 6 GB)
# make clean                        removes what these have made
# All they need is Python 3.11 or later.
PYTHON ?= python3
PYTHON312 ?= python3.12
# another Python has an environment of its own
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
INSTALLED := $(VENV)/.installed
DEVELOPS := $(VENV)/.develops
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
ADAPTERS := .venv-adapters
GPU_PYTHON ?= $(VENV)/bin/python
DEVICE ?= cuda
SIZE ?= B L XL
OUT ?= .

.PHONY: all help shell demo test test-all lint bench gpu adapters clean
.DEFAULT_GOAL := all

all: $(INSTALLED)
	@echo "ready; next: source $(VENV)/bin/activate (or make shell), then the commands of README.md; make help"

help:
	@sed -n 's/^# make/make/p' $(firstword $(MAKEFILE_LIST))

$(INSTALLED): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; run make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt
	@touch $@

$(DEVELOPS): $(INSTALLED) requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	@touch $@

shell: $(INSTALLED)
	@VIRTUAL_ENV="$(abspath $(VENV))" PATH="$(abspath $(VENV))/bin:$$PATH" "$${SHELL:-/bin/sh}"

demo: $(INSTALLED)
	$(VENV)/bin/python demo.py $(if $(RAW),--raw "$(RAW)")

# one thread a process, as many processes as cores
TESTS = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder
test: $(DEVELOPS)
	$(TESTS) -m "not slow"

test-all: $(DEVELOPS)
	$(TESTS)

lint: $(DEVELOPS)
	$(VENV)/bin/ruff check .

# one thread, size B, about 20 minutes and 16 GB of memory; BENCH="--size tiny" for a look
bench: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python benchmarks/bench.py --json bench.json --markdown docs/performance.md $(BENCH)

# at most 580 seconds, 200 of them for the tests, which SIGTERM would only tell to save; both are done whatever comes of
# the other
NEEDED := torch numpy scipy pandas sklearn h5py einops tiktoken tqdm yaml safetensors huggingface_hub pytest
gpu: $(if $(filter $(VENV)/%,$(GPU_PYTHON)),$(INSTALLED))
	@$(GPU_PYTHON) -c 'import importlib.util, sys; lacks = [n for n in sys.argv[1:] if not importlib.util.find_spec(n)]; \
		lacks and sys.exit("error: $(GPU_PYTHON) lacks " + ", ".join(lacks))' $(NEEDED)
	@begun=$$(date +%s); export OMP_NUM_THREADS=1; \
	NEUROLM_DEVICE=$(DEVICE) timeout -s KILL 200 $(GPU_PYTHON) -m pytest -v -rs -p no:cacheprovider tests/test_gpu.py; tested=$$?; \
	[ $$tested -ne 137 ] || echo "no time for the tests that are not listed above"; \
	$(GPU_PYTHON) benchmarks/steps.py --device $(DEVICE) --sizes $(SIZE) --out "$(OUT)" \
		--seconds $$((580 - $$(date +%s) + begun)) && exit $$tested

# not part of .venv: these packages bring torchvision, which breaks transformers there
$(ADAPTERS)/.installed: requirements-adapters.txt
	$(PYTHON312) -m venv $(ADAPTERS)
	$(ADAPTERS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-adapters.txt
	@touch $@

# without a terminal, NeuralBench does not ask where to keep its data
adapters: $(ADAPTERS)/.installed
	$(ADAPTERS)/bin/python -W ignore tests/adapters_in_packages.py < /dev/null

clean:
	rm -rf .venv .venv-* demo
