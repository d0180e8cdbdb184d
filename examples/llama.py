"""Complete a prompt with a GGUF model: `python llama.py MODEL PROMPT`. MODEL can be /proc/self/fd/N.

It needs llama.cpp: `pip install xllamacpp`.
"""

import sys

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path, prompt = sys.argv[1:]
params.n_ctx, params.warmup, params.cpuparams.n_threads = 512, False, 1
answer = xllamacpp.Server(params).handle_completions({"prompt": prompt, "max_tokens": 16, "temperature": 0})
print(answer["choices"][0]["text"])
