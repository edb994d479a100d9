# One virtual environment for everything; PYTHON must be 3.11, 3.12 or 3.13.
PYTHON ?= python3
VENV ?= .venv
# The CPU build of torch comes from PyTorch's own index on most machines:
#   make test TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
WORKERS ?= 2
BIN := $(VENV)/bin

# Where the four IDX files of Fashion-MNIST are; Debian's dataset-fashion-mnist puts them here.
FASHION_MNIST ?= /usr/share/datasets/fashion-mnist
# What `make train` runs on it: fashion_mnist_t2t is the other one.
RECIPE ?= fashion_mnist

.PHONY: setup demo train test slow gpu lint format clean

setup: $(VENV)/.ready

# timm wants torchvision, whose wheel asks for a CUDA build of torch: installed without its dependencies
$(VENV)/.ready: pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --no-deps torchvision==0.28.0
	$(BIN)/pip install --quiet --editable ".[test,lint]"
	touch $@

demo: setup
	$(BIN)/vit-flax compare --steps 50 --html vit_flax_report.html

# two CPU devices share a step better than two threads of one
train: setup
	XLA_FLAGS=--xla_force_host_platform_device_count=2 \
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

clean:
	rm -rf $(VENV) vit_flax_report.html
