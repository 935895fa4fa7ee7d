#!/usr/bin/env bash
# Put onnxruntime's C++ headers and library into onnxruntime/ beside this script, without a compiler's work.
#
# The library is the one of the Python package (its PYTHON is the argument, default python3), so that C++ and
# Python run the same release. The headers come from Debian 13's libonnxruntime-dev, of an earlier release: a
# newer library serves them, because onnxruntime's C API only grows. Needs apt (Debian, Ubuntu) and the network;
# elsewhere unpack a release of onnxruntime instead and name it with -DONNXRUNTIME_ROOT.
set -euo pipefail
python=${1:-python3}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
library=$("$python" -c 'import glob, importlib.util, os
package = importlib.util.find_spec("onnxruntime").submodule_search_locations[0]
print(*glob.glob(os.path.join(package, "capi", "libonnxruntime.so.*")))')
[ -n "$library" ] || { echo "error: $python has no onnxruntime with a libonnxruntime.so: pip install onnxruntime" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/package"
chmod -R a+rwX "$work"
# A list of our own: the machine's sources stay as they are.
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main" > "$work/trixie.list"
options=(-qq -o Dir::Etc::sourcelist="$work/trixie.list" -o Dir::Etc::sourceparts=- -o Dir::State::Lists="$work/lists"
         -o Dir::Cache="$work/cache")
apt-get "${options[@]}" update
(cd "$work" && apt-get "${options[@]}" download libonnxruntime-dev)
dpkg -x "$work"/libonnxruntime-dev_*.deb "$work/package"

rm -rf "$here/onnxruntime"
mkdir -p "$here/onnxruntime/lib"
cp -r "$work/package/usr/include/onnxruntime" "$here/onnxruntime/include"
cp "$library" "$here/onnxruntime/lib/libonnxruntime.so.1"
ln -s libonnxruntime.so.1 "$here/onnxruntime/lib/libonnxruntime.so"
echo "$here/onnxruntime: headers of $(ls "$work"/*.deb | xargs -n1 basename), library of $(basename "$library")"
