# Works on a fresh machine with Python 3.11 or newer, pip and make. `make` alone lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
# Words of `gpvae reproduce` and `gpvae gap`: make reproduce ARGS="--dataset mnist --z-dims 10 20"; three have names.
ARGS ?=
DATASET ?=
METHODS ?=
PRESET ?=
SETS ?= mnist static_mnist omniglot cifar10 celeba svhn
# One thread a process: two OpenMP threads beside another busy process collapse.
OMP_NUM_THREADS ?= 1
OMP_WAIT_POLICY ?= PASSIVE
export OMP_NUM_THREADS OMP_WAIT_POLICY
export PATH := $(if $(filter /%,$(VENV)),$(VENV),$(CURDIR)/$(VENV))/bin:$(PATH)

READY := $(VENV)/.ready
UNPACK := ../shared/data/unpack.py
PARTS := sync notebooks pytest audit smoke docs-check wheel

.PHONY: help setup data data-mnist reproduce gap pages test $(PARTS) mutants faults readme site lab clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), with the versions of constraints.txt; this takes a few minutes, once"
	@start=$$SECONDS; $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'; echo "installed in $$((SECONDS - start)) s"
	@touch $@

setup: $(READY) ## make .venv and install the package with all that it needs

# unpack(sets): those that are not under the data root yet, where the folder of image sets lies beside the checkout
define unpack
	@if [ -f $(UNPACK) ]; then \
	  root=$$(python -c 'from gpvae.data import data_root; print(data_root())'); need=; \
	  for s in $(1); do [ -e "$$root/$$s.npz" ] || need="$$need $$s"; done; \
	  if [ -n "$$need" ]; then mkdir -p "$$root"; part=$$(mktemp -d "$$root/.unpack.XXXXXX"); trap 'rm -rf "$$part"' EXIT; \
	    echo "unpacking$$need into $$root"; python $(UNPACK) "$$part" $$need; mv "$$part"/*.npz "$$root"; fi; \
	fi
endef

data: setup ## unpack the image sets that lie beside the checkout: make data SETS="omniglot cifar10"
	$(call unpack,$(SETS))

data-mnist: setup
	$(call unpack,mnist static_mnist)

WORDS_OF_STUDY = $(if $(PRESET),--study $(PRESET)) $(if $(DATASET),--dataset $(DATASET)) $(if $(METHODS),--methods $(METHODS)) $(ARGS)

reproduce: setup data-mnist ## train, evaluate and write a page into ./results: make reproduce ARGS="--dataset mnist --z-dims 10 20"
	@gpvae reproduce $(WORDS_OF_STUDY)

gap: setup data-mnist ## measure the gaps and write their page into ./results: make gap METHODS="vae gpvae"
	@gpvae gap $(WORDS_OF_STUDY)

pages: setup ## for maintainers: render the committed pages anew, from the committed rows alone
	@python tests/make_pages.py

test: setup data-mnist ## everything below in this order; the tree stays as it was
	@begin=$$SECONDS; before=$$(git status --porcelain 2>/dev/null || true); mkdir -p .make; \
	for part in $(PARTS); do \
	  start=$$SECONDS; printf '\n== %s\n' $$part; $(MAKE) --no-print-directory $$part; echo "== $$part passed in $$((SECONDS - start)) s"; done; \
	after=$$(git status --porcelain 2>/dev/null || true); \
	[ "$$before" = "$$after" ] || { printf 'the checks changed the working tree:\n%s\n' "$$after" >&2; exit 1; }; \
	printf '\n== all parts passed in %s s; pytest said:\n' $$((SECONDS - begin)); tail -n 1 .make/pytest.log

# These look at copies of the committed files, whatever else a user keeps beside them.
COMMITTED := python tests/committed.py

sync: setup ## package, notebooks and README agree, the code is clean, and no module imports what stands above it
	@$(COMMITTED) tests/sync_check.py
	@$(COMMITTED) -m ruff check --quiet nbs tests gpvae/study benchmarks
	@lint-imports --no-cache .importlinter | grep -A99 '^Analyzed'

notebooks: setup ## execute every page, and say how long each takes
	@$(COMMITTED) tests/notebooks_check.py

pytest: setup ## the tests of the code
	@mkdir -p .make; pytest -q -rs --color=no --durations=8 -n 2 --dist worksteal --ignore tests/audit tests | tee .make/pytest.log

audit: setup ## the committed results: checksums, rows, pages that show what the files say
	@$(COMMITTED) -m pytest -q -rs --color=no -p no:cacheprovider tests/audit

mutants: setup ## every mistake of tests/mutants, each noticed by its test: make mutants WORDS="gp_encoder"
	@PYTHONPATH=tests python -m mutants $(WORDS)

faults: setup ## damaged files, killed processes and wrong inputs, all of them; takes about a quarter of an hour
	@for what in damage inputs kills; do PYTHONPATH=tests python -W ignore -m faults $$what; done

smoke: setup ## the result page of two methods on the embedded images, rendered into a temporary folder
	@out=$$(mktemp -d); trap 'rm -rf "$$out"' EXIT; \
	gpvae reproduce --methods vae gpvae --out "$$out" --runs "$$out/runs"; python tests/docs_check.py --page "$$out/digits.ipynb"; test -s "$$out/runs.csv"; test -s "$$out/digits.html"

docs-check: setup ## the site's input: sidebar, references, fences, outputs, paths, sizes
	@$(COMMITTED) tests/docs_check.py

wheel: setup ## the package as installed, without the tools that wrote it
	@$(COMMITTED) tests/wheel_check.py

readme: setup ## write README.md from nbs/index.ipynb
	@python tests/make_readme.py

site: ## write the site into _docs, with the Quarto on PATH
	@$(PYTHON) tests/make_site.py --check
	@$(MAKE) --no-print-directory setup
	@python tests/make_site.py

lab: setup ## open the notebooks in JupyterLab; `nbdev_install_hooks`, once, keeps what Run All changes out of git
	@echo "Run All changes execution counts and times in a notebook: nbdev_clean removes them, nbdev_install_hooks does so on every save"
	@jupyter lab nbs

clean: ## remove what the targets made, the environment too
	rm -rf $(VENV) .make .pytest_cache _proc _docs build dist gpvae.egg-info nbs/nbdev.yml
