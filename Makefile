# Every target works in a fresh clone, as root or with sudo, a second time, and after a crash.
SHELL := /bin/bash -euo pipefail
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PY ?= python3
TOPOLOGY ?= single_host
NAME ?= $(TOPOLOGY)
LAB_RELEASE ?=

BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
SUDO := $(shell test $$(id -u) = 0 || echo sudo --preserve-env=CAUSEWAY_LAB_CACHE,CAUSEWAY_LAB_MIRROR,CAUSEWAY_LABS_SIDE_BY_SIDE)
LAB = $(SUDO) "$$(command -v $(PY))" molecule/shared/lab.py
INSTANCE = --topology $(TOPOLOGY) --name $(NAME)
INVENTORY = .lab/$(NAME)/inventory
PLAYBOOK = $(BIN)/ansible-playbook --inventory $(INVENTORY)

# What tests on this machine itself need, beside the lab's hosts.
TEST_PACKAGES := chromium curl iproute2 iputils-ping nftables nginx openvpn postgresql wireguard-go wireguard-tools

say = @printf '\n\033[1m%s\033[0m\n' "$(1)"

##@ Setting up
.PHONY: setup
setup: .venv/deploy.stamp .venv/develop.stamp ## install what deploying and developing need into .venv

.PHONY: python
python:
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "needs Python 3.11 or newer; name one with PY=/path/to/python3" >&2; exit 1; }
	@$(PY) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "installing python3-venv"; $(SUDO) apt-get -qq update; $(SUDO) apt-get -qq install -y python3-venv; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		echo "making .venv"; $(PY) -m venv --clear .venv; }

# pip compiles one file after the other, and most of what comes with Ansible are modules for devices that we do not have.
# A file that cannot be compiled, such as one that a package makes others from, is no error.
PIP_INSTALL = $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile
COMPILE = $(BIN)/python -m compileall -qq -j 0 -x '/(ansible_collections|test|tests)/' .venv/lib || true

.venv/deploy.stamp: requirements.txt pyproject.toml | python
	$(call say,Installing Ansible into .venv (about half a minute))
	@$(PIP_INSTALL) --requirement requirements.txt
	@$(COMPILE)
	@touch $@

.venv/develop.stamp: requirements-dev.txt .venv/deploy.stamp | python
	$(call say,Installing the development tools into .venv (about a minute))
	@$(PIP_INSTALL) --requirement requirements-dev.txt
	@$(COMPILE)
	@touch $@

.PHONY: test-packages
test-packages:
	@missing=(); for package in $(TEST_PACKAGES); do \
		dpkg-query --show --showformat='$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || missing+=($$package); \
	done; [ $${#missing[@]} = 0 ] || { echo "installing on this machine: $${missing[*]}"; \
		$(SUDO) apt-get -qq update; \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$${missing[@]}" >/dev/null; }

.PHONY: lock
lock: setup ## pin the newest versions that requirements*.in and pyproject.toml allow
	@compile="$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-header --no-annotate"; \
	$$compile requirements.in --output-file .venv/requirements.txt; \
	$$compile --extra portal --extra node --constraint .venv/requirements.txt \
		pyproject.toml requirements-dev.in --output-file .venv/requirements-dev.txt; \
	{ echo "# Written by \`make lock\` from requirements.in. No hashes: pip takes none beside an editable package."; \
	  cat .venv/requirements.txt; echo "--editable ."; } > requirements.txt; \
	{ echo "# Written by \`make lock\` from requirements-dev.in and the extras of pyproject.toml."; \
	  cat .venv/requirements-dev.txt; } > requirements-dev.txt; \
	$(BIN)/python -m vpn_control.wheels --refresh-locks

##@ The lab
.PHONY: demo
demo: ## one real host with everything on it, and how to log in there
	@$(MAKE) lab TOPOLOGY=single_host NAME=single_host
	@$(LAB) banner --name single_host

.PHONY: lab
lab: .venv/deploy.stamp lab-hosts ## hosts of TOPOLOGY up and converged; safe to repeat
	$(call say,Writing the secrets of this inventory unless they exist)
	@$(PLAYBOOK) playbooks/init_secrets.yml
	$(call say,Deploying $(TOPOLOGY) with playbooks/site.yml)
	@$(PLAYBOOK) playbooks/site.yml
	@$(LAB) finish $(INSTANCE)

.PHONY: lab-hosts
lab-hosts: ## only boot the hosts (LAB_RELEASE=trixie, NAME=... for a second copy)
	@$(LAB) up $(INSTANCE) $(if $(LAB_RELEASE),--release $(LAB_RELEASE))

.PHONY: lab-info
lab-info: ## one JSON object: addresses, accounts, keys
	@$(LAB) info $(INSTANCE)

.PHONY: lab-down
lab-down: ## remove the instance named by TOPOLOGY or NAME, or all when neither is given
	@$(LAB) down $(if $(filter command environment,$(origin TOPOLOGY) $(origin NAME)),$(INSTANCE),--all)

##@ Before a deployment
# What installs Ansible talks, and with JSON=1 stdout is one object.
.PHONY: plan
plan: ## what deploying INVENTORY would do, in human terms: changes, who is cut, capacity (JSON=1)
	@$(MAKE) .venv/deploy.stamp >&2
	@$(BIN)/python -m vpn_control.plan --inventory $(INVENTORY) $(if $(JSON),--json) -- $(ARGS)

##@ Checking
QUICK := $(wildcard tests/unit tests/templates tests/contract)
CHECKS := check-ruff check-format check-types check-lab-types check-yaml check-ansible check-quick

.PHONY: check $(CHECKS)
check: setup ## lint, types and the quick tests, side by side
	@$(MAKE) --jobs=$$(nproc) --output-sync=target --keep-going $(CHECKS)

check-ruff:
	@echo "ruff check"; $(BIN)/ruff check --quiet .

check-format:
	@echo "ruff format"; $(BIN)/ruff format --quiet --check --diff .

check-types:
	@echo "mypy"; $(BIN)/mypy --no-error-summary

check-lab-types:
	@echo "mypy: the lab"; cd molecule/shared && $(CURDIR)/$(BIN)/mypy --no-error-summary --config-file= --strict \
		--python-version 3.11 --cache-dir $(CURDIR)/.mypy_cache/lab lab.py

check-yaml:
	@echo "yamllint"; $(BIN)/yamllint --strict .

check-ansible:
	@echo "ansible-lint"; $(BIN)/ansible-lint --offline -q

check-quick:
	@echo "quick tests"; $(BIN)/pytest --quiet --numprocesses=auto -m "not lab and not slow" \
		$(QUICK)

# These tests make namespaces and bridges. What they write here belongs to the folder's owner again afterwards.
GIVE_BACK = $(SUDO) find . -path ./.lab -prune -o -exec chown --no-dereference --reference=Makefile {} +
AS_ROOT = $(if $(SUDO),trap '$(GIVE_BACK)' EXIT; $(SUDO))

.PHONY: test
test: check test-packages ## everything but the long faults, the end-to-end tests on lab hosts included
	$(call say,Running the tests of portal and agent (about 20 minutes))
	@$(AS_ROOT) $(BIN)/pytest --quiet --durations=25 --durations-min=3 --numprocesses=auto --dist=worksteal -m "not lab" $(filter-out $(QUICK) tests/lab tests/e2e,$(wildcard tests/*[^_.]))
	$(call say,Running the tests of the lab itself (about 3 minutes))
	@$(AS_ROOT) $(BIN)/pytest --durations=5 --tb=short -m "lab and not faults" tests/lab
	$(call say,Running the tests on lab hosts: two topologies at a time (about 50 minutes))
	@CAUSEWAY_LABS_SIDE_BY_SIDE=1 $(MAKE) --jobs=2 --keep-going test-lab-nodes test-lab-portals

# Most of such a test is waiting, so two at a time; each of the two brings up one lab after the other.
LAB_TESTS = $(AS_ROOT) $(BIN)/python -u -m pytest -v -p no:cacheprovider --durations=25 --tb=short

# What makes the halves about as long as each other.
WITH_NODES = tests/e2e/test_fresh_hosts.py tests/e2e/growing tests/e2e/multi_node

# Whole lines at once, each with the name of its half.
.PHONY: test-lab-nodes test-lab-portals
test-lab-nodes test-lab-portals: SHELL = /bin/bash
test-lab-nodes:
	@set -o pipefail; $(LAB_TESTS) -m "lab and not faults" $(WITH_NODES) | sed --unbuffered 's/^/nodes: /'

test-lab-portals:
	@set -o pipefail; $(LAB_TESTS) -m "lab and not faults" tests/e2e/ha_portal $(filter-out $(WITH_NODES),$(wildcard tests/e2e/test_*.py)) | sed --unbuffered 's/^/portals: /'

.PHONY: test-faults
test-faults: setup test-packages ## the faults and updates on lab hosts that take minutes each
	@$(LAB_TESTS) -m faults tests/e2e

.PHONY: bench
bench: setup test-packages ## measure; benchmarks/ says what and how
	@for benchmark in $(patsubst benchmarks/%.py,%,$(filter-out %/__init__.py,$(wildcard benchmarks/*.py))); do \
		printf '\n\033[1m%s\033[0m\n' "$$benchmark"; $(BIN)/python -m benchmarks.$$benchmark; done

##@ Building
.PHONY: wheel
wheel: .venv/deploy.stamp ## our wheel and the locked ones into .wheels/, as deploying does by itself
	@$(BIN)/python -m vpn_control.wheels

.PHONY: docs
docs: setup ## write the generated parts of docs/
	@$(BIN)/python -m vpn_control.variables

.PHONY: screenshots
screenshots: setup test-packages ## pictures of the main pages into docs/images
	@$(BIN)/python -m pytest --quiet tests/browser/screenshots.py

.PHONY: translations
translations: setup ## bring the catalogues of the portal's texts to the state of the sources
	@$(BIN)/python -m vpn_control.translations

.PHONY: help
help: ## this list
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
