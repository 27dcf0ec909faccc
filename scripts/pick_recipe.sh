#!/usr/bin/env bash
# Which recipe `make zero` runs on this machine.      pick_recipe.sh          prints its path
#                                                     pick_recipe.sh --why R  says in a line why it is R
set -u
full=recipes/zero.yaml tiny=recipes/tiny/zero.yaml
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)
model=$(sed -n 's/^ *model: *//p' $full | head -n 1)
cached=${HF_HUB_CACHE:-${HF_HOME:-$HOME/.cache/huggingface}/hub}/models--${model//\//--}

if [ -z "$gpu" ]; then
  pick=$tiny why="there is no NVIDIA GPU"
elif [ -d "$model" ] || [ -d "$cached" ]; then
  pick=$full why="there is a GPU ($gpu) and $model is here"
elif [ "${HF_HUB_OFFLINE:-0}" = 0 ] && timeout 2 bash -c ': </dev/tcp/huggingface.co/443' 2>/dev/null; then
  pick=$full why="there is a GPU ($gpu) and the hub can be reached"
else
  pick=$tiny why="there is a GPU ($gpu), but $model is not here and the hub cannot be reached"
fi

if [ "${1:-}" != --why ]; then
  echo "$pick"
elif [ "$2" = "$pick" ]; then
  echo "Running $pick, since $why."
else
  echo "Running $2, as asked (the pick for this machine is $pick, since $why)."
fi
