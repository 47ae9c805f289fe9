# make demo | make tutorial | make test | make lint | make bench; everything is installed into .venv first.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
INSTALLED = $(VENV)/.lima-installed

.PHONY: demo tutorial test lint bench install clean

install: $(INSTALLED)

$(INSTALLED): setup.py setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --progress-bar on -c constraints.txt -e '.[ros,dev]'
	touch $@

# DATA=<folder> plays a nuScenes folder or a rosbag2 instead of the simulated street
demo: install
	$(RUN) -m lima_ros.demo --out runs/demo $(if $(DATA),--source $(DATA))

# TEACHER=<file> are the weights of DINOv2 ViT-S; without it they are downloaded; TEACHER=random needs nothing
tutorial: install
	$(RUN) -m lima_ros.tutorial --out runs/tutorial $(if $(TEACHER),--teacher $(TEACHER))

# two processes for what needs no other process; nodes and DDS get the machine for themselves
test: install
	$(RUN) -m pytest -n 2 --dist loadfile test/core test/cuda
	$(RUN) -m pytest test/ros test/system

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/codespell

bench: install
	$(RUN) -m bench.street
	$(RUN) -m bench.segmentation
	$(RUN) -m bench.recording

clean:
	rm -rf build install log runs *.egg-info
