"""Executes a notebook in the folder of some runs; an error in it is an error here.

    python notebook.py NOTEBOOK FOLDER
"""

import os
import sys
from pathlib import Path

import ipykernel
import nbformat
from nbclient import NotebookClient

path, folder = map(Path, sys.argv[1:])
# The kernel's description lies beside the packages, wherever those were installed.
os.environ["JUPYTER_PATH"] = str(Path(ipykernel.__file__).parent.parent / "share/jupyter")
notebook = nbformat.read(path, as_version=4)
NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
pictures = sum("image/png" in output.get("data", {}) for output in outputs)
tables = sum("text/html" in output.get("data", {}) for output in outputs)
assert pictures >= 2 and tables >= 3, (pictures, tables)
print(f"{path.name}: executed, {tables} tables, {pictures} figures")
