# The verbs. Each first makes .venv, or brings it up to date, from requirements.lock.

PYTHON ?= $(shell for python in python3.11 python3 python3.12; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
OUT := .

.PHONY: help demo test bench lint protos lock

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' Makefile

demo: .venv/.ready ## a listening world, trained, published, served; prints a Home (ONCE=1: then exits)
	$(BIN)/mantel demo $(if $(ONCE),--once)

test: .venv/.ready ## all tests, on two cores (ARGS="-k home": some, on one)
	$(BIN)/pytest $(or $(ARGS),-n 2 --dist loadfile)

bench: .venv/.ready ## pages against what gRPC costs by itself and against a twin (ARGS="--quick": in 3 minutes)
	$(BIN)/mantel bench $(ARGS)

lint: .venv/.ready ## style, format, types, contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint

protos: .venv/.ready ## generated code and stubs, beside the contract
	PATH="$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I . --python_out=$(OUT) --grpc_python_out=$(OUT) \
		--mypy_out=$(OUT) --mypy_grpc_out=$(OUT) protos/*/v1/*.proto

lock: .venv/.ready ## requirements.lock from pyproject.toml (UPGRADE=1: newest versions)
	$(BIN)/uv pip compile pyproject.toml --group dev --group bench --universal --fork-strategy fewest --only-binary :all: \
		--generate-hashes --custom-compile-command "make lock" --quiet --output-file requirements.lock $(if $(UPGRADE),--upgrade)

.venv/.ready: requirements.lock pyproject.toml
	@$(or $(PYTHON),$(error Mantel needs Python 3.11 or 3.12: install one, or name it with PYTHON=)) .ci/bootstrap.py
