# One virtual environment for everything; PYTHON must be 3.11, 3.12 or 3.13.
PYTHON ?= python3
VENV ?= .venv
# The CPU build of torch comes from PyTorch's own index on most machines:
#   make test TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
WORKERS ?= 2
# the Pythons of `make compat`; 3.14, where it is installed, works as well
COMPAT ?= 3.11 3.12 3.13
BIN := $(VENV)/bin

# Where the four IDX files of Fashion-MNIST are; Debian's dataset-fashion-mnist puts them here.
FASHION_MNIST ?= /usr/share/datasets/fashion-mnist
# What `make train` runs on it: fashion_mnist_t2t is the other one.
RECIPE ?= fashion_mnist

.PHONY: setup demo train test slow gpu lint format docs docs-check dist released compat workflows clean

setup: $(VENV)/.ready

# timm wants torchvision, whose wheel asks for a CUDA build of torch, and jax2onnx wants an older Orbax: both are
# installed without their dependencies
$(VENV)/.ready: pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --no-deps torchvision==0.28.0
	$(BIN)/pip install --quiet --editable ".[test,lint]"
	$(BIN)/pip install --quiet --no-deps jax2onnx==0.17.1
	touch $@

demo: setup
	$(BIN)/vit-flax compare --steps 50 --html vit_flax_report.html

# two CPU devices share a step better than two threads of one; XLA ends a process whose devices waited 40 seconds for each
# other, which happens where the machine has other work
train: setup
	XLA_FLAGS="--xla_force_host_platform_device_count=2 --xla_cpu_collective_call_terminate_timeout_seconds=3600" \
	$(BIN)/vit-flax train $(RECIPE) --set folder=$(FASHION_MNIST) --out runs/$(RECIPE)

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

slow: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m slow

# On a machine with an NVIDIA GPU: parity on it, races, predicted against measured steps. TORCH must be a build with CUDA,
# as torch of PyPI is; equimo is raced against.
gpu:
	@nvidia-smi -L >/dev/null 2>&1 || \
	{ echo "make gpu: nvidia-smi finds no GPU here; run it on a machine that has one" >&2; exit 2; }
	$(MAKE) setup
	$(BIN)/pip install --quiet --editable ".[cuda]"
	$(BIN)/pip install --quiet --no-deps equimo equinox
	$(BIN)/python -m benchmarks.gpu

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site, every cell run, warnings are errors; the article's page also as a notebook with its outputs.
docs: setup
	$(BIN)/pip install --quiet --editable ".[docs]"
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs docs/_build/html

# Every page in Chromium at 1280 and 375 pixels, light and dark.
docs-check: docs
	$(BIN)/pip install --quiet --editable ".[docs-check]"
	$(BIN)/python docs/check_pages.py docs/_build/html

# The wheel and the sdist, built twice: the same bytes, no test in the wheel, a README that renders.
dist: setup
	$(BIN)/pip install --quiet --editable ".[release]"
	rm -rf dist
	for copy in . again; do \
	  SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build --outdir dist/$$copy . >/dev/null || exit 1; done
	for file in dist/*.whl dist/*.gz; do cmp $$file dist/again/$$(basename $$file) || exit 1; done
	rm -r dist/again
	! $(BIN)/python -m zipfile --list dist/*.whl | grep _test.py
	$(BIN)/twine check --strict dist/*

# The tests that need no torch, with the newest of everything, on every Python; and the wheel alone.
compat: $(COMPAT:%=compat-%)

compat-%:
	rm -rf .compat/$*
	python$* -m venv .compat/$*
	.compat/$*/bin/pip install --quiet --upgrade pip
	.compat/$*/bin/pip wheel --quiet --no-deps --wheel-dir .compat/$*/wheel .
	.compat/$*/bin/pip install --quiet .compat/$*/wheel/*.whl
	cd .compat && $*/bin/python -m vit_flax --version
	.compat/$*/bin/pip install --quiet --upgrade --editable ".[train,images,hub,datasets,text]" flatbuffers hypothesis pytest pytest-xdist scipy libtpu beartype
	.compat/$*/bin/python -m pytest vit_flax -n $(WORKERS) --dist worksteal

# A tag must be the version that the package says; then everything that a release must pass.
released: setup
	$(BIN)/python -c "import sys, vit_flax; sys.exit(sys.argv[1] != f'v{vit_flax.__version__}' and \
	  f'the tag {sys.argv[1]} is not v{vit_flax.__version__}, what vit_flax/__init__.py says')" $(TAG)
	grep -q "^## \[$(TAG:v%=%)\]" CHANGELOG.md || { echo "CHANGELOG.md has no section [$(TAG:v%=%)]" >&2; exit 1; }
	$(MAKE) lint test dist

# .github/workflows by two linters: GitHub's schema, and what is unsafe
workflows: setup
	$(BIN)/pip install --quiet check-jsonschema zizmor
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/zizmor --offline --quiet .github/workflows

clean:
	rm -rf $(VENV) .compat dist docs/_build docs/generated vit_flax_report.html
