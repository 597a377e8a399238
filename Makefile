# Moorage's one door for people: everything below works on a bare Linux with Python 3.11 and make.
#   make up [MODEL=/path/to/checkpoint]   install what is missing and run the whole of Moorage until Ctrl-C
#   make demo                             beside it: provision an endpoint, call it, show what it cost
#   make stop · make doctor               stop what `make up` started · check each part
#   make test · make test-fast            linters, types and all tests · the same without services, under a minute
#   make soak · make bench-NAME           the long loops · one program of bench/
#   make cluster · make test-cluster     a Kubernetes to try it on · tests on it (the first builds it, 10 minutes)
#   make engine · make lock               install vLLM for CPUs alone · compile the locks again

SHELL := /bin/bash
MANAGE := .venv/bin/python manage.py

.PHONY: up demo stop doctor test test-fast test-cluster cluster soak engine lock base dev
.SILENT:

up: base
	scripts/install engine
	scripts/install model
	$(if $(MODEL),MOORAGE_LOCAL_MODEL="$(abspath $(MODEL))") exec $(MANAGE) up

demo: base
	exec $(MANAGE) demo

stop: base
	exec $(MANAGE) down

doctor: base
	exec $(MANAGE) doctor

test: dev
	scripts/install engine
	scripts/install model
	scripts/check all

test-fast: dev
	scripts/check fast

test-cluster: dev
	scripts/install engine
	scripts/install model
	scripts/check cluster

cluster: dev
	exec scripts/cluster

soak: dev
	scripts/install engine
	scripts/install model
	scripts/check soak

bench-%: bench/%.py dev
	exec .venv/bin/python $<

engine:
	scripts/install engine
	scripts/install model

lock:
	scripts/lock

base dev:
	scripts/install $@
	scripts/install messages
