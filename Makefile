# make demo                         from raw EDF to a table of answers, on simulated recordings (minutes on 2 cores)
# make demo RAW=/path/to/eegmat     the same on the real recordings
# make test                         the tests
# make lint                         the linter
# Each sets up .venv by itself; all it needs is Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint clean

$(INSTALLED): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; run make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

demo: $(INSTALLED)
	$(VENV)/bin/python demo.py $(if $(RAW),--raw "$(RAW)")

# one thread a process, as many processes as cores
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .

clean:
	rm -rf $(VENV) demo
