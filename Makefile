PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
WORKERS ?= 2
TIMED := tests/test_page_speed.py

.PHONY: demo test check-real bench small-world notebooks screenshots lint clean

demo: $(STAMP)
	$(BIN)/circuits trace "Fact: Michael Jordan plays the sport of" -o jordan.html
	@echo "open jordan.html in a browser"

# One thread each: the tests' models are too small to share, and threads that wait for one another stall on a busy
# machine. What is held against limits in milliseconds runs alone.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(WORKERS) --dist loadfile --ignore $(TIMED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q $(TIMED)

check-real: $(STAMP)
	$(BIN)/pytest -q -s -m real --timeout 1800

bench: $(STAMP)
	$(BIN)/python benchmarks/bench.py --work build/bench --resume

# The small world's models and transcoders, trained anew: under an hour on two cores.
small-world: $(STAMP)
	$(BIN)/circuits small-world train -o build/small-world
	rm -rf circuits/assets/small-world-*
	cp -r build/small-world/bundle/small-world-* circuits/assets/

# All of them from top to bottom on the small world; what they show is kept in them.
notebooks: $(STAMP)
	$(BIN)/python notebooks/run.py

# The README's pictures, from a trace made now; needs chromium.
screenshots: $(STAMP)
	$(BIN)/python notebooks/screenshots.py

# The type checker sees the folder mapping only in an installed wheel.
lint: $(STAMP)
	$(BIN)/ruff check .
	rm -rf build/typed && $(BIN)/pip install -q --no-deps --no-build-isolation --target build/typed .
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml --python-executable ../../$(BIN)/python \
		-p circuits

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt "setuptools>=77" wheel
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e ".[gemma-270m,serve,notebooks,dev]"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
