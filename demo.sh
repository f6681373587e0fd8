#!/usr/bin/env bash
# The main job from end to end on cars that the project draws itself: render, train on some models
# of car, search and measure among models never seen in training, serve. Run by `make demo`.
#   --no-serve   end instead of serving
set -euo pipefail
cd "$(dirname "$0")"

serve=yes
for argument in "$@"; do
    case "$argument" in
        --no-serve) serve=no ;;
        *) echo "demo.sh: unknown argument $argument (expected: --no-serve)" >&2; exit 2 ;;
    esac
done

step() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() { printf '\033[2m$ %s\033[0m\n' "$*" >&2; "$@"; }

# Made by an earlier demo, and nothing else lives there.
rm -rf demo
mkdir demo

step "1/6  Draw 40 models of car, 30 photos each: 20 to learn from, 20 never seen in training"
run dscl data render --out demo/cars --classes 40 --per-class 30 --seed 0

step "2/6  How well does an untrained network find the same model among the 20 unseen ones?"
run dscl export --backbone small_cnn --weights none --whiten-on demo/cars/train --out demo/untrained
run dscl index build --model demo/untrained --images demo/cars/test --gallery demo/gallery-untrained
run dscl evaluate --gallery demo/gallery-untrained --json > demo/before.json

step "3/6  Train with DSCL on the other 20"
run dscl train --preset demo --data demo/cars --no-baseline --out demo/run

step "4/6  Index the unseen cars with the trained model, and measure again"
run dscl index build --model demo/run/model --images demo/cars/test --gallery demo/gallery
run dscl evaluate --gallery demo/gallery --json > demo/after.json
python - <<'PY'
import json

before, after = (json.load(open(f"demo/{name}.json")) for name in ("before", "after"))
print(f"\n  {'':<14}{'before training':>16}{'after':>10}")
for k in before["recall"]:
    b, a = before["recall"][k], after["recall"][k]
    print(f"  {'recall@' + k:<14}{100 * b:>14.1f} %{100 * a:>8.1f} %")
print(f"  {after['queries']} photos of 20 models of car, none of them seen in training")
PY

step "5/6  Search: the cars nearest to one photo"
query=$(find demo/cars/test -name '000.jpg' | sort | head -1)
run dscl search --gallery demo/gallery -k 5 "$query"

if [ "$serve" = no ]; then
    step "6/6  Not served (--no-serve). Serve with: make serve GALLERY=demo/gallery"
    exit 0
fi
step "6/6  Serve: open the address below, drop a photo from demo/cars/test on the page (Ctrl-C ends)"
run dscl serve --gallery demo/gallery --next-port
