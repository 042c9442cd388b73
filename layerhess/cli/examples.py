"""Command lines to copy, which are the ends of help texts, and a factory to start from."""

from __future__ import annotations

EXAMPLES = {
    "": """
layerhess demo                                      a first look, in a minute
layerhess template > mine.py                        ten lines to fill in
layerhess analyze mine.py:make                      every layer, and the model
layerhess analyze mine.py:make --all --out run      traces, densities, ... too
layerhess plan mine.py:make --budget 4bit           bits for every layer
layerhess report run                                its page, made anew
layerhess doctor                                    is this machine right?
""",
    "analyze": """
layerhess analyze mine.py:make
layerhess analyze mine.py:make --blocks weight --top 5 --no-full
layerhess analyze mine.py:make --blocks head='head.*' --blocks body='layers.*'
layerhess analyze mine.py:make --all --examples 512 --out run
layerhess analyze mine.py:make --top 5 --out long --resume
layerhess analyze package.module:make --json | jq .full.eigenvalues
""",
    "plan": """
layerhess plan mine.py:make --budget 4bit
layerhess plan mine.py:make --bits 4,8 --budget 3.5MB --granularity group:32
layerhess plan mine.py:make --pin head.weight=8 --budget 5bit
layerhess plan mine.py:make --allow 'layers.*'=2,4 --tie q.weight,k.weight
layerhess plan mine.py:make --metric accuracy --held-out mine.py:test
layerhess plan mine.py:make --bits none --sparsity 0.5,2:4 --budget 2MB
layerhess plan mine.py:make --out plan --export torchao=torchao.json
""",
    "estimate": """
layerhess estimate mine.py:make --top 5
layerhess estimate mine.py:make --world 8 --device-memory 80GiB --json
""",
    "compare": "layerhess compare before after\nlayerhess compare a b c --out compared",
    "report": "layerhess report layerhess-results/mine-make-20300102-030405",
    "demo": "layerhess demo --out somewhere",
    "template": "layerhess template > mine.py",
    "doctor": "layerhess doctor\nlayerhess doctor --json > machine.json",
}

TEMPLATE = '''"""Run it with: layerhess analyze factory.py:make"""
import torch
import layerhess

def make() -> layerhess.Objective:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.Tanh(), torch.nn.Linear(32, 3))  # your model
    inputs, targets = torch.randn(256, 20), torch.randint(3, (256,))  # your data: batches like this, or a DataLoader
    return layerhess.Objective(model, [(inputs, targets)], torch.nn.CrossEntropyLoss())
'''
