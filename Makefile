# make demo   train a small VMamba on real digits, and draw what it learned
# make test   style checks and tests, as CI runs them
# make zoo    write model_zoo.md and the tables of the configs' pages; CI fails when they are stale
# make gpu    all that a GPU has to show, in ten minutes: WHEELS=folder of missing wheels, ONLY='part ...', OUT=folder
# make docs   the documentation as a site, in site/; make pictures draws its pictures anew
# make dist   the source archive and the wheel, in dist/
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
# A target needs .ready-EXTRA, or .ready-EXTRA-EXTRA: what says that the package is installed with these extras.
READY := $(VENV)/.ready
comma := ,

.PHONY: demo test zoo parity setup format bench gpu docs pictures dist clean

demo: $(READY)-train
	$(BIN)/python tools/train.py configs/classification/vmamba-pico_digits.py --work-dir work_dirs/demo

test: $(READY)-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations=10

zoo: $(READY)-profile-mm-medical
	$(BIN)/python tools/model_zoo.py

# The deviations from the official models that the zoo's page shows: minutes.
parity: $(READY)-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile tests/models/test_*_parity.py tests/medical/test_parity.py \
		--record-parity benchmarks/results/$(shell date +%F)_parity_cpu.json

setup: $(READY)-dev

# The library is rebuilt when its sources change; a machine without a compiler gets the package without it.
$(READY)-%: pyproject.toml setup.py constraints.txt $(wildcard kernels/csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "vssm needs Python 3.10 or newer; name one with: make PYTHON=python3.12 ..."; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) \
		|| { echo "no virtual environment could be made; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "Installing PyTorch and the package with [$(subst -,$(comma),$*)] into $(VENV): a few GB, one to two minutes."
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --progress-bar on -c constraints.txt \
		-e '.[$(subst -,$(comma),$*)]'
	@# [mm] brings both builds of OpenCV (docs/decisions/0075); the one that needs no display libraries has to win.
	@! $(BIN)/python -m pip show --quiet opencv-python 2>/dev/null || \
		$(BIN)/python -m pip install --disable-pip-version-check --quiet --force-reinstall --no-deps \
		-c constraints.txt opencv-python-headless
	@touch $@
	@# [dev] holds the extras of all other targets.
	@test $* != dev || touch $(filter-out $@,$(addprefix $(READY)-,train train-mm-data-medical profile profile-mm-medical style docs))

format: $(READY)-style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)-profile
	$(BIN)/python kernels/benchmarks/run.py --threads 2

# With the Python that has PyTorch and Triton: such machines rarely have a network to make an environment from.
gpu:
	$(PYTHON) benchmarks/gpu.py --out $(or $(OUT),work_dirs/gpu) $(if $(WHEELS),--wheels $(WHEELS)) $(if $(ONLY),--only $(ONLY))

docs: $(READY)-docs
	$(BIN)/mkdocs build --strict

# Those of trained models need their runs in work_dirs; it says which are missing.
pictures: $(READY)-train-mm-data-medical
	$(BIN)/python docs/pictures.py

# The wheel is built from the archive, so what the archive lacks is missed here.
dist: $(READY)-dist
	rm -rf dist
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist *.egg-info work_dirs site
