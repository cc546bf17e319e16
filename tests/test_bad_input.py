"""Whatever is asked wrongly gets one line that names it, exit code 2, no traceback, and leaves nothing behind.

.venv/bin/python -m pytest tests/test_bad_input.py
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import httpx
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

import compare
import evaluate
import generate
import train
from harness.messages import BadInput
from harness.run_options import make_run_parser, parse_explicit, parse_run

MAIN = {
    **{"train": train.main, "compare": compare.main, "generate": generate.main, "evaluate": evaluate.main},
    **{name: import_module(f"experiments.{name}").main for name in ("lengths", "pairs", "publish", "sweeps")},
}

LONG = "é" * 200  # a name that is short enough in characters, and not in bytes

# script | flags | what the line must say: first what is wrong, by flag or file and value; last what would do
TABLE = r"""
train | --model.position rop                 | --model.position; 'rop'; did you mean rope
train | --model.position sinusodal           | --model.position; 'sinusodal'; did you mean sinusoidal
train | --model.position ''                  | --model.position; ''; rope
train | --model.position null                | --model.position; none, sinusoidal
train | --model.positon rope                 | --model.positon; did you mean --model.position
train | --modl.position rope                 | --modl.position; did you mean --model.position
train | --steps 5                            | --steps; did you mean --run.steps
train | --run.step 5                         | --run.step; did you mean --run.steps
train | --run.lerning_rate 1                 | --run.lerning_rate; did you mean --run.learning_rate
train | --run.resume perhaps                 | --run.resume; perhaps; bool
train | --run.resume true --run.overwrite true | run.resume true; run.overwrite true; choose one
train | --run.resume true --run.out foreign  | --run.out foreign; other things
train | --run.resume true --run.out tiny.txt | --run.out tiny.txt; a file
train | --run.resume true --run.out rope     | rope; run.steps 40, not 4; learning_rate 0.01; --run.init_from rope
train | --run.resume true --run.out unfinished --run.steps 40 | unfinished; run.learning_rate 0.01, not 0.003
train | --run.resume true --run.out unfinished --model.rope.base 500 | base 10000.0, not 500.0; give what it was
train | --run.resume true --run.out unfinished --data.tokenizer bpe | data.tokenizer bytes, not bpe; give what it was
train | --run.resume true --run.out unfinished --run.init_from rope --run.steps 40 | None, not rope; give what it was
train | --run.resume true --run.out rope --run.init_from rope | --run.out rope; --run.init_from
train | --run.resume true --run.out damaged_config | damaged_config; config.yaml is damaged
train | --run.save_every 0                   | --run.save_every 0; at least 1
train | --run.save_every often               | --run.save_every; often; int
train | --run.on_nan halt                    | --run.on_nan; halt; stop, skip
train | --run.on_nan ski                     | --run.on_nan; ski; did you mean skip
train | -x                                   | -x; --help
train | stray                                | stray; --help
train | --run.steps                          | --run.steps; --help
train | --run.steps five                     | --run.steps; five; int
train | --run.steps 2.5                      | --run.steps; 2.5; int
train | --run.steps 1e3                      | --run.steps; 1000.0; int
train | --run.steps true                     | --run.steps; int
train | --run.steps null                     | --run.steps; int
train | --run.steps ''                       | --run.steps; int
train | --run.steps 0                        | --run.steps 0; at least 1
train | --run.steps -1                       | --run.steps -1; at least 1
train | --run.steps 99999999999999999999999  | --run.steps 99999999999999999999999; at most 1,000,000,000,000
train | --run.batch_size 0                   | --run.batch_size 0; at least 1
train | --run.batch_size -4                  | --run.batch_size -4; at least 1
train | --run.micro_batch_size 0             | --run.micro_batch_size 0; at least 1
train | --run.micro_batch_size 3             | --run.micro_batch_size 3; run.batch_size 4
train | --run.micro_batch_size many          | --run.micro_batch_size; many; int
train | --run.eval_every 0                   | --run.eval_every 0; at least 1
train | --run.eval_windows 0                 | --run.eval_windows 0; at least 1
train | --run.threads 0                      | --run.threads 0; at least 1
train | --run.seed -1                        | --run.seed -1; at least 0
train | --run.seed 99999999999999999999999   | --run.seed; below 9,223,372,036,854,775,808
train | --run.learning_rate fast             | --run.learning_rate; fast; float
train | --run.learning_rate ''               | --run.learning_rate; float
train | --run.learning_rate 0                | --run.learning_rate 0; above 0
train | --run.learning_rate -0.1             | --run.learning_rate -0.1; above 0
train | --run.learning_rate nan              | --run.learning_rate; nan
train | --run.learning_rate inf              | --run.learning_rate; inf
train | --run.learning_rate 1e400            | --run.learning_rate; inf
train | --run.learning_rate .nan             | --run.learning_rate; nan
train | --run.learning_rate .inf             | --run.learning_rate; inf
train | --run.final_rate -1                  | --run.final_rate -1; at least 0 and at most 1
train | --run.final_rate .nan                | --run.final_rate nan; at least 0 and at most 1
train | --run.warmup 2                       | --run.warmup 2; at least 0 and at most 1
train | --run.warmup .nan                    | --run.warmup nan; at least 0 and at most 1
train | --run.beta1 1                        | --run.beta1 1; at least 0 and below 1
train | --run.beta2 -0.5                     | --run.beta2 -0.5; at least 0 and below 1
train | --run.weight_decay -1                | --run.weight_decay -1; at least 0
train | --run.weight_decay .nan              | --run.weight_decay nan; at least 0
train | --run.grad_clip 0                    | --run.grad_clip 0; above 0
train | --run.grad_clip .nan                 | --run.grad_clip nan; above 0
train | --run.precision fp16                 | --run.precision; fp16; auto, fp32, bf16
train | --run.precision bf61                 | --run.precision; bf61; did you mean bf16
train | --run.device tpu                     | --run.device; tpu; cuda
train | --run.device cuda                    | --run.device cuda; not on this machine; cpu
train | --run.compile maybe                  | --run.compile; maybe; bool
train | --run.compile                        | --run.compile; --help
train | --run.overwrite yess                 | --run.overwrite; yess; bool
train | --run.wandb ofline                   | --run.wandb; ofline; did you mean offline
train | --run.wandb true                     | --run.wandb; true; offline
train | --run.name ''                        | --run.name ''; --run.out takes a path
train | --run.name a/b                       | --run.name 'a/b'; --run.out
train | --run.name .. --run.out null         | --run.name '..'; --run.out takes a path
train | --run.out ''                         | --run.out; must name a folder
train | --run.out tiny.txt                   | --run.out tiny.txt; a file
train | --run.out tiny.txt/below             | --run.out tiny.txt/below; name a folder
train | --run.out /proc/nowhere              | --run.out /proc/nowhere; name a folder
train | --run.out foreign                    | --run.out foreign; other things
train | --run.out foreign --run.overwrite true | --run.out foreign; other things
train | --run.out rope                       | --run.out rope; already holds a run; step 40 of 40; --run.overwrite
train | --model.d_model 0                    | --model.d_model 0; at least 1
train | --model.d_model 15                   | --model.d_model 15; model.n_head 2; 14 or 16
train | --model.n_head 3                     | --model.d_model 16; model.n_head 3
train | --model.n_head -2                    | --model.n_head -2; at least 1
train | --model.d_model 18                   | --model.rope.fraction; 9 features; pairs
train | --model.n_head 4 --model.n_kv_head 3 | --model.n_kv_head 3; model.n_head 4; 1, 2, 4
train | --model.n_kv_head 0                  | --model.n_kv_head 0; at least 1
train | --model.n_kv_head 4                  | --model.n_kv_head 4; model.n_head 2
train | --model.n_layer 0                    | --model.n_layer 0; at least 1
train | --model.d_ff 0                       | --model.d_ff 0; at least 1
train | --model.seq_len 0                    | --model.seq_len 0; at least 1
train | --model.seq_len -4                   | --model.seq_len -4; at least 1
train | --model.vocab_size 0                 | --model.vocab_size 0; at least 1
train | --model.vocab_size 100               | --model.vocab_size 100; 259
train | --model.position sinusoidal --model.d_model 15 --model.n_head 1 | --model.d_model 15; even
train | --model.attention flash              | --model.attention; flash; explicit
train | --model.tie_embeddings perhaps       | --model.tie_embeddings; perhaps; bool
train | --model.init_std 0                   | --model.init_std 0; at least 1e-06
train | --model.init_std .nan                | --model.init_std nan; a number
train | --model.norm_eps -1                  | --model.norm_eps -1; at least 1e-12
train | --model.sinusoidal.amplitude 0       | --model.sinusoidal.amplitude 0; at least
train | --model.rope.fraction 0              | --model.rope.fraction 0; above 0
train | --model.rope.fraction 1.5            | --model.rope.fraction 1.5; at most 1
train | --model.rope.fraction -0.5           | --model.rope.fraction -0.5; above 0
train | --model.rope.fraction .nan           | --model.rope.fraction nan; a number
train | --model.rope.fraction 0.4            | --model.rope.fraction 0.4; 3 features; pairs
train | --model.rope.fraction 0.1            | --model.rope.fraction 0.1; 0 features
train | --model.rope.base 1                  | --model.rope.base 1; above 1
train | --model.rope.base 0.5                | --model.rope.base 0.5; above 1
train | --model.rope.base -10000             | --model.rope.base -10000; above 1
train | --model.rope.base .nan               | --model.rope.base nan; a number
train | --model.rope.base .inf               | --model.rope.base inf; at most
train | --model.rope.base null               | --model.rope.base; float
train | --model.rope.layout halfsplit        | --model.rope.layout; halfsplit; did you mean half-split
train | --model.rope.scaling yarm            | --model.rope.scaling; yarm; did you mean yarn
train | --model.rope.scaling linear          | --model.rope.scaling linear; rope.factor
train | --model.rope.factor 2                | --model.rope.factor; rope.scaling none
train | --model.rope.factor 0.5 --model.rope.scaling linear | --model.rope.factor 0.5; at least 1
train | --model.rope.short_factor 3          | --model.rope.short_factor; 3; list
train | --model.rope.short_factor [a]        | --model.rope.short_factor ['a']; a valid number
train | --model.rope null                    | --model.rope; NAME VALUE
train | --model 3                            | --model; 3
train | --run 3                              | --run; 3
train | --data.corpus task:foo               | --data.corpus 'task:foo'; task:all
train | --data.corpus nothing.txt            | data.corpus 'nothing.txt'; no such file; kjv
train | --data.corpus nothing.jsonl          | data.corpus 'nothing.jsonl'; no such file
train | --data.corpus 'nowhere/*.txt'        | data.corpus 'nowhere/*.txt'; no such file
train | --data.corpus .                      | data.corpus '.'; folder
train | --data.corpus ''                     | data.corpus ''; use kjv
train | --data.corpus kvj                    | data.corpus 'kvj'; did you mean kjv
train | --data.corpus empty.txt              | data.corpus 'empty.txt'; empty
train | --data.corpus empty.jsonl            | data.corpus 'empty.jsonl'; it has no rows; mend the file
train | --data.corpus short.txt              | data.corpus 'short.txt'; too short; 17
train | --data.corpus latin1.txt --data.tokenizer bpe | latin1.txt; not UTF-8; --data.tokenizer bytes
train | --data.corpus owner/name             | data.corpus 'owner/name'; hub; kjv; local files
train | --data.corpus owner/name --data.subset x | owner/name; 'x'; hub; kjv
train | --data.corpus rows.jsonl --data.column body | data.column 'body'; rows.jsonl; text
train | --data.corpus rows.parquet --data.column body | data.column 'body'; rows.parquet; text
train | --data.corpus rows.parquet --data.column '' | data.column ''; rows.parquet
train | --data.corpus broken.jsonl           | data.corpus 'broken.jsonl'; json
train | --data.corpus fake.parquet           | data.corpus 'fake.parquet'; parquet
train | --data.corpus task:recal             | --data.corpus 'task:recal'; did you mean task:recall
train | --data.corpus task:                  | --data.corpus 'task:'; task:copy; task:all
train | --data.corpus task:copy              | --model.seq_len 16; task:copy; 24
train | --data.corpus task:copy --data.column body | --data.column 'body'; task:copy
train | --data.tokenizer nothing.json        | data.tokenizer 'nothing.json'; no file
train | --data.tokenizer tiny.txt            | data.tokenizer 'tiny.txt'; use bpe
train | --data.tokenizer bpee                | data.tokenizer 'bpee'; did you mean bpe
train | --data.tokenizer foreign             | data.tokenizer 'foreign'; use bpe
train | --data.tokenizer bpe --data.vocab_size 100 | --data.vocab_size 100; 259
train | --data.vocab_size many               | --data.vocab_size; many; int
train | --data.max_bytes 0                   | --data.max_bytes 0; at least 1
train | --data.max_bytes 40                  | data.corpus 'tiny.txt'; too short
train | --data.cache tiny.txt/below          | data.cache 'tiny.txt/below'; --data.cache
train | --data.cache /proc/nowhere           | data.cache '/proc/nowhere'; --data.cache
train | --config nothing.yaml                | --config; nothing.yaml
train | --config foreign                     | --config; foreign; not a file
train | --config                             | --config; --help
train | --config broken.yaml                 | --config; broken.yaml; YAML
train | --config list.yaml                   | --config; list.yaml
train | --config scalar.yaml                 | --config; scalar.yaml
train | --config binary.yaml                 | --config; binary.yaml
train | --config key.yaml                    | model.positon; did you mean model.position
train | --config section.yaml                | modle.position; did you mean model.position
train | --config type.yaml                   | --run.steps; many; int
train | --config value.yaml                  | --model.position; 'rop'; did you mean rope
train | --config null_section.yaml           | --config null_section.yaml; model is 3; write `model:`
train | --config good.yaml --run.steps 0     | --run.steps 0; at least 1
train | --run.init_from nowhere              | --run.init_from nowhere; not a run folder
train | --run.init_from tiny.txt             | --run.init_from tiny.txt; not a run folder
train | --run.init_from foreign              | --run.init_from foreign; not a run folder
train | --run.init_from ''                   | --run.init_from; no config.yaml
train | --run.init_from unfinished           | --run.init_from unfinished; no weights; failed at step 3 of 40
train | --run.init_from damaged              | --run.init_from damaged; model.safetensors is damaged
train | --run.init_from damaged_config       | --run.init_from damaged_config; config.yaml is damaged
train | --config start.yaml                  | --run.init_from nowhere; not a run folder
train | --run.init_from rope --model.d_model 32 | --model.d_model 32; --run.init_from rope; 16
train | --run.init_from rope --model.n_head 3 | --model.n_head 3; --run.init_from rope; 2
train | --run.init_from rope --model.n_kv_head 1 | --model.n_kv_head 1; --run.init_from rope; 2
train | --run.init_from rope --model.n_layer 2 | --model.n_layer 2; --run.init_from rope; 1
train | --run.init_from rope --model.d_ff 64 | --model.d_ff 64; --run.init_from rope; 32
train | --run.init_from rope --model.vocab_size 300 | --model.vocab_size 300; --run.init_from rope; 259
train | --run.init_from rope --model.tie_embeddings false | --model.tie_embeddings False; --run.init_from rope
train | --run.init_from rope --model.position alibi | --model.position alibi; --run.init_from rope
train | --run.init_from rope --model.position learned --run.extend_learned repeat | --model.position learned; rope
train | --run.init_from rope --model.rope.layout half-split | --model.rope.layout half-split; interleaved
train | --run.init_from rope --run.extend_learned repeat | --run.extend_learned repeat; scheme is rope
train | --run.init_from rope --data.tokenizer bpe | --data.tokenizer; --run.init_from rope; 259; rope/tokenizer.json
train | --run.init_from rope --model.rope.scaling yarn | --model.rope.scaling yarn; rope.factor
train | --run.init_from rope --run.extend_learned repeat --model.seq_len 32 | --run.extend_learned repeat; rope
train | --run.init_from rope --run.out rope --run.overwrite true | --run.out rope; --run.init_from
train | --run.init_from learned --model.seq_len 32 | --model.seq_len 32; learned; 16; --run.extend_learned
train | --run.extend_learned repeat          | --run.extend_learned repeat; run.init_from
train | --run.extend_learned stretch         | --run.extend_learned; stretch; interpolate
train | --model.rope.learn_factors perhaps   | --model.rope.learn_factors; perhaps; bool
train | --model.rope.scaling dynamic --model.rope.factor 2 --model.rope.learn_factors true | learn_factors; choose
train | --model.rope.scaling proportional --model.rope.learn_factors true | learn_factors true; proportional
train | --model.rope.scaling yarn --model.rope.factor 2 | --model.rope.scaling yarn; rope.original_length
compare | --run.init_from rope               | --run.init_from rope; one scheme; train.py
compare | --run.extend_learned repeat           | --run.extend_learned repeat; run.init_from
compare | --schemes rop                      | --schemes rop; did you mean rope
compare | --schemes rope,alibi               | --schemes rope,alibi; did you mean alibi
compare | --schemes rope nonee               | --schemes nonee; did you mean none
compare | --schemes                          | --schemes; --help
compare | --seeds -1                         | --seeds -1; at least 0
compare | --seeds 0 -3                       | --seeds -3; at least 0
compare | --seeds x                          | --seeds; x; int
compare | --seeds 1.5                        | --seeds; 1.5; int
compare | --seeds                            | --seeds; --help
compare | --seeds 99999999999999999999999    | --seeds; below 9223372036854775808
compare | --jobs 0                           | --jobs 0; at least 1
compare | --jobs -2                          | --jobs -2; at least 1
compare | --jobs two                         | --jobs; two; int
compare | --job 1                            | --job; did you mean --jobs
compare | --launcher slrum                   | --launcher slrum; expected slurm
compare | --launcher ''                      | --launcher; slurm
compare | --slurm.partition gpu              | --slurm.partition; --launcher slurm
compare | --slurm.time 60                    | --slurm.time; --launcher slurm
compare | --launcher slurm --slurm.time 1    | --slurm.time 1; at least 5
compare | --launcher slurm --slurm.time long | --slurm.time; long; int
compare | --launcher slurm --slurm.cpus 0    | --slurm.cpus 0; at least 1
compare | --launcher slurm --slurm.gpus -1   | --slurm.gpus -1; at least 0
compare | --launcher slurm --slurm.partiton x | --slurm.partiton; did you mean --slurm.partition
compare | --launcher slurm --slurm.extra 5   | --slurm.extra 5; dict
compare | --launcher slurm --slurm.extra.output x | --slurm.extra.output; leave it out
compare | --scheme rope                      | --scheme; did you mean --schemes
compare | --out tiny.txt                     | --out tiny.txt; name a folder
compare | --out tiny.txt/below               | --out tiny.txt/below; name a folder
compare | --out /proc/nowhere                | --out /proc/nowhere; name a folder
compare | --out ''                           | --out; must name a folder
compare | --model.position alibi             | --model.position; --schemes
compare | --run.seed 1                       | --run.seed; --seeds
compare | --run.out x                        | --run.out; --out
compare | --run.name x                       | --run.name; --out
compare | --run.resume true --run.overwrite true | run.resume true; run.overwrite true
compare | --run.save_every 0                 | --run.save_every 0; at least 1
compare | --run.steps 0                      | --run.steps 0; at least 1
compare | --run.learning_rate .nan           | --run.learning_rate nan; above 0
compare | --run.device cuda                  | --run.device cuda; not on this machine
compare | --run.micro_batch_size 3           | --run.micro_batch_size 3; run.batch_size 4
compare | --model.vocab_size 100             | --model.vocab_size 100; 259
compare | --model.d_model 18                 | --model.rope.fraction; 9 features
compare | --schemes alibi sinusoidal --model.d_model 15 --model.n_head 1 | --model.d_model 15; even
compare | --data.corpus nothing.txt          | data.corpus 'nothing.txt'; no such file
compare | --data.corpus task:induktion       | --data.corpus 'task:induktion'; did you mean task:induction
compare | --data.corpus short.txt            | data.corpus 'short.txt'; too short
compare | --data.corpus owner/name           | data.corpus 'owner/name'; hub; kjv
compare | --config nothing.yaml              | --config; nothing.yaml
compare | --config value.yaml                | --model.position; 'rop'
generate |                                   | run; --help
generate | nothing                           | nothing; not a run folder
generate | foreign                           | foreign; not a run folder
generate | tiny.txt                          | tiny.txt; not a run folder
generate | ''                                | not a run folder; name one that train.py made
generate | rope --tokens 0                   | --tokens 0; at least 1
generate | rope --tokens -3                  | --tokens -3; at least 1
generate | rope --tokens many                | --tokens; many; int
generate | rope --temperature -1             | --temperature -1; at least 0
generate | rope --temperature nan            | --temperature; nan
generate | rope --temperature .nan           | --temperature .nan; a valid number
generate | rope --temperature .inf           | --temperature .inf; a valid number
generate | rope --temperature hot            | --temperature hot; a valid number
generate | rope --top_k 0                    | --top_k 0; at least 1
generate | rope --top_k -5                   | --top_k -5; at least 1
generate | rope --top_k few                  | --top_k few; int
generate | rope --top_k 2.5                  | --top_k 2.5; int
generate | rope --top_p 0                    | --top_p 0; above 0
generate | rope --top_p 1.01                 | --top_p 1.01; at most 1
generate | rope --top_p .nan                 | --top_p .nan; a valid number
generate | rope --samples 0                  | --samples 0; at least 1
generate | rope --samples -2                 | --samples -2; at least 1
generate | rope --samples two                | --samples; two; int
generate | rope --precision bf16             | --precision; bf16; fp64, fp32
generate | rope --seed x                     | --seed; x; int
generate | rope --seed -1                    | --seed -1; at least 0
generate | rope --seed 99999999999999999999999 | --seed; below 9223372036854775808
generate | rope --rope.scaling yran          | --rope.scaling; yran; did you mean yarn
generate | rope --rope.factor 0.5 --rope.scaling yarn | --rope.factor 0.5; at least 1
generate | rope --rope.factor 2              | --rope.factor means nothing; rope.scaling none
generate | rope --rope.factor auto           | --rope.factor means nothing; rope.scaling none
generate | rope --rope.scaling longrope      | --rope.scaling longrope; rope.long_factor
generate | rope --rope.scalling yarn         | --rope.scalling; did you mean --rope.scaling
generate | learned --rope.scaling yarn       | --rope.scaling yarn; learned; only rope
generate | learned --rope.base 500           | --rope.base 500; learned; only rope
generate | rope --promt x                    | --promt; did you mean --prompt
generate | rope --temp 0                     | --temp; did you mean --temperature
generate | rope rope                         | rope; --help
generate | learned --prompt 0123456789abcdefg | --prompt; 17 tokens; 16; rope
train | --config twice.yaml                  | --config twice.yaml; d_model is given twice; keep one
train | --config tabs.yaml                   | --config tabs.yaml; '\t'; mend that place
train | --config references.yaml             | --config references.yaml; *sizes; write the value out
train | --config itself.yaml                 | --config itself.yaml; *it; write the value out
train | --config code.yaml                   | --config code.yaml; python/object; mend that place
train | --config number.yaml                 | --config number.yaml; 3 is no option's name; mend that place
train | --config nothing_said.yaml           | --model.d_model None; int; a whole number
train | --config rope_list.yaml              | --config rope_list.yaml; model.rope is [1]; base: 10000
train | --config deep.yaml                   | --config deep.yaml; recursion; mend that place
train | --config two.yaml                    | --config two.yaml; single document; mend that place
train | --config nested.yaml                 | model.model.d_model; did you mean model.d_model
train | --config steps_list.yaml             | --run.steps [1, 2]; int; a whole number
train | --config loop                        | --config loop; name a YAML file
train | --config ''                          | --config ''; name a YAML file
train | --run.out rope/inner                 | --run.out rope/inner; another run; outside of it
train | --run.out locked                     | --run.out locked; Is a directory; name a folder
train | --run.out loop                       | --run.out loop; name a folder
train | --data.corpus loop                   | --data.corpus 'loop'; no such file; use kjv
train | --data.corpus gone.txt               | --data.corpus 'gone.txt'; no such file; use kjv
train | --data.corpus fifo                   | --data.corpus 'fifo'; a pipe or a device; copy it to a file
train | --data.corpus 'pipes/*'              | --data.corpus 'pipes/b.txt'; a pipe or a device; name others
train | --data.corpus 'pipes/**'             | --data.corpus 'pipes/b.txt'; a pipe or a device; name others
train | --data.tokenizer fifo                | --data.tokenizer 'fifo'; use bpe
train | --data.corpus escape.jsonl           | --data.column 'text'; \x1b[31mred; name one
train | --data.corpus missing.jsonl          | --data.corpus 'missing.jsonl'; too short; use a longer text
train | --data.corpus numbers.jsonl          | --data.column 'text'; int; name another
train | --data.corpus nulls.jsonl            | --data.corpus 'nulls.jsonl'; empty; name another
train | --data.corpus garbage.parquet        | --data.corpus 'garbage.parquet'; cannot be read as parquet; mend the file
train | --data.corpus garbage.txt --data.tokenizer bpe | garbage.txt; not UTF-8; --data.tokenizer bytes
train | --data.tokenizer words.json          | --data.tokenizer 'words.json'; end-of-text; use bpe or bytes
train | --data.tokenizer hollow.json         | --data.tokenizer 'hollow.json'; has no tokens; use bpe or bytes
train | --data.tokenizer bpe --data.vocab_size 1000000000000 | --data.vocab_size 1000000000000; 1,000,000 or fewer
train | --data.cache loop                    | data.cache 'loop'; name another folder
train | --model.d_model 1000000000           | --model.d_model 1000000000; at most 1,000,000
train | --model.n_layer 1000000000000        | --model.n_layer 1000000000000; at most 1,000,000
train | --model.d_ff 10000000000             | --model.d_ff 10000000000; at most 1,000,000
train | --model.vocab_size 100000000000      | --model.vocab_size 100000000000; at most 1,000,000
train | --run.batch_size 1000000000000       | --run.batch_size 1000000000000; GB of memory; choose smaller ones
train | --run.embedding_rate 1e30            | --run.embedding_rate 1e+30; at most 1,000
train | --run.embedding_rate 0               | --run.embedding_rate 0; above 0
train | --model.init_std 1e30                | --model.init_std 1e+30; at most 100
train | --model.norm_eps 1e-320              | --model.norm_eps; at least 1e-12
train | --model.rope.base 1e300              | --model.rope.base 1e+300; at most 1e+18
train | --model.rope.original_length 1       | --model.rope.original_length 1; at least 2
train | --model.rope.scaling ntk --model.rope.factor 1e308 | --model.rope.factor 1e+308; at most 1,000,000
compare | --multiples 0                      | --multiples 0; above 0
compare | --multiples 1e18                   | --multiples 1e18; at most 1000000
compare | --multiples .inf                   | --multiples .inf; a valid number
compare | --multiples x                      | --multiples x; a valid number
compare | --schemes ''                       | --schemes ''; none, sinusoidal
compare | --out loop                         | --out loop; name a folder
generate | hollow_weights --prompt a         | hollow_weights/model.safetensors is damaged; sha256; --run.resume true
generate | no_tokenizer                      | no_tokenizer/tokenizer.json is damaged; restore it
generate | other_scheme                      | other_scheme/model.safetensors is damaged; 6,752 numbers; restore it
evaluate |                                   | run; --help
evaluate | ''                                | ''; not a run folder; name one
evaluate | nothing                           | nothing; not a run folder; name one
evaluate | damaged                           | damaged/model.safetensors; restore it from a copy
evaluate | damaged_config                    | damaged_config/config.yaml; restore it from a copy
evaluate | hollow_weights                    | hollow_weights/model.safetensors is damaged; --run.resume true
evaluate | no_tokenizer                      | no_tokenizer/tokenizer.json is damaged; restore it
evaluate | other_scheme                      | other_scheme/model.safetensors is damaged; restore it
evaluate | unfinished                        | unfinished has no weights; step 3 of 40; --run.resume true
evaluate | rope --lengths 0                  | --lengths 0; at least 1
evaluate | rope --lengths 99999999999999999999 | --lengths 99999999999999999999; use shorter ones
evaluate | rope --lengths 16.5               | --lengths 16.5; a whole number
evaluate | rope --lengths ''                 | --lengths ''; a whole number
evaluate | learned --lengths 17              | --lengths 17; end at 16; use shorter ones
evaluate | rope --protocols fixd             | --protocols fixd; did you mean fixed
evaluate | rope --protocols ''               | --protocols ''; fixed, windows
evaluate | rope --scalings yran              | --scalings yran; did you mean yarn
evaluate | rope --scalings ''                | --scalings ''; none, linear
evaluate | rope --scalings yarn --rope.scaling yarn | --rope.scaling yarn; give one of the two
evaluate | learned --scalings yarn           | --scalings yarn; learned; leave it out
evaluate | rope --trials 5                   | --trials 5; leave it out
evaluate | rope --stride 0                   | --stride 0; between 1 and 16
evaluate | rope --trials 1.5                 | --trials 1.5; a valid integer
evaluate | rope --split dev                  | --split dev; train, validation, test
evaluate | rope --picture ''                 | --picture ''; must be a .png
evaluate | rope --picture a.gif              | --picture a.gif; must be a .png
evaluate | rope --picture missing/x.png      | --picture missing/x.png; name a file that can
evaluate | rope --out ''                     | --out ''; must be a .json file
evaluate | rope --out foreign                | --out foreign; must be a .json file
evaluate | rope --out loop                   | --out loop; must be a .json file
evaluate | rope --rope.factor ''             | --rope.factor ''; auto or float
evaluate | rope --rope.factor -1 --rope.scaling linear | --rope.factor -1; at least 1
evaluate | rope --rope.beta_fast 1e308 --rope.scaling yarn | --rope.beta_fast 1e308; at most 1000000
evaluate | rope --rope.scaling longrope --rope.short_factor [0] --rope.long_factor [1] | short_factor [0]; at least
evaluate | rope --rope.learn_factors true    | rope.learn_factors true; has learned none
pairs | --d_head 0                            | --d_head 0; at least 2
pairs | --d_head 3                            | 3 wide; pairs; change
pairs | --d_head 99999999999998               | --d_head 99999999999998; at most 65536
pairs | --length 0                            | --length 0; at least 1
pairs | --length 10000000000000             | --length 10000000000000; at most 1000000000000
pairs | --rope good.yaml                      | --rope good.yaml; --rope.NAME VALUE
pairs | --length many                         | --length many; a valid integer
pairs | --rope.base .nan                      | --rope.base nan; a number
pairs | --rope.scaling yarn                   | --rope.scaling yarn; rope.factor; give it too
pairs | --rope.factor 2                       | --rope.factor; takes no options
pairs | --bogus                               | --bogus; --help
lengths | schemes                             | schemes; --help
lengths | --measur false                      | --measur; did you mean --measure
publish |                                    | runs/compare is not the folder of a comparison; name one
publish | foreign                            | foreign is not the folder of a comparison; name one
publish | no_summary                         | no_summary/summary.json is damaged; make it again
train | --run.steps 1:30                     | --run.steps 1:30; a whole number
train | --run.steps 0x10                     | --run.steps 0x10; a whole number
train | --run.steps 0b11                     | --run.steps 0b11; a whole number
train | --run.steps 1_000                    | --run.steps 1_000; a whole number
train | --run.learning_rate 1:30.5           | --run.learning_rate 1:30.5; a number
train | --run.save_every 10000000000000      | --run.save_every 10000000000000; at most
train | --model.rope.short_factor '[0x10]'   | --model.rope.short_factor ['0x10']; a valid number
train | --model.rope.short_factor '[&a 1, *a]' | --model.rope.short_factor [&a 1, *a]; list[float]
train | --config base60.yaml                 | --config base60.yaml; --run.steps 1:30; a whole number
train | --config hex.yaml                    | --config hex.yaml; --run.steps 0x10; a whole number
train | --config underscore.yaml             | --config underscore.yaml; --run.steps 1_000; a whole number
train | --config digits.yaml                 | --config digits.yaml; 6000 digits; write a smaller one
train | --config tag.yaml                    | --config tag.yaml; int; write the value without it
train | --config wrong_tag.yaml              | --config wrong_tag.yaml; bool; write the value without it
train | --config large.yaml                  | --config large.yaml; 131,072; name a YAML file
train | --config long_list.yaml              | --config long_list.yaml; 20,000 entries; no option takes more
train | --config fifo                        | --config fifo; not a file; name a YAML file
train | --config other_file.yaml             | --config other_file.yaml; model is good.yaml; write `model:`
train | --config inner_file.yaml             | --config inner_file.yaml; --model.sinusoidal good.yaml; NAME VALUE
train | --config config_in_config.yaml       | --config config_in_config.yaml; command line only; leave it out
train | --config help_in_config.yaml         | --config help_in_config.yaml; help is; leave it out
train | --config plugin.yaml                 | --config plugin.yaml; plugin is {'a': '1'}; not a list
train | --config plugin_text.yaml            | --config plugin_text.yaml; plugin is clock; not a list
train | --config class_path.yaml             | --config class_path.yaml; model.class_path; is not an option
train | --config escape.yaml                 | --config escape.yaml; \x1b[31m
train | --model good.yaml                    | --model good.yaml; --model.NAME VALUE
train | --model '{d_model: 16}'              | --model {d_model: 16}; --model.NAME VALUE
train | --model.rope fifo                    | --model.rope fifo; --model.rope.NAME VALUE
train | --model.sinusoidal fifo              | --model.sinusoidal fifo; --model.sinusoidal.NAME VALUE
train | --data fifo                          | --data fifo; --data.NAME VALUE
train | --run fifo                           | --run fifo; --run.NAME VALUE
compare | --model fifo                       | --model fifo; --model.NAME VALUE
compare | --slurm fifo                       | --slurm fifo; --slurm.NAME VALUE
generate | rope --rope fifo                  | --rope fifo; --rope.NAME VALUE
evaluate | rope --rope fifo                  | --rope fifo; --rope.NAME VALUE
generate | rope --samples 1000000            | --samples 1000000; at most 1024
generate | rope --tokens 1000001             | --tokens 1000001; at most 1000000
train | --run.name LONG --run.out null | --run.name; 400 bytes; 255 at most
train | --run.out new/LONG/run | --run.out; 400 bytes; 255 at most
train | --data.cache made/LONG | --data.cache; too long; name another folder
train | --data.corpus short.txt --data.cache made/below | --data.corpus 'short.txt'; too short
train | --data.corpus empty.txt --data.cache made/below | --data.corpus 'empty.txt'; empty
train | --data.corpus numbers.jsonl --data.cache made   | --data.column 'text'; int; name another
compare | --data.corpus short.txt --data.cache made     | --data.corpus 'short.txt'; too short
sweeps | --run.steps 0                        | --run.steps 0; at least 1
sweeps | --bogus                              | --bogus; did you mean
"""
ROWS = [[cell.strip() for cell in re.split(r"\s\|(?=\s)", line)] for line in TABLE.strip().splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory, corpus_file, finished) -> Path:
    """A folder with everything that can be wrong with a file in it, two finished runs, and runs that are broken."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copy(corpus_file, folder / "tiny.txt")
    for scheme in ("rope", "learned"):
        shutil.copytree(finished(scheme), folder / scheme)
    for name in ("unfinished", "damaged", "damaged_config"):
        shutil.copytree(finished("rope"), folder / name)
    (folder / "unfinished" / "model.safetensors").unlink()
    (folder / "unfinished" / "result.json").write_text('{"status": "failed", "step": 3, "steps": 40}')
    (folder / "damaged" / "model.safetensors").write_bytes(b"cut short")
    (folder / "damaged_config" / "config.yaml").write_text("model: [")
    (folder / "foreign").mkdir()
    (folder / "foreign" / "thesis.tex").write_text("the user's")
    for name in ("hollow_weights", "no_tokenizer", "other_scheme"):
        shutil.copytree(finished("rope"), folder / name)
    weights = load_file(folder / "rope" / "model.safetensors")
    save_file(
        {name: torch.full_like(w, torch.nan) for name, w in weights.items()},
        folder / "hollow_weights" / "model.safetensors",
    )
    (folder / "no_tokenizer" / "tokenizer.json").unlink()
    config = folder / "other_scheme" / "config.yaml"
    config.write_text(config.read_text().replace("position: rope", "position: learned"))
    (folder / "locked" / ".lock").mkdir(parents=True)
    (folder / "loop").symlink_to("loop")
    (folder / "gone.txt").symlink_to("nowhere")
    (folder / "no_summary").mkdir()
    (folder / "no_summary" / "summary.json").write_text("{")
    (folder / "no_summary" / "curves.png").write_text("")
    Tokenizer(models.WordLevel({"hello": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(folder / "words.json"))
    Tokenizer(models.BPE()).save(str(folder / "hollow.json"))
    (folder / "garbage.txt").write_bytes(bytes(range(255, -1, -1)) * 50)
    (folder / "garbage.parquet").write_bytes(bytes(range(256)) * 5)
    texts = {
        "twice.yaml": "model:\n  d_model: 16\n  d_model: 32\n",
        "tabs.yaml": "model:\n\td_model: 16\n",
        "references.yaml": "a: &sizes\n  d_model: 16\nmodel: *sizes\n",
        "itself.yaml": "model: &it\n  rope: *it\n",
        "code.yaml": "model: !!python/object/apply:os.mkdir ['hacked']\n",
        "number.yaml": "model:\n  3: 4\n",
        "nothing_said.yaml": "model:\n  d_model:\n",
        "rope_list.yaml": "model:\n  rope: [1]\n",
        "deep.yaml": "model: " + "[" * 3000 + "]" * 3000,
        "two.yaml": "model:\n  d_model: 16\n---\nrun:\n  steps: 2\n",
        "nested.yaml": "model:\n  model:\n    d_model: 16\n",
        "steps_list.yaml": "run:\n  steps: [1, 2]\n",
        "missing.jsonl": '{"text": "hello"}\n{"body": "x"}\n',
        "numbers.jsonl": '{"text": 3}\n',
        "nulls.jsonl": '{"text": ""}\n{"text": null}\n',
        "empty.txt": "",
        "empty.jsonl": "",
        "short.txt": "too short",
        "rows.jsonl": '{"text": "hello"}\n' * 300,
        "broken.jsonl": '{"text": "hello"}\n{"text":\n',
        "fake.parquet": "no parquet",
        "broken.yaml": "model: [",
        "list.yaml": "- a\n- b\n",
        "scalar.yaml": "hello\n",
        "key.yaml": "model:\n  positon: rope\n",
        "section.yaml": "modle:\n  position: rope\n",
        "type.yaml": "run:\n  steps: many\n",
        "value.yaml": "model:\n  position: rop\n",
        "null_section.yaml": "model: 3\n",
        "start.yaml": "run:\n  init_from: nowhere\n",
        "good.yaml": "model:\n  position: alibi\n",
        "base60.yaml": "run:\n  steps: 1:30\n",
        "hex.yaml": "run:\n  steps: 0x10\n",
        "underscore.yaml": "run:\n  steps: 1_000\n",
        "digits.yaml": f"run:\n  steps: {'1' * 6000}\n",
        "tag.yaml": "run:\n  steps: !!int 1:30\n",
        "wrong_tag.yaml": "run:\n  resume: !!bool perhaps\n",
        "large.yaml": "#" * (1 << 17) + "\n",
        "long_list.yaml": f"model:\n  rope:\n    long_factor: [{'1, ' * 20_000}]\n",
        "other_file.yaml": "model: good.yaml\n",
        "inner_file.yaml": "model:\n  sinusoidal: good.yaml\n",
        "config_in_config.yaml": "config: good.yaml\n",
        "help_in_config.yaml": "help:\n  a: 1\n",
        "plugin.yaml": "plugin:\n  a: 1\n",
        "plugin_text.yaml": "plugin: clock\n",
        "class_path.yaml": "model:\n  class_path: this.s\n",
        "escape.yaml": 'run:\n  "\\e[31m": 1\n',
        "escape.jsonl": '{"\\u001b[31mred": "hello"}\n',
    }
    for name, content in texts.items():
        (folder / name).write_text(content)
    (folder / "pipes").mkdir()
    (folder / "pipes" / "a.txt").write_text("a text\n" * 300)
    for name in ("fifo", "pipes/b.txt"):
        os.mkfifo(folder / name)
    (folder / "latin1.txt").write_bytes("caf\xe9 ".encode("latin-1") * 500)
    (folder / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    pq.write_table(pa.table({"text": ["hello"] * 300}), folder / "rows.parquet")
    return folder


def listing(folder: Path) -> dict[str, int | None]:
    return {str(path): path.stat().st_mtime_ns if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize(("script", "flags", "words"), ROWS, ids=[f"{row[0]} refuses '{row[1]}'" for row in ROWS])
def test_bad_input_gets_one_line_that_names_it_and_leaves_nothing(
    place, small, monkeypatch, at_the_shell, script, flags, words
):
    if "/proc/" in flags and not sys.platform.startswith("linux"):
        pytest.skip("only Linux has /proc, where not even root can write")
    if "cuda" in flags:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    unreachable(monkeypatch)
    monkeypatch.chdir(place)
    before = listing(place)
    base = ["--schemes", "rope", "--jobs", "1", "--out", "new"] if script == "compare" else ["--run.out", "new"]
    base = [] if script not in ("train", "compare") else [*small, "--data.corpus", "tiny.txt", *base]
    try:
        outcome = at_the_shell(MAIN[script], [*base, *shlex.split(flags.replace("LONG", LONG))])
    finally:
        made = listing(place).items() - before.items()
        for path in sorted((Path(path) for path, _ in made if path not in before), reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    lines = outcome.err.splitlines()
    assert outcome.code == 2, lines[-1:]
    assert len(lines) == 1, lines
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    assert not made
    for word in words.split("; "):
        assert word in lines[0]
    assert "<class" not in lines[0]
    assert lines[0].isprintable()


def unreachable(monkeypatch) -> None:
    def dataset_info(*args, **kwargs):
        raise httpx.ConnectError("[Errno -2] Name or service not known\nand more")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)


def test_the_table_is_read_whole():
    assert len(ROWS) >= 120
    assert {row[0] for row in ROWS} == set(MAIN)
    assert all(len(row) == 3 and len(row[2].split("; ")) >= 2 for row in ROWS)  # the culprit and the remedy


PATHS = [
    *(("train", f"--{name}") for name in ("data.corpus", "data.tokenizer", "data.cache", "run.out", "run.name")),
    *(("train", "--run.init_from"), ("train", "--config"), ("train", "--plugin"), ("compare", "--out")),
    *(("generate", ""), ("evaluate", ""), ("evaluate", "rope --out"), ("evaluate", "rope --picture"), ("publish", "")),
]


@pytest.mark.parametrize(("script", "flag"), PATHS, ids=[" ".join(case) for case in PATHS])
@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"], ids=["a NUL", "half a character"])
def test_a_path_that_cannot_be_one_is_refused(place, monkeypatch, at_the_shell, script, flag, name):
    monkeypatch.chdir(place)
    before = listing(place)
    outcome = at_the_shell(MAIN[script], [*flag.split(), name])
    (line,) = outcome.err.splitlines()
    assert outcome.code == 2
    assert repr(name).strip("'") in line
    assert listing(place) == before


@pytest.mark.parametrize("flag", ["--run.out", "--data.corpus", "--data.cache"])
def test_a_path_that_config_yaml_could_not_hold_is_refused(small, tmp_path, at_the_shell, flag):
    outcome = at_the_shell(train.main, [*small, "--run.out", str(tmp_path / "run"), flag, f"{tmp_path}/\udcff"])
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert f"{flag} '{tmp_path}/\\udcff' is not UTF-8" in outcome.err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["cache", "out", "name", "init_from"])
def test_a_config_files_path_that_cannot_be_one_is_refused(tmp_path, at_the_shell, name):
    section = "data" if name == "cache" else "run"
    (tmp_path / "nul.yaml").write_text(f'{section}:\n  {name}: "a\\0b"\n')
    outcome = at_the_shell(train.main, ["--config", str(tmp_path / "nul.yaml")])
    (line,) = outcome.err.splitlines()
    assert outcome.code == 2
    assert f"--{section}.{name} 'a\\x00b'" in line


def test_a_number_of_thousands_of_digits_is_one_line_and_not_all_of_it(at_the_shell):
    outcome = at_the_shell(train.main, ["--run.steps", "1" * 6000])
    (line,) = outcome.err.splitlines()
    assert outcome.code == 2
    assert "--run.steps 1111" in line
    assert "a whole number" in line
    assert len(line) < 1200


NUMBERS = [  # option, how it is written, what it means
    ("run.steps", "010", 10),
    ("run.steps", "+7", 7),
    ("run.learning_rate", "1e-3", 0.001),
    ("run.learning_rate", "2E-3", 0.002),
    ("run.learning_rate", "1", 1.0),
    ("run.learning_rate", ".5", 0.5),
    ("run.learning_rate", ".5e-1", 0.05),
    ("run.warmup", "0.", 0.0),
    ("run.name", "010", "010"),
    ("run.name", "1e5", "1e5"),
    ("run.name", "1:30", "1:30"),
    ("run.name", "2001-99-99", "2001-99-99"),
    ("model.rope.long_factor", "[010, 1e0, .5]", [10.0, 1.0, 0.5]),
]


@pytest.mark.parametrize(("name", "written", "meant"), NUMBERS, ids=[f"{name} {text}" for name, text, _ in NUMBERS])
def test_a_number_means_the_same_in_a_file_and_on_the_command_line(tmp_path, name, written, meant):
    *sections, last = name.split(".")
    lines = [f"{'  ' * depth}{section}:" for depth, section in enumerate(sections)]
    (tmp_path / "a.yaml").write_text("\n".join([*lines, f"{'  ' * len(sections)}{last}: {written}\n"]))
    for argv in ([f"--{name}", written], ["--config", str(tmp_path / "a.yaml")]):
        found = parse_explicit(argv, make_run_parser("train.py", ""))[name]
        assert (found, type(found)) == (meant, type(meant))


def test_more_threads_than_a_machine_can_start_are_bad_input():
    flags = ["--run.threads", "1000000"]  # only read: PyTorch would end the process
    with pytest.raises(BadInput, match=r"--run\.threads 1000000 must be at least 1 and at most 1,024"):
        parse_run(flags, make_run_parser("train.py", ""))


def test_schemes_that_do_not_rotate_may_have_odd_heads_in_a_comparison(small, tmp_path):
    odd = ["--model.d_model", "18", "--model.n_head", "6", "--out", str(tmp_path / "out"), "--jobs", "1"]
    compare.main([*small, *odd, "--schemes", "none", "alibi"])
    with pytest.raises(BadInput, match=r"rope\.fraction"):
        compare.main([*small, *odd, "--schemes", "none", "rope", "--out", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()


def test_an_empty_config_file_changes_nothing(small, tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    parser = make_run_parser("train.py", "")
    assert parse_run([*small, "--config", str(tmp_path / "empty.yaml")], parser)[1:] == parse_run(small, parser)[1:]


# script | flags, with the environment before them | shell around it | what the line must say
AT_THE_SHELL = r"""
train    | --run.seed -1           | {} >&-                                   | --run.seed -1; at least 0
train    | --run.steps 0           | HOME= {}                                 | --run.steps 0; at least 1
train    | --run.steps 0           | env -u HOME TMPDIR=/nowhere {}           | --run.steps 0; at least 1
train    | --run.steps 0           | WANDB_MODE=nonsense {}                   | --run.steps 0; at least 1
train    | --model.d_model 15      | COLUMNS=1 TERM=dumb {}                   | --model.d_model 15; 14 or 16
train    | --data.corpus naïve.txt | LANG=C LC_ALL=C {}                       | --data.corpus; use kjv
generate | nothing                 | PATH=/nowhere {}                         | nothing is not a run folder; name one
evaluate | nothing                 | MPLBACKEND=nonsense {}                   | nothing is not a run folder; name one
generate  | x --tokens 0            | OMP_NUM_THREADS=0 {} <&-                 | --tokens 0; at least 1
compare  | --jobs 0                | PYTHONOPTIMIZE=1 {}                      | --jobs 0; at least 1
"""
SHELLS = [[cell.strip() for cell in re.split(r"\s\|(?=\s)", line)] for line in AT_THE_SHELL.strip().splitlines()]


@pytest.mark.skipif(os.name != "posix", reason="these are lines of a POSIX shell")
@pytest.mark.parametrize(
    ("script", "flags", "line", "words"),
    SHELLS,
    ids=[f"{row[0]} refuses '{row[1]}' under '{row[2]}'" for row in SHELLS],
)
def test_bad_input_gets_one_line_in_odd_surroundings(small, tmp_path, script, flags, line, words):
    base = small if script in ("train", "compare") else []
    command = shlex.join([sys.executable, str(Path(compare.__file__).with_name(f"{script}.py")), *base]) + f" {flags}"
    done = subprocess.run(["/bin/sh", "-c", line.format(command)], cwd=tmp_path, capture_output=True, text=True)
    lines = [each for each in done.stderr.splitlines() if each and not each.startswith(("libgomp", "OMP:"))]
    assert (done.returncode, done.stdout, len(lines)) == (2, "", 1), done.stderr
    for word in words.split("; "):
        assert word in lines[0]
    assert not list(tmp_path.iterdir())
