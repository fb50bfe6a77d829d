"""FIT in PyTorch, written from the exact model in include/fit/models/README.md.

make_golden.py makes the golden files with it.  `state_dict()` has the library's parameter
names, and every model's `trace=` takes a dictionary to look inside.

Works with torch 1.13 and later.  Pass `dtype=` to the constructors (do not call
`.double()` later: fixed position codes are computed in float64 and rounded once).
"""

import dataclasses
import json
import math
import re

import torch
import torch.nn.functional as F
from torch import nn

NORM_EPS = 1e-6


class ConfigError(ValueError):
    """A configuration the model refuses."""


def parse_layers(text):
    """'(2)4(2)' -> [(2, 4), (2, 0)]."""
    full = text + "0" if text.endswith(")") else text
    stages, at = [], 0
    for match in re.finditer(r"\((\d+)\)(\d+)", full):
        if match.start() != at:
            break
        stages.append((int(match.group(1)), int(match.group(2))))
        at = match.end()
    if not stages or at != len(full):
        raise ConfigError(f'layer string "{text}": expected (locals)globals at position {at}')
    for i, (_, global_blocks) in enumerate(stages[:-1]):
        if global_blocks == 0:
            raise ConfigError(f'layer string "{text}": stage {i} has no global blocks')
    return stages


@dataclasses.dataclass
class Config:
    """Field names are the library's; fields a kind of model does not use are ignored."""

    kind: str = "encoder"  # encoder | diffusion | autoregressive
    layers: str = "(2)4(2)"
    batch: int = 1  # only informs tests
    groups: int = 1
    tokens: int = 1
    latents: int = 1
    channels: int = 1
    data_dim: int = 8
    latent_dim: int = 8
    data_heads: int = 1
    latent_heads: int = 1
    mlp_ratio: int = 4
    data_positions: str = "learned"  # learned | sin_cos | sin_cos_2d (encoder only)
    latent_positions: str = "learned"  # learned | sin_cos
    mask: str = "none"  # none | causal (encoder and diffusion)
    drop_path: float = 0.0
    drop_units: float = 0.0
    drop_attention: float = 0.0
    # encoder
    extra_tokens: int = 0
    extra_channels: int = 0
    # diffusion
    output_channels: int = 0
    condition_channels: int = 0  # 0: conditioned on the time token alone
    condition_tokens: int = 0  # 0: one vector per example
    self_conditioning: str = "none"  # none | latent
    local_attention: bool = True
    cross_mlp: bool = False
    cross_context_norm: bool = True
    # autoregressive
    vocabulary: int = 0
    shared_embedding: bool = True
    output_bias: bool = True
    keep_unused_latents: bool = False  # accept global blocks in the last stage

    def __post_init__(self):
        stages = parse_layers(self.layers)
        attention_dim = min(self.data_dim, self.latent_dim)
        attention_heads = min(self.data_heads, self.latent_heads)
        for what, width, heads in (
            ("data_dim", self.data_dim, self.data_heads),
            ("latent_dim", self.latent_dim, self.latent_heads),
            ("read/write width", attention_dim, attention_heads),
        ):
            if width % heads:
                raise ConfigError(f"{what} {width} is not divisible by {heads} heads")
        if self.mask not in ("none", "causal"):
            raise ConfigError(f"unknown mask {self.mask}")
        if self.kind == "diffusion" and self.latent_dim % 4:
            raise ConfigError("a diffusion decoder needs latent_dim divisible by 4")
        if self.kind == "autoregressive" and stages[-1][1] and not self.keep_unused_latents:
            raise ConfigError(
                f'layer string "{self.layers}": the last global blocks cannot reach the logits'
            )

    def to_json(self):
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def wave_code(coordinates, width):
    """Sine/cosine code of scalars: [...] -> [..., width], in float64."""
    k = torch.arange(width, dtype=torch.float64)
    rate = torch.pow(10000.0, -2.0 * torch.floor(k / 2) / width)
    angle = coordinates.to(torch.float64).unsqueeze(-1) * rate
    return torch.cat([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=-1)


def spread(count):
    """0 .. count-1 stretched to [0, 1000]; a lone position sits at 0."""
    ramp = torch.arange(count, dtype=torch.float64)
    return ramp * (1000.0 / (count - 1)) if count > 1 else ramp


def line_code(count, width):
    return wave_code(spread(count), width)


def plane_code(rows, columns, width):
    """Row code in the first half of the width, column code in the second."""
    if width % 2:
        raise ConfigError("a two-dimensional position code needs an even width")
    half = width // 2
    by_row = wave_code(spread(rows), half)[:, None, :].expand(rows, columns, half)
    by_column = wave_code(spread(columns), half)[None, :, :].expand(rows, columns, half)
    return torch.cat([by_row, by_column], dim=-1).reshape(rows * columns, width)


def data_code(kind, tokens, width):
    if kind == "sin_cos":
        return line_code(tokens, width)
    if kind == "sin_cos_2d":
        side = math.isqrt(tokens)
        if side * side != tokens:
            raise ConfigError(f"sin_cos_2d needs a square group, not {tokens} tokens")
        return plane_code(side, side, width) if side > 1 else line_code(1, width)
    raise ConfigError(f"unknown data positions {kind}")


def latent_code(kind, groups, latents, width):
    """Latents form a (group, slot) plane; with one row or one column it is a line."""
    if kind != "sin_cos":
        raise ConfigError(f"unknown latent positions {kind}")
    if groups > 1 and latents > 1:
        return plane_code(groups, latents, width)
    return line_code(groups * latents, width)


def norm(width):
    return nn.LayerNorm(width, eps=NORM_EPS)


def drop_branch(branch, rate, training):
    """Stochastic depth: whole rows of the leading axis are dropped."""
    if rate == 0.0 or not training:
        return branch
    keep = 1.0 - rate
    shape = (branch.shape[0],) + (1,) * (branch.dim() - 1)
    gate = torch.rand(shape, device=branch.device, dtype=branch.dtype).add_(keep).floor_()
    return branch * (gate / keep)


class Attention(nn.Module):
    def __init__(self, query_dim, context_dim, width, heads, drop=0.0):
        super().__init__()
        self.heads = heads
        self.head_dim = width // heads
        self.scale = 1.0 / math.sqrt(self.head_dim)
        self.drop = drop
        self.query = nn.Linear(query_dim, width)
        self.key = nn.Linear(context_dim, width)
        self.value = nn.Linear(context_dim, width)
        self.output = nn.Linear(width, query_dim)

    def split(self, x):
        b, n, _ = x.shape
        x = x.view(b, n, self.heads, self.head_dim).transpose(1, 2)
        return x.reshape(b * self.heads, n, self.head_dim)

    def forward(self, x, context, bias=None):
        b, n, _ = x.shape
        q = self.split(self.query(x) * self.scale)
        k = self.split(self.key(context)).transpose(1, 2)
        v = self.split(self.value(context))
        # Not baddbmm with beta=0: torch 1.13 on the CPU multiplies uninitialised memory by it.
        scores = torch.bmm(q, k) if bias is None else torch.baddbmm(bias, q, k)
        weights = torch.softmax(scores, dim=-1)
        if self.drop and self.training:
            weights = F.dropout(weights, self.drop)
        mixed = torch.bmm(weights, v).view(b, self.heads, n, self.head_dim)
        return self.output(mixed.transpose(1, 2).reshape(b, n, self.heads * self.head_dim))


class MLP(nn.Module):
    def __init__(self, width, ratio, drop=0.0):
        super().__init__()
        self.drop = drop
        self.fc1 = nn.Linear(width, width * ratio)
        self.fc2 = nn.Linear(width * ratio, width)

    def forward(self, x):
        h = F.gelu(self.fc1(x))
        if self.drop and self.training:
            h = F.dropout(h, self.drop)
        return self.fc2(h)


class Block(nn.Module):
    """A local or a global layer."""

    def __init__(self, width, heads, config, attention=True):
        super().__init__()
        self.drop_path = config.drop_path
        if attention:
            self.attention_norm = norm(width)
            self.attention = Attention(width, width, width, heads, config.drop_attention)
        else:
            self.attention = None
        self.mlp_norm = norm(width)
        self.mlp = MLP(width, config.mlp_ratio, config.drop_units)

    def forward(self, x, bias=None):
        if self.attention is not None:
            y = self.attention_norm(x)
            x = x + drop_branch(self.attention(y, y, bias), self.drop_path, self.training)
        return x + drop_branch(self.mlp(self.mlp_norm(x)), self.drop_path, self.training)


class Cross(nn.Module):
    """read, write or condition: one set of tokens attends to another."""

    def __init__(self, query_dim, context_dim, width, heads, context_norm=True, mlp_ratio=0):
        super().__init__()
        self.query_norm = norm(query_dim)
        self.context_norm = norm(context_dim) if context_norm else None
        self.attention = Attention(query_dim, context_dim, width, heads)
        if mlp_ratio:
            self.mlp_norm = norm(query_dim)
            self.mlp = MLP(query_dim, mlp_ratio)
        else:
            self.mlp = None

    def forward(self, x, context):
        if self.context_norm is not None:
            context = self.context_norm(context)
        x = x + self.attention(self.query_norm(x), context)
        if self.mlp is not None:
            x = x + self.mlp(self.mlp_norm(x))
        return x


class ResidualMLP(nn.Module):
    def __init__(self, width, ratio):
        super().__init__()
        self.mlp_norm = norm(width)
        self.mlp = MLP(width, ratio)

    def forward(self, x):
        return x + self.mlp(self.mlp_norm(x))


class Stage(nn.Module):
    def __init__(self, config, local_blocks, global_blocks, last):
        super().__init__()
        c = config
        diffusion = c.kind == "diffusion"
        width = min(c.data_dim, c.latent_dim)
        heads = min(c.data_heads, c.latent_heads)
        cross = dict(
            context_norm=c.cross_context_norm if diffusion else True,
            mlp_ratio=c.mlp_ratio if diffusion and c.cross_mlp else 0,
        )
        attention = c.local_attention if diffusion else True
        self.add_module(
            "local",
            nn.ModuleList(
                Block(c.data_dim, c.data_heads, c, attention) for _ in range(local_blocks)
            ),
        )
        self.read = self.condition = self.write = None
        if global_blocks:
            self.read = Cross(c.latent_dim, c.data_dim, width, heads, **cross)
            if diffusion:
                self.condition = Cross(
                    c.latent_dim, c.latent_dim, c.latent_dim, c.latent_heads, cross["context_norm"]
                )
            self.add_module(
                "global",
                nn.ModuleList(Block(c.latent_dim, c.latent_heads, c) for _ in range(global_blocks)),
            )
            if not last:
                self.write = Cross(c.data_dim, c.latent_dim, width, heads, **cross)

    @property
    def has_globals(self):
        return self.read is not None


class Network(nn.Module):
    """What the three models share: positions, stages, and the interleaving loop."""

    kind = None

    def __init__(self, config, dtype=torch.float32):
        super().__init__()
        if config.kind != self.kind:
            raise ConfigError(f"{type(self).__name__} got a configuration of kind {config.kind}")
        self.config = config
        self.dtype = dtype
        c = config
        if c.data_positions == "learned":
            self.data_positions = nn.Parameter(torch.empty(c.tokens, c.data_dim))
        if c.latent_positions == "learned":
            self.latent_positions = nn.Parameter(torch.empty(c.groups * c.latents, c.latent_dim))
        plan = parse_layers(c.layers)
        self.stages = nn.ModuleList(
            Stage(c, a, b, last=i == len(plan) - 1) for i, (a, b) in enumerate(plan)
        )
        self.data_norm = norm(c.data_dim)
        self.build()
        self.to(dtype)
        self.fixed("data_positions", lambda: data_code(c.data_positions, c.tokens, c.data_dim))
        self.fixed(
            "latent_positions",
            lambda: latent_code(c.latent_positions, c.groups, c.latents, c.latent_dim),
        )
        minus_inf = float("-inf")
        local = global_ = None
        if self.kind == "autoregressive":
            local = torch.full((1, c.tokens, c.tokens), minus_inf, dtype=dtype).triu_(1)
        if self.kind == "autoregressive" or c.mask == "causal":
            group = torch.arange(c.groups).repeat_interleave(c.latents)
            unseen = group[:, None] < group[None, :]
            global_ = torch.zeros(unseen.shape, dtype=dtype).masked_fill_(unseen, minus_inf)[None]
        self.register_buffer("local_bias", local, persistent=False)
        self.register_buffer("global_bias", global_, persistent=False)
        self.reset_parameters()

    def fixed(self, name, make):
        if not hasattr(self, name):
            self.register_buffer(name, make().to(self.dtype), persistent=False)

    def build(self):
        raise NotImplementedError

    @torch.no_grad()
    def reset_parameters(self):
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
        for name in ("data_positions", "latent_positions", "output_bias"):
            value = getattr(self, name, None)
            if isinstance(value, nn.Parameter):
                nn.init.trunc_normal_(value, std=0.02, a=-0.04, b=0.04)
        if hasattr(self, "previous_latents_norm"):
            nn.init.zeros_(self.previous_latents_norm.weight)

    def initial_latents(self, batch):
        c = self.config
        start = self.latent_positions.view(1, c.groups, c.latents, c.latent_dim)
        return start.expand(batch, -1, -1, -1)

    def interleave(self, x, z, condition=None, shifted_write=False, trace=None):
        """x [B, T, n, D] and z [B, T, m, E] through all the stages."""
        batch, groups, tokens, data_dim = x.shape
        _, _, latents, latent_dim = z.shape

        def note(i, what, value, width):
            if trace is not None:
                trace[f"stages.{i}.{what}"] = value.reshape(batch, groups, -1, width)

        x = x.reshape(batch * groups, tokens, data_dim)
        for i, stage in enumerate(self.stages):
            for block in stage.local:
                x = block(x, self.local_bias)
            note(i, "local", x, data_dim)
            if not stage.has_globals:
                continue
            z = stage.read(z.reshape(batch * groups, latents, latent_dim), x)
            note(i, "read", z, latent_dim)
            z = z.view(batch, groups * latents, latent_dim)
            if stage.condition is not None:
                z = stage.condition(z, condition)
                note(i, "condition", z, latent_dim)
            for block in getattr(stage, "global"):
                z = block(z, self.global_bias)
            note(i, "global", z, latent_dim)
            if stage.write is not None:
                source = z.view(batch, groups, latents, latent_dim)
                if shifted_write:
                    source = F.pad(source[:, :-1], (0, 0, 0, 0, 1, 0))
                x = stage.write(x, source.reshape(batch * groups, latents, latent_dim))
                note(i, "write", x, data_dim)
        return (
            x.view(batch, groups, tokens, data_dim),
            z.reshape(batch, groups, latents, latent_dim),
        )


class Encoder(Network):
    kind = "encoder"

    def build(self):
        c = self.config
        self.stem = nn.Linear(c.channels, c.data_dim)
        self.stem_norm = norm(c.data_dim)
        if c.extra_tokens:
            self.extra_stem = nn.Linear(c.extra_channels, c.data_dim)
            self.extra_stem_norm = norm(c.data_dim)
        self.latent_norm = norm(c.latent_dim)

    def forward(self, input, extra=None, trace=None):
        """input [B, T, n, C], extra [B, T, k, C_y] -> data [B, T, k+n, D], latents [B, T, m, E]."""
        x = self.stem_norm(self.stem(input)) + self.data_positions
        if extra is not None:
            x = torch.cat([self.extra_stem_norm(self.extra_stem(extra)), x], dim=2)
        x, z = self.interleave(x, self.initial_latents(x.shape[0]), trace=trace)
        return self.data_norm(x), self.latent_norm(z)


class TimeEmbedding(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.width = width // 4
        self.fc1 = nn.Linear(self.width, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, gamma):
        code = wave_code(gamma.to(torch.float64) * 1000.0, self.width)
        centred = code - code.mean(-1, keepdim=True)
        code = centred / centred.square().mean(-1, keepdim=True).sqrt()
        return self.fc2(F.silu(self.fc1(code.to(self.fc1.weight.dtype))))


class DiffusionDecoder(Network):
    kind = "diffusion"

    def build(self):
        c = self.config
        self.stem = nn.Linear(c.channels, c.data_dim)
        self.stem_norm = norm(c.data_dim)
        self.time_embedding = TimeEmbedding(c.latent_dim)
        if c.condition_channels:
            self.condition_projection = nn.Linear(c.condition_channels, c.latent_dim)
        if c.self_conditioning == "latent":
            self.previous_latents = ResidualMLP(c.latent_dim, c.mlp_ratio)
            self.previous_latents_norm = norm(c.latent_dim)
        self.output = nn.Linear(c.data_dim, c.output_channels)

    def forward(self, input, gamma, condition=None, previous_latents=None, trace=None):
        """input [B, T, n, C], gamma [B], condition [B, c] or [B, s, c] -> output, latents."""
        c = self.config
        batch = input.shape[0]
        x = self.stem_norm(self.stem(input)) + self.data_positions
        z = self.initial_latents(batch)
        if c.self_conditioning == "latent":
            if previous_latents is None:
                previous_latents = torch.zeros_like(z)
            z = z + self.previous_latents_norm(self.previous_latents(previous_latents))
        seen = self.time_embedding(gamma.reshape(batch))[:, None, :]
        if condition is not None:
            tokens = self.condition_projection(condition)
            seen = torch.cat([seen, tokens if tokens.dim() == 3 else tokens[:, None, :]], dim=1)
        x, z = self.interleave(x, z, condition=seen, trace=trace)
        return self.output(self.data_norm(x)), z


class AutoregressiveDecoder(Network):
    kind = "autoregressive"

    def build(self):
        c = self.config
        self.token_embedding = nn.Embedding(c.vocabulary, c.data_dim)
        if not c.shared_embedding:
            self.output_embedding = nn.Embedding(c.vocabulary, c.data_dim)
        self.output_bias = nn.Parameter(torch.empty(c.vocabulary)) if c.output_bias else None

    def forward(self, ids, trace=None):
        """ids [B, T, n], already shifted -> logits [B, T, n, V]."""
        x = self.token_embedding(ids) + self.data_positions
        z = self.initial_latents(ids.shape[0])
        x, _ = self.interleave(x, z, shifted_write=True, trace=trace)
        table = self.token_embedding if self.config.shared_embedding else self.output_embedding
        return F.linear(self.data_norm(x), table.weight, self.output_bias)


MODELS = {m.kind: m for m in (Encoder, DiffusionDecoder, AutoregressiveDecoder)}


def build_model(config, dtype=torch.float32):
    return MODELS[config.kind](config, dtype=dtype)


def cross_entropy(logits, targets):
    """Mean over all tokens, in nats (bits per dimension: divide by ln 2)."""
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1).long())


def noise_level(schedule, t):
    """gamma(t).  schedule: {'kind': ..., and its numbers}.  Computed in float64."""
    t = torch.as_tensor(t)
    out_dtype = t.dtype if t.is_floating_point() else torch.float64
    t = t.to(torch.float64)
    kind = schedule["kind"]
    floor = 1e-9
    if kind == "cosine_simple":
        return torch.cos((t + 0.0002) / 1.00025 * (math.pi / 2)).square().to(out_dtype)
    if kind == "linear":
        return (1.0 - t).clamp(floor, 1.0).to(out_dtype)
    start, end = float(schedule["start"]), float(schedule["end"])
    if kind == "log":
        if schedule.get("reverse", False):
            start, end = end, start
        top = math.log(end) - torch.log(t * (end - start) + start)
        return (top / (math.log(end) - math.log(start))).clamp(0.0, 1.0).to(out_dtype)
    tau = float(schedule["tau"])
    if kind == "cosine":
        low, high = (math.cos(s * math.pi / 2) ** (2 * tau) for s in (end, start))
        here = torch.cos((t * (end - start) + start) * (math.pi / 2)) ** (2 * tau)
    elif kind == "sigmoid":
        low, high = (1.0 / (1.0 + math.exp(-s / tau)) for s in (end, start))
        here = torch.sigmoid((t * (end - start) + start) / tau)
    else:
        raise ConfigError(f"unknown schedule {kind}")
    return ((here - low) / (high - low)).clamp(floor, 1.0).to(out_dtype)


def along(coefficient, like):
    """[B] -> [B, 1, 1, ...] in the type of `like`.

    Noise levels and all coefficients made from them stay in float64 until here: 1 - gamma
    and 1000 * gamma lose most of their digits in float32.
    """
    return coefficient.reshape((-1,) + (1,) * (like.dim() - 1)).to(like.dtype)


def mixing(gamma):
    """sqrt(gamma), sqrt(1 - gamma)"""
    gamma = gamma.to(torch.float64)
    return gamma.sqrt(), (1 - gamma).sqrt()


def add_noise(x0, eps, gamma):
    keep, lose = mixing(gamma)
    return along(keep, x0) * x0 + along(lose, x0) * eps


def interpret(output, x, gamma, prediction, x0_clip=None, consistent=False):
    """Network output -> (x0, eps).  `consistent`: eps follows from the (clipped) x0."""
    keep, lose = (along(k, x) for k in mixing(gamma))
    if prediction == "eps":
        x0, eps = (x - lose * output) / keep, output
    elif prediction == "x0":
        x0, eps, consistent = output, None, True
    elif prediction == "v":
        x0, eps = keep * x - lose * output, lose * x + keep * output
    else:
        raise ConfigError(f"unknown prediction {prediction}")
    if x0_clip is not None:
        x0 = x0.clamp(*x0_clip)
    return x0, (x - keep * x0) / lose if consistent else eps


def diffusion_loss(net, x0, eps, t, condition, schedule, prediction="eps", loss_on="eps",
                   x0_clip=None, scale=1.0, self_conditioning_rate=0.0):
    """One training loss; x0 is already scaled.  The leading share of the batch gets z_prev."""
    gamma = noise_level(schedule, t.to(torch.float64))
    x = add_noise(x0, eps, gamma)
    previous = None
    if net.config.self_conditioning == "latent":
        c = net.config
        lead = int(x0.shape[0] * self_conditioning_rate)
        previous = x.new_zeros(x.shape[0], c.groups, c.latents, c.latent_dim)
        if lead:
            with torch.no_grad():
                part = None if condition is None else condition[:lead]
                previous[:lead] = net(x[:lead], gamma[:lead], part)[1]
    out, _ = net(x, gamma, condition, previous)
    x0_seen, eps_seen = interpret(out, x, gamma, prediction, x0_clip)
    if loss_on == "x0":
        return ((x0 - x0_seen) / scale).square().mean()
    return (eps - eps_seen).square().mean()


@torch.no_grad()
def sample(net, schedule, steps, initial_noise, condition=None, method="ddim", step_noise=None,
           prediction="eps", x0_clip=None, guidance=0.0, decay=0.0, td=0.0, history=None):
    """Reverse process from `initial_noise`.  method: ddim | ddpm_large | ddpm_small.

    step_noise: a sequence of `steps` tensors for the DDPM methods (drawn when None).
    `net(x, gamma, condition, previous_latents)` returns (output, latents).
    Returns the last x0 estimate.  `history`, when a list, receives (x0, eps, next x, z).
    """
    x = initial_noise
    batch = x.shape[0]
    carries = net.config.self_conditioning == "latent"
    carried = None
    x0 = x

    def level(t):
        return noise_level(schedule, torch.full((batch,), t, dtype=torch.float64))

    for i in range(steps):
        t = 1.0 - i / steps
        now, then = level(t), level(max(t - (1.0 + td) / steps, 0.0))
        out, z = net(x, now, condition, carried)
        if guidance:
            blank = None if condition is None else torch.zeros_like(condition)
            out = (1.0 + guidance) * out - guidance * net(x, now, blank, carried)[0]
        if carries:
            carried = (1.0 - decay) * z if carried is None else decay * carried + (1.0 - decay) * z
        x0, eps = interpret(out, x, now, prediction, x0_clip, consistent=True)
        if method == "ddim":
            x = add_noise(x0, eps, then)
        else:
            a = (now / then).clamp(0.0, 1.0)
            var = 1 - a
            if method == "ddpm_small":
                var = var * (1 - then) / (1 - now)
            elif method != "ddpm_large":
                raise ConfigError(f"unknown sampler {method}")
            fresh = torch.randn_like(x) if step_noise is None else step_noise[i]
            # (x - (1-a)/sqrt(1-now) eps)/sqrt(a) with eps = (x - sqrt(now) x0)/sqrt(1-now) put in:
            # the same mean, without the cancellation that float32 would suffer where a is small.
            old_share = a.sqrt() * (1 - then) / (1 - now)
            new_share = then.sqrt() * (1 - a) / (1 - now)
            mean = along(old_share, x) * x + along(new_share, x) * x0
            x = mean + along(var.sqrt(), x) * fresh
        if history is not None:
            history.append((x0, eps, x, z))
    return x0


def group_image(image, sub_image, patch):
    """[B, H, W, c] -> [B, T, n, C]; sub_image and patch are (height, width) pairs."""
    b, height, width, c = image.shape
    (sh, sw), (ph, pw) = sub_image, patch
    if height % sh or width % sw or sh % ph or sw % pw:
        raise ConfigError("the image does not divide into sub-images and patches")
    x = image.reshape(b, height // sh, sh // ph, ph, width // sw, sw // pw, pw, c)
    x = x.permute(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(b, (height // sh) * (width // sw), (sh // ph) * (sw // pw), ph * pw * c)


def ungroup_image(groups, image_size, sub_image, patch):
    """The inverse of group_image; image_size is (height, width)."""
    b = groups.shape[0]
    (height, width), (sh, sw), (ph, pw) = image_size, sub_image, patch
    x = groups.reshape(b, height // sh, width // sw, sh // ph, sw // pw, ph, pw, -1)
    x = x.permute(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(b, height, width, x.shape[-1])


def flip_odd_rows(patches, rows):
    """Raster <-> snake order of [B, rows*columns, ...]; its own inverse."""
    b, count = patches.shape[:2]
    grid = patches.reshape(b, rows, count // rows, -1).clone()
    grid[:, 1::2] = grid[:, 1::2].flip(2)
    return grid.reshape(patches.shape)


def image_patches(image, patch, order="raster"):
    """[B, H, W, c] -> [B, P, C]: every patch is a group of its own (autoregressive images)."""
    size = (image.shape[1], image.shape[2])
    patches = group_image(image, size, patch)[:, 0]
    return flip_odd_rows(patches, size[0] // patch[0]) if order == "snake" else patches


def patches_image(patches, image_size, patch, order="raster"):
    if order == "snake":
        patches = flip_odd_rows(patches, image_size[0] // patch[0])
    return ungroup_image(patches[:, None], image_size, image_size, patch)


def group_sequence(x, tokens):
    """[B, L, ...] -> [B, L/tokens, tokens, ...]."""
    if x.shape[1] % tokens:
        raise ConfigError(f"a sequence of {x.shape[1]} does not divide into runs of {tokens}")
    return x.reshape(x.shape[0], -1, tokens, *x.shape[2:])


def ungroup_sequence(x):
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])


def group_video(video, box, patch):
    """[B, F, H, W, c] -> [B, T, n, C]; box and patch are (frames, height, width).

    Boxes, patches in a box and values in a patch all run frame, row, column (channel last).
    """
    b, c = video.shape[0], video.shape[-1]
    shape, counts = [b], []
    for size, outer, inner in zip(video.shape[1:4], box, patch):
        if size % outer or outer % inner:
            raise ConfigError("the video does not divide into boxes and patches")
        shape += [size // outer, outer // inner, inner]
        counts.append((size // outer, outer // inner, inner))
    x = video.reshape(*shape, c).permute(0, 1, 4, 7, 2, 5, 8, 3, 6, 9, 10)
    t, n, p = (math.prod(k[i] for k in counts) for i in range(3))
    return x.reshape(b, t, n, p * c)


def ungroup_video(groups, video_size, box, patch):
    """The inverse of group_video; video_size is (frames, height, width)."""
    outer = [s // k for s, k in zip(video_size, box)]
    middle = [k // p for k, p in zip(box, patch)]
    x = groups.reshape(groups.shape[0], *outer, *middle, *patch, -1)
    x = x.permute(0, 1, 4, 7, 2, 5, 8, 3, 6, 9, 10)
    return x.reshape(x.shape[0], *video_size, x.shape[-1])


def shift_right(ids):
    """[B, T, n] targets -> inputs: the flat sequence moved by one, first id 0."""
    flat = ids.reshape(ids.shape[0], -1)
    return F.pad(flat[:, :-1], (1, 0)).reshape(ids.shape)
