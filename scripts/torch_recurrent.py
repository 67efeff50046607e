#!/usr/bin/env python3
"""What a PyTorch user has on a CPU of the newer recurrent models: whole training steps, timed.

The official kernels of Mamba-2, GLA, HGRN2, DeltaNet, xLSTM and RWKV-7 are for GPUs (Triton, CUDA). On a CPU there is the plain loop
over time of their reference code, or the form in chunks, where that code has one. Each is written here as there, from
PyTorch's own operations: `mamba2`, `gla` and `hgrn2` in chunks, the mLSTM in its parallel form, the others step by step.

    python3 scripts/torch_recurrent.py train --arch gla --hidden 128 --layers 2 --batch 32 --seq 128 --steps 10

prints one line of JSON with the median milliseconds of a step of AdamW, gradient clipping included. `scripts/bench_train.py` calls
it for `--archs mamba2,gla,…`.
"""

import argparse
import json
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

VOCAB = 64


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, 1e-6)


class Conv(nn.Module):
    """A causal convolution of every channel."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 4, groups=channels, padding=3, bias=False)

    def forward(self, x):
        return F.silu(self.conv(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))


def heads(x, n):
    return x.unflatten(-1, (n, -1)).transpose(1, 2)  # [batch, heads, seq, size]


def joined(x):
    return x.transpose(1, 2).flatten(2)


def chunked_attention(q, k, v, log_decay, chunk=32):
    """S_t = diag(e^g_t)·S_{t−1} + k_t·v_tᵀ, y_t = S_tᵀ·q_t, a chunk at a time."""
    batch, n, seq, size = q.shape
    pad = -seq % chunk
    q, k, v, g = (F.pad(x, (0, 0, 0, pad)).unflatten(2, (-1, chunk)) for x in (q, k, v, log_decay))
    g = g.expand_as(q).cumsum(-2)
    total = g[..., -1:, :]
    inside = torch.ones(chunk, chunk, dtype=torch.bool).tril()
    # differences of the logarithms, so that no factor overflows
    weights = torch.einsum("...td,...sd,...tsd->...ts", q, k, (g[..., :, None, :] - g[..., None, :, :]).clamp(max=0).exp())
    y = (weights * inside) @ v
    q, k = q * g.exp(), k * (total - g).exp()
    state, carried = q.new_zeros(batch, n, size, v.shape[-1]), []
    added, kept = k.transpose(-1, -2) @ v, total.exp().transpose(-1, -2)
    for i in range(q.shape[2]):
        carried.append(state)
        state = kept[:, :, i] * state + added[:, :, i]
    y = y + q @ torch.stack(carried, 2)
    return y.flatten(2, 3)[:, :, :seq]


class Gla(nn.Module):
    def __init__(self, d, n=4):
        super().__init__()
        self.n = n
        self.q, self.k, self.v, self.g = (nn.Linear(d, w, bias=False) for w in (d // 2, d // 2, d, d))
        self.low, self.high = nn.Linear(d, 16, bias=False), nn.Linear(16, d // 2)
        self.norm, self.out = RMSNorm(d // n), nn.Linear(d, d, bias=False)

    def forward(self, x):
        q, k, v = (heads(p(x), self.n) for p in (self.q, self.k, self.v))
        decay = heads(F.logsigmoid(self.high(self.low(x))) / 16, self.n)
        y = self.norm(chunked_attention(q * q.shape[-1] ** -0.5, k, v, decay))
        return self.out(joined(y) * F.silu(self.g(x)))


class Hgrn2(nn.Module):
    def __init__(self, d, size=32):
        super().__init__()
        self.n = d // size
        self.q, self.f, self.i = (nn.Linear(d, d, bias=False) for _ in range(3))
        self.norm, self.out = RMSNorm(d), nn.Linear(d, d, bias=False)

    def forward(self, x):
        q, f, i = F.silu(self.q(x)), self.f(x), self.i(x)
        g = F.logsigmoid(f)
        q, k, v, g = (heads(t, self.n) for t in (q, 1 - g.exp(), i, g))
        return self.out(self.norm(joined(chunked_attention(q * q.shape[-1] ** -0.5, k, v, g))))


class Mamba2(nn.Module):
    def __init__(self, d, state=64, size=64):
        super().__init__()
        self.inner, self.state, self.size = 2 * d, state, size
        self.n = self.inner // size
        self.inp = nn.Linear(d, 2 * self.inner + 2 * state + self.n, bias=False)
        self.conv = Conv(self.inner + 2 * state)
        self.bias, self.log, self.skip = (nn.Parameter(torch.rand(self.n)) for _ in range(3))
        self.norm, self.out = RMSNorm(self.inner), nn.Linear(self.inner, d, bias=False)

    def forward(self, x):
        z, u, dt = self.inp(x).split([self.inner, self.inner + 2 * self.state, self.n], -1)
        u, b, c = self.conv(u).split([self.inner, self.state, self.state], -1)
        delta = F.softplus(dt + self.bias)
        decay = (-delta * self.log.exp()).transpose(1, 2)[..., None]
        v = heads(u, self.n)
        b, c = (t[:, None].expand(-1, self.n, -1, -1) for t in (b, c))
        y = scalar_attention(c, b, v * delta.transpose(1, 2)[..., None], decay)
        y = joined(y + v * self.skip[:, None, None])
        return self.out(self.norm(y * F.silu(z)))


def scalar_attention(q, k, v, log_decay, chunk=64):
    """The same with one decay per head: the weights inside a chunk are a product of matrices (ssd_minimal.py)."""
    batch, n, seq, size = q.shape
    pad = -seq % chunk
    q, k, v, g = (F.pad(x, (0, 0, 0, pad)).unflatten(2, (-1, chunk)) for x in (q, k, v, log_decay))
    g = g.squeeze(-1).cumsum(-1)
    inside = torch.ones(chunk, chunk, dtype=torch.bool).tril()
    decays = (g[..., :, None] - g[..., None, :]).masked_fill(~inside, -torch.inf).exp()
    y = (q @ k.transpose(-1, -2) * decays) @ v
    total = g[..., -1:]
    added = (k * (total - g).exp()[..., None]).transpose(-1, -2) @ v
    state, carried = q.new_zeros(batch, n, size, v.shape[-1]), []
    for i in range(q.shape[2]):
        carried.append(state)
        state = total[:, :, i, :, None].exp() * state + added[:, :, i]
    y = y + (q * g.exp()[..., None]) @ torch.stack(carried, 2)
    return y.flatten(2, 3)[:, :, :seq]


class DeltaNet(nn.Module):
    """Gated DeltaNet, by the naive recurrence of flash-linear-attention."""

    def __init__(self, d, n=2, size=48, value=96):
        super().__init__()
        self.n = n
        self.q, self.k = nn.Linear(d, n * size, bias=False), nn.Linear(d, n * size, bias=False)
        self.v, self.g = nn.Linear(d, n * value, bias=False), nn.Linear(d, n * value, bias=False)
        self.b, self.a = nn.Linear(d, n, bias=False), nn.Linear(d, n, bias=False)
        self.log, self.bias = nn.Parameter(torch.rand(n)), nn.Parameter(torch.rand(n))
        self.cq, self.ck, self.cv = Conv(n * size), Conv(n * size), Conv(n * value)
        self.norm, self.out = RMSNorm(value), nn.Linear(n * value, d, bias=False)

    def forward(self, x):
        q, k, v = (heads(c(p(x)), self.n) for c, p in ((self.cq, self.q), (self.ck, self.k), (self.cv, self.v)))
        q, k = F.normalize(q, dim=-1) * q.shape[-1] ** -0.5, F.normalize(k, dim=-1)
        beta = self.b(x).sigmoid().transpose(1, 2)
        decay = (-self.log.exp() * F.softplus(self.a(x) + self.bias)).exp().transpose(1, 2)
        state, ys = x.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1]), []
        for t in range(x.shape[1]):
            state = state * decay[:, :, t, None, None]
            error = (v[:, :, t] - (state * k[:, :, t, :, None]).sum(-2)) * beta[:, :, t, None]
            state = state + k[:, :, t, :, None] * error[:, :, None]
            ys.append((state * q[:, :, t, :, None]).sum(-2))
        y = self.norm(torch.stack(ys, 2))
        return self.out(joined(y) * F.silu(self.g(x)))


class SwiGlu(nn.Module):
    def __init__(self, d):
        super().__init__()
        inner = (8 * d // 3 + 255) // 256 * 256
        self.gate, self.up, self.down = nn.Linear(d, inner, bias=False), nn.Linear(d, inner, bias=False), nn.Linear(inner, d, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class MLstm(nn.Module):
    """The parallel form of NX-AI/xlstm."""

    def __init__(self, d, n=4):
        super().__init__()
        self.n, inner = n, 2 * d
        self.up, self.down, self.conv = nn.Linear(d, 2 * inner, bias=False), nn.Linear(inner, d, bias=False), Conv(inner)
        self.q, self.k, self.v = (nn.Parameter(torch.randn(inner // 4, 4, 4) * 0.1) for _ in range(3))
        self.i, self.f = nn.Linear(3 * inner, n), nn.Linear(3 * inner, n)
        self.norm, self.skip = nn.LayerNorm(inner // n, bias=False), nn.Parameter(torch.ones(inner))

    def forward(self, x):
        xm, z = self.up(x).chunk(2, -1)
        u = self.conv(xm)
        blocks = lambda x, w: torch.einsum("...gd,god->...go", x.unflatten(-1, (-1, 4)), w).flatten(-2)
        q, k, v = blocks(u, self.q), blocks(u, self.k), blocks(xm, self.v)
        gates = torch.cat([q, k, v], -1)
        i, f = self.i(gates).transpose(1, 2), F.logsigmoid(self.f(gates)).transpose(1, 2)
        total = f.cumsum(-1)
        inside = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        weights = (total[..., :, None] - total[..., None, :] + i[..., None, :]).masked_fill(~inside, -torch.inf)
        most = weights.amax(-1, keepdim=True)
        q, k, v = heads(q, self.n), heads(k, self.n), heads(v, self.n)
        scores = q @ k.transpose(-1, -2) * k.shape[-1] ** -0.5 * (weights - most).exp()
        below = torch.maximum(scores.sum(-1, keepdim=True).abs(), (-most).exp()) + 1e-6
        y = joined(self.norm(scores / below @ v))
        return self.down((y + self.skip * u) * F.silu(z))


class SLstm(nn.Module):
    """The step of NX-AI/xlstm's vanilla backend."""

    def __init__(self, d, n=4):
        super().__init__()
        self.n, size = n, d // n
        self.conv = Conv(d)
        self.w = nn.ParameterList([torch.randn(n, size, size) * 0.1 for _ in range(4)])
        self.r, self.b = nn.Parameter(torch.randn(n, size, 4 * size) * 0.1), nn.Parameter(torch.zeros(4, d))
        self.norm = nn.LayerNorm(size, bias=False)

    def forward(self, x):
        u = self.conv(x)
        apart = lambda x: x.unflatten(-1, (self.n, -1))
        inputs = [torch.einsum("btnd,nod->btno", apart(s), w) for s, w in zip((u, u, x, x), self.w)]
        b = apart(self.b)
        y = c = n = m = inputs[0].new_zeros(x.shape[0], self.n, x.shape[-1] // self.n)
        ys = []
        for t in range(x.shape[1]):
            raw = torch.einsum("bnd,ndk->bnk", y, self.r).chunk(4, -1)
            i, f, z, o = (g[:, t] + r + b[k] for k, (g, r) in enumerate(zip(inputs, raw)))
            kept = m + F.logsigmoid(f)
            new = i if t == 0 else torch.maximum(i, kept)
            i, f, m = (i - new).exp().clamp(max=1), (kept - new).exp().clamp(max=1), new
            c, n = f * c + i * z.tanh(), f * n + i
            y = o.sigmoid() * c / n
            ys.append(y)
        return self.norm(torch.stack(ys, 1)).flatten(2)


class GatedGelu(nn.Module):
    def __init__(self, d):
        super().__init__()
        inner = (int(1.3 * d) + 63) // 64 * 64
        self.up, self.down = nn.Linear(d, 2 * inner, bias=False), nn.Linear(inner, d, bias=False)

    def forward(self, x):
        gate, up = self.up(x).chunk(2, -1)
        return self.down(F.gelu(gate) * up)


class Rwkv7(nn.Module):
    """The loop of rwkv_v7_demo.py (its path without CUDA)."""

    def __init__(self, d, size=64):
        super().__init__()
        self.n = d // size
        self.mix = nn.Parameter(torch.rand(6, d))
        self.r, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))
        rank = 32
        self.low = nn.ParameterList([torch.randn(d, rank) * 0.1 for _ in range(4)])
        self.high = nn.ParameterList([torch.randn(rank, d) * 0.1 for _ in range(4)])
        self.w0, self.a0, self.v0, self.kk, self.ka = (nn.Parameter(torch.rand(d)) for _ in range(5))
        self.rk, self.norm = nn.Parameter(torch.rand(self.n, size)), nn.GroupNorm(self.n, d, eps=64e-5)

    def forward(self, x, first=None):
        d = F.pad(x, (0, 0, 1, -1)) - x
        xr, xw, xk, xv, xa, xg = (x + d * m for m in self.mix)
        low = lambda i, x, act=lambda y: y: act(x @ self.low[i]) @ self.high[i]
        r, k, v = self.r(xr), self.k(xk), self.v(xv)
        w = -F.softplus(-(self.w0 + low(0, xw, torch.tanh))) - 0.5
        v = v if first is None else v + (first - v) * torch.sigmoid(self.v0 + low(1, xv))
        a, g = torch.sigmoid(self.a0 + low(2, xa)), low(3, xg, torch.sigmoid)
        kk = F.normalize((k * self.kk).unflatten(-1, (self.n, -1)), dim=-1)
        k = k * (1 + (a - 1) * self.ka)
        r, k, vh, a, w = (t.unflatten(-1, (self.n, -1)) for t in (r, k, v, a, (-w.exp()).exp()))
        state, ys = x.new_zeros(x.shape[0], self.n, k.shape[-1], k.shape[-1]), []
        for t in range(x.shape[1]):
            removed = state @ kk[:, t, :, :, None] @ (kk[:, t] * a[:, t])[:, :, None]
            state = state * w[:, t, :, None] - removed + vh[:, t, :, :, None] @ k[:, t, :, None]
            ys.append((state @ r[:, t, :, :, None]).squeeze(-1))
        y = self.norm(torch.stack(ys, 1).flatten(0, 1).flatten(1)).view_as(x)
        y = y + ((r * k * self.rk).sum(-1, keepdim=True) * vh).flatten(2)
        return self.o(y * g), v if first is None else first


class ChannelMix(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.mix, self.k, self.v = nn.Parameter(torch.rand(d)), nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)

    def forward(self, x):
        return self.v(self.k(x + (F.pad(x, (0, 0, 1, -1)) - x) * self.mix).relu().square())


KINDS = {
    "mamba2": (Mamba2, None),
    "gla": (Gla, SwiGlu),
    "hgrn2": (Hgrn2, SwiGlu),
    "gated_deltanet": (DeltaNet, SwiGlu),
    "mlstm": (MLstm, None),
    "slstm": (SLstm, GatedGelu),
    "rwkv7": (Rwkv7, ChannelMix),
}


class Model(nn.Module):
    def __init__(self, arch, d, layers):
        super().__init__()
        mixer, mlp = KINDS[arch]
        self.embedding = nn.Embedding(VOCAB, d)
        self.mixers = nn.ModuleList([mixer(d) for _ in range(layers)])
        self.mlps = nn.ModuleList([mlp(d) if mlp else nn.Identity() for _ in range(layers)])
        self.norms = nn.ModuleList([RMSNorm(d) for _ in range(2 * layers)])
        self.norm, self.decoder, self.has_mlp = RMSNorm(d), nn.Linear(d, VOCAB, bias=False), mlp is not None

    def forward(self, ids):
        x, first = self.embedding(ids), None
        for i, (mixer, mlp) in enumerate(zip(self.mixers, self.mlps)):
            if isinstance(mixer, Rwkv7):
                y, first = mixer(self.norms[2 * i](x), first)
            else:
                y = mixer(self.norms[2 * i](x))
            x = x + y
            x = x + mlp(self.norms[2 * i + 1](x)) if self.has_mlp else x
        return self.decoder(self.norm(x))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train"])
    parser.add_argument("--arch", choices=KINDS, required=True)
    for name, value in {"hidden": 128, "layers": 2, "batch": 32, "seq": 128, "steps": 10, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    model = Model(a.arch, a.hidden, a.layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)
    times = []
    for _ in range(a.steps + 2):
        ids = torch.randint(VOCAB, (a.batch, a.seq + 1))
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        times.append((time.perf_counter() - start) * 1000)
    times = times[2:]
    print(json.dumps({"arch": a.arch, "step_ms": statistics.median(times), "step_ms_min": min(times)}))


if __name__ == "__main__":
    main()
