#!/usr/bin/env bash
# The wheel: built by its one command, installed into environments of its own, and tested there.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
folder="$root/target/ci/wheel"
rm -rf "$folder"
mkdir -p "$folder"

rm -rf target/wheels
python/build "$@"
wheel=$(ls target/wheels/*.whl)
size=$(wc -c <"$wheel")
echo "$(basename "$wheel"): $((size / 1000000)) MB"
if [ "$size" -ge 60000000 ]; then
  echo "the wheel has 60 MB or more" >&2
  exit 1
fi

# Nothing but the wheel and its dependencies; the README's example, without Rust on the path, in less than 30 s.
python3 -m venv "$folder/clean"
"$folder/clean/bin/pip" install --quiet --disable-pip-version-check "$wheel"
sed -n '/^```python$/,/^```$/p' README.md | grep -v '^```' >"$folder/example.py"
mkdir "$folder/empty"
(cd "$folder/empty" && env -i PATH="$folder/clean/bin:/usr/bin:/bin" HOME="$folder/empty" bash -c "time timeout 30 python3 '$folder/example.py'")
if [ -e "$folder/empty/.cache" ]; then
  echo "something was fetched or kept in the cache" >&2
  exit 1
fi

# The tests, with the packages that they hand tables and models to.
python3 -m venv "$folder/tests"
"$folder/tests/bin/pip" install --quiet --disable-pip-version-check "$wheel" -r python/tests/requirements.txt
"$folder/tests/bin/python" -m pytest -q python/tests
(cd "$folder/empty" && "$folder/tests/bin/python" -m mypy --config-file "$root/python/pyproject.toml" -p inductive_counting)
mkdir "$folder/notebook"
OMP_NUM_THREADS=1 "$folder/tests/bin/python" .ci/notebook.py docs/python.ipynb "$folder/notebook"
