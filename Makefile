# make run    five stages; DFT=3: judges the 3 best by DFT        make test       installs what it needs, lints, tests
# make retrain   stages 1 to 3 from the embedded data       make test-long  all tests, 50 kills a stage
# make dimenet   stage 1 alone; HOSTS=DIR for further hosts make lint       formats
# make nulls     unguided, reseeded, filtered and real held-out sets beside those of the run
# make gates     confusion table of the 2D gate
# make benchmark-generator   what the generator draws beside baseline and ceiling; DB=c2db.db for real layers; QUICK=1
# make baselines keeps what was computed for the model-free baselines
# make study     guidance against its baselines
# make dft       GPAW into .venv, which nothing else needs  make dft-data   HOURS=1 more of the DFT data, and its tables
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS := 1

WEIGHTS := models/weights
RETRAINED := models/weights/embedded
LAYERS := data/processed_layers
HOSTS ?=
RIGID := $(foreach folder,data $(HOSTS),$(foreach split,train val test,$(folder)/her2d_h_$(split).lmdb))
GENERATED := $(foreach split,train val test,data/her2d_h_generated_$(split).lmdb)
RELAXED = $(foreach split,train val test,data/her2d_h_relaxed_$(split).lmdb) $(GENERATED)
SEEDS := 0 1 2
DIMENET := $(RETRAINED)
MEMBERS = $(DIMENET)/members
ADAPT := --epochs 12 --lr 5e-4
NUM ?= 24
DFT ?= 0

# What was computed for the two sets that never change; a row counts while structure, code and settings are its own.
SCORED := results/published/baselines

.PHONY: baselines run test test-long retrain dimenet install data nulls benchmark-generator study gates lint dft dft-data

install: .venv/installed
.venv/installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps mattersim==1.2.3
	touch $@

run: install
	@echo "[1/5] pretrain_dimenet.py"
	@if [ -f $(WEIGHTS)/dimenet.pt ]; then echo "taking the shipped weights $(WEIGHTS)/dimenet.pt"; else $(MAKE) dimenet DIMENET=$(WEIGHTS); fi
	@echo "[2/5] material_dataset.py"
	@if [ -f $(LAYERS)/processed/train.pt ]; then echo "taking the graphs in $(LAYERS)"; \
	else $(BIN)/python material_dataset.py --db data/her2d.db --dimenet $(WEIGHTS)/dimenet.pt --out $(LAYERS) --resume; fi
	@echo "[3/5] optimization.py"
	@if [ -f $(WEIGHTS)/best_diffusion_model.pth ]; then echo "taking the shipped weights $(WEIGHTS)/best_diffusion_model.pth and their loss curve"; \
	  $(BIN)/python optimization.py --plot results/published/best_diffusion_model.csv; \
	else $(BIN)/python optimization.py --data $(LAYERS) --out $(WEIGHTS)/best_diffusion_model.pth; fi
	@echo "[4/5] structure_generator.py"
	$(BIN)/python structure_generator.py --checkpoint $(WEIGHTS)/best_diffusion_model.pth --num $(NUM) --seed 0 --out results/generated_cifs
	@echo "[5/5] evaluate_external.py and test.py"
	@mkdir -p results_external/substitution_scores
	@test -e results_external/relaxed.jsonl || cp $(SCORED)/random_baseline/*.jsonl results_external/
	@test -e results_external/substitution_scores/relaxed.jsonl || cp $(SCORED)/substitution/*.jsonl results_external/substitution_scores/
	$(BIN)/python evaluate_external.py --cifs results_external/random_baseline --out results_external --resume --compare
	$(BIN)/python evaluate_external.py --cifs results_external/substitution --out results_external/substitution_scores --resume --compare
	$(BIN)/python test.py --cifs results/generated_cifs --out results --resume --dft $(DFT)

# after a change of models/crystals or models/physics: make run in a fresh clone, then this, or every run computes them anew
baselines:
	mkdir -p $(SCORED)/random_baseline $(SCORED)/substitution
	cp results_external/*.jsonl $(SCORED)/random_baseline
	cp results_external/substitution_scores/*.jsonl $(SCORED)/substitution

retrain: install
	@echo "[1/3] pretrain_dimenet.py"
	$(MAKE) dimenet DIMENET=$(RETRAINED) GENERATED=
	@echo "[2/3] material_dataset.py"
	$(BIN)/python material_dataset.py --db data/her2d.db --dimenet $(RETRAINED)/dimenet.pt --out $(RETRAINED)/layers --synthesis-out $(RETRAINED)/synthesis.pt
	@echo "[3/3] optimization.py"
	$(BIN)/python optimization.py --data $(RETRAINED)/layers --out $(RETRAINED)/best_diffusion_model.pth --figure $(RETRAINED)/loss_curve.png

dimenet: install
	for seed in $(SEEDS); do \
	  $(BIN)/python pretrain_dimenet.py --lmdb $(RIGID) --seed $$seed --out $(MEMBERS)/rigid_$$seed.pt --resume && \
	  $(BIN)/python pretrain_dimenet.py --lmdb $(RELAXED) --seed $$seed --init $(MEMBERS)/rigid_$$seed.pt $(ADAPT) --out $(MEMBERS)/relaxed_$$seed.pt --resume || exit 1; done
	$(BIN)/python pretrain_dimenet.py --lmdb $(RIGID) $(RELAXED) --combine $(SEEDS:%=$(MEMBERS)/relaxed_%.pt) --out $(DIMENET)/dimenet.pt

data: install
	$(BIN)/python -m data.build

no-guide := --gradient-scale 0 --cfg-scale 0 --proposals 1 --best-of 1
unguided := $(no-guide) --seed 0
reseeded := $(no-guide) --seed 7
# as many function evaluations as the default: 3 draws of 32 proposals and 50 guided updates each
filtered := --gradient-scale 0 --cfg-scale 0 --proposals 1 --best-of 21 --seed 7
held-out := --method held-out
nulls: install $(foreach name,unguided reseeded filtered held-out,results_external/$(name)_scores/metrics.csv)
	$(BIN)/python test.py --cifs results/generated_cifs --out results --resume --compare results_external/metrics.csv results_external/*_scores/metrics.csv
results_external/%_scores/metrics.csv:
	$(BIN)/python structure_generator.py --num $(NUM) $($*) --out results_external/$*
	$(BIN)/python evaluate_external.py --cifs results_external/$* --out results_external/$*_scores --resume --compare

DB ?= data/her2d.db
benchmark-generator: install
	$(BIN)/python -m benchmarks.generator --db $(DB) $(if $(QUICK),--quick) --out results/benchmark_generator

study: install
	$(BIN)/python -m benchmarks.guidance --out results/study

gates: install
	$(BIN)/python -m benchmarks.gates

# GPAW is compiled against libxc, FFTW and a BLAS, with one process a host and so without MPI.
GPAW := gpaw==26.7.0 gpaw-data==1.2.1
DFT_LIBRARIES := libxc-dev libopenblas-dev libfftw3-dev
dft: install
	@$(BIN)/python -c "import gpaw" 2>/dev/null || { \
	  dpkg -s $(DFT_LIBRARIES) >/dev/null 2>&1 || { apt-get update -q && apt-get install -y -q $(DFT_LIBRARIES); } >/dev/null 2>&1 || \
	    echo "apt could not install $(DFT_LIBRARIES): if they are not there by other means, the next step fails. conda-forge's gpaw package works as well"; \
	  printf "fftw = True\nmpi = False\ncompiler = 'gcc'\nlibraries = ['xc', 'fftw3', 'openblas']\n" > .venv/siteconfig.py && \
	  GPAW_CONFIG=$(CURDIR)/.venv/siteconfig.py $(BIN)/pip install --quiet --disable-pip-version-check $(GPAW) && $(BIN)/python -c "import gpaw"; }

HOURS ?= 1
dft-data: dft
	$(BIN)/python -m data.build.dft --hours $(HOURS)
	$(BIN)/python -m data.build.dft_report --potentials sevennet sevennet-0 chgnet

test: install
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-long: install
	$(BIN)/python -m pytest -n 2 --dist loadfile -m ""
	$(BIN)/python -m tests.robustness --long

lint: install
	$(BIN)/python -m ruff format .
