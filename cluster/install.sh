#!/bin/sh
# Installs mindseye into the Python environment whose pip comes first in PATH, as the pinned versions of constraints.txt
# in this folder:
#   install.sh gpu|cpu WHEEL-OR-CHECKOUT
set -eu
variant=$1 source=$2
case $variant in
  gpu) extras=gpu,redis ;;
  cpu) extras=redis ;;
  *) echo "install.sh: $variant is neither gpu nor cpu" >&2; exit 2 ;;
esac
pip install --constraint constraints.txt "$source[$extras]"
# A newer build of the same version number would otherwise not be installed over an older one.
pip install --no-deps --force-reinstall "$source"
if [ "$variant" = gpu ]; then
  # Both builds of FAISS are the module faiss, and have overwritten each other's files.
  pip uninstall --yes faiss-cpu faiss-gpu
  pip install --no-deps --constraint constraints.txt faiss-gpu
fi
