#!/bin/sh
# Runs the program kvtile-gpu-check that lies beside this script, about seven minutes on a machine with a GPU, and packs its
# files with a description of the machine.
#
#   ./gpu-check.sh [FOLDER [OPTION of kvtile-gpu-check]...]
#
# The exit code is that of the program: 1 if bytes differ or the driver failed, 2 if there is nothing to run on.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-gpu-check-$(date +%Y-%m-%d-%H%M%S)}
if [ $# -gt 0 ]; then shift; fi
if [ ! -x "$here/kvtile-gpu-check" ]; then
    echo "$here/kvtile-gpu-check is no program; put it beside this script" >&2
    exit 2
fi
mkdir -p "$folder"

# What the program does not write itself. A tool that is missing leaves a line that says so.
machine="$folder/machine.txt"
: >"$machine"
for tool in "uname -srm" lscpu "nvidia-smi -q" "nvidia-smi topo -m"; do
    printf '$ %s\n' "$tool" >>"$machine"
    $tool >>"$machine" 2>&1 || echo "$tool failed, or is not here" >>"$machine"
done

status=0
"$here/kvtile-gpu-check" --out "$folder" "$@" || status=$?
if tar -czf "$folder.tar.gz" -C "$(dirname "$folder")" "$(basename "$folder")"; then
    echo "$folder.tar.gz has all files; nothing was sent anywhere"
else
    echo "tar failed; all files are in $folder" >&2
fi
exit "$status"
