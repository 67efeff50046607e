"""Twenty training steps in PyTorch, for the test that ours are the same.

    pip install torch numpy safetensors
    python scripts/pytorch_training_reference.py pipeline/tests/fixtures/pytorch

Writes the initial weights of each model and `losses.json`: loss and gradient norm of every step. The batches follow a
formula that the test repeats: step s, row r is the start token and (7·s + 5·r) mod 12 + 1 times `a`, labelled 1, 2, 3 … mod 10.
"""

import json
import math
import sys
from pathlib import Path

import torch
from safetensors.numpy import save_file
from torch import nn
from torch.nn.functional import cross_entropy, relu, silu, softplus

VOCAB, BOS, PAD, A = 13, 0, 11, 12  # counting_samesymbol_mod10bos: 0 … 10, <pad>, a; the start token is 0
HIDDEN, LAYERS, HEADS = 16, 2, 2
STEPS, BATCH, WARMUP, LR, MAX_NORM = 20, 8, 6, 1e-2, 0.25


class Recurrent(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.encoder = nn.Embedding(VOCAB, HIDDEN)
        self.lstm = layer(HIDDEN, HIDDEN, LAYERS, batch_first=True)
        self.decoder = nn.Linear(HIDDEN, VOCAB, bias=False)

    def forward(self, ids):
        return self.decoder(self.lstm(self.encoder(ids))[0])


class Conv1D(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * 0.1)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


class Attention(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.c_attn, self.c_proj = Conv1D(HIDDEN, 3 * HIDDEN), Conv1D(HIDDEN, HIDDEN)
        self.scale = 1 / (math.sqrt(HIDDEN // HEADS) * (layer + 1))

    def forward(self, x):
        batch, seq, _ = x.shape
        heads = lambda t: t.view(batch, seq, HEADS, -1).transpose(1, 2)
        q, k, v = map(heads, self.c_attn(x).split(HIDDEN, dim=2))
        scores = rotate(q) @ rotate(k).transpose(2, 3) * self.scale
        future = torch.ones(seq, seq, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, torch.finfo(scores.dtype).min)
        return self.c_proj((scores.softmax(3) @ v).transpose(1, 2).reshape(batch, seq, HIDDEN))


def rotate(t):
    """Rotary positions 0, 1, 2 … over the whole head, halves layout."""
    half = t.shape[3] // 2
    angles = torch.arange(t.shape[2])[:, None] * 10000.0 ** (-torch.arange(half) / half)
    cos, sin = angles.cos(), angles.sin()
    first, second = t[..., :half], t[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], 3)


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.c_fc, self.c_proj = Conv1D(HIDDEN, 4 * HIDDEN), Conv1D(4 * HIDDEN, HIDDEN)

    def forward(self, x):
        return self.c_proj(relu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(HIDDEN), Attention(layer)
        self.ln_2, self.mlp = nn.LayerNorm(HIDDEN), Mlp()

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(VOCAB, HIDDEN)
        self.h = nn.ModuleList(Block(i) for i in range(LAYERS))
        self.ln_f = nn.LayerNorm(HIDDEN)
        self.lm_head = nn.Linear(HIDDEN, VOCAB, bias=False)

    def forward(self, ids):
        x = self.wte(ids)
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class RmsNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x):
        return x * (x.square().mean(2, keepdim=True) + 1e-5).rsqrt() * self.weight


class Mixer(nn.Module):
    """Selective state space layer, one step after another."""

    def __init__(self):
        super().__init__()
        self.inner, self.state, self.rank = 2 * HIDDEN, 16, 1
        self.in_proj = nn.Linear(HIDDEN, 2 * self.inner, bias=False)
        self.conv1d = nn.Conv1d(self.inner, self.inner, 4, groups=self.inner, padding=3)
        self.x_proj = nn.Linear(self.inner, self.rank + 2 * self.state, bias=False)
        self.dt_proj = nn.Linear(self.rank, self.inner)
        self.A_log = nn.Parameter(torch.arange(1.0, self.state + 1).log().repeat(self.inner, 1))
        self.D = nn.Parameter(torch.ones(self.inner))
        self.out_proj = nn.Linear(self.inner, HIDDEN, bias=False)

    def forward(self, x):
        u, gate = self.in_proj(x).chunk(2, dim=2)
        u = silu(self.conv1d(u.transpose(1, 2))[:, :, : x.shape[1]].transpose(1, 2))
        delta, b, c = self.x_proj(u).split([self.rank, self.state, self.state], dim=2)
        delta = softplus(self.dt_proj(delta))
        h, outputs = torch.zeros(x.shape[0], self.inner, self.state), []
        for t in range(x.shape[1]):
            decay = torch.exp(-delta[:, t, :, None] * self.A_log.exp())
            h = decay * h + (delta[:, t] * u[:, t])[:, :, None] * b[:, t, None]
            outputs.append((h * c[:, t, None]).sum(2) + self.D * u[:, t])
        return self.out_proj(torch.stack(outputs, 1) * silu(gate))


class MambaBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mixer = RmsNorm(), Mixer()

    def forward(self, x):
        return x + self.mixer(self.norm(x))


class Mamba(nn.Module):
    """The embedding is the output layer too."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleDict(
            {"embedding": nn.Embedding(VOCAB, HIDDEN), "layers": nn.ModuleList(MambaBlock() for _ in range(LAYERS)), "norm_f": RmsNorm()}
        )
        nn.init.normal_(self.backbone.embedding.weight, std=0.1)

    def forward(self, ids):
        x = self.backbone.embedding(ids)
        for block in self.backbone.layers:
            x = block(x)
        return self.backbone.norm_f(x) @ self.backbone.embedding.weight.T


def batch(step):
    lengths = [(7 * step + 5 * row) % 12 + 1 for row in range(BATCH)]
    ids = torch.full((BATCH, max(lengths) + 1), PAD)
    labels = torch.full_like(ids, -1)
    for row, n in enumerate(lengths):
        ids[row, 0], ids[row, 1 : n + 1] = BOS, A
        labels[row, 1 : n + 1] = torch.arange(1, n + 1) % 10
    return ids, labels


def train(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1, n / WARMUP))
    losses, norms = [], []
    for step in range(STEPS):
        ids, labels = batch(step)
        loss = cross_entropy(model(ids).reshape(-1, VOCAB), labels.reshape(-1), ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM).item())
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return {"loss": losses, "grad_norm": norms}


def main(folder):
    results = {}
    for name, build in {
        "rnn": lambda: Recurrent(nn.RNN),
        "lstm": lambda: Recurrent(nn.LSTM),
        "transformer": Transformer,
        "mamba": Mamba,
    }.items():
        torch.manual_seed(0)
        model = build()
        weights = {key: value.numpy().copy() for key, value in model.state_dict().items()}
        save_file(weights, folder / f"{name}.safetensors")
        results[name] = train(model)
    folder.joinpath("losses.json").write_text(json.dumps(results, indent=1) + "\n")


main(Path(sys.argv[1]))
