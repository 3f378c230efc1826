# make demo | test | lint | bench: each sets up .venv with the pinned packages first (minutes once, then nothing to do).
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test test-fast lint bench

.venv/installed: requirements.txt
	@echo "== setting up .venv with the packages of requirements.txt"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	@echo "== adding the packages of requirements-dev.txt"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

demo: .venv/installed
	@echo "== fine-tuning tiny-t5 on demo_a1 under three instructions; results in results/demo/"
	OMP_NUM_THREADS=1 $(BIN)/python train_multi_instruction.py --do_train --do_eval --predict_with_generate \
	    --model_name_or_path data/models/tiny-t5 --task_name demo_a1 --template_idx 0 1 2 --max_steps 200 \
	    --eval_strategy steps --eval_steps 50 --save_strategy steps --save_steps 50 \
	    --per_device_train_batch_size 32 --learning_rate 5e-3 --lr_scheduler_type constant \
	    --load_best_model_at_end --metric_for_best_model eval_exact_match --greater_is_better True \
	    --save_name demo --overwrite_output_dir --disable_tqdm True

test: lint
	@echo "== all tests"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

test-fast: .venv/installed-dev
	@echo "== the tests that take less than a minute together"
	$(BIN)/python -m pytest -m "not slow"

lint: .venv/installed-dev
	@echo "== ruff"
	$(BIN)/ruff check .

bench: .venv/installed-dev
	@echo "== training against a bare loop, the cache"
	$(BIN)/python tests/bench_training.py
	@echo "== what a sweep costs per subset beside the training"
	$(BIN)/python tests/bench_sweep.py
