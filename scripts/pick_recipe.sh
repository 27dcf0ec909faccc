#!/usr/bin/env bash
# Which recipe `make NAME` runs on this machine.      pick_recipe.sh NAME          prints its path
#                                                     pick_recipe.sh NAME --why R  says in a line why it is R
set -u
full=recipes/$1.yaml tiny=recipes/tiny/$1.yaml
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)

# The models that the full recipe and those before it start from, and the first one of them that is not here.
recipes=$full recipe=$full
while recipe=$(sed -n 's/^after: *//p' "$recipe") && [ -n "$recipe" ]; do recipes+=" $recipe"; done
models=$(sed -n 's/^ *model: *\([^$ #][^ #]*\).*/\1/p' $recipes | sort -u)
hub=${HF_HUB_CACHE:-${HF_HOME:-$HOME/.cache/huggingface}/hub}
missing=
for model in $models; do
  [ -d "$model" ] || [ -d "$hub/models--${model//\//--}" ] || missing=${missing:-$model}
done

if [ -z "$gpu" ]; then
  pick=$tiny why="there is no NVIDIA GPU"
elif [ -z "$missing" ]; then
  pick=$full why="there is a GPU ($gpu) and what it starts from is here (${models//$'\n'/, })"
elif [ "${HF_HUB_OFFLINE:-0}" = 0 ] && timeout 2 bash -c ': </dev/tcp/huggingface.co/443' 2>/dev/null; then
  pick=$full why="there is a GPU ($gpu) and the hub can be reached"
else
  pick=$tiny why="there is a GPU ($gpu), but $missing is not here and the hub cannot be reached"
fi

if [ "${2:-}" != --why ]; then
  echo "$pick"
elif [ "$3" = "$pick" ]; then
  echo "Running $pick, since $why."
else
  echo "Running $3, as asked (the pick for this machine is $pick, since $why)."
fi
