.PHONY: protos
protos:
	PATH="$(CURDIR)/.venv/bin:$$PATH" python -m grpc_tools.protoc -I . --python_out=. --grpc_python_out=. --mypy_out=. --mypy_grpc_out=. protos/*/v1/*.proto
