# make demo | make test | make lint | make bench; everything is installed into .venv first.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
INSTALLED = $(VENV)/.lima-installed

.PHONY: demo test lint bench install clean

install: $(INSTALLED)

$(INSTALLED): setup.py setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --progress-bar on -c constraints.txt -e '.[ros,dev]'
	touch $@

# DATA=<folder> plays a nuScenes folder or a rosbag2 instead of the simulated street
demo: install
	$(RUN) -m lima_ros.demo --out runs/demo $(if $(DATA),--source $(DATA))

test: install
	$(RUN) -m pytest

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/codespell

bench: install
	$(RUN) -m bench.street
	$(RUN) -m bench.segmentation

clean:
	rm -rf build install log runs *.egg-info
