# make run · test · app · notebooks · paper · bench · data   (README: the same lines without make)
PYTHON ?= python3
PY := .venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: run test app notebooks paper bench data

# Train the base model, test it, draw its figure. CIFAKE if it is there, else the built-in sample.
run: .venv/installed
	$(PY) code/train.py -ep 10 -mf my_base_model
	$(PY) code/test.py -mf my_base_model
	$(PY) code/figures.py -mf my_base_model

test: .venv/installed
	$(PY) -m ruff check code
	$(PY) -m pytest -n 2 --dist worksteal

# The web page, for this computer only: http://127.0.0.1:7860
app: .venv/installed
	$(PY) code/app.py

# Execute every notebook in place, on the data that is there.
notebooks: .venv/installed
	$(PY) -m nbconvert --to notebook --execute --inplace --log-level WARN code/[0-9]*.ipynb

# Figures, report and slides from paper/results/.
paper: .venv/installed
	$(PY) code/paper.py

# Times against the earlier project's way of working; needs CIFAKE.
bench: .venv/installed
	$(PY) code/bench.py

# Download CIFAKE into the data root.
data: .venv/installed
	$(PY) code/datasets.py fetch cifake

# Made anew only when the lock file changes.
.venv/installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Tell needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv || { echo "python's venv is missing; on Debian: apt install python3-venv"; exit 2; }
	@echo "installing the locked dependencies into .venv, once (5.6 GB on disk, minutes) ..."
	if command -v uv >/dev/null; then uv pip install -q -p $(PY) -r requirements.lock; \
	  else $(PY) -m pip install -q -r requirements.lock; fi
	touch $@
